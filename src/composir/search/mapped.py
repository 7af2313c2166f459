"""A second set of vectors beside an index's own: what a head's map of targets makes of them."""

from __future__ import annotations

import errno
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from composir.errors import ComposirError
from composir.files import locked, replacing, require_space
from composir.models.heads.head import Head
from composir.search.exact import ExactIndex
from composir.search.index import FLOATS_AT_ONCE, float32
from composir.search.table import NO_LOCKS_FIX, Snapshot, Table

LOCK, FILES = "mapped.lock", "mapped-*.f16"
WAIT_SECONDS = 600
"""How long a process waits for another one that makes a set."""
ROOM = "make room on its disk, or leave out --model: the index itself needs none"


class MappedIndex(ExactIndex):
    """The images of an index by the vectors that a head maps theirs to; all are looked at.

    They are one file in the index folder, for one head and one state of the index: made once, under a lock, whole or
    not at all, and found again. The set before goes first, so that there is never more than one; whoever searches by
    it still may. The index's own files stay as they are.
    """

    def __init__(self, table: Table, head: Head, identity: str) -> None:
        self.head, self.identity = head, identity
        super().__init__(table, {})

    def load(self) -> None:
        """See what was saved last, by whichever process, and map it where that was not done yet.

        Raises ``ComposirError`` where the disk has no room for it or cannot be written to.
        """
        super().load()
        own = self.snapshot
        if not len(own.vectors):
            return
        words = f"{self.identity} {own.vectors.shape}".encode()
        file = self.table.folder / FILES.replace("*", hashlib.sha256(words + own.ids.tobytes()).hexdigest()[:16])
        vectors = _read(file, own)
        if vectors is None:
            refusal = ComposirError(
                f"another process has mapped this index for {WAIT_SECONDS} s", file=file.parent, fix="let it end"
            )
            with locked(file.parent / LOCK, refusal, without_locks=NO_LOCKS_FIX, seconds=WAIT_SECONDS):
                vectors = _read(file, own)
                if vectors is None:
                    clear_mapped(file.parent)
                    self._write(own, file)
                    vectors = _read(file, own)
        assert vectors is not None
        self.snapshot = replace(own, vectors=vectors)

    @torch.no_grad()
    def _write(self, own: Snapshot, file: Path) -> None:
        require_space(file.parent, own.vectors.nbytes, what="the vectors that the head maps the index's to", fix=ROOM)
        rows_at_once = max(1, FLOATS_AT_ONCE // own.vectors[0].size)
        try:
            with replacing(file) as temporary, temporary.open("wb") as written:
                for start in range(0, len(own.vectors), rows_at_once):
                    vectors = float32(own.vectors[start : start + rows_at_once]).to(self.head.device)
                    written.write(self.head.map_targets(vectors).cpu().numpy().astype(np.float16).tobytes())
        except OSError as error:
            raise ComposirError(
                f"cannot be written ({error.strerror})",
                file=file.parent,
                fix=ROOM if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable",
            ) from error


def clear_mapped(folder: Path) -> None:
    """Remove the set of an index folder, and what a killed process left of one; the index's own files stay."""
    for file in (*folder.glob(FILES), *folder.glob(f".{FILES}.*.part")):
        file.unlink(missing_ok=True)


def _read(file: Path, own: Snapshot) -> np.ndarray | None:
    """Return the mapped vectors of the snapshot, memory-mapped; None where there are none, or not all."""
    try:
        if file.stat().st_size != own.vectors.nbytes:
            return None
        # Copy on write, never written to: torch wants arrays it could write to.
        return np.memmap(file, np.float16, "c", shape=own.vectors.shape)
    except FileNotFoundError:
        return None
