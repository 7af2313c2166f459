"""Strict reading of annotation files: every problem of a file is collected, nothing is guessed or skipped."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from composir.data.images import ImageSource
from composir.data.triplets import Split
from composir.errors import ComposirError, Note, Problem, ProblemsError, counted, nearest, short

Json = TypeVar("Json", list, dict)
T = TypeVar("T")

RESTORE = "restore the published file"
MAX_TEXT_LENGTH = 1000
"""Characters. Longer texts are rows that ran together rather than captions: the longest of CIRR val has 244."""
MAX_SUGGESTIONS = 20
"""Beyond this many problems no nearest name is looked up: it is the wrong file, not a typing error."""

WORD_BY_TYPE = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


class Findings(list[Problem]):
    """The problems of a data set's files, in the order they were found, and ``notes`` on what is odd and no problem.

    A published file is data: whoever has it cannot mend it. Only what leaves no meaning is a problem.
    """

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[Note] = []


class SplitNotFoundError(ComposirError):
    """The data root holds no annotation file of the split, or the data set has no split of that name."""


class SourceNotFoundError(SplitNotFoundError):
    """The split's own file is there, and the data set whose images it speaks of is not."""


class AnnotationsError(ProblemsError):
    """Every problem of a split's annotation files; ``splits`` holds what could be read all the same.

    Those are for `data check`, which goes on to the images, and never for training or evaluation.
    """

    def __init__(self, problems: Sequence[Problem], splits: tuple[Split, ...]) -> None:
        super().__init__(problems)
        self.splits = splits


def find_home(root: Path, *, marker: str, folder: str, source: str) -> Path:
    """Return the folder that holds ``marker``: ``root`` itself, or ``folder`` inside it; ``source`` offers the data.

    ``marker`` is the path of a folder, or the path or pattern of files, which has a suffix.
    """
    root = Path(root)
    homes = (root, root / folder)
    for home in homes:
        if any(home.glob(marker)):
            return home
    kind, marker = ("file", marker) if Path(marker).suffix else ("folder", f"{marker}/")
    raise ComposirError(
        f"no {marker} {kind} in it" if root.is_dir() else "no such folder",
        file=root,
        expected=f"the data set's own folder, or its parent with {folder}/",
        fix=f"pass the folder that holds {marker} as --data-root; it comes from {source} (docs/data.md); "
        "without it: `composir data scenes --out scenes`, then --dataset CIRR --data-root scenes",
    )


