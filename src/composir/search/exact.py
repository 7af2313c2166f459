"""Every image is looked at: the default, and what the other engines are measured against."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from composir.machine import available_memory
from composir.progress import Progress
from composir.search.index import FLOATS_AT_ONCE, Hits, Index, float32, scan
from composir.search.table import Snapshot

KEPT_SHARE = 0.25
"""Of the free memory: vectors that take no more as float32 are kept so by ``warm``."""


class ExactIndex(Index):
    """One product with all vectors, block by block. Time grows with the number of images.

    A search reads fp16 from the memory map and turns it to float32; ``warm`` does that once for all searches, where the
    memory allows it. Both give the same scores, bit for bit.
    """

    def load(self) -> None:
        """See what was saved last, by whichever process."""
        super().load()
        self._kept: Snapshot | None = None

    def warm(self) -> None:
        """Keep the vectors in memory as float32, where that takes no more than ``KEPT_SHARE`` of what is free."""
        self._kept = _in_float32(self.snapshot)

    def _search(self, queries: Tensor, top_k: int, where: str | None) -> Hits:
        return scan(self._kept or self.snapshot, queries, self._rows_at(where), top_k)

    def _update(self, progress: Progress | None) -> None:
        """The table is all there is."""


def _in_float32(snapshot: Snapshot) -> Snapshot | None:
    """Return a snapshot with its vectors in memory, as float32; None where that takes too much of it."""
    num_bytes = snapshot.vectors.size * np.dtype(np.float32).itemsize
    if not num_bytes or num_bytes > KEPT_SHARE * (available_memory() or 0):
        return None
    kept = np.empty(snapshot.vectors.shape, np.float32)  # numpy's: it asks the system for large pages
    rows_at_once = max(1, FLOATS_AT_ONCE // snapshot.vectors[0].size)
    for start in range(0, len(kept), rows_at_once):
        stop = start + rows_at_once
        torch.from_numpy(kept[start:stop]).copy_(float32(snapshot.vectors[start:stop]))
    return replace(snapshot, vectors=kept)
