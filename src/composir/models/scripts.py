"""Which scripts a model reads: those in which its tokenizer has words, not letters alone."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

MANY = 100
"""Pieces of two letters or more by which a script is known. BERT's English vocabulary has single letters of many
scripts, and of two or more 8 pieces of Cyrillic, 4 of Greek, 2 of Arabic and none of Chinese; vocabularies of several
languages have thousands of each."""
LATIN, SYMBOL = "LATIN", "SYMBOL"
"""Symbols are emoji and their like, of which each is a word."""


def scripts_of(pieces: Iterable[str]) -> frozenset[str]:
    """Return the scripts that a vocabulary knows; Latin always."""
    counts: Counter[str] = Counter()
    for piece in pieces:
        if not piece.isascii():
            of_piece = Counter(_scripts(piece))
            counts.update({script for script, count in of_piece.items() if count > 1 or script == SYMBOL})
    return frozenset({LATIN, *(script for script, count in counts.items() if count >= MANY)})


def unread_share(text: str, known: Iterable[str]) -> float:
    """Return the share, 0 to 1, of a sentence's letters and symbols in other scripts; 1 where it says nothing.

    Digits are read by every model.
    """
    scripts = _scripts(text)
    if not scripts:
        return 0.0 if any(character.isdigit() for character in text) else 1.0
    known = frozenset(known)
    return sum(script not in known for script in scripts) / len(scripts)


def pieces_of(tokenizer: Any) -> list[str]:
    """Return the pieces that a tokenizer of ``transformers`` has, as text whatever bytes it keeps them by."""
    return tokenizer.batch_decode([[number] for number in range(len(tokenizer))])


def _scripts(text: str) -> list[str]:
    return [_script(one) for one in text if one.isalpha() or unicodedata.category(one) == "So"]


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    """Return the first word of a letter's name in Unicode: ``LATIN``, ``CJK``, ``ARABIC``; Japanese kana as one."""
    if not letter.isalpha():
        return SYMBOL
    name = unicodedata.name(letter, "?").removeprefix("FULLWIDTH ").removeprefix("HALFWIDTH ").split()[0]
    return "KANA" if name in ("HIRAGANA", "KATAKANA") else name
