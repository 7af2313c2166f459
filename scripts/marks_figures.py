"""What marking hits is worth on the photo benchmark: marks_figures.py BENCH_DIR INDEX.

BENCH_DIR is that of ``photo_figures.py``. Of every query the first right picture among the first 20 is marked as one to
be more like, the first wrong one as one to be less like, or both. Marked pictures are taken out of the ranking, before
and after alike, so what is scored is the others; a query without such a picture, or without another right one, is left
out, and is the same query on both sides. Intervals are 95 % over resampled queries, of the difference over pairs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from composir import Retriever
from composir.search import SearchQuery

SEEN = 20
"""Answers that a person looks at for one to mark."""
NUM_RESAMPLES = 2000


def ranked(
    retriever: Retriever, query: dict[str, Any], pictures: Path, more: Sequence[str] = (), less: Sequence[str] = ()
) -> list[str]:
    """Return the ids of the first answers: enough that five are left without the marked ones."""
    image = pictures / query["image"] if query["image"] else None
    asked = SearchQuery(
        images=(image,) if image else (),
        text=query["text"] or "",
        top_k=SEEN + 7,
        exclude=(_id(image),) if image else (),
        more=tuple(more),
        less=tuple(less),
    )
    return [hit.id for hit in retriever.search_many([asked])[0]]


def _id(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]


def measure(retriever: Retriever, queries: Sequence[dict[str, Any]], pictures: Path, kinds: Sequence[str]) -> str:
    """Return the number of queries, and R@1 and R@5 before and after marks of these kinds."""
    pairs: list[tuple[int, int]] = []  # places of the first right picture, from 0
    for query in queries:
        right = {_id(pictures / name) for name in query["right"]}
        before = ranked(retriever, query, pictures)
        more = [one for one in before[:SEEN] if one in right][: "more" in kinds]
        less = [one for one in before[:SEEN] if one not in right][: "less" in kinds]
        gone = {*more, *less}
        if len(gone) < len(kinds) or not right - gone:
            continue
        after = ranked(retriever, query, pictures, more, less)
        pairs.append((_place(before, right, gone), _place(after, right, gone)))
    if not pairs:
        return "0 | - | -"
    cells = [f"{len(pairs)}"]
    for k in (1, 5):
        hits = [(one < k, other < k) for one, other in pairs]
        shares = [_interval([100 * pair[side] for pair in hits]) for side in (0, 1)]
        gain = _interval([100 * (other - one) for one, other in hits])
        cells.append(f"R@{k} {shares[0]} -> {shares[1]}, by {gain}")
    return " | ".join(cells)


def _place(ids: Sequence[str], right: Collection[str], gone: Collection[str]) -> int:
    """Return the place of the first right one, from 0, without those that are gone."""
    return next((place for place, one in enumerate(one for one in ids if one not in gone) if one in right), SEEN)


def _interval(values: Sequence[float]) -> str:
    rng = random.Random(0)
    means = sorted(sum(rng.choices(values, k=len(values))) / len(values) for _ in range(NUM_RESAMPLES))
    low, high = means[NUM_RESAMPLES // 40], means[-NUM_RESAMPLES // 40 - 1]
    return f"{sum(values) / len(values):.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    """Print a line for each set of queries and kind of mark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench_dir", type=Path)
    parser.add_argument("index", type=Path)
    args = parser.parse_args()
    bench = json.loads((args.bench_dir / "bench.json").read_text())
    queries = [
        {**query, "right": set(bench["groups"][query["right"]]) - {query["image"]}} for query in bench["queries"]
    ]
    with Retriever(args.index) as retriever:
        for name in dict.fromkeys(query["set"] for query in queries):
            asked = [one for one in queries if one["set"] == name]
            for kinds in (("more",), ("less",), ("more", "less")):
                line = measure(retriever, asked, args.bench_dir / "pictures", kinds)
                sys.stdout.write(f"| {name} | {' and '.join(kinds)} | {line} |\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
