"""What the tests of benches share: splits, rankings and results made from ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from composir.bench.cells import Cost
from composir.bench.running import Measured
from composir.data.triplets import Query, Split
from composir.evaluation import KINDS, Ranking, Saved, rank, signature_fields

NUM_IMAGES = 60
MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "threads": 1,
    "memory_bytes": 8 * 10**9,
    "gpu": None,
    "torch": "2.13.0",
}


def make_split(targets: Sequence[Sequence[int]], dataset: str = "LaSCo", category: str = "", **rules: object) -> Split:
    """Return a split of 60 images whose query i asks for the images of ``targets[i]``; CIRR's have subsets of five."""
    names = [f"g{place}" for place in range(NUM_IMAGES)]
    queries = tuple(
        Query(
            id=str(number),
            reference="g59",
            text="is red",
            texts=("is red",),
            targets=tuple(names[place] for place in places),
            subset=tuple(names[place] for place in (places[0], 50, 51, 52, 53)) if dataset == "CIRR" else (),
            aspects=(("colour", "count")[number % 2],) if dataset == "CIRCO" else (),
        )
        for number, places in enumerate(targets)
    )
    given = {"gallery_rule": "original", "exclude_reference": dataset == "CIRR", "text_rule": "as annotated", **rules}
    return Split(dataset, "val", category, queries, tuple(names), {}, **given)  # type: ignore[arg-type]


def ranking_at(split: Split, ranks: Sequence[int]) -> Ranking:
    """Return the ranking in which the annotated target of each query has the rank given."""
    scores = torch.empty(len(split.queries), NUM_IMAGES)
    for row, (query, place) in enumerate(zip(split.queries, ranks, strict=True)):
        order = [one for one, name in enumerate(split.gallery) if name != query.targets[0]]
        order.insert(place - 1, split.gallery.index(query.targets[0]))
        scores[row, order] = torch.linspace(1, 0, NUM_IMAGES)
    return rank(scores, split)


@pytest.fixture(scope="session")
def make_measured() -> Callable[..., Measured]:
    """Make a model's results on a split from the ranks of its runs; the baselines find nothing among the best ten."""

    def make(split: Split, *ranks_of_runs: Sequence[int], name: str = "a", note: str = "") -> Measured:
        runs = []
        for seed, ranks in enumerate(ranks_of_runs):
            far = ranking_at(split, [40] * len(ranks))
            rankings = {kind: (far if kind != "composed" else ranking_at(split, ranks),) for kind in KINDS}
            fields = signature_fields([split], weights_hash=f"{name}{seed}")
            runs.append(Saved(rankings, fields, Path(f"{name}/{seed}"), seed))
        cost = Cost(2.5, 1.5, 10**9, None, MACHINE)
        return Measured(tuple(runs), (cost,) * len(runs), note)

    return make
