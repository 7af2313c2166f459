from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from composir.data import load_splits
from composir.errors import ComposirError, ProblemsError
from composir.features import CachedEmbedder, TokenCache, default_cache_dir, fill_splits, open_embedder
from composir.models.checkpoint import save_pretrained, weights_hash
from composir.models.composer import Composer
from composir.models.presets import build
from composir.scoring import similarity


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


def test_an_interrupted_write_leaves_no_file_that_could_be_read(model, paths, tmp_path, monkeypatch):
    cache = TokenCache(model.tower, tmp_path)

    def break_off(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill(paths, break_off)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(cache(paths), model.tokens(paths))


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


def test_embeddings_through_the_cache_equal_those_of_pictures(model, paths):
    embedder = CachedEmbedder(model, TokenCache(model.tower))
    texts = [f"make it {index}" for index in range(len(paths))]
    torch.testing.assert_close(embedder.embed_gallery(paths), model.embed_target(paths))
    torch.testing.assert_close(embedder.embed_queries(paths, texts), model.embed_query(paths, texts))


def test_text_only_puts_the_mean_of_the_gallery_in_the_reference_s_place(model, paths):
    embedder = CachedEmbedder(model, TokenCache(model.tower))
    with pytest.raises(RuntimeError, match="embed the gallery first"):
        embedder.embed_text_only(["x"])
    embedder.embed_gallery(paths[:5])
    embedder.embed_gallery(paths[5:])
    mean = model.tokens(paths).double().mean(dim=0, keepdim=True).half()
    expected = model.encode_query(mean.expand(2, -1, -1), *model.tokenize(["red", "blue"]))
    torch.testing.assert_close(embedder.embed_text_only(["red", "blue"]), expected)


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPOSIR_CACHE", str(tmp_path / "own"))
    assert default_cache_dir() == tmp_path / "own"
    monkeypatch.delenv("COMPOSIR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "composir"


def test_the_number_of_threads_does_not_change_the_tokens(model, paths):
    one, many = (TokenCache(model.tower, num_workers=count)(paths) for count in (0, 5))
    assert np.array_equal(one.numpy(), many.numpy())


def test_the_neutral_reference_is_of_the_gallery_at_hand(model, paths):
    """Another gallery before, as of another category, changes nothing."""
    alone = CachedEmbedder(model, TokenCache(model.tower))
    alone.embed_gallery(paths[6:])
    after = CachedEmbedder(model, TokenCache(model.tower))
    after.embed_gallery(paths[:6])
    after.embed_queries(paths[:1], ["make it red"])
    after.embed_gallery(paths[6:9])
    after.embed_gallery(paths[9:])
    texts = ["make it red"]
    torch.testing.assert_close(alone.embed_text_only(texts), after.embed_text_only(texts), rtol=0, atol=1e-6)


def test_other_scorings_ask_with_several_vectors(model, paths):
    tokens = TokenCache(model.tower)
    gallery = CachedEmbedder(model, tokens).embed_gallery(paths)
    by_scoring = {
        scoring: similarity(
            CachedEmbedder(model, tokens, scoring=scoring).embed_queries(paths[:2], ["red", "a big one"]), gallery
        )
        for scoring in ("global", "local", "both")
    }
    torch.testing.assert_close(by_scoring["both"], (by_scoring["global"] + by_scoring["local"]) / 2)
    with pytest.raises(ComposirError, match="unknown scoring 'locl'; expected global, local, both"):
        CachedEmbedder(model, tokens, scoring="locl")


def test_a_checkpoint_is_opened_with_all_tokens_present(model, shapes_root, tmp_path):
    save_pretrained(model, tmp_path / "best")
    splits = load_splits("CIRR", shapes_root, "val")
    told = []
    embedder, weights = open_embedder(
        tmp_path / "best", splits, cache_dir=tmp_path / "cache", progress=lambda *done: told.append(done)
    )
    assert told[-1] == (12, 12)
    assert weights == weights_hash(model)
    paths = [splits[0].images[name] for name in splits[0].gallery]
    expected = CachedEmbedder(model, TokenCache(model.tower)).embed_gallery(paths)
    torch.testing.assert_close(embedder.embed_gallery(paths), expected, rtol=0, atol=0)


def test_a_checkpoint_without_a_tower_cannot_be_opened(model, shapes_root, tmp_path):
    save_pretrained(Composer(model.config), tmp_path / "best")
    with pytest.raises(ComposirError, match="has no vision tower and cannot embed pictures"):
        open_embedder(tmp_path / "best", load_splits("CIRR", shapes_root, "val"))
