"""Files that are whole or not there, and TOML."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from composir.errors import ComposirError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if sys.platform != "win32":
    import fcntl

LOCK_SECONDS = 10
"""How long a disk may take to grant a lock on a file that nobody else knows."""


FULL_DISK = ("disk is full", "No space left on device", "Disk quota exceeded")
TOO_LITTLE = 2**20
"""Bytes left on a disk with which it counts as full, where an error does not say why writing failed, as torch's."""


def default_cache_dir() -> Path:
    """Return ``$COMPOSIR_CACHE``, else ``composir`` under the user's cache folder (``$XDG_CACHE_HOME``)."""
    if "COMPOSIR_CACHE" in os.environ:
        return Path(os.environ["COMPOSIR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "composir"


@contextmanager
def telling_full_disk(folder: Path) -> Iterator[None]:
    """Raise ``OSError`` (``ENOSPC``) with the folder where SQLite, torch, safetensors or FAISS meet a full disk."""
    try:
        yield
    except (OSError, ComposirError):
        raise
    except Exception as error:
        is_told = any(words in str(error) for words in FULL_DISK)
        if is_told or (type(error) is RuntimeError and folder.exists() and shutil.disk_usage(folder).free < TOO_LITTLE):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
        raise


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a temporary path beside ``file``; on success it is flushed to disk and takes the file's place there.

    After a crash or an error the old file is still there, or none. The file may be read by whom the umask lets,
    also where what writes it (safetensors) makes it private.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        with telling_full_disk(file.parent):
            temporary.touch()
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            temporary.chmod(mode)
            sync(temporary)
            temporary.replace(file)
            sync(file.parent)
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
        with telling_full_disk(folder.parent):
            mode = stat.S_IMODE(temporary.stat().st_mode)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(mode & 0o666)
                sync(file)
            sync(temporary)
            recover_folder(folder)
            if folder.exists():
                folder.rename(old)
            temporary.rename(folder)
            sync(folder.parent)
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


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders, and needs no such wait
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def require_locks(folder: Path, fix: str) -> None:
    """Raise ``ComposirError`` where the disk of a folder grants no file locks, as NFS and Lustre may be mounted.

    SQLite takes such a disk for one on which another process holds every lock, and waits for it in vain. A folder that
    cannot be written to is not tried: who writes there says so.
    """
    if sys.platform == "win32":
        return
    try:
        file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it stays open where its lock is still waited for)
    except OSError:
        return
    reasons = [f"no answer within {LOCK_SECONDS} s"]

    def lock() -> None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            reasons.clear()
        except OSError as error:
            reasons[0] = str(error.strerror)
        file.close()

    thread = threading.Thread(target=lock, daemon=True)
    thread.start()
    thread.join(LOCK_SECONDS)
    if reasons:
        raise ComposirError(
            f"this disk grants no file locks ({reasons[0]})",
            file=folder,
            expected="a local disk, or a network disk (NFS, Lustre) that is mounted with locks",
            fix=fix,
        )


@contextmanager
def locked(file: Path, refusal: ComposirError, *, without_locks: str, seconds: float = 0) -> Iterator[None]:
    """Hold a lock till the end or a kill; raise ``refusal`` where another process holds it. The file stays, empty.

    It is waited for so many ``seconds``. ``without_locks`` is the fix where the disk has none.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    require_locks(file.parent, without_locks)
    lock = sqlite3.connect(file, timeout=seconds)
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise refusal from None
        raise ComposirError(f"cannot be written to ({error})", file=file.parent, fix="make it writable") from None
    else:
        yield
    finally:
        lock.close()


def require_space(folder: Path, num_bytes: int, *, what: str, fix: str) -> None:
    """Raise ``ComposirError``, with both figures, where the disk of ``folder`` has not so much space left."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ComposirError(
            f"{what} need {size_text(num_bytes)}, the disk has {size_text(free)} left", file=folder, fix=fix
        )


def size_text(num_bytes: int) -> str:
    """Return a size for people, such as ``12.3 GB``."""
    for power, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if num_bytes >= 10**power:
            return f"{num_bytes / 10**power:.1f} {unit}"
    return f"{num_bytes} bytes"


def read_toml(file: Path) -> dict[str, Any]:
    """Return the table of a TOML file; raise ``ComposirError`` where it is missing or not TOML."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError:
        raise ComposirError("recipe file not found", file=file, fix="see recipes/ for examples") from None
    except ValueError as error:  # no TOML, no UTF-8, or a number of thousands of digits
        raise ComposirError(f"is not TOML: {error}", file=file, fix="see recipes/ for examples") from None
