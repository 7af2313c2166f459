"""What a search of 100,000 pictures takes, with and without a path filter: ``python scripts/search_figures.py FOLDER``.

An index of made-up vectors (8 x 256 an image) is kept in FOLDER, which is filled if it is empty. Prints processor time
of one thread, in milliseconds, medians: a search alone, with a pattern that was not asked for yet (``first``) and with
one that was (``again``), for patterns that leave all pictures, half of them and one in a hundred.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from composir.benchmark.synthetic import queries_near, synthetic_blocks
from composir.search import INDEXES, Table, content_id
from composir.search.table import FileRecord, writing

NUM_IMAGES, NUM_VECTORS, DIM = 100_000, 8, 256
PATTERNS = {"all": "*", "half": "?[02468]/*", "one in 100": "42/*"}
"""``**`` before a pattern means the same and is another pattern."""


def _fill(folder: Path) -> None:
    with writing(folder), closing(Table(folder, num_vectors=NUM_VECTORS, dim=DIM)) as table:
        table.recover()
        row = 0
        for block in synthetic_blocks(NUM_IMAGES, NUM_VECTORS, DIM):
            ids = [content_id(str(number).encode()) for number in range(row, row + len(block))]
            table.append(ids, block)
            paths = [f"{number % 100:02}/{number:06}.png" for number in range(row, row + len(block))]
            table.put_files(FileRecord(path, one, 1, 1, 1) for path, one in zip(paths, ids, strict=True))
            row += len(block)
        table.commit(complete=True)


def _milliseconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--backend", default="exact", choices=["exact", "faiss"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warm", action="store_true", help="keep the vectors as float32, as a server does")
    options = parser.parse_args()
    if not (options.folder / "images.sqlite").exists():
        _fill(options.folder)
    with closing(Table(options.folder, num_vectors=NUM_VECTORS, dim=DIM)) as table:
        index = INDEXES[options.backend](table, {})
        if options.backend == "faiss":
            with writing(options.folder):
                index.save()
        if options.warm:
            sys.stdout.write(f"warm: {_milliseconds(index.warm):.1f}\n")
        many = queries_near(next(synthetic_blocks(NUM_IMAGES, NUM_VECTORS, DIM)), 16)
        query = many[:1]
        sys.stdout.write(f"first search: {_milliseconds(lambda: index.search(query, 10)):.1f}\n")
        times: dict[str, list[float]] = {}
        for turn in range(options.repeats):
            times.setdefault("alone", []).append(_milliseconds(lambda: index.search(query, 10)))
            times.setdefault("16 at once", []).append(_milliseconds(lambda: index.search(many, 10)))
            for name, pattern in PATTERNS.items():
                where = "*" * turn + pattern
                for call in ("first", "again"):
                    taken = _milliseconds(lambda where=where: index.search(query, 10, where=where))
                    times.setdefault(f"{name}, {call}", []).append(taken)
        for name, taken in times.items():
            sys.stdout.write(f"{name}: {statistics.median(taken):.1f} ({min(taken):.1f} to {max(taken):.1f})\n")


if __name__ == "__main__":
    main()
