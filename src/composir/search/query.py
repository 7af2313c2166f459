"""What is asked for, and the vector that it becomes."""

from __future__ import annotations

import io
import logging
import math
import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from composir.data.images import read_image
from composir.data.images.files import Content, content_id, read_bytes
from composir.errors import ComposirError, counted
from composir.models.scripts import unread_share
from composir.paths import require_picture
from composir.search.encoder import NO_PICTURE, Encoder

logger = logging.getLogger(__name__)

Picture: TypeAlias = Image.Image | Path | str | bytes
"""A decoded picture, a file, or a file's content."""

COMPOSED = 0.5
"""The image weight at which a query is the model's own composition."""
MAX_WEIGHT = 10.0
"""Of a sentence."""
UNREAD = 0.3
"""Share of a sentence's letters that the model does not know, from which on the answer says so."""
NO_WORD = "it holds no word that the model knows"
ROCCHIO = (1.0, 0.75, 0.15)
"""What the query, the pictures to be like and those not to be like count: alpha, beta and gamma."""
WEIGHTED = re.compile(r"(?P<text>.*\D):(?P<weight>-?(\d+\.?\d*|\.\d+))", re.DOTALL)
"""No digit before the colon, so that ``16:9`` and ``12:30`` are words, and no space after it."""


class NothingAskedError(ComposirError):
    """A query has neither a picture nor a sentence that the model can use."""


