"""The one reader of image files: whatever was stored, an upright 8-bit sRGB picture comes back."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import io
import os
import stat
import struct
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock, local
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

from composir.errors import ComposirError
from composir.progress import Counted
from composir.version import pip_install

FETCH_FIX = "fetch or export the file again"
MISSING, NOT_REGULAR = "no such image file", "not a regular file"
EMPTY = "the image file is empty (0 bytes)"
READ_FIX = f"{FETCH_FIX} (composir data check finds every such file)"
BOUNDS_FIX = "scale the picture down, or allow more by COMPOSIR_MAX_PIXELS and COMPOSIR_MAX_SIDE"
NO_MEMORY = "needs more memory than there is left"
MEMORY_FIX = "scale the picture down, or use fewer threads (--num-workers)"
ID_LENGTH = 32
"""Hex digits of an image's id: the first 128 bits of the SHA-256 of its file."""
MAX_THREADS = 8
"""Threads that read image files at once, where there are as many cores."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
"""Pillow's names of all that is opened, known by its content. None of their readers runs another program."""
FORMATS_TEXT = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or HEIC"

MAX_PIXELS, MAX_SIDE = 250_000_000, 65_535
"""What a picture may have unless ``COMPOSIR_MAX_PIXELS`` and ``COMPOSIR_MAX_SIDE`` say otherwise."""
MAX_BYTES_A_PIXEL = 8
"""A file that is larger than so many times the pixels allowed is not read: 16 bits and four channels are 8."""
LARGE_PIXELS = 2**26
"""Above it, pictures are decoded one at a time, and come back smaller; 67 million."""
LARGE_SIDE = 4096
"""Pixels that the longer side of a large picture keeps at least."""
MAX_SCANS = 100
"""Of a JPEG; ordinary ones have up to 12, and each takes a pass over all pixels."""
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
MAX_CUT = 0.1
"""Share of a JPEG's pixels that may be missing at its end where it is read all the same."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""What an image file of a data set may be called, the preferred first: copies of a data set differ."""

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".avif"
)  # fmt: skip
"""What is a picture in a folder of one's own, in lower or upper case."""

JUNK = ("@eadir", "#recycle", "$recycle.bin", ".trash*", "system volume information")
"""Folders that machines make for themselves, in lower case: thumbnails and what was thrown away."""

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


class UnseenError(ComposirError):
    """A file that could not be looked at: nothing is known of the picture in it."""


ImageSource: TypeAlias = Path | Crop
"""Where an image of a ``Split`` is: a file, or a part of one."""

