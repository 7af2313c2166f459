"""The table of data sets, and the one way to read a split of any of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from composir.data import cirr, fashioniq
from composir.data.triplets import Split
from composir.errors import ComposirError, nearest


@dataclass(frozen=True, slots=True)
class Dataset:
    """How a data set is read."""

    load: Callable[..., tuple[Split, ...]]
    """``load(root, split, *, categories=None) -> tuple[Split, ...]``: one split, or one a category."""
    splits: tuple[str, ...]
    """The names of its splits."""
    evaluated: str = "val"
    """The split that evaluation measures unless told otherwise: its answers are public."""
    submitted: str = ""
    """The split whose answers only the data set's test server knows; empty where there is no server."""


DATASETS: dict[str, Dataset] = {
    "CIRR": Dataset(cirr.load, cirr.SPLITS, submitted="test1"),
    "FashionIQ": Dataset(fashioniq.load, fashioniq.SPLITS),
}
"""By name; a new data set is one file and one line here."""

GALLERIES = ("original", "val-union")


def find_dataset(name: str) -> str:
    """Return the name as the table spells it, whatever the case; ``ComposirError`` for an unknown one."""
    name_by_folded = {known.casefold(): known for known in DATASETS}
    if name.casefold() not in name_by_folded:
        raise ComposirError(
            f"unknown data set {name!r}",
            expected=", ".join(DATASETS),
            fix=nearest(name, DATASETS),
        )
    return name_by_folded[name.casefold()]


def load_splits(
    dataset: str,
    root: str | Path,
    split: str,
    *,
    categories: Sequence[str] | None = None,
    gallery: str = "original",
    exclude_reference: bool | None = None,
) -> tuple[Split, ...]:
    """Return the splits of that name: one, or one a category for FashionIQ. No image is opened.

    ``gallery`` is ``original`` (the split file) or ``val-union`` (only the references and targets of the
    queries); ``exclude_reference`` replaces the data set's own rule. Both change the figures a great deal and
    stay on the ``Split``, so that a report can name them.
    """
    if gallery not in GALLERIES:
        raise ComposirError(
            f"unknown gallery {gallery!r}", expected=" or ".join(GALLERIES), fix=nearest(gallery, GALLERIES)
        )
    splits = DATASETS[find_dataset(dataset)].load(Path(root), split, categories=categories)
    if gallery == "val-union":
        splits = tuple(val_union(one) for one in splits)
    if exclude_reference is not None:
        splits = tuple(dataclasses.replace(one, exclude_reference=exclude_reference) for one in splits)
    return splits


def val_union(split: Split) -> Split:
    """Return the split with its gallery cut to the references and targets of its queries, in the same order.

    Some published FashionIQ tables use it (ENCODER and others): the same model scores about 12 points more.
    """
    if not all(query.targets for query in split.queries):
        raise ComposirError(
            f"the {split.name} split has no targets to choose a val-union gallery by",
            fix="use gallery original",
        )
    used = {name for query in split.queries for name in (query.reference, *query.targets)}
    gallery = tuple(name for name in split.gallery if name in used)
    images = {name: split.images[name] for name in gallery}
    return dataclasses.replace(split, gallery=gallery, images=images, gallery_rule="val-union")
