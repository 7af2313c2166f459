"""Files that are whole or not there, and TOML."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from composir.errors import ComposirError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a temporary path beside ``file``; on success it is flushed to disk and takes the file's place.

    After a crash or an error the old file is still there, or none. The file may be read by whom the umask lets,
    also where what writes it (safetensors) makes it private.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    with replacing(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give an empty temporary folder beside ``folder``; on success it takes the folder's place.

    A reader sees the old folder or the new one. Between the two renames there may be none for a moment; the old one
    is then beside it as ``.NAME.old``, and ``recover_folder`` puts it back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.part")
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(mode & 0o666)
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        recover_folder(folder)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put back the folder that a crash in the middle of its replacement left beside its place."""
    old = folder.with_name(f".{folder.name}.old")
    if old.exists():
        if folder.exists():
            shutil.rmtree(old)
        else:
            old.rename(folder)


def read_toml(file: Path) -> dict[str, Any]:
    """Return the table of a TOML file; raise ``ComposirError`` where it is missing or not TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ComposirError("recipe file not found", file=file, fix="see recipes/ for examples") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ComposirError(f"is not TOML: {error}", file=file, fix="see recipes/ for examples") from None
