"""Shoes (Guo et al., NeurIPS 2018, arXiv 1805.00145): relative captions on the shoes of the attribute discovery set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from composir.data.annotations import (
    Entry,
    Findings,
    check_split_name,
    choose_categories,
    find_home,
    read_entries,
    read_table,
    require_some,
    require_whole,
)
from composir.data.images import ImageSource
from composir.data.triplets import Query, Split, Tree

NAMES_FILES = {"train": "train_im_names.txt", "val": "eval_im_names.txt"}
SPLITS = tuple(NAMES_FILES)
CAPTIONS_FILE = "relative_captions_shoes.json"


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return the one split of Shoes: the pairs of its images, every image of its list as the gallery.

    ``root`` holds ``relative_captions_shoes.json``, or is the parent of such a ``Shoes/``. One file holds the pairs
    of both splits: a pair belongs to the split whose list names both its images, so both lists are read. A query's
    id is its number in that file, from 0. Image files are not touched; which of the folders ``womens_*/*/`` holds one
    is for ``find_images`` to say. Raises ``SplitNotFoundError`` for a split that is not there and
    ``AnnotationsError`` with everything wrong in it.
    """
    choose_categories("Shoes", categories)
    check_split_name("Shoes", split, SPLITS)
    home = find_home(
        root, marker=CAPTIONS_FILE, folder="Shoes", source="the GitHub repository XiaoxiaoGuo/fashion-retrieval"
    )
    names_files = {name: home / file for name, file in NAMES_FILES.items()}
    require_some("Shoes", split, (names_files[split],))

    problems = Findings()
    images_by_split = {name: _read_images(file, home, problems) for name, file in names_files.items()}
    known = None if problems else set().union(*images_by_split.values())
    queries = []
    for number, entry in enumerate(read_entries(home / CAPTIONS_FILE, problems)):
        query = _read_query(entry, str(number), known, tuple(names_files.values()))
        if query is not None and known is not None and _split_of(entry, query, images_by_split) == split:
            queries.append(query)
    images = images_by_split[split]
    found = Split(
        dataset="Shoes",
        name=split,
        category="",
        queries=tuple(queries),
        gallery=tuple(images),
        images=images,
        gallery_rule="original",
        exclude_reference=True,
        text_rule="as annotated",
        file=home / CAPTIONS_FILE,
        files=(home / CAPTIONS_FILE, *names_files.values()),
        tree=Tree(home, ("womens_*/*",)),
    )
    return require_whole((found,), problems)


def _read_images(names_file: Path, home: Path, problems: Findings) -> dict[str, ImageSource]:
    """Return each image's file by name in the order of a list."""
    images: dict[str, ImageSource] = {}
    for entry in read_table(names_file, ("name",), problems):
        name: str = entry.fields["name"]
        entry.add_image(name, home / name, images)
    return images


def _read_query(entry: Entry, query_id: str, known: set[str] | None, names_files: tuple[Path, ...]) -> Query | None:
    """Return the query of one entry; what is wrong with it is added to the entry's problems."""
    reference = entry.get("ReferenceImageName", str)
    reference = entry.image_name("ReferenceImageName", reference, known, *names_files)
    target = entry.image_name("ImageName", entry.get("ImageName", str), known, *names_files)
    entry.note_own_target(target, reference)
    text = entry.caption("RelativeCaption", entry.get("RelativeCaption", str))
    if reference is None or target is None or text is None:
        return None
    return Query(id=query_id, reference=reference, text=text, texts=(text,), targets=(target,))


def _split_of(entry: Entry, query: Query, images_by_split: dict[str, dict[str, ImageSource]]) -> str | None:
    """Return the split whose list names both images of the query; None after adding a problem."""
    for split, images in images_by_split.items():
        if query.reference in images and query.targets[0] in images:
            return split
    message = f"ReferenceImageName {query.reference!r} and ImageName {query.targets[0]!r} are in different lists"
    entry.problem(message, "name two images of one list")
    return None
