"""CIRCLED (Takeda et al., arXiv 2605.26734): sessions of two to six rounds over FashionIQ, CIRR and CIRCO."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from composir.data import circo, cirr, fashioniq
from composir.data.annotations import (
    RESTORE,
    AnnotationsError,
    Entry,
    Findings,
    SourceNotFoundError,
    SplitNotFoundError,
    as_entries,
    check_split_name,
    choose_categories,
    find_home,
    read_entries,
    require_whole,
)
from composir.data.triplets import Query, Split
from composir.errors import Problem, short

SPLITS = ("train", "val")
CATEGORIES = ("fashioniq_dress", "fashioniq_shirt", "fashioniq_toptee", "cirr", "circo")
"""Each with the name of its source before the underscore and the source's own category behind it."""
SOURCES: Mapping[str, tuple[Callable[..., tuple[Split, ...]], tuple[str, ...]]] = {
    "fashioniq": (fashioniq.load, ("fashion-iq", "fashionIQ_dataset")),
    "cirr": (cirr.load, ("cirr", "cirr_dataset")),
    "circo": (circo.load, ("CIRCO",)),
}
"""The reader of each source, and the folders it may lie in: CIRCLED's own code says the first."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Images:
    """The images of a source that a session may name."""

    names: Collection[str] | None
    """None where they cannot be checked."""
    file: Path
    """The file that lists them."""
    coco: bool
    """Whether their names are COCO's image ids, which stand in the sessions as twelve digits."""

    def find(self, entry: Entry, what: str, name: str | None) -> str | None:
        """Return the source's own name of an image, or None after adding a problem."""
        if name is not None and self.coco:
            name = name.removesuffix(".jpg").lstrip("0")
        return entry.image_name(what, name, self.names, self.file)


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return one split a category: those that are there, or those that ``categories`` names.

    ``root`` holds ``data/`` with the sessions and, beside it, the folders of the data sets that they are made of
    (``SOURCES``), or is the parent of such a ``CIRCLED/``. Every round of a session is a query: its own reference image
    and its own caption as annotated; the right answers are those of the session, of which CIRCO has several. A session
    is a group, called by its id, and a query by that and its round, from 1: ``cirr_val_0000.1``. The gallery and the
    places of the images are those of the source's split, and the reference is kept. CIRCO's names are COCO's image ids
    without leading zeros, as its own reader has them. Of the form of the files the source is ``convert_to_public.py``
    of the GitHub repository mti-lab/circled; what ranks images there (``multiturn_cir_system.py``) has these galleries,
    and the reference in them.

    Without ``categories`` those whose sessions or source are not there are named in a log message. Raises
    ``SplitNotFoundError`` when not one is there and ``AnnotationsError`` with everything wrong in all of them and in
    their sources; a category of ``categories`` that is not there is wrong, too.
    """
    chosen = choose_categories("CIRCLED", categories, CATEGORIES)
    check_split_name("CIRCLED", split, SPLITS)
    home = find_home(
        root, marker="data/*.json", folder="CIRCLED", source="the dataset tk1441/CIRCLED of the Hugging Face hub"
    )
    problems = Findings()
    splits = []
    absent: dict[str, SplitNotFoundError] = {}
    for category in chosen:
        try:
            splits.append(_read_category(home, category, split, problems))
        except SplitNotFoundError as error:
            absent[category] = error
    there = [one.category for one in splits]
    if not there:
        raise _none_there(absent, home, split)
    for category, error in absent.items() if categories else ():
        message = f"the {category} category of the {split} split is not in this data root: {error.message}"
        choice = " ".join(f"--categories {name}" for name in there)
        problems.append(Problem(str(error.file or home), "", message, f"{error.fix}, or choose what is: {choice}"))
    if absent and not categories:
        log.warning("%s: CIRCLED %s has only %s here; %s", home, split, ", ".join(there), _reasons(absent))
    return require_whole(tuple(splits), problems)


def _none_there(absent: Mapping[str, SplitNotFoundError], home: Path, split: str) -> SplitNotFoundError:
    if len(absent) == 1:
        return next(iter(absent.values()))
    return SplitNotFoundError(
        f"no category of the {split} split of CIRCLED is in this data root: {_reasons(absent)}",
        file=home,
        expected="the sessions of one in data/, and the data set that they are made of beside data/",
        fix="put them there (docs/data.md), or choose another split",
    )


def _reasons(absent: Mapping[str, SplitNotFoundError]) -> str:
    return "; ".join(f"{category}: {error.message}" for category, error in absent.items())


def _read_category(home: Path, category: str, split: str, problems: Findings) -> Split:
    """Return the split of one category; what is wrong with it and with its source is added to ``problems``.

    Raises ``SplitNotFoundError`` where the sessions or the source are not there.
    """
    file = home / "data" / f"{category}_{split}.json"
    if not file.exists():
        raise SplitNotFoundError(f"{file.name} is not in data/", file=file, fix="put the published file there")
    source = _read_source(home, category, split, problems)
    images = _Images(source.images or None, source.missing_list or source.files[-1], coco=category == "circo")
    queries: list[Query] = []
    seen: set[str] = set()
    for entry in read_entries(file, problems):
        rounds = _read_session(entry, file.stem, images)
        if rounds and rounds[0].group in seen:
            entry.problem(f"the session_id {rounds[0].group!r} is repeated", "give every session its own")
        seen.update(query.group for query in rounds)
        queries += rounds
    named = dict.fromkeys(name for query in queries for name in (query.reference, *query.targets))
    return replace(
        source,
        dataset="CIRCLED",
        category=category,
        queries=tuple(queries),
        gallery=tuple(named) if source.missing_list else source.gallery,
        exclude_reference=False,
        text_rule="caption of the round",
        file=file,
        files=(file, *source.files[1:]),
        notes=(),
    )


def _read_source(home: Path, category: str, split: str, problems: Findings) -> Split:
    """Return the source's own split; what is wrong with it is added to ``problems``."""
    name, _, own_category = category.partition("_")
    load_source, folders = SOURCES[name]
    places = [home / folder for folder in folders]
    root = next((place for place in places if place.is_dir()), None)
    if root is None:
        raise SourceNotFoundError(
            f"no {' or '.join(f'{folder}/' for folder in folders)} is beside data/",
            file=places[0],
            fix="put the data set there that the sessions are made of, or a link to it (docs/data.md)",
        )
    try:
        (source,) = load_source(root, split, categories=[own_category] if own_category else None)
    except AnnotationsError as error:
        problems.extend(error.problems)
        (source,) = error.splits
    return source


