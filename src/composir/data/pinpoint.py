"""PinPoint (Mahadev et al., CVPR 2026, arXiv 2603.04598): several right answers, known wrong ones, six wordings.

Only the paper could be had: the form of the files is this project's, made of what the paper says they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from composir.data.annotations import (
    RESTORE,
    Entry,
    Findings,
    check_split_name,
    choose_categories,
    find_home,
    read_entries,
    read_names,
    require_some,
    require_whole,
)
from composir.data.triplets import Query, Split, Tree

SPLITS = ("test",)
QUERIES_FILE, GALLERY_FILE = "queries.json", "gallery.json"


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return the one split of PinPoint: every wording of every query of ``queries.json``, all of ``gallery.json``.

    ``root`` holds both files, or is the parent of such a ``PinPoint/``. The wordings of one query are queries of one
    group; their ids are the query's with the number of the wording behind it, from 0: ``12.0``, ``12.1``, ... The
    first reference image is ``reference``, the others ``further_references``. Names are those of the files below
    ``images/``. Image files are not touched. Raises ``SplitNotFoundError`` for a split that is not there and
    ``AnnotationsError`` with everything wrong in it.
    """
    choose_categories("PinPoint", categories)
    check_split_name("PinPoint", split, SPLITS)
    home = find_home(root, marker=QUERIES_FILE, folder="PinPoint", source="the data set's authors")
    queries_file, gallery_file = home / QUERIES_FILE, home / GALLERY_FILE
    require_some("PinPoint", split, (queries_file, gallery_file))

    problems = Findings()
    gallery = read_names(gallery_file, problems)
    queries: list[Query] = []
    seen: set[str] = set()
    for entry in read_entries(queries_file, problems, id_key="id"):
        queries += _read_query(entry, seen, (gallery, gallery_file))
    names = dict.fromkeys([*(gallery or ()), *(name for query in queries for name in query.references)])
    found = Split(
        dataset="PinPoint",
        name=split,
        category="",
        queries=tuple(queries),
        gallery=tuple(gallery or ()),
        images={name: home / "images" / name for name in names},
        gallery_rule="original",
        exclude_reference=True,
        text_rule="as annotated",
        file=queries_file,
        files=(queries_file, gallery_file),
        tree=Tree(home, ("images",)),
    )
    return require_whole((found,), problems)


def _read_query(entry: Entry, seen: set[str], listed: tuple[dict[str, None] | None, Path]) -> list[Query]:
    """Return the query in each of its wordings; what is wrong with it is added to the entry's problems.

    ``listed`` holds the gallery's names, None where they cannot be checked, and the file that lists them.
    """
    query_id = _read_id(entry, seen)
    references = _read_list(entry, "reference_images", None, listed[1])
    texts = [
        entry.caption(f"instructions[{number}]", entry.typed(f"instructions[{number}]", text, str))
        for number, text in enumerate(_require_some(entry, "instructions"))
    ]
    positives = _read_list(entry, "positives", *listed)
    negatives = _read_list(entry, "negatives", *listed, may_be_empty=True)
    category = entry.sentence("category", entry.get("category", str)) if "category" in entry.fields else None
    both = set(positives or ()) & set(negatives or ())
    for name in sorted(both):
        entry.problem(f"{name!r} is among the positives and the negatives", f"keep it in one of them, or {RESTORE}")
    for name in sorted(set(positives or ()) & set(references or ())):
        entry.note(f"the right answer {name!r} is also a reference")
    if query_id is None or not references or not positives or negatives is None or None in texts or both:
        return []
    return [
        Query(
            id=f"{query_id}.{number}",
            reference=references[0],
            text=text,
            texts=(text,),
            targets=tuple(positives),
            aspects=() if category is None else (category.replace(".", " "),),
            group=query_id,
            negatives=tuple(negatives),
            further_references=tuple(references[1:]),
        )
        for number, text in enumerate(texts)
        if text is not None
    ]


def _read_id(entry: Entry, seen: set[str]) -> str | None:
    """Return the id, a whole number or text, as text; None after adding a problem."""
    value = entry.fields.get("id")
    query_id = str(value) if type(value) is int else entry.sentence("id", entry.get("id", str))
    if query_id in seen:
        entry.problem("the id is repeated", "give every query its own id")
        return None
    if query_id is not None:
        seen.add(query_id)
    return query_id


def _require_some(entry: Entry, key: str) -> list[object]:
    items = entry.get(key, list)
    if items == []:
        entry.problem(f"{key!r} is empty", RESTORE)
    return items or []


def _read_list(
    entry: Entry, key: str, known: dict[str, None] | None, source: Path, *, may_be_empty: bool = False
) -> list[str] | None:
    """Return the names of a list, or None after adding a problem."""
    items = entry.get(key, list) if may_be_empty else _require_some(entry, key)
    names = None if items is None else entry.image_names(key, list(items), str, known, source)
    if names is not None and "" in names:
        entry.problem(f"{key!r} holds an empty name", f"correct {key!r}, or {RESTORE}")
        return None
    return names
