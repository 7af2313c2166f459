from __future__ import annotations

import hashlib
import io
import os
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from composir.data.images import Crop, find_pictures, inspect_files, read_image, to_rgb
from composir.errors import ComposirError

# Two rows, two columns: red green / blue white.
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], dtype=np.uint8)


def save(image: Image.Image, file: Path, **options) -> Path:
    image.save(file, **options)
    return file


def pixels(file: Path | io.BytesIO) -> list:
    image = read_image(file)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def test_rgb_comes_back_unchanged(tmp_path):
    assert pixels(save(Image.fromarray(CORNERS), tmp_path / "a.png")) == CORNERS.tolist()


def test_text_paths_and_open_files_are_read_too(tmp_path):
    file = save(Image.fromarray(CORNERS), tmp_path / "a.png")
    assert pixels(io.BytesIO(file.read_bytes())) == CORNERS.tolist()
    assert np.asarray(read_image(str(file))).tolist() == CORNERS.tolist()


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        # Stored "rg / bw" shown upright, for each value of the tag (Exif 2.32: where row 0 and column 0 are).
        (1, ["rg", "bw"]),
        (2, ["gr", "wb"]),  # row 0 top, column 0 right: mirrored
        (3, ["wb", "gr"]),  # turned by 180
        (4, ["bw", "rg"]),  # upside down, mirrored
        (5, ["rb", "gw"]),  # row 0 is the left side, column 0 the top: transposed
        (6, ["br", "wg"]),  # row 0 is the right side: turn clockwise
        (7, ["wg", "br"]),  # row 0 is the right side, column 0 the bottom
        (8, ["gw", "rb"]),  # row 0 is the left side: turn counter-clockwise
        (99, ["rg", "bw"]),  # not a value of the tag
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(Image.fromarray(CORNERS), tmp_path / "a.png", exif=exif)
    letters = {(255, 0, 0): "r", (0, 255, 0): "g", (0, 0, 255): "b", (255, 255, 255): "w"}
    assert ["".join(letters[tuple(pixel)] for pixel in row) for row in pixels(file)] == upright


def test_a_tiff_is_turned_once(tmp_path):
    # Pillow turns TIFFs itself when it loads them.
    exif = Image.Exif()
    exif[0x0112] = 3
    file = save(Image.fromarray(CORNERS), tmp_path / "a.tif", exif=exif)
    assert pixels(file) == CORNERS[::-1, ::-1].tolist()


def test_an_unreadable_exif_block_leaves_the_picture_as_stored(tmp_path):
    file = save(Image.fromarray(CORNERS), tmp_path / "a.png", exif=b"Exif\0\0no tiff header")
    assert pixels(file) == CORNERS.tolist()


def test_palette_is_looked_up(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(save(image, tmp_path / "a.png")) == [[[10, 20, 30], [200, 100, 50]]]


def test_transparent_palette_entry_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixels(save(image, tmp_path / "a.png", transparency=0)) == [[[255, 255, 255], [200, 100, 50]]]


def test_half_transparent_palette_entry_is_mixed_with_white(tmp_path):
    image = Image.new("P", (1, 1))
    image.putpalette([0, 100, 200])
    # alpha 51 is one fifth: 0.2 * value + 0.8 * 255
    assert pixels(save(image, tmp_path / "a.png", transparency=bytes([51]))) == [[[204, 224, 244]]]


def test_alpha_is_composited_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (0, 100, 200, 0))
    image.putpixel((1, 0), (0, 100, 200, 51))
    image.putpixel((2, 0), (0, 100, 200, 255))
    expected = [[[255, 255, 255], [204, 224, 244], [0, 100, 200]]]
    assert pixels(save(image, tmp_path / "a.png")) == expected


def test_grey_with_alpha_is_composited_on_white(tmp_path):
    image = Image.new("LA", (2, 1), (100, 51))
    image.putpixel((1, 0), (7, 255))
    assert pixels(save(image, tmp_path / "a.png")) == [[[224, 224, 224], [7, 7, 7]]]


def test_a_colour_marked_transparent_is_white(tmp_path):
    file = save(Image.fromarray(CORNERS), tmp_path / "a.png", transparency=(255, 0, 0))
    expected = CORNERS.copy()
    expected[0, 0] = 255
    assert pixels(file) == expected.tolist()


