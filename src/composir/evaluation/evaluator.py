"""A model on a split: embed the gallery once, rank every query, measure, with both baselines beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from composir.data.images import ImageSource
from composir.data.triplets import Split
from composir.errors import ComposirError
from composir.evaluation.metrics import (
    NUM_RESAMPLES,
    averages,
    check_scorable,
    evaluate_rankings,
    per_query,
    protocol_of,
)
from composir.evaluation.ranking import DEPTH, Ranking, describe, rank_blocks
from composir.evaluation.signature import signature_fields, signature_text
from composir.evaluation.similarity import similarity

SCORES_PER_BLOCK = 2**25
"""Similarities held at once: 128 MB in float32."""

Progress = Callable[[str, int, int], None]
"""Called after every batch with what is being embedded, how many are done, and of how many."""


@runtime_checkable
class Embedder(Protocol):
    """What evaluation asks of a model: embeddings of image files and sentences, on any one device.

    Embeddings are L2-normalised, without gradients, and must not depend on how they are batched.
    """

    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch vectors dim"]:
        """Return the target embedding of every image."""
        ...

    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query embedding of every pair of reference image and sentence; ``""`` is no sentence."""
        ...

    def embed_text_only(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query embedding of every sentence with the reference neutralised.

        The same model answers; how it does without a picture is for it to say in its documentation.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The figures of a model on a split, with what it takes to read them rightly."""

    metrics: dict[str, float]
    """Fractions in [0, 1]; with categories also ``dress.recall_at_10``, the plain key being their mean."""
    intervals: dict[str, tuple[float, float]]
    """The 95 % bootstrap interval over queries of every metric."""
    baselines: dict[str, dict[str, float]]
    """The same metrics of ``image_only`` and ``text_only``; empty where they were not asked for."""
    num_queries: int
    """Over all categories; always the number in the annotation."""
    num_gallery: int
    """Gallery images over all categories."""
    signature_fields: dict[str, str]
    """What was measured, by field."""
    rankings: tuple[Ranking, ...]
    """The composed queries' rankings, one per category."""

    @property
    def signature(self) -> str:
        """What was measured, as one short string."""
        return signature_text(self.signature_fields)

    @property
    def primary(self) -> str:
        """The key of the figure that the field compares by."""
        return protocol_of(self.signature_fields["dataset"]).primary

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``composir evaluate --json`` prints, made of plain JSON types."""
        return {
            "metrics": dict(self.metrics),
            "intervals": {key: list(interval) for key, interval in self.intervals.items()},
            "baselines": {name: dict(metrics) for name, metrics in self.baselines.items()},
            "num_queries": self.num_queries,
            "num_gallery": self.num_gallery,
            "primary_metric": self.primary,
            "signature": self.signature,
            "signature_fields": dict(self.signature_fields),
        }


def evaluate(
    embedder: Embedder,
    splits: Sequence[Split],
    *,
    batch_size: int = 64,
    weights_hash: str = "unknown",
    depth: int = DEPTH,
    baselines: bool = True,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Return the figures of ``embedder`` on ``splits``: one split, or one per category.

    Every gallery image is embedded once. The baselines use the same model and gallery: ``image_only``
    asks with the empty sentence, ``text_only`` with the reference neutralised; they tell how much of the
    figure needs the composition at all. ``weights_hash`` identifies the model in the signature;
    ``seed`` is the bootstrap's.

    Raises ``ComposirError`` before anything is embedded where the splits cannot be scored (hidden answers,
    targets outside the gallery), and later where the model gives NaN or the wrong number of embeddings.
    """
    check_scorable(splits, depth=depth)
    rankings: dict[str, list[Ranking]] = {"composed": []}
    if baselines:
        rankings |= {"image_only": [], "text_only": []}
    with torch.no_grad():
        for split in splits:
            batches = _Batches(split, batch_size, progress)
            gallery = _embed_gallery(embedder, split, batches)
            for kind, ranked in rankings.items():
                queries = _QUERY_EMBEDDINGS[kind](embedder, split, batches)
                rows = max(1, SCORES_PER_BLOCK // len(gallery))
                blocks = (similarity(block, gallery) for block in queries.split(rows))
                ranked.append(rank_blocks(blocks, split, depth=depth))
    composed = rankings.pop("composed")
    values = evaluate_rankings(composed, num_resamples=num_resamples, seed=seed)
    return Result(
        metrics=values.metrics,
        intervals=values.intervals,
        baselines={
            kind: averages({ranking.split.category: per_query(ranking) for ranking in ranked})
            for kind, ranked in rankings.items()
        },
        num_queries=sum(len(split.queries) for split in splits),
        num_gallery=sum(len(split.gallery) for split in splits),
        signature_fields=signature_fields(splits, weights_hash=weights_hash),
        rankings=tuple(composed),
    )


@dataclass(frozen=True, slots=True)
class _Batches:
    """Goes over a split's images or queries in batches, tells the progress and counts what comes back."""

    split: Split
    batch_size: int
    progress: Progress | None

    def embed(self, what: str, count: int, embed: Callable[[slice], Tensor]) -> Tensor:
        parts = []
        for start in range(0, count, self.batch_size):
            stop = min(start + self.batch_size, count)
            part = embed(slice(start, stop))
            if len(part) != stop - start:
                raise ComposirError(
                    f"the model gave {len(part)} embeddings for {stop - start} {what}",
                    file=describe(self.split),
                    expected="one each: no image and no query may be dropped",
                )
            parts.append(part)
            if self.progress is not None:
                self.progress(f"{describe(self.split)}: {what}", stop, count)
        return torch.cat(parts)


def _embed_gallery(embedder: Embedder, split: Split, batches: _Batches) -> Tensor:
    paths = [split.images[name] for name in split.gallery]
    return batches.embed("gallery images", len(paths), lambda part: embedder.embed_gallery(paths[part]))


def _embed_composed(embedder: Embedder, split: Split, batches: _Batches) -> Tensor:
    paths = [split.images[query.reference] for query in split.queries]
    texts = [query.text for query in split.queries]
    return batches.embed("queries", len(paths), lambda part: embedder.embed_queries(paths[part], texts[part]))


def _embed_image_only(embedder: Embedder, split: Split, batches: _Batches) -> Tensor:
    references = [query.reference for query in split.queries]
    names = list(dict.fromkeys(references))  # each reference once: without a sentence its queries are one
    paths = [split.images[name] for name in names]
    embeddings = batches.embed(
        "references alone",
        len(paths),
        lambda part: embedder.embed_queries(paths[part], [""] * len(paths[part])),
    )
    place_by_name = {name: place for place, name in enumerate(names)}
    return embeddings[[place_by_name[reference] for reference in references]]


def _embed_text_only(embedder: Embedder, split: Split, batches: _Batches) -> Tensor:
    texts = [query.text for query in split.queries]
    return batches.embed("sentences alone", len(texts), lambda part: embedder.embed_text_only(texts[part]))


_QUERY_EMBEDDINGS: dict[str, Callable[[Embedder, Split, _Batches], Tensor]] = {
    "composed": _embed_composed,
    "image_only": _embed_image_only,
    "text_only": _embed_text_only,
}
