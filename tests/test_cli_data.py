"""The commands about data as a person and a script meet them."""

from __future__ import annotations

import json
import shutil

import pytest

from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained


@pytest.fixture
def broken_root(shapes_root, tmp_path):
    """The tiny set with a missing, an empty and a copied image of val."""
    root = tmp_path / "broken"
    shutil.copytree(shapes_root, root)
    dev = root / "dev"
    (dev / "val-red-ellipse.png").unlink()
    (dev / "val-blue-ellipse.png").write_bytes(b"")
    shutil.copyfile(dev / "val-red-rectangle.png", dev / "val-green-rectangle.png")
    return root


@pytest.fixture
def dress_root(tmp_path):
    """FashionIQ with two val queries of dress and nothing else; no images."""
    root = tmp_path / "fashionIQ_dataset"
    for folder in ("captions", "image_splits"):
        (root / folder).mkdir(parents=True)
    (root / "image_splits/split.dress.val.json").write_text('["a", "b", "c", "d"]')
    captions = [
        {"target": "b", "candidate": "a", "captions": ["is red", "has a bow"]},
        {"target": "b", "candidate": "c", "captions": ["longer", "blue"]},
    ]
    (root / "captions/cap.dress.val.json").write_text(json.dumps(captions))
    return root


def test_scenes(run, tmp_path):
    code, out, _ = run("data", "scenes", "--out", tmp_path / "scenes", "--images", 144)
    assert code == 0
    assert "next: composir train" in out
    code, _, err = run("data", "scenes", "--out", tmp_path / "scenes", "--images", 144)
    assert code == 2
    assert "already exists" in err


def test_check_of_a_whole_root(run, shapes_root):
    code, out, err = run("data", "check", "--data-root", shapes_root)
    assert code == 0
    lines = out.splitlines()
    captions, names = (shapes_root / f"cirr/{name}.rc2.train.json" for name in ("captions/cap", "image_splits/split"))
    assert f"{captions}: no hash is known to compare it with" in lines
    assert f"note: {names}: is not the published file: another set in this layout, or a changed copy" in lines
    assert [line for line in lines if not line.startswith((str(shapes_root), "note: "))] == [
        "train: 24 queries, 12 images",
        "val: 24 queries, 12 images",
        "not there: test1",
        "0 problems",
    ]
    assert "images: 24 of 24" in err
    code, out, _ = run("data", "check", "--data-root", shapes_root, "--json")
    document = json.loads(out)
    assert (code, document["problems"], document["absent"]) == (0, [], ["test1"])
    assert {"file": str(captions), "published": None} in document["files"]
    assert {"file": str(names), "published": False} in document["files"]
    assert {tuple(note) for note in document["notes"]} == {("file", "where", "message")}


def test_check_knows_the_published_files(run, real_annotations):
    code, out, _ = run("data", "check", "--dataset", "FashionIQ", "--data-root", real_annotations)
    assert code == 2  # no images are there
    file = real_annotations / "fashionIQ_dataset/captions/cap.dress.val.json"
    assert f"{file}: as published" in out.splitlines()
    assert "0 of 3,817 images are there" in out
    assert len(out.splitlines()) < 10


def test_a_blank_caption_is_noted_and_counted_and_answered(run, shapes_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shapes_root, root)
    for folder, kind in (("captions", "cap"), ("image_splits", "split")):
        content = json.loads((root / f"cirr/{folder}/{kind}.rc2.val.json").read_text())
        if kind == "cap":
            content[3]["caption"] = " "
            for entry in content:
                del entry["target_hard"], entry["target_soft"], entry["img_set"]["target_rank"]
        (root / f"cirr/{folder}/{kind}.rc2.test1.json").write_text(json.dumps(content))
    code, out, _ = run("data", "check", "--data-root", root)
    assert code == 0
    file = root / "cirr/captions/cap.rc2.test1.json"
    assert f"note: {file} (pairid 103): 'caption' is blank (' ')" in out.splitlines()
    code, out, _ = run("data", "stats", "--data-root", root, "--split", "test1", "--json")
    assert json.loads(out)["counts"]["test1"]["num_queries"] == 24
    save_pretrained(build("tiny"), tmp_path / "model")
    code, out, err = run(
        "submit", "--model", tmp_path / "model", "--data-root", root, "--out", tmp_path / "out", "--json"
    )
    assert code == 0, err
    recall, subset = (
        json.loads((tmp_path / f"out/cirr_test1_{name}.json").read_text()) for name in ("recall", "recall_subset")
    )
    assert (len(recall["103"]), len(subset["103"])) == (11, 3)


