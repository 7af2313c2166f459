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

from composir.data.images import Crop, inspect_files, read_image
from composir.data.images.colours import to_rgb
from composir.data.images.files import read_bytes
from composir.data.images.folder import find_pictures
from composir.errors import ComposirError
from composir.samples import SAMPLES

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


@pytest.mark.parametrize("suffix", ["png", "tif"])
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
    assert "not an image of a format that is read (it is a web page)" in str(caught.value)
    assert "expected JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or HEIC; fix: fetch or export" in str(caught.value)


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


def test_more_pixels_or_a_longer_side_than_is_allowed_is_refused(tmp_path, monkeypatch):
    file = save(Image.fromarray(CORNERS), tmp_path / "a.png")
    for name in ("COMPOSIR_MAX_PIXELS", "COMPOSIR_MAX_SIDE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            with pytest.raises(ComposirError, match=r"uploaded image: too many pixels: 2 x 2; at most "):
                read_image(io.BytesIO(file.read_bytes()))
            patch.setenv(name, "many")
            with pytest.raises(ComposirError, match=rf"the environment variable {name} is 'many'; expected a whole"):
                read_image(file)
    monkeypatch.setenv("COMPOSIR_MAX_PIXELS", "4")
    monkeypatch.setenv("COMPOSIR_MAX_SIDE", "2")
    with pytest.raises(ComposirError, match=r"the file has \d+ bytes; expected at most 32, 8 for each pixel"):
        read_image(file)
    assert np.asarray(read_image(io.BytesIO(file.read_bytes()))).tolist() == CORNERS.tolist()


def test_a_picture_of_200_million_pixels_is_read_at_an_eighth(tmp_path):
    file = save(Image.new("L", (16_320, 12_240), 90), tmp_path / "a.jpg", quality=50)
    assert read_image(file, side=560).size == (680, 510)
    assert read_image(file).size == (8160, 6120)  # of a data set
    with pytest.raises(ComposirError, match=r"too many pixels: 2,040 x 1,530; at most 3,000,000 are taken"):
        read_image(file, side=560, max_pixels=3_000_000)


def test_a_jpeg_for_search_keeps_the_side_and_a_part_of_a_file_is_not_scaled(tmp_path, monkeypatch):
    picture = Image.fromarray(np.repeat(np.repeat(CORNERS, 500, axis=0), 600, axis=1))
    file = save(picture, tmp_path / "a.jpg", quality=95)
    whole = read_image(file)
    assert whole.size == (1200, 1000)
    assert read_image(file, side=601).size == (1200, 1000)
    half = read_image(file, side=600)
    assert half.size == (600, 500)
    assert np.abs(np.asarray(half).astype(int)[25::50, 25::50] - np.asarray(whole)[50::100, 50::100]).max() <= 3
    assert read_image(save(picture, tmp_path / "a.png"), side=300).size == (1200, 1000)  # not a JPEG
    monkeypatch.setattr("composir.data.images.decoding.LARGE_PIXELS", 1000)
    monkeypatch.setattr("composir.data.images.decoding.LARGE_SIDE", 400)
    assert read_image(tmp_path / "a.png").size == (400, 334)
    assert read_image(Crop(tmp_path / "a.png", (0, 0, 1200, 900))).size == (1200, 900)


def test_a_lack_of_memory_is_an_error_of_the_file(tmp_path, monkeypatch):
    file = save(Image.fromarray(CORNERS), tmp_path / "a.png")

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("composir.data.images.decoding._load", fail)
    with pytest.raises(ComposirError, match=r"a\.png: needs more memory than there is left; fix: scale the picture"):
        read_image(file)


@pytest.mark.parametrize("name", ["a.jpg", "a.eps"])
def test_postscript_is_never_handed_to_another_program(tmp_path, monkeypatch, name):
    called = []
    monkeypatch.setattr("subprocess.Popen", lambda *command, **_: called.append(command))
    (tmp_path / name).write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 80 60\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(ComposirError, match=r"not an image of a format that is read \(it is PostScript"):
        read_image(tmp_path / name)
    assert called == []


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "EPS", "PDF"])
def test_formats_that_the_documentation_does_not_name_are_not_opened(kind):
    file = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(CORNERS, 16, axis=0), 16, axis=1)).save(file, kind)
    file.seek(0)
    with pytest.raises(ComposirError, match=r"not an image of a format that is read"):
        read_image(file)


