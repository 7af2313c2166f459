"""A model on a split: embed the gallery once, rank every query, measure, with both baselines beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from composir.data.images import ImageSource
from composir.data.triplets import Split
from composir.errors import ComposirError
from composir.evaluation.metrics import NUM_RESAMPLES, check_scorable
from composir.evaluation.ranking import DEPTH, Ranking, check_gallery, describe, rank_blocks
from composir.evaluation.rerank import Matcher, before_reranking
from composir.evaluation.rerank import rerank as rerank_best
from composir.evaluation.result import COMPOSED, IMAGE_ONLY, KINDS, TEXT_ONLY, Result, measure
from composir.evaluation.similarity import similarity
from composir.progress import Progress

SCORES_PER_BLOCK = 2**25
"""Similarities held at once: 128 MB in float32."""


@runtime_checkable
class Embedder(Protocol):
    """What evaluation asks of a model: embeddings of image files and sentences, on any one device.

    Embeddings are L2-normalised, without gradients, and must not depend on how they are batched.
    """

    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch vectors dim"]:
        """Return the target embedding of every image."""
        ...

    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch *parts dim"]:
        """Return the query embedding of every pair of reference image and sentence; ``""`` is no sentence.

        A query that has several reference images is asked with each, and its embedding is the mean.

        One vector, or several whose scores are added up, always the same number.
        """
        ...

    def embed_text_only(
        self, texts: Sequence[str], gallery: Sequence[ImageSource]
    ) -> Float[Tensor, "batch *parts dim"]:
        """Return the query embedding of every sentence with the reference neutralised.

        The same model answers; how it does without a picture, whether by the ``gallery`` that is ranked or otherwise,
        is for it to say in its documentation.
        """
        ...


def evaluate(
    embedder: Embedder,
    splits: Sequence[Split],
    *,
    batch_size: int = 64,
    weights_hash: str = "unknown",
    baselines: bool = True,
    rerank: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Result:
    """Return the figures of ``embedder`` on ``splits``: one split, or one per category.

    ``rank_splits`` and then ``measure``, which say what the arguments are. Raises ``ComposirError`` before
    anything is embedded where the splits cannot be scored (hidden answers, targets outside the gallery), and
    later where the model gives NaN or the wrong number of embeddings. With ``rerank`` the embedder, which must be a
    ``Matcher``, scores so many of each query's best again, of the baselines' queries as well.
    """
    check_scorable(splits)
    kinds = KINDS if baselines else (COMPOSED,)
    if rerank and not isinstance(embedder, Matcher):
        raise ComposirError("this model scores no pairs, and cannot re-rank", fix="leave out --rerank")
    if rerank and any(query.further_references for split in splits for query in split.queries):
        raise ComposirError(
            f"queries of {splits[0].dataset} have several reference images, and re-ranking takes one",
            fix="leave out --rerank",
        )
    rankings = rank_splits(
        embedder, splits, kinds=kinds, depth=max(DEPTH, rerank), batch_size=batch_size, progress=progress
    )
    before = None
    if rerank:
        assert isinstance(embedder, Matcher)
        before = before_reranking(rankings[COMPOSED], rerank)
        rankings = rerank_best(rankings, embedder, rerank, batch_size=batch_size, progress=progress)
    return measure(rankings, weights_hash=weights_hash, rerank=before, num_resamples=num_resamples, seed=seed)


def rank_splits(
    embedder: Embedder,
    splits: Sequence[Split],
    *,
    kinds: Sequence[str] = (COMPOSED,),
    depth: int = DEPTH,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> dict[str, tuple[Ranking, ...]]:
    """Return the ``depth`` best images of every split's queries, by kind of query; the answers may be hidden.

    Every gallery image is embedded once. All kinds use the same model and gallery: ``image_only`` asks with the
    empty sentence, ``text_only`` with the reference neutralised; they tell how much of a figure needs the
    composition at all. Memory: the gallery's embeddings and ``SCORES_PER_BLOCK`` similarities.
    """
    rankings: dict[str, list[Ranking]] = {kind: [] for kind in kinds}
    with torch.no_grad():
        for split in splits:
            check_gallery(split)
            batches = _Batches(split, batch_size, progress)
            gallery = _embed_gallery(embedder, split, batches)
            for kind, ranked in rankings.items():
                queries = _QUERY_EMBEDDINGS[kind](embedder, split, batches)
                ranked.append(rank_embeddings(queries, gallery, split, depth=depth))
    return {kind: tuple(ranked) for kind, ranked in rankings.items()}


def rank_embeddings(
    queries: Float[Tensor, "num_queries *parts dim"],
    gallery: Float[Tensor, "gallery vectors dim"],
    split: Split,
    *,
    depth: int = DEPTH,
) -> Ranking:
    """Return the ranking of a split whose queries and gallery are embedded, by blocks of queries."""
    rows = max(1, SCORES_PER_BLOCK // len(gallery))
    return rank_blocks((similarity(block, gallery) for block in queries.split(rows)), split, depth=depth)


@dataclass(frozen=True, slots=True)
class _Batches:
    """Goes over a split's images or queries in batches, tells the progress and counts what comes back."""

    split: Split
    batch_size: int
    progress: Progress | None

    def embed(self, what: str, count: int, embed: Callable[[slice], Tensor]) -> Tensor:
        embeddings = None
        for start in range(0, count, self.batch_size):
            stop = min(start + self.batch_size, count)
            part = embed(slice(start, stop))
            if len(part) != stop - start:
                raise ComposirError(
                    f"the model gave {len(part)} embeddings for {stop - start} {what}",
                    file=describe(self.split),
                    expected="one each: no image and no query may be dropped",
                )
            if embeddings is None:  # the whole at once: parts and their whole would take twice the memory
                embeddings = part.new_empty((count, *part.shape[1:]))
            embeddings[start:stop] = part
            if self.progress is not None:
                self.progress(f"{describe(self.split)}: {what}", stop, count)
        assert embeddings is not None  # a split has at least one query and one image
        return embeddings


