"""Where the thing is in a picture: on a plain ground it is what differs from that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from composir.models.photos.colours import colour_shares, to_lab

SIDE = 48
"""Pixels a side of the square that grounds and colours are read from."""
TOLERANCE = 12.0
"""Distance in CIELAB within which a pixel is of the ground's colour."""
PLAIN = 0.6
"""Share of the border's pixels that a plain ground has at least."""
WHITE = 250
"""Least value of a white pixel's channels."""
WHITE_ENOUGH = 0.5
"""Share of the border from which a ground counts as quite white: the thing may touch the edge."""
MARGIN = 0.06
"""Of the longer side of a thing, left free around it."""
FEW_PIXELS = 10
"""Fewer of the square are no thing."""
SPREAD = 0.3
"""Standard deviation of the weight of a picture's middle, where its ground is not plain, as a share of its side."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What the small square tells."""

    colours: Float[np.ndarray, " colours"]
    """Shares of the eleven words, of the thing."""
    white: float
    """How white the border is: 0, not at all, to 1."""
    box: tuple[float, float, float, float] | None
    """Left, top, right and bottom of the thing as shares of width and height, where the ground is plain."""
    colour: tuple[int, int, int]
    """The median colour of the border."""


def look_at(picture: Image.Image) -> Ground:
    """Return ground and colours of an RGB picture."""
    pixels = np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    lab = to_lab(pixels)
    border, border_lab = _border(pixels), _border(lab)
    usual = np.median(border_lab, axis=0)
    white = min(1.0, float((border.min(axis=1) >= WHITE).mean()) / WHITE_ENOUGH)
    red, green, blue = (int(value) for value in np.median(border, axis=0))
    thing = np.linalg.norm(lab - usual, axis=-1) > TOLERANCE  # (side, side)
    is_plain = float((np.linalg.norm(border_lab - usual, axis=1) < TOLERANCE).mean()) > PLAIN
    if is_plain and thing.sum() >= FEW_PIXELS:
        weights, box = thing.astype(float), _box(thing)
    else:
        places = (np.arange(SIDE) + 0.5) / SIDE - 0.5
        middle_out = np.exp(-(places**2) / (2 * SPREAD**2))
        weights, box = np.outer(middle_out, middle_out), None
    return Ground(colour_shares(lab.reshape(-1, 3), weights.ravel()), white, box, (red, green, blue))


def look_vectors(
    colours: Sequence[Float[np.ndarray, " colours"]], white: Sequence[float]
) -> tuple[Float[Tensor, "batch colours"], Float[Tensor, "batch 2"]]:
    """Return colours and ground of pictures as vectors of length 1, to be compared by their products.

    Of shares the square roots, so that the product is Bhattacharyya's coefficient; of white its place on a quarter of
    a circle.
    """
    angles = torch.tensor(white) * (torch.pi / 2)
    ground = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return normalize(torch.tensor(np.stack(colours)).float().sqrt(), dim=-1), ground


def cut_out(picture: Image.Image, ground: Ground) -> Image.Image | None:
    """Return the thing on a plain ground as a square with a little of the ground; None where it is not plain."""
    if ground.box is None:
        return None
    left, top, right, bottom = (share * picture.size[axis % 2] for axis, share in enumerate(ground.box))
    side = max(1, round(max(right - left, bottom - top) * (1 + 2 * MARGIN)))
    page = Image.new("RGB", (side, side), ground.colour)
    page.paste(picture, (round((side - left - right) / 2), round((side - top - bottom) / 2)))
    return page


def _border(square: np.ndarray) -> np.ndarray:
    return np.concatenate([square[0], square[-1], square[:, 0], square[:, -1]])


def _box(thing: Bool[np.ndarray, "height width"]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(thing.any(axis=1)), np.flatnonzero(thing.any(axis=0))
    edges = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    left, top, right, bottom = (float(edge) / SIDE for edge in edges)
    return left, top, right, bottom
