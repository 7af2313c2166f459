"""GeneCIS (Vaze et al., CVPR 2023, arXiv 2306.07969): four tasks, a handful of candidates for each query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from composir.data.annotations import (
    RESTORE,
    Entry,
    Findings,
    as_entries,
    check_split_name,
    choose_categories,
    find_categories,
    find_home,
    read_entries,
    require_whole,
)
from composir.data.images import Crop, ImageSource
from composir.data.triplets import Query, Split, Tree
from composir.errors import short

SPLITS = ("val",)
CATEGORIES = ("focus_attribute", "change_attribute", "focus_object", "change_object")
CATEGORIES_OF_CROPS = ("focus_attribute", "change_attribute")
"""The tasks about one object of a Visual Genome picture; the others are about whole COCO pictures."""

DILATION = 0.7
"""How much of an object's width and height the published loader adds to its box."""
PLACES = ("VG_100K", "VG_100K_2", "val2017")
MAX_SIDE = 10**6
"""Pixels; no picture is larger."""


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return one split a task, all four unless ``categories`` names fewer.

    ``root`` holds ``genecis/focus_attribute.json``, ..., or is the parent of such a ``GeneCIS/``. A query is ranked
    against its own candidates, the target among them and its own picture never; a picture listed twice is one
    candidate. A query's id is its number in the file, from 0. An image of the attribute tasks is called
    ``<image id>:<left>,<top>,<width>,<height>`` and is a part of a Visual Genome picture (see ``dilate``), one of
    the object tasks is called by its COCO id. Image files are not touched; which of Visual Genome's two folders holds
    one is for ``find_images`` to say. Raises ``SplitNotFoundError`` when no task is there and ``AnnotationsError``
    with everything wrong in all of them; a task that is not there is wrong, too.
    """
    categories = choose_categories("GeneCIS", categories, CATEGORIES)
    check_split_name("GeneCIS", split, SPLITS)
    home = find_home(
        root, marker="genecis/*_*.json", folder="GeneCIS", source="the GitHub repository facebookresearch/genecis"
    )
    files_by_category = {category: (home / "genecis" / f"{category}.json",) for category in categories}

    problems = Findings()
    splits = []
    for category in find_categories("GeneCIS", split, files_by_category, problems):
        (file,) = files_by_category[category]
        images: dict[str, ImageSource] = {}
        queries = []
        for number, entry in enumerate(read_entries(file, problems)):
            query = _read_query(entry, str(number), home, images, is_crop=category in CATEGORIES_OF_CROPS)
            if query is not None:
                queries.append(query)
        splits.append(
            Split(
                dataset="GeneCIS",
                name=split,
                category=category,
                queries=tuple(queries),
                gallery=tuple(dict.fromkeys(name for query in queries for name in query.gallery)),
                images=images,
                gallery_rule="per query",
                exclude_reference=True,
                text_rule="as annotated",
                file=file,
                files=(file,),
                tree=Tree(home, PLACES),
            )
        )
    return require_whole(tuple(splits), problems)


def dilate(left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of an object's surroundings, as the published loader computes them.

    The left and the top edge move out by ``DILATION`` of the width and height, but not off the picture. Right and
    bottom are then that much and the object's own size away, so the object lies in the lower right corner, unless
    the picture's edge stopped the others.
    """
    left, top = max(0.0, left - DILATION * width), max(0.0, top - DILATION * height)
    return left, top, left + (1 + DILATION) * width, top + (1 + DILATION) * height


def _read_query(
    entry: Entry, query_id: str, home: Path, images: dict[str, ImageSource], *, is_crop: bool
) -> Query | None:
    """Return the query of one entry and add its images; what is wrong with it is added to the entry's problems."""
    text = entry.caption("condition", entry.get("condition", str))
    names = {}
    for role in ("reference", "target"):
        fields = entry.get(role, dict)
        part = Entry(entry.file, f"{entry.where}, {role}", fields or {}, entry.problems)
        names[role] = None if fields is None else _read_image(part, home, images, is_crop=is_crop)
    entry.note_own_target(names["target"], names["reference"])
    items = entry.get("gallery", list)
    if items == []:
        entry.problem("'gallery' is empty", RESTORE)
    others = [
        _read_image(part, home, images, is_crop=is_crop)
        for part in as_entries(entry.file, items or (), entry.problems, where=f"{entry.where}, gallery")
    ]
    reference, target = names["reference"], names["target"]
    candidates = [target, *(name for name in others if name is not None)]
    if len(set(candidates)) < len(candidates):
        entry.note("a candidate is listed twice, and counts once")
    if text is None or reference is None or target is None:
        return None
    return Query(
        id=query_id,
        reference=reference,
        text=text,
        texts=(text,),
        targets=(target,),
        gallery=tuple(name for name in dict.fromkeys(candidates) if name is not None),
    )


def _read_image(part: Entry, home: Path, images: dict[str, ImageSource], *, is_crop: bool) -> str | None:
    """Return the name of one image after adding it to ``images``, or None after adding a problem."""
    if not is_crop:
        coco_id = part.get("val_image_id", int)
        if coco_id is None:
            return None
        images[str(coco_id)] = home / "val2017" / f"{coco_id:012d}.jpg"
        return str(coco_id)
    image_id = part.fields.get("image_id")
    if type(image_id) is not int:  # Visual Genome's ids come as text and as numbers
        image_id = part.get("image_id", str)
    if isinstance(image_id, str) and not (image_id.isascii() and image_id.isdecimal()):
        part.problem(f"'image_id' is {short(image_id)}, expected a number", RESTORE)
        image_id = None
    box = _read_box(part)
    if image_id is None or box is None:
        return None
    name = f"{image_id}:{','.join(str(side) for side in box)}"
    images[name] = Crop(home / "VG_100K" / f"{image_id}.jpg", dilate(*box))
    return name


def _read_box(part: Entry) -> tuple[float, ...] | None:
    """Return left, top, width and height of the object, or None after adding a problem."""
    box = part.get("instance_bbox", list)
    if box is None:
        return None
    numbers = all(type(side) in (int, float) and abs(side) <= MAX_SIDE for side in box)
    if len(box) == 4 and numbers and min(box[2:]) > 0:
        return tuple(int(side) if side == int(side) else side for side in box)
    message = f"'instance_bbox' is {short(box)}, expected left, top, width and height in pixels"
    part.problem(message, f"correct the box, or {RESTORE}")
    return None
