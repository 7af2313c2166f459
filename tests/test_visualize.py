"""`composir visualize`: the picture and the page, as a person and a script meet them."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from composir.data import load_splits
from composir.models.checkpoint import from_pretrained, save_pretrained
from composir.models.presets import build
from composir.visualize import MAPS, answer, draw, gallery_of_folder, write_page

TEXTS = ["make it $green", "make it red </script><b>"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("visualized") / "best"
    save_pretrained(build("tiny", alpha_init=2.0), folder)
    return folder


@pytest.fixture
def image(shapes_root):
    return shapes_root / "dev/val-red-ellipse.png"


def page_of(file):
    html = file.read_text()
    return html, json.loads(re.search(r"const page = (\{.*\});\n", html)[1])


def test_the_command_writes_the_picture_and_the_page(run, checkpoint, image, shapes_root, tmp_path):
    query = next(q for q in load_splits("CIRR", shapes_root, "val")[0].queries if q.reference == "val-red-ellipse")
    png, html = tmp_path / "new/map.png", tmp_path / "map.html"
    code, out, err = run(
        "visualize", "--model", checkpoint, "--image", image, "--text", query.text, "--text", TEXTS[1],
        "--data-root", shapes_root, "--out", png, "--html", html, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out) == {"files": [str(png), str(html)]}
    assert Image.open(png).size[0] > 1000
    text, page = page_of(html)
    first, second = page["answers"]
    assert [first["text"], second["text"]] == [query.text, TEXTS[1]]
    assert list(first["rankings"]) == ["with the fusion", "fusion left out"]
    for hits in first["rankings"].values():
        assert len(hits) == 8
        assert "val-red-ellipse" not in [hit["name"] for hit in hits]  # CIRR leaves the reference out
        assert [hit["score"] for hit in hits] == sorted((hit["score"] for hit in hits), reverse=True)
        assert all(hit["isTarget"] == (hit["name"] in query.targets) for hit in hits)
    assert first["target"] != second["target"]  # the known answer; none is known of the second, so what came first
    outside = re.sub(r'data:image/jpeg;base64,[^"]*', "", text).replace("http://www.w3.org/2000/svg", "")
    assert "://" not in outside
    assert "default-src 'none'" in outside
    assert outside.count("</script>") == 1


def test_the_page_holds_the_values_of_the_trace(checkpoint, image, shapes_root, tmp_path):
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


def test_the_rankings_are_those_of_the_model_and_of_the_same_without_its_fusion(checkpoint, image, shapes_root):
    model, plain = from_pretrained(checkpoint), build("tiny", fusion="none").eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("gated_fusion.")})
    gallery = gallery_of_folder(shapes_root / "dev")
    (shown,) = answer(model, image, TEXTS[:1], gallery=gallery)
    (expected,) = answer(plain, image, TEXTS[:1], gallery=gallery)
    assert shown.rankings["fusion left out"] == expected.rankings["as trained"]
    assert shown.rankings["with the fusion"] != expected.rankings["as trained"]
    first = shown.rankings["with the fusion"][0]
    assert shown.target == first.source
    assert shown.trace.score == pytest.approx(first.score, abs=1e-5)
    assert "val-red-ellipse.png" not in [hit.name for hit in shown.rankings["with the fusion"]]


def test_without_fusion_and_gallery_there_are_still_maps(image, tmp_path):
    answers = answer(build("tiny", fusion="none").eval(), image, TEXTS)
    draw(image, answers, tmp_path / "map.png")
    write_page(image, answers, tmp_path / "map.html")
    _, page = page_of(tmp_path / "map.html")
    assert [one["key"] for one in page["maps"]] == ["influence", "attention"]
    assert page["answers"][0]["rankings"] == {}


def test_limits_are_shared_and_even_maps_look_even():
    gate = next(one for one in MAPS if one.key == "gate")
    assert gate.limits([np.array([[0.50, 0.52]])]) == pytest.approx((0.46, 0.56))  # 0.02 apart, shown 0.1 wide
    assert gate.limits([np.array([[0.1, 0.2]]), np.array([[0.5, 0.9]])]) == pytest.approx((0.1, 0.9))
    change = next(one for one in MAPS if one.key == "relative_change")
    assert change.limits([np.array([[1.0, 2.0]])]) == (0, 2)
    worth = next(one for one in MAPS if one.diverging)
    assert worth.limits([np.array([[1.0, -2.0]])]) == (-2, 2)


def test_what_is_wrong_is_said_in_one_line(run, checkpoint, image, shapes_root, tmp_path):
    base = ["visualize", "--model", checkpoint, "--image", image, "--text", "red", "--out", tmp_path / "map.png"]
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    shutil.copytree(shapes_root / "dev", tmp_path / "broken")
    (tmp_path / "broken/cut.png").write_bytes(b"no picture")
    for arguments, message in (
        (["--gallery", shapes_root, "--data-root", shapes_root], "--gallery and --data-root were given"),
        (["--gallery", tmp_path / "none"], "none: is not a folder"),
        (["--gallery", tmp_path / "empty"], "empty: holds no picture"),
        (["--gallery", tmp_path / "broken"], "cut.png"),
        (["--image", tmp_path / "no.png"], "no such image file"),
        (["--target", tmp_path / "no.png"], "no such image file"),
        (["--model", tmp_path / "empty"], "is not a checkpoint folder"),
        (["--out", tmp_path / "file/map.png"], "cannot be written"),
        (["--html", tmp_path / "file/map.html"], "cannot be written"),
        (["--split", "none", "--data-root", shapes_root], "none"),
    ):
        code, out, err = run(*base, *arguments)
        assert code == 2, arguments
        assert message in " ".join(err.split()), arguments
        assert not out
