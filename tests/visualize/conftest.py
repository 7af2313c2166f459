"""What the tests of the drawings share: a checkpoint, a picture and a reader of the page."""

from __future__ import annotations

import json
import re

import pytest
import torch

from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("visualized") / "best"
    save_pretrained(build("tiny", alpha_init=2.0), folder)
    return folder


@pytest.fixture
def image(shapes_root):
    return shapes_root / "dev/val-red-ellipse.png"


@pytest.fixture
def page_of():
    """Read a page: its whole text, and what it shows."""

    def read(file):
        html = file.read_text()
        return html, json.loads(re.search(r"const page = (\{.*\});\n", html)[1])

    return read
