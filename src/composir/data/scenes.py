"""A generated data set in CIRR's layout: coloured shapes on a 3 x 3 grid, and sentences that edit them.

In the style of CSS (Vo et al., TIRG, CVPR 2019, arXiv 1812.07119), drawn in the plane. Everything needed to
train and measure without a download, and built so that neither modality alone gets far:

- Pictures come in clusters: a base and eleven edits of it. Every query goes from the base to one edit, so the
  picture alone (reference excluded) finds at most 1 target in 11.
- Sentences say as little as singles out one picture of the gallery *given the reference* ("make the circle
  blue"), so the sentence alone fits many pictures.
- Edits come in twins that leave the same thing to be said of the target: "make the circle blue" and "add a
  blue circle". A query's subset holds the twin, other edits of the same base (which the picture alone cannot
  tell apart) and edits of other bases that the sentence fits too (which the sentence alone cannot).
- Validation shows pairs of colour and shape that training never does.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from jaxtyping import Bool, Int8
from PIL import Image, ImageDraw

from composir.errors import ComposirError

RGB_BY_COLOUR = {
    "red": (217, 38, 38),
    "green": (38, 145, 60),
    "blue": (40, 84, 214),
    "yellow": (245, 200, 25),
    "purple": (146, 60, 176),
    "black": (28, 28, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
RADIUS_BY_SIZE = {"small": 11, "large": 20}
RGB_BY_BACKGROUND = {
    "white": (255, 255, 255),
    "grey": (222, 222, 222),
    "cream": (250, 238, 212),
    "sky": (218, 234, 248),
}
PLACES = (
    ("top left", "top middle", "top right"),
    ("middle left", "centre", "middle right"),
    ("bottom left", "bottom middle", "bottom right"),
)
PLACE_BY_CELL = tuple(place for row in PLACES for place in row)
CELLS_BY_AREA = {
    "top row": (0, 1, 2),
    "bottom row": (6, 7, 8),
    "left column": (0, 3, 6),
    "right column": (2, 5, 8),
}

PAIRS = tuple((colour, shape) for colour in RGB_BY_COLOUR for shape in SHAPES)
HELD_OUT_PAIRS = tuple(zip(RGB_BY_COLOUR, SHAPES, strict=False))
"""Colour and shape that appear together in val and test1 only, one pair a shape."""

CELL = 48
"""Side of a grid cell in pixels; the picture is three cells wide."""
JITTER = 2
"""Each object is drawn up to this many pixels off its cell's middle, anew in every picture."""
OVERSAMPLING = 8

NUM_OBJECTS = (3, 4, 5)
NUM_EDITS = 11
NUM_WORDINGS = 2
NUM_MEMBERS = 6
NUM_FOLDERS_OF = 100
"""Training images in one numbered sub-folder."""

SHARES = {"train": 4, "val": 1, "test1": 1}
MIN_NUM_IMAGES = 2 * (NUM_EDITS + 1) * sum(SHARES.values())
"""Two clusters in the smallest split, so that subsets find members in another cluster."""


