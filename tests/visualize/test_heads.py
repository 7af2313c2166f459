"""What is drawn of a head: how far its gate is open, and what it changes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from composir.data import load_splits
from composir.errors import ComposirError
from composir.evaluation import rank_splits
from composir.features import open_embedder, open_model
from composir.models.heads.folder import HeadConfig, make_head, save_head
from composir.models.heads.head import mean_vector
from composir.token_cache import TokenPlace
from composir.visualize import HeadAnswer, answer_head, gallery_of_folder

IN_MEMORY = TokenPlace("memory")


@pytest.fixture(scope="session")
def make_head_folder(checkpoint, tmp_path_factory):
    """Return the maker of a head's folder, its weights random, on the checkpoint."""

    def make(name):
        base, identity = open_embedder(checkpoint, (), place=IN_MEMORY)
        config = HeadConfig(
            head=name, base=str(checkpoint), base_hash=identity, dim=base.model.config.embed_dim,
            text_dim=base.embed_words(["red"]).shape[-1], target_map=True,
        )  # fmt: skip
        torch.manual_seed(0)
        head = make_head(config)
        with torch.no_grad():
            for weight in head.parameters():
                weight.add_(0.05 * torch.randn_like(weight))
        folder = tmp_path_factory.mktemp("heads") / name
        save_head(head, config, folder)
        return folder

    return make


@pytest.fixture(scope="session")
def gated(make_head_folder):
    return make_head_folder("gate-joint")


def test_the_figures_are_worked_by_hand():
    shown = HeadAnswer("red", np.array([0.1, 0.6, 0.9, 0.52], np.float32), 0.25, 0.5, {})
    assert list(shown.figures().values()) == ["0.530", "75.0%", "0.250", "0.500"]
    assert shown.channels.tolist() == [0, 0, 1, *[0] * 7, 1, 0, 1, *[0] * 5, 1, 0]
    plain = HeadAnswer("red", None, 0.25, 0.5, {})
    assert list(plain.figures().values()) == ["0.250", "0.500"]
    assert plain.channels is None


def test_gate_change_and_rankings_are_those_of_the_head_and_of_its_base(gated, checkpoint, shapes_root):
    (split,) = load_splits("CIRR", shapes_root, "val")
    query = split.queries[0]
    image = split.images[query.reference]
    opened = open_model(gated, "cpu")
    (shown,) = answer_head(opened, image, [query.text], gallery=split, place=IN_MEMORY)
    head, base = opened.saved.head, open_embedder(checkpoint, [split], place=IN_MEMORY)[0]
    with torch.no_grad():
        read = mean_vector(base.embed_gallery([image])), base.embed_words([query.text])
        own = base.embed_queries([image], [query.text])
        changed = head(own, base.embed_gallery([image]), read[1])
    np.testing.assert_allclose(shown.gate, head.change.opened(*read)[0].detach(), atol=1e-6)
    assert shown.change == pytest.approx(head.change(*read).norm().item())
    assert shown.cosine == pytest.approx((own @ changed.T).item(), abs=1e-6)
    assert shown.cosine < 0.999
    assert list(shown.rankings) == ["without the head", "with the head"]
    for model, hits in zip((checkpoint, gated), shown.rankings.values(), strict=True):
        embedder, _ = open_embedder(model, [split], place=IN_MEMORY)
        ranking = rank_splits(embedder, [split])["composed"][0]
        assert [hit.name for hit in hits] == [split.gallery[place] for place in ranking.top[0, :8]]
        assert [hit.score for hit in hits] == pytest.approx(ranking.scores[0, :8].tolist(), abs=1e-5)
        assert [hit.is_target for hit in hits] == [hit.name in query.targets for hit in hits]


def test_a_head_without_a_gate_has_none(make_head_folder, image, shapes_root):
    gallery = gallery_of_folder(shapes_root / "dev")
    for with_gallery in (gallery, None):
        (shown,) = answer_head(
            open_model(make_head_folder("sum"), "cpu"), image, ["red"], gallery=with_gallery, place=IN_MEMORY
        )
        assert shown.gate is None
        assert bool(shown.rankings) == (with_gallery is not None)
    with pytest.raises(ComposirError, match="a picture without a sentence is asked as the base asks it"):
        answer_head(open_model(make_head_folder("sum"), "cpu"), image, ["red", ""])


@pytest.mark.parametrize("name", ["gate-joint", "sum"])
def test_the_command_draws_a_head(run, make_head_folder, shapes_root, tmp_path, name):
    image = shapes_root / "dev/val-red-ellipse.png"
    png, html = tmp_path / "new/head.png", tmp_path / "head.html"
    words = ["visualize", "--model", make_head_folder(name), "--image", image, "--text", "make it $green"]
    words += ["--text", "red </style><b>", "--gallery", shapes_root / "dev", "--out", png]
    code, out, err = run(*words, "--html", html, "--json")
    assert code == 0, err
    assert json.loads(out) == {"files": [str(png), str(html)]}
    assert Image.open(png).size[0] > 1000
    text = re.sub(r'data:image/jpeg;base64,[^"]*', "", html.read_text())
    assert text.count("</style>") == 1
    assert "://" not in text
    assert "script" not in text
    assert text.count("<figure>") == 2 * 2 * 8
    assert text.count("channels by how far the gate is open for them.") == 2 * (name == "gate-joint")
    assert text.count("cosine with the query without the head") == 2
    for flags in (["--target", image], ["--all"]):
        code, _, err = run(*words, *flags)
        assert code == 2
        assert "a head reads no patches" in err
