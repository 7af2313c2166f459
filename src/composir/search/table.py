"""The images of an index on disk: their vectors in one memory-mapped file, what they are called in SQLite.

A commit is one SQLite transaction, made after the vectors it speaks of are on disk. Rows of the vector file are only
ever appended, so whoever searches an older snapshot is not disturbed, and whatever a killed writer left behind the
last committed row is written over by the next.
"""

from __future__ import annotations

import os
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np

from composir.data.images.files import ID_LENGTH
from composir.errors import ComposirError
from composir.files import locked, require_locks

DATABASE, WRITER_LOCK = "images.sqlite", "writer.lock"
ROWS_AT_ONCE = 10_000
COMPACT_ABOVE = 0.2
"""Share of removed rows above which the vector file is written anew without them."""
NO_LOCKS_FIX = "keep the index on a local disk: composir index IMAGES_DIR --out FOLDER"
BUSY_SECONDS = 60
"""How long a reader or writer waits for the other's transaction."""

_FITS = "(path GLOB ? OR (LENGTH(path) <> LENGTH(CAST(path AS BLOB)) AND nfc(path) GLOB ?))"
"""Whether a path fits a pattern in NFC, asked for twice: only of a path that is not ASCII may NFC differ."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS state (vectors_file TEXT, num_rows INTEGER, version INTEGER, complete INTEGER);
INSERT INTO state SELECT 'vectors-1.f16', 0, 0, 0 WHERE NOT EXISTS (SELECT 1 FROM state);
CREATE TABLE IF NOT EXISTS images (row INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, pushed INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS removed (id TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, id TEXT NOT NULL, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER
);
CREATE INDEX IF NOT EXISTS files_by_id ON files (id, path);
"""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was when it was read; ``path`` is relative to the root, with forward slashes."""

    path: str
    id: str
    size: int
    mtime_ns: int
    ctime_ns: int

    def is_as(self, status: os.stat_result) -> bool:
        """Return whether a file that looks like this has not changed since."""
        now = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        return now == (self.size, self.mtime_ns, self.ctime_ns)


@dataclass(frozen=True)
class Snapshot:
    """What one commit left: it stays as it is while a writer goes on."""

    version: int
    file: str
    """Name of the vector file; another name means that rows were numbered anew."""
    vectors: np.ndarray
    """(rows, vectors, dim): fp16, memory-mapped, or the same numbers in memory as float32."""
    ids: np.ndarray
    """ASCII (rows,), empty where the image was removed."""

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def rows(self) -> np.ndarray:
        """The rows that hold an image, ascending."""
        return np.flatnonzero(self.ids != b"")

    @cached_property
    def _rows_by_id(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.ids, kind="stable")
        return self.ids[order], order

    def read_ahead(self, rows: np.ndarray) -> None:
        """Ask the system for rows that lie apart, all at once.

        Read through the memory map, each would be waited for, with 100 kB around it: 80 of 16 kB each that were not in
        memory took 500 ms, and 3 ms when asked for before.
        """
        if hasattr(os, "posix_fadvise") and isinstance(self.vectors, np.memmap):
            size = self.vectors[0].nbytes
            with suppress(FileNotFoundError), Path(str(self.vectors.filename)).open("rb") as file:  # replaced meanwhile
                for row in rows.tolist():
                    os.posix_fadvise(file.fileno(), row * size, size, os.POSIX_FADV_WILLNEED)

    def rows_of(self, ids: Sequence[str] | np.ndarray) -> np.ndarray:
        """Return the rows of those ids that are here, ascending, each once; arrays of ids are ASCII."""
        wanted = np.asarray(ids, dtype=f"S{ID_LENGTH}")
        if not len(wanted) or not len(self.ids):
            return np.empty(0, np.int64)
        known, order = self._rows_by_id
        places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        is_wanted = np.zeros(len(known), bool)
        is_wanted[order[places[known[places] == wanted]]] = True
        return np.flatnonzero(is_wanted)


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the right to change an index, till the end or a kill; raise ``ComposirError`` where another process does."""
    refusal = ComposirError(
        "another process is changing this index", file=folder, fix="let it end, then run the command again"
    )
    with locked(folder / WRITER_LOCK, refusal, without_locks=NO_LOCKS_FIX):
        yield


