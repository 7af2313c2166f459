"""A PNG without what stands beside its pixels and may stop Pillow."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from composir.data.images.colours import MAX_PROFILE

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PNG_TURNING_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")
"""The keywords of texts that may say which way is up; no other is looked at."""
MAX_UNPACKED = 2**20
"""Bytes that such a text may unpack to. Pillow refuses the whole picture for one that is longer."""


def plain_png(content: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG without what stands beside its pixels and may stop Pillow, and its colour profile apart.

    Left out are texts that cannot say which way is up, and whatever else has a wrong checksum and is no part of the
    pixels. A profile that is damaged or longer than ``MAX_PROFILE`` is passed over.
    """
    parts, profile = [PNG_SIGNATURE], None
    for kind, data, chunk in _chunks(content):
        is_beside = bool(kind[0] & 0x20)
        if is_beside and zlib.crc32(kind + data) != int.from_bytes(chunk[-4:], "big"):
            continue
        if kind == b"iCCP":
            profile = _unpack(data.partition(b"\0")[2][1:], MAX_PROFILE)
        elif kind not in PNG_TEXTS or _may_turn(kind, data):
            parts.append(chunk)
    return b"".join(parts), profile


def _may_turn(kind: bytes, data: bytes) -> bool:
    """Return whether a text of a PNG may say which way is up, and is no longer than such a text is."""
    keyword, _, text = data.partition(b"\0")
    if keyword not in PNG_TURNING_TEXTS:
        return False
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed, text = text[:1] == b"\1", text[2:].split(b"\0", 2)[-1]
    elif is_packed:
        text = text[1:]
    return len(text) <= MAX_UNPACKED and (not is_packed or _unpack(text, MAX_UNPACKED) is not None)


def _unpack(data: bytes, most: int) -> bytes | None:
    """Return what zlib has packed; None where it is damaged, or longer than ``most`` bytes."""
    try:
        unpacked = zlib.decompressobj().decompress(data, most + 1)
    except zlib.error:
        return None
    return unpacked if len(unpacked) <= most else None


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Yield kind, data and the whole of each chunk of a PNG; what is cut off at the end is one chunk without data."""
    place = len(PNG_SIGNATURE)
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        stop = place + 12 + length
        kind = content[place + 4 : place + 8]
        if len(kind) < 4 or stop > len(content):
            yield b"IDAT", b"", content[place:]
            return
        yield kind, content[place + 8 : stop - 4], content[place:stop]
        place = stop