def test_a_jpeg_of_very_many_scans_is_refused():
    file = io.BytesIO()
    Image.fromarray(CORNERS).resize((32, 32)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    with pytest.raises(ComposirError, match="it has more scans than any picture needs"):
        read_image(io.BytesIO(content[:last] + content[last:-2] * 101 + content[-2:]))


# -- files that odd programs and cut downloads leave -------------------------------------------------------------------

LEFT, RIGHT = (200, 40, 40), (40, 40, 200)


def halves(left=LEFT, right=RIGHT) -> Image.Image:
    picture = Image.new("RGB", (80, 60), left)
    picture.paste(right, (40, 0, 80, 60))
    return picture


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("missing", "progressive"), [(1, False), (2, False), (5, False), (1, True), (2, True)])
def test_a_jpeg_without_its_last_bytes_is_read_where_notes_are_taken(missing, progressive):
    content = encoded(halves(), "JPEG", quality=90, progressive=progressive)[:-missing]
    with pytest.raises(ComposirError, match=r"the image data is cut off or damaged \(image file is truncated"):
        read_image(io.BytesIO(content))
    notes: list[str] = []
    found = np.asarray(read_image(io.BytesIO(content), notes=notes)).astype(int)
    assert notes == ["its last bytes are missing; it is used as far as it goes"]
    assert np.abs(found - np.asarray(halves()))[:, [0, 20, 60, 79]].max() <= 8
    notes.clear()
    read_image(io.BytesIO(encoded(halves(), "JPEG")), notes=notes)
    assert notes == []


@pytest.mark.parametrize(("part", "is_read"), [(0.97, True), (0.85, False), (0.5, False)])
@pytest.mark.parametrize("last", [b"", b"\xff", b"\xff\xff"])
def test_a_jpeg_that_lacks_more_than_a_tenth_is_refused(part, is_read, last):
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), "JPEG")
    cut = io.BytesIO(content[: int(part * len(content))] + last)
    if is_read:
        assert read_image(cut, notes=[]).size == (256, 256)
    else:
        with pytest.raises(ComposirError, match="cut off or damaged"):
            read_image(cut, notes=[])


SAVED = {
    "plain": {"quality": 85},
    "coarse": {"quality": 30},
    "of full colours": {"quality": 90, "subsampling": 0},
    "with restarts": {"quality": 85, "restart_marker_blocks": 8},
    "progressive": {"quality": 85, "progressive": True},
    "progressive with restarts": {"quality": 85, "progressive": True, "restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", SAVED.values(), ids=SAVED)
def test_of_a_photograph_cut_anywhere_nine_tenths_are_there_or_it_is_refused(options):
    with Image.open(SAMPLES / "cat.jpg") as picture:
        content = encoded(picture, "JPEG", **options)
    whole = np.asarray(read_image(io.BytesIO(content))).astype(int)
    num_read = 0
    for share in (0.02, 0.03, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.96, 0.99, 0.999):
        try:
            found = read_image(io.BytesIO(content[: int(share * len(content))]), notes=[])
        except ComposirError as error:
            assert "cut off or damaged" in str(error)
        else:
            num_read += 1
            differ = np.abs(np.asarray(found).astype(int) - whole).max(axis=-1) > 8
            assert differ.mean() <= 0.12, share
    assert num_read >= 1


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    total = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", total)


def with_chunk(content: bytes, more: bytes) -> bytes:
    return content[:33] + more + content[33:]  # behind the header


LONG = zlib.compress(b"n" * 1_200_000)
BOMB = zlib.compress(bytes(100_000_000))


@pytest.mark.parametrize(
    "more",
    [
        chunk(b"zTXt", b"notes\0\0" + LONG),
        chunk(b"iTXt", b"notes\0\1\0\0\0" + LONG),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + BOMB),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"x" * 70_000_000),
        chunk(b"iTXt", b"notes\0\1\0\0\0no zlib"),
        chunk(b"iCCP", b"profile\0\0" + BOMB),
        chunk(b"iCCP", b"profile\0\0no zlib"),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"no profile")),
        chunk(b"tEXt", b"a\0bc", crc=0),
        chunk(b"tIME", bytes(7), crc=0),
        chunk(b"tEXt", b"a\0" + b"x" * 1_000_000) * 70,
    ],
    ids=lambda more: f"{more[4:8].decode()}-{more[8:20].decode('latin-1')}-{len(more)}",
)
def test_what_stands_beside_the_pixels_of_a_png_does_not_stop_it(more):
    content = with_chunk(encoded(halves(), "PNG"), more)
    assert np.asarray(read_image(io.BytesIO(content))).tolist() == np.asarray(halves()).tolist()


