"""Recalls of an index on the photo benchmark: photo_figures.py BENCH_DIR INDEX [--sheet PNG] [--weights].

BENCH_DIR holds pictures/ and bench.json, a gallery with queries whose right answers are known (docs/photos.md). Every
query is asked whole, with its picture alone and with its sentence alone; intervals are 95 % over resampled queries.
``--sheet`` draws ten queries that are no part of it, to be looked at. ``--weights`` prints what picture and sentence
find by the weight of either (docs/search.md), and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from composir import Retriever
from composir.evaluation import Cell, Row, grid
from composir.search import SearchQuery, Sentence

NUM_RESAMPLES = 2000
BATCH = 16
IMAGE_WEIGHTS = (0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 1)
SENTENCE_WEIGHTS = (0.5, 0.75, 1, 1.5, 2, 4)
SHEET = (
    ("windmill", "but a castle"),
    ("/dog.png", "a cat instead of a dog"),
    ("/koala.png", "an elephant"),
    ("hammer", "a screwdriver instead of a hammer"),
    ("apple_red", "but green"),
    ("penguin", "a polar bear in the snow"),
    ("/rose.png", "the same in yellow"),
    (None, "a red car"),
    (None, "a giraffe"),
    (None, "a yellow flower"),
)
"""A piece of the reference's path, or none, and a sentence."""


def ask(
    retriever: Retriever,
    queries: Sequence[dict[str, Any]],
    pictures: Path,
    parts: str,
    *,
    image_weight: float = 0.5,
    weight: float = 1.0,
) -> list[int]:
    """Return for every query the place of its first right picture among the first five; 0 where none is there."""
    names = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in pictures.rglob("*") if path.is_file()}
    name_by_id = {digest[:32]: path.relative_to(pictures).as_posix() for digest, path in names.items()}
    id_by_name = {name: image_id for image_id, name in name_by_id.items()}
    places = []
    for start in range(0, len(queries), BATCH):
        batch = queries[start : start + BATCH]
        asked = {row: _query(query, pictures, parts, id_by_name) for row, query in enumerate(batch)}
        said = {row: one for row, one in asked.items() if one.images or _is_usable(retriever, one.text)}
        if image_weight != 0.5 or weight != 1:
            said = {
                row: replace(one, text="", texts=(Sentence(one.text, weight),), image_weight=image_weight)
                for row, one in said.items()
            }
        answers = dict(zip(said, retriever.search_many(list(said.values())), strict=True))
        for row, query in enumerate(batch):
            found = [name_by_id[hit.id] in query["right"] for hit in answers.get(row, ())]
            places.append(found.index(True) + 1 if any(found) else 0)
    return places


def _query(query: dict[str, Any], pictures: Path, parts: str, id_by_name: dict[str, str]) -> SearchQuery:
    image = query["image"]
    return SearchQuery(
        images=(pictures / image,) if image and "picture" in parts else (),
        text=query["text"] if query["text"] and "sentence" in parts else "",
        top_k=5,
        exclude=(id_by_name[image],) if image else (),
    )


def _is_usable(retriever: Retriever, text: str) -> bool:
    reading = retriever.encoder.read(text)
    return reading is None or reading.is_usable


def recall(places: Sequence[int], k: int) -> str:
    """Return the share of queries that are right among the first ``k``, in percent, with its interval."""
    hits = [0 < place <= k for place in places]
    rng = random.Random(0)
    means = sorted(sum(rng.choices(hits, k=len(hits))) / len(hits) for _ in range(NUM_RESAMPLES))
    low, high = means[NUM_RESAMPLES // 40], means[-NUM_RESAMPLES // 40 - 1]
    return f"{100 * sum(hits) / len(hits):.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def weigh(retriever: Retriever, queries: Sequence[dict[str, Any]], pictures: Path) -> None:
    """Print a line for each weight of the picture, and of the sentence."""
    lines = [(f"image weight {one}", {"image_weight": one}) for one in IMAGE_WEIGHTS]
    lines += [(f"sentence of weight {one}", {"weight": one}) for one in SENTENCE_WEIGHTS]
    for name, moved in lines:
        cells = []
        for kind in dict.fromkeys(one["set"] for one in queries):
            asked = [one for one in queries if one["set"] == kind]
            places = ask(retriever, asked, pictures, "picture and sentence", **moved)
            cells.append(f"{recall(places, 1)} / {recall(places, 5)}")
        sys.stdout.write(f"| {name} | {' | '.join(cells)} |\n")
        sys.stdout.flush()


def sheet(retriever: Retriever, pictures: Path, out: Path) -> None:
    """Draw the ten queries with their first six answers."""
    files = sorted(pictures.rglob("*"))
    rows = []
    for piece, text in SHEET:
        image = next(file for file in files if piece in f"/{file.relative_to(pictures)}") if piece else None
        hits = retriever.search(image, text, top_k=6)
        said = retriever.explain(hits)
        cells = tuple(
            Cell(hit.path, f"{hit.score:.2f} {words or ''}"[:34]) for hit, words in zip(hits, said, strict=True)
        )
        rows.append(Row(image, text, cells, ""))
    grid(rows, out)


def main() -> None:
    """Print the table, a line for each way to ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench_dir", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--weights", action="store_true")
    args = parser.parse_args()
    pictures = args.bench_dir / "pictures"
    bench = json.loads((args.bench_dir / "bench.json").read_text())
    queries = [
        {**query, "right": set(bench["groups"][query["right"]]) - {query["image"]}} for query in bench["queries"]
    ]
    sets = list(dict.fromkeys(query["set"] for query in queries))
    with Retriever(args.index) as retriever:
        if args.weights:
            weigh(retriever, [one for one in queries if one["set"] in ("C1", "C2")], pictures)
            return
        sys.stdout.write(f"| {retriever.manifest.model_line.split(' (')[0]} | {' | '.join(sets)} |\n")
        for parts in ("picture and sentence", "picture", "sentence"):
            cells = []
            for name in sets:
                asked = [one for one in queries if one["set"] == name and _can_ask(one, parts)]
                places = ask(retriever, asked, pictures, parts)
                cells.append(f"{recall(places, 1)} / {recall(places, 5)}" if asked else "-")
            sys.stdout.write(f"| {parts} | {' | '.join(cells)} |\n")
            sys.stdout.flush()
        if args.sheet:
            sheet(retriever, pictures, args.sheet)


def _can_ask(query: dict[str, Any], parts: str) -> bool:
    return (parts == "picture and sentence") or bool(query["image"] if parts == "picture" else query["text"])


if __name__ == "__main__":
    main()
