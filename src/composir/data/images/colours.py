"""Pixels of any mode and colour profile as 8-bit sRGB."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from composir.errors import ComposirError

MODES_OF_16_BITS = ("I", "I;16", "I;16L", "I;16B", "I;16N")
MAX_16_BITS = 65535
WHITE_IS_ZERO = 0
MAX_PROFILE = 2**22
"""Bytes of a colour profile; printers' have up to 2 MB, and a longer one is passed over."""
MODES_OF_SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's modes by what a colour profile (ICC) says it is for."""
SAME_COLOUR = 3
"""Of 255: a profile that moves no colour further is taken for sRGB, and changes nothing."""


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
