"""A file of one's own triplets and a folder of pictures become a checked data root, which ``own`` reads."""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from composir.data.annotations import (
    MAX_TEXT_LENGTH,
    Entry,
    parse_json,
)
from composir.data.images import inspect_files
from composir.data.images.files import FETCH_FIX, ID_LENGTH, content_id, read_bytes
from composir.data.images.folder import PICTURE_SUFFIXES, find_pictures
from composir.data.own import (
    FORMAT,
    GALLERY,
    HOME,
    IMAGES,
    SPLITS,
    Find,
    is_new,
    leaves_folder,
    read_query,
    triplets_file,
)
from composir.data.sharing import read_shares, share_out
from composir.data.triplets import Query
from composir.errors import ComposirError, Problem, ProblemsError, counted, nearest
from composir.files import replacing_folder, write_text
from composir.progress import Counted

FIELDS = ("reference", "text", "target", "targets", "split", "subset", "id")
"""The columns of CSV and the keys of JSONL; the first three are needed, ``targets`` does instead of ``target``."""
GALLERIES = ("folder", "named")
DEFAULT_SPLIT = "val"
CSV_SUFFIXES, JSONL_SUFFIXES = (".csv", ".tsv"), (".jsonl",)
DELIMITERS = (",", ";", "\t", "|")
DELIMITERS_IN_WORDS = "a comma, a semicolon, a tab or a bar (|)"
DELIMITER_LINE = re.compile(r'"?sep=(.)"?\1*(?:\r\n|\r|\n|$)', re.IGNORECASE)
"""A first line that names the delimiter, as spreadsheets write and read it."""
JSON_SPACE = " \t\r"
"""What JSON has for white space within a line (RFC 8259); ``str.strip`` takes more."""
IMAGE_ID = f"[0-9a-f]{{{ID_LENGTH}}}"
NAME_SEPARATOR = "|"
"""Between the names in a cell of ``targets`` or ``subset``."""


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import has made."""

    counts: dict[str, dict[str, int]]
    """``num_queries`` and ``num_gallery`` by split."""
    notes: list[str]
    """What is no problem but should be known, a sentence each."""


def import_triplets(
    file: str | Path,
    images: str | Path,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    gallery: str = "folder",
    copy_images: bool = False,
    seed: int = 0,
    progress: Counted | None = None,
) -> Imported:
    """Return counts and notes after writing the data root ``out``, a new folder; all of it or nothing.

    ``file`` is CSV (a header; ``,``, ``;``, tab or ``|``) or JSONL (an object a line) in UTF-8, with columns or keys
    called as in ``FIELDS``; ``columns`` gives other names, by field. Rows of empty cells, and empty cells beyond the
    header, are passed over. A picture may be named by its path below ``images``, by a whole one, or by the id that an
    index has for its content. Without a column ``split`` all rows are in ``split`` (``val`` unless given), or shared
    out by ``80/20`` or ``80/10/10`` with ``seed`` (``share_out``). ``gallery`` is ``folder``, every picture below
    ``images``, or ``named``, those of the rows. The pictures stay where they are, and ``out`` refers to ``images`` by
    an absolute path, or by one relative to ``out`` where ``images`` is relative; with ``copy_images`` they are copied.

    Every picture of the gallery is decoded; ``progress(num_done, num_files)`` counts them. Raises ``ProblemsError``
    with every bad row and every bad picture, and ``ComposirError`` for arguments that cannot be.
    """
    file, images, out = Path(file), Path(images), Path(out)
    column_by_field = _columns(columns or {})
    shares = read_shares(split or "")
    default = DEFAULT_SPLIT if shares else split or DEFAULT_SPLIT
    _check_arguments(file, images, out, split=default, gallery=gallery)
    found = find_pictures(images)
    table = _read_table(file, column_by_field, split, found.names)
    names, reasons = found.names, found.reasons
    if not names:
        raise ComposirError(
            "holds no picture" + "".join(f" ({path}: {reason})" for path, reason in list(reasons.items())[:1]),
            file=images,
            expected=f"files that end in {', '.join(PICTURE_SUFFIXES)}",
            fix="give the folder that the paths start from",
        )
    rows = _read_rows(table, _Pictures(images, names).find, default)
    if shares and not table.problems:
        rows = share_out(rows[default], shares, seed)
    if gallery == "named":
        named = {name for queries in rows.values() for query in queries for name in _names(query)}
        names = [name for name in names if name in named]
    problems = list(table.problems)
    for path, reason in reasons.items() if gallery == "folder" else ():
        fix = "put the pictures themselves there, readable, or leave it out with --gallery named"
        problems.append(Problem(str(images), path, reason, fix))
    notes = _notes(table, rows, default, f"shared out by --split {split} with seed {seed}" if shares else "")
    problems += _inspect(names, images, notes, progress)
    if problems:
        raise ProblemsError(problems)
    _write(out, images, names, rows, copy_images=copy_images)
    counts = {name: {"num_queries": len(queries), "num_gallery": len(names)} for name, queries in rows.items()}
    return Imported(counts, notes)


def read_triplets(file: Path, find: Find, *, split: str) -> dict[str, list[Query]]:
    """Return the queries of a file as ``import_triplets`` takes it, by split, with pictures called as ``find`` does.

    Rows that say nothing of it are in ``split``. Raises ``ProblemsError`` with every bad row.
    """
    table = _read_table(file, _columns({}), None, ())
    rows = _read_rows(table, find, split)
    if table.problems:
        raise ProblemsError(table.problems)
    return rows


def _columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Return the column of every field; raise ``ComposirError`` where one is to be two fields."""
    for field in columns:
        _require_known("a field", field, FIELDS)
    column_by_field = {field: columns.get(field, field) for field in FIELDS}
    for field, column in columns.items():
        others = [other for other in FIELDS if other != field and column_by_field[other] == column]
        if others:
            raise ComposirError(
                f"the column {column!r} is to be both {field} and {others[0]}",
                expected="a column for each",
                fix=f"name the column of {others[0]}, too",
            )
    return column_by_field


