"""The report page of an evaluation: one HTML file that opens from disk and asks nothing of a network."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64
from PIL import Image, ImageOps

from composir.data.images import read_image
from composir.data.triplets import Query, Split
from composir.errors import ComposirError
from composir.evaluation.beside import published_beside
from composir.evaluation.html import render, write_html
from composir.evaluation.metrics import averages, intervals, protocol_of, recalls, solved
from composir.evaluation.published import Published
from composir.evaluation.ranking import PADDING, Ranking, first_ranks, hits
from composir.evaluation.result import COMPOSED, IMAGE_ONLY, TEXT_ONLY, Result, groups_of
from composir.evaluation.sheet import NUM_SHOWN, Retrieved, retrieved

PAGE = "index.html"
NUM_QUERIES = 10
"""How many of the hardest misses, and how many of the best hits, are shown."""
NUM_LENGTH_BINS = 5
NUM_IMAGE_SETS = 5
THUMBNAIL = 160
"""Pixels of the longer side; shown at about half of it, so that dense screens have enough."""
JPEG_QUALITY = 70
TICKS = (1, 2, 3, 5, 10, 20, 50)
"""The K that are named below the recall curves."""

# The recall curves' place in their drawing: percent across, pixels down.
PLOT_LEFT, PLOT_WIDTH = 8.0, 90.0
PLOT_TOP, PLOT_HEIGHT = 12, 280


def write_page(result: Result, folder: Path, *, num_queries: int = NUM_QUERIES) -> Path:
    """Return ``index.html`` in ``folder`` after writing the report of ``result`` into it.

    The page holds the figures with their intervals, the baselines, the audit, published results (greyed where they
    were measured by other rules), recall curves, the ``num_queries`` hardest misses and best hits with pictures, and
    the figures by length of the sentence, category, aspect and subset. Where the splits know no images (rankings loaded
    without a data root) names stand for the pictures; a picture that cannot be read leaves a marked gap, and the page
    says why. The same result gives the same bytes. Raises ``ComposirError`` where the file cannot be written.
    """
    return write_html(_render(result, num_queries), folder / PAGE)


def _render(result: Result, num_queries: int) -> str:
    pictures = _Pictures()
    splits = [ranking.split for ranking in result.rankings[COMPOSED]]
    published = published_beside(result)
    key = result.primary if result.primary in result.metrics else next(iter(result.metrics))
    return render(
        "composir.evaluation",
        result=result,
        fields=result.signature_fields,
        key=key,
        published=published,
        published_keys=_published_keys(published),
        k=protocol_of(splits[0].dataset).solved_k,
        plot=_plot(result),
        num_shown=NUM_SHOWN,
        misses=_examples(result, _hardest_misses(result)[:num_queries], pictures),
        hits=_examples(result, _best_hits(result)[:num_queries], pictures),
        length_key=_length_key(result, key),
        by_length=_by_length(result, _length_key(result, key)),
        by_part=_by_part(result, key),
        by_place=_by_place(result),
        image_sets=_hardest_sets(result, pictures),
        num_members=max(len(query.subset) for split in splits for query in split.queries),
        pictures=pictures,
    )


def _published_keys(published: Sequence[tuple[Published, tuple[str, ...]]]) -> list[str]:
    """Return the metrics that any of the rows states, without those of single categories."""
    return [key for key in dict.fromkeys(key for row, _ in published for key in row.figures) if "." not in key]


# -- pictures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Thumbnail:
    name: str
    uri: str
    """A data URI; empty where there is no picture to show."""
    width: int = 0
    height: int = 0
    problem: str = ""
    """Why the picture cannot be shown, where it should be there."""


@dataclass
class _Pictures:
    """Makes each thumbnail once."""

    made: dict[tuple[str, str], _Thumbnail] = field(default_factory=dict)
    """By category and name."""

    @property
    def problems(self) -> list[str]:
        """Why pictures are missing that should be there."""
        return [thumbnail.problem for thumbnail in self.made.values() if thumbnail.problem]

    @property
    def num_unknown(self) -> int:
        """Images whose files the splits do not know."""
        return sum(not (thumbnail.uri or thumbnail.problem) for thumbnail in self.made.values())

    def thumbnail(self, split: Split, name: str) -> _Thumbnail:
        """Return the picture of that name, made small, or one without a URI."""
        key = (split.category, name)
        if key not in self.made:
            self.made[key] = _thumbnail(split, name)
        return self.made[key]


def _thumbnail(split: Split, name: str) -> _Thumbnail:
    if name not in split.images:
        return _Thumbnail(name, "")
    try:
        picture = read_image(split.images[name])
    except ComposirError as error:
        return _Thumbnail(name, "", problem=str(error))
    picture = ImageOps.contain(picture, (THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    uri = f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
    return _Thumbnail(name, uri, picture.width, picture.height)


# -- recall curves -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Curve:
    kind: str
    recalls: list[float]
    """At K = 1, 2, ..."""
    points: str
    """The line, in a square of 100 by 100."""
    band: str
    """The outline of the 95 % intervals in the same square; empty for baselines."""
    markers: list[tuple[int, float, float]]
    """K, percent across and pixels down of the points that are metrics."""


@dataclass(frozen=True, slots=True)
class _Plot:
    depth: int
    curves: list[_Curve]
    ticks: list[tuple[int, float]]
    """K and percent across."""
    levels: list[tuple[int, float]]
    """Percent of recall and pixels down."""
    left: float = PLOT_LEFT
    width: float = PLOT_WIDTH
    top: int = PLOT_TOP
    height: int = PLOT_HEIGHT


def _plot(result: Result) -> _Plot | None:
    """Return the curves of recall over K, None where no gallery ranking of two images or more is known."""
    depth = max(int((ranking.top != PADDING).sum(axis=1).max(initial=0)) for ranking in result.rankings[COMPOSED])
    if depth < 2:
        return None
    across = {k: 100 * math.log(k) / math.log(depth) for k in range(1, depth + 1)}
    curves = [_curve(kind, rankings, across) for kind, rankings in result.rankings.items()]
    ticks = sorted({k for k in TICKS if k <= depth} | {depth})
    return _Plot(
        depth=depth,
        curves=curves,
        ticks=[(k, PLOT_LEFT + across[k] * PLOT_WIDTH / 100) for k in ticks],
        levels=[(level, _down(level / 100)) for level in range(0, 101, 20)],
    )


def _curve(kind: str, rankings: Sequence[Ranking], across: dict[int, float]) -> _Curve:
    values = {ranking.split.category: recalls(ranking, across) for ranking in rankings}
    figures = averages(values)
    by_k = {k: figures[f"recall_at_{k}"] for k in across}
    band = ""
    if kind == COMPOSED:
        sure = intervals(values, groups_of(rankings))
        lows = [(across[k], 100 - 100 * sure[f"recall_at_{k}"][0]) for k in across]
        highs = [(across[k], 100 - 100 * sure[f"recall_at_{k}"][1]) for k in across]
        band = _points([*highs, *reversed(lows)])
    return _Curve(
        kind,
        recalls=list(by_k.values()),
        points=_points([(across[k], 100 - 100 * recall) for k, recall in by_k.items()]),
        band=band,
        markers=[
            (k, PLOT_LEFT + across[k] * PLOT_WIDTH / 100, _down(by_k[k]))
            for k in protocol_of(rankings[0].split.dataset).recall_ks
            if k in by_k
        ],
    )


def _down(recall: float) -> float:
    return PLOT_TOP + PLOT_HEIGHT * (1 - recall)


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


# -- misses and hits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Example:
    id: str
    category: str
    sentence: str
    references: list[_Thumbnail]
    images: list[tuple[Retrieved, _Thumbnail]]
    ranks: dict[str, str]
    """The rank of the first right answer, by kind."""


Place = tuple[int, int]
"""Which ranking of a kind, and which row of it."""


def _hardest_misses(result: Result) -> list[Place]:
    """Return the queries whose first right answer is not the first image, the worst rank first.

    An answer whose rank is not known, because a file of predictions does not hold it, is worse than any rank.
    """
    ranks = _known_ranks(result)
    return sorted((place for place, rank in ranks.items() if rank > 1), key=lambda place: -ranks[place])


def _best_hits(result: Result) -> list[Place]:
    """Return the queries whose first image is right, the largest lead over the second image first."""
    leads = {}
    for (number, row), rank in _known_ranks(result).items():
        if rank == 1:
            scores = result.rankings[COMPOSED][number].scores[row, :2].astype(float)
            lead = scores[0] - scores[-1]
            leads[number, row] = lead if math.isfinite(lead) else 0.0
    return sorted(leads, key=lambda place: -leads[place])


def _known_ranks(result: Result) -> dict[Place, float]:
    """Return every query's rank in the gallery; none where there is no ranking of the gallery (CIRR's second file)."""
    return {
        (number, row): float(rank)
        for number, ranking in enumerate(result.rankings[COMPOSED])
        if ranking.top.shape[1]
        for row, rank in enumerate(_first_right(ranking))
    }


def _first_right(ranking: Ranking) -> Float64[np.ndarray, " num_queries"]:
    """Return the rank of the first right answer; below the ranking's depth that of the annotated one, or infinity."""
    found = first_ranks(hits(ranking))
    ranks = np.where(found > 0, found, ranking.target_ranks).astype(np.float64)
    return np.where(ranks > 0, ranks, np.inf)


