"""What takes how long and how much memory: each part in a process of its own, compared within one run."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from composir.data import Query, Split
from composir.evaluation import averages, intervals, per_query, protocol_of, rank_embeddings
from composir.machine import describe_machine, peak_memory
from composir.scoring import similarity
from composir.search import INDEXES, Index, Table, merge_vectors
from composir.search.faiss import recall
from composir.search.measure import IMAGES_A_BLOCK, queries_near, synthetic_blocks
from composir.search.table import writing

CIRCO_GALLERY, CIRCO_QUERIES = 123_403, 1_000
CIRR_GALLERY, CIRR_QUERIES = 2_297, 4_181
NUM_VECTORS, DIM = 32, 256
"""Target embeddings of the published model."""
PUBLISHED_BATCH = 32
NUM_NAMES_IN_SUBSET = 5
NUM_RESAMPLES = 1_000
ROWS_PER_BLOCK = 4_096
SEARCH_QUERIES, SEARCH_TOP_K, NUM_WARM_UP = 100, 10, 10

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Measured:
    """One repetition of one part."""

    seconds: float
    peak_memory_bytes: int
    """The largest resident size of the process that did nothing else, the interpreter and its inputs included."""


def benchmark_evaluate(
    *, num_queries: int = CIRCO_QUERIES, num_gallery: int = CIRCO_GALLERY, repeats: int = 3, scale: float = 1.0
) -> dict[str, Any]:
    """Return seconds, memory and ratios of scoring synthetic embeddings, as ``composir benchmark evaluate`` prints.

    - ``circo``: similarity and ranking of ``num_queries`` against ``num_gallery`` targets of 32 x 256 in fp16.
    - ``cirr`` and ``cirr_published_way``: a split of CIRR val's size here, and as published evaluation code does it
      (SPRC, CLIP4Cir): one broadcast product over 4-D tensors a batch of 32 queries, then every query's whole
      ranking sorted as an array of names. Ratios above 1 are in favour of this package.
    - ``bootstrap`` and ``bootstrap_loop``: 1,000 resamples of CIRR val's figures, at once and one after the other.

    ``scale`` makes the CIRR-size parts smaller, for tests. Embeddings are random: no model and no data is needed.
    """
    cirr = (max(4, int(CIRR_QUERIES * scale)), max(60, int(CIRR_GALLERY * scale)))
    parts: dict[str, tuple[Callable[..., float], tuple[int, ...]]] = {
        "circo": (_score, (num_queries, num_gallery)),
        "cirr": (_score, cirr),
        "cirr_published_way": (_score_the_published_way, cirr),
        "bootstrap": (_bootstrap, (cirr[0],)),
        "bootstrap_loop": (_bootstrap_by_a_loop, (cirr[0],)),
    }
    runs = {name: [_alone(work, *sizes) for _ in range(repeats)] for name, (work, sizes) in parts.items()}
    seconds = {name: median(run.seconds for run in measured) for name, measured in runs.items()}
    memory = {name: max(run.peak_memory_bytes for run in measured) for name, measured in runs.items()}
    return {
        "ratios": {
            "cirr_published_way_over_cirr": seconds["cirr_published_way"] / seconds["cirr"],
            "cirr_published_way_over_cirr_memory": memory["cirr_published_way"] / memory["cirr"],
            "bootstrap_loop_over_bootstrap": seconds["bootstrap_loop"] / seconds["bootstrap"],
        },
        "seconds": {name: [round(run.seconds, 4) for run in measured] for name, measured in runs.items()},
        "peak_memory_bytes": memory,
        "sizes": {name: list(sizes) for name, (_, sizes) in parts.items()},
        "machine": describe_machine(),
    }


def _alone(work: Callable[..., float], *arguments: int) -> Measured:
    """Return what ``work``, which gives its seconds, takes in a fresh process."""
    return Measured(*_in_fresh_process(work, *arguments))


def _in_fresh_process(work: Callable[..., Answer], *arguments: Any) -> tuple[Answer, int]:
    """Return what ``work`` returns in a process that does nothing else, and that process's peak memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, work, *arguments).result()


def _with_peak(work: Callable[..., Answer], *arguments: Any) -> tuple[Answer, int]:
    return work(*arguments), peak_memory()


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


# -- search ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SearchCase:
    """An engine over so many images of so many vectors."""

    backend: str
    num_images: int
    vectors_per_image: int
    url: str | None = None

    def __str__(self) -> str:
        return f"{self.backend} {self.num_images}x{self.vectors_per_image}"


