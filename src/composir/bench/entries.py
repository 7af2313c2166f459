"""A leaderboard as files: a model's ranks on a data set, its figures, and a check that these follow from those."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from composir.bench.cells import Cost
from composir.bench.running import Bench, Measured
from composir.data import Split
from composir.data.triplets import ALL_QUERIES, Query
from composir.errors import ComposirError, Problem, ProblemsError, listed, wrong_fields
from composir.evaluation import COMPOSED, KINDS, PADDING, Ranking, Saved, measure
from composir.evaluation.ranking import pad_ranks
from composir.files import replacing

SUFFIX = ".json.gz"
FORMAT = "composir ranks, version 1"
DIGITS = 6
"""Figures are fractions with so many digits after the point."""
HALF_A_DIGIT = 0.5 * 10**-DIGITS + 1e-9
"""How far a figure may be from what is computed again, whose last bits differ between machines."""


class Ranks(BaseModel):
    """Where the right answers of every query stand, and its explicit negatives, by one kind of query."""

    model_config = ConfigDict(extra="forbid", strict=True)

    targets: list[list[int]]
    """Of each query's right answers, the annotated one first, the rank in the gallery, 1 for the best. 0 is not known,
    and for all but the annotated one stands also for below the ranking's depth."""
    subset: list[int]
    """The rank of the annotated one in the query's subset; 0 is not known. Empty where queries have no subsets."""
    negatives: list[list[int]] = Field(default_factory=list)
    """Of each query's explicit negatives the rank, 0 below the ranking's depth. Empty where no query has one."""
    are_whole: bool = False
    """Whether 0 means not known for every right answer: queries have galleries of their own, ranked whole."""


class Part(BaseModel):
    """The queries of a split (of a category)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    category: str
    num_gallery: int = Field(ge=1, le=10_000_000)
    ids: list[str]
    aspects: dict[str, list[str]]
    """By query, of those that have some."""
    groups: dict[str, str] = Field(default_factory=dict)
    """By query, of those that belong to one."""
    num_listed: dict[str, tuple[NonNegativeInt, NonNegativeInt]] = Field(default_factory=dict)
    """By query, of those whose data set counts repeats: ``Query.num_listed_targets`` and ``num_listed_negatives``."""


class Run(BaseModel):
    """One run of the model."""

    model_config = ConfigDict(extra="forbid", strict=True)

    seed: int | None
    signature_fields: dict[str, str]
    cost: Cost
    depth: int
    """How many images the ranking kept: no figure of a larger K is known."""
    ranks: dict[str, list[Ranks]]
    """By kind of query, one a part."""
    figures: dict[str, Any]
    """``metrics``, ``intervals``, ``baselines`` and ``audit`` as ``composir evaluate --json`` prints them."""


class Entry(BaseModel):
    """What one file holds: a model on a data set, in one run or several."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: str
    dataset: str
    model: str
    note: str
    parts: list[Part]
    runs: list[Run]


def write_entries(bench: Bench, folder: Path) -> list[Path]:
    """Return the files after writing one a model and data set, ``folder/DATASET/MODEL.json.gz``.

    What is written was read again and verified. The same results give the same bytes. Raises ``ComposirError`` where a
    figure does not follow from the ranks of the right answers, as that of a metric which looks at other images.
    """
    files = []
    for dataset, measured in bench.measured.items():
        for model, one in measured.items():
            file = folder / dataset / f"{model}{SUFFIX}"
            text = _entry(dataset, model, one).model_dump_json()
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
            problems = verify(file, read_entry(file))
            if problems:
                file.unlink()
                raise ProblemsError(problems)
            files.append(file)
    return files


def find_entries(folder: Path) -> list[Path]:
    """Return the files of a leaderboard; raise ``ComposirError`` where there are none."""
    files = sorted(folder.glob(f"*/*{SUFFIX}"))
    if not files:
        raise ComposirError(
            "holds no result",
            file=folder,
            expected=f"DATASET/MODEL{SUFFIX} below it",
            fix="composir bench CONFIG.toml --submit DIR writes such files",
        )
    return files