MODES_OF_16_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
MAX_16_BITS = 65535
PLANE_A_CHANNEL = 2
WHITE_IS_ZERO = 0
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PNG_TURNING_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
"""The keywords of texts that may say which way is up; no other is looked at."""
MAX_UNPACKED = 2**20
"""Bytes that such a text may unpack to. Pillow refuses the whole picture for one that is longer."""
MAX_PROFILE = 2**22
"""Bytes of a colour profile; printers' have up to 2 MB, and a longer one is passed over."""
MODES_OF_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's modes by what a colour profile (ICC) says it is for."""
SAME_COLOUR = 3
"""Of 255: a profile that moves no colour further is taken for sRGB, and changes nothing."""
OPEN_BRANDS = (b"mif1", b"msf1")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", *OPEN_BRANDS)
"""ISO 23008-12: the brands of still pictures coded by HEVC, and the two that leave the coding open (it may be AVIF)."""
NUM_LEADING_BYTES = 24
OTHER_KINDS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"<svg": "SVG",
    b"%pdf": "a PDF",
    b"%!ps": "PostScript",
    b"pk\3\4": "a ZIP archive",
    b"8bps": "a Photoshop file",
    b"\xff\n": "JPEG XL",
    b"\0\0\0\x0cjxl ": "JPEG XL",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
}
"""What a file is that is no picture here, by its first bytes in lower case."""


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
        return _cut(_decode(read_bytes(source.file), str(source.file), is_whole=True), source)
    if isinstance(source, (str, Path)):
        return _decode(read_bytes(Path(source)), str(source), **options)
    return _decode(source.read(), str(getattr(source, "name", "uploaded image")), **options)


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures below a folder; all paths are relative to it, with ``/``."""

    names: list[str]
    """Of the pictures, sorted."""
    reasons: dict[str, str]
    """Why others are not taken, by the path as it can be printed: links that lead out, names that are not UTF-8,
    folders and files that cannot be looked at."""
    unseen: tuple[str, ...]
    """The folders and files of ``reasons`` that could not be looked at: what was there may still be there."""
    empty: tuple[str, ...]
    """Folders that hold nothing at all, as the place of a drive does that is not there."""
    excluded: tuple[str, ...]
    """Folders that were left out by a pattern."""
    num_by_suffix: dict[str, int]
    """How many files there are that are called no picture, by their suffix in lower case, most first."""


def find_pictures(folder: Path, *, exclude: Sequence[str] = ()) -> Pictures:
    """Return all pictures below ``folder``, by their names.

    Hidden files and folders (a leading dot) are no part of it, nor are folders of ``JUNK`` and those whose name or
    path fits a pattern of ``exclude``; links to other folders inside it are not followed: what they hold is there
    already.
    """
    home = folder.resolve()
    names: list[str] = []
    reasons: dict[str, str] = {}
    unseen: list[str] = []
    empty: list[str] = []
    excluded: list[str] = []
    suffixes: Counter[str] = Counter()

    def relative(path: Path) -> str:
        return os.fsencode(path.relative_to(home).as_posix()).decode("utf-8", "backslashreplace")

    def refuse(path: Path, error: OSError, what: str) -> None:
        unseen.append(relative(path))
        reasons[relative(path)] = f"cannot be {what} ({error.strerror})"

    def is_passed_over(path: Path) -> bool:
        """Return whether it is a link that leads elsewhere, or cannot be looked at."""
        try:
            if not path.is_symlink():
                return False
            target = path.resolve(strict=True)
        except FileNotFoundError:
            target = path.resolve()
        except (OSError, RuntimeError) as error:  # which of them a loop is depends on the version of Python
            if isinstance(error, OSError) and error.errno != errno.ELOOP:
                refuse(path, error, "looked at")
            else:
                reasons[relative(path)] = "a link that leads to itself"
            return True
        if target.is_relative_to(home):
            return False
        reasons[relative(path)] = "a link that leads out of the folder"
        return True

    def is_excluded(path: Path) -> bool:
        name = path.relative_to(home).as_posix()
        if not fits(path.name.lower(), JUNK) and not fits(path.name, exclude) and not fits(name, exclude):
            return False
        excluded.append(relative(path))
        return True

    walk = os.walk(home, onerror=lambda error: refuse(Path(error.filename), error, "listed"))
    for place, folders, files in walk:
        here = Path(place)
        if not folders and not files:
            empty.append(relative(here))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not is_excluded(here / name) and not is_passed_over(here / name)
        ]
        for file in files:
            path = here / file
            if file.startswith("."):
                continue
            if path.suffix.lower() not in PICTURE_SUFFIXES:
                suffixes[path.suffix.lower()] += 1
                continue
            if is_passed_over(path):
                continue
            name = path.relative_to(home).as_posix()
            if name == name.encode(errors="replace").decode():
                names.append(name)
            else:
                reasons[relative(path)] = "its name is not UTF-8"
    return Pictures(
        sorted(names),
        reasons,
        tuple(unseen),
        tuple(empty),
        tuple(excluded),
        dict(sorted(suffixes.items(), key=lambda one: (-one[1], one[0]))),
    )


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name fits one of the patterns (``*``, ``?``, ``[a-z]``), however its accents are spelt."""
    name = unicodedata.normalize("NFC", name)
    return any(fnmatch.fnmatchcase(name, unicodedata.normalize("NFC", pattern)) for pattern in patterns)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture as 8-bit sRGB: transparency over white, 16-bit grey scaled, palettes looked up.

    A colour profile (``image.info["icc_profile"]``) is applied; one that is broken, of another kind than the pixels
    or hardly differs from sRGB is passed over. Raises ``ComposirError`` for pixels without a known range (32-bit
    float, integers over 65,535).
    """
    profile = image.info.get("icc_profile")
    if image.mode == "RGB" and not profile and "transparency" not in image.info:
        return image
    if image.mode in MODES_OF_16_BITS:
        image = _scale_16_bits(image)
    elif image.mode == "F":
        raise ComposirError(
            "holds 32-bit float pixels, whose range is unknown",
            expected="8 or 16 bits a channel",
            fix="save it as an 8-bit PNG or JPEG",
        )
    if not image.has_transparency_data:
        return _to_srgb(image, profile)
    rgba = image.convert("RGBA")
    picture = _to_srgb(image.convert("L") if image.mode in ("L", "LA") else rgba.convert("RGB"), profile)
    picture.putalpha(rgba.getchannel("A"))
    page = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(page, picture).convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return a picture without transparency as 8-bit sRGB."""
    pixels = image if image.mode in MODES_OF_SPACES.values() else image.convert("L" if image.mode == "1" else "RGB")
    transform = _colour_transform(profile, pixels.mode) if profile and len(profile) <= MAX_PROFILE else None
    picture = pixels.convert("RGB") if transform is None else transform.apply(pixels)
    picture.info = {}
    return picture


