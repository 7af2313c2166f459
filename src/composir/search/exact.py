"""Every image is looked at: the default, and what the other engines are measured against."""

from __future__ import annotations

from torch import Tensor

from composir.progress import Progress
from composir.search.index import Hits, Index, scan


class ExactIndex(Index):
    """One product with all vectors, block by block from the memory map. Time grows with the number of images."""

    def _search(self, queries: Tensor, top_k: int, where: str | None) -> Hits:
        return scan(self.snapshot, queries, self._rows_at(where), top_k)

    def _update(self, progress: Progress | None) -> None:
        """The table is all there is."""
