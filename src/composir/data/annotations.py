"""Strict reading of annotation files: every problem of a file is collected, nothing is guessed or skipped."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from composir.data.triplets import Split
from composir.errors import ComposirError, Problem, ProblemsError, nearest

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


class SplitNotFoundError(ComposirError):
    """The data root holds no annotation file of the split, or the data set has no split of that name."""


class AnnotationsError(ProblemsError):
    """Every problem of a split's annotation files; ``splits`` holds what could be read all the same.

    Those are for `data check`, which goes on to the images, and never for training or evaluation.
    """

    def __init__(self, problems: Sequence[Problem], splits: tuple[Split, ...]) -> None:
        super().__init__(problems)
        self.splits = splits


def find_home(root: Path, *, marker: str, folder: str, source: str) -> Path:
    """Return the folder that holds ``marker``: ``root`` itself, or ``folder`` inside it; ``source`` offers the data."""
    root = Path(root)
    homes = (root, root / folder)
    for home in homes:
        if (home / marker).is_dir():
            return home
    raise ComposirError(
        f"no {marker}/ folder in it" if root.is_dir() else "no such folder",
        file=root,
        expected=f"the data set's own folder, or its parent with {folder}/",
        fix=f"pass the folder that holds {marker}/ as --data-root; it comes from {source} (docs/data.md); "
        "without it: `composir data scenes --out scenes`, then --dataset CIRR --data-root scenes",
    )


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
            expected=" and ".join(str(file) for file in files[1:]) + " beside it",
            fix="put the published annotation files there, or choose another split",
        )


def read_json(path: Path, kind: type[Json], problems: list[Problem], *, restore: str = RESTORE) -> Json | None:
    """Return the parsed file, or None after adding to ``problems`` why it is not valid JSON of that ``kind``."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        problems.append(Problem(str(path), "", "the file is missing", f"put the published {path.name} there"))
    except UnicodeDecodeError as error:
        problems.append(Problem(str(path), f"byte {error.start}", "not UTF-8 text", f"save it as UTF-8, or {restore}"))
    except OSError as error:
        problems.append(
            Problem(str(path), "", f"cannot be opened ({error.strerror})", "make it a readable regular file")
        )
    else:
        return parse_json(text, kind, path, problems, restore=restore)
    return None


def read_names(path: Path, problems: list[Problem], *, restore: str = RESTORE) -> dict[str, None] | None:
    """Return the texts of a JSON list in their order, each once; None where the file is unreadable."""
    content = read_json(path, list, problems, restore=restore)
    if content is None:
        return None
    names: dict[str, None] = {}
    for number, name in enumerate(content):
        where = f"entry {number}"
        if not isinstance(name, str) or not name:
            problems.append(Problem(str(path), where, f"the name is {name!r}, expected text", restore))
        elif name in names:
            problems.append(Problem(str(path), where, f"the name {name!r} is repeated", "keep it once"))
        else:
            names[name] = None
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
            keys = [key for key, _ in pairs]
            repeated.extend(key for key in found if keys.count(key) > 1)
        return found

    place = "" if line is None else f"line {line}"

    def problem(where: str, message: str, fix: str) -> None:
        problems.append(Problem(str(path), where, message, fix))

    try:
        content = json.loads(text, object_pairs_hook=collect)
    except json.JSONDecodeError as error:
        problem(f"line {line or error.lineno} column {error.colno}", f"not valid JSON: {error.msg}", restore)
    except ValueError as error:  # a number with thousands of digits
        problem(place, f"not valid JSON: {error}", restore)
    except RecursionError:
        problem(place, "nested too deeply to be an annotation file", restore)
    else:
        for key in repeated:
            problem(f"{place} key {key!r}".strip(), "the name is repeated in one object", "keep it once")
        if isinstance(content, kind):
            return content
        problem(place, f"holds {WORD_BY_TYPE[type(content)]}, expected {WORD_BY_TYPE[kind]}", restore)
    return None


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of an annotation file; what is wrong with a field is added to ``problems``."""

    file: Path
    where: str
    """Place in the file, such as ``pairid 17`` or ``entry 3`` (counted from 0)."""
    fields: dict[str, Any]
    problems: list[Problem]
    restore: str = RESTORE
    """What else can be done about a field that is missing or wrong."""

    def problem(self, message: str, fix: str) -> None:
        """Add a problem of this entry."""
        self.problems.append(Problem(str(self.file), self.where, message, fix))

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
        message = f"{what!r} is {WORD_BY_TYPE[type(value)]} ({_short(value)}), expected {WORD_BY_TYPE[kind]}"
        self.problem(message, f"correct {what!r}, or {self.restore}")
        return None

    def sentence(self, what: str, text: str | None, blank: str | None = None) -> str | None:
        """Return ``text`` if more than ``blank`` characters (white space) is in it, else None."""
        if text is None:
            return None
        if not text.strip(blank):
            self.problem(f"{what!r} is empty ({text!r})", "write the sentence, or remove the entry")
            return None
        if any("\ud800" <= character <= "\udfff" for character in text):
            self.problem(f"{what!r} holds half a surrogate pair ({text!r})", "write the character whole")
            return None
        return text

    def image_name(self, what: str, name: str | None, known: Collection[str] | None, source: Path) -> str | None:
        """Return ``name`` if it is in ``known`` (None: cannot be told), the names that ``source`` lists."""
        if name is None or known is None or name in known:
            return name
        close = []
        if len(self.problems) < MAX_SUGGESTIONS:
            close = difflib.get_close_matches(name, known, n=1)
        suggestion = f"did you mean {close[0]!r}? else " if close else ""
        self.problem(f"{what} {name!r} is not in {source.name}", f"{suggestion}add it to {source.name}")
        return None


def read_entries(
    path: Path, problems: list[Problem], id_key: str | None = None, *, restore: str = RESTORE
) -> list[Entry]:
    """Return the objects of a JSON list, in order; elements that are no object become problems.

    An entry is called by its ``id_key`` where it has a usable one, else by its number in the list.
    """
    entries = []
    for number, fields in enumerate(read_json(path, list, problems, restore=restore) or ()):
        where = f"entry {number}"
        if not isinstance(fields, dict):
            message = f"holds {WORD_BY_TYPE[type(fields)]} ({_short(fields)}), expected an object"
            problems.append(Problem(str(path), where, message, restore))
            continue
        if id_key is not None and type(fields.get(id_key)) is int:
            where = f"{id_key} {fields[id_key]}"
        entries.append(Entry(path, where, fields, problems, restore))
    return entries


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