def _read_session(entry: Entry, subset: str, images: _Images) -> list[Query]:
    """Return the rounds of one session; what is wrong with it is added to the entry's problems."""
    session = entry.sentence("session_id", entry.get("session_id", str))
    targets = _read_targets(entry, images)
    items = entry.get("turns", list)
    if items == []:
        entry.problem("'turns' is empty", RESTORE)
    _note_other(entry, "subset", subset)
    _note_other(entry, "num_turns", len(items or ()))
    queries = []
    for number, turn in enumerate(as_entries(entry.file, items or (), entry.problems, where=f"{entry.where} turns"), 1):
        _note_other(turn, "turn", number)
        reference = images.find(turn, "reference_image_id", turn.get("reference_image_id", str))
        text = turn.caption("relative_caption", turn.get("relative_caption", str))
        if session is None or reference is None or text is None or not targets:
            continue
        if reference in targets:
            turn.note("a right answer is also the reference")
        query_id = f"{session}.{number}"
        queries.append(
            Query(id=query_id, reference=reference, text=text, texts=(text,), targets=targets, group=session)
        )
    return queries


def _read_targets(entry: Entry, images: _Images) -> tuple[str, ...]:
    """Return the right answers of a session, each once; empty after adding a problem."""
    items = entry.get("ground_truth_ids", list)
    if items == []:
        entry.problem("'ground_truth_ids' is empty", RESTORE)
    names: list[str] = []
    for number, item in enumerate(items or ()):
        what = f"ground_truth_ids[{number}]"
        name = images.find(entry, what, entry.typed(what, item, str))
        if name in names:
            entry.note(f"{what} repeats {name!r}")
        if name is not None:
            names.append(name)
    return tuple(dict.fromkeys(names)) if len(names) == len(items or ()) else ()


def _note_other(entry: Entry, key: str, expected: object) -> None:
    """Add a note where a field that says nothing new says something else."""
    value = entry.fields.get(key)
    if value != expected:
        entry.note(f"{key!r} is {short(value)}, not {short(expected)}")
