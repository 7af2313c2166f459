"""Files of predictions: what the test servers take, written, checked and scored by one reader.

- **CIRR** (Test-split_server.md of its repository): two files, ``{"version": "rc2", "metric": "recall" |
  "recall_subset", "<pairid>": [names, best first]}`` with the best 50, or the best 3 of the image set, the reference
  left out, at most 5 MB each.
- **CIRCO** (its evaluation server): ``{"<query id>": [50 COCO image ids as integers]}``.
- **FashionIQ** (start_kit/eval.py of its repository): one file a category, the caption file's own entries, each with
  ``ranking``, names best first. The name of the file begins with the category: ``dress.val.pred.json``.
- **PinPoint** (README.md of its repository): ``{"<query id without query_>": {"retrieved_items": [names, best
  first]}}``, at most 50 names; where there are fewer, the rest counts as not found.
- **All others**, which have no server: ``{"<query id>": [names, best first]}``, and one such object by category where
  there are several: ``{"<category>": {"<query id>": [...]}}``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from composir.data.annotations import Entry, read_entries, read_json
from composir.data.triplets import Query, Split
from composir.errors import ComposirError, Problem, ProblemsError, nearest
from composir.evaluation.metrics import protocol_of
from composir.evaluation.ranking import DEPTH, PADDING, Ranking, check_gallery, describe, first_ranks, hits, pad_ranks
from composir.files import write_text

CIRR_VERSION = "rc2"
CIRR_DEPTHS = {"recall": DEPTH, "recall_subset": 3}
"""How many names a list of each of CIRR's two files holds."""
CIRR_MAX_BYTES = 5_000_000
WRITE_AGAIN = "write the file again (docs/evaluation.md says in which form)"

Lists = dict[str, tuple[str, ...]]
"""Names, best first, by query id."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """What one file holds of one split."""

    split: Split
    lists: Lists
    is_subset: bool = False
    """Whether the lists order the subset's members (CIRR's second file) instead of the gallery."""


def read_predictions(files: Sequence[Path], splits: Sequence[Split]) -> tuple[Ranking, ...]:
    """Return the rankings in ``files``, which are in the data set's own form, one per split.

    CIRR takes one or both of its files (one gives half of the figures), FashionIQ one a category. Every query of
    every split must be there, and no other; raises ``ProblemsError`` with everything wrong in all files. Where the
    list of the gallery is not there (``Split.missing_list``), the images that the files name are taken for members.
    """
    for split in splits:
        check_gallery(split)
    problems: list[Problem] = []
    read = [part for file in files for part in _read(file, splits, problems)]
    for number, part in enumerate(read):
        if any((other.split, other.is_subset) == (part.split, part.is_subset) for other in read[:number]):
            what = f"{describe(part.split)}{', the subset metric' if part.is_subset else ''}"
            problems.append(Problem(", ".join(map(str, files)), "", f"predictions of {what} come twice", "give one"))
    absent = [split for split in splits if not any(part.split is split for part in read)]
    if absent and not problems:
        names = ", ".join(describe(split) for split in absent)
        problems.append(
            Problem(
                ", ".join(map(str, files)), "", f"no predictions of {names}", "give its file as well, or leave it out"
            )
        )
    if problems:
        raise ProblemsError(problems)
    return tuple(_ranking(split, [part for part in read if part.split is split]) for split in splits)


def check_predictions(file: Path, splits: Sequence[Split]) -> list[Problem]:
    """Return everything that the test server, or ``read_predictions``, would not take in ``file``."""
    problems: list[Problem] = []
    _read(file, splits, problems)
    return problems


def write_submission(rankings: Sequence[Ranking], folder: Path) -> tuple[Path, ...]:
    """Write the test server's files of CIRR (two) or CIRCO (one) and return their paths.

    Nothing is split or cut: the server takes the files as they are. Raises ``ComposirError`` for another data set,
    and ``ProblemsError`` where what was written would not be taken.
    """
    require_test_server(rankings[0].split.dataset)
    (ranking,) = rankings
    split = ranking.split
    written = []
    for name, content in _SUBMISSIONS[split.dataset](ranking).items():
        file = folder / f"{split.dataset.lower()}_{split.name}{name}.json"
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(content, separators=(",", ":"), ensure_ascii=False))
        written.append(file)
    problems = [problem for file in written for problem in check_predictions(file, [split])]
    if problems:
        raise ProblemsError(problems)
    return tuple(written)


def require_test_server(dataset: str) -> None:
    """Raise ``ComposirError`` unless ``write_submission`` knows what the data set's test server takes."""
    if dataset not in _SUBMISSIONS:
        raise ComposirError(
            f"{dataset} has no test server",
            expected=" or ".join(_SUBMISSIONS),
            fix="composir evaluate measures it here",
        )


