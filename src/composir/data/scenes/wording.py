"""An edit in words that, with the reference, single out one scene of the gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random

from composir.data.scenes.world import (
    CELLS_BY_AREA,
    PAIRS,
    PLACE_BY_CELL,
    RADIUS_BY_SIZE,
    Edit,
    Mention,
    Object,
    Scene,
    Sentence,
)

NUM_WORDINGS = 2

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


def word(base: Scene, edit: Edit, gallery: dict[Scene, int], rng: Random) -> list[Sentence]:
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
