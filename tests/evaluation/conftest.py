"""What the evaluation tests share: splits made from a few words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from composir.data.triplets import Query, Split
from composir.evaluation import Ranking

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture(scope="session")
def make_query() -> Callable[..., Query]:
    def make(
        number: int,
        reference: str,
        targets: Sequence[str],
        subset: Sequence[str] = (),
        text: str = "is red",
        *,
        gallery: Sequence[str] = (),
        aspects: Sequence[str] = (),
        group: str = "",
        negatives: Sequence[str] = (),
        further_references: Sequence[str] = (),
        num_listed: tuple[int, int] = (0, 0),
    ) -> Query:
        return Query(
            id=str(number),
            reference=reference,
            text=text,
            texts=(text,),
            targets=tuple(targets),
            subset=tuple(subset),
            gallery=tuple(gallery),
            aspects=tuple(aspects),
            group=group,
            negatives=tuple(negatives),
            further_references=tuple(further_references),
            num_listed_targets=num_listed[0],
            num_listed_negatives=num_listed[1],
        )

    return make


@pytest.fixture(scope="session")
def make_split() -> Callable[..., Split]:
    def make(
        queries: Sequence[Query],
        num_images: int,
        *,
        dataset: str = "CIRR",
        name: str = "val",
        category: str = "",
        exclude_reference: bool = True,
    ) -> Split:
        gallery = tuple(f"g{place}" for place in range(num_images))
        return Split(
            dataset=dataset,
            name=name,
            category=category,
            queries=tuple(queries),
            gallery=gallery,
            images={image: Path(f"{image}.png") for image in gallery},
            gallery_rule="original",
            exclude_reference=exclude_reference,
            text_rule="as annotated",
        )

    return make


@pytest.fixture
def full_size(make_split, make_query):
    """Make rankings with the sizes of the real set; every target is at rank 3."""

    def make(sizes, *, dataset, exclude_reference, text_rule, gallery_rule="original", name="val"):
        rankings = []
        for category, (num_queries, num_images) in sizes.items():
            query = make_query(0, "g9", ["g2"], ["g0", "g1", "g2", "g3", "g4"])
            split = make_split([query] * num_queries, num_images, dataset=dataset, category=category, name=name)
            split = dataclasses.replace(
                split,
                images={},
                exclude_reference=exclude_reference,
                text_rule=text_rule,
                gallery_rule=gallery_rule,
            )
            top = np.tile(np.arange(50), (num_queries, 1))
            scores = np.linspace(1, 0, 50, dtype=np.float32)[None].repeat(num_queries, axis=0)
            rankings.append(Ranking(split, top, scores, np.full(num_queries, 3), (query.subset,) * num_queries))
        return rankings

    return make
