"""Heat maps over pictures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import Normalize
from PIL import Image

from composir.heat import DARKEST, DIVERGING, HEAT_SIDE, SEQUENTIAL, heat, sequential


def test_the_colours_are_those_of_matplotlib():
    np.testing.assert_array_equal(sequential(), colormaps[SEQUENTIAL](np.arange(256))[:, :3])


@pytest.mark.parametrize("name", [SEQUENTIAL, DIVERGING])
@pytest.mark.parametrize("limits", [(-1.0, 1.0), (0.2, 0.7), (0.3, 0.3)])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_values_have_the_colours_that_matplotlib_gives_them(name, limits, kind):
    random = np.random.default_rng(0)
    values = random.uniform(-1.2, 1.2, (21, 16)).astype(kind)
    values[0, :2] = limits
    if limits[0] == limits[1]:
        values[:] = limits[0]
    own = None if name == SEQUENTIAL else colormaps[name](np.arange(256))[:, :3]
    drawn = heat(Image.new("RGB", (50, 50), "white"), values, limits, own)
    expected = colormaps[name](Normalize(*limits)(values))[..., :3]
    np.testing.assert_array_equal(drawn[:: HEAT_SIDE // 21, :: HEAT_SIDE // 16], expected)


def test_the_picture_is_seen_as_light_and_dark():
    half = Image.new("RGB", (HEAT_SIDE, HEAT_SIDE), "black")
    half.paste("white", (0, 0, HEAT_SIDE, HEAT_SIDE // 2))
    drawn = heat(half, np.ones((1, 1), np.float32), (0.0, 1.0))
    np.testing.assert_allclose(drawn[0, 0], sequential()[-1], rtol=1e-6)
    np.testing.assert_allclose(drawn[-1, 0], DARKEST * sequential()[-1], rtol=1e-6)
