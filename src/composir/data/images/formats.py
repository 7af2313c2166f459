"""Formats of pictures, known by their content: which are opened, and what a file is that is none."""

from __future__ import annotations

import io
import struct

from PIL import Image, UnidentifiedImageError

from composir.errors import ComposirError
from composir.version import pip_install

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "HEIF")
"""Pillow's names of all that is opened, known by its content. None of their readers runs another program."""
FORMATS_TEXT = "JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or HEIC"
OPEN_BRANDS = (b"mif1", b"msf1")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", *OPEN_BRANDS)
"""ISO 23008-12: the brands of still pictures coded by HEVC, and the two that leave the coding open (it may be AVIF)."""
NUM_LEADING_BYTES = 24
OTHER_KINDS = {
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"<?xml": "XML",
    b"<svg": "SVG",
    b"%pdf": "a PDF",
    b"%!ps": "PostScript",
    b"pk\3\4": "a ZIP archive",
    b"8bps": "a Photoshop file",
    b"\xff\n": "JPEG XL",
    b"\0\0\0\x0cjxl ": "JPEG XL",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
}
"""What a file is that is no picture here, by its first bytes in lower case."""


def open_picture(content: bytes) -> Image.Image:
    """Return the picture, not decoded yet.

    ``Image.open`` would hold it against a limit that is one for the whole process, and lower than what is read here.
    """
    Image.init()
    for name in FORMATS:
        if name not in Image.OPEN:  # its plugin is not installed
            continue
        factory, accept = Image.OPEN[name]
        accepted = accept is None or accept(content[:16])
        if not accepted or isinstance(accepted, str):  # a text says what the plugin lacks
            continue
        try:
            return factory(io.BytesIO(content), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # by these a plugin says: not one of mine
            continue
    raise UnidentifiedImageError


def register_heic(name: str, *, is_certain: bool) -> None:
    """Let Pillow read HEIC, by its plugin; where that is missing, raise for a file that is certainly one."""
    try:
        import pillow_heif  # noqa: PLC0415
    except ImportError:
        if not is_certain:
            return
        raise ComposirError(
            "a HEIC picture needs the package pillow-heif, which is not installed",
            file=name,
            fix=f"{pip_install('heic')}, or save it as JPEG",
        ) from None
    pillow_heif.register_heif_opener()


def kind_of(start: bytes) -> str:
    """Return in words what the first bytes of a file show that is no picture."""
    for signature, kind in OTHER_KINDS.items():
        if start.lower().startswith(signature):
            return f"it is {kind}"
    if start[4:8] == b"ftyp":
        return "it is a film, or a damaged HEIC or AVIF"
    text = start.decode("utf-8", "ignore")
    if text.isprintable() and len(text.encode()) > len(start) - 4:  # a character may be cut
        return f"it is text, which begins {text!r}"
    return f"its first bytes are {start[:8].hex(' ')}"
