"""EDIR (Song et al., ACL 2026, arXiv 2601.16125): edited images as the gallery, fifteen kinds of edits."""

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
    read_lines,
    require_some,
    require_whole,
)
from composir.data.images import ImageSource
from composir.data.triplets import Query, Split, Tree

SPLITS = ("test",)
QUERIES_FILE, CORPUS_FILE, INSTANCES_FILE = "queries.jsonl", "corpus.jsonl", "instances.jsonl"
IMAGES = "imgs_mc"


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return the one split of EDIR: every query of ``queries.jsonl``, every image of ``corpus.jsonl`` as the gallery.

    ``root`` holds the three JSON Lines files, or is the parent of such an ``EDIR/``. ``instances.jsonl`` has each
    query's right answer and its negatives, edits of the same picture that are wrong. A query's aspect is its
    ``subcategory``. Images are called by their file names, expected in ``imgs_mc/``, and not touched. Raises
    ``SplitNotFoundError`` for a split that is not there and ``AnnotationsError`` with everything wrong in it.
    """
    choose_categories("EDIR", categories)
    check_split_name("EDIR", split, SPLITS)
    home = find_home(root, marker=QUERIES_FILE, folder="EDIR", source="the dataset EDIR-BENCH/EDIR of the hub")
    queries_file, corpus_file, instances_file = (home / name for name in (QUERIES_FILE, CORPUS_FILE, INSTANCES_FILE))
    require_some("EDIR", split, (queries_file, corpus_file, instances_file))

    problems = Findings()
    images: dict[str, ImageSource] = {}
    for entry in read_lines(corpus_file, problems, "id"):
        name = _read_name(entry, "image")
        if name is not None:
            entry.add_image(name, home / IMAGES / name, images)
    gallery = tuple(images)
    known = set(gallery) if gallery or not problems else None
    instances = _by_id(read_lines(instances_file, problems, "qid"), "qid")
    entries = _by_id(read_lines(queries_file, problems, "id"), "id")
    queries = []
    for query_id, entry in entries.items():
        query = _read_query(entry, query_id, instances.get(query_id), (known, corpus_file))
        if query is not None:
            queries.append(query)
            images.setdefault(query.reference, home / IMAGES / query.reference)
    for query_id in instances.keys() - entries.keys():
        instances[query_id].problem(f"the query {query_id!r} is not in {QUERIES_FILE}", RESTORE)
    found = Split(
        dataset="EDIR",
        name=split,
        category="",
        queries=tuple(queries),
        gallery=gallery,
        images=images,
        gallery_rule="original",
        exclude_reference=False,
        text_rule="as annotated",
        file=queries_file,
        files=(queries_file, corpus_file, instances_file),
        tree=Tree(home, (IMAGES,)),
    )
    return require_whole((found,), problems)


def _read_name(entry: Entry, key: str) -> str | None:
    """Return a file name or an id, text or a whole number, as text; None after adding a problem."""
    value = entry.fields.get(key)
    return str(value) if type(value) is int else entry.sentence(key, entry.get(key, str))


def _by_id(entries: Sequence[Entry], key: str) -> dict[str, Entry]:
    """Return the entries by their id; one that has none or that of an earlier one becomes a problem."""
    found: dict[str, Entry] = {}
    for entry in entries:
        value = _read_name(entry, key)
        if value in found:
            entry.problem(f"the {key} is repeated", f"give every query its own {key}")
        elif value is not None:
            found[value] = entry
    return found


def _read_query(
    entry: Entry, query_id: str, instance: Entry | None, listed: tuple[set[str] | None, Path]
) -> Query | None:
    """Return the query of one entry and its instance; what is wrong with them is added to their problems.

    ``listed`` holds the gallery's names, None where they cannot be checked, and the file that lists them.
    """
    reference = _read_name(entry, "image")
    text = entry.caption("text", entry.get("text", str))
    metadata = entry.get("metadata", dict)
    of_metadata = Entry(entry.file, f"{entry.where}, metadata", metadata or {}, entry.problems)
    aspect = None if metadata is None else of_metadata.sentence("subcategory", of_metadata.get("subcategory", str))
    if instance is None:
        entry.problem(f"the query is not in {INSTANCES_FILE}", RESTORE)
        return None
    right = _read_names(instance, "pos", listed)
    wrong = _read_names(instance, "neg", listed)
    if right == []:
        instance.problem("'pos' is empty", RESTORE)
    both = set(right or ()) & set(wrong or ())
    for name in sorted(both):
        instance.problem(f"{name!r} is in 'pos' and in 'neg'", f"keep it in one of them, or {RESTORE}")
    if None in (reference, text, aspect, wrong) or not right or both:
        return None
    assert reference is not None and text is not None and aspect is not None and wrong is not None
    return Query(
        id=query_id,
        reference=reference,
        text=text,
        texts=(text,),
        targets=tuple(right),
        aspects=(aspect.replace(".", " "),),
        negatives=tuple(wrong),
    )


def _read_names(instance: Entry, key: str, listed: tuple[set[str] | None, Path]) -> list[str] | None:
    items = instance.get(key, list)
    if items is None:
        return None
    as_text = [str(item) if type(item) is int else item for item in items]
    return instance.image_names(key, as_text, str, *listed)
