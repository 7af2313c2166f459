"""Paths that people give, and what is wrong with one that leads nowhere: told before torch is imported.

What reads pictures is imported where it is needed: ``--help`` goes without numpy as well.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from composir.errors import ComposirError, command

if TYPE_CHECKING:
    from composir.data.images.folder import Pictures

MANIFEST = "index.json"
"""What an index folder says of itself."""
RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2")
"""Of cameras' raw files."""
UNREAD_SUFFIXES = (*RAW_SUFFIXES, ".jxl", ".jp2", ".psd", ".svg")
"""Of pictures that no format here is."""
NUM_SUFFIXES_SHOWN = 8
ADDRESS = re.compile(r"(\w{2,}):/+(?!/)")
"""The start of an address, of whose slashes a ``Path`` keeps one; one letter is a drive of Windows."""


def near_path(path: Path) -> Path | None:
    """Return the file or folder that is there and most likely meant, None where none is near.

    It differs from ``path`` in upper and lower case or in the form of its accents, or is the nearest of its folder.
    """
    found = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        if (found / part).exists():
            found /= part
            continue
        names = _names_in(found)
        alike = [name for name in names if folded(name) == folded(part)]
        if len(alike) != 1:
            is_last = found / part == path
            alike = _close(part, names) if is_last else []
        if not alike:
            return None
        found /= alike[0]
    return found


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208 (names alone, of which there may be many)
    except OSError:  # no folder, or one that cannot be listed
        return []


def _close(name: str, names: Sequence[str]) -> list[str]:
    """Return the nearest name, if one is near: a slip leaves half of a name as it was, quick to look up among many."""
    half = len(name) // 2
    alike = [other for other in names if other.startswith(name[:half]) or other.endswith(name[half:])]
    return difflib.get_close_matches(name, alike, n=1, cutoff=0.75)


def folded(name: str) -> str:
    """Return what a name is compared by: not its case, nor whether an accent is a character of its own (macOS)."""
    return unicodedata.normalize("NFC", name).casefold()


def check_the_path(path: Path) -> str:
    """Return what to do about a path that leads nowhere: the path that is near, where there is one."""
    near = near_path(path)
    return f"did you mean {str(near)!r}?" if near else "check the path"


def require_there(path: Path, expected: str) -> None:
    """Raise ``ComposirError`` where there is no file and no folder of that name."""
    if not path.exists():
        raise ComposirError("no such file or folder", file=path, expected=expected, fix=check_the_path(path))


def require_picture(picture: Path) -> None:
    """Raise ``ComposirError`` where a picture that is asked by is not there, or is an address rather than a file."""
    if picture.exists():
        return
    if address := ADDRESS.match(str(picture)):
        whole = f"{address[1]}://{str(picture)[address.end() :]}"
        raise ComposirError("is an address, and a file is wanted", file=whole, fix="download it, then give the file")
    from composir.data.images.files import MISSING

    raise ComposirError(MISSING, file=picture, fix=check_the_path(picture))


def require_index(folder: Path) -> None:
    """Raise ``ComposirError`` where a folder is no index; of a folder of pictures with the command that makes one."""
    if (folder / MANIFEST).is_file():
        return
    from composir.data.images.folder import find_pictures

    if folder.is_dir() and find_pictures(folder).names:
        index = folder.with_name(f"{folder.resolve().name}.index")
        made = (index / MANIFEST).is_file()
        raise ComposirError(
            "is a folder of pictures, not its index",
            file=folder,
            fix=f"give its index, {index}" if made else f"{command('index', folder, '--out', index)} makes its index",
        )
    near = None if folder.exists() else near_path(folder)
    if near is not None and (near / MANIFEST).is_file():
        fix = f"did you mean {str(near)!r}?"
    else:
        fix = f"{command('index', 'PICTURES', '--out', folder)} makes it of the folder PICTURES"
    raise ComposirError(f"is not an index: it has no {MANIFEST}", file=folder, fix=fix)


def require_pictures(folder: Path, *, is_new: bool) -> None:
    """Raise ``ComposirError`` where an index is to be of no folder, or a new one of a folder without any picture."""
    if not folder.is_dir():
        raise ComposirError(
            "is not a folder",
            file=folder,
            expected="a folder with pictures",
            fix="give the folder that it is in" if folder.is_file() else check_the_path(folder),
        )
    from composir.data.images.folder import PICTURE_SUFFIXES, find_pictures

    if is_new and not any(path.suffix.lower() in PICTURE_SUFFIXES for path in folder.rglob("*")):
        raise holds_no_picture(folder, find_pictures(folder))


def holds_no_picture(folder: Path, found: Pictures) -> ComposirError:
    """Return the error for a folder without pictures, with what is there instead, by suffix."""
    if (folder / MANIFEST).is_file():
        return ComposirError(
            "is an index, not a folder of pictures",
            file=folder,
            fix=f"{command('search', folder, '--text', 'SENTENCE')} asks it; to make one, give the folder of pictures",
        )
    from composir.data.images.folder import PICTURE_SUFFIXES

    there = [f"{count:,} {suffix or 'without a suffix'}" for suffix, count in found.num_by_suffix.items()]
    parts = [f"files: {', '.join(there[:NUM_SUFFIXES_SHOWN])}"] if there else []
    parts += [f"{name}: {reason}" for name, reason in list(found.reasons.items())[:1]]
    if found.excluded:
        parts.append(f"left out: {', '.join(found.excluded[:NUM_SUFFIXES_SHOWN])}")
    unread = sorted(set(found.num_by_suffix) & set(UNREAD_SUFFIXES))
    return ComposirError(
        f"holds no picture that is read ({'; '.join(parts) or 'nothing is there'})",
        file=folder,
        expected=f"files that end in {', '.join(PICTURE_SUFFIXES)}",
        fix=f"export the {', '.join(unread)} files as JPEG" if unread else "give the folder that the pictures are in",
    )