def predictions_hash(files: Sequence[Path]) -> str:
    """Return what stands in a signature for the weights where only predictions are known."""
    contents = sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)
    return f"predictions-{hashlib.sha256(''.join(contents).encode()).hexdigest()[:12]}"


# -- writing -----------------------------------------------------------------------------------------------------------


def _cirr_submission(ranking: Ranking) -> dict[str, dict[str, Any]]:
    lists = {
        "recall": _names(ranking),
        "recall_subset": [list(order[: CIRR_DEPTHS["recall_subset"]]) for order in ranking.subset],
    }
    ids = [query.id for query in ranking.split.queries]
    return {
        f"_{metric}": {"version": CIRR_VERSION, "metric": metric, **dict(zip(ids, names, strict=True))}
        for metric, names in lists.items()
    }


def _circo_submission(ranking: Ranking) -> dict[str, dict[str, Any]]:
    lists = [[int(name) for name in names] for names in _names(ranking)]
    return {"": {query.id: names for query, names in zip(ranking.split.queries, lists, strict=True)}}


_SUBMISSIONS: dict[str, Callable[[Ranking], dict[str, dict[str, Any]]]] = {
    "CIRR": _cirr_submission,
    "CIRCO": _circo_submission,
}
"""What each test server takes, by the end of the file's name."""


def _names(ranking: Ranking) -> list[list[str]]:
    gallery = ranking.split.gallery
    return [[gallery[place] for place in row if place != PADDING] for row in ranking.top.tolist()]


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(file: Path, splits: Sequence[Split], problems: list[Problem]) -> list[Predictions]:
    read = _READERS.get(splits[0].dataset, _read_plain)
    return read(file, splits, problems)


def _read_cirr(file: Path, splits: Sequence[Split], problems: list[Problem]) -> list[Predictions]:
    (split,) = splits
    content = read_json(file, dict, problems, restore=WRITE_AGAIN)
    if content is None:
        return []
    if file.stat().st_size > CIRR_MAX_BYTES:
        message = f"the file has {file.stat().st_size:,} bytes, the server takes {CIRR_MAX_BYTES:,}"
        problems.append(Problem(str(file), "", message, "write it without spaces and with 50 (3) names a query"))
    metric = content.pop("metric", None)
    version = content.pop("version", None)
    if version != CIRR_VERSION:
        problems.append(
            Problem(
                str(file), "version", f"is {version!r}, expected {CIRR_VERSION!r}", f'add "version": "{CIRR_VERSION}"'
            )
        )
    if not isinstance(metric, str) or metric not in CIRR_DEPTHS:
        expected = " or ".join(map(repr, CIRR_DEPTHS))
        problems.append(
            Problem(
                str(file), "metric", f"is {metric!r}, expected {expected}", 'add "metric": "recall" or "recall_subset"'
            )
        )
        return []
    is_subset = metric == "recall_subset"
    lists = _Lists(file, split, problems, depth=CIRR_DEPTHS[metric], exact=True, in_subset=is_subset)
    return [Predictions(split, lists.read(content), is_subset)]


def _read_circo(file: Path, splits: Sequence[Split], problems: list[Problem]) -> list[Predictions]:
    (split,) = splits
    content = read_json(file, dict, problems, restore=WRITE_AGAIN)
    if content is None:
        return []
    lists = _Lists(file, split, problems, depth=DEPTH, exact=True, item_type=int)
    return [Predictions(split, lists.read(content))]


