"""The table of data sets, and the one way to read a split of any of them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from composir.data import (
    circled,
    circo,
    cirr,
    edir,
    fashion200k,
    fashioniq,
    genecis,
    icir,
    lasco,
    mtfashioniq,
    oacirr,
    own,
    pinpoint,
    shoes,
)
from composir.data.annotations import AnnotationsError, SourceNotFoundError, SplitNotFoundError
from composir.data.only import only as only_listed
from composir.data.trees import find_images
from composir.data.triplets import Split, split_key
from composir.errors import ComposirError, Note, Problem, ProblemsError, nearest
from composir.tables import Table

log = logging.getLogger(__name__)


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
    categories: tuple[str, ...] = ()
    """The parts that ``load`` takes as ``categories``, each with files of its own; empty where there are none."""
    text_rules: tuple[str, ...] = ()
    """What ``load`` takes as ``text_rule``, its own first; empty where there is one way to make the sentences."""


DATASETS: Table[Dataset] = Table(
    "datasets",
    {
        "CIRR": Dataset(cirr.load, cirr.SPLITS, submitted="test1", text_rules=cirr.TEXT_RULES),
        "FashionIQ": Dataset(
            fashioniq.load, fashioniq.SPLITS, categories=fashioniq.CATEGORIES, text_rules=fashioniq.TEXT_RULES
        ),
        "CIRCO": Dataset(circo.load, circo.SPLITS, submitted="test", text_rules=circo.TEXT_RULES),
        "GeneCIS": Dataset(genecis.load, genecis.SPLITS, categories=genecis.CATEGORIES),
        "Fashion200k": Dataset(fashion200k.load, fashion200k.SPLITS, evaluated="test"),
        "Shoes": Dataset(shoes.load, shoes.SPLITS),
        "LaSCo": Dataset(lasco.load, lasco.SPLITS),
        "i-CIR": Dataset(icir.load, icir.SPLITS, evaluated="test"),
        "PinPoint": Dataset(pinpoint.load, pinpoint.SPLITS, evaluated="test"),
        "EDIR": Dataset(edir.load, edir.SPLITS, evaluated="test"),
        "MT-FashionIQ": Dataset(mtfashioniq.load, mtfashioniq.SPLITS, categories=mtfashioniq.CATEGORIES),
        "CIRCLED": Dataset(circled.load, circled.SPLITS, categories=circled.CATEGORIES),
        "OACIRR": Dataset(oacirr.load, oacirr.SPLITS, categories=oacirr.CATEGORIES),
        "own": Dataset(own.load, own.SPLITS),
    },
)
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


def require_root(dataset: str, root: Path, split: str) -> None:
    """Raise what ``load_splits`` would where the folder is not there or empty, or own triplets lack the split."""
    name = find_dataset(dataset)
    is_there = root.is_dir() and any(root.iterdir())
    if not is_there or (name == "own" and not (root / own.triplets_file(split)).is_file()):
        load_splits(name, root, split)


def load_splits(
    dataset: str,
    root: str | Path,
    split: str,
    *,
    categories: Sequence[str] | None = None,
    gallery: str = "original",
    exclude_reference: bool | None = None,
    text_rule: str | None = None,
    only: Path | None = None,
    annotations_only: bool = False,
) -> tuple[Split, ...]:
    """Return the splits of that name: one, or one a category for FashionIQ. No image is opened.

    Image files are found by ``find_images``; where they do not lie as published, a log message says where they do.
    With ``annotations_only``, for what reads predictions, they are not looked for, and CIRCO goes without COCO's list
    of the gallery (``Split.missing_list``). Raises ``SplitNotFoundError`` for a split that is not there and
    ``ProblemsError`` with everything wrong in it.

    ``gallery`` is ``original`` (the split file) or ``val-union`` (only the references and targets of the
    queries); ``exclude_reference`` and ``text_rule`` (one of ``Dataset.text_rules``) replace the data set's own rules.
    ``only`` is a list of queries, the others being left out (``composir.data.only``). All change the figures a great
    deal and stay on the ``Split``, so that a report can name them.
    """
    if gallery not in GALLERIES:
        raise ComposirError(
            f"unknown gallery {gallery!r}", expected=" or ".join(GALLERIES), fix=nearest(gallery, GALLERIES)
        )
    dataset = find_dataset(dataset)
    chosen = {} if text_rule is None else {"text_rule": _find_text_rule(dataset, text_rule)}
    splits = DATASETS[dataset].load(Path(root), split, categories=categories, **chosen)
    if not annotations_only:
        found = find_images(splits)
        problems = [*_missing_lists(splits), *found.problems]
        if problems:
            raise ProblemsError(problems)
        for note in found.notes:
            log.warning("%s", note)
        splits = found.splits
    if gallery == "val-union":
        splits = tuple(val_union(one) for one in splits)
    if only is not None:
        annotated = None if text_rule is None else DATASETS[dataset].load(Path(root), split, categories=categories)
        splits = only_listed(splits, only, annotated=annotated)
    if exclude_reference is not None:
        splits = tuple(dataclasses.replace(one, exclude_reference=exclude_reference) for one in splits)
    return splits


def _find_text_rule(dataset: str, text_rule: str) -> str:
    rules = DATASETS[dataset].text_rules
    if text_rule not in rules:
        raise ComposirError(
            f"unknown text rule {text_rule!r} of {dataset}",
            expected=" or ".join(rules) or "none: there is one way to make its sentences",
            fix=nearest(text_rule, rules) if rules else "leave it out",
        )
    return text_rule


@dataclass(frozen=True, slots=True)
class Present:
    """What a data root holds of a data set."""

    splits: list[Split]
    """Every split (of every category) that is there, as far as it can be read."""
    problems: list[Problem]
    """Everything wrong with their annotations, and images that several files may be."""
    notes: list[Note]
    """What is odd in their annotations, and where the images were found if not as published."""
    absent: list[str]
    """The ``split_key`` of those of which no file is there."""


def load_present(
    dataset: str,
    root: str | Path,
    *,
    split: str | None = None,
    categories: Sequence[str] | None = None,
    annotations_only: bool = False,
) -> Present:
    """Return what is there of a data set: of all its splits, or of one; of all its categories, or of some.

    For commands that describe a data root; training and evaluation ask for what they need with ``load_splits``, which
    says what ``annotations_only`` is.
    Raises ``SplitNotFoundError`` where there is nothing, or nothing of a category that ``categories`` names.
    """
    dataset = find_dataset(dataset)
    entry = DATASETS[dataset]
    names = entry.splits if split is None else (split,)
    splits: list[Split] = []
    problems: dict[Problem, None] = {}  # splits that share a file share its problems
    absent: list[str] = []
    num_found = 0
    lacking: SourceNotFoundError | None = None
    for category in dict.fromkeys(categories or entry.categories or ("",)):
        num_before = num_found
        for name in names:
            try:
                splits.extend(entry.load(Path(root), name, categories=[category] if category else None))
            except SplitNotFoundError as error:
                if name not in entry.splits:
                    raise
                if isinstance(error, SourceNotFoundError):
                    lacking = lacking or error
                absent.append(split_key(name, category))
                continue
            except AnnotationsError as error:
                splits.extend(error.splits)
                problems.update(dict.fromkeys(error.problems))
            num_found += 1
        if categories and num_found == num_before:
            raise lacking or _nothing_there(f"{dataset} {category}", root, names)
    if not num_found:
        raise lacking or _nothing_there(dataset, root, names)
    if not annotations_only:
        found = find_images(splits)
        splits = list(found.splits)
        problems.update(dict.fromkeys([*_missing_lists(splits), *found.problems]))
        notes = [*(note for one in splits for note in one.notes), *found.notes]
    else:
        notes = [note for one in splits for note in one.notes]
    return Present(splits, list(problems), list(dict.fromkeys(notes)), absent)


def _missing_lists(splits: Sequence[Split]) -> list[Problem]:
    files = dict.fromkeys(split.missing_list for split in splits if split.missing_list)
    return [
        Problem(str(file), "", "the file is missing", f"put the published {file.name} there (docs/data.md)")
        for file in files
    ]


def _nothing_there(what: str, root: str | Path, names: Sequence[str]) -> SplitNotFoundError:
    return SplitNotFoundError(
        f"holds no annotation file of {what}",
        file=root,
        expected=f"the split {names[0]}" if len(names) == 1 else f"at least one of the splits {', '.join(names)}",
        fix="put the published annotation files there",
    )


def val_union(split: Split) -> Split:
    """Return the split with its gallery cut to what its queries name: references, right answers, negatives.

    Some published FashionIQ tables use it (ENCODER and others): the same model scores about 12 points more.
    """
    if not all(query.targets for query in split.queries):
        raise ComposirError(
            f"the {split.name} split has no targets to choose a val-union gallery by",
            fix="use gallery original",
        )
    if any(query.gallery for query in split.queries):
        raise ComposirError(
            f"every query of {split.dataset} has a gallery of its own: there is no val-union",
            fix="use gallery original",
        )
    used = {name for query in split.queries for name in (*query.references, *query.targets, *query.negatives)}
    gallery = tuple(name for name in split.gallery if name in used)
    images = {name: split.images[name] for name in gallery if name in split.images}
    return dataclasses.replace(split, gallery=gallery, images=images, gallery_rule="val-union")
