"""A second look at the best candidates: scores of pairs, one by one, instead of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from composir.data.images import ImageSource
from composir.data.triplets import Query, Split
from composir.errors import ComposirError
from composir.evaluation.metrics import averages, per_query, protocol_of
from composir.evaluation.ranking import DEPTH, PADDING, Ranking, describe, first_ranks, hits
from composir.evaluation.result import COMPOSED, IMAGE_ONLY, TEXT_ONLY, Rerank
from composir.progress import Progress

Question = tuple[str, str]
"""The reference's name, "" for none, and the sentence."""


@runtime_checkable
class Matcher(Protocol):
    """What re-ranking asks of a model: the score of each reference and sentence with each candidate."""

    def match(
        self,
        references: Sequence[ImageSource | None],
        texts: Sequence[str],
        candidates: Sequence[ImageSource],
        gallery: Sequence[ImageSource],
    ) -> Float[Tensor, " pairs"]:
        """Return one score a pair, higher for better; a reference ``None`` is no picture (``embed_text_only``)."""
        ...


def before_reranking(rankings: Sequence[Ranking], num_candidates: int) -> Rerank:
    """Return what re-ranking starts from: the composed rankings of every category, as they are."""
    reachable = {}
    for ranking in rankings:
        right = hits(ranking, annotated_only=not protocol_of(ranking.split.dataset).any_target)
        found = first_ranks(right[:, :num_candidates]) > 0
        reachable[ranking.split.category] = {"ceiling": found.astype(np.float64)}
    values = {ranking.split.category: per_query(_cut(ranking)) for ranking in rankings}
    return Rerank(num_candidates, averages(reachable)["ceiling"], averages(values))


def rerank(
    rankings: Mapping[str, Sequence[Ranking]],
    matcher: Matcher,
    num_candidates: int,
    *,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> dict[str, tuple[Ranking, ...]]:
    """Return the rankings of every kind with each query's best ``num_candidates`` in the order of their new scores.

    Subset members are ordered by new scores, too. Images behind the candidates keep their places, their scores are
    not known (NaN). Where a question comes more than once (the picture alone, a subset member among the best), its
    pairs are scored once. Ties are pessimistic, as in ``rank``. Raises ``ComposirError`` for a score that is NaN.
    """
    return {
        kind: tuple(_rerank(kind, ranking, matcher, num_candidates, batch_size, progress) for ranking in ranked)
        for kind, ranked in rankings.items()
    }


def _rerank(  # noqa: PLR0917
    kind: str, ranking: Ranking, matcher: Matcher, num_candidates: int, batch_size: int, progress: Progress | None
) -> Ranking:
    split = ranking.split
    place_by_name = {name: place for place, name in enumerate(split.gallery)}
    questions = [_QUESTIONS[kind](query) for query in split.queries]
    asked: dict[Question, dict[int, None]] = {}  # places by question, in order, each once
    for question, top, query in zip(questions, ranking.top[:, :num_candidates], split.queries, strict=True):
        places = asked.setdefault(question, {})
        places.update(dict.fromkeys(int(place) for place in top if place != PADDING))
        places.update(dict.fromkeys(place_by_name[name] for name in query.subset))
    scores = _score(split, kind, asked, matcher, batch_size, progress)

    new_top, new_scores = ranking.top.copy(), np.full(ranking.top.shape, np.nan, np.float32)
    new_scores[new_top == PADDING] = -np.inf
    target_ranks, subsets = ranking.target_ranks.copy(), []
    right_ranks = None if ranking.right_ranks is None else ranking.right_ranks.copy()
    for row, (question, query) in enumerate(zip(questions, split.queries, strict=True)):
        known = scores[question]
        role_by_place = {place_by_name[name]: -1 for name in query.negatives}  # before others, right answers after
        role_by_place |= {place_by_name[name]: 1 for name in query.targets}
        if query.targets:
            role_by_place[place_by_name[query.targets[0]]] = 2

        def key(place: int, known: dict[int, float] = known, roles: dict[int, int] = role_by_place) -> tuple:
            return -known[place], roles.get(place, 0), place

        best = sorted((int(place) for place in new_top[row, :num_candidates] if place != PADDING), key=key)
        new_top[row, : len(best)] = best
        new_scores[row, : len(best)] = [known[place] for place in best]
        if query.targets and place_by_name[query.targets[0]] in best:
            target_ranks[row] = best.index(place_by_name[query.targets[0]]) + 1
        if right_ranks is not None:
            for number, name in enumerate(query.targets):
                if place_by_name[name] in best:
                    right_ranks[row, number] = best.index(place_by_name[name]) + 1
        members = sorted((place_by_name[name] for name in query.subset), key=key)
        subsets.append(tuple(split.gallery[place] for place in members))
    return _cut(Ranking(split, new_top, new_scores, target_ranks, tuple(subsets), right_ranks))


def _score(  # noqa: PLR0917
    split: Split,
    kind: str,
    asked: Mapping[Question, Mapping[int, None]],
    matcher: Matcher,
    batch_size: int,
    progress: Progress | None,
) -> dict[Question, dict[int, float]]:
    total, done = sum(map(len, asked.values())), 0
    scores: dict[Question, dict[int, float]] = {question: {} for question in asked}
    pairs: Iterator[tuple[Question, int]] = (
        (question, place) for question, places in asked.items() for place in places
    )
    gallery = split.gallery_sources
    while batch := list(islice(pairs, batch_size)):
        found = matcher.match(
            [split.images[reference] if reference else None for (reference, _), _ in batch],
            [text for (_, text), _ in batch],
            [gallery[place] for _, place in batch],
            gallery,
        ).float()
        if len(found) != len(batch) or found.isnan().any():
            raise ComposirError(
                f"the model gave {len(found)} scores for {len(batch)} pairs, {int(found.isnan().sum())} not a number",
                file=describe(split),
                expected="a finite score for every pair",
                fix="check the model's weights: a training run that diverged gives NaN",
            )
        for (question, place), score in zip(batch, found.tolist(), strict=True):
            scores[question][place] = score
        done += len(batch)
        if progress is not None:
            progress(f"{describe(split)}: pairs, {kind.replace('_', ' ')}", done, total)
    return scores


def _composed(query: Query) -> Question:
    return query.reference, query.text


def _image_only(query: Query) -> Question:
    return query.reference, ""


def _text_only(query: Query) -> Question:
    return "", query.text


_QUESTIONS: dict[str, Callable[[Query], Question]] = {
    COMPOSED: _composed,
    IMAGE_ONLY: _image_only,
    TEXT_ONLY: _text_only,
}


def _cut(ranking: Ranking) -> Ranking:
    """Return the ranking with no more than ``DEPTH`` images a query."""
    return replace(ranking, top=ranking.top[:, :DEPTH], scores=ranking.scores[:, :DEPTH])
