"""The command line as a person and a script meet it."""

from __future__ import annotations

import errno
import inspect
import json
import re
import shlex
import shutil
import typing

import pytest
import torch
import typer
from rich.table import Table
from rich.text import Text
from safetensors.torch import load_file

from composir.cli import main
from composir.cli.common import app
from composir.cli.console import Bars, out
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
        (
            ["train", "--backbone", "tiny", "--fusion", "gates"],
            ["fusion = 'gates'", "expected none, or one or more of gate, attention"],
        ),
        (
            ["train", "--backbone", "tiny", "--fusion", "gate", "--no-gated-fusion"],
            ["gated_fusion = false contradicts fusion = 'gate'"],
        ),
        (["train", "--backbone", "tiny", "--set", "seed"], ["--set 'seed' has no value", "expected key=value"]),
        (["train", "--resume", "no/run"], ["no/run: no such file or folder; expected a run folder with last/training"]),
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


TINY = ("--backbone", "tiny")
ODD_NAME = """a  [lr=1] [/b] [bold] :star: it's "x" {task}"""


def next_command(printed):
    """Return the words of the command that a line offers, as a shell reads them."""
    (line,) = (line for line in printed.splitlines() if line.startswith("next: "))
    words = shlex.split(line.removeprefix("next: "))
    assert words[0] == "composir"
    return words[1:]


def test_paths_print_as_they_are_and_commands_can_be_pasted(run, shapes_root, tmp_path):
    odd = tmp_path / ODD_NAME
    root = odd / "root"
    shutil.copytree(shapes_root, root)
    training = ("train", "--data-root", root, "--backbone", "tiny", "--max-steps", 1, "--output-dir", odd / "models")
    code, printed, err = run(*training)
    assert code == 0, err
    (folder,) = (odd / "models").iterdir()
    assert printed.startswith(f"run: {folder}\nbest: {folder / 'best'}\n")
    assert f"run folder: {folder}\n" in err
    evaluation = next_command(printed)
    assert evaluation == [
        "evaluate", "--model", str(folder / "best"), "--dataset", "CIRR", "--data-root", str(root)
    ]  # fmt: skip
    code, printed, err = run(*evaluation, "--contact-sheet", odd / "sheet.png")
    assert code == 0, err
    assert f"contact sheet: {odd / 'sheet.png'}\n" in printed

    code, printed, err = run("index", root / "dev", "--model", folder / "best", "--out", odd / "index")
    assert code == 0, err
    assert f"12 pictures in {odd / 'index'} (" in printed
    assert next_command(printed)[:2] == ["search", str(odd / "index")]
    code, printed, err = run("search", odd / "index", "--text", "red", "--top-k", 1)
    assert code == 0, err
    assert str(root / "dev") in printed

    table = tmp_path / "t.csv"
    table.write_text("reference,text,target\nval-red-ellipse.png,blue,val-blue-ellipse.png\n")
    code, printed, err = run("data", "import", table, "--images", root / "dev", "--out", odd / "own")
    assert code == 0, err
    code, printed, err = run(*next_command(printed))
    assert code == 0, err
    (root / "dev/val-red-ellipse.png").unlink()
    code, printed, err = run("data", "check", "--dataset", "own", "--data-root", odd / "own")
    assert code == 2
    assert printed.startswith(f"{root / 'dev'} (")
    assert "val-red-ellipse.png" in printed.splitlines()[0]

    code, printed, err = run("train", "--resume", odd / "index")
    assert (code, printed) == (2, "")
    assert err.startswith(f"error: {odd / 'index'}: holds no state to resume from; ")
    code, _, err = run("train", "--resume", folder, "--seed", 1)
    assert code == 2
    assert shlex.split(err.split("fix: ")[1]) == ["composir", "train", "--resume", str(folder)]


def test_bars_and_tables_show_names_as_they_are(capsys):
    view = Table("name", title=ODD_NAME)
    view.add_row(ODD_NAME)
    out.print(view)
    with Bars() as bars:
        bars.tell(ODD_NAME, 1, 2, note=ODD_NAME)
    printed = capsys.readouterr()
    assert printed.out.count(ODD_NAME) == 2
    assert printed.err.count(ODD_NAME[:25]) >= 2  # where the terminal is narrow their ends are cut off


