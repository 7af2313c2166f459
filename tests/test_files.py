from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from composir import files
from composir.errors import ComposirError
from composir.files import locked, recover_folder, replacing, replacing_folder, require_locks, write_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "x.txt"
    write_text(file, "old ü")
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text(encoding="utf-8") == "old ü"
    write_text(file, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["x.txt"]
    assert file.read_text() == "new"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    with replacing_folder(folder) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(RuntimeError), replacing_folder(folder) as temporary:
        (temporary / "a").write_text("2")
        raise RuntimeError
    assert (folder / "a").read_text() == "1"
    with replacing_folder(folder) as temporary:
        (temporary / "b").write_text("3")
    assert [path.name for path in folder.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_crash_between_the_two_renames_is_mended(tmp_path):
    folder, old = tmp_path / "model", tmp_path / ".model.old"
    old.mkdir()
    (old / "a").write_text("1")
    recover_folder(folder)
    assert (folder / "a").read_text() == "1"
    assert not old.exists()
    old.mkdir()  # the crash came after both: the new folder is in its place, the old one is left over
    recover_folder(folder)
    assert (folder / "a").read_text() == "1"
    assert not old.exists()


def test_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o027)
    try:
        with replacing(tmp_path / "weights.safetensors") as temporary:
            save_file({"a": np.zeros(1)}, temporary)
        with replacing_folder(tmp_path / "model") as folder:
            save_file({"a": np.zeros(1)}, folder / "weights.safetensors")
    finally:
        os.umask(before)
    for file in (tmp_path / "weights.safetensors", tmp_path / "model" / "weights.safetensors"):
        assert oct(file.stat().st_mode & 0o777) == "0o640"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EAGAIN, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_not_taken_for_a_busy_one(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    require_locks(tmp_path, "unused")
    busy = ComposirError("another process")
    with locked(tmp_path / "lock", busy, without_locks="move it"):  # noqa: SIM117
        with pytest.raises(ComposirError, match="another process"), locked(tmp_path / "lock", busy, without_locks=""):
            pass
    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    with pytest.raises(ComposirError) as caught, locked(tmp_path / "lock", busy, without_locks="move it"):
        pass
    assert str(caught.value) == (
        f"{tmp_path}: this disk grants no file locks ({os.strerror(number)}); expected a local disk, or a network disk "
        "(NFS, Lustre) that is mounted with locks; fix: move it"
    )
    require_locks(tmp_path / "none", "what is not there is told by what writes there")


def test_a_disk_that_never_answers_about_locks_is_not_waited_for(tmp_path, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(files.fcntl, "lockf", lambda *_: answered.wait())
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.01)
    with pytest.raises(ComposirError, match=r"grants no file locks \(no answer within 0.01 s\)"):
        require_locks(tmp_path, "move it")
    answered.set()


@pytest.mark.parametrize(
    "error",
    [
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_told_in_one_way_whoever_meets_it(tmp_path, error):
    with pytest.raises(OSError, match="No space left on device") as caught, replacing(tmp_path / "a"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    with pytest.raises(OSError, match="No space left on device"), replacing_folder(tmp_path / "b"):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_does_not_say_why_is_a_full_disk_where_nothing_is_left(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="failed writing file"), replacing(tmp_path / "a"):
        raise RuntimeError("failed writing file")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(OSError, match="No space left on device"), replacing(tmp_path / "a"):
        raise RuntimeError("failed writing file")
