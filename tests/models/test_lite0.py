"""``lite0``: pictures as a network and eleven colours see them, and heads on it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from composir import Retriever
from composir.errors import ComposirError
from composir.features import open_model
from composir.models.backbones.efficientnet import EfficientNetLite0
from composir.models.lite0 import DIM, Lite0Embedder
from composir.models.photos.colours import COLOURS

CHANNELS = 320 + 112


@pytest.fixture(scope="module")
def model():
    return Lite0Embedder()


def disc(colour):
    picture = Image.new("RGB", (120, 90), "white")
    ImageDraw.Draw(picture).ellipse((40, 25, 80, 65), fill=colour)
    return picture


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for name in ("red", "green", "blue"):
        disc(name).save(root / f"{name}.png")
    noise(0).save(root / "noise.png")
    return root


def vectors_of(model, pictures):
    return model.embed_prepared([model.prepare(picture) for picture in pictures])


def test_a_vector_has_its_three_parts_at_their_weights(model):
    (vector,) = vectors_of(model, [disc("red")])
    assert vector.shape == (DIM,)
    channels, colours, ground = vector.split((CHANNELS, len(COLOURS), 2))
    # Lengths 1, 0.8 and 0.8 before all of it is brought to length 1.
    whole = (1 + 2 * 0.8**2) ** 0.5
    lengths = [float(part.norm()) for part in (channels, colours, ground)]
    assert lengths == pytest.approx([1 / whole, 0.8 / whole, 0.8 / whole], abs=1e-5)
    assert COLOURS[int(colours.argmax())] == "red"


def test_channels_are_standardised_by_the_batch_norms_that_make_them(model):
    network = EfficientNetLite0()
    network.load_state_dict(model._network.state_dict())
    norms = [network.blocks[place].project_norm for place in (8, 9, 10)]
    assert model._mean[0] == network.blocks[15].project_norm.bias[0]
    assert model._deviation[0] == network.blocks[15].project_norm.weight[0].abs()
    assert model._mean[320].item() == pytest.approx(sum(norm.bias[0].item() for norm in norms), rel=1e-5)
    squares = sum(norm.weight[0].item() ** 2 for norm in norms)
    assert model._deviation[320].item() == pytest.approx(squares**0.5, rel=1e-5)


def test_one_picture_is_as_in_a_batch(model):
    pictures = [disc("red"), noise(1), disc("blue")]
    together = vectors_of(model, pictures)
    for place, picture in enumerate(pictures):
        assert torch.equal(vectors_of(model, [picture])[0], together[place])


def test_a_query_of_picture_and_sentence_is_the_picture(model):
    pictures = [disc("red"), noise(1)]
    vectors = vectors_of(model, pictures)
    assert torch.equal(model.embed_pairs(pictures, ["but blue", ""]), vectors)
    assert torch.equal(model.pairs_of_vectors(vectors, ["but blue", ""]), vectors)
    assert not model.embed_sentences(["a dog"]).any()
    assert not model.read("a dog").is_usable


def test_the_name_opens_it_and_takes_no_options(model):
    opened = open_model("lite0", "cpu")
    assert isinstance(opened, Lite0Embedder)
    assert opened.weights_hash() == model.weights_hash()
    with pytest.raises(ComposirError, match="built in and has no place"):
        open_model("lite0:somewhere", "cpu")


def test_an_index_finds_pictures_alike_and_refuses_sentences_alone(folder, tmp_path, run):
    out = tmp_path / "lite0.index"
    assert run("index", folder, "--model", "lite0", "--out", out)[0] == 0
    with Retriever(out) as retriever:
        scores = {hit.path.name: hit.score for hit in retriever.search(disc("green"))}
        assert scores["green.png"] == pytest.approx(1, abs=1e-3)
        assert scores["green.png"] > scores["blue.png"] > scores["noise.png"]
        with pytest.raises(ComposirError, match="nothing to search for"):
            retriever.search(text="a dog")
    code, said, err = run("search", out, "--image", folder / "red.png", "--text", "but blue", "--json")
    assert code == 0
    assert json.loads(said)
    assert "did not count" in err


def test_a_head_teaches_it_sentences(run, shapes_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--backbone", "lite0", "--data-root", shapes_root, "--num-epochs", "20", "--cache", "memory")
    code, said, _ = run("train", *options, "--head", "sum", "--set", "validation_frequency=20", "--json")
    assert code == 0
    best = json.loads(said)["best"]
    figures = [
        json.loads(run("evaluate", "--model", name, "--data-root", shapes_root, "--json")[1])["metrics"]
        for name in ("lite0", best)
    ]
    assert figures[1]["recall_at_1"] > figures[0]["recall_at_1"]