def test_check_lists_every_problem(run, broken_root):
    code, out, _ = run("data", "check", "--data-root", broken_root, "--json")
    assert code == 2
    problems = json.loads(out)["problems"]
    assert [problem["message"] for problem in problems[:2]] == [
        f"11 of 12 images are there; looked there and, by name, below {broken_root}; missing: 'val-red-ellipse'",
        "1 of 12 images are empty files (0 bytes): 'val-blue-ellipse'",
    ]
    assert "has the same content as" in problems[2]["message"]
    assert all(set(problem) == {"file", "where", "message", "fix"} for problem in problems)
    code, out, _ = run("data", "check", "--data-root", broken_root)
    assert code == 2
    assert "val: 24 queries, 12 images, 1 of them with the content of another" in out
    assert out.splitlines()[-1] == "3 problems"


def test_check_can_let_duplicates_pass(run, broken_root):
    code, out, _ = run("data", "check", "--data-root", broken_root, "--allow-duplicates", "--json")
    document = json.loads(out)
    assert code == 2
    assert len(document["problems"]) == 2
    assert document["counts"]["val"]["num_duplicate_images"] == 1


def test_check_prints_names_that_are_no_text(run, shapes_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shapes_root, root)
    names = root / "cirr/image_splits/split.rc2.val.json"
    names.write_text(names.read_text().replace("./dev/val-red-ellipse.png", "./\\udcff/a.png"))
    code, out, _ = run("data", "check", "--data-root", root)
    assert code == 2
    assert "11 of 12 images are there" in out
    names.write_text(names.read_text().replace("./dev/", "./\\udcff/"))
    code, out, _ = run("data", "check", "--data-root", root)
    assert code == 2
    assert "\\udcff (CIRR val)" in out
    code, out, _ = run("data", "check", "--data-root", root, "--json")
    assert json.loads(out)["problems"][0]["file"].endswith("/\udcff")


def test_stats_of_all_splits(run, shapes_root):
    code, out, _ = run("data", "stats", "--data-root", shapes_root, "--json")
    document = json.loads(out)
    assert code == 0
    assert list(document["counts"]) == ["train", "val"]
    assert document["absent"] == ["test1"]
    assert document["counts"]["val"]["num_queries"] == 24
    code, out, _ = run("data", "stats", "--data-root", shapes_root, "--split", "val", "--json")
    assert list(json.loads(out)["counts"]) == ["val"]


def test_stats_of_the_one_category_that_is_there(run, dress_root):
    for more in ((), ("--categories", "dress"), ("--split", "val")):
        code, out, err = run("data", "stats", "--dataset", "FashionIQ", "--data-root", dress_root, *more, "--json")
        assert code == 0, err
        # b is the target twice; a, b and c are used, d is not; "Is red and has a bow" has six words.
        assert json.loads(out)["counts"] == {
            "dress.val": {
                "num_queries": 2,
                "num_gallery": 4,
                "gallery_original": 4,
                "gallery_val_union": 3,
                "num_references": 2,
                "num_pairs": 2,
                "num_duplicate_targets": 1,
                "words_min": 3,
                "words_mean": 4.5,
                "words_max": 6,
            }
        }
    code, out, _ = run("data", "stats", "--dataset", "FashionIQ", "--data-root", dress_root)
    assert code == 0
    heading, row, absent = out.splitlines()
    assert heading.split()[:3] == ["queries", "gallery", "val-union"]
    assert row.split() == ["dress.val", "2", "4", "3", "2", "1", "4.5", "6"]
    assert absent.startswith("not there: dress.train, dress.test, shirt.train, shirt.val")


