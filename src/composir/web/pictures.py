"""Pictures in and out: uploads read with care, indexed pictures re-encoded, heat maps drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Float32
from PIL import Image, ImageOps, UnidentifiedImageError

from composir.data.images import read_image
from composir.data.images.files import read_bytes
from composir.data.images.formats import FORMATS_TEXT
from composir.errors import ComposirError
from composir.heat import heat
from composir.models.trace import Reading, patches
from composir.search import Images, content_id
from composir.search.thumbnails import THUMBNAIL_SIDE, Thumbnails, encode, make_thumbnail
from composir.web.problems import HttpProblem

T = TypeVar("T")
MAX_SIDE = 4096
"""Pixels of the longer side that are looked at."""
Size = Literal["thumbnail", "preview", "full"]
SIDE_BY_SIZE: dict[Size, int] = {"thumbnail": THUMBNAIL_SIDE, "preview": 1024, "full": MAX_SIDE}
"""Pixels of the longer side, at most."""
QUALITY = 88
HEAT_SIDE = 672
"""Pixels of the longer side of a drawn heat map."""
FULL_ATTENTION = 4
"""What attention is drawn lightest from, as so many times an even look at all patches."""


def read_upload(content: bytes, *, max_pixels: int, side: int | None = None) -> Image.Image:
    """Return the picture in an uploaded file, sRGB, upright, its first frame, at most ``MAX_SIDE`` pixels a side.

    ``side`` and ``max_pixels`` are those of ``read_image``. Raises ``HttpProblem`` where it is none, is damaged, or has
    too many pixels; what it claims to be does not matter.
    """
    try:
        picture = read_image(io.BytesIO(content), side=side, notes=[], max_pixels=max_pixels)
    except ComposirError as error:
        cause = error.__cause__
        if isinstance(cause, Image.DecompressionBombError):
            limit = f"{max_pixels / 1e6:g} million"
            raise HttpProblem(413, "too-many-pixels", f"the picture has more than {limit} pixels") from None
        if cause is None or isinstance(cause, UnidentifiedImageError):
            raise HttpProblem(
                415, "not-a-picture", f"the file is not a picture that can be read: {FORMATS_TEXT}"
            ) from None
        raise HttpProblem(422, "damaged-picture", "the picture is cut off, damaged, or of an unusual kind") from None
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def read_indexed(images: Images, image_id: str, *, side: int) -> Image.Image:
    """Return an indexed picture by its id, from the first of its files that still holds it.

    ``side`` is that of ``read_image``. Raises ``HttpProblem`` where there is no such image, or not any more. The id is
    looked up in the index, never made a path. Since it is the hash of the file's content, a file that was changed, or
    replaced by a link to another, is not shown.
    """
    return _from_its_file(images, image_id, lambda content: read_image(io.BytesIO(content), side=side, notes=[]))


def read_thumbnail(images: Images, thumbnails: Thumbnails, image_id: str) -> bytes:
    """Return the small JPEG of an indexed picture: the one that is kept, else one that is made and then kept.

    It is shown while the picture is there, as ``read_indexed`` has it; a file of which size and times are those that
    were indexed is not read for that. Raises as ``read_indexed``.
    """
    kept = thumbnails.get(image_id)
    if kept is not None and any(_is_within(images.root, file) for file in images.unchanged(image_id)):
        return kept

    def made_of(content: bytes) -> bytes:
        return kept or make_thumbnail(read_image(io.BytesIO(content), side=2 * THUMBNAIL_SIDE, notes=[]))

    jpeg = _from_its_file(images, image_id, made_of)
    if kept is None:
        thumbnails.put({image_id: jpeg})
    return jpeg


def _from_its_file(images: Images, image_id: str, read: Callable[[bytes], T]) -> T:
    """Return what is read of the first file of an image that still has its content."""
    files = images.files(image_id)
    if not files:
        raise HttpProblem(404, "no-such-image", "the index has no image of this id")
    for file in files:
        try:
            if _is_within(images.root, file) and file.is_file():
                content = read_bytes(file)
                if content_id(content) == image_id:
                    return read(content)
        except (OSError, ComposirError):
            continue
    raise HttpProblem(404, "image-gone", "the image's file is gone or has changed since it was indexed")


def _is_within(root: Path, file: Path) -> bool:
    """Return whether a file lies below the root, all links followed."""
    try:
        return file.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
        return False


def heat_of(reading: Reading, row: int) -> tuple[str, Float32[np.ndarray, "rows columns"]]:
    """Return the name of the map that best says where the model looked, and its values by patch.

    The first of the fusions' own (``gate``: how far the gate is open, 0 to 1; ``text_attention``: where the sentence
    looks); ``attention``, where the query tokens look, for a model without any.
    """
    for name, values in reading.maps.items():
        return name, patches(values[row].numpy())
    return "attention", patches(reading.cross_attention[row].mean(dim=(0, 1, 2)).numpy())


def draw_heat(
    picture: Image.Image,
    values: Float32[np.ndarray, "rows columns"],
    box: tuple[float, float, float, float],
    limits: tuple[float, float],
) -> bytes:
    """Return the picture in the colours of its patches' values, grey where the model does not see it, as a JPEG.

    ``box`` is what the patches cover: left, top, right and bottom as shares of the picture's width and height.
    """
    scale = HEAT_SIDE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height))
    left, top, right, bottom = (round(share * side) for share, side in zip(box, (width, height) * 2, strict=True))
    drawn = ImageOps.grayscale(picture).convert("RGB")
    square = picture.crop((left, top, right, bottom))
    coloured = Image.fromarray(np.uint8(heat(square, values, limits) * 255))
    drawn.paste(coloured.resize(square.size), (left, top))
    return encode(drawn, HEAT_SIDE, quality=QUALITY)


def heat_limits(name: str, values: Float32[np.ndarray, "rows columns"]) -> tuple[float, float]:
    """Return the values of the first and the last colour, the same for all pictures, so that an even map looks even.

    Of a map that somebody else's fusion shows nothing is known but its values: the lowest and the highest.
    """
    if name not in ("gate", "attention", "text_attention"):
        return float(values.min()), float(values.max())
    return 0.0, 1.0 if name == "gate" else FULL_ATTENTION / values.size