def _read_fashioniq(file: Path, splits: Sequence[Split], problems: list[Problem]) -> list[Predictions]:
    split_by_category = {split.category: split for split in splits}
    category = file.name.split(".")[0]
    if category not in split_by_category:
        problems.append(
            Problem(
                str(file),
                "",
                f"the name begins with {category!r}, expected the category and a point",
                f"call it {splits[0].category}.{splits[0].name}.pred.json, if it is of {splits[0].category} "
                f"({nearest(category, split_by_category)})",
            )
        )
        return []
    split = split_by_category[category]
    num_problems = len(problems)
    entries = read_entries(file, problems, restore=WRITE_AGAIN)
    if len(entries) != len(split.queries) and len(problems) == num_problems:
        message = f"holds {len(entries):,} entries, the caption file {len(split.queries):,}"
        problems.append(Problem(str(file), "", message, "keep the caption file's entries, all and in order"))
    lists = _Lists(file, split, problems, depth=_max_k(split), exact=False)
    found: Lists = {}
    for entry, query in zip(entries, split.queries, strict=False):
        if entry.get("candidate", str) not in (None, query.reference):
            entry.problem(
                f"candidate is {entry.fields['candidate']!r}, in the caption file {query.reference!r}",
                "keep the caption file's entries, all and in order",
            )
        ranking = entry.get("ranking", list)
        if ranking is not None:
            found[query.id] = lists.check(entry, query, ranking)
    return [Predictions(split, found)]


def _read_pinpoint(file: Path, splits: Sequence[Split], problems: list[Problem]) -> list[Predictions]:
    (split,) = splits
    content: dict[str, Any] | None = read_json(file, dict, problems, restore=WRITE_AGAIN)
    if content is None:
        return []
    id_by_key = {query.id.removeprefix("query_").zfill(5): query.id for query in split.queries}
    found: dict[str, list[Any]] = {}
    for key in content:
        entry = Entry(file, f"query {key}", content, problems, WRITE_AGAIN)
        fields = entry.get(key, dict)
        names = None if fields is None else dataclasses.replace(entry, fields=fields).get("retrieved_items", list)
        found[id_by_key.get(key, key)] = names or []
    lists = _Lists(file, split, problems, depth=0, exact=False)
    return [Predictions(split, lists.read(found))]


def _read_plain(file: Path, splits: Sequence[Split], problems: list[Problem]) -> list[Predictions]:
    content = read_json(file, dict, problems, restore=WRITE_AGAIN)
    if content is None:
        return []
    by_category = content if splits[0].category else {"": content}
    split_by_category = {split.category: split for split in splits}
    read = []
    for category, lists in by_category.items():
        if category not in split_by_category:
            message = f"there is no category {category!r}"
            problems.append(Problem(str(file), "", message, nearest(category, split_by_category)))
        elif not isinstance(lists, dict):
            problems.append(Problem(str(file), category, "holds no lists by query id", WRITE_AGAIN))
        else:
            split = split_by_category[category]
            reader = _Lists(file, split, problems, depth=_max_k(split), exact=False)
            read.append(Predictions(split, reader.read(lists)))
    return read


_READERS: dict[str, Callable[[Path, Sequence[Split], list[Problem]], list[Predictions]]] = {
    "CIRR": _read_cirr,
    "CIRCO": _read_circo,
    "FashionIQ": _read_fashioniq,
    "PinPoint": _read_pinpoint,
}