def test_stats_where_answers_are_hidden(run, tmp_path):
    run("data", "scenes", "--out", tmp_path / "scenes", "--images", 144)
    code, out, _ = run("data", "stats", "--data-root", tmp_path / "scenes", "--split", "test1")
    assert code == 0
    assert out.splitlines()[1].split()[:4] == ["test1", "44", "24", "–"]


def test_stats_of_what_one_modality_solves(run, shapes_root, tmp_path):
    model = tmp_path / "model"
    save_pretrained(build("tiny"), model)
    arguments = ["--model", model, "--data-root", shapes_root]
    code, out, err = run("data", "stats", *arguments, "--json")
    assert code == 0, err
    counts = json.loads(out)["counts"]
    for split in ("train", "val"):
        audit = json.loads(run("evaluate", *arguments, "--split", split, "--json")[1])["audit"]
        for name in ("num_image_solves", "num_text_solves", "num_shortcut_solvable"):
            assert counts[split][name] == audit[name]
    code, out, _ = run("data", "stats", *arguments, "--split", "val")
    assert code == 0
    assert out.splitlines()[2].startswith("val: of 24 queries, one modality alone solves (target among the best 10) ")


def test_stats_of_broken_annotations_lists_all_problems_on_stderr(run, dress_root):
    file = dress_root / "captions/cap.dress.val.json"
    file.write_text(json.dumps([{"target": "x", "candidate": "y", "captions": ["a", "b"]}]))
    code, out, err = run("data", "stats", "--dataset", "FashionIQ", "--data-root", dress_root)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"{file} (entry 0): candidate 'y' is not in split.dress.val.json; fix: add it to split.dress.val.json",
        f"{file} (entry 0): target 'x' is not in split.dress.val.json; fix: add it to split.dress.val.json",
        f"error: 2 problems in {file}, see above",
    ]


def test_more_than_100_problems_are_counted(run, dress_root):
    file = dress_root / "captions/cap.dress.val.json"
    file.write_text(json.dumps([[]] * 1201))
    code, _, err = run("data", "stats", "--dataset", "FashionIQ", "--data-root", dress_root)
    lines = err.splitlines()
    assert code == 2
    assert len(lines) == 102
    assert lines[-2:] == ["... and 1,101 more", f"error: 1,201 problems in {file}, see above"]


def test_problems_of_several_files_are_counted_by_file(run, dress_root):
    code, _, err = run("evaluate", "--model", "photos", "--dataset", "FashionIQ", "--data-root", dress_root)
    lines = err.splitlines()
    assert code == 2
    assert lines[0].endswith("fix: put it and split.shirt.val.json there, or choose what is: --categories dress")
    assert lines[-1] == "error: 2 problems in 2 files, see above"


@pytest.fixture
def triplets(shapes_root, tmp_path):
    """A CSV file of 24 triplets each of train and val over the pictures of the tiny set."""
    lines = ["reference,text,target,split"]
    for split, place in (("train", "train/0"), ("val", "dev")):
        for entry in json.loads((shapes_root / f"cirr/captions/cap.rc2.{split}.json").read_text()):
            names = [f"{place}/{entry[role]}.png" for role in ("reference", "target_hard")]
            lines.append(f'{names[0]},"{entry["caption"]}",{names[1]},{split}')
    file = tmp_path / "triplets.csv"
    file.write_text("\n".join(lines))
    return file


