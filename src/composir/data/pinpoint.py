"""PinPoint (Mahadev et al., CVPR 2026, arXiv 2603.04598): several right answers, known wrong ones, many wordings."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from composir.data.annotations import (
    RESTORE,
    Entry,
    Findings,
    check_split_name,
    choose_categories,
    find_home,
    read_table,
    require_whole,
)
from composir.data.images import ImageSource
from composir.data.parquet import pyarrow, read_rows
from composir.data.triplets import Query, Split, Tree
from composir.errors import Problem

SPLITS = ("test",)
QUERIES_FILE, INDEX_FILE = "pinpoint_licensed.parquet", "index_signatures.txt"
IMAGES = "736x"
"""The folder of the images' addresses, which go on with the first three pairs of characters of the signature."""
REFERENCES = ("query_image_signature", "query_image_signature2")
TEXTS = ("query_id", *REFERENCES, "instruction", "query_category")
LISTS = ("positive_candidates", "negative_candidates")
NO_SECOND_REFERENCE = "None"

Listed = tuple[Collection[str] | None, Path]
"""The names of the gallery, None where they cannot be checked, and the file that lists them."""


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return the one split of PinPoint: every row of the Parquet file, every image of ``index_signatures.txt``.

    ``root`` holds both files, or is the parent of such a ``PinPoint/``. A row is one wording; those that name the same
    reference images are queries of one group, as the published evaluator groups them. A query's aspect is its
    ``query_category``. Images are called by their signatures, expected in ``736x/ab/cd/ef/SIGNATURE.jpg`` for one that
    begins with abcdef, and not touched. Needs the extra ``parquet``. Raises ``SplitNotFoundError`` for a split that is
    not there and ``AnnotationsError`` with everything wrong in it.
    """
    choose_categories("PinPoint", categories)
    check_split_name("PinPoint", split, SPLITS)
    source = "the GitHub repository pinterest/pinpoint-dataset"
    home = find_home(root, marker=QUERIES_FILE, folder="PinPoint", source=source)
    queries_file, index_file = home / QUERIES_FILE, home / INDEX_FILE

    problems = Findings()
    images: dict[str, ImageSource] = {}
    for entry in read_table(index_file, ("signature",), problems):
        name = entry.fields["signature"]
        entry.add_image(name, home / _place(name), images)
    gallery = tuple(images)
    listed = (images if gallery or not problems else None, index_file)
    seen: set[str] = set()
    found = [_read_query(entry, seen, listed) for entry in _read_rows(queries_file, problems)]
    queries = tuple(query for query in found if query is not None)
    for query in queries:
        images |= {name: home / _place(name) for name in query.references if name not in images}
    read = Split(
        dataset="PinPoint",
        name=split,
        category="",
        queries=queries,
        gallery=gallery,
        images=images,
        gallery_rule="original",
        exclude_reference=False,
        text_rule="as annotated",
        file=queries_file,
        files=(queries_file, index_file),
        tree=Tree(home, (f"{IMAGES}/*/*/*",)),
    )
    return require_whole((read,), problems)


def _place(name: str) -> str:
    """Return where an image lies below the data set's folder: as in its address on Pinterest's server."""
    return f"{IMAGES}/{name[:2]}/{name[2:4]}/{name[4:6]}/{name}.jpg"


def _read_rows(file: Path, problems: Findings) -> list[Entry]:
    """Return the rows, called by their ``query_id``; what keeps them from being read becomes a problem."""
    rows = read_rows(file, problems, columns=(*TEXTS, *LISTS), wrong=lambda schema: _wrong_columns(schema, file))
    return [Entry(file, row["query_id"] or f"row {number}", row, problems) for number, row in enumerate(rows)]


def _wrong_columns(schema: Any, file: Path) -> list[Problem]:
    """Return a problem for every column that is not there once, or is of another type."""
    types = pyarrow(file).types

    def is_text(kind: Any) -> bool:
        return types.is_string(kind) or types.is_large_string(kind)

    def is_list(kind: Any) -> bool:
        return (types.is_list(kind) or types.is_large_list(kind)) and is_text(kind.value_type)

    problems = []
    for columns, is_right, expected in ((TEXTS, is_text, "text"), (LISTS, is_list, "lists of text")):
        for column in columns:
            kinds = [schema.types[place] for place in schema.get_all_field_indices(column)]
            if len(kinds) != 1:
                message = f"is there {len(kinds)} times, expected once"
            elif not is_right(kinds[0]):
                message = f"holds {kinds[0]}, expected {expected}"
            else:
                continue
            problems.append(Problem(str(file), f"column {column}", message, RESTORE))
    return problems


def _read_query(entry: Entry, seen: set[str], listed: Listed) -> Query | None:
    """Return the query of a row; what is wrong with it is added to its problems, what is odd to its notes."""
    query_id = entry.sentence("query_id", entry.get("query_id", str))
    if query_id in seen:
        entry.problem("the query_id is repeated", "give every query its own query_id")
        return None
    if query_id is not None:
        seen.add(query_id)
    references = _read_references(entry, listed)
    text = entry.caption("instruction", entry.get("instruction", str))
    category = entry.sentence("query_category", entry.get("query_category", str))
    right, wrong = (_read_list(entry, key, listed) for key in LISTS)
    targets, negatives = (tuple(dict.fromkeys(name for name in names or () if name)) for names in (right, wrong))
    if right is not None and not targets:
        entry.problem("'positive_candidates' names no image", RESTORE)
    if query_id is None or references is None or text is None or category is None:
        return None
    if right is None or wrong is None or not targets:
        return None
    if not set(targets).isdisjoint(negatives):
        entry.note("an image is in 'positive_candidates' and in 'negative_candidates'")
    for key, names in zip(LISTS, (targets, negatives), strict=True):
        if not set(references).isdisjoint(names):
            entry.note(f"a reference is in {key!r}")
    return Query(
        id=query_id,
        reference=references[0],
        text=text,
        texts=(text,),
        targets=targets,
        aspects=(category.replace(".", " "),),
        group=" ".join(references),
        negatives=negatives,
        further_references=references[1:],
        num_listed_targets=len(right),
        num_listed_negatives=len(wrong),
    )


def _read_references(entry: Entry, listed: Listed) -> tuple[str, ...] | None:
    """Return the names of one or two reference images, or None after adding a problem."""
    first, second = REFERENCES
    keys = (first,) if entry.fields[second] == NO_SECOND_REFERENCE else REFERENCES
    names = [entry.image_name(key, entry.get(key, str), *listed) for key in keys]
    found = tuple(name for name in names if name is not None)
    return found if len(found) == len(keys) else None


def _read_list(entry: Entry, key: str, listed: Listed) -> list[str | None] | None:
    """Return a list of names as it is published, repeats and nulls among them; None after adding a problem."""
    items = entry.get(key, list)
    if items is None:
        return None
    names = [name for name in items if name is not None]
    unknown = [name for name in dict.fromkeys(names) if entry.image_name(key, name, *listed) is None]
    if len(set(names)) < len(names):
        entry.note(f"{key!r} repeats an image")
    if len(names) < len(items):
        entry.note(f"{key!r} holds a null")
    return None if unknown else items
