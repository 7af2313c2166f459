"""Picture to model input: pad, resize, crop. The table ``TRANSFORMS`` names the choices.

The geometry is the one of CLIP4Cir and SPRC (``--transform targetpad --target-ratio 1.25``): black padding in
whole pixels, a bicubic resize of the short side, a centre crop.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from composir.data.images import to_rgb
from composir.errors import ComposirError

IMAGE_SIZE = 224
"""Side of the model's input in pixels, of every published CIR backbone."""

TARGET_RATIO = 1.25
"""CLIP4Cir's target ratio: pictures up to 5:4 are cropped as they are, longer ones are padded to 5:4."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of RGB in [0, 1], from OpenAI's CLIP preprocessing; BLIP-2 and SPRC use the same."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of RGB in [0, 1], from OpenAI's CLIP preprocessing."""


def targetpad(image: Image.Image, size: int = IMAGE_SIZE, ratio: float = TARGET_RATIO) -> Image.Image:
    """Return an RGB picture of ``size`` x ``size``; one longer than ``ratio`` is padded before the crop.

    Source: Baldrati et al., CLIP4Cir (CVPR workshops 2022), section 3.2. Departure: converts to RGB first,
    which differs where a picture has a palette or transparency.
    """
    if ratio < 1:
        raise ComposirError(
            f"target ratio {ratio} is below 1", expected="long side / short side, 1 or more", fix="use 1.25"
        )
    width, height = image.size
    long_side = max(width, height)
    if long_side / min(width, height) < ratio:
        return _resize_and_crop(to_rgb(image), size)
    return _resize_and_crop(_pad(to_rgb(image), long_side / ratio), size)


def squarepad(image: Image.Image, size: int = IMAGE_SIZE) -> Image.Image:
    """Return an RGB picture of ``size`` x ``size``, padded to a square: nothing is cropped but odd pixels."""
    return _resize_and_crop(_pad(to_rgb(image), max(image.size)), size)


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
    scaled = pixels.astype(np.float32) / np.float32(255)
    centre = np.asarray(mean, dtype=np.float32)[:, None, None]  # (3, 1, 1)
    spread = np.asarray(std, dtype=np.float32)[:, None, None]  # (3, 1, 1)
    return (scaled - centre) / spread


def _pad(image: Image.Image, side: float) -> Image.Image:
    """Return the picture with black borders that bring either side up to ``side``, cut to whole pixels."""
    width, height = image.size
    left = max(int((side - width) / 2), 0)
    top = max(int((side - height) / 2), 0)
    page = Image.new("RGB", (width + 2 * left, height + 2 * top))
    page.paste(image, (left, top))
    return page


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    resized = image.resize((size * width // short, size * height // short), Image.Resampling.BICUBIC)
    left = round((resized.width - size) / 2)
    top = round((resized.height - size) / 2)
    return resized.crop((left, top, left + size, top + size))