@dataclass(frozen=True)
class _Lists:
    """Reads the lists of a file by query id; what is wrong is added to ``problems``."""

    file: Path
    split: Split
    problems: list[Problem]
    depth: int
    """How many names a list holds, where there are so many candidates."""
    exact: bool
    """Whether a longer list is wrong."""
    in_subset: bool = False
    item_type: type = str

    def read(self, content: Mapping[str, Any]) -> Lists:
        """Return the checked lists by id; queries that are missing or unknown are problems."""
        query_by_id = {query.id: query for query in self.split.queries}
        self._report("missing queries", [query_id for query_id in query_by_id if query_id not in content])
        self._report(
            f"queries that are not in {describe(self.split)}", [name for name in content if name not in query_by_id]
        )
        found: Lists = {}
        for query_id, query in query_by_id.items():
            if query_id in content:
                fields = {"list": content[query_id]}
                entry = Entry(self.file, f"query {query_id}", fields, self.problems, WRITE_AGAIN)
                names = entry.get("list", list)
                if names is not None:
                    found[query_id] = self.check(entry, query, names)
        return found

    def check(self, entry: Entry, query: Query, items: list[Any]) -> tuple[str, ...]:
        """Return the names of one list after adding to the problems what is wrong with it."""
        typed = [entry.typed(f"item {number}", item, self.item_type) for number, item in enumerate(items, 1)]
        names = [str(item) for item in typed if item is not None]
        repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if repeated:
            entry.problem(f"named more than once: {_listed(repeated)}", "name every image once")
        candidates = self._candidates(query)
        for reference in query.references:
            if reference in names and reference not in candidates:
                entry.problem(f"holds the reference {reference!r}", "leave the query's own picture out")
        unknown = [name for name in dict.fromkeys(names) if name not in candidates and name not in query.references]
        is_listed = self.split.missing_list is None
        if unknown and is_listed:
            where = "the query's image set" if self.in_subset else "the gallery"
            entry.problem(f"not in {where}: {_listed(unknown)}", f"name images of {describe(self.split)}")
        expected = min(self.depth, len(candidates)) if is_listed else self.depth
        if len(items) < expected or (self.exact and len(items) > expected):
            least = "" if self.exact else "at least "
            entry.problem(f"holds {len(items)} names, expected {least}{expected}", "give the best, in order")
        return tuple(names)

    def _candidates(self, query: Query) -> frozenset[str]:
        if self.in_subset:
            return frozenset(query.subset)
        candidates = frozenset(query.gallery) if query.gallery else self._gallery
        return candidates.difference(query.references) if self.split.exclude_reference else candidates

    @cached_property
    def _gallery(self) -> frozenset[str]:
        return frozenset(self.split.gallery)

    def _report(self, what: str, ids: Sequence[str]) -> None:
        if ids:
            fix = f"give one list for each of the {len(self.split.queries):,} queries of {describe(self.split)}"
            self.problems.append(Problem(str(self.file), "", f"{what} ({len(ids):,}): {_listed(ids)}", fix))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _max_k(split: Split) -> int:
    protocol = protocol_of(split.dataset)
    return max(*protocol.recall_ks, *protocol.map_ks, *(k for ks in protocol.others.values() for k in ks))


def _ranking(split: Split, parts: Sequence[Predictions]) -> Ranking:
    """Return the ranking that one or two files give; scores are not known."""
    lists = next((part.lists for part in parts if not part.is_subset), None)
    subset_lists = next((part.lists for part in parts if part.is_subset), {})
    if split.missing_list and lists is not None:
        named = dict.fromkeys(name for names in lists.values() for name in names)
        split = dataclasses.replace(split, gallery=tuple(dict.fromkeys([*split.gallery, *named])))
    place_by_name = {name: place for place, name in enumerate(split.gallery)}
    top = np.full((len(split.queries), 0 if lists is None else DEPTH), PADDING, np.int64)
    if lists is not None:
        for row, query in enumerate(split.queries):
            places = [place_by_name[name] for name in lists[query.id][:DEPTH]]
            top[row, : len(places)] = places
    ranking = Ranking(
        split=split,
        top=top,
        scores=np.where(top == PADDING, -np.inf, np.nan).astype(np.float32),
        target_ranks=np.zeros(len(split.queries), np.int64),
        subset=tuple(subset_lists.get(query.id, ()) for query in split.queries),
    )
    ranks = first_ranks(hits(ranking, annotated_only=True))
    right_ranks = None
    if lists is not None and all(query.gallery for query in split.queries):
        right_ranks = _right_ranks(split, lists)
    return dataclasses.replace(ranking, target_ranks=ranks, right_ranks=right_ranks)


def _right_ranks(split: Split, lists: Lists) -> Int64[np.ndarray, "num_queries num_right"]:
    """Return the rank of every right answer in its query's whole list, 0 for one that is not in it."""
    rows = []
    for query in split.queries:
        rank_by_name = {name: rank for rank, name in enumerate(lists[query.id], 1)}
        rows.append([rank_by_name.get(name, 0) for name in query.targets])
    return pad_ranks(rows)
