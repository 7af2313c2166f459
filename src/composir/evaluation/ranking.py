"""The one ranking: float32, ties broken pessimistically and the same way every time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from torch import Tensor

from composir.data.triplets import Query, Split
from composir.errors import ComposirError, Problem, ProblemsError

DEPTH = 50
"""How many gallery images a ranking keeps: the largest K of every data set, and what the test servers take."""
PADDING = -1
"""Stands in ``Ranking.top`` where the gallery holds no further image."""
KEYS_PER_BLOCK = 2**22
"""Sort keys held at once: 32 MB."""

_EXCLUDED = torch.iinfo(torch.int64).min
_PLACE_BITS = 30
_NEGATIVE, _OTHER, _FURTHER_TARGET, _ANNOTATED_TARGET = 3, 2, 1, 0
_NO_IMAGE = -2


@dataclass(frozen=True, slots=True, eq=False)
class Ranking:
    """The best gallery images of every query of a split, and the order of its subset members."""

    split: Split
    top: Int64[np.ndarray, "num_queries depth"]
    """Places in ``split.gallery``, best first; ``PADDING`` once the query's candidates are exhausted."""
    scores: Float32[np.ndarray, "num_queries depth"]
    """The similarities of ``top``; minus infinity where ``top`` is padded, NaN where they are not known."""
    target_ranks: Int64[np.ndarray, " num_queries"]
    """The rank of the annotated target among all candidates, 1 for the best; 0 where there is none or it is not known:
    a target that is taken out with the reference and so is never found, a hidden answer, or a file of predictions
    that does not hold the target."""
    subset: tuple[tuple[str, ...], ...]
    """Every query's subset members by name, best first; empty where the query has none or they are not known."""
    right_ranks: Int64[np.ndarray, "num_queries num_right"] | None = None
    """The rank of every right answer, in the order of ``Query.targets``, 0 as in ``target_ranks`` and behind the last;
    None but where all queries have galleries of their own, which are small enough to be ranked whole."""


def rank(similarity: Float[Tensor, "num_queries gallery"], split: Split, *, depth: int = DEPTH) -> Ranking:
    """Return the ``depth`` best images of every query and the order of its subset members.

    ``similarity`` has a row per ``split.queries`` and a column per ``split.gallery``; it is read as float32.
    The references are left out where ``split.exclude_reference`` says so, and so are images outside the query's
    own gallery where it has one. Images with equal scores come in
    the order of the gallery, except that explicit negatives come first, right answers after all others, the annotated
    one last:
    a scorer that cannot tell images apart never profits from their order.

    Raises ``ComposirError`` where a score is NaN or the shape is not the split's, and what
    ``check_gallery`` raises.
    """
    return rank_blocks([similarity], split, depth=depth)


