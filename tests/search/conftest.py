"""Pictures, a model and synthetic embeddings for the search tests."""

from __future__ import annotations

import random
from contextlib import closing

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.search import read_manifest


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "best"
    save_pretrained(build("tiny").eval(), folder)
    return folder


@pytest.fixture(scope="session")
def other_model_folder(tmp_path_factory):
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("other") / "best"
    save_pretrained(build("tiny").eval(), folder)
    return folder


def draw(seed: int) -> Image.Image:
    """Return a picture of three shapes; another seed, another picture."""
    chance = random.Random(seed)
    picture = Image.new("RGB", (64, 48), "white")
    pen = ImageDraw.Draw(picture)
    for _ in range(3):
        x, y = chance.randrange(44), chance.randrange(28)
        colour = tuple(chance.randrange(256) for _ in range(3))
        chance.choice((pen.ellipse, pen.rectangle))((x, y, x + 20, y + 20), fill=colour)
    return picture


@pytest.fixture
def pictures(tmp_path):
    """Return a folder of 20 pictures, five of them in a folder of their own."""
    root = tmp_path / "pictures"
    (root / "sea").mkdir(parents=True)
    for number in range(20):
        draw(number).save(root / ("sea" if number >= 15 else ".") / f"{number:02}.png")
    return root


def state(out):
    """Return ids, paths and vectors of an index, in the order of its rows."""
    manifest = read_manifest(out)
    with closing(manifest.open_table(out)) as table:
        snapshot = table.snapshot()
        ids = [snapshot.ids[row].decode() for row in snapshot.rows]
        return ids, [table.paths_of(i) for i in ids], np.array(snapshot.vectors[snapshot.rows])


def same_state(one, other):
    assert one[0] == other[0]
    assert one[1] == other[1]
    assert np.array_equal(one[2], other[2])
