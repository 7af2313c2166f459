from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from composir.files import recover_folder, replacing, replacing_folder, write_text


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