def _examples(result: Result, places: Sequence[Place], pictures: _Pictures) -> list[_Example]:
    ranks_by_kind = {kind: [_first_right(ranking) for ranking in ranked] for kind, ranked in result.rankings.items()}
    examples = []
    for number, row in places:
        ranking = result.rankings[COMPOSED][number]
        query = ranking.split.queries[row]
        examples.append(
            _Example(
                id=query.id,
                category=ranking.split.category,
                sentence=query.text,
                references=[pictures.thumbnail(ranking.split, name) for name in query.references],
                images=[(image, pictures.thumbnail(ranking.split, image.name)) for image in retrieved(ranking, row)],
                ranks={
                    kind: _rank_text(ranks[number][row], ranking.top.shape[1]) for kind, ranks in ranks_by_kind.items()
                },
            )
        )
    return examples


def _rank_text(rank: float, depth: int) -> str:
    return f"{rank:,.0f}" if math.isfinite(rank) else f"below {depth}"


# -- by group ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Group:
    """A figure over some of the queries."""

    label: str
    num_queries: int
    figure: float
    low: float
    high: float
    baselines: dict[str, float]
    num_missed: int | None
    """Queries whose target is not among the best few; None where the gallery was not ranked."""


def _length_key(result: Result, key: str) -> str:
    """Return the figure that is shown by length: the main one, or the first recall where that is of whole groups."""
    speaks_of_all = not any(np.isnan(part[key]).any() for part in result.values().values())
    return key if speaks_of_all else next(name for name in result.metrics if name.startswith("recall_at_"))


