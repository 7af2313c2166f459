"""The one reader of image files: whatever was stored, an upright 8-bit RGB picture comes back."""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from composir.errors import ComposirError

FETCH_FIX = "fetch or export the file again"
MISSING = "no such image file"
EMPTY = "the image file is empty (0 bytes)"
READ_FIX = f"{FETCH_FIX} (composir data check finds every such file)"
MAX_THREADS = 8
"""Threads that read image files at once, where there are as many cores."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""What an image file of a data set may be called, the preferred first: copies of a data set differ."""

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".avif"
)  # fmt: skip
"""What is a picture in a folder of one's own, in lower or upper case."""

EXIF_ORIENTATION = 0x0112
# Exif 2.32, tag 0x0112: what has to be done to the stored pixels to show them upright.
TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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

MODES_OF_16_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
MAX_16_BITS = 65535
OPEN_BRANDS = (b"mif1", b"msf1")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", *OPEN_BRANDS)
"""ISO 23008-12: the brands of still pictures coded by HEVC, and the two that leave the coding open (it may be AVIF)."""
NUM_LEADING_BYTES = 24


def read_image(
    source: str | ImageSource | BinaryIO, *, formats: Sequence[str] | None = None, max_pixels: int | None = None
) -> Image.Image:
    """Return the picture as it should be seen: RGB, 8 bits, upright, on white, its first frame.

    ``source`` is a path, a part of a file, or an open binary file. A file that is missing, empty, cut off or no
    image, and a part outside the picture, raise ``ComposirError`` naming it. No setting of Pillow is read or
    changed, so threads may call this at once.

    An open file may come from a stranger: ``formats`` are then those that are tried (Pillow's names, those without
    their plugin passed over), and more than ``max_pixels`` is an error before a pixel is decoded.
    """
    if isinstance(source, (str, Path)):
        return _read_path(Path(source))
    if isinstance(source, Crop):
        return _cut(_read_path(source.file), source)
    return _decode(source, str(getattr(source, "name", "uploaded image")), formats=formats, max_pixels=max_pixels)


