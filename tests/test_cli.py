"""The command line as a person and a script meet it."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from composir.cli import main
from composir.errors import ComposirError


@pytest.fixture
def trained(run, shapes_root, tmp_path):
    code, out, err = run(
        "train", "--dataset", "CIRR", "--data-root", shapes_root, "--backbone", "tiny", "--num-epochs", 1,
        "--output-dir", tmp_path / "models", "--json",
    )  # fmt: skip
    assert code == 0, err
    return json.loads(out)


def test_train_prints_one_json_document(trained):
    assert set(trained) == {"run", "best", "epochs", "metrics", "seconds"}
    assert trained["epochs"] == 1
    assert 0 <= trained["metrics"]["recall_at_5"] <= 1


def test_the_published_command_runs_with_every_flag_it_has(run, shapes_root, tmp_path):
    code, out, err = run(
        "train", "--dataset", "CIRR", "--blip-model-name", "blip2_cir_align_prompt", "--backbone", "tiny",
        "--num-epochs", "1", "--batch-size", "64", "--learning-rate", "1e-5", "--loss-align", "0.4",
        "--loss-rtc", "0.4", "--validation-frequency", "1", "--save-training", "--save-best",
        "--target-ratio", "1.25", "--transform", "targetpad", "--num-workers", "4",
        "--data-root", shapes_root, "--output-dir", tmp_path / "models",
    )  # fmt: skip
    assert code == 0, err
    assert "best: " in out
    assert "next: composir evaluate --model" in out


def test_the_batch_that_fits_is_told(run, shapes_root, tmp_path):
    code, _, err = run(
        "train", "--data-root", shapes_root, "--backbone", "tiny", "--max-steps", 1, "--batch-size", "auto",
        "--output-dir", tmp_path / "models",
    )  # fmt: skip
    assert code == 0, err
    assert re.search(r"^batch size: (2|4|8|16|32)$", err, re.MULTILINE)
    code, _, err = run("ablate", "--data-root", shapes_root, "--backbone", "tiny", "--batch-size", "auto")
    assert code == 2
    assert "trainings are compared at one batch size" in err


def test_evaluate_prints_what_the_contract_names(run, trained, shapes_root, tmp_path):
    sheet = tmp_path / "sheet.png"
    code, out, err = run(
        "evaluate", "--model", trained["best"], "--dataset", "cirr", "--data-root", shapes_root,
        "--contact-sheet", sheet, "--num-queries", 3, "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert {"metrics", "intervals", "baselines", "signature", "num_queries", "num_gallery"} <= set(document)
    assert set(document["baselines"]) == {"image_only", "text_only"}
    assert document["metrics"] == trained["metrics"]
    assert (document["num_queries"], document["num_gallery"]) == (24, 12)
    assert sheet.read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("evaluate", "--model", trained["best"], "--dataset", "CIRR", "--data-root", shapes_root)
    assert code == 0
    assert "R_s@1" in out
    assert "image only" in out


def test_evaluation_does_not_depend_on_the_batch(run, trained, shapes_root):
    documents = [
        json.loads(
            run(
                "evaluate", "--model", trained["best"], "--data-root", shapes_root, "--batch-size", size, "--json"
            )[1]
        )
        for size in (1, 7, 64)
    ]  # fmt: skip
    assert documents[0] == documents[1] == documents[2]


def test_keeping_the_reference_changes_figures_and_signature(run, trained, shapes_root):
    plain, kept = (
        json.loads(run("evaluate", "--model", trained["best"], "--data-root", shapes_root, *more, "--json")[1])
        for more in ((), ("--keep-reference",))
    )
    assert plain["signature"] != kept["signature"]
    assert plain["metrics"] != kept["metrics"]


def test_runs_compare_over_queries_and_seeds(run, shapes_root, tmp_path):
    folders = {}
    for name, flag in (("plain", "--no-gated-fusion"), ("gate", "--gated-fusion")):
        for seed in (0, 1):
            out = run(
                "train", "--data-root", shapes_root, "--backbone", "tiny", "--num-epochs", 1, "--seed", seed, flag,
                "--learning-rate", 0.01, "--output-dir", tmp_path / name, "--json",
            )[1]  # fmt: skip
            folders[name, seed] = json.loads(out)["run"]
    plain, gate = (f"{name}={folders[name, 0]},{folders[name, 1]}" for name in ("plain", "gate"))
    code, out, err = run("compare", plain, gate, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert set(document) == {"rows", "differences", "signature", "signature_fields"}
    assert [row["name"] for row in document["rows"]] == ["plain", "gate"]
    assert [run_["seed"] for row in document["rows"] for run_ in row["runs"]] == [0, 1, 0, 1]
    (difference,) = document["differences"]
    assert set(difference) == {
        "a", "b", "metric", "delta", "low", "high", "p_value", "p_adjusted", "num_queries", "num_seeds", "over_seeds",
    }  # fmt: skip
    assert (difference["a"], difference["b"], difference["metric"]) == ("plain", "gate", "mean_r5_rs1")
    assert (difference["num_queries"], difference["num_seeds"]) == (24, 2)
    assert difference["over_seeds"]["test"] == "paired t"
    means = [row["metrics"]["mean_r5_rs1"] for row in document["rows"]]
    assert difference["delta"] == pytest.approx(means[1] - means[0])
    assert "weights" not in document["signature_fields"]

    sources = [f"{name}{seed}={folder}" for (name, seed), folder in folders.items()]
    code, out, _ = run(
        "compare", *sources, "--all-pairs", "--metric", "recall_at_5", "--metric", "recall_at_1", "--json"
    )
    assert code == 0
    assert len(json.loads(out)["differences"]) == 2 * 6  # two metrics of six pairs
    code, out, _ = run("compare", plain, gate)
    assert code == 0
    assert "gate − plain" in out
    assert out.count("dataset:CIRR") == 1


def test_a_run_compares_with_saved_rankings_of_its_own_checkpoint(run, trained, shapes_root, tmp_path):
    file = tmp_path / "rankings.safetensors"
    run("evaluate", "--model", trained["best"], "--data-root", shapes_root, "--save-rankings", file)
    code, out, err = run("compare", trained["run"], file, "--json")
    assert code == 0, err
    (difference,) = json.loads(out)["differences"]
    assert [difference[name] for name in ("delta", "low", "high", "p_value")] == [0, 0, 0, 1]
    kept = tmp_path / "kept.safetensors"
    run("evaluate", "--model", trained["best"], "--data-root", shapes_root, "--keep-reference", "--save-rankings", kept)
    code, out, err = run("compare", file, kept)
    assert (code, out) == (2, "")
    assert f"error: {kept}: reference is 'kept', not 'excluded' as in {file}; " in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--bacbone", "mini"], ["--bacbone", "--backbone"]),
        (["trian"], ["trian", "train"]),
        (["train", "--backbone", "minni"], ["backbone 'minni'", "did you mean 'mini'?"]),
        (["train", "--batch-size", "many"], ["--batch-size", "many"]),
        (["train", "--backbone", "tiny", "--data-root", "no/where"], ["no/where", "no such folder", "--data-root"]),
        (["train", "--config", "no/where.toml"], ["no/where.toml", "recipe file not found"]),
        (["train", "--backbone", "tiny", "--set", "sead=1"], ["unknown key 'sead'", "did you mean 'seed'?"]),
        (["train", "--fusion", "gates"], ["fusion = 'gates'", "expected none, or one or more of gate, attention"]),
        (["train", "--fusion", "gate", "--no-gated-fusion"], ["gated_fusion = false contradicts fusion = 'gate'"]),
        (["train", "--backbone", "tiny", "--set", "seed"], ["--set 'seed' has no value", "expected key=value"]),
        (["train", "--resume", "no/run"], ["no/run", "holds no state to resume from"]),
        (["evaluate", "--model", "no/model", "--data-root", "no/where"], ["no/where", "no such folder"]),
        (["data", "check", "--dataset", "CIR", "--data-root", "x"], ["unknown data set 'CIR'", "did you mean 'CIRR'?"]),
        (["data", "scenes"], ["--out"]),
        (["compare"], ["SOURCE..."]),
        (["compare", "no/run", "no/other"], ["no/run: no such file or folder", "NAME=PATH[,PATH...]"]),
        (["compare", "a=.", "=x"], ["'=x' has no name where one must be"]),
    ],
)
def test_a_mistake_is_one_line_with_the_fix_and_exit_code_2(run, monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("error: ")
    assert all(word in err for word in words), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backbone", ["pretrain", "pretrain_vitL"])
def test_a_backbone_without_weights_says_where_they_come_from(run, shapes_root, tmp_path, backbone):
    code, _, err = run("train", "--backbone", backbone, "--data-root", shapes_root, "--output-dir", tmp_path / "models")
    assert code == 2
    assert "needs pretrained weights" in err
    assert "--backbone mini" in err
    assert len(err.strip().splitlines()) == 1


def test_a_broken_image_is_one_line_and_nothing_is_trained(run, shapes_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shapes_root, root)
    image = root / "train/0/train-red-ellipse.png"
    image.write_bytes(image.read_bytes()[:70])
    code, _, err = run("train", "--backbone", "tiny", "--data-root", root, "--output-dir", tmp_path / "models")
    assert code == 2
    assert "train-red-ellipse.png" in err
    assert "fix: " in err
    assert err.strip().splitlines()[-1].startswith("error: 1 problem: ")
    assert not list((tmp_path / "models").glob("*"))


def test_a_model_without_the_learning_rate_it_needs_is_warned_of(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _, _, err = run("train", "--backbone", "mini", "--learning-rate", "1e-5", "--data-root", "no/where")
    assert "note: --learning-rate 1e-05 is meant for the pretrained BLIP-2 backbones" in err


def test_selfcheck_json(run):
    code, out, _ = run("selfcheck", "--json")
    assert code == 0
    assert json.loads(out) == {"num_parameters": 2_952_193, "passed": True}


def test_debug_shows_where_an_error_came_from(tmp_path):
    with pytest.raises(ComposirError):
        main(["train", "--backbone", "minni", "--debug"])


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "ablate",
        "evaluate",
        "compare",
        "quickstart",
        "selfcheck",
        "data scenes",
        "data check",
        "data stats",
        "data import",
    ],
)
def test_every_command_explains_itself(run, command):
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "Usage: composir" in out


def test_features_fills_the_cache_that_training_reads(run, shapes_root, tmp_path):
    flags = ["--backbone", "tiny", "--data-root", shapes_root, "--cache-dir", tmp_path / "cache"]
    code, printed, _ = run("features", *flags, "--split", "val", "--json")
    document = json.loads(printed)
    assert code == 0
    assert {name: document[name] for name in ("num_images", "num_computed", "bytes")} == {
        "num_images": 12,
        "num_computed": 12,
        "bytes": 12 * 9 * 24 * 2,
    }
    assert document["images_per_second"] > 0
    code, printed, _ = run("features", *flags)
    assert "24 images, 10.4 kB" in printed
    assert "12 computed now" in printed
    told = run("train", *flags, "--output-dir", tmp_path / "models", "--num-epochs", "1")
    assert told[0] == 0
    assert "image tokens" not in told[2]
    code, _, error = run("train", *flags, "--cache", "memory")
    assert code == 2
    assert "--cache memory keeps nothing in --cache-dir" in error


def test_train_and_features_do_without_missing_images_on_request(run, shapes_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shapes_root, root)
    (root / "train/0/train-red-ellipse.png").unlink()  # in the image set of each of the 12 queries about ellipses
    flags = ("--backbone", "tiny", "--data-root", root)
    left = [
        "train: 12 of 24 queries and 11 of 12 images are left",
        "val: 24 of 24 queries and 12 of 12 images are left",
    ]
    code, _, err = run("features", *flags)
    assert code == 2
    assert "11 of 12 images are there" in err
    assert "--skip-missing-images" in err
    code, out, err = run("features", *flags, "--skip-missing-images", "--json")
    assert code == 0, err
    assert err.splitlines()[-2:] == left
    assert json.loads(out)["num_images"] == 23
    assert json.loads(out)["left"]["train"] == {"num_queries": 12, "of_queries": 24, "num_images": 11, "of_images": 12}
    train = ("train", *flags, "--output-dir", tmp_path / "models", "--max-steps", 1, "--batch-size", 4)
    code, _, err = run(*train)
    assert code == 2
    assert "--skip-missing-images" in err
    code, out, err = run(*train, "--skip-missing-images")
    assert code == 0, err
    assert err.splitlines()[:2] == left
    assert " --skip-missing-images" in " ".join(out.split("next: ")[1].split())
