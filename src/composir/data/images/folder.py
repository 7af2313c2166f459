"""The pictures of a folder, by the names of its files."""

from __future__ import annotations

import errno
import fnmatch
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp", ".heic", ".heif", ".avif"
)  # fmt: skip
"""What is a picture in a folder of one's own, in lower or upper case."""
JUNK = ("@eadir", "#recycle", "$recycle.bin", ".trash*", "system volume information")
"""Folders that machines make for themselves, in lower case: thumbnails and what was thrown away."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """The pictures below a folder; all paths are relative to it, with ``/``."""

    names: list[str]
    """Of the pictures, sorted."""
    reasons: dict[str, str]
    """Why others are not taken, by the path as it can be printed: links that lead out, names that are not UTF-8,
    folders and files that cannot be looked at."""
    unseen: tuple[str, ...]
    """The folders and files of ``reasons`` that could not be looked at: what was there may still be there."""
    empty: tuple[str, ...]
    """Folders that hold nothing at all, as the place of a drive does that is not there."""
    excluded: tuple[str, ...]
    """Folders that were left out by a pattern."""
    num_by_suffix: dict[str, int]
    """How many files there are that are called no picture, by their suffix in lower case, most first."""


def find_pictures(folder: Path, *, exclude: Sequence[str] = ()) -> Pictures:
    """Return all pictures below ``folder``, by their names.

    Hidden files and folders (a leading dot) are no part of it, nor are folders of ``JUNK`` and those whose name or
    path fits a pattern of ``exclude``; links to other folders inside it are not followed: what they hold is there
    already.
    """
    home = folder.resolve()
    names: list[str] = []
    reasons: dict[str, str] = {}
    unseen: list[str] = []
    empty: list[str] = []
    excluded: list[str] = []
    suffixes: Counter[str] = Counter()

    def relative(path: Path) -> str:
        return os.fsencode(path.relative_to(home).as_posix()).decode("utf-8", "backslashreplace")

    def refuse(path: Path, error: OSError, what: str) -> None:
        unseen.append(relative(path))
        reasons[relative(path)] = f"cannot be {what} ({error.strerror})"

    def is_passed_over(path: Path) -> bool:
        """Return whether it is a link that leads elsewhere, or cannot be looked at."""
        try:
            if not path.is_symlink():
                return False
            target = path.resolve(strict=True)
        except FileNotFoundError:
            target = path.resolve()
        except (OSError, RuntimeError) as error:  # which of them a loop is depends on the version of Python
            if isinstance(error, OSError) and error.errno != errno.ELOOP:
                refuse(path, error, "looked at")
            else:
                reasons[relative(path)] = "a link that leads to itself"
            return True
        if target.is_relative_to(home):
            return False
        reasons[relative(path)] = "a link that leads out of the folder"
        return True

    def is_excluded(path: Path) -> bool:
        name = path.relative_to(home).as_posix()
        if not fits(path.name.lower(), JUNK) and not fits(path.name, exclude) and not fits(name, exclude):
            return False
        excluded.append(relative(path))
        return True

    walk = os.walk(home, onerror=lambda error: refuse(Path(error.filename), error, "listed"))
    for place, folders, files in walk:
        here = Path(place)
        if not folders and not files:
            empty.append(relative(here))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not is_excluded(here / name) and not is_passed_over(here / name)
        ]
        for file in files:
            path = here / file
            if file.startswith("."):
                continue
            if path.suffix.lower() not in PICTURE_SUFFIXES:
                suffixes[path.suffix.lower()] += 1
                continue
            if is_passed_over(path):
                continue
            name = path.relative_to(home).as_posix()
            if name == name.encode(errors="replace").decode():
                names.append(name)
            else:
                reasons[relative(path)] = "its name is not UTF-8"
    return Pictures(
        sorted(names),
        reasons,
        tuple(unseen),
        tuple(empty),
        tuple(excluded),
        dict(sorted(suffixes.items(), key=lambda one: (-one[1], one[0]))),
    )


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name fits one of the patterns (``*``, ``?``, ``[a-z]``), however its accents are spelt."""
    name = unicodedata.normalize("NFC", name)
    return any(fnmatch.fnmatchcase(name, unicodedata.normalize("NFC", pattern)) for pattern in patterns)
