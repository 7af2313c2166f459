"""`composir evaluate` and `composir submit` as a person and a script meet them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """An untrained checkpoint: what it finds is of no importance here."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "best"
    save_pretrained(build("tiny"), folder)
    return folder


@pytest.fixture
def evaluated(run, model, shapes_root, tmp_path):
    """The document of `evaluate`, and the file of rankings beside it."""
    rankings = tmp_path / "val.safetensors"
    code, out, err = run(
        "evaluate", "--model", model, "--data-root", shapes_root, "--save-rankings", rankings, "--json"
    )  # fmt: skip
    assert code == 0, err
    return json.loads(out), rankings


def test_a_dry_run_of_a_submission_scores_what_the_model_does(run, model, evaluated, shapes_root, tmp_path):
    code, out, err = run(
        "submit", "--model", model, "--dataset", "cirr", "--data-root", shapes_root, "--split", "val",
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert set(document) == {"files", "problems"}
    assert document["problems"] == []
    assert [file.split("/")[-1] for file in document["files"]] == [
        "cirr_val_recall.json",
        "cirr_val_recall_subset.json",
    ]
    arguments = [word for file in document["files"] for word in ("--predictions", file)]
    code, out, err = run("evaluate", *arguments, "--data-root", shapes_root, "--json")
    assert code == 0, err
    scored = json.loads(out)
    assert scored["metrics"] == evaluated[0]["metrics"]
    assert scored["intervals"] == evaluated[0]["intervals"]
    assert "baselines" not in scored
    assert scored["signature_fields"]["weights"].startswith("predictions-")
    code, out, _ = run("evaluate", *arguments, "--data-root", shapes_root)
    assert code == 0
    assert "R_s@1" in out
    assert "image only" not in out


def test_predictions_need_no_images(run, model, shapes_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shapes_root / "cirr", root / "cirr")
    run("submit", "--model", model, "--data-root", shapes_root, "--split", "val", "--out", tmp_path / "out")
    code, out, err = run(
        "evaluate", "--predictions", tmp_path / "out/cirr_val_recall.json", "--data-root", root, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["num_queries"] == 24


def test_predictions_of_circo_need_no_list_of_its_images(run, tmp_path):
    """Of query i the target comes at rank i + 1, alone: mAP@50 = mean of 1, 1/2 and 1/3."""
    root, file = tmp_path / "CIRCO", tmp_path / "predictions.json"
    queries = [
        {
            "reference_img_id": 100 + number,
            "target_img_id": 200 + number,
            "relative_caption": "is red",
            "shared_concept": "a dog",
            "gt_img_ids": [200 + number],
            "semantic_aspects": [],
            "id": number,
        }
        for number in range(3)
    ]
    (root / "annotations").mkdir(parents=True)
    (root / "annotations/val.json").write_text(json.dumps(queries))
    lists = {str(i): [*range(1000, 1000 + i), 200 + i, *range(2000, 2049 - i)] for i in range(3)}
    file.write_text(json.dumps(lists))
    flags = ("--dataset", "CIRCO", "--data-root", root, "--split", "val")
    code, out, err = run("evaluate", "--predictions", file, *flags, "--json")
    assert code == 0, err
    missing = root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    note = f"note: {missing} is not there: whether the images named are in the gallery was not checked"
    assert err.splitlines() == [note]
    document = json.loads(out)
    assert document["metrics"]["map_at_50"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert (document["num_queries"], document["num_gallery"]) == (3, None)
    assert "gallery:original|" in document["signature"]
    assert "text:relative-caption|" in document["signature"]
    rule = ("--text-rule", "concept and caption")
    other = json.loads(run("evaluate", "--predictions", file, *flags, *rule, "--json")[1])
    assert "text:concept-and-caption|" in other["signature"]
    assert other["metrics"] == document["metrics"]
    saved = tmp_path / "saved.safetensors"
    code, out, _ = run("evaluate", "--predictions", file, *flags, "--save-rankings", saved)
    assert (code, "gallery not listed" in " ".join(out.split())) == (0, True)
    assert json.loads(run("evaluate", "--rankings", saved, "--json")[1]) == document
    code, out, err = run("submit", "--validate", file, *flags)
    assert (code, out.strip(), err.strip()) == (0, "0 problems in 1 file", note)
    file.write_text(json.dumps({**lists, "2": lists["2"][:-1]}))
    code, out, _ = run("submit", "--validate", file, *flags)
    assert code == 2
    assert "(query 2): holds 49 names, expected 50" in out
    code, _, err = run("evaluate", "--model", "photos", *flags)
    assert code == 2
    assert f"{missing}: the file is missing" in err


def notes_in(err):
    """The lines of stderr that are notes, not progress."""
    return [line for line in err.splitlines() if line.startswith("note: ")]


def test_a_model_that_was_trained_on_other_sentences_is_told_of(run, model, shapes_root, tmp_path):
    trained = shutil.copytree(model, tmp_path / "best")
    flags = ("--model", trained, "--data-root", shapes_root)
    asked = ("evaluate", *flags, "--json")
    recipe = trained / "recipe.toml"
    note = "note: trained with --text-rule {!r}, and asked with {!r}"
    for text_rule, given, expected in [
        ("", (), []),
        ("in a prompt", (), [note.format("in a prompt", "as annotated")]),
        ("in a prompt", ("--text-rule", "in a prompt"), []),
        ("", ("--text-rule", "in a prompt"), [note.format("as annotated", "in a prompt")]),
    ]:
        recipe.write_text(f'dataset = "CIRR"\ntext_rule = "{text_rule}"\n')
        code, out, err = run(*asked, *given, "--save-rankings", tmp_path / f"{bool(given)}.safetensors")
        assert (code, notes_in(err)) == (0, expected)
        assert f"text:{'in-a-prompt' if given else 'as-annotated'}|" in json.loads(out)["signature"]
    recipe.write_text('dataset = "LaSCo"\n')
    assert notes_in(run(*asked)[2]) == []
    code, _, err = run("compare", tmp_path / "False.safetensors", tmp_path / "True.safetensors")
    assert (code, "text is 'in a prompt', not 'as annotated'" in err) == (2, True), err
    recipe.write_text('dataset = "CIRR"\ntext_rule = "in a prompt"\n')
    _, _, err = run("submit", *flags, "--split", "val", "--out", tmp_path / "submission")
    assert notes_in(err) == [note.format("in a prompt", "as annotated")]


def test_missing_images_are_skipped_on_request_and_stay_in_the_signature(run, model, shapes_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shapes_root, root)
    (root / "dev/val-red-ellipse.png").unlink()  # a member of the subset of every query about an ellipse
    code, _, err = run("evaluate", "--model", model, "--data-root", root)
    assert code == 2
    assert "11 of 12 images are there" in err
    assert "--skip-missing-images" in err
    code, out, err = run("evaluate", "--model", model, "--data-root", root, "--skip-missing-images", "--json")
    assert code == 0, err
    assert "val: 12 of 24 queries and 11 of 12 images are left" in err.splitlines()
    document = json.loads(out)
    assert (document["num_queries"], document["num_gallery"]) == (12, 11)
    assert "gallery:original-less-missing,-12-of-24-queries,-11-of-12-images|" in document["signature"]


def test_images_in_another_tree_are_found_and_the_tree_is_named(run, model, shapes_root, tmp_path, caplog):
    root = tmp_path / "root"
    shutil.copytree(shapes_root / "cirr", root / "cirr")
    shutil.copytree(shapes_root / "dev", root / "cirr/img_raw/dev")
    code, out, err = run("evaluate", "--model", model, "--data-root", root, "--json")
    assert code == 0, err
    assert json.loads(out)["num_gallery"] == 12
    assert caplog.messages == [f"{root}: 12 of 12 images were found in cirr/img_raw/dev/, not in dev/ as published"]


def test_predictions_on_the_real_annotations_have_the_known_answer(run, real_annotations, tmp_path):
    """Of query i the target has rank i mod 60 + 1, and i mod 5 + 1 in its subset; 4,181 = 69 * 60 + 41 queries."""
    home = real_annotations / "cirr_dataset/cirr"
    queries = json.loads((home / "captions/cap.rc2.val.json").read_text())
    gallery = list(json.loads((home / "image_splits/split.rc2.val.json").read_text()))
    files = {name: {"version": "rc2", "metric": name} for name in ("recall", "recall_subset")}
    for number, query in enumerate(queries):
        reference, target = query["reference"], query["target_hard"]
        for content, names, place, depth in (
            (files["recall"], gallery[:60], number % 60, 50),
            (files["recall_subset"], query["img_set"]["members"], number % 5, 3),
        ):
            order = [name for name in names if name not in (reference, target)]
            order.insert(place, target)
            content[str(query["pairid"])] = order[:depth]
    arguments = []
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        arguments += ["--predictions", tmp_path / f"{name}.json"]
    code, out, err = run("evaluate", *arguments, "--data-root", real_annotations, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["num_queries"], document["num_gallery"]) == (4181, 2297)
    expected = {f"recall_at_{k}": (69 * k + min(k, 41)) / 4181 for k in (1, 5, 10, 50)}
    expected |= {f"recall_subset_at_{k}": (836 * k + min(k, 1)) / 4181 for k in (1, 2, 3)}
    assert {key: document["metrics"][key] for key in expected} == pytest.approx(expected)


def test_saved_rankings_give_the_same_document_without_model_and_data(run, evaluated, shapes_root):
    document, rankings = evaluated
    for more in ((), ("--data-root", shapes_root)):
        code, out, err = run("evaluate", "--rankings", rankings, *more, "--json")
        assert code == 0, err
        assert json.loads(out) == document
    code, out, _ = run("evaluate", "--rankings", rankings)
    assert code == 0
    assert "of 24 queries, one modality alone solves" in out
    code, _, err = run("evaluate", "--rankings", rankings, "--data-root", shapes_root, "--keep-reference")
    assert code == 2
    assert "exclude_reference is True and False" in err


def test_what_cannot_be_written_is_one_line(run, evaluated, tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "val.safetensors"
    code, _, err = run("evaluate", "--rankings", evaluated[1], "--save-rankings", place)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"error: {place.parent}: File exists; "
        "fix: check the path, its permissions and the space on its disk; --debug shows where it happened"
    )


def test_a_report_has_pictures_where_there_is_a_data_root(run, evaluated, shapes_root, tmp_path):
    document, rankings = evaluated
    for more, has_pictures in (((), False), (("--data-root", shapes_root), True)):
        code, out, err = run("evaluate", "--rankings", rankings, *more, "--report", tmp_path / "report")
        assert code == 0, err
        page = (tmp_path / "report" / "index.html").read_text(encoding="utf-8")
        assert f"report: {tmp_path / 'report' / 'index.html'}" in out
        assert f'<data value="{document["metrics"]["recall_at_5"]}" data-path="metrics/recall_at_5">' in page
        assert ("data:image/jpeg;base64," in page) == has_pictures
        assert ("Names stand for the pictures." in page) != has_pictures


def test_a_contact_sheet_can_be_drawn_from_saved_rankings(run, evaluated, shapes_root, tmp_path):
    sheet = tmp_path / "sheet.png"
    code, out, err = run("evaluate", "--rankings", evaluated[1], "--data-root", shapes_root, "--contact-sheet", sheet)
    assert code == 0, err
    assert f"contact sheet: {sheet}" in out.replace("\n", "")
    assert sheet.read_bytes().startswith(b"\x89PNG")
    code, _, err = run("evaluate", "--rankings", evaluated[1], "--contact-sheet", sheet)
    assert code == 2
    assert "--data-root is missing" in err


@pytest.fixture(scope="session")
def matching_model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("matching") / "best"
    save_pretrained(build("tiny", matching_head=True), folder)
    return folder


def test_reranking_shows_its_ceiling_and_compares_with_nothing_plain(run, matching_model, shapes_root, tmp_path):
    flags = ("evaluate", "--model", matching_model, "--data-root", shapes_root)
    plain = json.loads(run(*flags, "--json")[1])
    rankings = tmp_path / "reranked.safetensors"
    code, out, err = run(*flags, "--rerank", 5, "--batch-size", 7, "--save-rankings", rankings, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["rerank"] == {
        "num_candidates": 5,
        "ceiling": plain["metrics"]["recall_at_5"],
        "first_stage": plain["metrics"],
    }
    assert document["metrics"]["recall_at_5"] == plain["metrics"]["recall_at_5"]  # the same five in another order
    assert document["metrics"] != plain["metrics"]
    assert document["signature_fields"]["rerank"] == "matching head, best 5"
    assert "rerank" not in plain["signature_fields"]
    assert json.loads(run("evaluate", "--rankings", rankings, "--json")[1]) == document
    code, out, _ = run(*flags, "--rerank", 5)
    assert code == 0
    assert "the best 5 of each query are re-ranked" in out


def test_a_head_that_was_never_trained_does_not_rank(run, model, shapes_root):
    code, out, err = run("evaluate", "--model", model, "--data-root", shapes_root, "--rerank", 50)
    assert (code, out) == (2, "")
    assert "the tiny model has no trained matching head, and would re-rank with noise" in err
    assert "fix: leave out --rerank" in err
    code, _, err = run("evaluate", "--rankings", "r.safetensors", "--rerank", 50)
    assert code == 2
    assert "--rerank needs a model" in err


def test_validate_lists_what_the_server_would_not_take(run, model, shapes_root, tmp_path):
    run("submit", "--model", model, "--data-root", shapes_root, "--split", "val", "--out", tmp_path)
    file = tmp_path / "cirr_val_recall.json"
    flags = ("submit", "--validate", file, "--dataset", "CIRR", "--data-root", shapes_root, "--split", "val")
    code, out, _ = run(*flags)
    assert (code, out.strip()) == (0, "0 problems in 1 file")
    content = json.loads(file.read_text())
    content["version"] = "rc1"
    content["100"][0] = content["100"][1]
    file.write_text(json.dumps(content))
    code, out, _ = run(*flags, "--json")
    assert code == 2
    problems = json.loads(out)["problems"]
    assert [problem["where"] for problem in problems] == ["version", "query 100"]
    assert all(set(problem) == {"file", "where", "message", "fix"} for problem in problems)
    code, out, _ = run(*flags)
    assert code == 2
    assert "2 problems in 1 file" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["evaluate", "--model", "photos", "--data-root", "x", "--text-only", "t.json"],
            "--text-only goes with --predictions; expected files of predictions for both; fix: leave it out",
        ),
        (["evaluate", "--data-root", "x"], "nothing to do was given; expected exactly one of --model, --predictions"),
        (
            ["evaluate", "--model", "x", "--rankings", "y", "--data-root", "x"],
            "--model and --rankings were given; expected exactly one of",
        ),
        (["evaluate", "--model", "x"], "--data-root is missing"),
        (["evaluate", "--rankings", "none.safetensors"], "none.safetensors: no such file"),
        (["submit", "--data-root", "x"], "nothing to do was given; expected exactly one of --model, --validate"),
        (["submit", "--model", "x", "--data-root", "x"], "--out is missing"),
        (
            [
                "submit",
                "--model",
                "photos",
                "--dataset",
                "fashioniq",
                "--data-root",
                Path(__file__).parent,
                "--out",
                "o",
            ],
            "FashionIQ has no test server",
        ),
    ],
)
def test_mistakes_in_the_flags(run, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_split_with_hidden_answers_cannot_be_scored(run, model, shapes_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shapes_root, root)
    for folder, kind in (("captions", "cap"), ("image_splits", "split")):
        content = json.loads((root / f"cirr/{folder}/{kind}.rc2.val.json").read_text())
        if kind == "cap":
            for entry in content:
                del entry["target_hard"], entry["target_soft"], entry["img_set"]["target_rank"]
        (root / f"cirr/{folder}/{kind}.rc2.test1.json").write_text(json.dumps(content))
    code, _, err = run("evaluate", "--model", model, "--data-root", root, "--split", "test1")
    assert code == 2
    assert "24 of 24 queries have no target: their answers are hidden" in err
    code, out, err = run("submit", "--model", model, "--data-root", root, "--out", tmp_path / "out", "--json")
    assert code == 0, err
    assert len(json.loads(out)["files"]) == 2


def test_other_scorings_rank_otherwise_and_say_so(run, model, evaluated, shapes_root, tmp_path):
    plain, rankings = evaluated
    code, out, err = run(
        "evaluate", "--model", model, "--data-root", shapes_root, "--scoring", "local", "--json",
        "--save-rankings", tmp_path / "local.safetensors",
    )  # fmt: skip
    assert code == 0, err
    local = json.loads(out)
    assert local["signature_fields"]["weights"] == plain["signature_fields"]["weights"] + "-local"
    assert local["metrics"] != plain["metrics"]
    code, out, err = run("compare", rankings, tmp_path / "local.safetensors", "--json")
    assert code == 0, err
    code, _, err = run("evaluate", "--model", model, "--data-root", shapes_root, "--scoring", "locl")
    assert code == 2
    assert "unknown scoring 'locl'; expected global, local, both" in err
