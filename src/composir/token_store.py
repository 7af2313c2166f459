"""Image tokens on disk by the content of the image: fp16 rows of one growing file, what is where in SQLite."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from composir.data.images.files import read_bytes
from composir.errors import ComposirError
from composir.files import require_locks, require_space
from composir.progress import Counted

DATABASE, DATA = "tokens.sqlite", "tokens.f16"
BUSY_SECONDS = 600
"""How long a process waits until another one has written down its tokens."""
HASHED_AT_ONCE = 1000
"""Files between two commits of what they hold."""
CACHE_FIX = "give another --cache-dir, or --cache memory or off; what was computed is kept"
NO_LOCKS_FIX = "give --cache-dir (or $COMPOSIR_CACHE) a folder on a local disk, or --cache memory or off"

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS images (row INTEGER PRIMARY KEY, image TEXT UNIQUE NOT NULL)",
    """CREATE TABLE IF NOT EXISTS files (
        path TEXT PRIMARY KEY, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, content TEXT NOT NULL
    )""",
)

Status = tuple[int, int, int]
"""Size, time of modification and time of change of a file: while they stay, its content is taken to stay."""


class TokenStore:
    """The tokens of one tower with one transform, of shape ``(tokens, width)`` an image, in a folder.

    A row counts once SQLite has committed it, after its bytes are on disk. What a killed process left behind the last
    row is written over by the next one, and rows that the data file has lost are forgotten. Several processes may read
    and add at once: adding is one transaction, and what another process has added meanwhile is not added again.
    """

    def __init__(self, folder: Path, shape: tuple[int, int]) -> None:
        self.folder = folder
        self.shape = shape
        self.row_bytes = shape[0] * shape[1] * np.dtype(np.float16).itemsize
        with self._errors():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / DATA).touch()
            require_locks(folder, NO_LOCKS_FIX)
            self._database = sqlite3.connect(
                folder / DATABASE, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            with self._transaction():
                for statement in _SCHEMA:
                    self._database.execute(statement)
                num_there = (folder / DATA).stat().st_size // self.row_bytes
                self._database.execute("DELETE FROM images WHERE row >= ?", (num_there,))

    def close(self) -> None:
        """Give up the database; what ``map`` returned stays."""
        self._database.close()

    def contents(self, files: Iterable[Path], *, num_workers: int, progress: Counted | None = None) -> dict[Path, str]:
        """Return the SHA-256 of every file; one that is as it was when it was last read is not read again.

        A file that cannot be read raises ``ComposirError``.
        """
        known = {
            path: ((size, mtime, ctime), content)
            for path, size, mtime, ctime, content in self._query("SELECT * FROM files")
        }
        status_by_file = {file: _status(file) for file in files}
        content_by_file = {}
        for file, status in status_by_file.items():
            before, content = known.get(str(file.resolve()), (None, ""))
            if status is not None and status == before:
                content_by_file[file] = content
        waiting = [file for file in status_by_file if file not in content_by_file]
        with ThreadPoolExecutor(num_workers) as pool:
            for start in range(0, len(waiting), HASHED_AT_ONCE):
                some = waiting[start : start + HASHED_AT_ONCE]
                content_by_file |= zip(some, pool.map(_hash, some), strict=True)
                rows = [
                    (str(file.resolve()), *status, content_by_file[file])
                    for file in some
                    if (status := status_by_file[file]) is not None
                ]
                with self._errors(), self._transaction():
                    self._database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
                if progress is not None:
                    progress(start + len(some), len(waiting))
        return content_by_file

    def rows(self) -> Mapping[str, int]:
        """Return the row of every image that is here."""
        return dict(self._query("SELECT image, row FROM images"))

    def require_space(self, num_images: int) -> None:
        """Raise ``ComposirError``, with the figures, where the disk cannot hold so many images more."""
        require_space(
            self.folder,
            num_images * self.row_bytes,
            what=f"the tokens of {num_images:,} images",
            fix="give a --cache-dir on a larger disk, or --cache memory or off",
        )

    def add(self, images: Sequence[str], tokens: Float16[np.ndarray, "images tokens width"]) -> None:
        """Keep the tokens of these images; when this returns they are on disk."""
        with self._errors(), self._transaction():
            new = [place for place, image in enumerate(images) if not self._has(image)]
            (first,) = self._database.execute("SELECT COALESCE(MAX(row) + 1, 0) FROM images").fetchone()
            with (self.folder / DATA).open("r+b") as file:
                file.seek(first * self.row_bytes)
                file.write(tokens[new].tobytes())
                file.flush()
                os.fsync(file.fileno())
            self._database.executemany("INSERT INTO images VALUES (?, ?)", enumerate((images[i] for i in new), first))

    def map(self) -> Float16[np.ndarray, "rows tokens width"]:
        """Return all rows, memory-mapped."""
        num_rows = (self.folder / DATA).stat().st_size // self.row_bytes
        if not num_rows:
            return np.empty((0, *self.shape), np.float16)
        # Copy on write, never written to: torch wants arrays it could write to.
        return np.memmap(self.folder / DATA, np.float16, "c", shape=(num_rows, *self.shape))

    def _has(self, image: str) -> bool:
        return self._database.execute("SELECT 1 FROM images WHERE image = ?", (image,)).fetchone() is not None

    def _query(self, statement: str) -> list[tuple]:
        with self._errors():
            return self._database.execute(statement).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ComposirError(f"cannot be written ({error.strerror})", file=self.folder, fix=CACHE_FIX) from None
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise ComposirError(
                    f"another process has kept this cache locked for {BUSY_SECONDS} s",
                    file=self.folder,
                    fix="let it end; where none runs, a machine that is gone left the lock: give another --cache-dir",
                ) from None
            raise ComposirError(f"cannot be written ({error})", file=self.folder, fix=CACHE_FIX) from None
        except sqlite3.DatabaseError as error:
            raise ComposirError(
                f"is damaged ({error})", file=self.folder / DATABASE, fix=f"delete {self.folder}; it is computed again"
            ) from None


def _status(file: Path) -> Status | None:
    try:
        status = file.stat()
    except (OSError, ValueError):  # reading it says what is wrong
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _hash(file: Path) -> str:
    return hashlib.sha256(read_bytes(file)).hexdigest()
