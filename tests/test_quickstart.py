from __future__ import annotations

import json
import shlex

import pytest
import torch

from composir import Retriever, quickstart
from composir.cli import main
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained, weights_hash
from composir.samples import SAMPLES


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Return the caller of a quickstart of two steps on the smallest set; it gives the JSON document."""
    monkeypatch.setattr(quickstart, "NUM_IMAGES", 144)
    monkeypatch.setattr(quickstart, "STEPS_PER_MINUTE", 4)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["quickstart", "--out", str(tmp_path / "out"), "--minutes", "0.5", *arguments])
        assert stop.value.code == 0
        return capsys.readouterr().out

    return call


def test_makes_what_it_promises_and_does_nothing_twice(run, tmp_path, monkeypatch):
    document = json.loads(run("--json"))
    assert {"metrics", "baselines", "run", "index", "seconds"} <= set(document)
    assert set(document["baselines"]) == {"image_only", "text_only"}
    out = tmp_path / "out"
    for file in (out / "scenes/cirr/captions/cap.rc2.val.json", out / "contact_sheet.png", document["curves"]):
        assert (tmp_path / file).is_file()
    monkeypatch.setattr(quickstart, "generate", lambda *_, **__: pytest.fail("the data were made twice"))
    assert document["index"] == str(out / "index")
    with Retriever(out / "index") as retriever:
        assert len(retriever) == document["num_gallery"]
    again = json.loads(run("--json"))
    assert again["run"] == document["run"]
    assert again["metrics"] == document["metrics"]
    assert len(list((out / "models").iterdir())) == 1
    with Retriever(out / "photos.index") as retriever:
        assert len(retriever) == len(list(SAMPLES.glob("*.jpg"))) == 50
    words = run()
    assert "  brown-bear.jpg + 'but a red panda'\n  1  0." in words
    assert (out / "photos.png").is_file()
    assert "image only" in words
    assert "your own photographs:" in words
    assert "contact_sheet.png" in words
    (line,) = (line for line in words.splitlines() if line.startswith("  composir search"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(line)[1:])
    assert stop.value.code == 0
    assert (tmp_path / "found.png").exists()


def test_another_training_gets_another_index(shapes_root, tmp_path):
    for seed in (0, 1, 1):
        torch.manual_seed(seed)
        model = build("tiny").eval()
        save_pretrained(model, tmp_path / f"best-{seed}")
        quickstart._index(
            shapes_root / "dev", tmp_path / "index", tmp_path / f"best-{seed}", weights_hash(model), lambda *_: None
        )
        with Retriever(tmp_path / "index") as retriever:
            assert retriever.manifest.weights_hash == weights_hash(model)
            assert len(retriever) == 12
