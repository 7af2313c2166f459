"""A file's content as a picture: upright, within bounds of pixels and memory, of a cut JPEG what is there."""

from __future__ import annotations

from contextlib import nullcontext
from threading import Lock, local

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from composir.data.images.colours import to_rgb
from composir.data.images.files import BOUNDS_FIX, EMPTY, MEMORY_FIX, NO_MEMORY, READ_FIX, UnseenError, picture_bounds
from composir.data.images.formats import (
    FORMATS_TEXT,
    HEIC_BRANDS,
    NUM_LEADING_BYTES,
    OPEN_BRANDS,
    kind_of,
    open_picture,
    register_heic,
)
from composir.data.images.png import PNG_SIGNATURE, plain_png
from composir.errors import ComposirError

LARGE_PIXELS = 2**26
"""Above it, pictures are decoded one at a time, and come back smaller; 67 million."""
LARGE_SIDE = 4096
"""Pixels that the longer side of a large picture keeps at least."""
MAX_SCANS = 100
"""Of a JPEG; ordinary ones have up to 12, and each takes a pass over all pixels."""
START_OF_SCAN, END_OF_IMAGE, DEFINE_RESTART = b"\xff\xda", b"\xff\xd9", b"\xff\xdd\x00\x04"
BLOCK_PIXELS = 64
MAX_CUT = 0.1
"""Share of a JPEG's pixels that may be missing at its end where it is read all the same."""
NOISE_A_PIXEL = 2
"""Bytes of noise that are decoded into a pixel at the most, three colours of it; measured are 0.2 to 0.9."""
PLANE_A_CHANNEL = 2
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
_ONE_AT_A_TIME = Lock()
"""Held while a large picture is decoded: some of them at once would not fit the memory."""
_THREAD = local()


def being_read() -> str:
    """Return the picture that this thread decodes, or decoded last; "" before the first: what Pillow warns of."""
    return getattr(_THREAD, "name", "")


def decode_content(
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
        register_heic(name, is_certain=start[8:12] not in OPEN_BRANDS)
    try:
        profile = None
        if start.startswith(PNG_SIGNATURE):
            content, profile = plain_png(content)
        elif start.startswith(b"\xff\xd8") and content.count(START_OF_SCAN) > MAX_SCANS:
            raise ValueError("it has more scans than any picture needs")
        image = open_picture(content)
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
            f"not an image of a format that is read ({kind_of(start)})",
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
    """Return a JPEG that lacks its end; None where that is more than ``MAX_CUT`` of the pixels, or a whole scan.

    It is read twice, with nothing and with noise in the place of what is missing: pixels that differ are missing.
    """
    content = content.rstrip(b"\xff")  # the first half of a marker
    image = open_picture(content)
    if not _has_every_scan(image, content):
        return None
    one, other = (
        _load(open_picture(content + filler + END_OF_IMAGE), keep, None) for filler in (b"", _noise(image, content))
    )
    differ = (np.asarray(one) != np.asarray(other)).any(axis=-1)  # (height, width)
    return one if differ.mean() <= MAX_CUT else None


def _noise(image: Image.Image, content: bytes) -> bytes:
    """Return noise for twice ``MAX_CUT`` of a JPEG's pixels, with its restart markers: without them it would end."""
    noise = bytes(range(1, 251)) * (int(2 * MAX_CUT * image.width * image.height * NOISE_A_PIXEL) // 250 + 1)
    place = content.rfind(DEFINE_RESTART) + len(DEFINE_RESTART)
    interval = 0 if place < len(DEFINE_RESTART) else int.from_bytes(content[place : place + 2], "big")
    if not interval:
        return noise
    size = interval * NOISE_A_PIXEL * BLOCK_PIXELS
    parts = (noise[start : start + size] for start in range(0, len(noise), size))
    return b"".join(part + bytes((0xFF, 0xD0 + number % 8)) for number, part in enumerate(parts))


def _has_every_scan(image: Image.Image, content: bytes) -> bool:
    """Return whether all scans of a JPEG have at least begun: of a progressive one, those for every coefficient's bits.

    Source: ITU-T T.81, B.2.3 (scan header) and G.1.1.1 (spectral selection, successive approximation).
    """
    if not image.info.get("progressive"):
        return True
    whole: dict[int, set[int]] = {}
    for scan in content.split(START_OF_SCAN)[1:]:
        end = 3 + 2 * int.from_bytes(scan[2:3], "big")
        if len(scan) < end + 3:
            return False
        first, last, bits = scan[end : end + 3]
        for component in scan[3:end:2]:
            whole.setdefault(component, set()).update(range(first, last + 1) if bits & 0x0F == 0 else ())
    return len(whole) == len(image.getbands()) and all(len(found) == BLOCK_PIXELS for found in whole.values())


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # an unreadable EXIF block says nothing about orientation: the pixels are still good
        orientation = None
    operation = TRANSPOSE_BY_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return image if operation is None else image.transpose(operation)