def test_help_prints_its_brackets():
    """Help is the one text in which markup is read; what a command explains must not be taken for it."""
    commands, texts = [typer.main.get_command(app)], []
    while commands:
        one = commands.pop()
        commands += getattr(one, "commands", {}).values()
        texts += [one.help or "", *(getattr(parameter, "help", None) or "" for parameter in one.params)]
    assert len(texts) > 100
    assert [text for text in texts if Text.from_markup(text).plain != text.replace("\\[", "[")] == []


def test_without_file_locks_every_command_says_which_folder_to_move(run, trained, shapes_root, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    data, tiny = ("--data-root", shapes_root), ("--backbone", "tiny")
    index, cache, models = tmp_path / "index", tmp_path / "cache", tmp_path / "more"
    run("index", shapes_root / "dev", "--model", trained["best"], "--out", index)
    monkeypatch.setattr("composir.files.fcntl.lockf", refuse)
    for command, place, fix in (
        (("evaluate", "--model", trained["best"], *data, "--cache-dir", cache), cache, "--cache-dir"),
        (("features", *tiny, *data, "--cache-dir", cache), cache, "--cache-dir"),
        (("train", *tiny, *data, "--output-dir", models), models, "--output-dir"),
        (("train", "--resume", trained["run"]), trained["run"], "copy its folder there"),
        (("index", shapes_root / "dev", "--out", index), index, "--out FOLDER"),
        (("search", index, "--text", "red"), index, "--out FOLDER"),
    ):
        code, _, err = run(*command)
        assert code == 2, command
        assert f"error: {place}" in err
        assert "this disk grants no file locks (No locks available)" in err
        assert fix in err.split("fix: ")[1]
        assert len(err.splitlines()) == 1
    assert not models.exists() or not list(models.iterdir())


def number_options():
    """Yield command, option and type of everything on the command line that takes a number."""
    commands = [((), typer.main.get_command(app))]
    while commands:
        words, one = commands.pop()
        commands += [((*words, name), inner) for name, inner in getattr(one, "commands", {}).items()]
        hints = typing.get_type_hints(inspect.unwrap(one.callback)) if words and one.callback else {}
        for parameter in one.params:
            kinds = {hints.get(parameter.name), *typing.get_args(hints.get(parameter.name))} & {int, float}
            for kind in kinds:
                yield words, parameter.opts[0], kind


NUMBER_OPTIONS = {" ".join((*words, option)): (words, option, kind) for words, option, kind in number_options()}


def test_the_options_that_take_a_number_are_found():
    assert len(NUMBER_OPTIONS) > 40
    for name in ("train --learning-rate", "quickstart --minutes"):
        assert NUMBER_OPTIONS[name][2] is float
    for name in ("benchmark gate --token-width", "search --top-k"):
        assert NUMBER_OPTIONS[name][2] is int


@pytest.mark.parametrize("name", NUMBER_OPTIONS)
def test_a_number_beyond_all_sense_is_one_line_that_names_the_setting(run, shapes_root, name, monkeypatch, tmp_path):
    words, option, kind = NUMBER_OPTIONS[name]
    monkeypatch.chdir(tmp_path)
    needed = {
        ("features",): ("--data-root", shapes_root),
        ("search",): ("an.index",),
        ("train",): ("--backbone", "tiny"),
    }.get(words, ())
    for value in ("9" * 30, "9" * 5000, "-9999999", *(("inf", "-inf", "nan", "1e400") if kind is float else ())):
        code, printed, err = run(*words, *needed, option, value)
        assert (code, printed) == (2, ""), (value, err)
        assert len(err.splitlines()) == 1
        assert option in err or option.removeprefix("--").replace("-", "_") in err, err
        assert "missing" not in err.lower(), err
        assert len(err) < 400, err
        if len(value) < 100 and kind is int:
            assert re.search(r"at least -?\d+ and at most [\d,]+|expected a number from \d+ to [\d,]+ ", err), err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", *TINY, "--set", "betas=[1.0,2.0]"],
            "betas = [1.0, 2.0]: expected two numbers, at least 0 and below 1",
        ),
        (
            ["train", *TINY, "--set", "betas=[nan,0.9]"],
            "betas = [nan, 0.9]: expected two numbers, at least 0 and below 1",
        ),
        (
            ["train", *TINY, "--set", "learning_rate=inf"],
            "learning_rate = inf: expected a number, above 0 and at most 1,000",
        ),
        (["train", *TINY, "--set", f"seed={'9' * 5000}"], "seed = '9999"),
        (["train", "--batch-size", "9" * 5000], "is not a number and not auto"),
        (
            ["ablate", "--seeds", "9" * 20],
            "--seeds '99999999999999999999' is out of range; expected how many, from 1 to",
        ),
        (["ablate", "--seeds", "0,-1"], "--seeds '0,-1' is out of range"),
        (
            ["ablate", "--seeds", "9" * 5000],
            "are no numbers; expected how many, from 1 to 1,000, or which ones from 0 to",
        ),
        (["ablate", *TINY, "--vary", "eps=1e-8,nan"], "eps = nan: expected a number, above 0 and at most 1"),
        (["benchmark", "search", "--images", "9" * 5000], "expected whole numbers from 1 to 1,000,000,000 with commas"),
        (["benchmark", "search", "--vectors-per-image", "0"], "--vectors-per-image is '0'"),
        (["serve", "x", "--port", "70000"], "--port: expected a number from 0 to 65,535 (got '70000')"),
    ],
)
def test_numbers_in_words_have_their_range_too(run, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*arguments)
    assert code == 2
    assert words in err
    assert len(err.splitlines()) == 1
    assert len(err) < 400