def test_bilevel_is_black_and_white(tmp_path):
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(save(image, tmp_path / "a.png")) == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    stored = np.array([[0, 257, 25700, 65535]], dtype=np.uint16)  # 0, 1, 100, 255 times 257
    file = save(Image.fromarray(stored), tmp_path / f"a.{suffix}")
    assert [pixel[0] for pixel in pixels(file)[0]] == [0, 1, 100, 255]


def test_16_bit_grey_with_a_transparent_value(tmp_path):
    stored = np.array([[0, 25700]], dtype=np.uint16)
    plain = save(Image.fromarray(stored), tmp_path / "a.png").read_bytes()
    chunk = b"tRNS" + struct.pack(">H", 25700)
    crc = struct.pack(">I", zlib.crc32(chunk))
    at = plain.index(b"IDAT") - 4
    marked = plain[:at] + struct.pack(">I", 2) + chunk + crc + plain[at:]
    assert pixels(io.BytesIO(marked)) == [[[0, 0, 0], [255, 255, 255]]]


def test_cmyk_is_converted(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = np.array(pixels(save(image, tmp_path / "a.tif")))
    assert red[0, 0].tolist() == [255, 0, 0]
    assert np.abs(np.array(pixels(save(image, tmp_path / "a.jpg"))) - red).max() <= 3  # JPEG loses a little


@pytest.mark.parametrize(("mode", "suffix"), [("YCbCr", "jpg"), ("L", "jpg"), ("RGB", "webp")])
def test_other_modes_and_formats_give_rgb(tmp_path, mode, suffix):
    grey = Image.new("RGB", (8, 8), (90, 90, 90)).convert(mode)
    found = np.array(pixels(save(grey, tmp_path / f"a.{suffix}")))
    assert found.shape == (8, 8, 3)
    assert np.abs(found - 90).max() <= 2


@pytest.mark.parametrize("suffix", ["gif", "png"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    file = save(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert pixels(file) == [[[255, 0, 0]] * 4] * 4


def test_a_missing_file_is_named(tmp_path):
    file = tmp_path / "gone.png"
    with pytest.raises(ComposirError) as caught:
        read_image(file)
    assert str(caught.value) == (
        f"{file}: no such image file; fix: fetch or export the file again (composir data check finds every such file)"
    )


def test_an_empty_file_is_named(tmp_path):
    file = tmp_path / "a.png"
    file.touch()
    with pytest.raises(ComposirError, match=r"a\.png: the image file is empty \(0 bytes\); fix: fetch or export"):
        read_image(file)


def test_a_web_page_called_jpg_shows_how_it_starts(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_text("<!DOCTYPE html><title>Page not found</title>")
    with pytest.raises(ComposirError) as caught:
        read_image(file)
    assert "not an image that Pillow can read (it starts with b'<!DOCTYPE html><title>Pa')" in str(caught.value)
    assert "expected PNG, JPEG or another picture format; fix: fetch or export" in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tif"])
@pytest.mark.parametrize("part", [0.5, 0.8])
def test_a_cut_off_file_is_an_error_at_any_length(tmp_path, suffix, part):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = save(Image.fromarray(noise), tmp_path / f"a.{suffix}")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])
    with pytest.raises(ComposirError, match=rf"a\.{suffix}: (the image data is cut off or damaged|not an image)"):
        read_image(file)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(ComposirError, match=r"cannot be opened \(Is a directory\); fix: make it a readable"):
        read_image(tmp_path)


def test_float_pixels_have_no_known_range(tmp_path):
    file = save(Image.new("F", (2, 2), 0.5), tmp_path / "a.tif")
    with pytest.raises(ComposirError, match=r"a\.tif: holds 32-bit float pixels, whose range is unknown; expected 8"):
        read_image(file)


def test_32_bit_integers_have_no_known_range(tmp_path):
    file = save(Image.new("I", (2, 2), 70000), tmp_path / "a.tif")
    with pytest.raises(ComposirError, match="holds 32-bit integer pixels from 70000 to 70000"):
        read_image(file)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    file = save(Image.fromarray(CORNERS), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    with pytest.raises(ComposirError, match=r"a\.png: too many pixels: .*; fix: scale the picture down"):
        read_image(file)


def test_an_uploaded_file_without_a_name_is_called_so():
    with pytest.raises(ComposirError, match=r"uploaded image: the image file is empty"):
        read_image(io.BytesIO())


def test_to_rgb_takes_pictures_already_open():
    assert to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_threads_read_at_once_and_no_setting_is_changed(tmp_path):
    good = save(Image.fromarray(CORNERS), tmp_path / "good.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:50])
    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    barrier = threading.Barrier(8)

    def read(number: int) -> bool:
        barrier.wait()
        for _ in range(20):
            try:
                readable = np.asarray(read_image(cut if number % 2 else good)).tolist() == CORNERS.tolist()
            except ComposirError:
                readable = False
            if readable is bool(number % 2):
                return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(8)))
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


def test_a_crop_is_the_part_in_its_box_cut_at_the_edge(tmp_path: Path) -> None:
    file = tmp_path / "corners.png"
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(file)
    part = read_image(Crop(file, (1.4, -3, 99, 2)))
    assert np.asarray(part).tolist() == pixels[0:2, 1:6].tolist()


def test_a_crop_outside_the_picture_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "small.png"
    Image.new("RGB", (6, 4)).save(file)
    message = r"small\.png: the box \(6, 0, 9, 4\) holds no pixel of it; expected .* within 6 x 4 pixels; fix: "
    with pytest.raises(ComposirError, match=message):
        read_image(Crop(file, (6, 0, 9, 4)))


def test_files_are_inspected_once_in_order_with_their_parts(tmp_path):
    first = save(Image.fromarray(CORNERS), tmp_path / "b.png")
    second = tmp_path / "a.png"
    second.write_bytes(first.read_bytes()[:50])
    parts = [Crop(first, (0, 0, 1, 1)), Crop(first, (5, 5, 6, 6))]
    calls: list[tuple[int, int]] = []
    found = inspect_files([*parts, second, first], progress=lambda *told: calls.append(told))
    assert list(found) == [first, second]
    assert calls == [(1, 2), (2, 2)]
    assert found[first].digest == hashlib.sha256(first.read_bytes()).digest()
    assert list(found[first].errors) == [parts[1]]
    assert found[second].digest is None
    assert "cut off or damaged" in found[second].errors[second].message


def test_files_are_looked_up_without_opening_them(tmp_path):
    (tmp_path / "full.png").write_bytes(b"no picture")
    (tmp_path / "empty.png").touch()
    names = ("full.png", "empty.png", "gone.png", "full.png/below.png", "nul\0.png", ".")
    found = inspect_files([tmp_path / name for name in names], decode=False)
    assert [error.message for one in found.values() for error in one.errors.values()] == [
        "the image file is empty (0 bytes)",
        "no such image file",
        "no such image file",
        "cannot be opened (embedded null byte)",
        "cannot be opened (not a regular file)",
    ]
    assert all(one.digest is None for one in found.values())


def test_pictures_are_found_below_a_folder(tmp_path, monkeypatch):
    home = tmp_path / "home"
    for name in ("b.JPG", "a/c.webp", "a/d.txt", ".hidden.png", ".folder/e.png", "locked/f.png"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    (tmp_path / "out.png").touch()
    (home / "link.png").symlink_to(tmp_path / "out.png")
    (home / "inside.png").symlink_to("b.JPG")
    (home / "up").symlink_to(tmp_path)
    (home / os.fsdecode(b"x\xe9.png")).touch()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    names, reasons = find_pictures(home)
    assert names == ["a/c.webp", "b.JPG", "inside.png"]
    assert reasons == {
        "link.png": "a link that leads out of the folder",
        "up": "a link that leads out of the folder",
        "x\\xe9.png": "its name is not UTF-8",
        "locked": "cannot be listed (Permission denied)",
    }


def test_heic_is_read_by_its_plugin_upright(tmp_path):
    import pillow_heif  # noqa: PLC0415

    picture = Image.fromarray(np.repeat(np.repeat(CORNERS, 32, axis=0), 32, axis=1))
    pillow_heif.from_pillow(picture).save(tmp_path / "a.heic", quality=95)
    image = read_image(tmp_path / "a.heic")
    assert (image.mode, image.size) == ("RGB", (64, 64))
    middle = np.asarray(image)[16::32, 16::32].astype(int)
    assert np.abs(middle - CORNERS).max() < 40  # a lossy coding


def test_heic_without_its_plugin_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    words = r"a\.heic: a HEIC picture needs the package pillow-heif, .* fix: pip install 'composir\[heic\]'"
    with pytest.raises(ComposirError, match=words):
        read_image(tmp_path / "a.heic")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif")
    with pytest.raises(ComposirError, match="not an image that Pillow can read"):
        read_image(tmp_path / "b.heic")
