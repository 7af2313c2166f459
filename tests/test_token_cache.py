from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from composir import token_cache, token_store
from composir.data import load_splits
from composir.errors import ComposirError, ProblemsError
from composir.files import default_cache_dir
from composir.models.backbones import build
from composir.token_cache import TokenCache, TokenPlace, fill_splits, make_cache


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build("tiny").eval()


@pytest.fixture
def paths(shapes_root):
    return sorted((shapes_root / "dev").glob("*.png"))


@pytest.mark.parametrize("on_disk", [True, False])
def test_cached_equals_uncached(model, paths, tmp_path, on_disk):
    cache = TokenCache(model.tower, tmp_path / "cache" if on_disk else None)
    told = []
    cache.fill(paths, lambda done, total: told.append((done, total)))
    assert told[-1] == (len(paths), len(paths))
    expected = model.tokens(paths)
    assert torch.equal(cache(paths), expected)
    assert torch.equal(cache(paths[::-1]), expected.flip(0))
    assert torch.equal(cache([paths[3], paths[3]]), expected[[3, 3]])


def test_a_second_cache_reads_what_the_first_wrote(model, paths, tmp_path, monkeypatch):
    first = TokenCache(model.tower, tmp_path)(paths)
    second = TokenCache(model.tower, tmp_path)
    monkeypatch.setattr(model.tower, "forward", lambda pixels: pytest.fail("the tower was asked again"))
    assert torch.equal(second(paths), first)


@pytest.mark.parametrize("change", ["content", "transform", "tower"])
def test_what_changes_the_tokens_is_never_read_from_the_old_file(model, paths, tmp_path, change):
    files = [tmp_path / file.name for file in paths]
    for source, file in zip(paths, files, strict=True):
        shutil.copy(source, file)
    before = TokenCache(model.tower, tmp_path / "cache")(files)
    if change == "content":
        Image.new("RGB", (60, 52), "black").save(files[0])
    elif change == "transform":
        model.tower.transform = "squarepad"
    else:
        with torch.no_grad():
            model.tower.network.convolution.weight.mul_(2)
    after = TokenCache(model.tower, tmp_path / "cache")(files)
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after, model.tokens(files))


FILL = """
from pathlib import Path
from composir.models.backbones import build
from composir import token_cache
from composir.models import vision
from composir.token_cache import TokenCache
vision.TOWER_BATCH, token_cache.SECONDS_BETWEEN_WRITES = 2, 0.0
paths = sorted(Path({images!r}).glob("*.png"))
cache = TokenCache(build("tiny").tower, Path({cache!r}))
"""


def fill_code(shapes_root, cache, call):
    return FILL.format(images=str(shapes_root / "dev"), cache=str(cache)) + call


def count_computed(cache, paths):
    told = [(0, 0)]
    cache.fill(paths, lambda *done: told.append(done))
    return told[-1][0]


def test_what_was_written_before_a_kill_is_kept(model, paths, shapes_root, tmp_path, spawn):
    kill = "cache.fill(paths, lambda done, total: done == 6 and os.kill(os.getpid(), 9))"
    code, _ = spawn(fill_code(shapes_root, tmp_path, kill)).end()
    assert code == -9
    (file,) = tmp_path.glob("*/tokens.f16")
    with file.open("ab") as half:
        half.write(b"half a row")  # as if the kill had come in the middle of a write
    cache = TokenCache(model.tower, tmp_path)
    assert count_computed(cache, paths) == len(paths) - 6
    assert torch.equal(cache(paths), model.tokens(paths))


def test_processes_may_fill_one_cache_at_once(model, paths, shapes_root, tmp_path, spawn):
    fill = """
import time
Path({ready!r} + str(os.getpid())).touch()
while len(list(Path({ready!r}).parent.glob("ready-*"))) < 3:
    time.sleep(0.001)
cache.fill(paths)
"""
    fill = fill.format(ready=str(tmp_path / "ready-"))
    children = [spawn(fill_code(shapes_root, tmp_path, fill)) for _ in range(3)]
    assert [child.end() for child in children] == [(0, "")] * 3
    cache = TokenCache(model.tower, tmp_path)
    assert count_computed(cache, paths) == 0
    assert torch.equal(cache(paths), model.tokens(paths))
    (file,) = tmp_path.glob("*/tokens.f16")
    assert file.stat().st_size == len(paths) * cache.bytes_per_image


def test_each_of_several_processes_computes_a_share(model, paths, tmp_path):
    shares = [TokenCache(model.tower, tmp_path).fill(paths, share=(index, 5)) for index in range(5)]
    assert shares == [3, 3, 2, 2, 2]
    assert count_computed(TokenCache(model.tower, tmp_path), paths) == 0


def test_files_that_have_not_changed_are_not_read_again(model, paths, tmp_path, monkeypatch):
    files = [tmp_path / file.name for file in paths]
    for source, file in zip(paths, files, strict=True):
        shutil.copy(source, file)
    read, before = [], token_store.read_bytes
    monkeypatch.setattr(token_store, "read_bytes", lambda path: read.append(path) or before(path))
    TokenCache(model.tower, tmp_path / "cache").fill(files)
    assert read == files
    TokenCache(model.tower, tmp_path / "cache").fill(files)
    assert read == files
    files[0].write_bytes(files[1].read_bytes())
    files[2].rename(tmp_path / "renamed.png")
    cache = TokenCache(model.tower, tmp_path / "cache")
    assert count_computed(cache, [*files[:2], tmp_path / "renamed.png"]) == 0  # known by their content
    assert read[len(files) :] == [files[0], tmp_path / "renamed.png"]
    assert torch.equal(cache(files[:1]), model.tokens(files[1:2]))


