"""What every search engine of an index can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from composir.cache import Cache
from composir.progress import Progress
from composir.scoring import similarity
from composir.search.table import Snapshot, Table

FLOATS_AT_ONCE = 2**20
"""Vector elements turned to float32 at once: 4 MB, which stays in a processor's cache."""
SCORES_AT_ONCE = 2**24
PATTERN_BYTES = 128 * 2**20
"""Of what is kept of the last path patterns: the rows of a pattern that leaves a million images are 8 MB."""

Hits = list[list[tuple[str, float]]]
"""For every query, ids and scores, best first."""
T = TypeVar("T")


class Index(ABC):
    """Images, each of several vectors, and the search for those with the largest dot product with a query.

    What ``add`` and ``remove`` do counts from ``save`` on, also for whoever opens the index after a crash.
    """

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of an index, with what the engine chooses itself where they do not say."""
        return dict(options)

    @classmethod  # noqa: B027 (the table is all that some engines keep)
    def clear(cls, folder: Path) -> None:
        """Remove what the engine keeps in an index folder beside the table."""

    def __init__(self, table: Table, options: Mapping[str, Any]) -> None:
        self.table = table
        self.options = options
        self.snapshot: Snapshot
        self._patterns = Cache[tuple[int, int, str, str], Any](PATTERN_BYTES)
        self.load()

    def __len__(self) -> int:
        return len(self.snapshot)

    def add(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Add images; ``vectors`` is (len(ids), vectors, dim), finite, the ids are new."""
        self.table.append(ids, vectors)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove images; ids that are not there are passed over."""
        self.table.delete(ids)

    def save(self, progress: Progress | None = None) -> None:
        """Make what was added and removed count, and bring the engine up to it."""
        self.table.commit(complete=False)
        self.table.compact()
        self._update(progress)
        self.table.commit(complete=True)
        self.load()

    def load(self) -> None:
        """See what was saved last, by whichever process."""
        self.snapshot = self.table.snapshot()

    def warm(self) -> None:  # noqa: B027 (most engines have nothing that pays)
        """Do once what makes later searches faster, and what one search alone would not pay for."""

    def close(self) -> None:  # noqa: B027 (most engines hold nothing open)
        """Give up what the engine holds open."""

    def search(self, queries: Float[Tensor, "num_queries dim"], top_k: int, *, where: str | None = None) -> Hits:
        """Return the ``top_k`` images for every query, fewer if there are not so many; scores are float32.

        ``where`` is a pattern (``*``, ``?``, ``[a-z]``; ``*`` crosses folders) for the path of a file of the image,
        relative to the root. Images of one score come in the order in which they were added.
        """
        queries = queries.float().cpu()
        if not len(self) or not len(queries):
            return [[] for _ in queries]
        return self._search(queries, min(top_k, len(self)), where)

    @abstractmethod
    def _search(self, queries: Tensor, top_k: int, where: str | None) -> Hits: ...

    @abstractmethod
    def _update(self, progress: Progress | None) -> None: ...

    def _rows_at(self, where: str | None) -> np.ndarray:
        """Return the rows that a pattern leaves."""
        if where is None:
            return self.snapshot.rows
        return self._once(
            "rows", where, lambda: self.snapshot.rows_of(self.table.ids_at(where)), lambda rows: rows.nbytes
        )

    def _once(self, what: str, where: str, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """Return what is made of a pattern, made once a state of the table and of what was loaded of it.

        ``size`` says how many bytes that is.
        """
        key = self.snapshot.version, self.table.version, what, where
        made = self._patterns.get(key)
        if made is None:
            made = make()
            self._patterns.put(key, made, size(made))
        return made


def scan(snapshot: Snapshot, queries: Tensor, rows: np.ndarray, top_k: int) -> Hits:
    """Return the ``top_k`` of ``rows`` (ascending) for every query, all of them looked at, in float32."""
    num_vectors, dim = snapshot.vectors.shape[1:]
    rows_at_once = max(1, FLOATS_AT_ONCE // (num_vectors * dim))
    whole = len(rows) == len(snapshot.vectors)  # slices of a memory map are not copied
    found: Hits = []
    for block in queries.split(max(1, SCORES_AT_ONCE // max(1, len(rows)))):
        scores = torch.empty(len(block), len(rows))
        for start in range(0, len(rows), rows_at_once):
            stop = min(start + rows_at_once, len(rows))
            vectors = snapshot.vectors[start:stop] if whole else snapshot.vectors[rows[start:stop]]
            scores[:, start:stop] = similarity(block, float32(vectors))
        found += [_best(snapshot, row, rows, top_k) for row in scores]
    return found


def float32(vectors: np.ndarray) -> Float[Tensor, "*shape"]:
    """Return vectors as float32, without a copy where they are."""
    return torch.from_numpy(vectors).float()


def _best(snapshot: Snapshot, scores: Tensor, rows: np.ndarray, top_k: int) -> list[tuple[str, float]]:
    """Return ids and scores of the best; of equal ones the lower row first, also where only some still fit."""
    if not len(rows):
        return []
    least = scores.topk(min(top_k, len(scores))).values[-1]
    places = torch.nonzero(scores >= least)[:, 0]
    places = places[scores[places].argsort(descending=True, stable=True)][:top_k]
    names = snapshot.ids[rows[places.numpy()]]
    return [(name.decode(), score) for name, score in zip(names, scores[places].tolist(), strict=True)]
