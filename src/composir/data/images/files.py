"""Bytes of image files: read within bounds, and every failure told."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path

from composir.errors import ComposirError

FETCH_FIX = "fetch or export the file again"
MISSING, NOT_REGULAR = "no such image file", "not a regular file"
EMPTY = "the image file is empty (0 bytes)"
READ_FIX = f"{FETCH_FIX} (composir data check finds every such file)"
BOUNDS_FIX = "scale the picture down, or allow more by COMPOSIR_MAX_PIXELS and COMPOSIR_MAX_SIDE"
NO_MEMORY = "needs more memory than there is left"
MEMORY_FIX = "scale the picture down, or use fewer threads (--num-workers)"
ID_LENGTH = 32
"""Hex digits of an image's id: the first 128 bits of the SHA-256 of its file."""
MAX_PIXELS, MAX_SIDE = 250_000_000, 65_535
"""What a picture may have unless ``COMPOSIR_MAX_PIXELS`` and ``COMPOSIR_MAX_SIDE`` say otherwise."""
MAX_BYTES_A_PIXEL = 8
"""A file that is larger than so many times the pixels allowed is not read: 16 bits and four channels are 8."""


class UnseenError(ComposirError):
    """A file that could not be looked at: nothing is known of the picture in it."""


class Content(io.BytesIO):
    """What a file holds, read already, with the name of the file."""

    def __init__(self, content: bytes, file: Path) -> None:
        super().__init__(content)
        self.name = str(file)


def picture_bounds() -> tuple[int, int]:
    """Return how many pixels a picture may have, and how many a side; raise ``ComposirError`` for a wrong setting."""
    return _bound("COMPOSIR_MAX_PIXELS", MAX_PIXELS), _bound("COMPOSIR_MAX_SIDE", MAX_SIDE)


def _bound(name: str, default: int) -> int:
    text = os.environ.get(name, "").replace("_", "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and int(text)):
        raise ComposirError(
            f"the environment variable {name} is {text!r}", expected="a whole number above 0", fix=f"{name}={default}"
        )
    return int(text)


def read_bytes(path: Path) -> bytes:
    """Return what an image file holds; every failure is a ``ComposirError`` that names it."""
    most = MAX_BYTES_A_PIXEL * picture_bounds()[0]
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise cannot_be_opened(path, NOT_REGULAR)
            if status.st_size > most:
                raise ComposirError(
                    f"the file has {status.st_size:,} bytes",
                    file=path,
                    expected=f"at most {most:,}, {MAX_BYTES_A_PIXEL} for each pixel that is allowed",
                    fix=BOUNDS_FIX,
                )
            return file.read()
    except FileNotFoundError as error:
        raise UnseenError(MISSING, file=path, fix=READ_FIX) from error
    except MemoryError as error:
        raise UnseenError(NO_MEMORY, file=path, fix=MEMORY_FIX) from error
    except (OSError, ValueError) as error:
        raise cannot_be_opened(path, reason_of(error)) from error


def _open_at_once(name: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes into is not waited for."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def content_id(content: bytes) -> str:
    """Return the id of the image that a file with this content holds: 32 hex digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:ID_LENGTH]


def cannot_be_opened(path: Path, reason: str) -> UnseenError:
    """Return the error of a file that the system does not open."""
    return UnseenError(f"cannot be opened ({reason})", file=path, fix="make it a readable regular file")


def reason_of(error: OSError | ValueError) -> str:
    """Return in words why the system does not open a file."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
