"""The words that the model knows: ImageNet's 1000 classes, and WordNet's nouns for things.

Both are from WordNet 3.0 (Princeton University; its licence lies beside them as WORDNET-LICENSE); they were written by
``scripts/photo_words.py``.
"""

from __future__ import annotations

import lzma
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from composir.models.photos.minilm import embed

FOLDER = Path(__file__).parent
CLASSES, NOUNS, CLASS_VECTORS = "classes.tsv", "nouns.tsv.xz", "classes.safetensors"
NUM_CLASSES = 1000
MAX_SENSES = 3
"""Of a word that are kept, in WordNet's order: the commonest first."""
ENDINGS = (("", ""), ("s", ""), ("es", ""), ("ies", "y"), ("men", "man"))
"""Of a plural, and what stands there in the singular; as WordNet's Morphy does."""


@dataclass(frozen=True, slots=True)
class ImageClass:
    """One of ImageNet's classes."""

    words: str
    """Joined by commas, the commonest first."""
    parents: str
    """Up to three, joined by commas, the nearest first."""
    definition: str

    @property
    def name(self) -> str:
        """Its commonest word."""
        return self.words.split(", ")[0]


@dataclass(frozen=True, slots=True)
class Noun:
    """A meaning: its words, each with the place of this meaning among those of the word, and its definition."""

    words: tuple[tuple[str, int], ...]
    definition: str
    """Of an irregular plural ``=`` and the singular."""

    def to_line(self) -> str:
        """Return the line of ``NOUNS``: words joined by ``|``, the place after ``#`` where it is not the first."""
        words = "|".join(word if rank == 1 else f"{word}#{rank}" for word, rank in self.words)
        return f"{words}\t{self.definition}"


def read_classes() -> list[ImageClass]:
    """Return the classes in the order of the classifier's outputs."""
    lines = (FOLDER / CLASSES).read_text(encoding="utf-8").splitlines()
    return [ImageClass(*line.split("\t")[1:]) for line in lines]


def class_vectors(classes: Sequence[ImageClass]) -> Float[Tensor, "classes 384"]:
    """Return a vector of each class: the mean of its name with its parent, with three of them, and its definition."""
    rows = []
    for one in classes:
        parents = one.parents.split(", ")
        texts = (f"{one.name}, {parents[0]}", f"{one.name}, {one.parents}", f"{one.words}: {one.definition}")
        rows.append(normalize(torch.stack([embed(text) for text in texts]).sum(0), dim=0))
    return torch.stack(rows)


def read_class_vectors() -> Float[Tensor, "classes 384"]:
    """Return what ``class_vectors`` does, computed before and kept in fp16."""
    return normalize(load_file(FOLDER / CLASS_VECTORS)["classes"].float(), dim=-1)


def find_senses(phrase: str) -> tuple[str, ...]:
    """Return up to three meanings of a noun, singular or plural, as texts: its words and definition.

    Empty where WordNet has no thing of that name.
    """
    nouns = _nouns()
    for ending, singular in ENDINGS:
        word = phrase.removesuffix(ending) + singular if phrase.endswith(ending) else ""
        if word in nouns:
            found = nouns[word]
            return find_senses(found[0][1:]) if found[0].startswith("=") else found
    return ()


def head_of(phrase: str) -> str:
    """Return the longest end of a phrase that names a thing: the cup of "a small cup"; "" where none does."""
    words = phrase.split()
    ends = (" ".join(words[start:]) for start in range(len(words)))
    return next((end for end in ends if find_senses(end)), "")


@cache
def _nouns() -> dict[str, tuple[str, ...]]:
    """Return the texts of each word's meanings, the commonest first."""
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for words, definition in _lines():
        text = definition if definition.startswith("=") else f"{', '.join(word for word, _ in words)}: {definition}"
        for word, rank in words:
            found[word.lower()].append((rank, text))
    return {word: tuple(text for _, text in sorted(ranked)) for word, ranked in found.items()}


def _lines() -> Iterator[tuple[list[tuple[str, int]], str]]:
    for line in lzma.decompress((FOLDER / NOUNS).read_bytes()).decode().splitlines():
        words, definition = line.split("\t")
        ranked = (word.partition("#") for word in words.split("|"))
        yield [(word, int(rank or 1)) for word, _, rank in ranked], definition
