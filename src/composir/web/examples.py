"""Searches to begin with, made of the gallery itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from composir.search import Retriever
from composir.web.schemas import Example

T = TypeVar("T")
NUM_EXAMPLES = 10
NUM_COLOURS = 2
"""Of them by a colour, at most."""
NUM_LOOKED_AT = 400
"""Pictures, evenly spread over the index."""


def pick_examples(retriever: Retriever) -> list[Example]:
    """Return up to ``NUM_EXAMPLES`` searches, always the same ones of one state of an index.

    Where the model names what it sees, each is a picture and another thing that it is sure to see somewhere else, or
    another colour that it sees the same thing in; else pictures alone, since a sentence that suits is not known.
    """
    ids = retriever.sample(NUM_LOOKED_AT)
    named = list(retriever.named(ids).items())  # (id, (thing, colour))
    asked = [(one, f"but {colour}") for one, colour in _other_colours(named)][:NUM_COLOURS]
    first: dict[str, str] = {}
    for image_id, (thing, _) in named:
        first.setdefault(thing, image_id)
    things = list(first)
    pairs = [(first[before], f"but {_article(thing)} {thing}") for before, thing in pairwise(things)]
    asked = _spread(pairs, NUM_EXAMPLES - len(asked)) + asked
    if not asked:
        asked = [(image_id, "") for image_id in _spread(ids, NUM_EXAMPLES)]
    return [Example(image_id=image_id, text=text) for image_id, text in asked]


def _other_colours(named: list[tuple[str, tuple[str, str]]]) -> list[tuple[str, str]]:
    """Return a picture of each thing that is seen in several colours, and another of them."""
    first: dict[str, tuple[str, str]] = {}
    found: dict[str, str] = {}
    for image_id, (thing, colour) in named:
        reference, own = first.setdefault(thing, (image_id, colour))
        if colour != own:
            found.setdefault(reference, colour)
    return list(found.items())


def _spread(given: Sequence[T], count: int) -> list[T]:
    """Return ``count`` of what is given, evenly apart; all of it where it is not so many."""
    return [given[place * len(given) // count] for place in range(count)] if len(given) > count else list(given)


def _article(thing: str) -> str:
    return "an" if thing[0].lower() in "aeiou" else "a"
