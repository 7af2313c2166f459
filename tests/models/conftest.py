"""Small files in the layouts of the big ones, from golden parts."""

from __future__ import annotations

import json

import pytest

from ..conftest import GOLDEN, HEADS, WIDTH


@pytest.fixture
def sizes_file(tmp_path):
    """Return a --qformer-config file for what ``whole`` makes."""
    fields = json.loads((GOLDEN / "config.json").read_text())
    fields |= {"encoder_width": WIDTH, "vit_num_attention_heads": HEADS}
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps(fields))
    return file


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the empty folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