def rank_blocks(blocks: Iterable[Float[Tensor, "_ gallery"]], split: Split, *, depth: int = DEPTH) -> Ranking:
    """Return what ``rank`` does for the similarity whose rows come in ``blocks``, in the queries' order.

    Only one block is held at a time, so a gallery may be larger than the whole matrix would allow.
    """
    check_gallery(split)
    place_by_name = {name: place for place, name in enumerate(split.gallery)}
    rows_per_block = max(1, KEYS_PER_BLOCK // len(split.gallery))
    top, scores, target_ranks, subset, right_ranks = [], [], [], [], []
    has_own_galleries = all(query.gallery for query in split.queries)
    num_ranked = 0
    for block in blocks:
        for rows in block.float().cpu().split(rows_per_block):  # a GPU is waited for once a block
            queries = split.queries[num_ranked : num_ranked + len(rows)]
            _check_rows(rows, queries, split)
            keys = _sort_keys(rows, queries, place_by_name, exclude_reference=split.exclude_reference)
            block_top, block_scores = _take_top(keys, rows, depth)
            top.append(block_top)
            scores.append(block_scores)
            target_ranks.extend(_rank_targets(keys, queries, place_by_name))
            subset.extend(_order_subsets(keys, queries, place_by_name))
            if has_own_galleries:
                right_ranks.extend(_rank_right_answers(keys, queries, place_by_name))
            num_ranked += len(rows)
    if num_ranked != len(split.queries):
        raise _shape_error(f"{num_ranked} rows", split)
    return Ranking(
        split,
        top=torch.cat(top).numpy(),
        scores=torch.cat(scores).numpy(),
        target_ranks=np.array(target_ranks, dtype=np.int64),
        subset=tuple(subset),
        right_ranks=pad_ranks(right_ranks) if has_own_galleries else None,
    )


def select(ranking: Ranking, chosen: Bool[np.ndarray, " num_queries"]) -> Ranking:
    """Return the ranking of the chosen queries alone, of which there must be one."""
    queries = tuple(query for query, keep in zip(ranking.split.queries, chosen, strict=True) if keep)
    return Ranking(
        replace(ranking.split, queries=queries),
        top=ranking.top[chosen],
        scores=ranking.scores[chosen],
        target_ranks=ranking.target_ranks[chosen],
        subset=tuple(order for order, keep in zip(ranking.subset, chosen, strict=True) if keep),
        right_ranks=None if ranking.right_ranks is None else ranking.right_ranks[chosen],
    )


def pad_ranks(rows: Sequence[Sequence[int]]) -> Int64[np.ndarray, "num_queries num_right"]:
    """Return ranks of right answers as ``Ranking.right_ranks`` holds them."""
    padded = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, ranks in enumerate(rows):
        padded[row, : len(ranks)] = ranks
    return padded


def hits(ranking: Ranking, *, annotated_only: bool = False) -> Bool[np.ndarray, "num_queries depth"]:
    """Return which images of ``top`` are right answers; with ``annotated_only`` the annotated target alone."""
    queries = ranking.split.queries
    return _among(ranking, [query.targets[:1] if annotated_only else query.targets for query in queries])


def negatives(ranking: Ranking) -> Bool[np.ndarray, "num_queries depth"]:
    """Return which images of ``top`` are explicit negatives of their query."""
    return _among(ranking, [query.negatives for query in ranking.split.queries])


def _among(ranking: Ranking, wanted: Sequence[Sequence[str]]) -> Bool[np.ndarray, "num_queries depth"]:
    """Return which images of ``top`` are among those ``wanted`` of their query."""
    place_by_name = {name: place for place, name in enumerate(ranking.split.gallery)}
    found = np.zeros(ranking.top.shape, bool)
    for number in range(max(map(len, wanted), default=0)):
        places = np.array([place_by_name[names[number]] if number < len(names) else _NO_IMAGE for names in wanted])
        found |= ranking.top == places[:, None]
    return found


def first_ranks(hits: Bool[np.ndarray, "num_queries depth"]) -> Int64[np.ndarray, " num_queries"]:
    """Return the rank of every query's first hit, 1 for the best, 0 where there is none."""
    if not hits.shape[1]:
        return np.zeros(len(hits), np.int64)
    return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, 0).astype(np.int64)


def check_gallery(split: Split) -> None:
    """Raise ``ProblemsError`` naming what a query has outside the gallery: candidates, targets, others.

    A split without queries or without a gallery is a ``ComposirError``.
    """
    if not split.queries or not split.gallery:
        raise ComposirError(
            f"{len(split.queries)} queries and {len(split.gallery)} gallery images",
            file=describe(split),
            expected="at least one of each",
            fix=f"run `composir data check --dataset {split.dataset}`",
        )
    gallery = set(split.gallery)
    problems = []
    for query in split.queries:
        own = set(query.gallery)
        roles = (("candidate", query.gallery, gallery), ("target", query.targets, own or gallery))
        roles += (("negative", query.negatives, own or gallery), ("subset member", query.subset, own or gallery))
        for role, names, known in roles:
            problems += [
                Problem(
                    file=describe(split),
                    where=f"query {query.id}",
                    message=f"{role} {name!r} is not among the {len(known)} images of the gallery",
                    fix=f"run `composir data check --dataset {split.dataset}` and complete the split file",
                )
                for name in names
                if name not in known
            ]
    if problems:
        raise ProblemsError(problems)


def describe(split: Split) -> str:
    """Return the split's name for messages, such as ``FashionIQ val dress``."""
    return " ".join(part for part in (split.dataset, split.name, split.category) if part)