def choose_categories(dataset: str, categories: Sequence[str] | None, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the categories asked for, all ``known`` ones by default; ``ComposirError`` for one that is not known."""
    if categories is not None and not known:
        message = f"{dataset} has no categories, got {', '.join(categories)}"
        raise ComposirError(message, fix="leave the categories out")
    for category in categories or ():
        if category not in known:
            raise ComposirError(
                f"{dataset} has no category {category!r}", expected=", ".join(known), fix=nearest(category, known)
            )
    return tuple(categories or known)


def check_split_name(dataset: str, split: str, splits: Sequence[str]) -> None:
    """Raise ``SplitNotFoundError`` unless the data set has a split of that name."""
    if split not in splits:
        raise SplitNotFoundError(
            f"{dataset} has no split {split!r}", expected=", ".join(splits), fix=nearest(split, splits)
        )


def require_some(dataset: str, split: str, files: Sequence[Path]) -> None:
    """Raise ``SplitNotFoundError`` when not one of the split's files is there."""
    if not any(file.exists() for file in files):
        raise SplitNotFoundError(
            f"the {split} split of {dataset} is not in this data root",
            file=files[0],
            expected=" and ".join(str(file) for file in files[1:]) + " beside it" if len(files) > 1 else None,
            fix="put the published annotation files there, or choose another split",
        )


def find_categories(
    dataset: str, split: str, files_by_category: Mapping[str, tuple[Path, ...]], problems: list[Problem]
) -> list[str]:
    """Return the categories of which a file is there; each of the others becomes a problem.

    The first file of a category holds its queries. Raises ``SplitNotFoundError`` where there is none of any.
    """
    require_some(dataset, split, [file for files in files_by_category.values() for file in files])
    present = [category for category, files in files_by_category.items() if any(file.exists() for file in files)]
    there = " ".join(f"--categories {name}" for name in present)
    for category, (file, *others) in files_by_category.items():
        if category not in present:
            message = f"the {category} category of the {split} split is not in this data root"
            files = " and ".join(["it", *(other.name for other in others)])
            problems.append(Problem(str(file), "", message, f"put {files} there, or choose what is: {there}"))
    return present


def require_whole(splits: tuple[Split, ...], problems: Findings) -> tuple[Split, ...]:
    """Return the splits of a data set without problems, each with queries; else raise ``AnnotationsError``.

    The notes come back with the first of them.
    """
    splits = tuple(replace(split, notes=() if number else tuple(problems.notes)) for number, split in enumerate(splits))
    empty = [Problem(str(split.file), "", "holds no query", RESTORE) for split in splits if not split.queries]
    if problems or empty:
        raise AnnotationsError(problems or empty, splits)
    return splits


def read_json(path: Path, kind: type[Json], problems: list[Problem], *, restore: str = RESTORE) -> Json | None:
    """Return the parsed file, or None after adding to ``problems`` why it is not valid JSON of that ``kind``."""
    text = read_text(path, problems, restore)
    return None if text is None else parse_json(text, kind, path, problems, restore=restore)


def read_names(path: Path, problems: list[Problem], *, restore: str = RESTORE) -> dict[str, None] | None:
    """Return the texts of a JSON list in their order, each once; None where the file is unreadable.

    A name that a published list repeats is noted: it means one image all the same.
    """
    content = read_json(path, list, problems, restore=restore)
    if content is None:
        return None
    names: dict[str, None] = {}
    for number, name in enumerate(content):
        where = f"entry {number}"
        if not isinstance(name, str) or not name:
            problems.append(Problem(str(path), where, f"the name is {name!r}, expected text", restore))
        elif name not in names:
            names[name] = None
        elif isinstance(problems, Findings):
            problems.notes.append(Note(str(path), where, f"the name {name!r} is repeated"))
        else:
            problems.append(Problem(str(path), where, f"the name {name!r} is repeated", "keep it once"))
    return names


def parse_json(
    text: str, kind: type[Json], path: Path, problems: list[Problem], *, line: int | None = None, restore: str = RESTORE
) -> Json | None:
    """Return the parsed text, or None after adding to ``problems`` why it is not valid JSON of that ``kind``.

    ``text`` is the whole of ``path``, or one ``line`` of it. A key that an object repeats is a problem too: parsers
    keep the last one in silence.
    """
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            repeated.extend(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        return found

    place = "" if line is None else f"line {line}"

    def problem(where: str, message: str, fix: str) -> None:
        problems.append(Problem(str(path), where, message, fix))

    try:
        content = json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        problem(f"line {line or error.lineno} column {error.colno}", f"not valid JSON: {error.msg}", restore)
    except ValueError:  # Python refuses to read whole numbers of thousands of digits
        problem(place, "holds a number too long to be read", restore)
    except RecursionError:
        problem(place, "nested too deeply to be an annotation file", restore)
    else:
        for key in repeated:
            problem(f"{place} key {key!r}".strip(), "the name is repeated in one object", "keep it once")
        if isinstance(content, kind):
            return content
        problem(place, f"holds {WORD_BY_TYPE[type(content)]}, expected {WORD_BY_TYPE[kind]}", restore)
    return None


def parse_json_lines(
    text: str, path: Path, problems: list[Problem], *, restore: str = RESTORE, space: str | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of JSON Lines with the numbers of their lines, from 1; other lines become problems.

    Lines of nothing but ``space``, any white space by default, do not count.
    """
    for number, line in enumerate(text.split("\n"), 1):
        fields = parse_json(line, dict, path, problems, line=number, restore=restore) if line.strip(space) else None
        if fields is not None:
            yield number, fields


def read_text(path: Path, problems: list[Problem], restore: str = RESTORE) -> str | None:
    """Return the file's text, or None after adding to ``problems`` why there is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        fix = f"put the published {path.name} there" if restore == RESTORE else f"correct the path, or {restore}"
        where, message = "", "the file is missing"
    except OSError as error:
        where, message, fix = "", f"cannot be opened ({error.strerror})", "make it a readable regular file"
    except UnicodeDecodeError as error:
        where, message, fix = f"byte {error.start}", "not UTF-8 text", f"save it as UTF-8, or {restore}"
    problems.append(Problem(str(path), where, message, fix))
    return None


@dataclass(frozen=True, slots=True)
class Entry:
    """One object or line of an annotation file; what is wrong with a field is added to ``problems``."""

    file: Path
    where: str
    """Place in the file, such as ``pairid 17``, ``entry 3`` (counted from 0) or ``line 4`` (counted from 1)."""
    fields: dict[str, Any]
    problems: list[Problem]
    restore: str = RESTORE
    """What else can be done about a field that is missing or wrong."""

    def problem(self, message: str, fix: str) -> None:
        """Add a problem of this entry."""
        self.problems.append(Problem(str(self.file), self.where, message, fix))

    def note(self, message: str) -> None:
        """Add a note on this entry of a published file."""
        assert isinstance(self.problems, Findings)
        self.problems.notes.append(Note(str(self.file), self.where, message))

    def get(self, key: str, kind: type[T]) -> T | None:
        """Return the field, or None after adding a problem: it is missing or of another type."""
        if key not in self.fields:
            self.problem(f"key {key!r} is missing", f"add {key!r} to the entry, or {self.restore}")
            return None
        return self.typed(key, self.fields[key], kind)

    def typed(self, what: str, value: object, kind: type[T]) -> T | None:
        """Return ``value`` if it is exactly of type ``kind``, else None after adding a problem."""
        if type(value) is kind:
            return value
        message = f"{what!r} is {WORD_BY_TYPE[type(value)]} ({short(value)}), expected {WORD_BY_TYPE[kind]}"
        self.problem(message, f"correct {what!r}, or {self.restore}")
        return None

    def caption(self, what: str, text: str | None, edges: str | None = None) -> str | None:
        """Return the ``text`` of a published file, a blank one too: that is noted.

        Blank is what holds nothing but ``edges``, white space by default.
        """
        text = self._whole(what, text)
        if text is not None and not text.strip(edges):
            self.note(f"{what!r} is blank ({text!r})")
        return text

    def sentence(self, what: str, text: str | None) -> str | None:
        """Return ``text`` if more than white space is in it, else None after adding a problem."""
        if text is None:
            return None
        if not text.strip():
            self.problem(f"{what!r} is empty ({text!r})", "write the sentence, or remove the entry")
            return None
        return self._whole(what, text)

    def _whole(self, what: str, text: str | None) -> str | None:
        if text and not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
            self.problem(f"{what!r} holds half a surrogate pair ({text!r})", "write the character whole")
            return None
        return text

    def image_name(self, what: str, name: str | None, known: Collection[str] | None, *sources: Path) -> str | None:
        """Return ``name`` if it is in ``known`` (None: cannot be told), the names that ``sources`` list."""
        if name is None or known is None or name in known:
            return name
        close = _nearest_name(name, known) if len(self.problems) < MAX_SUGGESTIONS else None
        suggestion = "" if close is None else f"did you mean {close!r}? else "
        files = " or ".join(source.name for source in sources)
        self.problem(f"{what} {name!r} is not in {files}", f"{suggestion}add it to {files}")
        return None

    def image_names(
        self, what: str, items: list[Any], kind: type, known: Collection[str] | None, source: Path
    ) -> list[str] | None:
        """Return the names in a list, all different and known, or None after adding its problems."""
        names: list[str] = []
        for number, item in enumerate(items):
            place = f"{what}[{number}]"
            value = self.typed(place, item, kind)
            name = self.image_name(place, None if value is None else str(value), known, source)
            if name in names:
                self.problem(f"{place} repeats {name!r}", f"name every image once, or {self.restore}")
            elif name is not None:
                names.append(name)
        return names if len(names) == len(items) else None

    def note_own_target(self, target: str | None, reference: str | None) -> None:
        """Add a note where the right answer is the query's own picture."""
        if target is not None and target == reference:
            self.note("the target is also the reference")

    def add_image(self, name: str, source: ImageSource, images: dict[str, ImageSource]) -> None:
        """Add an image to ``images``; a name that is there already is noted, and a problem if it means another file."""
        if images.get(name) == source:
            self.note(f"the name {name!r} is repeated")
        elif name in images:
            self.problem(f"the name {name!r} is repeated", "keep it once")
        else:
            images[name] = source


def read_entries(
    path: Path, problems: list[Problem], id_key: str | None = None, *, restore: str = RESTORE
) -> list[Entry]:
    """Return the objects of a JSON list, in order; elements that are no object become problems.

    An entry is called by its ``id_key`` where it has a usable one, else by its number in the list.
    """
    items = read_json(path, list, problems, restore=restore) or ()
    return as_entries(path, items, problems, id_key=id_key, restore=restore)


def as_entries(
    path: Path,
    items: Sequence[object],
    problems: list[Problem],
    *,
    where: str = "entry",
    id_key: str | None = None,
    restore: str = RESTORE,
) -> list[Entry]:
    """Return what ``read_entries`` does, of a list inside a file; ``where`` is what the list's elements are called."""
    entries = []
    for number, fields in enumerate(items):
        place = f"{where} {number}"
        if not isinstance(fields, dict):
            message = f"holds {WORD_BY_TYPE[type(fields)]} ({short(fields)}), expected an object"
            problems.append(Problem(str(path), place, message, restore))
            continue
        if id_key is not None and type(fields.get(id_key)) is int:
            place = f"{id_key} {fields[id_key]}"
        entries.append(Entry(path, place, fields, problems, restore))
    return entries


def read_lines(path: Path, problems: list[Problem], id_key: str) -> list[Entry]:
    """Return the objects of a JSON Lines file, called by the ``id_key`` where it is there; blank lines do not count."""
    entries = []
    for number, fields in parse_json_lines(read_text(path, problems) or "", path, problems):
        known = type(fields.get(id_key)) in (int, str)
        where = f"{id_key} {short(fields[id_key])}" if known else f"line {number}"
        entries.append(Entry(path, where, fields, problems))
    return entries


def read_table(
    path: Path, columns: Sequence[str], problems: Findings, *, separator: str | None = None, may_have_more: bool = False
) -> list[Entry]:
    """Return the lines of a text file with their fields by column; lines with more or fewer fields become problems.

    Fields stand between ``separator``, white space by default. Blank lines do not count. With ``may_have_more`` the
    fields behind the last column are left out, with a note.
    """
    entries = []
    for number, line in enumerate((read_text(path, problems) or "").split("\n"), 1):
        fields = line.split(separator)
        entry = Entry(path, f"line {number}", dict(zip(columns, fields, strict=False)), problems)
        if not line.strip():
            continue
        message = f"holds {counted(len(fields), 'field')}, expected {len(columns)}: {', '.join(columns)}"
        if len(fields) == len(columns):
            entries.append(entry)
        elif may_have_more and len(fields) > len(columns):
            entry.note(message)
            entries.append(entry)
        else:
            entry.problem(message, RESTORE)
    return entries


def check_unique(entries: Sequence[Entry], key: str) -> None:
    """Add a problem to every entry whose whole number under ``key`` an earlier one has."""
    seen: set[int] = set()
    for entry in entries:
        value = entry.fields.get(key)
        if type(value) is int:
            if value in seen:
                entry.problem(f"the {key} is repeated", f"give every query its own {key}")
            seen.add(value)


def _nearest_name(name: str, known: Collection[str]) -> str | None:
    """Return the name that one slip of the pen may have turned into ``name``.

    Such a slip leaves the first or the second half as it was, which is quick to look up in 200,000 names. The
    neighbour of a number is just another number, so numbers have none.
    """
    if name.isdecimal():
        return None
    half = len(name) // 2
    alike = [other for other in known if other.startswith(name[:half]) or other.endswith(name[half:])]
    close = difflib.get_close_matches(name, alike, n=1)
    return close[0] if close else None