class NotInIndexError(ComposirError):
    """A query marks an image that the index does not have."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence and how much it counts, 0 to 10."""

    text: str
    weight: float = 1.0

    @classmethod
    def parse(cls, written: str) -> Sentence:
        """Return ``red:2`` as ``red`` of weight 2; whatever does not end in a colon and a number has weight 1.

        A number after a digit and a colon (``16:9``) or after a colon and a space (``score: 2``) is part of the
        sentence. Raises ``ComposirError`` for a weight outside 0 to 10.
        """
        found = WEIGHTED.fullmatch(written)
        if found is None:
            return cls(written)
        sentence = cls(found["text"].strip(), float(found["weight"]))
        _check_weight(sentence)
        return sentence


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What is asked for; ``Retriever.search`` says what each part means."""

    images: tuple[Picture, ...] = ()
    text: str = ""
    negative_text: str = ""
    top_k: int = 10
    where: str | None = None
    exclude: tuple[str, ...] | None = None
    texts: tuple[Sentence, ...] = ()
    without: tuple[Sentence, ...] = ()
    image_weight: float = COMPOSED
    min_score: float | None = None
    more: tuple[str, ...] = ()
    less: tuple[str, ...] = ()

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """``text`` and ``texts``; of several pictures with a sentence each, blank ones as well."""
        first = (Sentence(self.text),) if self.text.strip() else ()
        return first + (self.texts if self._is_paired else _said(self.texts))

    @property
    def left_out(self) -> tuple[Sentence, ...]:
        """``negative_text`` and ``without``."""
        return _said((Sentence(self.negative_text), *self.without))

    @property
    def is_composed(self) -> bool:
        """Whether it is asked by pictures and sentences both: one of them alone some models ask in another way."""
        return bool(self.images and _said((*self.sentences, *self.left_out))) and 0 < self.image_weight < 1

    @property
    def pairs(self) -> list[tuple[int, tuple[Sentence, ...]]]:
        """The place of every picture in ``images``, ``NO_PICTURE`` where there is none, and what is said of it."""
        if self._is_paired:
            return [(place, _said([one])) for place, one in enumerate(self.sentences)]
        return [(place, self.sentences) for place in range(len(self.images)) or (NO_PICTURE,)]

    @property
    def _is_paired(self) -> bool:
        return len(self.images) > 1 and bool(self.text.strip()) + len(self.texts) > 1


def _said(sentences: Iterable[Sentence]) -> tuple[Sentence, ...]:
    return tuple(one for one in sentences if one.text.strip())


def check_query(query: SearchQuery, encoder: Encoder, known: Container[str]) -> None:
    """Raise ``ComposirError`` for what cannot be asked, of an index with the images ``known``.

    Of its kinds are ``NothingAskedError`` and ``NotInIndexError``.
    """
    sentences = query.sentences
    if not query.images and not sentences:
        raise NothingAskedError("there is nothing to search for", expected="a picture, a sentence, or both")
    for one in (*query.texts, *query.without):
        _check_weight(one)
    if not 0 <= query.image_weight <= 1:
        raise ComposirError(
            f"the image weight is {query.image_weight:g}", expected="0 (the sentence alone) to 1 (the picture alone)"
        )
    if query.image_weight > COMPOSED and not query.images:
        raise ComposirError(f"the image weight is {query.image_weight:g}, and there is no picture", fix="give one")
    if query.image_weight < COMPOSED and not _said(sentences):
        raise ComposirError(f"the image weight is {query.image_weight:g}, and there is no sentence", fix="give one")
    if 1 < len(sentences) != len(query.images) > 1:
        raise ComposirError(
            f"there are {counted(len(query.images), 'picture')} and {counted(len(sentences), 'sentence')}",
            expected="one sentence for all pictures, or one for each, in their order",
        )
    if not query.images or query.image_weight < COMPOSED:
        readings = [encoder.read(one.text, with_reference=False) for one in sentences]
        unusable = [reading for reading in readings if reading and not reading.is_usable]
        if len(unusable) == len(sentences):
            named = ", ".join(repr(one.text) for one in sentences)
            raise NothingAskedError(
                f"there is nothing to search for in {named}: {unusable[0].told(with_reference=False)}",
                expected="a picture, or a sentence that the model can use",
            )
    if query.top_k < 1:
        raise ComposirError(f"top_k is {query.top_k}", expected="1 or more")
    if query.min_score is not None and not math.isfinite(query.min_score):
        raise ComposirError(f"the least score is {query.min_score}", expected="a number, such as 0.3")
    for name, ids in (("more", query.more), ("less", query.less)):
        unknown = [one for one in ids if one not in known]
        if unknown:
            raise NotInIndexError(
                f"{name}: {unknown[0]!r} is not in the index", expected="the id of one of its images, as a search gives"
            )


def warnings_of(query: SearchQuery, encoder: Encoder) -> list[str]:
    """Return a line for each sentence, of a query that ``check_query`` lets pass, of which the model reads little.

    Those are sentences with ``UNREAD`` or more of their letters in scripts in which the model's tokenizer has no words,
    and those without any word. What rules make of a sentence they tell themselves (``Encoder.read``).
    """
    lines = []
    for text in dict.fromkeys(one.text for one in (*query.sentences, *query.left_out) if one.text.strip()):
        beside = bool(query.images)
        known = encoder.scripts(with_reference=beside)
        if known is None or encoder.read(text, with_reference=beside) is not None:
            continue
        share = unread_share(text, known)
        if share >= UNREAD:
            what = f"{share:.0%} of it is in a script that the model does not know" if share < 1 else NO_WORD
            lines.append(f"{text!r} is hardly read: {what}; the answers owe it little")
    return lines


def _check_weight(sentence: Sentence) -> None:
    if not 0 <= sentence.weight <= MAX_WEIGHT:
        raise ComposirError(
            f"the weight of {sentence.text!r} is {sentence.weight:g}",
            expected=f"0 to {MAX_WEIGHT:g}; less of it: --without",
        )


def read_pictures(queries: Sequence[SearchQuery], side: int) -> tuple[list[list[Image.Image]], list[list[str]]]:
    """Return the pictures of every query, and the ids of those whose content is known."""
    pictures: list[list[Image.Image]] = []
    ids: list[list[str]] = []
    for query in queries:
        pictures.append([])
        ids.append([])
        for picture in query.images:
            if isinstance(picture, Image.Image):
                pictures[-1].append(picture)
                continue
            if isinstance(picture, bytes):
                content, file = picture, None
            else:
                file = Path(picture)
                require_picture(file)
                content = read_bytes(file)
            pictures[-1].append(read_picture(content, side, file))
            ids[-1].append(content_id(content))
    return pictures, ids


def read_picture(content: bytes, side: int, file: Path | None = None) -> Image.Image:
    """Return a file's content as ``composir index`` reads it; what is odd about it is logged."""
    notes: list[str] = []
    picture = read_image(io.BytesIO(content) if file is None else Content(content, file), side=side, notes=notes)
    for note in notes:
        logger.warning("%s: %s", file or "picture", note)
    return picture


Asked: TypeAlias = tuple[int, str]
"""The place of a picture, or ``NO_PICTURE``, and a sentence: what a model embeds."""
Terms: TypeAlias = list[tuple[Asked, float]]
"""What a model embeds, and its weights in a sum."""


