"""Picture to model input: pad, resize, crop. The table ``TRANSFORMS`` names the choices.

The geometry is the one of CLIP4Cir and SPRC (``--transform targetpad --target-ratio 1.25``): black padding in
whole pixels, a bicubic resize of the short side, a centre crop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from composir.data.images.colours import to_rgb
from composir.errors import ComposirError

IMAGE_SIZE = 224
"""Side of the model's input in pixels, of every published CIR backbone."""

TARGET_RATIO = 1.25
"""CLIP4Cir's target ratio: pictures up to 5:4 are cropped as they are, longer ones are padded to 5:4."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of RGB in [0, 1], from OpenAI's CLIP preprocessing; BLIP-2 and SPRC use the same."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of RGB in [0, 1], from OpenAI's CLIP preprocessing."""

MAX_PADDED_PIXELS = 2**25
"""Of a tall picture with its borders: 130 MB; 2,000 x 6,000 are below it."""


def targetpad(image: Image.Image, size: int = IMAGE_SIZE, ratio: float = TARGET_RATIO) -> Image.Image:
    """Return an RGB picture of ``size`` x ``size``; one longer than ``ratio`` is padded before the crop.

    Source: Baldrati et al., CLIP4Cir (CVPR workshops 2022), section 3.2. Departure: converts to RGB first,
    which differs where a picture has a palette or transparency.
    """
    if ratio < 1:
        raise ComposirError(
            f"target ratio {ratio} is below 1", expected="long side / short side, 1 or more", fix="use 1.25"
        )
    return _square(to_rgb(image), _targetpad_margins(image.size, ratio), size)


def squarepad(image: Image.Image, size: int = IMAGE_SIZE) -> Image.Image:
    """Return an RGB picture of ``size`` x ``size``, padded to a square: nothing is cropped but odd pixels."""
    return _square(to_rgb(image), _squarepad_margins(image.size), size)


TRANSFORMS: dict[str, Callable[..., Image.Image]] = {"targetpad": targetpad, "squarepad": squarepad}


def to_array(image: Image.Image) -> UInt8[np.ndarray, "3 height width"]:
    """Return the pixels of an RGB picture, channels first, uint8 in [0, 255]."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))  # (3, height, width)


def normalise(
    pixels: UInt8[np.ndarray, "*batch 3 height width"],
    mean: tuple[float, float, float] = CLIP_MEAN,
    std: tuple[float, float, float] = CLIP_STD,
) -> Float32[np.ndarray, "*batch 3 height width"]:
    """Return ``(pixels / 255 - mean) / std`` in float32; ``mean`` and ``std`` are of RGB in [0, 1]."""
    centre, spread = (np.asarray(values, dtype=np.float32)[:, None, None] for values in (mean, std))  # (3, 1, 1)
    return scale_pixels(pixels.astype(np.float32), centre, spread)


def scale_pixels(pixels: Any, mean: Any, std: Any) -> Any:
    """Return ``(pixels / 255 - mean) / std`` of float32 values in [0, 255], of numpy's arrays or of torch's tensors.

    What towers compute and what ``normalise`` returns; ``mean`` and ``std`` are (3, 1, 1), of RGB in [0, 1].
    """
    return (pixels / 255 - mean) / std


def square_box(
    picture: tuple[int, int], size: int = IMAGE_SIZE, *, transform: str = "targetpad", ratio: float = TARGET_RATIO
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of what the square shows, in pixels of a picture of that width and height.

    Below 0 and over the picture's sides lies padding; what the box leaves out of the picture was cropped.
    """
    left, top = _targetpad_margins(picture, ratio) if transform == "targetpad" else _squarepad_margins(picture)
    padded = picture[0] + 2 * left, picture[1] + 2 * top
    resized, corner = _resize_and_crop_sizes(padded, size)
    sides = [
        (corner[axis] + side) * padded[axis] / resized[axis] - (left, top)[axis]
        for side in (0, size)
        for axis in (0, 1)
    ]
    return sides[0], sides[1], sides[2], sides[3]


def _targetpad_margins(picture: tuple[int, int], ratio: float) -> tuple[int, int]:
    long_side = max(picture)
    return (0, 0) if long_side / min(picture) < ratio else _margins(picture, long_side / ratio)


def _squarepad_margins(picture: tuple[int, int]) -> tuple[int, int]:
    return _margins(picture, max(picture))


def _margins(picture: tuple[int, int], side: float) -> tuple[int, int]:
    """Return the borders left and top, whole pixels, that bring either side up to ``side``."""
    width, height = picture
    return max(int((side - width) / 2), 0), max(int((side - height) / 2), 0)


def _pad(image: Image.Image, margins: tuple[int, int]) -> Image.Image:
    """Return the picture with black borders: the margins left and top, and as much right and bottom."""
    left, top = margins
    if not left and not top:
        return image
    page = Image.new("RGB", (image.width + 2 * left, image.height + 2 * top))
    page.paste(image, (left, top))
    return page


def _resize_and_crop_sizes(picture: tuple[int, int], size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return width and height after the resize, and where in it the square's left top corner is."""
    short = min(picture)
    width, height = (size * side // short for side in picture)
    return (width, height), (round((width - size) / 2), round((height - size) / 2))


def _square(image: Image.Image, margins: tuple[int, int], size: int) -> Image.Image:
    """Return what padding with the margins, a resize and a centre crop give, without the whole padded picture.

    Pillow resizes along rows, then along columns, and rounds after each. So borders above and below are added between
    the two, and every byte is the same. Borders at the sides come before the first; where that would take more than
    ``MAX_PADDED_PIXELS``, columns go first, which changes values by a few of 255 by rounding.
    """
    left, top = margins
    padded = image.width + 2 * left, image.height + 2 * top
    (width, height), corner = _resize_and_crop_sizes(padded, size)
    bicubic = Image.Resampling.BICUBIC
    if left and padded[0] * padded[1] > MAX_PADDED_PIXELS:
        page = _pad(image.resize((image.width, height), bicubic), (left, 0)).resize((width, height), bicubic)
    else:
        rows = _pad(image, (left, 0)).resize((width, image.height), bicubic)
        page = _pad(rows, (0, top)).resize((width, height), bicubic)
    return page.crop((*corner, corner[0] + size, corner[1] + size))