def _embed_gallery(embedder: Embedder, split: Split, batches: _Batches) -> Tensor:
    paths = split.gallery_sources
    return batches.embed("gallery images", len(paths), lambda part: embedder.embed_gallery(paths[part]))


def _embed_composed(embedder: Embedder, split: Split, batches: _Batches) -> Tensor:
    asked = [(split.images[name], query.text) for query in split.queries for name in query.references]
    paths, texts = [path for path, _ in asked], [text for _, text in asked]
    embeddings = batches.embed("queries", len(paths), lambda part: embedder.embed_queries(paths[part], texts[part]))
    return _mean_over_references(embeddings, split)


def _embed_image_only(embedder: Embedder, split: Split, batches: _Batches) -> Tensor:
    references = [name for query in split.queries for name in query.references]
    names = list(dict.fromkeys(references))  # each reference once: without a sentence its queries are one
    paths = [split.images[name] for name in names]
    embeddings = batches.embed(
        "references alone",
        len(paths),
        lambda part: embedder.embed_queries(paths[part], [""] * len(paths[part])),
    )
    place_by_name = {name: place for place, name in enumerate(names)}
    return _mean_over_references(embeddings[[place_by_name[reference] for reference in references]], split)


def _mean_over_references(
    embeddings: Float[Tensor, "asked *parts dim"], split: Split
) -> Float[Tensor, "num_queries *parts dim"]:
    """Return every query's embedding, given one for each of its references, query after query.

    The mean of several is not normalised: how long a query's embedding is does not change its ranking.
    """
    if not any(query.further_references for query in split.queries):
        return embeddings
    own = embeddings.split([len(query.references) for query in split.queries])
    return torch.stack([rows.float().mean(dim=0) for rows in own])


def _embed_text_only(embedder: Embedder, split: Split, batches: _Batches) -> Tensor:
    texts = [query.text for query in split.queries]
    gallery = split.gallery_sources
    return batches.embed("sentences alone", len(texts), lambda part: embedder.embed_text_only(texts[part], gallery))


_QUERY_EMBEDDINGS: dict[str, Callable[[Embedder, Split, _Batches], Tensor]] = {
    COMPOSED: _embed_composed,
    IMAGE_ONLY: _embed_image_only,
    TEXT_ONLY: _embed_text_only,
}
