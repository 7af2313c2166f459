"""Scoring of synthetic embeddings: this package beside the published way."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from composir.benchmark.processes import alone
from composir.benchmark.sizes import DIM, NUM_VECTORS
from composir.data import Query, Split
from composir.evaluation import averages, intervals, per_query, protocol_of, rank_embeddings
from composir.machine import describe_machine

CIRCO_GALLERY, CIRCO_QUERIES = 123_403, 1_000
CIRR_GALLERY, CIRR_QUERIES = 2_297, 4_181
PUBLISHED_BATCH = 32
NUM_NAMES_IN_SUBSET = 5
NUM_RESAMPLES = 1_000
ROWS_PER_BLOCK = 4_096


def benchmark_evaluate(
    *, num_queries: int = CIRCO_QUERIES, num_gallery: int = CIRCO_GALLERY, repeats: int = 3, scale: float = 1.0
) -> dict[str, Any]:
    """Return seconds, memory and ratios of scoring synthetic embeddings, as ``composir benchmark evaluate`` prints.

    - ``circo``: similarity and ranking of ``num_queries`` against ``num_gallery`` targets of 32 x 256 in fp16.
    - ``cirr`` and ``cirr_published_way``: a split of CIRR val's size here, and as published evaluation code does it
      (SPRC, CLIP4Cir): one broadcast product over 4-D tensors a batch of 32 queries, then every query's whole
      ranking sorted as an array of names. Ratios above 1 are in favour of this package.
    - ``bootstrap`` and ``bootstrap_loop``: 1,000 resamples of CIRR val's figures, at once and one after the other.
    - ``idle``: a process that has loaded what all need and does nothing; the ratio of memory is of what comes on top.

    ``scale`` makes the CIRR-size parts smaller, for tests. Embeddings are random: no model and no data is needed.
    """
    cirr = (max(4, int(CIRR_QUERIES * scale)), max(60, int(CIRR_GALLERY * scale)))
    parts: dict[str, tuple[Callable[..., float], tuple[int, ...]]] = {
        "circo": (_score, (num_queries, num_gallery)),
        "cirr": (_score, cirr),
        "cirr_published_way": (_score_the_published_way, cirr),
        "bootstrap": (_bootstrap, (cirr[0],)),
        "bootstrap_loop": (_bootstrap_by_a_loop, (cirr[0],)),
        "idle": (_idle, ()),
    }
    runs = {name: [alone(work, *sizes) for _ in range(repeats)] for name, (work, sizes) in parts.items()}
    seconds = {name: median(run.seconds for run in measured) for name, measured in runs.items()}
    memory = {name: max(run.peak_memory_bytes for run in measured) for name, measured in runs.items()}
    return {
        "ratios": {
            "cirr_published_way_over_cirr": seconds["cirr_published_way"] / seconds["cirr"],
            "cirr_published_way_over_cirr_memory": (memory["cirr_published_way"] - memory["idle"])
            / max(memory["cirr"] - memory["idle"], 1),
            "bootstrap_loop_over_bootstrap": seconds["bootstrap_loop"] / seconds["bootstrap"],
        },
        "seconds": {name: [round(run.seconds, 4) for run in measured] for name, measured in runs.items()},
        "peak_memory_bytes": memory,
        "sizes": {name: list(sizes) for name, (_, sizes) in parts.items()},
        "machine": describe_machine(),
    }


def _embeddings(num_queries: int, num_gallery: int) -> tuple[Tensor, Tensor]:
    """Return random L2-normalised queries (num_queries, dim) and targets (num_gallery, vectors, dim), fp16."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.empty(num_gallery, NUM_VECTORS, DIM, dtype=torch.float16)
    for block in targets.split(ROWS_PER_BLOCK):
        block.copy_(normalize(torch.randn(block.shape, generator=generator), dim=-1))
    return normalize(torch.randn(num_queries, DIM, generator=generator), dim=-1), targets


def _split(num_queries: int, num_gallery: int) -> Split:
    """Return a split whose names look like CIRR's."""
    rng = np.random.default_rng(0)
    gallery = tuple(f"dev-{number}-{number % 4}-img{number % 2}" for number in range(num_gallery))
    queries = []
    for number in range(num_queries):
        reference, target, *others = rng.choice(num_gallery, NUM_NAMES_IN_SUBSET + 1, replace=False).tolist()
        subset = tuple(gallery[place] for place in (target, *others))
        queries.append(
            Query(str(number), gallery[reference], "is red", ("is red",), targets=(gallery[target],), subset=subset)
        )
    return Split("CIRR", "val", "", tuple(queries), gallery, {}, "original", True, "as annotated")


def _score(num_queries: int, num_gallery: int) -> float:
    queries, targets = _embeddings(num_queries, num_gallery)
    split = _split(num_queries, num_gallery)
    start = time.perf_counter()
    figures(queries, targets, split)
    return time.perf_counter() - start


def _score_the_published_way(num_queries: int, num_gallery: int) -> float:
    queries, targets = _embeddings(num_queries, num_gallery)
    targets = targets.float()
    split = _split(num_queries, num_gallery)
    start = time.perf_counter()
    published_figures(queries, targets, split)
    return time.perf_counter() - start


def figures(queries: Tensor, targets: Tensor, split: Split) -> dict[str, float]:
    """Return the split's recalls as this package scores it."""
    return averages({"": per_query(rank_embeddings(queries, targets, split))})


def published_figures(queries: Tensor, targets: Tensor, split: Split) -> dict[str, float]:
    """Return CIRR's recalls as published evaluation code computes them; equal to ``figures`` without ties."""
    similarities = []
    for batch in queries.split(PUBLISHED_BATCH):
        products = torch.matmul(batch[:, None, None], targets.permute(0, 2, 1))  # (batch, gallery, 1, vectors)
        similarities.append(products[:, :, 0].max(dim=-1).values)
    order = torch.argsort(1 - torch.vstack(similarities), dim=-1)
    names = np.array(split.gallery)[order.numpy()]  # (queries, gallery)
    num_queries, num_gallery = names.shape
    is_other = names != np.array([query.reference for query in split.queries])[:, None]
    names = names[is_other].reshape(num_queries, num_gallery - 1)
    is_target = names == np.array([query.targets[0] for query in split.queries])[:, None]
    in_subset = (names[:, :, None] == np.array([query.subset for query in split.queries])[:, None]).any(axis=-1)
    is_target_in_subset = is_target[in_subset].reshape(num_queries, -1)
    return {f"recall_at_{k}": float(is_target[:, :k].sum() / num_queries) for k in (1, 5, 10, 50)} | {
        f"recall_subset_at_{k}": float(is_target_in_subset[:, :k].sum() / num_queries) for k in (1, 2, 3)
    }


def _idle() -> float:
    return 0.0


def _bootstrap(num_queries: int) -> float:
    values = _values(num_queries)
    start = time.perf_counter()
    intervals({"": values}, num_resamples=NUM_RESAMPLES)
    return time.perf_counter() - start


def _bootstrap_by_a_loop(num_queries: int) -> float:
    values = np.stack(list(_values(num_queries).values()), axis=1)  # (queries, metrics)
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    means = [values[rng.integers(0, num_queries, num_queries)].mean(axis=0) for _ in range(NUM_RESAMPLES)]
    np.quantile(means, (0.025, 0.975), axis=0)
    return time.perf_counter() - start


def _values(num_queries: int) -> dict[str, np.ndarray]:
    """Return as many figures of every query as CIRR has."""
    rng = np.random.default_rng(0)
    return {key: rng.integers(0, 2, num_queries).astype(np.float64) for key in protocol_of("CIRR").keys}
