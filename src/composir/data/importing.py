"""A file of one's own triplets and a folder of pictures become a checked data root, which ``own`` reads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composir.data.annotations import MAX_TEXT_LENGTH, Entry
from composir.data.images import inspect_files
from composir.data.images.files import FETCH_FIX
from composir.data.images.folder import PICTURE_SUFFIXES, find_pictures
from composir.data.naming import NamedPictures
from composir.data.own import FORMAT, GALLERY, HOME, IMAGES, SPLITS, Find, is_new, read_query, triplets_file
from composir.data.rows import CSV_SUFFIXES, JSONL_SUFFIXES, TripletTable, columns_of, read_table, require_known
from composir.data.sharing import read_shares, share_out
from composir.data.triplets import Query
from composir.errors import ComposirError, Problem, ProblemsError, nearest
from composir.files import replacing_folder, write_text
from composir.progress import Counted

GALLERIES = ("folder", "named")
DEFAULT_SPLIT = "val"


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
    called as in ``rows.FIELDS``; ``columns`` gives other names, by field. Rows of empty cells, and empty cells beyond
    the header, are passed over. A picture may be named by its path below ``images``, by a whole one, or by the id that
    an index has for its content. Without a column ``split`` all rows are in ``split`` (``val`` unless given), or shared
    out by ``80/20`` or ``80/10/10`` with ``seed`` (``share_out``). ``gallery`` is ``folder``, every picture below
    ``images``, or ``named``, those of the rows. The pictures stay where they are, and ``out`` refers to ``images`` by
    an absolute path, or by one relative to ``out`` where ``images`` is relative; with ``copy_images`` they are copied.

    Every picture of the gallery is decoded; ``progress(num_done, num_files)`` counts them. Raises ``ProblemsError``
    with every bad row and every bad picture, and ``ComposirError`` for arguments that cannot be.
    """
    file, images, out = Path(file), Path(images), Path(out)
    column_by_field = columns_of(columns or {})
    shares = read_shares(split or "")
    default = DEFAULT_SPLIT if shares else split or DEFAULT_SPLIT
    _check_arguments(file, images, out, split=default, gallery=gallery)
    found = find_pictures(images)
    table = read_table(file, column_by_field, split, found.names)
    names, reasons = found.names, found.reasons
    if not names:
        raise ComposirError(
            "holds no picture" + "".join(f" ({path}: {reason})" for path, reason in list(reasons.items())[:1]),
            file=images,
            expected=f"files that end in {', '.join(PICTURE_SUFFIXES)}",
            fix="give the folder that the paths start from",
        )
    rows = _read_rows(table, NamedPictures(images, names).find, default)
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
    table = read_table(file, columns_of({}), None, ())
    rows = _read_rows(table, find, split)
    if table.problems:
        raise ProblemsError(table.problems)
    return rows


def _check_arguments(file: Path, images: Path, out: Path, *, split: str, gallery: str) -> None:
    """Raise ``ComposirError`` for what cannot be, before anything is read."""
    require_known("a split", split, SPLITS)
    require_known("a gallery", gallery, GALLERIES)
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


def _read_rows(table: TripletTable, find: Find, default: str) -> dict[str, list[Query]]:
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


def _notes(
    table: TripletTable, queries_by_split: Mapping[str, Sequence[Query]], default: str, shared: str
) -> list[str]:
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
