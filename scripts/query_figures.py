"""What a query costs a model: ``python scripts/query_figures.py INDEX IMAGE``.

Prints processor time of one thread, in milliseconds, medians: of a picture with a sentence where the picture was not
asked by yet, of the same picture with the next sentence, and a query's share of sixteen at once, of new pictures.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from composir import Retriever
from composir.search import SearchQuery

SENTENCES = ("the same in red", "but with a dog", "two of them on a white background", "without the tree")
BATCH = 16


def _milliseconds(retriever: Retriever, queries: Sequence[SearchQuery]) -> float:
    start = time.process_time()
    retriever.search_many(queries)
    return 1000 * (time.process_time() - start) / len(queries)


def main() -> None:
    """Print a line for each kind of query."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    times: dict[str, list[float]] = {}
    with Retriever(options.index) as retriever, Image.open(options.image) as opened:
        whole = opened.convert("RGB")
        # Each a picture of its own, made small as a server makes it before it waits.
        crops = (
            retriever.prepare(whole.crop((number, 0, *whole.size)))
            for number in range((BATCH + 1) * options.repeats + len(SENTENCES))
        )
        for sentence in SENTENCES:
            retriever.search(next(crops), sentence)
        for _ in range(options.repeats):
            own = next(crops)
            for turn, sentence in enumerate(SENTENCES):
                name = "refined" if turn else "first"
                times.setdefault(name, []).append(_milliseconds(retriever, [SearchQuery((own,), sentence)]))
            many = [SearchQuery((next(crops),), SENTENCES[row % len(SENTENCES)]) for row in range(BATCH)]
            times.setdefault("of sixteen", []).append(_milliseconds(retriever, many))
    for name, taken in times.items():
        sys.stdout.write(f"{name}: {statistics.median(taken):.1f} ({min(taken):.1f} to {max(taken):.1f})\n")


if __name__ == "__main__":
    main()
