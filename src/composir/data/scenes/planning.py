"""Which scenes a split has, which edits of them are asked for, and who is in a query's image set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
from jaxtyping import Bool, Int8

from composir.data.scenes.wording import word
from composir.data.scenes.world import (
    HELD_OUT_PAIRS,
    PAIRS,
    PLACE_BY_CELL,
    RADIUS_BY_SIZE,
    RGB_BY_BACKGROUND,
    RGB_BY_COLOUR,
    SHAPES,
    Edit,
    Object,
    Scene,
    SceneQuery,
    SceneSplit,
    Sentence,
)
from composir.errors import ComposirError

NUM_OBJECTS = (3, 4, 5)
NUM_EDITS = 11
NUM_MEMBERS = 6

SHARES = {"train": 4, "val": 1, "test1": 1}
MIN_NUM_IMAGES = 2 * (NUM_EDITS + 1) * sum(SHARES.values())
"""Two clusters in the smallest split, so that subsets find members in another cluster."""


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
            for sentence in word(cluster.base, edit, number_by_scene, rng):
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
