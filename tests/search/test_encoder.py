"""What a model made of recent references is kept, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

import composir
from composir.models.backbones import build
from composir.models.lite0 import Lite0Embedder
from composir.models.photos.embedder import PhotosEmbedder
from composir.search import SearchQuery, index_folder
from composir.search.encoder import NO_PICTURE, ComposerEncoder, References, content_of, open_encoder

from .conftest import draw

ASKED = [(0, "make it red"), (1, ""), (NO_PICTURE, "a red dog"), (0, "a dog"), (1, "but blue")]


class Counting:
    """Stands for a model's look at pictures; says how many it was shown."""

    def __init__(self, make):
        self.make, self.shown = make, []

    def __call__(self, pictures):
        self.shown.append(len(pictures))
        return self.make(pictures)


def mean_of(pictures):
    return torch.tensor([[sum(one.getpixel((0, 0))) / 3, float(one.width)] for one in pictures])


def ask(references, pictures, look):
    contents = [content_of(picture) for picture in pictures]
    return references.of(contents, lambda new: look([pictures[place] for place in new]))


def test_only_pictures_that_are_not_kept_are_looked_at_and_each_gets_its_own_row():
    references, look = References(), Counting(mean_of)
    red, grey, wide = (Image.new("RGB", size, c) for size, c in (((4, 2), "red"), ((4, 2), "#333"), ((2, 4), "red")))
    found = ask(references, [red, grey, red.copy()], look)
    assert found.tolist() == [[85.0, 4.0], [51.0, 4.0], [85.0, 4.0]]
    found = ask(references, [wide, red.copy()], look)  # as many bytes, another shape
    assert found.tolist() == [[85.0, 2.0], [85.0, 4.0]]
    assert ask(references, [grey], look).tolist() == [[51.0, 4.0]]
    assert look.shown == [2, 1]
    found[:] = 0  # what was handed out is not what is kept
    assert ask(references, [red], look).tolist() == [[85.0, 4.0]]


def test_references_are_kept_within_their_bytes(monkeypatch):
    monkeypatch.setattr("composir.search.encoder.REFERENCE_BYTES", 2 * 8)  # of two rows of two floats
    references, look = References(), Counting(mean_of)
    one, two, three = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "white"))
    for picture in (one, two, one, three, one, two):
        assert torch.equal(ask(references, [picture], look), mean_of([picture]))
    assert look.shown == [1] * 4  # one, two, three, and two again


@pytest.fixture(params=["checkpoint", "photos", "lite0"])
def looking(request, model_folder, monkeypatch):
    """Return a model, and the list of how many pictures its network was shown at a time."""
    shown = []
    if request.param == "checkpoint":
        encoder = open_encoder(model_folder, "cpu")
        tokens = encoder.model.tokens
        monkeypatch.setattr(encoder.model, "tokens", lambda pictures: shown.append(len(pictures)) or tokens(pictures))
        return encoder, shown
    kind = {"photos": PhotosEmbedder, "lite0": Lite0Embedder}[request.param]
    embed = kind.embed_prepared
    monkeypatch.setattr(kind, "embed_prepared", lambda own, ready: shown.append(len(ready)) or embed(own, ready))
    return open_encoder(request.param, "cpu"), shown


@torch.inference_mode()
def test_kept_equals_new_bit_for_bit_for_queries_and_their_pictures(looking):
    encoder, shown = looking
    pictures = [draw(1), draw(2)]
    new = encoder.embed_asked(pictures, ASKED)
    assert shown == [2]
    assert torch.equal(encoder.embed_asked([one.copy() for one in pictures], ASKED), new)
    queries, seen = encoder.embed_asked_and_pictures(pictures, ASKED)
    assert shown == [2]
    assert torch.equal(queries, new)
    assert torch.equal(encoder.embed_asked_and_pictures([pictures[1], draw(3)], [(0, ""), (1, "")])[1][0], seen[1])
    assert shown == [2, 1]


@pytest.mark.parametrize("fusion", ["gate", "gate+late"])
def test_the_vectors_that_a_fusion_joins_are_kept_bit_for_bit_and_made_for_no_other(fusion, monkeypatch):
    torch.manual_seed(0)
    encoder = ComposerEncoder(build("tiny", fusion=fusion).eval())
    model, pictures = encoder.model, [draw(1), draw(2)]
    asked, three = [(0, "make it red"), (1, "but blue")], [*pictures, draw(3)]
    with torch.inference_mode():
        new = model.embed_query(pictures, [text for _, text in asked])
        look = Counting(model.encode_target)
        monkeypatch.setattr(model, "encode_target", look)
        assert torch.equal(encoder.embed_asked(pictures, asked), new)
        assert torch.equal(encoder.embed_asked(pictures, asked), new)
        assert look.shown == [2] * (fusion == "gate+late")
        queries, seen = encoder.embed_asked_and_pictures(three, asked)
        assert torch.equal(queries, new)
        assert look.shown == ([2, 1] if fusion == "gate+late" else [3])
        torch.testing.assert_close(seen, model.embed_target(three))


def test_a_refined_search_looks_at_its_picture_once(pictures, tmp_path, model_folder, monkeypatch):
    index_folder(pictures, tmp_path / "index", model=model_folder)
    shown = []
    with composir.Retriever(tmp_path / "index") as retriever, composir.Retriever(tmp_path / "index") as other:
        tokens = retriever.model.tokens
        monkeypatch.setattr(retriever.model, "tokens", lambda some: shown.append(len(some)) or tokens(some))
        queries = [SearchQuery((pictures / "07.png",), text) for text in ("red", "blue", "bigger")]
        assert [retriever.search_many([one]) for one in queries] == [other.search_many([one]) for one in queries]
        retriever.read([draw(7)], ["red"])  # and its heat map
    assert shown == [1]
