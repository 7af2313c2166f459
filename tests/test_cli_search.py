"""composir index and composir search as a person and a script meet them."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from PIL import Image

from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.search import Retriever, Sentence, content_id


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "best"
    save_pretrained(build("tiny").eval(), folder)
    return folder


@pytest.fixture
def gallery(shapes_root):
    return shapes_root / "dev"


@pytest.fixture
def index(run, gallery, model, tmp_path):
    out = tmp_path / "index"
    code, _, err = run("index", gallery, "--model", model, "--out", out)
    assert code == 0, err
    return out


def test_index_prints_what_the_contract_names(run, gallery, model, tmp_path):
    code, out, err = run("index", gallery, "--model", model, "--out", tmp_path / "index", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert {"num_images", "skipped", "seconds"} <= set(document)
    assert (document["num_images"], document["skipped"]) == (12, [])
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/broken.png").write_bytes(b"x")
    (tmp_path / "pictures/good.png").write_bytes(next(gallery.glob("*.png")).read_bytes())
    code, out, _ = run("index", tmp_path / "pictures", "--model", model, "--out", tmp_path / "other", "--json")
    assert code == 0
    assert [set(one) for one in json.loads(out)["skipped"]] == [{"file", "reason"}]
    code, out, _ = run("index", tmp_path / "pictures", "--out", tmp_path / "other")
    assert code == 0
    assert "skipped broken.png: not an image of a format that is read" in out
    assert "1 picture in" in out
    assert "next: composir search" in out


def test_search_prints_what_the_contract_names(run, gallery, index, tmp_path):
    file, sheet = gallery / "val-red-ellipse.png", tmp_path / "sheet.png"
    code, out, err = run(
        "search", index, "--image", file, "--text", "make it blue", "--top-k", 4, "--contact-sheet", sheet, "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    assert document["milliseconds"] > 0
    assert [one["rank"] for one in document["results"]] == [1, 2, 3, 4]
    assert all({"rank", "path", "score"} <= set(one) for one in document["results"])
    assert str(file) not in {one["path"] for one in document["results"]}
    assert sheet.read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("search", index, "--image", file, "--text", "make it blue", "--top-k", 12, "--keep-reference")
    assert code == 0
    assert str(file) in out
    assert "12 of 12 pictures in" in out


@pytest.mark.parametrize(
    "asked",
    [
        ["--text", "a red circle"],
        ["--image", "val-red-ellipse.png"],
        ["--image", "val-red-ellipse.png", "--image", "val-blue-rectangle.png", "--text", "x"],
        ["--image", "val-red-ellipse.png", "--negative-text", "red"],
        ["--text", "x", "--where", "*ellipse*"],
    ],
)
def test_every_way_of_asking_has_a_contact_sheet(run, gallery, index, tmp_path, asked):
    asked = [gallery / one if one.endswith(".png") else one for one in asked]
    code, out, err = run("search", index, *asked, "--top-k", 3, "--contact-sheet", tmp_path / "sheet.png")
    assert code == 0, err
    assert len([line for line in out.splitlines() if ".png" in line and "sheet" not in line]) == 3
    assert (tmp_path / "sheet.png").exists()


def test_another_engine_gives_the_same_answer(run, gallery, index):
    asked = ["search", index, "--image", gallery / "val-red-ellipse.png", "--text", "make it blue", "--json"]
    expected = [one["path"] for one in json.loads(run(*asked)[1])["results"]]
    for backend in ("faiss", "qdrant"):
        assert run("index", gallery, "--out", index, "--backend", backend)[0] == 0
        assert [one["path"] for one in json.loads(run(*asked)[1])["results"]] == expected


def test_a_name_cannot_break_the_line_or_speak_to_the_terminal(run, shapes_root, model, tmp_path):
    gallery, index = tmp_path / "gallery", tmp_path / "index"
    gallery.mkdir()
    shutil.copy(shapes_root / "dev" / "val-red-ellipse.png", gallery)
    (gallery / "new\nline\x1b[31m.png").write_bytes((gallery / "val-red-ellipse.png").read_bytes() + b"another")
    (gallery / "no\npicture.png").write_bytes(b"no picture")
    code, out, err = run("index", gallery, "--model", model, "--out", index)
    assert code == 0, err
    assert "skipped no\\npicture.png: not an image" in out
    code, out, _ = run("search", index, "--text", "x", "--where", "new*")
    assert code == 0
    assert f"{gallery}/new\\nline\\x1b[31m.png\n" in out


def test_a_pattern_that_fits_nothing_is_said_to(run, index):
    code, out, err = run("search", index, "--text", "x", "--where", "nothing/*")
    assert (code, out.splitlines()[0][:2]) == (0, "0 ")
    assert "note: nothing to find at --where 'nothing/*'" in err


def test_an_index_that_is_not_complete_is_said_to_be(run, gallery, index):
    import sqlite3  # noqa: PLC0415

    with sqlite3.connect(index / "images.sqlite") as database:
        database.execute("UPDATE state SET complete = 0")
    code, out, err = run("search", index, "--text", "x", "--json")
    assert code == 0
    assert len(json.loads(out)["results"]) == 10
    assert f"is not complete; composir index {gallery} --out {index} goes on" in err


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["index", "no/where", "--out", "x"], ["no/where: is not a folder", "fix: check the path"]),
        (["index", "PICTURE", "--out", "x"], ["is not a folder", "fix: give the folder that it is in"]),
        (["index", "INDEX"], ["is an index, not a folder of pictures", "fix: composir search ", " asks it; to make"]),
        (
            ["index", ".", "--out", "x", "--backend", "faiss", "--url", "u"],
            ["--url is for --backend qdrant, not faiss"],
        ),
        (
            ["search", "no/index", "--text", "x"],
            ["no/index: is not an index", "composir index PICTURES --out no/index"],
        ),
        (["serve", "no/index", "--port", "0"], ["no/index: is not an index", "composir index PICTURES --out no/index"]),
        (["search", "PICTURES", "--text", "x"], ["is a folder of pictures, not its index; fix: composir index "]),
        (["search", "INDEX", "--image", "no.png"], ["error: no.png: no such image file; fix: check the path"]),
        (
            ["search", "INDEX", "--image", "https://example.org/a.png"],
            ["error: https://example.org/a.png: is an address, and a file is wanted; fix: download it, then give"],
        ),
        (["serve", "INDEX", "--host", "0.0.0.0"], ["--host 0.0.0.0 lets other machines ask", "give --api-key"]),
        (["serve", "no/index", "--queue", "0"], ["--queue", "0"]),
        (
            ["index", "PICTURES", "--out", "x", "--model", "photos", "--device", "foo"],
            ["--device 'foo' is none", "expected cpu"],
        ),
        (["search", "INDEX", "--text", "x", "--device", "meta"], ["--device 'meta' is none", "fix: leave out"]),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(run, in_tmp_path, shapes_index, arguments, words):
    pictures = shapes_index.parent / "pictures"
    place_by_name = {"INDEX": shapes_index, "PICTURES": pictures, "PICTURE": next(pictures.iterdir())}
    code, out, err = run(*(place_by_name.get(word, word) for word in arguments))
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err
    assert all(word in err for word in words), err
    assert list(in_tmp_path.iterdir()) == []


def test_folders_are_left_out_by_pattern_and_kept_files_are_warned_of(run, gallery, model, tmp_path):
    pictures, index = tmp_path / "pictures", tmp_path / "index"
    for place in ("fine", "raw"):
        shutil.copytree(gallery, pictures / place)
    code, out, err = run("index", pictures, "--model", model, "--out", index, "--exclude", "raw", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["num_files"], document["excluded"], document["num_kept"]) == (12, ["raw"], 0)
    code, out, err = run("index", pictures, "--out", index)
    assert (code, err) == (0, "")
    assert "left out: raw\n" in out
    (pictures / "fine").rename(tmp_path / "away")
    (pictures / "fine").mkdir()
    shutil.copy(tmp_path / "away/val-red-ellipse.png", pictures)
    code, out, err = run("index", pictures, "--out", index, "--json")
    assert json.loads(out)["num_kept"] == 12
    assert "warning: 12 files in the index could not be looked at, and stay in it; see what was skipped\n" in err
    code, out, _ = run("index", pictures, "--out", index, "--exclude", "")
    assert "left out" not in out


def test_a_cut_jpeg_is_searched_by_and_drawn_with_a_note(run, shapes_root, model, tmp_path):
    from PIL import Image  # noqa: PLC0415

    gallery = tmp_path / "gallery"
    gallery.mkdir()
    Image.open(shapes_root / "dev/val-red-ellipse.png").save(gallery / "cut.jpg")
    (gallery / "cut.jpg").write_bytes((gallery / "cut.jpg").read_bytes()[:-1])
    code, out, err = run("index", gallery, "--model", model, "--out", tmp_path / "index")
    assert code == 0, err
    assert "note: cut.jpg: its last bytes are missing; it is used as far as it goes\n" in out
    asked = ["--image", gallery / "cut.jpg", "--keep-reference", "--contact-sheet", tmp_path / "sheet.png"]
    code, out, err = run("search", tmp_path / "index", *asked)
    assert code == 0, err
    assert (tmp_path / "sheet.png").exists()


def test_a_pattern_with_a_bracket_that_fits_nothing_says_how_to_write_one(run, index):
    code, _, err = run("search", index, "--text", "x", "--where", "set [x]/*")
    assert code == 0
    assert "nothing to find at --where 'set [x]/*'" in err
    assert "a [ in a name is written [[]" in err


def test_a_folder_without_pictures_is_a_mistake(run, model, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.DNG").touch()
    code, out, err = run("index", tmp_path / "raw", "--model", model, "--out", tmp_path / "index", "--json")
    assert (code, out) == (2, "")
    assert "holds no picture that is read (files: 1 .dng); expected files that end in .jpg" in err
    assert len(err.strip().splitlines()) == 1


def test_a_model_without_words_explains_nothing(run, shapes_index, shapes_root):
    words = ("search", shapes_index, "--image", next(shapes_root.rglob("*.png")), "--text", "make it red", "--explain")
    code, out, err = run(*words, "--top-k", "2")
    assert (code, err) == (0, "")
    assert out.startswith("read as: a whole, by the network\n")
    assert "[" not in out.splitlines()[1]
    assert out.splitlines()[-1].endswith("(tiny backbone; it does not say what it was trained on)")
    document = json.loads(run(*words, "--json")[1])
    assert document["reading"] is None
    assert {one["seen"] for one in document["results"]} == {None}


@pytest.fixture(scope="module")
def found(shapes_index, shapes_root):
    """Return the search of an index by a red picture, in Python."""
    with Retriever(shapes_index) as retriever:
        reference = shapes_root / "dev/val-red-ellipse.png"
        yield lambda *args, **fields: [(hit.id, hit.score) for hit in retriever.search(reference, *args, **fields)]


def test_what_is_asked_better_is_what_the_retriever_answers(run, shapes_index, shapes_root, found):
    red, blue, green = (shapes_root / f"dev/val-{colour}-ellipse.png" for colour in ("red", "blue", "green"))

    def searched(*options):
        code, out, err = run("search", shapes_index, "--image", red, *options, "--json")
        assert (code, err) == (0, "")
        return [(one["id"], one["score"]) for one in json.loads(out)["results"]]

    assert searched("--text", "bigger", "--image-weight", 0.2) == found("bigger", image_weight=0.2)
    weighted = found(texts=[Sentence("blue", 3), Sentence("bigger")], without=[Sentence("red", 0.5)])
    assert searched("--text", "blue:3", "--text", "bigger", "--without", "red:0.5") == weighted
    assert weighted != found("blue")
    ids = [content_id(file.read_bytes()) for file in (blue, green)]
    marked = found("bigger", more=ids[:1], less=ids[1:])
    assert searched("--text", "bigger", "--more", ids[0], "--less", green) == marked
    assert searched("--text", "bigger", "--more", blue.name, "--less", green) == marked  # from the pictures' folder


def test_what_scores_less_is_left_out_and_nothing_is_said_to_be(run, shapes_index):
    scores = json.loads(run("search", shapes_index, "--text", "red", "--json")[1])["results"]
    least = scores[2]["score"] - 1e-6
    code, out, err = run("search", shapes_index, "--text", "red", "--min-score", least, "--json")
    assert (code, err, json.loads(out)["results"]) == (0, "", scores[:3])
    code, out, err = run("search", shapes_index, "--text", "red", "--min-score", 1.01)
    assert code == 0
    assert err == "note: no picture scores 1.01 or more; lower --min-score, or leave it out\n"
    assert "0 of 12 pictures" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--text", "red:11"), "the weight of 'red' is 11; expected 0 to 10; less of it: --without"),
        (("--text", "red", "--image-weight", 2), "--image-weight: expected a number from 0 to 1 (got '2')"),
        (("--text", "red", "--image-weight", 1), "the image weight is 1, and there is no picture; fix: give one"),
        (("--text", "red", "--more", "no.png"), "'no.png' is neither the id of a picture in"),
        (("--text", "red", "--less", __file__), "is not in the index; expected the id of one of its images"),
        (("--text", "red", "--min-score", "nan"), "--min-score: expected a number from -1,000 to 1,000 (got 'nan')"),
        (("--text", "red", "--rerank-model", "x"), "--rerank-model is for --rerank; fix: add --rerank 20"),
    ],
)
def test_what_cannot_be_asked_is_one_line(run, shapes_index, options, words):
    code, _, err = run("search", shapes_index, *options)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_more_sentences_than_pictures_are_one_line(run, shapes_index, shapes_root):
    file = shapes_root / "dev/val-red-ellipse.png"
    texts = ("--text", "a", "--text", "b", "--text", "c")
    code, _, err = run("search", shapes_index, "--image", file, "--image", file, *texts)
    assert code == 2
    assert "there are 2 pictures and 3 sentences; expected one sentence for all pictures, or one for each" in err


def test_a_sentence_in_an_unread_script_is_warned_of_on_the_shell(run, shapes_index):
    code, out, err = run("search", shapes_index, "--text", "红色的狗", "--top-k", 1, "--json")
    (line,) = json.loads(out)["warnings"]
    assert line.startswith("'红色的狗' is hardly read: it holds no word that the model knows")
    assert (code, err) == (0, f"warning: {line}\n")
    code, out, err = run("search", shapes_index, "--text", "make it red", "--json")
    assert (json.loads(out)["warnings"], err) == ([], "")


def test_damaged_exif_is_told_with_the_name_of_the_picture(run, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    damaged = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0\x01\0\0\0\x0f\x01\x02\0\xff\0\0\0\xff\xff\0\0"
    for name, options in (("odd.jpg", {"exif": damaged}), ("fine.jpg", {})):
        Image.new("RGB", (64, 64), "red").save(pictures / name, **options)
    code, _, err = run("index", pictures, "--model", "lite0", "--out", tmp_path / "index")
    assert code == 0
    notes = [line for line in err.splitlines() if "EXIF" in line]
    assert notes
    assert all(line.startswith(f"note: {pictures / 'odd.jpg'}: Corrupt EXIF data.") for line in notes)
    assert "site-packages" not in err


def test_what_a_skipped_file_is_stands_in_words(run, tmp_path):
    for name, content in (
        ("a.jpg", b"<!DOCTYPE html><html>"),
        ("b.jpg", "kein Bild, nur Töne".encode()),
        ("c.png", b"\x00\x01\x02\x03\xff"),
        ("d.png", b"version https://git-lfs.github.com/spec/v1"),
    ):
        (tmp_path / name).write_bytes(content)
    code, _, err = run("index", tmp_path, "--out", tmp_path / "index", "--model", "lite0")
    assert code == 2
    for words in (
        "(it is a web page)",
        "(it is text, which begins 'kein Bild, nur Töne')",
        "(its first bytes are 00 01 02 03 ff)",
        "(it is a pointer of Git LFS, not the file itself)",
    ):
        assert f"1 x not an image of a format that is read {words}" in err
    assert "b'" not in err


def test_a_folder_of_heic_alone_names_the_plugin_that_lacks(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "IMG_0001.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(100))
    code, _, err = run("index", tmp_path, "--out", tmp_path / "index", "--model", "lite0")
    assert code == 2
    assert "1 x a HEIC picture needs the package pillow-heif, which is not installed; fix: pip install" in err
    assert "'pillow-heif>=" in err