def test_a_recipe_with_a_number_too_long_to_be_read_is_named(run, tmp_path):
    (tmp_path / "recipe.toml").write_text(f"seed = {'9' * 5000}")
    code, _, err = run("train", "--config", tmp_path / "recipe.toml")
    assert code == 2
    assert f"error: {tmp_path}/recipe.toml: is not TOML: " in err


def test_a_batch_of_more_than_there_are_is_all_there_are(run, shapes_root, tmp_path):
    arguments = ("train", "--data-root", shapes_root, "--backbone", "tiny", "--num-epochs", 1)
    found = []
    for size in (24, 100_000):
        code, printed, err = run(*arguments, "--batch-size", size, "--output-dir", tmp_path / str(size), "--json")
        assert code == 0, err
        assert ("note: batch size 100,000 is more than there are: a batch is all 24 triplets\n" in err) == (size > 24)
        found.append(load_file(f"{json.loads(printed)['run']}/last/model/model.safetensors"))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_one_triplet_is_the_reason_that_is_given(run, shapes_root, tmp_path):
    shutil.copytree(shapes_root, tmp_path / "root")
    file = tmp_path / "root/cirr/captions/cap.rc2.train.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:1]))
    arguments = ("train", "--data-root", tmp_path / "root", "--backbone", "tiny", "--output-dir", tmp_path / "models")
    code, _, err = run(*arguments, "--batch-size", "auto")
    assert code == 2
    assert f"error: {file}: there is one triplet, and a batch takes two or more, each other's negatives; fix: " in err
    code, _, err = run(*arguments, "--max-steps", 1)
    assert code == 0, err
    assert "note: batch size 8 is more than there are: a batch is all 1 triplet\n" in err


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
    _, _, err = run("train", "--backbone", "mini", "--learning-rate", "1e-5")
    told = "note: a learning rate of 1e-05 is meant for the pretrained BLIP-2 backbones"
    assert told in err
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("learning_rate = 1e-5\n")
    _, _, err = run("train", "--config", recipe, "--backbone", "mini")
    assert told in err


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
    code, out, err = run(*train, "--skip-missing-images", "--text-rule", "in a prompt")
    assert code == 0, err
    assert err.splitlines()[:2] == left
    assert " --text-rule 'in a prompt' --skip-missing-images" in " ".join(out.split("next: ")[1].split())
