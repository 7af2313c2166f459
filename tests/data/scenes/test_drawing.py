from __future__ import annotations

from random import Random

import numpy as np
import pytest

from composir.data import cirr, read_image
from composir.data.scenes import draw, plan
from composir.data.scenes.planning import MIN_NUM_IMAGES
from composir.data.scenes.world import RADIUS_BY_SIZE, RGB_BY_BACKGROUND, RGB_BY_COLOUR, SHAPES, Object, Scene


def test_pictures_show_the_scene(root):
    (planned,) = [split for split in plan(MIN_NUM_IMAGES) if split.name == "val"]
    (split,) = cirr.load(root, "val")
    for name, scene in zip(split.gallery, planned.scenes, strict=True):
        pixels = np.asarray(read_image(split.images[name]))
        assert pixels.shape == (144, 144, 3)
        for cell, thing in enumerate(scene.cells):
            middle = pixels[cell // 3 * 48 + 24, cell % 3 * 48 + 24].tolist()
            colour = RGB_BY_BACKGROUND[scene.background] if thing is None else RGB_BY_COLOUR[thing.colour]
            assert middle == list(colour)


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_stay_in_their_cell_and_sizes_differ(shape):
    areas = {}
    for size in RADIUS_BY_SIZE:
        scene = Scene("white", (None,) * 4 + (Object("black", shape, size),) + (None,) * 4)
        for seed in range(10):
            drawn = np.asarray(draw(scene, Random(seed))).min(axis=2) < 255
            areas[size] = drawn.sum()
            drawn[48:96, 48:96] = False
            assert not drawn.any()
    assert areas["large"] > 2.5 * areas["small"]


def test_edges_are_soft():
    scene = Scene("white", (None,) * 4 + (Object("black", "circle", "large"),) + (None,) * 4)
    assert len(np.unique(np.asarray(draw(scene, Random(0))))) > 10