def embed_queries(
    encoder: Encoder, queries: Sequence[SearchQuery], pictures: Sequence[Sequence[Image.Image]]
) -> Float[Tensor, "num_queries dim"]:
    """Return the L2-normalised vector of every query, on the CPU, all through one pass of the model.

    With q(s) the model's query of a picture and a sentence, q("") that of the picture alone, the sentences of a
    picture are composed by the differences that they make::

        q("") + sum of weight * (q(text) - q("")) - sum of weight * (q(without) - q(""))

    which is q(text) itself of one sentence of weight 1. Several pictures are the sum of their own. An image weight w
    above 0.5 moves the normalised result, linearly, to that of the pictures without sentences, which is reached at
    w = 1; one below it to that of the sentences without pictures (w = 0). At 0.5, 0 and 1 nothing else is computed.
    """
    asked: list[Asked] = []
    images: list[Image.Image] = []
    plans: list[list[tuple[float, list[tuple[int, float]]]]] = []  # weights of sums, each of rows of ``asked``
    for query, own in zip(queries, pictures, strict=True):
        parts = _parts(query)
        start = len(images)
        if any(place != NO_PICTURE for _, terms in parts for (place, _), _ in terms):
            images += own
        plans.append([])
        for share, terms in parts:
            plans[-1].append((share, [(len(asked) + row, weight) for row, (_, weight) in enumerate(terms)]))
            asked += [(place if place == NO_PICTURE else start + place, text) for (place, text), _ in terms]
    vectors = encoder.embed_asked(images, asked).cpu()
    sums = []
    for plan in plans:
        found = [(share, sum(weight * vectors[row] for row, weight in rows)) for share, rows in plan]
        one = found[0][1] if len(found) == 1 else sum(share * _unit(torch.as_tensor(part)) for share, part in found)
        sums.append(torch.as_tensor(one))
    return _unit(torch.stack(sums))


def _parts(query: SearchQuery) -> list[tuple[float, Terms]]:
    """Return the sums that a query is made of, and the share of each in it."""
    moved = abs(query.image_weight - COMPOSED) / COMPOSED
    parts: list[tuple[float, Terms]] = []
    if moved < 1:
        composed = [term for place, sentences in query.pairs for term in _terms(place, sentences, query.left_out)]
        parts.append((1 - moved, composed))
    if query.image_weight > COMPOSED:
        parts.append((moved, [((place, ""), 1.0) for place, _ in query.pairs]))
    elif query.image_weight < COMPOSED:
        said = dict.fromkeys(sentences for _, sentences in query.pairs if sentences)
        parts.append((moved, [term for one in said for term in _terms(NO_PICTURE, one, query.left_out)]))
    return parts


def _terms(place: int, sentences: Sequence[Sentence], without: Sequence[Sentence]) -> Terms:
    """Return the sum that a picture, or none, and its sentences are composed by."""
    sentences = sentences or (Sentence(""),)
    terms = [((place, one.text), one.weight) for one in sentences]
    terms += [((place, one.text), -one.weight) for one in without]
    rest = 1 - sum(weight for _, weight in terms)
    return [*terms, ((place, ""), rest)] if rest else terms


def move_by_marks(
    query: Float[Tensor, " dim"],
    more: Float[Tensor, "num_more vectors dim"],
    less: Float[Tensor, "num_less vectors dim"],
) -> Float[Tensor, " dim"]:
    """Return an L2-normalised query moved to the pictures that it should be like, and off those that it should not.

    ``query + 0.75 * mean(more) - 0.15 * mean(less)``, normalised: Rocchio's feedback (Relevance feedback in
    information retrieval, 1971), with the weights that Manning, Raghavan and Schütze (Introduction to Information
    Retrieval, 2008, section 9.1.1) name as reasonable. A picture of several vectors counts as their normalised mean:
    of all vectors it has the largest sum of cosines with them, and no query decides which of them was meant.
    """
    alpha, beta, gamma = ROCCHIO
    moved = alpha * query
    if len(more):
        moved = moved + beta * _unit(more.mean(dim=1)).mean(dim=0)
    if len(less):
        moved = moved - gamma * _unit(less.mean(dim=1)).mean(dim=0)
    return _unit(moved)


def _unit(vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    return nn.functional.normalize(vectors, dim=-1)
