"""Colours as shares of eleven words, those that most languages have first (Berlin & Kay, *Basic Color Terms*, 1969)."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

PROTOTYPES = {
    "red": ((200, 20, 30), (150, 20, 25), (230, 50, 50)),
    "orange": ((240, 130, 20), (255, 160, 60), (220, 100, 20)),
    "yellow": ((250, 220, 30), (240, 230, 110), (210, 180, 40)),
    "green": ((40, 150, 50), (120, 180, 60), (40, 90, 40), (160, 210, 120)),
    "blue": ((40, 80, 190), (90, 150, 220), (30, 40, 110), (150, 190, 230)),
    "purple": ((120, 50, 160), (80, 40, 110), (170, 110, 200)),
    "pink": ((240, 120, 170), (250, 180, 200), (220, 60, 130)),
    "brown": ((110, 70, 35), (150, 105, 65), (75, 50, 35), (190, 150, 110)),
    "black": ((10, 10, 10), (40, 40, 40)),
    "white": ((250, 250, 250), (225, 225, 225)),
    "grey": ((128, 128, 128), (90, 90, 90), (170, 170, 170)),
}
"""sRGB values that each word stands for."""
COLOURS = tuple(PROTOTYPES)
SOFTNESS = 8.0
"""Of a distance in CIELAB, over which a colour's share falls to 1/e."""
LIGHTNESS_WEIGHT = 0.5
"""Of the square of a difference in lightness beside those in a and b: shadow changes it most."""
_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])


def to_lab(rgb: UInt8[np.ndarray, "*shape 3"]) -> Float[np.ndarray, "*shape 3"]:
    """Return CIELAB under D65 of sRGB values in [0, 255] (IEC 61966-2-1 and CIE 15)."""
    linear = np.asarray(rgb, float) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    xyz = linear @ _TO_XYZ.T / _WHITE
    x, y, z = np.moveaxis(np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def colour_shares(
    lab: Float[np.ndarray, "pixels 3"], weights: Float[np.ndarray, " pixels"]
) -> Float[np.ndarray, " colours"]:
    """Return how much of some pixels, each with its weight, every word of ``COLOURS`` names; the sum is 1."""
    prototypes, starts = _prototypes()
    differences = (lab[:, None] - prototypes) ** 2 * (LIGHTNESS_WEIGHT, 1, 1)  # (pixels, prototypes, 3)
    nearest = np.minimum.reduceat(np.sqrt(differences.sum(-1)), starts, axis=1)  # (pixels, colours)
    shares = np.exp(-nearest / SOFTNESS)
    return np.average(shares / shares.sum(axis=1, keepdims=True), axis=0, weights=weights)


@cache
def _prototypes() -> tuple[Float[np.ndarray, "prototypes 3"], list[int]]:
    """Return all prototypes in CIELAB, and where those of each word begin."""
    sizes = [len(values) for values in PROTOTYPES.values()]
    rgb = np.array([value for values in PROTOTYPES.values() for value in values], np.uint8)
    return to_lab(rgb), [sum(sizes[:place]) for place in range(len(sizes))]
