"""Negatives that the model itself takes for the target, mined from a ranking of the training images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from composir.errors import ComposirError
from composir.evaluation import PADDING, Ranking
from composir.evaluation.ranking import hits
from composir.files import write_text

Mined = dict[tuple[str, str], list[str]]
"""Names of negatives, the closest first, by category and query id; a query without any is not in it."""


def mine(rankings: Sequence[Ranking], *, depth: int, skip: int, margin: float) -> Mined:
    """Return, for every query, the wrong answers among its best ``depth``, less those that may well be right.

    Left out are the ``skip`` ranks on either side of the target's, and images whose score differs by less than
    ``margin`` from the target's: nobody has annotated them, and many fit the sentence. For a target that is not
    among the best, nothing is near it.
    """
    mined = {}
    for ranking in rankings:
        depth_there = min(depth, ranking.top.shape[1])
        ranks = np.arange(1, depth_there + 1)
        right = hits(ranking)[:, :depth_there]
        for row, query in enumerate(ranking.split.queries):
            places, scores = ranking.top[row, :depth_there], ranking.scores[row, :depth_there]
            usable = (places != PADDING) & ~right[row]
            target_rank = int(ranking.target_ranks[row])
            if 0 < target_rank <= depth_there:
                usable &= np.abs(ranks - target_rank) > skip
                usable &= np.abs(scores - scores[target_rank - 1]) >= margin
            names = [ranking.split.gallery[place] for place in places[usable]]
            if names:
                mined[ranking.split.category, query.id] = names
    return mined


def write_mined(mined: Mined, rankings: Sequence[Ranking], file: Path) -> None:
    """Write one line of JSON a query, for people and for ``read_mined``."""
    lines = []
    for ranking in rankings:
        for row, query in enumerate(ranking.split.queries):
            line = {
                "category": ranking.split.category,
                "id": query.id,
                "reference": query.reference,
                "text": query.text,
                "target": query.targets[0],
                "target_rank": int(ranking.target_ranks[row]),
                "negatives": mined.get((ranking.split.category, query.id), []),
            }
            lines.append(json.dumps(line, ensure_ascii=False))
    file.parent.mkdir(exist_ok=True)
    write_text(file, "\n".join(lines) + "\n")


def read_mined(file: Path) -> Mined:
    """Return what ``write_mined`` wrote; raise ``ComposirError`` for a file that is missing or damaged."""
    try:  # split at "\n" alone: a sentence may hold other line ends
        entries: list[Mapping[str, object]] = [
            json.loads(line) for line in file.read_text(encoding="utf-8").rstrip("\n").split("\n")
        ]
        return {
            (str(entry["category"]), str(entry["id"])): [str(name) for name in _list(entry["negatives"])]
            for entry in entries
            if entry["negatives"]
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ComposirError(
            f"cannot be read ({error})",
            file=file,
            expected="the negatives that the run mined before it stopped",
            fix="restore the file from the run folder, or start anew without --resume",
        ) from None


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("negatives are no list")
    return value