@lru_cache(maxsize=16)
def _colour_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what turns colours of a profile into sRGB; None where there is nothing to do, or nothing can be done."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if MODES_OF_SPACES.get(source.profile.xcolor_space) != mode:  # pyright: ignore[reportAttributeAccessIssue]
            return None
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
        sample = _sample(mode)
        moved = np.asarray(transform.apply(sample)).astype(int) - np.asarray(sample.convert("RGB"))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, MemoryError):
        return None
    return None if np.abs(moved).max() <= SAME_COLOUR else transform


def _sample(mode: str) -> Image.Image:
    """Return colours from all over the space, evenly."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(*[levels] * len(mode), indexing="ij"), axis=-1)  # (9, ..., 9, channels)
    return Image.frombytes(mode, (colours.size // len(mode), 1), colours.tobytes())


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
            raise _cannot_be_opened(file, NOT_REGULAR)
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
        image = _decode(content, str(file), is_whole=any(isinstance(source, Crop) for source in sources))
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


class Content(io.BytesIO):
    """What a file holds, read already, with the name of the file."""

    def __init__(self, content: bytes, file: Path) -> None:
        super().__init__(content)
        self.name = str(file)


def _open_at_once(name: str, flags: int) -> int:
    """Open a file; a pipe that nobody writes into is not waited for."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: Path) -> bytes:
    """Return what an image file holds; every failure is a ``ComposirError`` that names it."""
    most = MAX_BYTES_A_PIXEL * picture_bounds()[0]
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _cannot_be_opened(path, NOT_REGULAR)
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
        raise _cannot_be_opened(path, _reason(error)) from error


