"""The one reader of image files: whatever was stored, an upright 8-bit sRGB picture comes back."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from PIL import Image

from composir.data.images.decoding import decode_content
from composir.data.images.files import EMPTY, MISSING, NOT_REGULAR, READ_FIX, cannot_be_opened, read_bytes, reason_of
from composir.errors import ComposirError
from composir.progress import Counted

MAX_THREADS = 8
"""Threads that read image files at once, where there are as many cores."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of an image file that counts as an image of its own, as GeneCIS cuts objects out of photographs."""

    file: Path
    box: tuple[float, float, float, float]
    """Left, top, right and bottom in pixels of the upright picture; what reaches over its edge is left out."""

    def __str__(self) -> str:
        return f"{self.file} (box {', '.join(f'{side:g}' for side in self.box)})"


ImageSource: TypeAlias = Path | Crop
"""Where an image of a ``Split`` is: a file, or a part of one."""


def file_of(source: ImageSource) -> Path:
    """Return the file that an image is in."""
    return source.file if isinstance(source, Crop) else source


def read_image(
    source: str | ImageSource | BinaryIO,
    *,
    side: int | None = None,
    notes: list[str] | None = None,
    max_pixels: int | None = None,
) -> Image.Image:
    """Return the picture as it should be seen: sRGB, 8 bits, upright, on white, its first frame.

    ``source`` is a path, a part of a file, or an open binary file. A file that is missing, empty, cut off or no
    image of ``FORMATS``, one beyond ``picture_bounds``, and a part outside the picture, raise ``ComposirError``
    naming it. No setting of Pillow is read or changed, so threads may call this at once.

    With ``side``, a JPEG may be decoded at a half, a quarter or an eighth, as long as its longer side keeps so many
    pixels; pictures over ``LARGE_PIXELS`` always come back smaller, except where a part is asked for.
    With ``notes``, the reader is lenient: a JPEG that lacks its last bytes is read as far as it goes, if that is
    nearly all of it, and ``notes`` is told. More than ``max_pixels`` to be decoded is an error before one is.
    """
    options = {"side": side, "notes": notes, "max_pixels": max_pixels}
    if isinstance(source, Crop):
        return _cut(decode_content(read_bytes(source.file), str(source.file), is_whole=True), source)
    if isinstance(source, (str, Path)):
        return decode_content(read_bytes(Path(source)), str(source), **options)
    return decode_content(source.read(), str(getattr(source, "name", "uploaded image")), **options)


def _cut(image: Image.Image, crop: Crop) -> Image.Image:
    left, top, right, bottom = (round(side) for side in crop.box)
    box = (max(0, left), max(0, top), min(image.width, right), min(image.height, bottom))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ComposirError(
            f"the box {crop.box} holds no pixel of it",
            file=crop.file,
            expected=f"left, top, right, bottom within {image.width} x {image.height} pixels",
            fix="correct the box in the annotation file, or put the full-size picture there",
        )
    return image.crop(box)


@dataclass(frozen=True, slots=True)
class Inspection:
    """What looking at an image file has shown."""

    digest: bytes | None
    """SHA-256 of the file's bytes; None where it is no readable picture, or was not read."""
    errors: dict[ImageSource, ComposirError]
    """What is wrong: under the file where it is no readable picture, else under each part that cannot be cut out."""


def inspect_files(
    sources: Iterable[ImageSource], *, decode: bool = True, progress: Counted | None = None
) -> dict[Path, Inspection]:
    """Return what is wrong with every image, by file: each file is read and decoded once, several at a time.

    With ``decode=False`` files are looked up, not opened: missing and empty ones are found, damaged ones are not.
    The files come in the order of ``sources``; ``progress(num_done, num_files)`` counts them.
    """
    sources_by_file: dict[Path, dict[ImageSource, None]] = {}
    for source in sources:
        sources_by_file.setdefault(file_of(source), {})[source] = None
    inspections = {}
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        done = threads.map(_inspect if decode else _look_up, sources_by_file, sources_by_file.values())
        for num_done, (file, inspection) in enumerate(zip(sources_by_file, done, strict=True), 1):
            inspections[file] = inspection
            if progress is not None:
                progress(num_done, len(sources_by_file))
    return inspections


def _look_up(file: Path, _: Iterable[ImageSource]) -> Inspection:
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise cannot_be_opened(file, NOT_REGULAR)
        if not status.st_size:
            raise ComposirError(EMPTY, file=file, fix=READ_FIX)
    except (FileNotFoundError, NotADirectoryError):
        return Inspection(None, {file: ComposirError(MISSING, file=file, fix=READ_FIX)})
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        return Inspection(None, {file: cannot_be_opened(file, reason_of(error))})
    except ComposirError as error:
        return Inspection(None, {file: error})
    return Inspection(None, {})


def _inspect(file: Path, sources: Iterable[ImageSource]) -> Inspection:
    looked_up = _look_up(file, sources)
    if looked_up.errors:
        return looked_up
    try:
        content = read_bytes(file)
        image = decode_content(content, str(file), is_whole=any(isinstance(source, Crop) for source in sources))
    except ComposirError as error:
        return Inspection(None, {file: error})
    errors: dict[ImageSource, ComposirError] = {}
    for source in sources:
        if isinstance(source, Crop):
            try:
                _cut(image, source)
            except ComposirError as error:
                errors[source] = error
    return Inspection(hashlib.sha256(content).digest(), errors)
