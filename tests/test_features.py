from __future__ import annotations

import pytest
import torch

from composir import token_cache
from composir.data import load_splits
from composir.errors import ComposirError
from composir.features import CachedEmbedder, TokenCache, TokenPlace, open_embedder
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained, weights_hash
from composir.models.composer import Composer
from composir.scoring import similarity


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build("tiny").eval()


@pytest.fixture
def paths(shapes_root):
    return sorted((shapes_root / "dev").glob("*.png"))


def test_embeddings_through_the_cache_equal_those_of_pictures(model, paths):
    embedder = CachedEmbedder(model, TokenCache(model.tower))
    texts = [f"make it {index}" for index in range(len(paths))]
    torch.testing.assert_close(embedder.embed_gallery(paths), model.embed_target(paths))
    torch.testing.assert_close(embedder.embed_queries(paths, texts), model.embed_query(paths, texts))


def test_text_only_puts_the_mean_of_the_gallery_in_the_reference_s_place(model, paths, monkeypatch):
    monkeypatch.setattr(token_cache, "IMAGES_A_SUM", 5)
    embedder = CachedEmbedder(model, TokenCache(model.tower))
    for gallery in (paths, paths[:3], paths):  # the one at hand, whatever was asked before
        mean = model.tokens(gallery).double().mean(dim=0, keepdim=True).half()
        expected = model.encode_query(mean.expand(2, -1, -1), *model.tokenize(["red", "blue"]))
        torch.testing.assert_close(embedder.embed_text_only(["red", "blue"], gallery), expected, rtol=0, atol=0)
        embedder.embed_gallery(paths[6:9])
    with pytest.raises(ComposirError, match="a gallery of no image has no mean"):
        embedder.embed_text_only(["red"], [])


def test_the_batches_of_a_gallery_read_its_tokens_once(model, paths, monkeypatch):
    tokens = TokenCache(model.tower)
    read, before = [], TokenCache.__call__
    monkeypatch.setattr(TokenCache, "__call__", lambda cache, sources: read.extend(sources) or before(cache, sources))
    embedder = CachedEmbedder(model, tokens)
    for text in ("red", "blue"):
        embedder.embed_text_only([text], list(paths))
    assert read == paths


def test_a_pair_without_a_reference_is_matched_by_the_mean_of_its_gallery(model, paths):
    model.config = model.config.model_copy(update={"matching_head": True})
    embedder = CachedEmbedder(model, TokenCache(model.tower))
    for gallery in (paths, paths[:3]):
        mean = model.tokens(gallery).double().mean(dim=0).half()
        pictures = torch.stack([mean, model.tokens(paths[:1])[0]]), model.tokens(paths[4:6])
        expected = model.match(pictures, *model.tokenize(["red", "blue"]))
        found = embedder.match([None, paths[0]], ["red", "blue"], paths[4:6], gallery)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


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
        tmp_path / "best", splits, place=TokenPlace(folder=tmp_path / "cache"), progress=lambda *done: told.append(done)
    )
    assert told[-1] == (12, 12)
    assert weights == weights_hash(model)
    paths = splits[0].gallery_sources
    expected = CachedEmbedder(model, TokenCache(model.tower)).embed_gallery(paths)
    torch.testing.assert_close(embedder.embed_gallery(paths), expected, rtol=0, atol=0)


def test_a_checkpoint_without_a_tower_cannot_be_opened(model, shapes_root, tmp_path):
    save_pretrained(Composer(model.config), tmp_path / "best")
    with pytest.raises(ComposirError, match="has no vision tower and cannot embed pictures"):
        open_embedder(tmp_path / "best", load_splits("CIRR", shapes_root, "val"))