def _check_arguments(file: Path, images: Path, out: Path, *, split: str, gallery: str) -> None:
    """Raise ``ComposirError`` for what cannot be, before anything is read."""
    _require_known("a split", split, SPLITS)
    _require_known("a gallery", gallery, GALLERIES)
    if file.suffix.lower() not in (*CSV_SUFFIXES, *JSONL_SUFFIXES):
        raise ComposirError(
            f"the name ends in {file.suffix!r}",
            file=file,
            expected="CSV (.csv, .tsv) or JSONL (.jsonl, an object a line)",
            fix="save the triplets as one of them",
        )
    if not images.is_dir():
        raise ComposirError("no such folder of images", file=images, fix="give the folder that the paths start from")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ComposirError("already exists and is not empty", file=out, fix="choose a new folder with --out")


def _require_known(what: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ComposirError(f"{value!r} is not {what}", expected=", ".join(known), fix=nearest(value, known))


@dataclass(frozen=True, slots=True)
class _Table:
    """The rows of a file, whatever its kind, their fields called as in ``FIELDS``."""

    columns: tuple[str, ...]
    """As the file calls them."""
    column_by_field: Mapping[str, str]
    rows: list[Entry]
    problems: list[Problem]
    """Of all rows, in their order."""

    def has(self, field: str) -> bool:
        """Return whether the file has a column for the field."""
        return self.column_by_field[field] in self.columns


def _read_table(file: Path, column_by_field: Mapping[str, str], split: str | None, names: Sequence[str]) -> _Table:
    """Return the rows; raise ``ProblemsError`` where a column is missing or the file cannot be read.

    A first line that holds one of the ``names`` of pictures is no header.
    """
    problems: list[Problem] = []
    text = _read_text(file)
    is_csv = file.suffix.lower() in CSV_SUFFIXES
    if is_csv:
        columns, rows = _read_csv(text, file, set(column_by_field.values()), problems)
    else:
        columns, rows = _read_jsonl(text, file, problems)
    for row in rows:
        values = {field: row.fields[column] for field, column in column_by_field.items() if column in row.fields}
        row.fields.clear()
        row.fields.update(_tidy(values, is_csv=is_csv))
    table = _Table(columns, column_by_field, rows, problems)
    missing = _missing_columns(file, table, is_csv=is_csv) if columns else []
    if missing and is_csv and any(_is_picture(column, names) for column in columns):
        message = f"the first line looks like data, {', '.join(map(repr, columns))}: the header is missing"
        missing = [
            Problem(str(file), "line 1", message, f"write {','.join(FIELDS[:3])} above it, in its columns' order")
        ]
    if not rows and not problems and not missing:
        missing.append(Problem(str(file), "", "holds no triplet", "write one row for each"))
    if split is not None and table.has("split"):
        message = f"has a column {column_by_field['split']!r}, and --split {split} is given"
        missing.append(Problem(str(file), "", message, "leave --split out"))
    if missing:
        raise ProblemsError([*missing, *problems])
    return table


def _is_picture(cell: str, names: Sequence[str]) -> bool:
    return cell in names or Path(cell).suffix.lower() in PICTURE_SUFFIXES


def _read_text(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ComposirError(f"cannot be read ({error.strerror})", file=file, fix="check the path") from None
    try:
        text = content.decode("utf-8-sig")
        reason, place = "it holds NUL characters", content.find(b"\0")
    except UnicodeDecodeError as error:
        text, reason, place = "", f"byte {content[error.start]:#04x}", error.start
    if place >= 0:
        line = content.count(b"\n", 0, place) + 1
        fix = "save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
        raise ProblemsError([Problem(str(file), f"line {line}", f"not UTF-8 text ({reason})", fix)])
    return text


def _read_csv(text: str, file: Path, known: set[str], problems: list[Problem]) -> tuple[tuple[str, ...], list[Entry]]:
    """Return header and rows; the delimiter is the one by which the header has most of the ``known`` columns."""
    delimiter = max(DELIMITERS, key=lambda one: len(known & set(_read_header(text, one))))
    num_before = 0
    if named := DELIMITER_LINE.match(text):
        text, delimiter, num_before = text[named.end() :], named[1], 1
        if delimiter not in DELIMITERS:
            message = f"the delimiter is to be {delimiter!r}, expected {DELIMITERS_IN_WORDS}"
            problems.append(Problem(str(file), "line 1", message, "save it with one of them"))
            return (), []
    columns: tuple[str, ...] = ()
    rows = []
    where = f"line {num_before + 1}"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        for cells in reader:
            is_empty = not any(cells)
            if not columns and not is_empty:
                columns = tuple(_without_empty_end([cell.strip() for cell in cells]))
                for column in dict.fromkeys(column for column in columns if column and columns.count(column) > 1):
                    message = f"the column {column!r} is there {columns.count(column)} times"
                    problems.append(Problem(str(file), where, message, "rename all but one"))
            elif not is_empty:
                cells = [*cells[: len(columns)], *_without_empty_end(cells[len(columns) :])]  # noqa: PLW2901
                if len(cells) == len(columns):
                    rows.append(Entry(file, where, dict(zip(columns, cells, strict=True)), problems, "remove the row"))
                else:
                    message = f"the row has {counted(len(cells), 'cell')}, the header {len(columns)}"
                    fix = f"write every cell, and put quotes around a text that holds {delimiter!r}"
                    problems.append(Problem(str(file), where, message, fix))
            where = f"line {num_before + reader.line_num + 1}"
    except csv.Error as error:
        fix = 'close the quotes, and double those within a text (""); what comes after was not read'
        problems.append(Problem(str(file), where, f"not valid CSV: {error}", fix))
    return columns, rows


def _without_empty_end(cells: list[str]) -> list[str]:
    """Return the cells up to the last one that holds something; spreadsheets write empty ones after it."""
    return cells[: max((number for number, cell in enumerate(cells, 1) if cell), default=0)]


def _read_header(text: str, delimiter: str) -> list[str]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        return [cell.strip() for cell in next((cells for cells in reader if any(cells)), [])]
    except csv.Error:  # told when the file is read
        return []


def _read_jsonl(text: str, file: Path, problems: list[Problem]) -> tuple[tuple[str, ...], list[Entry]]:
    """Return the keys of all rows, and the rows."""
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(JSON_SPACE):
            fields = parse_json(line, dict, file, problems, line=number, restore="write one JSON object a line")
            if fields is not None:
                rows.append(Entry(file, f"line {number}", fields, problems, "remove the row"))
    return tuple(dict.fromkeys(key for row in rows for key in row.fields)), rows


def _tidy(values: dict[str, Any], *, is_csv: bool) -> dict[str, Any]:
    """Return a row's values in the form of ``triplets.{split}.json``: lists for ``targets`` and ``subset``.

    An empty cell and a null hold nothing, except where a picture or a sentence is needed.
    """
    values = {field: value for field, value in values.items() if field in FIELDS[:2] or value not in (None, "")}
    if is_csv:
        for field in {"targets", "subset"} & values.keys():
            values[field] = [part.strip() for part in values[field].split(NAME_SEPARATOR)]
    if "target" in values and "targets" not in values:
        values["targets"] = [values.pop("target")]
    if type(values.get("id")) is int:
        values["id"] = str(values["id"])
    return values


def _missing_columns(file: Path, table: _Table, *, is_csv: bool) -> list[Problem]:
    """Return a problem for every column that is needed or renamed, and not there, with the nearest one that is."""
    if is_csv and len(table.columns) == 1 and table.columns[0] not in table.column_by_field.values():
        message = f"the header is one column, {table.columns[0]!r}, expected {DELIMITERS_IN_WORDS} between columns"
        return [Problem(str(file), "", message, "save it with one of them")]
    problems = []
    free = [column for column in table.columns if column and column not in table.column_by_field.values()]
    for field, column in table.column_by_field.items():
        is_needed = (
            column != field or field in ("reference", "text") or (field == "target" and not table.has("targets"))
        )
        if is_needed and not table.has(field):
            role = "" if column == field else f" for {field!r}"
            near = next(iter(difflib.get_close_matches(column, free, n=1, cutoff=0)), None)
            fix = f"did you mean {near!r}? then --column {field}={near}" if near else "add it"
            free = [other for other in free if other != near]
            there = ", ".join(repr(column) for column in table.columns)
            message = f"the column {column!r}{role} is missing, there are {there}"
            problems.append(Problem(str(file), "", message, fix))
    return problems


def _read_rows(table: _Table, find: Find, default: str) -> dict[str, list[Query]]:
    """Return the queries by split, in the order of ``SPLITS``; what is wrong is added to the table's problems."""
    queries_by_split: dict[str, list[Query]] = {name: [] for name in SPLITS}
    ids_by_split: dict[str, set[str]] = {name: set() for name in SPLITS}
    where_by_triplet: dict[tuple[Any, ...], str] = {}
    for number, row in enumerate(table.rows, 1):
        if not table.has("id"):
            row.fields["id"] = str(number)
        if "target" in row.fields:
            row.problem("both 'target' and 'targets' are given", "keep one of the two")
        split = _read_split(row) if table.has("split") else default
        query = read_query(row, find)
        if query is None:
            continue
        first = where_by_triplet.setdefault((query.reference, query.text, query.targets), row.where)
        if first != row.where:
            row.problem(f"the reference, the text and the target are those of {first}", "keep one of the two rows")
        if len(query.text) > MAX_TEXT_LENGTH:
            message = f"the text has {len(query.text):,} characters, expected at most {MAX_TEXT_LENGTH:,}"
            row.problem(message, "shorten it; where a quote is not closed, rows have run together")
        if split is not None and is_new(row, query.id, ids_by_split[split]):
            queries_by_split[split].append(query)
    return {name: queries for name, queries in queries_by_split.items() if queries}


def _read_split(row: Entry) -> str | None:
    name = row.get("split", str)
    if name is None or name in SPLITS:
        return name
    row.problem(f"'split' is {name!r}, expected {', '.join(SPLITS)}", nearest(name, SPLITS))
    return None


def _names(query: Query) -> tuple[str, ...]:
    return (query.reference, *query.targets, *query.subset)


class _Pictures:
    """The pictures of a folder, by the ways in which a row may name them."""

    def __init__(self, images: Path, names: Sequence[str]) -> None:
        self.images, self.home = images, images.resolve()
        self.names = dict.fromkeys(names)

    def find(self, row: Entry, what: str, name: str) -> str | None:
        """Return the name of a picture as the listing has it, or None after adding a problem."""
        plain = str(PurePosixPath(self._from_home(name)))  # ./a.jpg is a.jpg
        if plain in self.names:
            return plain
        if re.fullmatch(IMAGE_ID, plain) and plain in self._names_by_id:
            return self._names_by_id[plain]
        alike = self._names_by_form.get(_form(plain), [])
        if len(alike) == 1:
            return alike[0]
        if alike:
            message = f"{what} {name!r} could be {' or '.join(map(ascii, alike))}, which look alike"
            row.problem(message, "rename one of the two pictures, or write its name as it is on disk")
        elif not name.strip():
            row.problem(f"{what!r} is empty", "write the picture's path below the images folder, or remove the row")
        elif leaves_folder(plain):
            row.problem(f"{what} {name!r} leads out of {self.images}", "write the picture's path below that folder")
        elif os.path.lexists(self.home / plain):
            message = f"{what} {name!r} is there but not taken: hidden, behind a link, or no picture by its name"
            row.problem(message, f"put a copy into {self.images} that ends in {', '.join(PICTURE_SUFFIXES)}")
        else:
            self._not_there(row, what, plain)
        return None

    def _not_there(self, row: Entry, what: str, name: str) -> None:
        folded = _form(name).casefold()
        alike = [other for other in self.names if _form(other).casefold() == folded]
        if alike:
            fix = f"did you mean {alike[0]!r}? names differ by upper and lower case"
            row.problem(f"{what} {name!r} is not in {self.images.name}", fix)
        else:
            row.image_name(what, name, self.names, self.home)

    def _from_home(self, name: str) -> str:
        """Return a whole path as one below the folder, where it leads into it."""
        if not Path(name).is_absolute():
            return name
        try:
            whole = Path(os.path.realpath(Path(name).parent)) / Path(name).name
        except ValueError:  # NUL, or half a surrogate pair
            return name
        return whole.relative_to(self.home).as_posix() if whole.is_relative_to(self.home) else name

    @cached_property
    def _names_by_id(self) -> dict[str, str]:
        """The first name of every content, of pictures that can be read; those that cannot are told elsewhere."""
        names_by_id: dict[str, str] = {}
        for name in self.names:
            with suppress(ComposirError):
                names_by_id.setdefault(content_id(read_bytes(self.images / name)), name)
        return names_by_id

    @cached_property
    def _names_by_form(self) -> dict[str, list[str]]:
        names_by_form: dict[str, list[str]] = {}
        for name in self.names:
            names_by_form.setdefault(_form(name), []).append(name)
        return names_by_form


def _form(name: str) -> str:
    """Return a name with its accents in one form (NFC): macOS writes "é" as two characters, most others as one."""
    return unicodedata.normalize("NFC", name)


def _inspect(names: Sequence[str], images: Path, notes: list[str], progress: Counted | None) -> list[Problem]:
    """Return a problem for every picture that cannot be read; how many have the content of another is noted."""
    name_by_file = {images / name: name for name in names}
    inspections = inspect_files(name_by_file, progress=progress)
    problems = [
        Problem(
            str(file),
            f"image {name_by_file[file]!r}",
            error.message + (f", expected {error.expected}" if error.expected else ""),
            f"{FETCH_FIX}, or take it out of the folder",
        )
        for file, inspection in inspections.items()
        for error in inspection.errors.values()
    ]
    digests = [inspection.digest for inspection in inspections.values() if inspection.digest is not None]
    num_copies = len(digests) - len(set(digests))
    if num_copies:
        notes.append(f"pictures with the content of another: {num_copies:,} (composir data check names them)")
    return problems


def _notes(table: _Table, queries_by_split: Mapping[str, Sequence[Query]], default: str, shared: str) -> list[str]:
    notes = []
    if shared:
        notes.append(f"{shared}; all rows of a reference are in the same split")
    elif not table.has("split"):
        column = table.column_by_field["split"]
        notes.append(
            f"there is no column {column!r}, so all rows are in {default}; --split 80/20 makes train and val of them"
        )
    unused = [column for column in table.columns if column and column not in table.column_by_field.values()]
    if unused:
        notes.append(f"columns not used: {', '.join(unused)}")
    for name, queries in queries_by_split.items():
        num_without = sum(not query.subset for query in queries)
        if 0 < num_without < len(queries):
            notes.append(f"{num_without:,} of {len(queries):,} queries of {name} have no subset: R_s@K is not measured")
    return notes


def _write(
    out: Path,
    images: Path,
    names: Sequence[str],
    queries_by_split: Mapping[str, Sequence[Query]],
    *,
    copy_images: bool,
) -> None:
    if copy_images:
        place = IMAGES
    elif images.is_absolute():
        place = str(images)
    else:
        place = Path(os.path.relpath(images.resolve(), out.resolve())).as_posix()
    try:
        with replacing_folder(out.resolve()) as root:
            for name in names if copy_images else ():
                (root / IMAGES / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(images / name, root / IMAGES / name)
            write_text(root / HOME, json.dumps({"format": FORMAT, "images": place}, ensure_ascii=False) + "\n")
            write_text(root / GALLERY, _lines(names))
            for split, queries in queries_by_split.items():
                write_text(root / triplets_file(split), _lines([as_row(query) for query in queries]))
    except OSError as error:
        raise ComposirError(
            f"cannot be written ({error.strerror})", file=out, fix="choose another folder with --out"
        ) from None


def as_row(query: Query) -> dict[str, Any]:
    """Return a query as a row of JSONL, and as an entry of ``triplets.{split}.json``."""
    fields = {"id": query.id, "reference": query.reference, "text": query.text, "targets": query.targets}
    return {**fields, "subset": query.subset} if query.subset else fields


def _lines(values: Sequence[object]) -> str:
    """Return a JSON list, an element a line."""
    return "[\n" + ",\n".join(json.dumps(value, ensure_ascii=False) for value in values) + "\n]\n"
