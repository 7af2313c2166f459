from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file

from composir.data.images import read_image
from composir.data.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    TRANSFORMS,
    normalise,
    square_box,
    squarepad,
    targetpad,
    to_array,
)
from composir.errors import ComposirError

GOLDEN = Path(__file__).parents[1] / "golden"
PALETTE_NUMBER = "06"  # differs by design: the reference resizes the palette's indices, this project RGB
FILES = sorted((GOLDEN / "images").iterdir())


def test_the_nine_golden_images_are_here():
    assert [file.name[:2] for file in FILES] == ["00", "01", "02", "03", "04", "06", "09", "10", "11"]


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_transforms_equal_the_reference(file, name):
    golden = load_file(GOLDEN / "transforms.safetensors")
    every4, (mean, std) = golden[f"{file.name[:2]}.{name}.every4"], golden[f"{file.name[:2]}.{name}.mean_std"]
    found = normalise(to_array(TRANSFORMS[name](read_image(file))))
    assert found.shape == (3, 224, 224)
    if file.name.startswith(PALETTE_NUMBER):
        # Resized without smoothing by the reference: the same picture on average, not pixel by pixel.
        assert abs(found.mean() - mean) < 1e-3
        assert abs(found.std() - std) < 0.05
        assert np.abs(found[:, ::4, ::4] - every4).mean() < 0.3
        return
    assert np.abs(found[:, ::4, ::4] - every4).max() <= 1e-5
    assert abs(found.mean() - mean) <= 1e-5
    assert abs(found.std(ddof=1) - std) <= 1e-5


def test_targetpad_leaves_ratios_below_the_target_alone():
    # 120 x 100: ratio 1.2 < 1.25, so the 20 extra columns are cropped and no black comes in.
    assert np.asarray(targetpad(Image.new("RGB", (120, 100), "white"), size=50)).min() == 255


def test_targetpad_pads_to_the_ratio():
    # 200 x 100: padded to 200 / 1.25 = 160 rows, 30 above and below; 160 -> 64, so 12 black rows each.
    picture = np.asarray(targetpad(Image.new("RGB", (200, 100), "white"), size=64))
    assert picture[:11].max() == 0
    assert picture[14:50].min() == 255
    assert picture[-11:].max() == 0


def test_squarepad_pads_to_a_square():
    # 200 x 100 -> 200 x 200 with 50 black rows above and below -> 64 x 64 with 16.
    picture = np.asarray(squarepad(Image.new("RGB", (200, 100), "white"), size=64))
    assert picture[:15].max() == 0
    assert picture[18:46].min() == 255
    assert picture[-15:].max() == 0


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(1, 64))
def test_any_size_gives_the_size_asked_for(transform, width, height, size):
    picture = transform(Image.new("RGB", (width, height)), size=size)
    assert (picture.mode, picture.size) == ("RGB", (size, size))


