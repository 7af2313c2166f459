"""A file of triplets, CSV or JSONL, as rows whose fields have one set of names."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composir.data.annotations import Entry, parse_json_lines
from composir.data.images.folder import PICTURE_SUFFIXES
from composir.errors import ComposirError, Problem, ProblemsError, counted, nearest

FIELDS = ("reference", "text", "target", "targets", "split", "subset", "id")
"""The columns of CSV and the keys of JSONL; the first three are needed, ``targets`` does instead of ``target``."""
CSV_SUFFIXES, JSONL_SUFFIXES = (".csv", ".tsv"), (".jsonl",)
DELIMITERS = (",", ";", "\t", "|")
DELIMITERS_IN_WORDS = "a comma, a semicolon, a tab or a bar (|)"
DELIMITER_LINE = re.compile(r'"?sep=(.)"?\1*(?:\r\n|\r|\n|$)', re.IGNORECASE)
"""A first line that names the delimiter, as spreadsheets write and read it."""
JSON_SPACE = " \t\r"
"""What JSON has for white space within a line (RFC 8259); ``str.strip`` takes more."""
NAME_SEPARATOR = "|"
"""Between the names in a cell of ``targets`` or ``subset``."""


@dataclass(frozen=True, slots=True)
class TripletTable:
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


def columns_of(columns: Mapping[str, str]) -> dict[str, str]:
    """Return the column of every field; raise ``ComposirError`` where one is to be two fields."""
    for field in columns:
        require_known("a field", field, FIELDS)
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


def require_known(what: str, value: str, known: Sequence[str]) -> None:
    """Raise ``ComposirError`` for a value that is none of those that are known."""
    if value not in known:
        raise ComposirError(f"{value!r} is not {what}", expected=", ".join(known), fix=nearest(value, known))


def read_table(file: Path, column_by_field: Mapping[str, str], split: str | None, names: Sequence[str]) -> TripletTable:
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
    table = TripletTable(columns, column_by_field, rows, problems)
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
    lines = parse_json_lines(text, file, problems, restore="write one JSON object a line", space=JSON_SPACE)
    rows = [Entry(file, f"line {number}", fields, problems, "remove the row") for number, fields in lines]
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


def _missing_columns(file: Path, table: TripletTable, *, is_csv: bool) -> list[Problem]:
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