def test_rows_that_the_file_has_lost_are_computed_again(model, paths, tmp_path):
    TokenCache(model.tower, tmp_path).fill(paths)
    (file,) = tmp_path.glob("*/tokens.f16")
    with file.open("r+b") as short:
        short.truncate(3 * TokenCache(model.tower).bytes_per_image + 7)
    cache = TokenCache(model.tower, tmp_path)
    assert count_computed(cache, paths) == len(paths) - 3
    assert torch.equal(cache(paths), model.tokens(paths))


def test_a_damaged_index_says_what_to_delete(model, paths, tmp_path):
    TokenCache(model.tower, tmp_path).fill(paths)
    (file,) = tmp_path.glob("*/tokens.sqlite")
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(ComposirError, match=r"is damaged .*fix: delete .*tokens-"):
        TokenCache(model.tower, tmp_path).fill(paths)


def test_a_disk_too_small_is_refused_with_the_figures(model, paths, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5000))
    monkeypatch.setattr(model.tower, "forward", lambda pixels: pytest.fail("something was computed"))
    with pytest.raises(ComposirError, match=r"the tokens of 12 images need 5\.2 kB, the disk has 5\.0 kB left"):
        TokenCache(model.tower, tmp_path).fill(paths)
    monkeypatch.setattr(token_cache, "available_memory", lambda: 5000)
    with pytest.raises(ComposirError, match=r"12 images need 5\.2 kB of memory, 5\.0 kB are left.*--cache disk"):
        TokenCache(model.tower).fill(paths)


def test_a_write_that_fails_is_one_line_and_keeps_what_there_is(model, paths, shapes_root, tmp_path, spawn):
    limit = """
import resource
from composir.errors import ComposirError
resource.setrlimit(resource.RLIMIT_FSIZE, (10 * cache.bytes_per_image, -1))
Path({cache!r}).mkdir()
try:
    cache.fill(paths * 50)
except ComposirError as error:
    print(error)
"""
    code, words = spawn(fill_code(shapes_root, tmp_path / "cache", limit.format(cache=str(tmp_path / "cache")))).end()
    assert code == 0
    assert "cannot be written" in words
    assert "--cache-dir" in words


def test_a_cache_that_keeps_nothing_still_names_every_broken_image(model, paths, shapes_root, tmp_path):
    cache = make_cache(model.tower, TokenPlace("off"))
    assert torch.equal(cache([*paths, paths[0]]), model.tokens([*paths, paths[0]]))
    assert fill_splits(cache, load_splits("CIRR", shapes_root, "val")) == 0
    root = tmp_path / "root"
    shutil.copytree(shapes_root, root)
    (root / "dev/val-blue-ellipse.png").write_text("no image")
    with pytest.raises(ProblemsError, match=r"val-blue-ellipse\.png"):
        fill_splits(cache, load_splits("CIRR", root, "val"))


def test_a_place_of_no_kind_is_refused(tmp_path):
    with pytest.raises(ComposirError, match="--cache 'dsk' is not known; expected disk, memory, off"):
        TokenPlace("dsk")
    for kind in ("off", "memory"):
        with pytest.raises(ComposirError, match=f"--cache {kind} keeps nothing in --cache-dir"):
            TokenPlace(kind, tmp_path)


def test_a_place_says_where_tokens_are_kept(model, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPOSIR_CACHE", str(tmp_path / "own"))
    for place, folder, is_kept in (
        (TokenPlace(), tmp_path / "own", True),
        (TokenPlace(folder=tmp_path), tmp_path, True),
        (TokenPlace("memory"), None, True),
        (TokenPlace("off", num_workers=7), None, False),
    ):
        cache = make_cache(model.tower, place)
        assert (cache.directory, cache.is_kept, cache.num_workers) == (folder, is_kept, place.num_workers)


def test_all_broken_images_are_named_at_once(model, shapes_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shapes_root, root)
    (broken,) = (root / "dev").glob("val-red-ellipse.png")
    broken.write_bytes(broken.read_bytes()[:60])
    (root / "dev/val-blue-ellipse.png").write_text("no image")
    splits = load_splits("CIRR", root, "val")
    with pytest.raises(ProblemsError) as error:
        fill_splits(TokenCache(model.tower), splits)
    assert len(error.value.problems) == 2
    assert "val-red-ellipse.png" in str(error.value)
    assert "val-blue-ellipse.png" in str(error.value)


def test_one_broken_file_is_an_error_with_its_name(model, tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    with pytest.raises(ComposirError, match=r"x\.png"):
        TokenCache(model.tower)([tmp_path / "x.png"])


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPOSIR_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("COMPOSIR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "composir"


def test_the_number_of_threads_does_not_change_the_tokens(model, paths):
    one, many = (TokenCache(model.tower, num_workers=count)(paths) for count in (0, 5))
    assert np.array_equal(one.numpy(), many.numpy())