def content_id(content: bytes) -> str:
    """Return the id of the image that a file with this content holds: 32 hex digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:ID_LENGTH]


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _cannot_be_opened(path: Path, reason: str) -> ComposirError:
    return UnseenError(f"cannot be opened ({reason})", file=path, fix="make it a readable regular file")


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


_ONE_AT_A_TIME = Lock()
"""Held while a large picture is decoded: some of them at once would not fit the memory."""
_THREAD = local()


def being_read() -> str:
    """Return the picture that this thread decodes, or decoded last; "" before the first: what Pillow warns of."""
    return getattr(_THREAD, "name", "")


def _decode(
    content: bytes,
    name: str,
    *,
    side: int | None = None,
    notes: list[str] | None = None,
    max_pixels: int | None = None,
    is_whole: bool = False,
) -> Image.Image:
    """Return the decoded picture in a file's content; every failure is a ``ComposirError`` that names it."""
    _THREAD.name = name
    start = content[:NUM_LEADING_BYTES]
    if not start:
        raise ComposirError(EMPTY, file=name, fix=READ_FIX)
    if start[4:8] == b"ftyp" and start[8:12] in HEIC_BRANDS:
        _register_heic(name, is_certain=start[8:12] not in OPEN_BRANDS)
    try:
        profile = None
        if start.startswith(PNG_SIGNATURE):
            content, profile = _plain_png(content)
        elif start.startswith(b"\xff\xd8") and content.count(START_OF_SCAN) > MAX_SCANS:
            raise ValueError("it has more scans than any picture needs")
        image = _open(content)
        if profile is not None:
            image.info["icc_profile"] = profile
        num_pixels = _require_in_bounds(image.size)
        is_large = num_pixels > LARGE_PIXELS
        keep = None if is_whole else side or (LARGE_SIDE if is_large else None)
        with _ONE_AT_A_TIME if is_large else nullcontext():
            try:
                picture = _load(image, keep, max_pixels)
            except _CutOffError:
                picture = None if notes is None else _load_cut(content, keep)
                if notes is None or picture is None:
                    raise
                notes.append("its last bytes are missing; it is used as far as it goes")
            return picture.reduce(max(1, max(picture.size) // keep)) if is_large and keep else picture
    except UnidentifiedImageError as error:
        raise ComposirError(
            f"not an image of a format that is read ({_kind_of(start)})",
            file=name,
            expected=FORMATS_TEXT,
            fix=READ_FIX,
        ) from error
    except Image.DecompressionBombError as error:
        raise ComposirError(f"too many pixels: {error}", file=name, fix=BOUNDS_FIX) from error
    except MemoryError as error:
        raise UnseenError(NO_MEMORY, file=name, fix=MEMORY_FIX) from error
    except ComposirError as error:
        raise ComposirError(error.message, file=name, expected=error.expected, fix=error.fix) from error
    except Exception as error:  # Pillow's plugins raise whatever their parsing trips over
        raise ComposirError(f"the image data is cut off or damaged ({error})", file=name, fix=READ_FIX) from error


def _kind_of(start: bytes) -> str:
    """Return in words what the first bytes of a file show that is no picture."""
    for signature, kind in OTHER_KINDS.items():
        if start.lower().startswith(signature):
            return f"it is {kind}"
    if start[4:8] == b"ftyp":
        return "it is a film, or a damaged HEIC or AVIF"
    text = start.decode("utf-8", "ignore")
    if text.isprintable() and len(text.encode()) > len(start) - 4:  # a character may be cut
        return f"it is text, which begins {text!r}"
    return f"its first bytes are {start[:8].hex(' ')}"


def _open(content: bytes) -> Image.Image:
    """Return the picture, not decoded yet.

    ``Image.open`` would hold it against a limit that is one for the whole process, and lower than what is read here.
    """
    Image.init()
    for name in FORMATS:
        if name not in Image.OPEN:  # its plugin is not installed
            continue
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(content[:16])
        if not accepted or isinstance(accepted, str):  # a text says what the plugin lacks
            continue
        try:
            return factory(io.BytesIO(content), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # by these a plugin says: not one of mine
            continue
    raise UnidentifiedImageError


def _require_in_bounds(size: tuple[int, int]) -> int:
    """Return the number of pixels, if so many are allowed."""
    width, height = size
    most, longest = picture_bounds()
    if width * height > most or max(size) > longest:
        raise Image.DecompressionBombError(
            f"{width:,} x {height:,}; at most {most:,}, and {longest:,} a side, are taken"
        )
    return width * height


class _CutOffError(OSError):
    """A JPEG ends too early."""


def _load(image: Image.Image, keep: int | None, max_pixels: int | None) -> Image.Image:
    """Return the decoded picture."""
    if keep and max(image.size) >= 2 * keep:
        scale = max(image.size) // keep
        image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))  # only a JPEG takes it
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise Image.DecompressionBombError(f"{image.width:,} x {image.height:,}; at most {max_pixels:,} are taken")
    _require_read_right(image)
    try:
        image.load()
    except OSError as error:
        if image.format in ("JPEG", "MPO") and "truncated" in str(error):
            raise _CutOffError(str(error)) from error
        raise
    picture = to_rgb(_upright(image))
    if picture is image:
        picture = picture.copy()  # without what the file's reader holds
    picture.info = {}
    return picture


def _require_read_right(image: Image.Image) -> None:
    """Raise ``ComposirError`` for the TIFFs that Pillow reads into other colours without a word."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    num_samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    is_deep = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8
    if is_deep and num_samples > 1 and tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == PLANE_A_CHANNEL:
        raise ComposirError(
            "a TIFF of 16 bits with a plane for each colour, which Pillow reads wrongly",
            expected="8 bits, or 16 with the colours of a pixel side by side",
            fix="save it as an 8-bit PNG or JPEG",
        )


def _load_cut(content: bytes, keep: int | None) -> Image.Image | None:
    """Return a JPEG that lacks its end; None where that is more than ``MAX_CUT`` of the pixels.

    It is read twice, with nothing and with noise in the place of what is missing: pixels that differ are missing.
    """
    content = content.rstrip(b"\xff")  # the first half of a marker
    noise = bytes(range(1, 251)) * (len(content) // 250 + 1)
    one, other = (_load(_open(content + filler + END_OF_IMAGE), keep, None) for filler in (b"", noise))
    differ = (np.asarray(one) != np.asarray(other)).any(axis=-1)  # (height, width)
    return one if differ.mean() <= MAX_CUT else None


def _plain_png(content: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG without what stands beside its pixels and may stop Pillow, and its colour profile apart.

    Left out are texts that cannot say which way is up, and whatever else has a wrong checksum and is no part of the
    pixels. A profile that is damaged or longer than ``MAX_PROFILE`` is passed over.
    """
    parts, profile = [PNG_SIGNATURE], None
    for kind, data, chunk in _chunks(content):
        is_beside = bool(kind[0] & 0x20)
        if is_beside and zlib.crc32(kind + data) != int.from_bytes(chunk[-4:], "big"):
            continue
        if kind == b"iCCP":
            profile = _unpack(data.partition(b"\0")[2][1:], MAX_PROFILE)
        elif kind not in PNG_TEXTS or _may_turn(kind, data):
            parts.append(chunk)
    return b"".join(parts), profile


def _may_turn(kind: bytes, data: bytes) -> bool:
    """Return whether a text of a PNG may say which way is up, and is no longer than such a text is."""
    keyword, _, text = data.partition(b"\0")
    if keyword not in PNG_TURNING_TEXTS:
        return False
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    elif is_packed:
        text = text[1:]
    return len(text) <= MAX_UNPACKED and (not is_packed or _unpack(text, MAX_UNPACKED) is not None)


def _unpack(data: bytes, most: int) -> bytes | None:
    """Return what zlib has packed; None where it is damaged, or longer than ``most`` bytes."""
    try:
        unpacked = zlib.decompressobj().decompress(data, most + 1)
    except zlib.error:
        return None
    return unpacked if len(unpacked) <= most else None


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield kind, data and the whole of each chunk of a PNG; what is cut off at the end is one chunk without data."""
    place = len(PNG_SIGNATURE)
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        stop = place + 12 + length
        kind = content[place + 4 : place + 8]
        if len(kind) < 4 or stop > len(content):
            yield b"IDAT", b"", content[place:]
            return
        yield kind, content[place + 8 : stop - 4], content[place:stop]
        place = stop


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
            fix=f"{pip_install('heic')}, or save it as JPEG",
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
    values, top = np.arange(MAX_16_BITS + 1), MAX_16_BITS
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow looks at neither of these tags for such pixels
        bits = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]
        top = min(2**bits - 1, MAX_16_BITS)
        if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == WHITE_IS_ZERO:
            values = top - values
    grey_of = np.round(values.clip(0, top) / (top / 255)).astype(np.uint8)
    grey = Image.fromarray(grey_of[pixels])
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(pixels == transparent, 0, 255).astype(np.uint8)))
    return grey
