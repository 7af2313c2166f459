from __future__ import annotations

import pytest

from composir.models.backbones import build
from composir.models.checkpoint import from_pretrained
from composir.visualize import answer, gallery_of_folder


def test_the_rankings_are_those_of_the_model_and_of_the_same_without_its_fusion(checkpoint, image, shapes_root):
    model, plain = from_pretrained(checkpoint), build("tiny", fusion="none").eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("gated_fusion.")})
    gallery = gallery_of_folder(shapes_root / "dev")
    (shown,) = answer(model, image, ["make it green"], gallery=gallery)
    (expected,) = answer(plain, image, ["make it green"], gallery=gallery)
    assert shown.rankings["without the fusion"] == expected.rankings["as trained"]
    assert shown.rankings["with the fusion"] != expected.rankings["as trained"]
    first = shown.rankings["with the fusion"][0]
    assert shown.target == first.source
    assert shown.trace.score == pytest.approx(first.score, abs=1e-5)
    assert "val-red-ellipse.png" not in [hit.name for hit in shown.rankings["with the fusion"]]