def _by_length(result: Result, key: str) -> list[_Group]:
    """Return the figure by number of words of the sentence, in bins of about as many queries each."""
    lengths = np.array([len(query.text.split()) for _, query in _queries(result)])
    values = {kind: np.concatenate([part[key] for part in result.values(kind).values()]) for kind in result.rankings}
    missed, numbers = _missed(result), _group_numbers(result)
    ends = [-(-len(lengths) * number // NUM_LENGTH_BINS) - 1 for number in range(1, NUM_LENGTH_BINS + 1)]
    longest = np.unique(np.sort(lengths)[ends]).tolist()
    groups = []
    for last, previous in zip(longest, [-1, *longest], strict=False):
        chosen = (lengths > previous) & (lengths <= last)
        first = int(lengths[chosen].min())
        words = f"{last}" if first == last else f"{first} – {last}"
        groups.append(
            _group(
                f"{words} {'word' if last == 1 else 'words'}",
                {kind: value[chosen] for kind, value in values.items()},
                numbers[chosen],
                None if missed is None else missed[chosen],
            )
        )
    return groups


def _by_part(result: Result, key: str) -> list[_Group]:
    """Return the result's own figure of every category or aspect; none where the data set has neither."""
    missed = _missed(result)
    queries = _queries(result)
    groups = []
    for name in result.metrics:
        part, _, plain = name.rpartition(".")
        if part and plain == key:
            chosen = np.array([part == split.category or part in query.aspects for split, query in queries])
            groups.append(
                _Group(
                    part,
                    int(chosen.sum()),
                    result.metrics[name],
                    *result.intervals[name],
                    baselines={kind: metrics[name] for kind, metrics in result.baselines.items()},
                    num_missed=None if missed is None else int(missed[chosen].sum()),
                )
            )
    return groups


def _by_place(result: Result) -> list[_Group]:
    """Return the shares of queries by the target's place in the query's own subset; none where that is not known."""
    if not all(all(ranking.subset) for ranking in result.rankings[COMPOSED]):
        return []
    places = {kind: _subset_places(ranked) for kind, ranked in result.rankings.items()}
    missed = _missed(result)
    num_places = max(len(order) for ranking in result.rankings[COMPOSED] for order in ranking.subset)
    groups = []
    for place in [*range(1, num_places + 1), 0]:
        chosen = places[COMPOSED] == place
        if place or chosen.any():  # files of predictions order the best three alone
            share = _group(
                f"{place}" if place else f"below {num_places}",
                {kind: (found == place).astype(np.float64) for kind, found in places.items()},
                _group_numbers(result),
                None if missed is None else missed & chosen,
            )
            groups.append(replace(share, num_queries=int(chosen.sum())))
    return groups


def _group(
    label: str,
    values: dict[str, Float64[np.ndarray, " chosen"]],
    numbers: Int64[np.ndarray, " chosen"],
    missed: Bool[np.ndarray, " _"] | None,
) -> _Group:
    """Return the mean of each kind's values, pooled over categories, with the interval of the composed one."""
    drawn = np.unique(numbers, return_inverse=True)[1]
    low, high = intervals({"": {"figure": values[COMPOSED]}}, {"": drawn})["figure"]
    means = {kind: float(value.mean()) for kind, value in values.items()}
    return _Group(
        label,
        len(values[COMPOSED]),
        means[COMPOSED],
        low,
        high,
        baselines={kind: means[kind] for kind in (IMAGE_ONLY, TEXT_ONLY) if kind in means},
        num_missed=None if missed is None else int(missed.sum()),
    )


def _queries(result: Result) -> list[tuple[Split, Query]]:
    return [(ranking.split, query) for ranking in result.rankings[COMPOSED] for query in ranking.split.queries]


def _group_numbers(result: Result) -> Int64[np.ndarray, " num_queries"]:
    """Return the number of every query's group, over all categories."""
    numbers, start = [], 0
    for own in groups_of(result.rankings[COMPOSED]).values():
        numbers.append(own + start)
        start += int(own.max()) + 1
    return np.concatenate(numbers)


def _missed(result: Result) -> Bool[np.ndarray, " num_queries"] | None:
    rankings = result.rankings[COMPOSED]
    if not all(ranking.top.shape[1] for ranking in rankings):
        return None
    return ~np.concatenate([solved(ranking) for ranking in rankings])


def _subset_places(rankings: Sequence[Ranking]) -> Int64[np.ndarray, " num_queries"]:
    """Return the target's place among the members of its subset, 0 where it is not in the known order."""
    return np.array([_place(order, query) for ranking in rankings for order, query in _orders(ranking)], np.int64)


def _orders(ranking: Ranking) -> Iterator[tuple[tuple[str, ...], Query]]:
    return zip(ranking.subset, ranking.split.queries, strict=True)


def _place(order: Sequence[str], query: Query) -> int:
    return order.index(query.targets[0]) + 1 if query.targets[0] in order else 0


# -- image sets --------------------------------------------------------------------------------------------------------


@dataclass
class _Member:
    num_asked: int = 0
    """Queries whose target it is."""
    num_found: int = 0
    """Of those, queries that put it first in the set."""
    num_wrong: int = 0
    """Queries that put it first although another was asked for."""


@dataclass
class _ImageSet:
    split: Split
    members: dict[str, _Member]
    num_queries: int = 0
    num_wrong: int = 0


def _hardest_sets(result: Result, pictures: _Pictures) -> list[tuple[_ImageSet, list[tuple[_Thumbnail, _Member]]]]:
    """Return the image sets with the most wrong first places, of those that several queries share."""
    sets: dict[tuple[str, ...], _ImageSet] = {}
    for ranking in result.rankings[COMPOSED]:
        for order, query in _orders(ranking):
            if order:
                names = tuple(sorted((query.reference, *query.subset)))
                members = {name: _Member() for name in names}
                image_set = sets.setdefault((ranking.split.category, *names), _ImageSet(ranking.split, members))
                target, first = query.targets[0], order[0]
                image_set.num_queries += 1
                image_set.num_wrong += first != target
                image_set.members[target].num_asked += 1
                image_set.members[target].num_found += first == target
                image_set.members[first].num_wrong += first != target
    shared = [found for found in sets.values() if found.num_queries > 1 and found.num_wrong]
    hardest = sorted(shared, key=lambda found: (-found.num_wrong, found.num_queries))[:NUM_IMAGE_SETS]
    return [
        (found, [(pictures.thumbnail(found.split, name), member) for name, member in found.members.items()])
        for found in hardest
    ]
