"""LaSCo (Levy et al., AAAI 2024, arXiv 2303.09429): queries made from VQA 2.0 over COCO 2014 images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from composir.data.annotations import (
    RESTORE,
    Entry,
    Findings,
    as_entries,
    check_split_name,
    check_unique,
    choose_categories,
    find_home,
    read_entries,
    read_json,
    require_some,
    require_whole,
)
from composir.data.images import ImageSource, file_of
from composir.data.triplets import Query, Split, Tree
from composir.errors import short

SPLITS = ("train", "val")


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return the one split of LaSCo: every query of ``lasco_<split>.json``, the corpus file as the gallery.

    ``root`` holds ``lasco_val.json``, ..., or is the parent of such a ``LaSCo/``. Names are COCO's image ids as text,
    a query's id is its ``qid``. The folder and the name at the end of an image's path are what counts, since the
    published files begin their paths differently. Image files are not touched. Raises ``SplitNotFoundError`` for a
    split that is not there and ``AnnotationsError`` with everything wrong in it.
    """
    choose_categories("LaSCo", categories)
    check_split_name("LaSCo", split, SPLITS)
    home = find_home(root, marker="lasco_*.json", folder="LaSCo", source="the GitHub repository levymsn/LaSCo")
    queries_file = home / f"lasco_{split}.json"
    corpus_file = home / f"lasco_{split}_corpus.json"
    require_some("LaSCo", split, (queries_file, corpus_file))

    problems = Findings()
    read_images = _read_train_images if split == "train" else _read_val_images
    images = read_images(corpus_file, home, problems)
    entries = read_entries(queries_file, problems, id_key="qid")
    check_unique(entries, "qid")
    queries = [_read_query(entry, images, corpus_file) for entry in entries]
    found = Split(
        dataset="LaSCo",
        name=split,
        category="",
        queries=tuple(query for query in queries if query is not None),
        gallery=tuple(images or ()),
        images=images or {},
        gallery_rule="original",
        exclude_reference=False,
        text_rule="as annotated",
        file=queries_file,
        files=(queries_file, corpus_file),
        tree=Tree(home, ("train2014", "val2014")),
    )
    return require_whole((found,), problems)


def _read_train_images(corpus_file: Path, home: Path, problems: Findings) -> dict[str, ImageSource] | None:
    """Return each image's file by id, of ``{"<id>": "<path>"}``; None where the corpus file is unreadable."""
    content = read_json(corpus_file, dict, problems)
    if content is None:
        return None
    images: dict[str, ImageSource] = {}
    for image_id, value in content.items():
        entry = Entry(corpus_file, f"key {image_id!r}", content, problems)
        path = entry.sentence("path", entry.typed("path", value, str))
        if path is not None:
            entry.add_image(image_id, _file(home, path), images)
    return images


def _read_val_images(corpus_file: Path, home: Path, problems: Findings) -> dict[str, ImageSource] | None:
    """Return each image's file by id, of ``[{"id": <id>, "path": "<path>"}]``; None where the file is unreadable."""
    content = read_json(corpus_file, list, problems)
    if content is None:
        return None
    images: dict[str, ImageSource] = {}
    for entry in as_entries(corpus_file, content, problems):
        image_id = entry.get("id", int)
        path = entry.sentence("path", entry.get("path", str))
        if image_id is not None and path is not None:
            entry.add_image(str(image_id), _file(home, path), images)
    return images


def _file(home: Path, path: str) -> Path:
    return home.joinpath(*Path(path).parts[-2:])


def _read_query(entry: Entry, images: dict[str, ImageSource] | None, corpus_file: Path) -> Query | None:
    """Return the query of one entry; what is wrong with it is added to the entry's problems."""
    query_id = entry.get("qid", int)
    reference = _read_image(entry, "query-image", images, corpus_file)
    text = entry.caption("query-text", entry.get("query-text", str))
    target = _read_image(entry, "target-image", images, corpus_file)
    entry.note_own_target(target, reference)
    if query_id is None or reference is None or text is None or target is None:
        return None
    return Query(id=str(query_id), reference=reference, text=text, texts=(text,), targets=(target,))


def _read_image(entry: Entry, key: str, images: dict[str, ImageSource] | None, corpus_file: Path) -> str | None:
    """Return the id of an image given as ``[<id>, "<path>"]``, or None after adding a problem."""
    pair = entry.get(key, list)
    if pair is None:
        return None
    if len(pair) != 2:
        entry.problem(f"{key!r} is {short(pair)}, expected an id and a path", RESTORE)
        return None
    image_id = entry.typed(f"{key}[0]", pair[0], int)
    path = entry.typed(f"{key}[1]", pair[1], str)
    name = entry.image_name(key, None if image_id is None else str(image_id), images, corpus_file)
    if name is None or path is None or images is None:
        return name
    known = file_of(images[name]).name
    if path.rpartition("/")[2] != known:
        entry.problem(f"{key} {name!r} is {path!r}, but {known!r} in {corpus_file.name}", "name one image by both")
    return name