def read_entry(file: Path) -> Entry:
    """Return what a file holds; raise ``ComposirError`` where it is not one of ``write_entries``."""
    try:
        entry = Entry.model_validate_json(gzip.decompress(file.read_bytes()))
        if entry.format != FORMAT:
            raise ValueError(f"its format is {entry.format!r}")
        if (file.parent.name, file.name) != (entry.dataset, entry.model + SUFFIX):
            raise ValueError(f"it holds {entry.model!r} on {entry.dataset!r}")
        if not entry.runs or any(set(run.ranks) != set(KINDS) for run in entry.runs):
            raise ValueError(f"not every run has ranks of {', '.join(KINDS)}")
        saved_of(file, entry)
    except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
        is_told = isinstance(error, ValidationError)
        message = listed(wrong_fields(error, Entry), separator="; ") if is_told else " ".join(str(error).split())
        raise ComposirError(
            f"is no result of a bench ({message})", file=file, fix="write it again: composir bench CONFIG.toml --submit"
        ) from None
    return entry


def verify(file: Path, entry: Entry) -> list[Problem]:
    """Return every figure of an entry that is not what its ranks give; no images and no annotations are needed.

    What ranks cannot tell is whether they are those of the model and of the right answers: for that, run the model.
    """
    problems = []
    for number, (run, saved) in enumerate(zip(entry.runs, saved_of(file, entry), strict=True), 1):
        expected = _flat(_figures(saved))
        found = _flat(run.figures)
        for name in dict.fromkeys([*expected, *found]):
            ours, theirs = expected.get(name), found.get(name)
            if not _are_same(ours, theirs):
                where = f"run {number}, {name}" if len(entry.runs) > 1 else name
                message = f"is {theirs}, and its ranks give {ours}"
                problems.append(Problem(str(file), where, message, "put back what the bench wrote, or write it again"))
    return problems


def read_bench(files: Sequence[Path]) -> Bench:
    """Return the results of a leaderboard's files by data set and model, as a bench of them would.

    Versions of composir may differ between rows: the signature's version of the metrics says what they share.
    """
    measured: dict[str, dict[str, Measured]] = {}
    for file in files:
        entry = read_entry(file)
        costs = tuple(run.cost for run in entry.runs)
        measured.setdefault(entry.dataset, {})[entry.model] = Measured(saved_of(file, entry), costs, entry.note)
    return Bench(measured, ())


def saved_of(file: Path, entry: Entry) -> tuple[Saved, ...]:
    """Return the runs as saved rankings of queries whose right answers have their ranks, and of whom no more is known.

    The gallery's images are numbered, a query's right answers being the first of them; every other place of a ranking
    is ``PADDING``.
    """
    return tuple(
        Saved(
            {
                kind: tuple(
                    _ranking(part, ranks, run.signature_fields, run.depth)
                    for part, ranks in zip(entry.parts, run.ranks[kind], strict=True)
                )
                for kind in KINDS
            },
            {name: value for name, value in run.signature_fields.items() if name != "composir"},
            path=file if len(entry.runs) == 1 else Path(f"{file}, run {number}"),
            seed=run.seed,
        )
        for number, run in enumerate(entry.runs, 1)
    )


def _entry(dataset: str, model: str, measured: Measured) -> Entry:
    composed = measured.runs[0].rankings[COMPOSED]
    return Entry(
        format=FORMAT,
        dataset=dataset,
        model=model,
        note=measured.note,
        parts=[
            Part(
                category=ranking.split.category,
                num_gallery=len(ranking.split.gallery),
                ids=[query.id for query in ranking.split.queries],
                aspects={query.id: list(query.aspects) for query in ranking.split.queries if query.aspects},
                groups={query.id: query.group for query in ranking.split.queries if query.group},
                num_listed={
                    query.id: (query.num_listed_targets, query.num_listed_negatives)
                    for query in ranking.split.queries
                    if query.num_listed_targets
                },
            )
            for ranking in composed
        ],
        runs=[
            Run(
                seed=saved.seed,
                signature_fields=dict(saved.signature_fields),
                cost=cost,
                depth=saved.rankings[COMPOSED][0].top.shape[1],
                ranks={kind: [_ranks(ranking) for ranking in saved.rankings[kind]] for kind in KINDS},
                figures=_rounded(_figures(saved)),
            )
            for saved, cost in zip(measured.runs, measured.costs, strict=True)
        ],
    )


def _ranks(ranking: Ranking) -> Ranks:
    """Return the ranks of a ranking's right answers."""
    split = ranking.split
    place_by_name = {name: place for place, name in enumerate(split.gallery)}
    targets, negatives = [], []
    for number, (query, row) in enumerate(zip(split.queries, ranking.top.tolist(), strict=True)):
        rank_by_place = {place: rank for rank, place in enumerate(row, 1)}
        found = [rank_by_place.get(place_by_name[name], 0) for name in (*query.targets[1:], *query.negatives)]
        right = [int(ranking.target_ranks[number]), *found[: len(query.targets) - 1]]
        if ranking.right_ranks is not None:
            right = ranking.right_ranks[number, : len(query.targets)].tolist()
        targets.append(right)
        negatives.append(found[len(query.targets) - 1 :])
    return Ranks(
        targets=targets,
        subset=[
            order.index(query.targets[0]) + 1 if query.targets[0] in order else 0
            for query, order in zip(split.queries, ranking.subset, strict=True)
        ]
        if any(ranking.subset)
        else [],
        negatives=negatives if any(negatives) else [],
        are_whole=ranking.right_ranks is not None,
    )