def padded_whole(picture: Image.Image, name: str, size: int) -> Image.Image:
    """Return the square by the whole padded picture, as CLIP4Cir and SPRC make it."""
    long_side = max(picture.size)
    ratio = 1.25 if name == "targetpad" else 1
    pads = name == "squarepad" or long_side / min(picture.size) >= ratio
    left, top = (max(int((long_side / ratio - side) / 2), 0) if pads else 0 for side in picture.size)
    page = Image.new("RGB", (picture.width + 2 * left, picture.height + 2 * top))
    page.paste(picture, (left, top))
    width, height = (size * side // min(page.size) for side in page.size)
    corner = round((width - size) / 2), round((height - size) / 2)
    resized = page.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((*corner, corner[0] + size, corner[1] + size))


@pytest.mark.parametrize("name", TRANSFORMS)
@given(
    width=st.one_of(st.integers(1, 400), st.integers(1, 3)),
    height=st.one_of(st.integers(1, 400), st.integers(400, 2000)),
    is_wide=st.booleans(),
    size=st.integers(1, 230),
)
def test_borders_after_shrinking_give_every_byte_that_borders_before_it_give(name, width, height, is_wide, size):
    sides = (height, width) if is_wide else (width, height)
    noise = np.random.default_rng(0).integers(0, 256, (sides[1], sides[0], 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    assert TRANSFORMS[name](picture, size=size).tobytes() == padded_whole(picture, name, size).tobytes()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_tall_picture_by_columns_first_differs_by_rounding_alone(name, monkeypatch):
    waves = 128 + 120 * np.sin(np.arange(1600)[:, None, None] / 31 + np.arange(100)[None, :, None] / 9 + np.arange(3))
    picture = Image.fromarray(waves.round().astype(np.uint8))
    exact = np.asarray(TRANSFORMS[name](picture)).astype(int)
    monkeypatch.setattr("composir.data.transforms.MAX_PADDED_PIXELS", 10_000)
    found = np.asarray(TRANSFORMS[name](picture))
    assert 0 < np.abs(found - exact).max() <= 2


@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000), (20_000, 500), (500, 20_000)])
def test_the_memory_of_an_extreme_picture_stays_small(size, monkeypatch):
    sizes = []
    new, resize = Image.new, Image.Image.resize
    monkeypatch.setattr(Image, "new", lambda mode, size, *more: sizes.append(size) or new(mode, size, *more))
    monkeypatch.setattr(Image.Image, "resize", lambda one, size, *more: sizes.append(size) or resize(one, size, *more))
    picture = new("RGB", size, "white")
    square = np.asarray(targetpad(picture))
    assert square[112, 112].min() > 0
    assert square[0, 0].max() == 0
    assert len(sizes) == 3
    assert max(width * height for width, height in sizes) < 15_000_000


def test_transparency_is_white_before_padding():
    assert np.asarray(squarepad(Image.new("RGBA", (8, 8), (0, 0, 0, 0)), size=4)).min() == 255


def test_a_ratio_below_one_is_an_error():
    with pytest.raises(ComposirError) as caught:
        targetpad(Image.new("RGB", (8, 8)), ratio=0.8)
    assert str(caught.value) == "target ratio 0.8 is below 1; expected long side / short side, 1 or more; fix: use 1.25"


def test_to_array_is_channels_first_uint8():
    array = to_array(Image.new("RGB", (5, 3), (10, 20, 30)))
    assert (array.shape, array.dtype, array.flags["C_CONTIGUOUS"]) == ((3, 3, 5), np.uint8, True)
    assert array[:, 0, 0].tolist() == [10, 20, 30]


def test_normalise_takes_one_picture_or_a_batch():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), dtype=np.uint8)
    batch = normalise(pixels)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch[1], normalise(pixels[1]))
    expected = (pixels[1, 2, 3, 4] / 255 - CLIP_MEAN[2]) / CLIP_STD[2]
    assert batch[1, 2, 3, 4] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("transform", ["targetpad", "squarepad"])
@pytest.mark.parametrize("size", [(300, 240), (301, 240), (900, 100), (90, 800), (64, 512), (224, 224), (480, 640)])
def test_the_square_lies_where_the_box_says(transform, size):
    options = {"ratio": 1.25} if transform == "targetpad" else {}
    left, top, right, bottom = square_box(size, transform=transform, **options)
    assert right - left == pytest.approx(bottom - top, rel=0.02)  # sides are rounded to whole pixels
    x, y = (left + right) * 0.45, (top + bottom) * 0.55
    picture = Image.new("RGB", size)
    radius = max(size) // 30
    picture.paste((255, 255, 255), tuple(round(c + sign * radius) for sign in (-1, 1) for c in (x, y)))
    square = np.asarray(TRANSFORMS[transform](picture, **options).convert("L"), dtype=float)
    rows, columns = np.indices(square.shape) + 0.5
    found = [(columns * square).sum() / square.sum(), (rows * square).sum() / square.sum()]
    expected = [(x - left) / (right - left) * 224, (y - top) / (bottom - top) * 224]
    assert found == pytest.approx(expected, abs=1.5)


def test_the_box_by_hand():
    assert square_box((200, 200)) == (0, 0, 200, 200)
    # 400 x 100, padded to 5:4: (320 - 100) / 2 = 110 above and below; then 224 of 280 columns: 40 pixels off each side
    assert square_box((400, 100)) == (40, -110, 360, 210)
    # squarepad: (400 - 100) / 2 = 150 above and below, and nothing is cropped
    assert square_box((400, 100), transform="squarepad") == (0, -150, 400, 250)