def test_a_png_is_turned_by_what_a_text_says():
    for text in (b"\0\0\0\0" + b'tiff:Orientation="3"', b"\1\0\0\0" + zlib.compress(b'tiff:Orientation="3"')):
        content = with_chunk(encoded(halves(), "PNG"), chunk(b"iTXt", b"XML:com.adobe.xmp\0" + text))
        assert read_image(io.BytesIO(content)).getpixel((0, 0)) == RIGHT


def test_a_png_whose_pixels_are_damaged_is_refused():
    content = bytearray(encoded(halves(), "PNG"))
    content[content.index(b"IDAT") + 20] ^= 255
    with pytest.raises(ComposirError, match="cut off or damaged"):
        read_image(io.BytesIO(bytes(content)), notes=[])


def test_nothing_before_a_picture_is_passed_over():
    content = b"\n" + encoded(halves(), "JPEG")
    with pytest.raises(ComposirError, match=r"not an image of a format that is read \(its first bytes are 0a ff d8"):
        read_image(io.BytesIO(content), notes=[])


def tiff(
    planes: list[np.ndarray], *, bits: int, photometric: int, is_planar: bool, packed: bytes | None = None
) -> bytes:
    """Return a little-endian TIFF, uncompressed, one strip for each of the (height, width) planes."""
    height, width = planes[0].shape
    strips = [plane.astype("<u2").tobytes() for plane in planes] if packed is None else [packed]
    starts = [8 + sum(map(len, strips[:place])) for place in range(len(strips))]
    tags = {256: (3, [width]), 257: (3, [height]), 258: (3, [bits] * len(planes)), 259: (3, [1])}
    tags |= {262: (3, [photometric]), 273: (4, starts), 277: (3, [len(planes)]), 278: (3, [height])}
    tags |= {279: (4, [len(strip) for strip in strips]), 284: (3, [2 if is_planar else 1])}
    far, place, entries = b"", 8 + sum(map(len, strips)), b""
    for tag, (kind, values) in sorted(tags.items()):
        data = struct.pack("<" + {3: "H", 4: "I"}[kind] * len(values), *values)
        if len(data) > 4:
            far, data = far + data, struct.pack("<I", place + len(far))
        entries += struct.pack("<HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    start = struct.pack("<I", place + len(far))
    return b"II*\0" + start + b"".join(strips) + far + struct.pack("<H", len(tags)) + entries + bytes(4)


def test_a_tiff_of_16_bits_by_planes_is_refused_not_read_wrongly():
    planes = [np.full((6, 8), 256 * value) for value in LEFT]
    content = tiff(planes, bits=16, photometric=2, is_planar=True)
    with pytest.raises(
        ComposirError, match=r"a TIFF of 16 bits with a plane for each colour, .*; expected 8 bits, or 16"
    ):
        read_image(io.BytesIO(content))


@pytest.mark.parametrize(("photometric", "greys"), [(0, [255, 155, 0]), (1, [0, 100, 255])])
def test_a_tiff_of_16_bits_says_whether_0_is_white(photometric, greys):
    content = tiff([np.array([[0, 25700, 65535]])], bits=16, photometric=photometric, is_planar=False)
    assert [grey for grey, *_ in pixels(io.BytesIO(content))[0]] == greys


def test_a_tiff_of_12_bits_is_scaled_by_its_range():
    packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0])  # 0, 2048, 4095 in 12 bits each, from the left
    content = tiff([np.zeros((1, 3))], bits=12, photometric=1, is_planar=False, packed=packed)
    assert [grey for grey, *_ in pixels(io.BytesIO(content))[0]] == [0, 128, 255]


