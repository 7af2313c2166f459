"""A scene as a picture."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from random import Random

from PIL import Image, ImageDraw

from composir.data.scenes.world import RADIUS_BY_SIZE, RGB_BY_BACKGROUND, RGB_BY_COLOUR, Scene

CELL = 48
"""Side of a grid cell in pixels; the picture is three cells wide."""
JITTER = 2
"""Each object is drawn up to this many pixels off its cell's middle, anew in every picture."""
OVERSAMPLING = 8


def draw(scene: Scene, rng: Random) -> Image.Image:
    """Return the picture of a scene, 144 x 144 RGB; ``rng`` shifts every object by up to two pixels."""
    page = Image.new("RGB", (3 * CELL, 3 * CELL), RGB_BY_BACKGROUND[scene.background])
    for cell, thing in enumerate(scene.cells):
        if thing is not None:
            left = cell % 3 * CELL + rng.randint(-JITTER, JITTER)
            top = cell // 3 * CELL + rng.randint(-JITTER, JITTER)
            page.paste(RGB_BY_COLOUR[thing.colour], (left, top), _mask(thing.shape, thing.size))
    return page


@functools.cache
def _mask(shape: str, size: str) -> Image.Image:
    """Return the shape in white on black, one cell large, with soft edges."""
    side = CELL * OVERSAMPLING
    radius = RADIUS_BY_SIZE[size] * OVERSAMPLING
    middle = side / 2
    mask = Image.new("L", (side, side))
    pen = ImageDraw.Draw(mask)
    if shape == "circle":
        pen.ellipse((middle - radius, middle - radius, middle + radius, middle + radius), fill=255)
    elif shape == "square":
        pen.polygon(_corners(middle, [radius * 1.2] * 4, turn=math.pi / 4), fill=255)
    elif shape == "triangle":
        pen.polygon(_corners(middle, [radius * 1.1] * 3), fill=255)
    elif shape == "star":
        pen.polygon(_corners(middle, [radius * 1.1, radius * 0.45] * 5), fill=255)
    else:
        arm = radius * 0.36
        pen.rectangle((middle - radius, middle - arm, middle + radius, middle + arm), fill=255)
        pen.rectangle((middle - arm, middle - radius, middle + arm, middle + radius), fill=255)
    return mask.reduce(OVERSAMPLING)


def _corners(middle: float, radii: Sequence[float], turn: float = 0.0) -> list[tuple[float, float]]:
    """Return the corners of a polygon about the middle, the first one straight up but for ``turn``."""
    angles = [turn - math.pi / 2 + 2 * math.pi * number / len(radii) for number in range(len(radii))]
    return [
        (middle + radius * math.cos(angle), middle + radius * math.sin(angle))
        for radius, angle in zip(radii, angles, strict=True)
    ]