def test_own_triplets_are_imported_trained_on_and_measured(run, triplets, shapes_root, tmp_path):
    root = tmp_path / "root"
    code, out, err = run("data", "import", triplets, "--images", shapes_root, "--out", root, "--json")
    assert code == 0, err
    assert json.loads(out) == {
        "counts": {
            "train": {"num_queries": 24, "num_gallery": 24},
            "val": {"num_queries": 24, "num_gallery": 24},
        },
        "problems": [],
        "notes": [],
    }
    code, out, err = run("data", "check", "--dataset", "own", "--data-root", root)
    assert code == 0, out
    code, out, err = run(
        "train", "--dataset", "own", "--data-root", root, "--backbone", "tiny", "--num-epochs", 1,
        "--output-dir", tmp_path / "models", "--json",
    )  # fmt: skip
    assert code == 0, err
    trained = json.loads(out)
    code, out, err = run("evaluate", "--model", trained["best"], "--dataset", "own", "--data-root", root, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert (result["num_queries"], result["num_gallery"]) == (24, 24)
    assert result["metrics"] == trained["metrics"]
    assert "dataset:own|split:val|gallery:original|reference:excluded" in result["signature"]


def test_import_says_what_it_made_and_what_comes_next(run, shapes_root, tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("ref_img,text,goal,why\ndev/val-red-ellipse.png,make it blue,dev/val-blue-ellipse.png,[x]\n")
    code, out, err = run(
        "data", "import", file, "--images", shapes_root, "--out", tmp_path / "root", "--gallery", "named",
        "--column", "reference=ref_img", "--column", "target=goal", "--split", "test", "--copy-images",
    )  # fmt: skip
    assert code == 0, err
    assert out.splitlines() == [
        "test: 1 query, 2 images in the gallery",
        "note: there is no column 'split', so all rows are in test; --split 80/20 makes train and val of them",
        "note: columns not used: why",
        f"next: composir data check --dataset own --data-root {tmp_path / 'root'}",
    ]
    assert "images: 2 of 2" in err
    assert (tmp_path / "root/images/dev/val-red-ellipse.png").is_file()


def test_import_lists_every_problem_and_writes_nothing(run, triplets, shapes_root, tmp_path):
    lines = triplets.read_text().splitlines()
    triplets.write_text("\n".join([*lines, "x.png,red,y.png,train", "z.png"]))
    arguments = ["data", "import", triplets, "--images", shapes_root, "--out", tmp_path / "root"]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    printed = [line for line in err.splitlines() if line.startswith(str(tmp_path))]
    assert [line.split(": ")[0] for line in printed] == [f"{triplets} (line {line})" for line in (51, 50, 50)]
    assert err.splitlines()[-1] == f"error: 3 problems in {triplets}, see above"
    code, out, _ = run(*arguments, "--json")
    document = json.loads(out)
    assert code == 2
    assert document["counts"] == {}
    assert [problem["where"] for problem in document["problems"]] == ["line 51", "line 50", "line 50"]
    assert all(set(problem) == {"file", "where", "message", "fix"} for problem in document["problems"])
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "--data-root", "no/where"], ["no/where: no such folder", "fix: pass the folder"]),
        (["stats", "--data-root", "no/where"], ["no/where: no such folder", "fix: pass the folder"]),
        (["import", "no.csv", "--images", "{shapes}", "--out", "no/root"], ["no.csv: cannot be read (No such file"]),
        (["import", "no.csv", "--images", "{shapes}"], ["--out"]),
        (
            ["import", "no.csv", "--images", "{shapes}", "--out", "no/root", "--column", "text"],
            ["--column 'text' has no value", "expected key=value", "fix: --column text=..."],
        ),
        (["check", "--dataset", "CIR", "--data-root", "x"], ["unknown data set 'CIR'", "did you mean 'CIRR'?"]),
        (["stats", "--data-root", "{shapes}", "--split", "vall"], ["CIRR has no split 'vall'", "did you mean 'val'?"]),
        (["stats", "--data-root", "{shapes}", "--split", "test1"], ["holds no annotation file of CIRR", "test1"]),
        (["check", "--data-root", "{shapes}", "--categories", "dress"], ["CIRR has no categories, got dress"]),
    ],
)
def test_a_mistake_is_one_line(run, shapes_root, arguments, words):
    code, out, err = run("data", *(argument.format(shapes=shapes_root) for argument in arguments))
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("error: ")
    assert all(word in err for word in words), err