@dataclass(frozen=True, slots=True)
class Object:
    """One coloured shape."""

    colour: str
    shape: str
    size: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows: a background and, for each of the nine cells row by row, an object or nothing."""

    background: str
    cells: tuple[Object | None, ...]

    def put(self, cell: int, thing: Object | None) -> Scene:
        """Return the scene with ``thing`` (or nothing) in ``cell``."""
        return replace(self, cells=(*self.cells[:cell], thing, *self.cells[cell + 1 :]))

    def taken(self) -> list[int]:
        """Return the cells that hold an object."""
        return [cell for cell, thing in enumerate(self.cells) if thing is not None]

    def free(self) -> list[int]:
        """Return the cells that hold nothing."""
        return [cell for cell, thing in enumerate(self.cells) if thing is None]


@dataclass(frozen=True, slots=True)
class Edit:
    """One change to a scene: ``kind``, the cell it starts from and the cell and object it ends with."""

    kind: str
    """``recolour``, ``reshape``, ``resize``, ``move``, ``remove`` or ``add``."""
    source: int
    """The cell of the object that changes; for ``add`` the same as ``cell``."""
    cell: int
    thing: Object | None
    """What is in ``cell`` afterwards."""

    def apply(self, scene: Scene) -> Scene:
        """Return the scene after the edit."""
        return scene.put(self.source, None).put(self.cell, self.thing)


@dataclass(frozen=True, slots=True)
class Mention:
    """The words that pick out an object: what is None is not said."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    cells: tuple[int, ...] | None = None

    def find(self, scene: Scene) -> list[int]:
        """Return the cells whose object fits the words."""
        return [
            cell
            for cell, thing in enumerate(scene.cells)
            if thing is not None
            and self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
            and self.size in (None, thing.size)
            and (self.cells is None or cell in self.cells)
        ]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A wording of an edit, and what can be concluded from it with and without the reference."""

    text: str
    meanings: tuple[Edit, ...]
    """Every edit of the reference that the words allow."""
    about: Mention
    """Without the reference, the words say only that the target holds such an object, ..."""
    present: bool
    """... or, where this is False, that it does not."""


@dataclass(frozen=True, slots=True)
class SceneQuery:
    """A query by number of scene in its split: from the base ``reference`` to its edit ``target``."""

    reference: int
    target: int
    sentence: Sentence
    members: tuple[int, ...]
    """The image set: reference, target and four others, in the order that is written."""


@dataclass(frozen=True, slots=True)
class SceneSplit:
    """The scenes of one split, in the order of its gallery, and its queries."""

    name: str
    scenes: tuple[Scene, ...]
    queries: tuple[SceneQuery, ...]


def generate(out: str | Path, *, num_images: int = 3000, seed: int = 0) -> dict[str, dict[str, int]]:
    """Return ``{split: {"num_queries", "num_gallery"}}`` after writing the data set to a new folder.

    ``num_images`` are shared 4 : 1 : 1 by train, val and test1 (which has no targets, as CIRR's). The same
    ``num_images`` and ``seed`` give the same bytes. ``out`` appears when it is complete, never in part.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ComposirError("already exists and is not empty", file=out, fix="choose a new folder")
    splits = plan(num_images, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as parent:
        home = Path(parent) / "scenes"
        first_pairid = 0
        for split in splits:
            _write(split, home, first_pairid, Random(f"{seed} {split.name}"))
            first_pairid += len(split.queries)
        if out.exists():
            out.rmdir()
        home.replace(out)
    return {split.name: {"num_queries": len(split.queries), "num_gallery": len(split.scenes)} for split in splits}


def plan(num_images: int = 3000, seed: int = 0) -> tuple[SceneSplit, ...]:
    """Return the three splits as symbols, nothing drawn: no scene occurs twice in or between them."""
    if num_images < MIN_NUM_IMAGES:
        raise ComposirError(
            f"{num_images} images are too few for the scenes",
            expected=f"{MIN_NUM_IMAGES} or more",
            fix=f"--images {MIN_NUM_IMAGES}",
        )
    rng = Random(seed)
    seen: set[Scene] = set()
    num_by_split = {name: num_images * share // sum(SHARES.values()) for name, share in SHARES.items()}
    num_by_split["train"] += num_images - sum(num_by_split.values())
    return tuple(_plan_split(name, number, rng, seen) for name, number in num_by_split.items())


def draw(scene: Scene, rng: Random) -> Image.Image:
    """Return the picture of a scene, 144 x 144 RGB; ``rng`` shifts every object by up to two pixels."""
    page = Image.new("RGB", (3 * CELL, 3 * CELL), RGB_BY_BACKGROUND[scene.background])
    for cell, thing in enumerate(scene.cells):
        if thing is not None:
            left = cell % 3 * CELL + rng.randint(-JITTER, JITTER)
            top = cell // 3 * CELL + rng.randint(-JITTER, JITTER)
            page.paste(RGB_BY_COLOUR[thing.colour], (left, top), _mask(thing.shape, thing.size))
    return page


# Planning: scenes, clusters, members


@dataclass(frozen=True, slots=True)
class _Cluster:
    """A base and its edits, all with different results."""

    base: Scene
    edits: tuple[Edit, ...]


def _plan_split(name: str, num_images: int, rng: Random, seen: set[Scene]) -> SceneSplit:
    pairs = [pair for pair in PAIRS if name != "train" or pair not in HELD_OUT_PAIRS]
    num_clusters, num_alone = divmod(num_images, NUM_EDITS + 1)
    clusters = [_plan_cluster(rng, pairs, seen) for _ in range(num_clusters)]
    scenes = [cluster.base for cluster in clusters]
    scenes += [edit.apply(cluster.base) for cluster in clusters for edit in cluster.edits]
    scenes += [_new_base(rng, pairs, seen) for _ in range(num_alone)]
    rng.shuffle(scenes)
    number_by_scene = {scene: number for number, scene in enumerate(scenes)}
    cluster_by_number = np.full(len(scenes), -1)  # bases and lone scenes stay -1: they are never members
    for index, cluster in enumerate(clusters):
        cluster_by_number[[number_by_scene[edit.apply(cluster.base)] for edit in cluster.edits]] = index
    codes = _encode(scenes)
    queries = []
    for cluster in clusters:
        reference = number_by_scene[cluster.base]
        for edit in cluster.edits:
            target = number_by_scene[edit.apply(cluster.base)]
            for sentence in _word(cluster.base, edit, number_by_scene, rng):
                others = _choose_members(target, cluster_by_number, _fits(sentence, codes), rng)
                members = [reference, target, *others]
                rng.shuffle(members)
                queries.append(SceneQuery(reference, target, sentence, tuple(members)))
    return SceneSplit(name, tuple(scenes), tuple(queries))


def _plan_cluster(rng: Random, pairs: Sequence[tuple[str, str]], seen: set[Scene]) -> _Cluster:
    """Return a new base with its edits: a twin pair of every kind of change and one more, eleven in all."""
    while True:
        base = _new_base(rng, pairs, seen)
        edits: list[Edit] = []
        results: set[Scene] = set()
        for kind in (*_CHANGES, rng.choice((*_CHANGES, "add"))):
            edit = _propose(kind, base, rng, pairs)
            twins = [] if len(edits) == NUM_EDITS - 1 else [_twin(edit, base, rng, pairs)]
            edits += [edit, *twins]
            results |= {edit.apply(base), *(twin.apply(base) for twin in twins)}
        if len(results) == NUM_EDITS and not results & seen:
            seen |= results
            rng.shuffle(edits)
            return _Cluster(base, tuple(edits))


def _new_base(rng: Random, pairs: Sequence[tuple[str, str]], seen: set[Scene]) -> Scene:
    while True:
        scene = Scene(rng.choice(list(RGB_BY_BACKGROUND)), (None,) * len(PLACE_BY_CELL))
        for cell in rng.sample(range(len(PLACE_BY_CELL)), rng.choice(NUM_OBJECTS)):
            scene = scene.put(cell, _new_object(rng, pairs))
        if scene not in seen:
            seen.add(scene)
            return scene


def _new_object(rng: Random, pairs: Sequence[tuple[str, str]]) -> Object:
    colour, shape = rng.choice(pairs)
    return Object(colour, shape, rng.choice(list(RADIUS_BY_SIZE)))


_CHANGES = ("recolour", "reshape", "resize", "move", "remove")


def _propose(kind: str, base: Scene, rng: Random, pairs: Sequence[tuple[str, str]]) -> Edit:
    if kind == "add":
        cell = rng.choice(base.free())
        return Edit(kind, cell, cell, _new_object(rng, pairs))
    cell = rng.choice(base.taken())
    thing = base.cells[cell]
    assert thing is not None
    if kind == "recolour":
        colours = [colour for colour, shape in pairs if shape == thing.shape and colour != thing.colour]
        return Edit(kind, cell, cell, replace(thing, colour=rng.choice(colours)))
    if kind == "reshape":
        shapes = [shape for colour, shape in pairs if colour == thing.colour and shape != thing.shape]
        return Edit(kind, cell, cell, replace(thing, shape=rng.choice(shapes)))
    if kind == "resize":
        return Edit(kind, cell, cell, replace(thing, size=_other_size(thing.size)))
    if kind == "move":
        return Edit(kind, cell, rng.choice(base.free()), thing)
    return Edit(kind, cell, cell, None)


def _twin(edit: Edit, base: Scene, rng: Random, pairs: Sequence[tuple[str, str]]) -> Edit:
    """Return another edit of the base of whose result the same can be said."""
    if edit.thing is None:  # the object is gone as well when it becomes another one
        thing = base.cells[edit.source]
        assert thing is not None
        shapes = [shape for colour, shape in pairs if colour == thing.colour and shape != thing.shape]
        return Edit("reshape", edit.source, edit.source, replace(thing, shape=rng.choice(shapes)))
    cell = edit.cell if edit.kind == "move" else rng.choice(base.free())
    return Edit("add", cell, cell, edit.thing)


def _other_size(size: str) -> str:
    return "small" if size == "large" else "large"


def _choose_members(
    target: int, cluster_by_number: np.ndarray, fits: Bool[np.ndarray, " scenes"], rng: Random
) -> list[int]:
    """Return four members beside reference and target: two or three edits of the same base, else of others.

    Those that the sentence fits come first, in both parts.
    """
    cluster = cluster_by_number[target]
    near = cluster_by_number == cluster
    near[target] = False
    far = (cluster_by_number >= 0) & (cluster_by_number != cluster)
    num_near = rng.choice((2, 3))
    chosen: list[int] = []
    for part, count in ((near, num_near), (far, NUM_MEMBERS - 2 - num_near)):
        for choices in (part & fits, part & ~fits):
            numbers = np.flatnonzero(choices).tolist()
            still = count - sum(part[number] for number in chosen)
            chosen += rng.sample(numbers, min(still, len(numbers)))
    return chosen


# What the words fit, over a whole gallery at once

_COLOURS = tuple(RGB_BY_COLOUR)
_SIZES = tuple(RADIUS_BY_SIZE)


def _encode(scenes: Sequence[Scene]) -> Int8[np.ndarray, "scenes cells 3"]:
    """Return colour, shape and size of every cell as positions in their tuples; -1 for an empty cell."""
    codes = np.full((len(scenes), len(PLACE_BY_CELL), 3), -1, dtype=np.int8)
    for number, scene in enumerate(scenes):
        for cell in scene.taken():
            thing = scene.cells[cell]
            assert thing is not None
            codes[number, cell] = (
                _COLOURS.index(thing.colour),
                SHAPES.index(thing.shape),
                _SIZES.index(thing.size),
            )
    return codes


def _fits(sentence: Sentence, codes: Int8[np.ndarray, "scenes cells 3"]) -> Bool[np.ndarray, " scenes"]:
    """Return whether what the sentence says of its target is true of each scene."""
    about = sentence.about
    found = codes[:, :, 0] >= 0  # (scenes, cells)
    if about.colour is not None:
        found &= codes[:, :, 0] == _COLOURS.index(about.colour)
    if about.shape is not None:
        found &= codes[:, :, 1] == SHAPES.index(about.shape)
    if about.size is not None:
        found &= codes[:, :, 2] == _SIZES.index(about.size)
    if about.cells is not None:
        found = found[:, list(about.cells)]
    return found.any(axis=1) == sentence.present


# Wording

_NOUNS = ("shape", "object", "one")
_VAGUE_DETAILS = (
    ("shape",),
    ("shape",),
    ("colour",),
    ("colour", "shape"),
    ("size", "shape"),
    ("size", "colour"),
    ("cells",),
    ("shape", "cells"),
)
_ALL_DETAILS = ("size", "colour", "shape", "cells")
_NEW_DETAILS = (
    ("shape",),
    ("colour", "shape"),
    ("colour", "shape"),
    ("size", "colour", "shape"),
    ("colour", "shape", "cells"),
    ("size", "shape", "cells"),
)
_TEMPLATES = {
    "recolour": (
        "make {it} {colour}",
        "turn {it} {colour}",
        "change the colour of {it} to {colour}",
        "paint {it} {colour}",
        "{it} should be {colour}",
        "{it} is {colour} now",
    ),
    "reshape": (
        "turn {it} into a {shape}",
        "change {it} to a {shape}",
        "make {it} a {shape}",
        "{it} should be a {shape}",
        "{it} becomes a {shape}",
    ),
    "larger": (
        "make {it} larger",
        "enlarge {it}",
        "{it} should be bigger",
        "{it} is larger now",
        "grow {it}",
    ),
    "smaller": ("make {it} smaller", "shrink {it}", "{it} should be smaller", "{it} is smaller now"),
    "move": ("move {it} to the {where}", "shift {it} to the {where}", "{it} goes to the {where}"),
    "remove": ("remove {it}", "take {it} away", "delete {it}", "get rid of {it}", "the same without {it}"),
    "add": ("add {it}", "draw {it} as well", "also show {it}", "insert {it}"),
}
_NUM_VAGUE_TRIES = 40


def _word(base: Scene, edit: Edit, gallery: dict[Scene, int], rng: Random) -> list[Sentence]:
    """Return two wordings of the edit; each, with the base, is true of one scene of the gallery alone."""
    sentence_by_text: dict[str, Sentence] = {}
    tries = 0
    while len(sentence_by_text) < NUM_WORDINGS:
        sentence = _phrase(base, edit, rng, complete=tries >= _NUM_VAGUE_TRIES)
        tries += 1
        results = {meaning.apply(base) for meaning in sentence.meanings}
        if sum(scene in gallery for scene in results) == 1:
            sentence_by_text.setdefault(sentence.text, sentence)
    return list(sentence_by_text.values())


def _phrase(base: Scene, edit: Edit, rng: Random, *, complete: bool) -> Sentence:
    """Return one wording of the edit; ``complete`` says every detail, else as many as chance has it."""
    if edit.kind == "add":
        return _phrase_new(base, edit, rng, complete=complete)
    old = base.cells[edit.source]
    assert old is not None
    mention = _mention(base, edit.source, rng, complete=complete)
    words = {"it": f"the {_describe(mention, rng)}"}
    kind, meanings, about = edit.kind, (edit,), mention
    if edit.thing is None:
        return _sentence(kind, words, meanings, about, rng, present=False)
    if kind == "recolour":
        words["colour"] = edit.thing.colour
        about = replace(mention, colour=edit.thing.colour)
    elif kind == "reshape":
        words["shape"] = edit.thing.shape
        about = replace(mention, shape=edit.thing.shape)
    elif kind == "resize":
        kind = "larger" if edit.thing.size == "large" else "smaller"
        about = replace(mention, size=edit.thing.size)
    else:
        words["where"], cells = _where(edit, rng, complete=complete)
        meanings = tuple(replace(edit, cell=cell) for cell in base.free() if cell in cells)
        about = replace(mention, cells=cells)
    return _sentence(kind, words, meanings, about, rng)


def _phrase_new(base: Scene, edit: Edit, rng: Random, *, complete: bool) -> Sentence:
    assert edit.thing is not None
    details = _ALL_DETAILS if complete else rng.choice(_NEW_DETAILS)
    where, cells = _where(edit, rng, complete=complete)
    about = _mention_of(edit.thing, cells, details)
    preposition = "in" if where in CELLS_BY_AREA else "at"
    place = f" {preposition} the {where}" if "cells" in details else ""
    things = [
        Object(colour, shape, size)
        for colour, shape in PAIRS
        for size in RADIUS_BY_SIZE
        if about.colour in (None, colour) and about.shape in (None, shape) and about.size in (None, size)
    ]
    meanings = tuple(
        Edit("add", cell, cell, thing)
        for cell in base.free()
        if about.cells is None or cell in about.cells
        for thing in things
    )
    words = {"it": f"a {_describe(replace(about, cells=None), rng)}{place}"}
    return _sentence("add", words, meanings, about, rng)


def _sentence(
    kind: str,
    words: dict[str, str],
    meanings: tuple[Edit, ...],
    about: Mention,
    rng: Random,
    *,
    present: bool = True,
) -> Sentence:
    return Sentence(rng.choice(_TEMPLATES[kind]).format(**words), meanings, about, present)


def _mention(base: Scene, cell: int, rng: Random, *, complete: bool) -> Mention:
    """Return words that fit the object in the cell and no other one of the base."""
    thing = base.cells[cell]
    assert thing is not None
    mentions = [_mention_of(thing, (cell,), details) for details in (*_VAGUE_DETAILS, _ALL_DETAILS)]
    return mentions[-1] if complete else rng.choice([one for one in mentions if len(one.find(base)) == 1])


def _mention_of(thing: Object, cells: tuple[int, ...], details: Sequence[str]) -> Mention:
    known = {"colour": thing.colour, "shape": thing.shape, "size": thing.size, "cells": cells}
    return Mention(**{detail: known[detail] for detail in details})


def _describe(mention: Mention, rng: Random) -> str:
    """Return ``small red circle at the top left``, less what is not mentioned."""
    words = [
        mention.size,
        mention.colour,
        mention.shape or rng.choice(_NOUNS[: 3 if mention.cells is None else 2]),
    ]
    place = "" if mention.cells is None else f" at the {PLACE_BY_CELL[mention.cells[0]]}"
    return " ".join(word for word in words if word) + place


def _where(edit: Edit, rng: Random, *, complete: bool) -> tuple[str, tuple[int, ...]]:
    """Return where the edit ends, in words and as cells: a row or column it comes into, or the very cell."""
    areas = [
        area
        for area, cells in CELLS_BY_AREA.items()
        if edit.cell in cells and (edit.kind == "add" or edit.source not in cells)
    ]
    if areas and not complete and rng.random() < 0.5:
        area = rng.choice(areas)
        return area, CELLS_BY_AREA[area]
    return PLACE_BY_CELL[edit.cell], (edit.cell,)


# Drawing and writing


@functools.cache
def _mask(shape: str, size: str) -> Image.Image:
    """Return the shape in white on black, one cell large, with soft edges."""
    side = CELL * OVERSAMPLING
    radius = RADIUS_BY_SIZE[size] * OVERSAMPLING
    middle = side / 2
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=255)
    elif shape == "square":
        pen.polygon(_corners(middle, [radius * 1.2] * 4, turn=math.pi / 4), fill=255)
    elif shape == "triangle":
        pen.polygon(_corners(middle, [radius * 1.1] * 3), fill=255)
    elif shape == "star":
        pen.polygon(_corners(middle, [radius * 1.1, radius * 0.45] * 5), fill=255)
    else:
        arm = radius * 0.36
        pen.rectangle((middle - radius, middle - arm, middle + radius, middle + arm), fill=255)
        pen.rectangle((middle - arm, middle - radius, middle + arm, middle + radius), fill=255)
    return mask.reduce(OVERSAMPLING)


def _corners(middle: float, radii: Sequence[float], turn: float = 0.0) -> list[tuple[float, float]]:
    """Return the corners of a polygon about the middle, the first one straight up but for ``turn``."""
    angles = [turn - math.pi / 2 + 2 * math.pi * number / len(radii) for number in range(len(radii))]
    return [
        (middle + radius * math.cos(angle), middle + radius * math.sin(angle))
        for radius, angle in zip(radii, angles, strict=True)
    ]


def _write(split: SceneSplit, home: Path, first_pairid: int, rng: Random) -> None:
    """Write the pictures and the two annotation files of a split, as CIRR has them."""
    prefix = "dev" if split.name == "val" else split.name
    names = [f"{prefix}-{number:05d}" for number in range(len(split.scenes))]
    path_by_name = {}
    for number, (name, scene) in enumerate(zip(names, split.scenes, strict=True)):
        folder = f"train/{number // NUM_FOLDERS_OF}" if split.name == "train" else prefix
        path_by_name[name] = f"./{folder}/{name}.png"
        file = home / folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw(scene, rng).save(file)
    entries = [
        _annotate(query, names, first_pairid + number, with_target=split.name != "test1")
        for number, query in enumerate(split.queries)
    ]
    for kind, prefix, content in (
        ("captions", "cap", entries),
        ("image_splits", "split", path_by_name),
    ):
        file = home / "cirr" / kind / f"{prefix}.rc2.{split.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")


def _annotate(query: SceneQuery, names: Sequence[str], pairid: int, *, with_target: bool) -> dict[str, object]:
    """Return one entry of CIRR's caption file; every query has an image set of its own."""
    image_set: dict[str, object] = {
        "id": pairid,
        "members": [names[number] for number in query.members],
        "reference_rank": query.members.index(query.reference),
    }
    entry: dict[str, object] = {"pairid": pairid, "reference": names[query.reference]}
    if with_target:
        target = names[query.target]
        entry |= {"target_hard": target, "target_soft": {target: 1.0}}
        image_set["target_rank"] = query.members.index(query.target)
    return entry | {"caption": query.sentence.text, "img_set": image_set}
