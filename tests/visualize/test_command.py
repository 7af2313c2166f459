"""`composir visualize`: the picture and the page, as a person and a script meet them."""

from __future__ import annotations

import json
import re
import shutil

from PIL import Image

from composir.data import load_splits

TEXTS = ["make it $green", "make it red </script><b>"]


def test_the_command_writes_the_picture_and_the_page(run, checkpoint, shapes_root, tmp_path, page_of):
    image = shapes_root / "dev/val-red-ellipse.png"
    query = next(q for q in load_splits("CIRR", shapes_root, "val")[0].queries if q.reference == "val-red-ellipse")
    png, html = tmp_path / "new/map.png", tmp_path / "map.html"
    code, out, err = run(
        "visualize", "--model", checkpoint, "--image", image, "--text", query.text, "--text", TEXTS[1],
        "--data-root", shapes_root, "--out", png, "--html", html, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out) == {"files": [str(png), str(html)]}
    width, height = Image.open(png).size
    assert width > 1000
    code, _, err = run(
        "visualize", "--model", checkpoint, "--image", image, "--text", query.text, "--text", TEXTS[1],
        "--data-root", shapes_root, "--out", tmp_path / "all.png", "--all",
    )  # fmt: skip
    assert code == 0, err
    assert Image.open(tmp_path / "all.png").size[0] == width
    assert Image.open(tmp_path / "all.png").size[1] > height + 2 * 360  # a line of maps more in each row
    text, page = page_of(html)
    first, second = page["answers"]
    assert [first["text"], second["text"]] == [query.text, TEXTS[1]]
    assert list(first["rankings"]) == ["with the fusion", "without the fusion"]
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


def test_what_is_wrong_is_said_in_one_line(run, checkpoint, image, shapes_root, tmp_path):
    base = ["visualize", "--model", checkpoint, "--image", image, "--text", "red", "--out", tmp_path / "map.png"]
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    shutil.copytree(shapes_root / "dev", tmp_path / "broken")
    (tmp_path / "broken/cut.png").write_bytes(b"no picture")
    for arguments, message in (
        (["--gallery", shapes_root, "--data-root", shapes_root], "--gallery and --data-root were given"),
        (["--gallery", tmp_path / "none"], "none: no such file or folder; expected a folder of pictures"),
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
