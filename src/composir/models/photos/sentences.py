"""What a sentence asks for, by a few rules: a thing to find, one to leave, colours, and whether the reference stays."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from composir.models.photos.colours import COLOURS
from composir.models.photos.vocabulary import find_senses, head_of


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


COLOUR_OF = {colour: colour for colour in COLOURS} | {
    "gray": "grey", "silver": "grey", "violet": "purple", "lilac": "purple", "gold": "yellow", "golden": "yellow",
    "scarlet": "red", "crimson": "red", "navy": "blue", "turquoise": "blue", "beige": "brown",
}  # fmt: skip
"""Words for colours, and which of the eleven each is nearest to."""
ARTICLES = _set("a an the some any another other different its their my this that these those")
SCAFFOLDING = ARTICLES | _set(
    "but instead same it is are be being been was were do does make makes made change changed changes replace replaced "
    "turn turned swap swapped show shows me i you we want wanted need would like looks look find search give get now "
    "only just also too please can could should will there here as so than then rather kind sort type style version "
    "picture pictures photo photos photograph photographs image images one ones them they thing things object objects "
    "something has have had having add added more plus colour color colored coloured colours colors animal background "
    "very really similar becomes become and or"
)
"""Words that say nothing of what is to be seen."""
GENERIC = _set("animal thing object")
UNKNOWN = _set(
    "two three four five six seven eight nine ten many several few fewer both pair bigger smaller larger taller "
    "younger older"
)
"""Counts and comparisons, which the model cannot see."""
PREPOSITIONS = _set(
    "in on at with near under over among for from by of against inside outside behind beside between above below "
    "through around into onto to"
)
PLACES = _set("on against with before in")
GROUNDS = _set("background backgrounds backdrop")
PLAIN = _set("white plain blank empty clean")
TO_LEAVE = (("instead", "of"), ("rather", "than"), ("not",), ("without",), ("no",), ("remove",), ("less",), ("minus",))
"""What the words behind are to be left out, up to ``but``, a comma or ``TO_FIND``."""
TO_EXCHANGE = _set("replace change turn swap convert from")
"""The words behind are to be left out up to one of ``TO_FIND``."""
TO_FIND = _set("with to into for by")
SHOULD = (
    ("should", "be"), ("is", "replaced", "by"), ("is", "replaced", "with"), ("replaced", "by"), ("replaced", "with"),
    ("becomes",), ("turns", "into"),
)  # fmt: skip
"""What stands before is to be left out."""
ADDING = _set("add added also plus")
BREAK = ","


@dataclass(frozen=True, slots=True)
class Reading:
    """How a sentence was read."""

    find: str
    """Words for the thing to find; "" where it names none."""
    leave: str
    """Words for what there should not be."""
    colours: tuple[str, ...]
    """Of ``COLOURS``."""
    no_colours: tuple[str, ...]
    white_ground: bool
    """Whether it asks for a white or plain background."""
    keeps: bool
    """Whether it speaks of the reference's own thing; otherwise of another in its place."""
    unused: tuple[str, ...]
    """Words that say something which the model cannot see."""

    @property
    def is_usable(self) -> bool:
        """Whether the sentence moves the query at all."""
        return bool(self.find or self.leave or self.colours or self.no_colours or self.white_ground)

    def told(self, *, with_reference: bool) -> str:
        """Return it as one line for people, of a query with a picture or without."""
        if not self.is_usable:
            return NOTHING
        parts = {
            "find": self.find,
            "without": self.leave,
            "colours": ", ".join(self.colours),
            "not": ", ".join(self.no_colours),
            "ground": "white" if self.white_ground else "",
            "reference": ("its thing is kept" if self.keeps else "another thing in its place") * with_reference,
            "not used": ", ".join(self.unused),
        }
        return "; ".join(f"{name}: {words}" for name, words in parts.items() if words)


NOTHING = "nothing in it can be used: photos reads English names of things and eleven colours"


def read_sentence(text: str) -> Reading:
    """Return what a sentence asks for; other scripts and words without content are passed over."""
    words = _words(text)
    words, white_ground = _take_ground(words)
    found, left = _split(words)
    colours, no_colours = _colours(found), _colours(left)
    find, leave = _phrase(found), _phrase(left)
    unused = tuple(dict.fromkeys(word for word in words if word in UNKNOWN))
    keeps = not find or _is_of_reference(words, found, find)
    return Reading(find, leave, colours, no_colours, white_ground, keeps, unused)


