"""Every search engine over synthetic galleries: seconds, memory, disk and recall."""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from composir.benchmark.processes import in_fresh_process
from composir.benchmark.sizes import DIM, NUM_VECTORS
from composir.benchmark.synthetic import IMAGES_A_BLOCK, queries_near, synthetic_blocks
from composir.machine import describe_machine
from composir.progress import Progress
from composir.scoring import similarity
from composir.search import INDEXES, Index, Table, merge_vectors
from composir.search.faiss import recall
from composir.search.table import writing

SEARCH_QUERIES, SEARCH_TOP_K, NUM_WARM_UP = 100, 10, 10
BATCH_SIZES, NUM_ROUNDS = (16, 64), 3
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
OF_ALL_ENGINES = ("vectors-", "images.sqlite")
"""How the files begin that each engine is made from."""


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
    batch_sizes: Sequence[int] = BATCH_SIZES,
    num_rounds: int = NUM_ROUNDS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return what every engine takes and finds, as ``composir benchmark search`` prints it.

    The embeddings are those of ``composir.benchmark.synthetic``: 32 x 256 an image, near copies of each other, merged
    to ``vectors_per_image``. By case, such as ``faiss 10000x32``:

    - ``rounds``: of each, ``load`` (how many processes wanted a core in the last minute, before and after: of the
      whole machine, this one included) and ``latency_ms``, by the number of queries that are asked at once: 1, then
      ``batch_sizes``. A query's share of a batch on the wall clock, ``p50``, ``p95`` and ``p99`` over the batches,
      and ``processor``: the median of what the process had of all cores. Ten queries before the first round are not
      counted;
    - ``latency_ms``: the median over the rounds of each of these;
    - ``seconds``: ``build`` (once; merging, writing the vectors, and the engine from them);
    - ``recall_at_10`` against the exact answer over all 32 vectors; ``disk_bytes``; ``peak_memory_bytes`` of the
      process that builds and of the one that searches, memory-mapped pages included.
    - ``ratios``: the median time of ``exact`` over that of the others, a query alone, at the same size.
    """
    cases = [
        SearchCase(backend, count, vectors, url if backend == "qdrant" else None)
        for count in images
        for vectors in vectors_per_image
        for backend in backends
    ]
    report: dict[str, dict[str, Any]] = {
        name: {}
        for name in ("ratios", "seconds", "peak_memory_bytes", "rounds", "latency_ms", "recall_at_10", "disk_bytes")
    }
    sizes = (1, *batch_sizes)
    done = 0
    for (count, vectors), group in groupby(cases, lambda case: (case.num_images, case.vectors_per_image)):
        with tempfile.TemporaryDirectory(prefix="composir-benchmark-") as name:
            folder = Path(name)
            if progress is not None:
                progress(f"vectors: {count}x{vectors}", done, len(cases))
            filling = in_fresh_process(_fill_table, count, vectors, folder, num_queries)
            for case in group:
                if progress is not None:
                    progress(f"search: {case}", done, len(cases))
                _measure(case, folder, filling, report, sizes=sizes, num_rounds=num_rounds)
                done += 1
    for case in cases:
        exact = report["latency_ms"].get(str(replace(case, backend="exact", url=None)))
        if exact and case.backend != "exact":
            report["ratios"][f"exact over {case}"] = exact["1"]["p50"] / report["latency_ms"][str(case)]["1"]["p50"]
    return {**report, "machine": describe_machine()}


def _measure(
    case: SearchCase,
    folder: Path,
    filling: tuple[float, int],
    report: dict[str, dict[str, Any]],
    *,
    sizes: Sequence[int],
    num_rounds: int,
) -> None:
    """Build an engine over the vectors in ``folder`` and ask it; ``filling`` is what these took: seconds and memory."""
    before = _disk(folder)
    seconds, memory = in_fresh_process(_build_engine, case, folder)
    vectors = sum(file.stat().st_size for file in (folder / "index").iterdir() if file.name.startswith(OF_ALL_ENGINES))
    disk = vectors + _disk(folder) - before
    (rounds, recalled), search_memory = in_fresh_process(_search_index, case, folder, sizes, num_rounds)
    key = str(case)
    report["seconds"][f"{key} build"] = [filling[0] + seconds]
    report["peak_memory_bytes"] |= {f"{key} build": max(filling[1], memory), f"{key} search": search_memory}
    report["rounds"][key] = rounds
    report["latency_ms"][key] = {
        size: {name: median(one["latency_ms"][size][name] for one in rounds) for name in figures}
        for size, figures in rounds[0]["latency_ms"].items()
    }
    report["recall_at_10"][key] = recalled
    report["disk_bytes"][key] = disk


def _disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in (folder / "index").rglob("*") if file.is_file())


def _open_index(case: SearchCase, folder: Path) -> Index:
    table = Table(folder / "index", num_vectors=case.vectors_per_image, dim=DIM)
    return INDEXES[case.backend](table, {"collection": f"composir-benchmark-{case.num_images}", "url": case.url})


def _fill_table(num_images: int, vectors_per_image: int, folder: Path, num_queries: int) -> float:
    """Return the seconds of merging and writing all vectors; leave queries and true answers beside them."""
    num_blocks = math.ceil(num_images / IMAGES_A_BLOCK)
    every = math.ceil(num_blocks / num_queries)
    counts = np.bincount(np.arange(num_queries) % len(range(0, num_blocks, every)))
    drawn = synthetic_blocks(num_images, NUM_VECTORS, DIM, every=every)
    queries = torch.cat(
        [
            queries_near(block, count, seed=number)
            for number, (block, count) in enumerate(zip(drawn, counts.tolist(), strict=True))
        ]
    )
    scores, rows = torch.empty(num_queries, 0), torch.empty(num_queries, 0, dtype=torch.long)
    seconds, start_row = 0.0, 0
    with writing(folder / "index"), closing(Table(folder / "index", num_vectors=vectors_per_image, dim=DIM)) as table:
        table.recover()
        for block in synthetic_blocks(num_images, NUM_VECTORS, DIM):
            vectors = torch.from_numpy(block).float()
            places = torch.arange(start_row, start_row + len(block)).expand(num_queries, -1)
            joined = torch.cat([scores, similarity(queries, vectors)], dim=1)
            scores, kept = joined.topk(min(SEARCH_TOP_K, joined.shape[1]))
            rows = torch.cat([rows, places], dim=1).gather(1, kept)
            start = time.perf_counter()
            merged = merge_vectors(vectors, vectors_per_image).half().numpy()
            table.append([_image_id(row) for row in range(start_row, start_row + len(block))], merged)
            seconds += time.perf_counter() - start
            start_row += len(block)
        table.commit(complete=True)
    np.savez(folder / "queries.npz", queries=queries.numpy(), rows=rows.numpy())
    return seconds


def _build_engine(case: SearchCase, folder: Path) -> float:
    """Return the seconds of making an engine from the vectors that are there."""
    with writing(folder / "index"), closing(_open_index(case, folder)) as index:
        index.table.recover()
        start = time.perf_counter()
        index.save()
        seconds = time.perf_counter() - start
        index.table.close()
    return seconds


def _search_index(
    case: SearchCase, folder: Path, sizes: Sequence[int], num_rounds: int
) -> tuple[list[dict[str, Any]], float]:
    """Return the rounds, as ``benchmark_search`` gives them, and recall@10."""
    with np.load(folder / "queries.npz") as stored:
        queries, rows = torch.from_numpy(stored["queries"]), stored["rows"]
    with closing(_open_index(case, folder)) as index:
        for query in queries[:NUM_WARM_UP]:
            index.search(query[None], SEARCH_TOP_K)
        rounds = []
        for _ in range(num_rounds):
            before = os.getloadavg()[0]
            latencies = {str(size): _latencies(index, queries, size) for size in sizes}
            rounds.append({"load": [before, os.getloadavg()[0]], "latency_ms": latencies})
        found = index.search(queries, SEARCH_TOP_K)
        index.table.close()
    return rounds, recall(found, [[(_image_id(row), 0.0) for row in best] for best in rows.tolist()])


def _latencies(index: Index, queries: torch.Tensor, size: int) -> dict[str, float]:
    """Return a query's share in milliseconds, over batches of so many; the last is filled up from the first."""
    wall, processor = [], []
    for start in range(0, len(queries), size):
        asked = queries[torch.arange(start, start + size) % len(queries)]
        begun, used = time.perf_counter(), time.process_time()
        index.search(asked, SEARCH_TOP_K)
        wall.append(1000 * (time.perf_counter() - begun) / size)
        processor.append(1000 * (time.process_time() - used) / size)
    figures = {name: float(np.quantile(wall, share)) for name, share in QUANTILES.items()}
    return figures | {"processor": median(processor)}


def _image_id(row: int) -> str:
    return f"{row:032x}"