# -- colours -----------------------------------------------------------------------------------------------------------

S15 = 65536
SRGB_PRIMARIES = [(0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)]
P3_PRIMARIES = [(0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841)]
ADOBE_PRIMARIES = [(0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)]
"""XYZ of red, green and blue, adapted to D50 as the profiles hold them."""


def icc(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    """Return a colour profile (ICC, version 2) of these tags."""
    white = struct.pack(">iii", *(round(value * S15) for value in (0.9642, 1.0, 0.8249)))
    tags = {b"wtpt": b"XYZ \0\0\0\0" + white, **tags}
    table, data, place = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", place + len(data), len(content))
        data += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(">I4sI4s4s4s12x4s28x12s", 132, b"test", 0x02400000, b"mntr", space, connection, b"acsp", white)
    head = struct.pack(">I", 128 + len(table) + len(data)) + head[4:]
    return head.ljust(128, b"\0") + table + data


def curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def rgb_profile(primaries, gamma: float) -> bytes:
    tags = {}
    for name, xyz in zip(b"rgb", primaries, strict=True):
        letter = bytes([name])
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + struct.pack(">iii", *(round(value * S15) for value in xyz))
        tags[letter + b"TRC"] = curve(gamma)
    return icc(b"RGB ", tags)


def srgb_of(colour, primaries, gamma: float) -> np.ndarray:
    """Return the colour in sRGB by the formulas of IEC 61966-2-1."""
    xyz = np.array(primaries).T @ (np.array(colour) / 255) ** gamma
    linear = np.clip(np.linalg.solve(np.array(SRGB_PRIMARIES).T, xyz), 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("primaries", "gamma"), [(P3_PRIMARIES, 2.2), (ADOBE_PRIMARIES, 2.2), (SRGB_PRIMARIES[::-1], 2.2)]
)
def test_a_colour_profile_is_turned_into_srgb(kind, primaries, gamma):
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    picture = halves((180, 90, 60), (70, 130, 190))
    content = encoded(picture, kind, icc_profile=rgb_profile(primaries, gamma), **options)
    found = np.asarray(read_image(io.BytesIO(content)))
    for place, colour in ((0, (180, 90, 60)), (79, (70, 130, 190))):
        assert np.abs(found[30, place] - srgb_of(colour, primaries, gamma)).max() <= 2.5, (kind, colour)
        assert np.abs(found[30, place].astype(int) - colour).max() >= 5


def test_a_profile_that_hardly_differs_from_srgb_changes_nothing():
    from PIL import ImageCms  # noqa: PLC0415

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    content = encoded(noise, "PNG", icc_profile=profile)
    assert read_image(io.BytesIO(content)).tobytes() == noise.tobytes()


@pytest.mark.parametrize(
    ("picture", "profile"),
    [
        (halves(), b"no profile"),
        (halves(), rgb_profile(P3_PRIMARIES, 2.2)[:200]),
        (halves(), icc(b"GRAY", {b"kTRC": curve(1.0)})),
        (halves().convert("L"), rgb_profile(P3_PRIMARIES, 2.2)),
        (halves(), icc(b"RGB ", {})),
    ],
    ids=["text", "cut off", "of grey", "of colours", "without curves"],
)
def test_a_profile_that_is_broken_or_of_another_kind_is_passed_over(picture, profile):
    content = encoded(picture, "TIFF", icc_profile=profile)
    assert read_image(io.BytesIO(content)).tobytes() == picture.convert("RGB").tobytes()


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile_is_applied(mode):
    picture = Image.new("I;16", (4, 4), 128 * 257) if mode == "I;16" else Image.new("L", (4, 4), 128).convert(mode)
    content = encoded(picture, "PNG", icc_profile=icc(b"GRAY", {b"kTRC": curve(1.0)}))
    # linear 128/255 is 0.502, in sRGB 1.055 * 0.502^(1/2.4) - 0.055 = 0.737: 188
    assert np.abs(np.array(pixels(io.BytesIO(content))) - 188).max() <= 1


def test_transparency_and_palettes_keep_their_colours_under_a_profile():
    profile = rgb_profile(SRGB_PRIMARIES[::-1], 2.2)  # red and blue exchanged
    clear = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    clear.putpixel((1, 0), (255, 0, 0, 0))
    assert pixels(io.BytesIO(encoded(clear, "PNG", icc_profile=profile)))[0][1] == [255, 255, 255]
    for picture in (clear, clear.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)):
        red, _, blue = pixels(io.BytesIO(encoded(picture, "PNG", icc_profile=profile)))[0][0]
        assert red <= 2
        assert blue >= 253


