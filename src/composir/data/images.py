"""The one reader of image files: whatever was stored, an upright 8-bit RGB picture comes back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from composir.errors import ComposirError

FETCH_FIX = "fetch or export the file again"
READ_FIX = f"{FETCH_FIX} (composir data check finds every such file)"

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""What an image file of a data set may be called, the preferred first: copies of a data set differ."""

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
NUM_LEADING_BYTES = 24


def read_image(source: str | ImageSource | BinaryIO) -> Image.Image:
    """Return the picture as it should be seen: RGB, 8 bits, upright, on white, its first frame.

    ``source`` is a path, a part of a file, or an open binary file. A file that is missing, empty, cut off or no
    image, and a part outside the picture, raise ``ComposirError`` naming it. No setting of Pillow is read or
    changed, so threads may call this at once.
    """
    if isinstance(source, (str, Path)):
        return _read_path(Path(source))
    if isinstance(source, Crop):
        return _cut(_read_path(source.file), source)
    return _decode(source, str(getattr(source, "name", "uploaded image")))


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


def _read_path(path: Path) -> Image.Image:
    try:
        with path.open("rb") as file:
            return _decode(file, str(path))
    except FileNotFoundError as error:
        raise ComposirError("no such image file", file=path, fix=READ_FIX) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ComposirError(f"cannot be opened ({reason})", file=path, fix="make it a readable regular file") from error


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


def _decode(file: BinaryIO, name: str) -> Image.Image:
    """Return the decoded picture of an open file; every failure is a ``ComposirError`` that names it."""
    start = file.read(NUM_LEADING_BYTES)
    file.seek(0)
    if not start:
        raise ComposirError("the image file is empty (0 bytes)", file=name, fix=READ_FIX)
    try:
        with Image.open(file) as image:
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