def _words(text: str) -> list[str]:
    """Return words in lower case without accents, and breaks between clauses."""
    plain = "".join(one for one in unicodedata.normalize("NFKD", text.lower()) if not unicodedata.combining(one))
    plain = re.sub("n['’]t\\b", " not", plain)
    plain = re.sub(r"(\w)['’](s|re|m|d|ll|ve)\b", r"\1", plain)
    return re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*|[,;.!?:]", re.sub(r"[,;.!?:]+", f" {BREAK} ", plain))


def _take_ground(words: Sequence[str]) -> tuple[list[str], bool]:
    """Return the words without "on a ... background", and whether that is to be white or plain."""
    for end, word in enumerate(words):
        if word not in GROUNDS:
            continue
        start = next((place for place in range(end - 1, max(-1, end - 4), -1) if words[place] in PLACES), None)
        if start is not None:
            return [*words[:start], *words[end + 1 :]], bool(PLAIN & set(words[start:end]))
    return list(words), False


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the words for what is to be found, and those for what is to be left out."""
    for marker in SHOULD:
        for place in range(1, len(words) - len(marker)):
            if tuple(words[place : place + len(marker)]) == marker:
                found, left = _split(words[place + len(marker) :])
                return found, [*words[:place], *left]
    found: list[str] = []
    left: list[str] = []
    side, until = found, frozenset[str]()
    place = 0
    while place < len(words):
        word = words[place]
        marker = next((one for one in TO_LEAVE if tuple(words[place : place + len(one)]) == one), ())
        if marker:
            side, until = left, frozenset()
            place += len(marker)
            continue
        if word in TO_EXCHANGE and TO_FIND & set(words[place + 1 :]):
            side, until = left, TO_FIND
        elif word in until or word in ("but", BREAK):
            side, until = found, frozenset()
        else:
            side.append(word)
        place += 1
    return found, left


def _colours(words: Sequence[str]) -> tuple[str, ...]:
    """Return the colours that some words name; "an orange" is a fruit, "an orange one" a colour."""
    return tuple(dict.fromkeys(COLOUR_OF[word] for place, word in enumerate(words) if _is_colour(words, place)))


def _is_colour(words: Sequence[str], place: int) -> bool:
    if words[place] != "orange":
        return words[place] in COLOUR_OF
    return not (place and words[place - 1] in ARTICLES and place + 1 == len(words))


def _phrase(words: Sequence[str]) -> str:
    """Return the words with content, in order; a colour stays where it is part of a name, as in "brown bear"."""
    kept = []
    for place, word in enumerate(words):
        if word in SCAFFOLDING or word in UNKNOWN:
            continue
        if not _is_colour(words, place) or (place + 1 < len(words) and find_senses(f"{word} {words[place + 1]}")):
            kept.append(word)
    while kept and kept[0] in PREPOSITIONS:
        kept = kept[1:]
    while kept and kept[-1] in PREPOSITIONS:
        kept = kept[:-1]
    return " ".join(kept)


def _follows(word: str, words: Sequence[str]) -> str | None:
    """Return what stands behind a word; "" at the end, None where the word is not there."""
    return [*words, ""][words.index(word) + 1] if word in words else None


def _is_of_reference(words: Sequence[str], found: Sequence[str], find: str) -> bool:
    """Return whether a sentence that names something describes the reference's thing by it.

    It does where it speaks of "one" or "them", adds something, says "the same" of a thing, starts with a preposition
    or with what the thing does ("flying", "covered in snow"), or names no thing at all ("bigger").
    """
    said = set(words)
    if {"ones", "them"} & set(found) or _follows("one", found) in PREPOSITIONS | {"", BREAK}:
        return True
    if said & ADDING and not said & {"instead", "replace", "change"}:
        return True
    if "same" in words:
        return _follows("same", words) not in PREPOSITIONS | COLOUR_OF.keys() | SCAFFOLDING - GENERIC | {""}
    content = [word for word in found if word not in SCAFFOLDING - ARTICLES]
    first = content[0] if content else ""
    if first in PREPOSITIONS - {"of", "to"}:
        return not (first in TO_FIND and said & ({"but", "instead"} | TO_EXCHANGE))
    thing = main_part(find)
    if re.search("(ing|ed)$", first) and not find_senses(first) and not find_senses(thing):
        return True
    return first not in ("a", "an") and not head_of(thing)


def main_part(phrase: str) -> str:
    """Return a phrase up to its first preposition: the castle of "castle at night"."""
    return re.split(rf" (?:{'|'.join(PREPOSITIONS)}) ", phrase)[0]