def find_pictures(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the paths of all pictures below ``folder``, relative and with ``/``, sorted; and why others are not taken.

    The reasons are by the path as it can be printed: links that lead out of the folder, names that are not UTF-8,
    folders that cannot be listed. Hidden files and folders (a leading dot) are no part of it, and links to other
    folders inside it are not followed: what they hold is there already.
    """
    home = folder.resolve()
    names: list[str] = []
    reasons: dict[str, str] = {}

    def leave(path: Path, reason: str) -> None:
        reasons[os.fsencode(path.relative_to(home).as_posix()).decode("utf-8", "backslashreplace")] = reason

    def leads_out(path: Path) -> bool:
        if not path.is_symlink():
            return False
        try:
            target = path.resolve()
        except (OSError, RuntimeError):  # which of them depends on the version of Python
            leave(path, "a link that leads to itself")
            return True
        if target.is_relative_to(home):
            return False
        leave(path, "a link that leads out of the folder")
        return True

    def refuse(error: OSError) -> None:
        leave(Path(error.filename), f"cannot be listed ({error.strerror})")

    for place, folders, files in os.walk(home, onerror=refuse):
        here = Path(place)
        folders[:] = [name for name in folders if not name.startswith(".") and not leads_out(here / name)]
        for file in files:
            path = here / file
            if file.startswith(".") or path.suffix.lower() not in PICTURE_SUFFIXES or leads_out(path):
                continue
            name = path.relative_to(home).as_posix()
            if name == name.encode(errors="replace").decode():
                names.append(name)
            else:
                leave(path, "its name is not UTF-8")
    return sorted(names), reasons


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture as 8-bit RGB: transparency over white, 16-bit grey scaled, palettes looked up.

    Raises ``ComposirError`` for pixels without a known range (32-bit float, integers over 65,535).
    """
    if image.mode in MODES_OF_16_BITS:
        image = _scale_16_bits(image)
    elif image.mode == "F":
        raise ComposirError(
            "holds 32-bit float pixels, whose range is unknown",
            expected="8 or 16 bits a channel",
            fix="save it as an 8-bit PNG or JPEG",
        )
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    page = Image.new("RGBA", rgba.size, "white")
    return Image.alpha_composite(page, rgba).convert("RGB")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What looking at an image file has shown."""

    digest: bytes | None
    """SHA-256 of the file's bytes; None where it is no readable picture, or was not read."""
    errors: dict[ImageSource, ComposirError]
    """What is wrong: under the file where it is no readable picture, else under each part that cannot be cut out."""


def inspect_files(
    sources: Iterable[ImageSource], *, decode: bool = True, progress: Callable[[int, int], None] | None = None
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
            raise _cannot_be_opened(file, "not a regular file")
        if not status.st_size:
            raise ComposirError(EMPTY, file=file, fix=READ_FIX)
    except (FileNotFoundError, NotADirectoryError):
        return Inspection(None, {file: ComposirError(MISSING, file=file, fix=READ_FIX)})
    except (OSError, ValueError) as error:  # a name that no file can have is a ValueError
        return Inspection(None, {file: _cannot_be_opened(file, _reason(error))})
    except ComposirError as error:
        return Inspection(None, {file: error})
    return Inspection(None, {})


def _inspect(file: Path, sources: Iterable[ImageSource]) -> Inspection:
    looked_up = _look_up(file, sources)
    if looked_up.errors:
        return looked_up
    try:
        content = read_bytes(file)
        image = _decode(io.BytesIO(content), str(file))
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


def _read_path(path: Path) -> Image.Image:
    return _decode(io.BytesIO(read_bytes(path)), str(path))


def read_bytes(path: Path) -> bytes:
    """Return what an image file holds; every failure is a ``ComposirError`` that names it."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ComposirError(MISSING, file=path, fix=READ_FIX) from error
    except (OSError, ValueError) as error:
        raise _cannot_be_opened(path, _reason(error)) from error


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _cannot_be_opened(path: Path, reason: str) -> ComposirError:
    return ComposirError(f"cannot be opened ({reason})", file=path, fix="make it a readable regular file")


def file_of(source: ImageSource) -> Path:
    """Return the file that an image is in."""
    return source.file if isinstance(source, Crop) else source


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


def _decode(
    file: BinaryIO, name: str, *, formats: Sequence[str] | None = None, max_pixels: int | None = None
) -> Image.Image:
    """Return the decoded picture of an open file; every failure is a ``ComposirError`` that names it."""
    start = file.read(NUM_LEADING_BYTES)
    file.seek(0)
    if not start:
        raise ComposirError(EMPTY, file=name, fix=READ_FIX)
    if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
        _register_heic(name, is_certain=start[8:12] not in OPEN_BRANDS)
    try:
        if formats is not None:
            Image.init()
            formats = [one for one in formats if one in Image.OPEN]
        with Image.open(file, formats=formats) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.width} x {image.height}, at most {max_pixels:,} are taken")
            image.load()
            return to_rgb(_upright(image))
    except UnidentifiedImageError as error:
        raise ComposirError(
            f"not an image that Pillow can read (it starts with {start!r})",
            file=name,
            expected="PNG, JPEG or another picture format",
            fix=READ_FIX,
        ) from error
    except Image.DecompressionBombError as error:
        raise ComposirError(
            f"too many pixels: {error}", file=name, fix="scale the picture down; 224 pixels are used"
        ) from error
    except ComposirError as error:
        raise ComposirError(error.message, file=name, expected=error.expected, fix=error.fix) from error
    except Exception as error:  # Pillow's plugins raise whatever their parsing trips over
        raise ComposirError(f"the image data is cut off or damaged ({error})", file=name, fix=READ_FIX) from error


def _register_heic(name: str, *, is_certain: bool) -> None:
    """Let Pillow read HEIC, by its plugin; where that is missing, raise for a file that is certainly one."""
    try:
        import pillow_heif  # noqa: PLC0415
    except ImportError:
        if not is_certain:
            return
        raise ComposirError(
            "a HEIC picture needs the package pillow-heif, which is not installed",
            file=name,
            fix="pip install 'composir[heic]', or save it as JPEG",
        ) from None
    pillow_heif.register_heif_opener()


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # an unreadable EXIF block says nothing about orientation: the pixels are still good
        orientation = None
    operation = TRANSPOSE_BY_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return image if operation is None else image.transpose(operation)


def _scale_16_bits(image: Image.Image) -> Image.Image:
    """Return 8-bit grey (L, or LA where one grey value is marked transparent) of 16-bit grey."""
    pixels = np.asarray(image)  # (height, width)
    lowest, highest = int(pixels.min()), int(pixels.max())
    if lowest < 0 or highest > MAX_16_BITS:
        raise ComposirError(
            f"holds 32-bit integer pixels from {lowest} to {highest}, whose range is unknown",
            expected="8 or 16 bits a channel",
            fix="save it as an 8-bit PNG or JPEG",
        )
    grey = Image.fromarray(np.round(pixels / (MAX_16_BITS / 255)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
    return grey
