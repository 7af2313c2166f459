"""Small files in the layouts of the big ones, from golden parts."""

from __future__ import annotations

import json

import pytest
import torch

from composir.models import backbones, vit
from composir.models.weights import start

from ..conftest import GOLDEN

WIDTH, HEADS = 64, 4
"""Of the golden Q-Former and of the golden towers."""


@pytest.fixture
def whole(golden):
    """Return the maker of a state dict by LAVIS's names: Q-Former, tower, BLIP-2's vocabulary unless told otherwise."""

    def make(tower="vit_eva", vocabulary=None, *, prompt=False):
        weights = {key: value for key, value in golden(tower).items() if not key.startswith("__")}
        weights |= {key: value for key, value in golden("weights").items() if prompt or key != "prompt_tokens"}
        for layer in (0, 2):  # the golden Q-Former reads tokens 48 wide, the golden towers are 64 wide
            for part in ("key", "value"):
                name = f"Qformer.bert.encoder.layer.{layer}.crossattention.self.{part}.weight"
                weights[name] = torch.randn(WIDTH, WIDTH)
        if vocabulary is not None:
            weights["Qformer.bert.embeddings.word_embeddings.weight"] = torch.randn(vocabulary, WIDTH)
        return weights

    return make


@pytest.fixture
def sizes_file(tmp_path):
    """Return a --qformer-config file for what ``whole`` makes."""
    fields = json.loads((GOLDEN / "config.json").read_text())
    fields |= {"encoder_width": WIDTH, "vit_num_attention_heads": HEADS}
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps(fields))
    return file


@pytest.fixture
def small_heads(monkeypatch):
    """Let the widths of the golden parts be known as the published ones are."""
    monkeypatch.setattr(vit, "NUM_HEADS_BY_WIDTH", {WIDTH: HEADS})
    monkeypatch.setattr(start, "NUM_HEADS_BY_HIDDEN", {WIDTH: HEADS})
    backbones.read_backbone.cache_clear()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the empty folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