def _ranking(part: Part, ranks: Ranks, fields: Mapping[str, str], depth: int) -> Ranking:
    """Return a ranking with the right answers where ``ranks`` says."""
    gallery = tuple(map(str, range(part.num_gallery)))
    subset = ranks.subset or [None] * len(part.ids)
    negatives = ranks.negatives or [[]] * len(part.ids)
    top = np.full((len(part.ids), depth), PADDING, np.int64)
    queries = []
    for row, (id_, right, member, wrong) in enumerate(zip(part.ids, ranks.targets, subset, negatives, strict=True)):
        _check_ranks(id_, right, wrong, part.num_gallery)
        right_by_rank = {rank: place for place, rank in enumerate(right) if rank}
        wrong_places = [right_by_rank.get(rank, place) for place, rank in enumerate(wrong, len(right))]
        for place, rank in zip((*range(len(right)), *wrong_places), right + wrong, strict=True):
            if 1 <= rank <= depth:
                top[row, rank - 1] = place
        num_listed_targets, num_listed_negatives = part.num_listed.get(id_, (0, 0))
        queries.append(
            Query(
                id=id_,
                reference="",
                text="",
                texts=(),
                targets=gallery[: len(right)],
                subset=() if member is None else gallery[:1],
                aspects=tuple(part.aspects.get(id_, ())),
                group=part.groups.get(id_, ""),
                negatives=tuple(gallery[place] for place in wrong_places),
                num_listed_targets=num_listed_targets,
                num_listed_negatives=num_listed_negatives,
            )
        )
    return Ranking(
        Split(
            dataset=fields["dataset"],
            name=fields["split"],
            category=part.category,
            queries=tuple(queries),
            gallery=gallery,
            images={},
            gallery_rule=fields["gallery"],
            exclude_reference=fields["reference"] == "excluded",
            text_rule=fields["text"],
            query_rule=fields.get("queries", ALL_QUERIES),
        ),
        top=top,
        scores=np.full(top.shape, np.nan, np.float32),
        target_ranks=np.array([places[0] for places in ranks.targets], np.int64),
        subset=tuple(_order(rank, gallery) for rank in subset),
        right_ranks=pad_ranks(ranks.targets) if ranks.are_whole else None,
    )


def _check_ranks(id_: str, right: list[int], wrong: list[int], num_gallery: int) -> None:
    """Raise ``ValueError`` where ranks are not those of a gallery; an image may be right and wrong (PinPoint)."""
    places = right + wrong
    if not right or min(places) < 0 or max(places) > num_gallery or len(places) > num_gallery:
        raise ValueError(f"query {id_} has ranks {places} in a gallery of {num_gallery}")
    for ranks in (right, wrong):
        known = [rank for rank in ranks if rank]
        if len(set(known)) < len(known):
            raise ValueError(f"query {id_} has two images at one rank")


def _order(rank: int | None, gallery: Sequence[str]) -> tuple[str, ...]:
    """Return members of a subset of whom the first of the gallery, the right one, has that rank."""
    if rank is None:
        return ()
    others = tuple(f"other {number}" for number in range(max(rank - 1, 0 if rank else 1)))
    return (*others, gallery[0]) if rank else others


def _figures(saved: Saved) -> dict[str, Any]:
    document = measure(saved.rankings, signature=saved.signature_fields).to_json()
    return {name: document[name] for name in ("metrics", "intervals", "baselines", "audit")}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return round(value, DIGITS) if isinstance(value, float) else value


def _flat(figures: Any, name: str = "") -> dict[str, Any]:
    """Return every figure by its place, such as ``intervals/recall_at_1/0``."""
    if isinstance(figures, Mapping):
        parts = figures.items()
    elif isinstance(figures, list):
        parts = enumerate(figures)
    else:
        return {name: figures}
    return {
        place: value
        for key, part in parts
        for place, value in _flat(part, f"{name}/{key}" if name else str(key)).items()
    }


def _are_same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float | int) and not isinstance(theirs, bool):
        return abs(ours - theirs) <= HALF_A_DIGIT
    return type(ours) is type(theirs) and ours == theirs
