"""Heat maps over pictures, without matplotlib: a server draws them, too."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
from jaxtyping import Float, Float64
from PIL import Image, ImageOps

SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"
"""matplotlib's colour maps that are read with any colour vision: from dark to light, and between two hues."""
HEAT_SIDE = 336
"""Pixels of a drawn square, about."""
DARKEST = 0.45
"""What is left of a value's colour where the picture is black."""


@cache
def sequential() -> Float64[np.ndarray, "256 3"]:
    """Return the colours of ``SEQUENTIAL``, from low to high: RGB in [0, 1]."""
    with (resources.files("composir") / "cividis.txt").open(encoding="utf-8") as file:
        return np.loadtxt(file)


def heat(
    square: Image.Image,
    values: Float[np.ndarray, "rows columns"],
    limits: tuple[float, float],
    colours: Float64[np.ndarray, "256 3"] | None = None,
) -> Float[np.ndarray, "height width 3"]:
    """Return a square picture in the colours of its patches' values, darker where the picture is: RGB in [0, 1].

    ``limits`` are the values of the first and the last of ``colours``, which are those of ``SEQUENTIAL`` unless given;
    values beyond have the nearest colour.
    """
    rows, columns = values.shape
    width, height = columns * (HEAT_SIDE // columns), rows * (HEAT_SIDE // rows)
    grey = ImageOps.grayscale(square.resize((width, height), Image.Resampling.BILINEAR))
    shade = DARKEST + (1 - DARKEST) * np.asarray(grey, dtype=np.float32) / 255
    table = sequential() if colours is None else colours
    low, high = limits
    shares = (values - low) / ((high - low) or 1.0)
    coloured = table[np.clip(shares * len(table), 0, len(table) - 1).astype(int)]  # (rows, columns, 3)
    return np.kron(coloured, np.ones((height // rows, width // columns, 1))) * shade[..., None]
