"""What the evaluation tests share: splits made from a few words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from composir.data.triplets import Query, Split

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
