from __future__ import annotations

import json

import pytest

from composir import quickstart
from composir.cli import main


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
    again = json.loads(run("--json"))
    assert again["run"] == document["run"]
    assert again["metrics"] == document["metrics"]
    assert len(list((out / "models").iterdir())) == 1
    words = run()
    assert "image only" in words
    assert "what to try next" in words
    assert "contact_sheet.png" in words