class Table:
    """Images by id, each with ``num_vectors`` vectors of ``dim``, and the files they were read from.

    Nothing that is appended or deleted counts before ``commit``. Who changes it holds ``writing`` and calls ``recover``
    first.
    """

    def __init__(self, folder: Path, *, num_vectors: int, dim: int) -> None:
        self.folder = folder
        self.shape = (num_vectors, dim)
        folder.mkdir(parents=True, exist_ok=True)
        require_locks(folder, NO_LOCKS_FIX)
        self._lock = Lock()  # one connection for all threads
        self._database = sqlite3.connect(folder / DATABASE, timeout=BUSY_SECONDS, check_same_thread=False)
        self._database.create_function("nfc", 1, _nfc, deterministic=True)
        if not self._query("SELECT 1 FROM sqlite_master WHERE name = 'files_by_id'"):
            self._database.executescript(_SCHEMA)
        self._num_rows = self._state()[1]

    def close(self) -> None:
        """Give up the database."""
        self._database.close()

    # -- reading ---------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return the images as last committed."""
        with self._lock:
            self._database.execute("SAVEPOINT snapshot")  # one transaction, or a writer may come between
            try:
                file, num_rows, version, _ = self._database.execute("SELECT * FROM state").fetchone()
                ids = np.zeros(num_rows, f"S{ID_LENGTH}")
                cursor = self._database.execute("SELECT row, id FROM images")
                while rows := cursor.fetchmany(ROWS_AT_ONCE):
                    places, names = zip(*rows, strict=True)
                    ids[list(places)] = names
                vectors = self._map(file, num_rows)
            finally:
                self._database.execute("RELEASE snapshot")
        return Snapshot(version, file, vectors, ids)

    def __len__(self) -> int:
        return self._query("SELECT COUNT(*) FROM images")[0][0]

    @property
    def version(self) -> int:
        """A number that grows with every commit."""
        return self._state()[2]

    @property
    def complete(self) -> bool:
        """Whether the last run that changed the index came to its end."""
        return bool(self._state()[3])

    def has(self, image_id: str) -> bool:
        """Return whether the image is there, committed or not."""
        return bool(self._query("SELECT 1 FROM images WHERE id = ?", image_id))

    def files(self) -> Iterator[FileRecord]:
        """Yield every file, in the order of the paths."""
        for row in self._query("SELECT * FROM files ORDER BY path"):
            yield FileRecord(*row)

    def paths_of(self, image_id: str, where: str | None = None) -> list[str]:
        """Return the paths of all files with the image's content, in order; those that fit a pattern, where given."""
        fits, values = ("1", ()) if where is None else (_FITS, (_nfc(where),) * 2)
        rows = self._query(f"SELECT path FROM files WHERE id = ? AND {fits} ORDER BY path", image_id, *values)
        return [path for (path,) in rows]

    def records_of(self, image_id: str) -> list[FileRecord]:
        """Return all files with the image's content, in the order of their paths."""
        return [FileRecord(*row) for row in self._query("SELECT * FROM files WHERE id = ? ORDER BY path", image_id)]

    def ids_at(self, pattern: str) -> np.ndarray:
        """Return the ids of files whose path fits the pattern (``*``, ``?``, ``[a-z]``; ``[[]`` is ``[``).

        ASCII (files,): an image with several such files comes as often. Letters with accents are the same whether they
        are spelt as one character (NFC) or as two (NFD).
        """
        # One text instead of 100,000 rows: a third of the time.
        ((joined,),) = self._query(f"SELECT GROUP_CONCAT(id, '') FROM files WHERE {_FITS}", *[_nfc(pattern)] * 2)
        return np.frombuffer((joined or "").encode(), f"S{ID_LENGTH}")

    def images_in_order(self, start: int, count: int) -> list[tuple[str, str]]:
        """Return id and first path of ``count`` images from place ``start``, in the order of these paths."""
        return self._query(
            "SELECT id, MIN(path) FROM files GROUP BY id ORDER BY MIN(path) LIMIT ? OFFSET ?", count, start
        )

    # -- writing ---------------------------------------------------------------------------------------------------

    def recover(self) -> None:
        """Cut off what was never committed, and remove the vector files of other commits."""
        name, num_rows, *_ = self._state()
        self._map(name, num_rows)  # refuses a file that is too short
        file = self.folder / name
        with file.open("ab") as vectors:
            vectors.truncate(num_rows * self._stride)
        for other in self.folder.glob("vectors-*.f16"):
            if other != file:
                other.unlink()
        self._num_rows = num_rows

    def append(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Add images that are not there yet; ``vectors`` is (len(ids), vectors, dim), kept as fp16."""
        if vectors.shape != (len(ids), *self.shape):
            raise ValueError(f"vectors of shape {vectors.shape} for {len(ids)} images of {self.shape}")
        if not np.isfinite(vectors).all():
            raise ValueError("vectors that are not finite")
        rows = range(self._num_rows, self._num_rows + len(ids))
        with self._lock:
            self._database.executemany("INSERT INTO images VALUES (?, ?, 0)", zip(rows, ids, strict=True))
            with (self.folder / self._state_row()[0]).open("r+b") as file:
                file.seek(self._num_rows * self._stride)
                file.write(np.ascontiguousarray(vectors, np.float16).tobytes())
                file.flush()
                os.fsync(file.fileno())
            self._num_rows += len(ids)

    def delete(self, ids: Iterable[str]) -> None:
        """Remove images; ids that are not there are passed over."""
        rows = [(image_id,) for image_id in ids]
        with self._lock:
            self._database.executemany("INSERT OR REPLACE INTO removed SELECT id FROM images WHERE id = ?", rows)
            self._database.executemany("DELETE FROM images WHERE id = ?", rows)

    def put_files(self, records: Iterable[FileRecord]) -> None:
        """Say of files which image they hold; what was said of the same paths before is replaced."""
        rows = [(record.path, record.id, record.size, record.mtime_ns, record.ctime_ns) for record in records]
        with self._lock:
            self._touch([path for path, *_ in rows])
            self._database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)
            self._database.executemany("UPDATE images SET pushed = 0 WHERE id = ?", [(row[1],) for row in rows])

    def drop_files(self, paths: Sequence[str]) -> None:
        """Forget files that are gone."""
        with self._lock:
            self._touch(paths)
            self._database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])

    def ids_without_files(self) -> list[str]:
        """Return the images that no file holds any more."""
        return [i for (i,) in self._query("SELECT id FROM images WHERE id NOT IN (SELECT id FROM files)")]

    def commit(self, *, complete: bool) -> None:
        """Make all changes count, at once; ``complete`` says whether the run that makes them ends with it."""
        with self._lock:
            self._database.execute(
                "UPDATE state SET num_rows = ?, version = version + 1, complete = ?", (self._num_rows, complete)
            )
            self._database.commit()

    def compact(self) -> None:
        """Write the vector file anew without removed rows, if they are many; commits."""
        with self._lock:
            old, num_rows, *_ = self._state_row()
            rows = [row for (row,) in self._database.execute("SELECT row FROM images ORDER BY row")]
            if num_rows - len(rows) <= COMPACT_ABOVE * num_rows:
                return
            new = f"vectors-{int(old.removeprefix('vectors-').removesuffix('.f16')) + 1}.f16"
            vectors = self._map(old, num_rows)
            with (self.folder / new).open("wb") as file:
                for start in range(0, len(rows), ROWS_AT_ONCE):
                    file.write(vectors[rows[start : start + ROWS_AT_ONCE]].tobytes())
                file.flush()
                os.fsync(file.fileno())
            self._database.executemany("UPDATE images SET row = ? WHERE row = ?", enumerate(rows))
            self._database.execute(
                "UPDATE state SET vectors_file = ?, num_rows = ?, version = version + 1", (new, len(rows))
            )
            self._database.commit()
            self._num_rows = len(rows)
        self.recover()

    # -- what an engine that keeps its own copy has been told -------------------------------------------------------

    def removed(self) -> list[str]:
        """Return the removed images that ``tell_removed`` has not been called for."""
        return [i for (i,) in self._query("SELECT id FROM removed ORDER BY id")]

    def not_pushed(self, count: int) -> list[tuple[int, str]]:
        """Return row and id of up to ``count`` images that are new, or whose paths changed, since ``tell_pushed``."""
        return self._query("SELECT row, id FROM images WHERE pushed = 0 ORDER BY row LIMIT ?", count)

    def num_pushed(self) -> int:
        """Return how many images the engine was told of."""
        return self._query("SELECT COUNT(*) FROM images WHERE pushed = 1")[0][0]

    def tell_removed(self, ids: Sequence[str]) -> None:
        """Note that the engine no longer holds these; commits."""
        with self._lock, self._database:
            self._database.executemany("DELETE FROM removed WHERE id = ?", [(i,) for i in ids])

    def tell_pushed(self, ids: Sequence[str]) -> None:
        """Note that the engine holds these; commits."""
        with self._lock, self._database:
            self._database.executemany("UPDATE images SET pushed = 1 WHERE id = ?", [(i,) for i in ids])

    def tell_nothing_pushed(self) -> None:
        """Note that the engine is empty; commits."""
        with self._lock, self._database:
            self._database.execute("UPDATE images SET pushed = 0")
            self._database.execute("DELETE FROM removed")

    # -- inside ----------------------------------------------------------------------------------------------------

    @property
    def _stride(self) -> int:
        return self.shape[0] * self.shape[1] * np.dtype(np.float16).itemsize

    def _map(self, name: str, num_rows: int) -> np.ndarray:
        if not num_rows:
            return np.empty((0, *self.shape), np.float16)
        file = self.folder / name
        size = file.stat().st_size if file.exists() else 0
        if size < num_rows * self._stride:
            raise ComposirError(
                f"holds {size:,} bytes",
                file=file,
                expected=f"at least {num_rows * self._stride:,}, for {num_rows:,} images",
                fix="copy the whole index folder again, or delete it and run composir index",
            )
        # Copy on write, never written to: torch wants arrays it could write to.
        return np.memmap(file, np.float16, "c", shape=(num_rows, *self.shape))

    def _touch(self, paths: Sequence[str]) -> None:
        """Mark the images of files that change, so that an engine hears of their new paths."""
        self._database.executemany(
            "UPDATE images SET pushed = 0 WHERE id IN (SELECT id FROM files WHERE path = ?)", [(p,) for p in paths]
        )

    def _state_row(self) -> tuple[str, int, int, int]:
        return self._database.execute("SELECT * FROM state").fetchone()

    def _state(self) -> tuple[str, int, int, int]:
        with self._lock:
            return self._state_row()

    def _query(self, statement: str, *values: object) -> list[tuple]:
        with self._lock:
            return self._database.execute(statement, values).fetchall()