def benchmark_search(
    *,
    images: Sequence[int] = (10_000,),
    backends: Sequence[str] = tuple(INDEXES),
    vectors_per_image: Sequence[int] = (NUM_VECTORS,),
    url: str | None = None,
    num_queries: int = SEARCH_QUERIES,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Return seconds, memory, disk and recall of every engine, as ``composir benchmark search`` prints them.

    The embeddings are those of ``composir.search.measure``: 32 x 256 an image, near copies of each other, merged to
    ``vectors_per_image``. By case, such as ``faiss 10000x32``:

    - ``seconds``: ``build`` (once; merging and the first ``save`` included), ``alone`` (every query by itself, after
      a warm-up of ten) and ``batch`` (all queries at once, a query's share);
    - ``latency_ms``: ``p50``, ``p99`` and ``batch`` of these;
    - ``recall_at_10`` against the exact answer over all 32 vectors; ``disk_bytes``; ``peak_memory_bytes`` of the
      process that builds and of the one that searches, memory-mapped pages included.
    - ``ratios``: the median time of ``exact`` over that of the others, alone, at the same size.
    """
    cases = [
        SearchCase(backend, count, vectors, url if backend == "qdrant" else None)
        for count in images
        for vectors in vectors_per_image
        for backend in backends
    ]
    report: dict[str, dict[str, Any]] = {
        name: {} for name in ("ratios", "seconds", "peak_memory_bytes", "latency_ms", "recall_at_10", "disk_bytes")
    }
    for number, case in enumerate(cases):
        if progress is not None:
            progress(f"search: {case}", number, len(cases))
        with tempfile.TemporaryDirectory(prefix="composir-benchmark-") as name:
            folder = Path(name)
            build, memory = _in_fresh_process(_build_index, case, folder, num_queries)
            (alone, batch, recalled), search_memory = _in_fresh_process(_search_index, case, folder)
            disk = sum(file.stat().st_size for file in (folder / "index").rglob("*") if file.is_file())
        key = str(case)
        report["seconds"] |= {f"{key} build": [build], f"{key} alone": alone, f"{key} batch": [batch]}
        report["peak_memory_bytes"] |= {f"{key} build": memory, f"{key} alone": search_memory}
        p50, p99 = np.quantile(alone, (0.5, 0.99)).tolist()
        report["latency_ms"][key] = {"p50": 1000 * p50, "p99": 1000 * p99, "batch": 1000 * batch}
        report["recall_at_10"][key] = recalled
        report["disk_bytes"][key] = disk
    for case in cases:
        exact = report["latency_ms"].get(str(replace(case, backend="exact", url=None)))
        if exact and case.backend != "exact":
            report["ratios"][f"exact over {case}"] = exact["p50"] / report["latency_ms"][str(case)]["p50"]
    return {**report, "machine": describe_machine()}


def _open_index(case: SearchCase, folder: Path) -> Index:
    table = Table(folder / "index", num_vectors=case.vectors_per_image, dim=DIM)
    return INDEXES[case.backend](table, {"collection": f"composir-benchmark-{case.num_images}", "url": case.url})


def _build_index(case: SearchCase, folder: Path, num_queries: int) -> float:
    """Return the seconds of building the index in ``folder``; leave queries and true answers beside it."""
    num_blocks = sum(1 for _ in range(0, case.num_images, IMAGES_A_BLOCK))
    counts = np.bincount(np.arange(num_queries) % num_blocks, minlength=num_blocks)
    queries = torch.cat(
        [
            queries_near(block, count, seed=number)
            for number, (block, count) in enumerate(zip(_blocks(case), counts.tolist(), strict=True))
        ]
    )
    scores, rows = torch.empty(num_queries, 0), torch.empty(num_queries, 0, dtype=torch.long)
    seconds, start_row = 0.0, 0
    with writing(folder / "index"), closing(_open_index(case, folder)) as index:
        index.table.recover()
        for block in _blocks(case):
            vectors = torch.from_numpy(block).float()
            places = torch.arange(start_row, start_row + len(block)).expand(num_queries, -1)
            joined = torch.cat([scores, similarity(queries, vectors)], dim=1)
            scores, kept = joined.topk(min(SEARCH_TOP_K, joined.shape[1]))
            rows = torch.cat([rows, places], dim=1).gather(1, kept)
            start = time.perf_counter()
            merged = merge_vectors(vectors, case.vectors_per_image).half().numpy()
            index.add([_image_id(row) for row in range(start_row, start_row + len(block))], merged)
            seconds += time.perf_counter() - start
            start_row += len(block)
        start = time.perf_counter()
        index.save()
        seconds += time.perf_counter() - start
        index.table.close()
    np.savez(folder / "queries.npz", queries=queries.numpy(), rows=rows.numpy())
    return seconds


def _search_index(case: SearchCase, folder: Path) -> tuple[list[float], float, float]:
    """Return the seconds of each query alone, of a query in a batch, and recall@10."""
    with np.load(folder / "queries.npz") as stored:
        queries, rows = torch.from_numpy(stored["queries"]), stored["rows"]
    with closing(_open_index(case, folder)) as index:
        for query in queries[:NUM_WARM_UP]:
            index.search(query[None], SEARCH_TOP_K)
        alone, found = [], []
        for query in queries:
            start = time.perf_counter()
            found += index.search(query[None], SEARCH_TOP_K)
            alone.append(time.perf_counter() - start)
        start = time.perf_counter()
        index.search(queries, SEARCH_TOP_K)
        batch = (time.perf_counter() - start) / len(queries)
        index.table.close()
    return alone, batch, recall(found, [[(_image_id(row), 0.0) for row in best] for best in rows.tolist()])


def _blocks(case: SearchCase) -> Iterator[np.ndarray]:
    return synthetic_blocks(case.num_images, NUM_VECTORS, DIM)


def _image_id(row: int) -> str:
    return f"{row:032x}"
