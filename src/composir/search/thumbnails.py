"""Small JPEGs of an index's pictures, kept beside it: a page of them is shown without decoding one."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from PIL import Image

THUMBNAILS = "thumbnails.sqlite3"
THUMBNAIL_SIDE = 320
"""Pixels of the longer side, at most."""
MAX_THUMBNAIL_BYTES = 24 * 1024
MAX_FILE_BYTES = 2**30
"""Of all of them: what comes after is made when it is looked at."""
TRIES = ((THUMBNAIL_SIDE, 80), (THUMBNAIL_SIDE, 60), (THUMBNAIL_SIDE, 40), (THUMBNAIL_SIDE // 2, 40))
"""Longer side and JPEG quality, till one is small enough; the last is, whatever the picture."""


def encode(picture: Image.Image, side: int, *, quality: int) -> bytes:
    """Return the picture as a JPEG without any metadata, its longer side at most ``side``."""
    picture = picture.copy()
    picture.info = {}  # Pillow would write a comment, a profile and the like from here
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


def make_thumbnail(picture: Image.Image) -> bytes:
    """Return an RGB picture as a JPEG of at most ``THUMBNAIL_SIDE`` pixels a side and ``MAX_THUMBNAIL_BYTES``."""
    jpeg = b""
    for side, quality in TRIES:
        jpeg = encode(picture, side, quality=quality)
        if len(jpeg) <= MAX_THUMBNAIL_BYTES:
            break
    return jpeg


class Thumbnails:
    """The file of them in an index folder, by the ids of the images.

    It is a cache: what cannot be read from it is as if it were not there, and what cannot be written is left out.
    Threads and processes may use it at once.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / THUMBNAILS

    def get(self, image_id: str) -> bytes | None:
        """Return the JPEG of an image; None where there is none."""
        if not self._file.is_file():
            return None
        with suppress(sqlite3.Error), self._opened() as database:
            row = database.execute("SELECT jpeg FROM thumbnails WHERE id = ?", (image_id,)).fetchone()
            return row[0] if row else None
        return None

    def put(self, jpeg_by_id: Mapping[str, bytes]) -> None:
        """Keep the JPEGs of images, in place of those that were there, while the file has less than its bytes."""
        if jpeg_by_id and not self._is_full():
            with suppress(sqlite3.Error), self._opened() as database:
                database.execute("CREATE TABLE IF NOT EXISTS thumbnails (id TEXT PRIMARY KEY, jpeg BLOB NOT NULL)")
                database.executemany("INSERT OR REPLACE INTO thumbnails VALUES (?, ?)", jpeg_by_id.items())

    def drop(self, ids: Iterable[str]) -> None:
        """Forget those of images that are gone."""
        if self._file.is_file():
            with suppress(sqlite3.Error), self._opened() as database:
                database.executemany("DELETE FROM thumbnails WHERE id = ?", [(one,) for one in ids])

    def _is_full(self) -> bool:
        try:
            return self._file.stat().st_size >= MAX_FILE_BYTES
        except OSError:  # not there yet
            return False

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._file)) as database, database:
            yield database
