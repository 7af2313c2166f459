from __future__ import annotations

import numpy as np
import pytest

from composir.models.backbones import build
from composir.models.checkpoint import from_pretrained
from composir.visualize import MAPS, answer, draw, write_page

TEXTS = ["make it $green", "make it red </script><b>"]


def test_the_page_holds_the_values_of_the_trace(checkpoint, image, shapes_root, tmp_path, page_of):
    model = from_pretrained(checkpoint)
    answers = answer(model, image, TEXTS, target=shapes_root / "dev/val-blue-ellipse.png")
    write_page(image, answers, tmp_path / "map.html")
    _, page = page_of(tmp_path / "map.html")
    trace = model.trace(image, TEXTS[0], shapes_root / "dev/val-blue-ellipse.png")
    assert answers[0].rankings == {}
    assert [one["key"] for one in page["maps"]] == [one.key for one in MAPS if one.key != "text_attention"]
    shown = page["answers"][0]
    np.testing.assert_allclose(shown["values"]["influence"], 100 * trace.influence.reshape(3, 3), atol=1e-4)
    np.testing.assert_allclose(shown["heads"], 100 * trace.cross_attention.mean(axis=2).reshape(1, 2, 3, 3), atol=1e-4)
    assert shown["box"] == pytest.approx(trace.box)
    assert shown["score"] == pytest.approx(trace.score, abs=1e-5)


def test_without_fusion_and_gallery_there_are_still_maps(image, tmp_path, page_of):
    answers = answer(build("tiny", fusion="none").eval(), image, TEXTS)
    draw(image, answers, tmp_path / "map.png")
    write_page(image, answers, tmp_path / "map.html")
    _, page = page_of(tmp_path / "map.html")
    assert [one["key"] for one in page["maps"]] == ["influence", "attention"]
    assert page["answers"][0]["rankings"] == {}