def _sort_keys(
    rows: Float32[Tensor, "block gallery"],
    queries: tuple[Query, ...],
    place_by_name: dict[str, int],
    *,
    exclude_reference: bool,
) -> Int64[Tensor, "block gallery"]:
    """Return one unique integer per image, larger for better: the score, then the role, then the place."""
    num_images = rows.shape[1]
    bits = (rows + 0.0).view(torch.int32)  # adding zero turns -0.0 into 0.0, its equal
    ordered = torch.where(bits >= 0, bits, bits ^ 0x7FFFFFFF)  # as integers in the order of the floats
    roles = torch.full(rows.shape, _OTHER)
    for row, query in enumerate(queries):
        for negative in query.negatives:
            roles[row, place_by_name[negative]] = _NEGATIVE
        for target in query.targets[1:]:
            roles[row, place_by_name[target]] = _FURTHER_TARGET
        if query.targets:
            roles[row, place_by_name[query.targets[0]]] = _ANNOTATED_TARGET
    places = torch.arange(num_images - 1, -1, -1)  # earlier in the gallery is larger
    keys = (ordered.long() << 32) + (roles << _PLACE_BITS) + places
    for row, query in enumerate(queries):
        if query.gallery:
            outside = torch.ones(num_images, dtype=torch.bool)
            outside[[place_by_name[name] for name in query.gallery]] = False
            keys[row, outside] = _EXCLUDED
        for reference in query.references if exclude_reference else ():
            if reference in place_by_name:
                keys[row, place_by_name[reference]] = _EXCLUDED
    return keys


def _take_top(
    keys: Int64[Tensor, "block gallery"], rows: Float32[Tensor, "block gallery"], depth: int
) -> tuple[Int64[Tensor, "block depth"], Float32[Tensor, "block depth"]]:
    num_images = keys.shape[1]
    best, places = keys.topk(min(depth, num_images), dim=1)
    scores = rows.gather(1, places)
    exhausted = best == _EXCLUDED
    top = torch.full((len(keys), depth), PADDING)
    top[:, : best.shape[1]] = places.masked_fill(exhausted, PADDING)
    padded = torch.full((len(keys), depth), float("-inf"))
    padded[:, : best.shape[1]] = scores.masked_fill(exhausted, float("-inf"))
    return top, padded


def _rank_targets(
    keys: Int64[Tensor, "block gallery"], queries: tuple[Query, ...], place_by_name: dict[str, int]
) -> list[int]:
    """Return the rank of every annotated target among all candidates, 0 for a hidden one or one left out."""
    places = torch.tensor([place_by_name[query.targets[0]] if query.targets else 0 for query in queries]).long()
    target_keys = keys.gather(1, places[:, None])  # (block, 1)
    ranks = (keys > target_keys).sum(dim=1) + 1
    known = torch.tensor([bool(query.targets) for query in queries]).bool() & (target_keys[:, 0] != _EXCLUDED)
    return ranks.where(known, 0).tolist()


def _rank_right_answers(
    keys: Int64[Tensor, "block gallery"], queries: tuple[Query, ...], place_by_name: dict[str, int]
) -> list[list[int]]:
    """Return the rank of every right answer among the query's own gallery, 0 for one that is left out."""
    ranked = []
    for row, query in enumerate(queries):
        own = keys[row, [place_by_name[name] for name in query.gallery]]
        right = keys[row, [place_by_name[name] for name in query.targets]]
        ranks = (own[:, None] > right).sum(dim=0) + 1
        ranked.append(ranks.where(right != _EXCLUDED, 0).tolist())
    return ranked


def _order_subsets(
    keys: Int64[Tensor, "block gallery"], queries: tuple[Query, ...], place_by_name: dict[str, int]
) -> list[tuple[str, ...]]:
    ordered = []
    for row, query in enumerate(queries):
        members = keys[row, [place_by_name[name] for name in query.subset]].tolist()
        key_by_name = dict(zip(query.subset, members, strict=True))
        ordered.append(tuple(sorted(key_by_name, key=key_by_name.__getitem__, reverse=True)))
    return ordered


def _check_rows(rows: Float32[Tensor, "block gallery"], queries: tuple[Query, ...], split: Split) -> None:
    if rows.shape[1] != len(split.gallery):
        raise _shape_error(f"{rows.shape[1]} columns", split)
    if len(rows) != len(queries):
        raise _shape_error("more rows", split)
    broken = rows.isnan().any(dim=1).tolist()
    if any(broken):
        first = queries[broken.index(True)]
        raise ComposirError(
            f"the similarity of query {first.id} is not a number (NaN)",
            file=describe(split),
            expected="a finite score for every image of the gallery",
            fix="check the model's weights: a training run that diverged gives NaN",
        )


def _shape_error(got: str, split: Split) -> ComposirError:
    return ComposirError(
        f"the similarity has {got}",
        file=describe(split),
        expected=f"a row for each of {len(split.queries)} queries and a column for each of {len(split.gallery)} images",
        fix="embed every query and every gallery image of this split once, in the split's order",
    )