def test_cmyk_with_a_profile_is_converted_by_it():
    # a table of 2 ^ 4 colours: Lab (100, 0, 0), white, without ink; black with all; else (50, 0, 0), a middle grey
    lab = [[255, 128, 128]] + [[128, 128, 128]] * 14 + [[0, 128, 128]]
    straight = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + struct.pack(">9i", *[S15, 0, 0, 0, S15, 0, 0, 0, S15])
    table += straight * 4 + bytes(value for colour in lab for value in colour) + straight * 3
    profile = icc(b"CMYK", {b"A2B0": table}, connection=b"Lab ")
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    content = encoded(cyan, "TIFF", icc_profile=profile)
    found = np.asarray(read_image(io.BytesIO(content)))[8, 8].astype(int)
    assert np.abs(found - 119).max() <= 3  # L* of 50 is 119 in sRGB
    assert pixels(io.BytesIO(encoded(cyan, "TIFF")))[8][8] == [0, 255, 255]


def test_a_decoded_picture_with_a_profile_is_converted_once():
    picture = Image.new("RGB", (4, 4), (200, 10, 10))
    picture.info["icc_profile"] = rgb_profile(SRGB_PRIMARIES[::-1], 2.2)
    once = to_rgb(picture)
    assert once.getpixel((0, 0))[2] > 190
    assert to_rgb(once).tobytes() == once.tobytes()


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
    found = find_pictures(home)
    assert found.names == ["a/c.webp", "b.JPG", "inside.png"]
    assert found.reasons == {
        "link.png": "a link that leads out of the folder",
        "up": "a link that leads out of the folder",
        "x\\xe9.png": "its name is not UTF-8",
        "locked": "cannot be listed (Permission denied)",
    }
    assert found.unseen == ("locked",)
    assert found.num_by_suffix == {".txt": 1}


def test_folders_that_machines_make_and_those_that_are_excluded_are_left_out(tmp_path):
    names = ["a/@eaDir/t.png", "#recycle/t.png", "$RECYCLE.BIN/t.png", "x/.Trash-1000/t.png", "Trash/t.png"]
    names += ["raw/t.png", "2020/raw/t.png", "2020/old/t.png", "Gru\u0308n/t.png", "[x]/t.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "nothing").mkdir()
    found = find_pictures(tmp_path, exclude=["raw", "2020/o*", "Gr\xfcn", "[[]x]"])
    assert found.names == ["Trash/t.png"]
    assert sorted(found.excluded) == [
        "#recycle", "$RECYCLE.BIN", "2020/old", "2020/raw", "Gru\u0308n", "[x]", "a/@eaDir", "raw",
    ]  # fmt: skip
    assert found.empty == ("nothing",)
    assert len(find_pictures(tmp_path).names) == 6


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
    words = r"a\.heic: a HEIC picture needs the package pillow-heif, .* fix: pip install 'pillow-heif>="
    with pytest.raises(ComposirError, match=words):
        read_image(tmp_path / "a.heic")
    (tmp_path / "b.heic").write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif")
    with pytest.raises(ComposirError, match="not an image of a format that is read"):
        read_image(tmp_path / "b.heic")


def test_a_pipe_in_the_place_of_a_picture_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ComposirError, match=r"a\.png: cannot be opened \(not a regular file\)"):
        read_bytes(tmp_path / "a.png")
