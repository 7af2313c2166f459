"""What ``--help`` says, and what a command imports: it answers at once, and a search takes no training's libraries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from PIL import Image

from composir.cli import choices
from composir.cli.common import app
from composir.data import DATASETS, TRANSFORMS
from composir.losses import LOSSES
from composir.models.backbones import BACKBONES, build
from composir.models.checkpoint import save_pretrained
from composir.models.fusion import FUSIONS
from composir.models.heads import HEADS
from composir.search import INDEXES, index_folder
from composir.training import Recipe, load_recipe

WATCHED = (
    "torch",
    "transformers",
    "matplotlib",
    "scipy",
    "accelerate",
    "tensorboard",
    "sentence_transformers",
    "sympy",
)


def commands(group=None, path=()) -> Iterator[tuple[str, ...]]:
    """Every command and group of commands, as one calls it."""
    group = group or typer.main.get_command(app)
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def imported_by(code: str, *arguments: object) -> set[str]:
    """Return those of ``WATCHED`` that a process of its own has imported when ``code`` has run."""
    ending = f"\nimport json; print(json.dumps([name for name in {WATCHED!r} if name in sys.modules]))"
    done = subprocess.run(
        [sys.executable, "-c", code + ending, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


RUN = """
import sys
from composir.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def test_help_of_every_command_imports_no_torch():
    paths = list(commands())
    assert {("search",), ("data", "check"), ("benchmark", "train")} < set(paths)
    code = f"""
import sys
from composir.cli import main
for path in {paths!r}:
    try:
        main([*path, "--help"])
    except SystemExit as stop:
        assert not stop.code, path
"""
    assert imported_by(code) == set()


@pytest.mark.parametrize(
    ("named", "table"),
    [
        (choices.DATASETS, DATASETS),
        (choices.SUBMITTED, [name for name, one in DATASETS.items() if one.submitted]),
        (choices.TRANSFORMS, TRANSFORMS),
        (choices.BACKBONES, BACKBONES),
        (choices.FUSIONS, FUSIONS),
        (choices.HEADS, HEADS),
        (choices.LOSSES, LOSSES),
        (choices.INDEXES, INDEXES),
    ],
    ids=["DATASETS", "SUBMITTED", "TRANSFORMS", "BACKBONES", "FUSIONS", "HEADS", "LOSSES", "INDEXES"],
)
def test_help_names_what_the_tables_have(named, table):
    assert set(named) == set(table), "what is a line in the table is a line in composir/cli/choices.py"
    assert len(named) == len(table)


@pytest.mark.parametrize(
    ("command", "tables"),
    [
        (("train",), (DATASETS, TRANSFORMS, BACKBONES, FUSIONS, HEADS, LOSSES)),
        (("features",), (DATASETS, BACKBONES)),
        (("evaluate",), (DATASETS,)),
        (("data", "check"), (DATASETS,)),
        (("index",), (INDEXES,)),
    ],
    ids=lambda one: " ".join(one) if isinstance(one[0], str) else "",
)
def test_the_choices_stand_in_the_help(run, monkeypatch, command, tables):
    monkeypatch.setenv("COLUMNS", "300")
    _, out, _ = run(*command, "--help")
    assert set().union(*tables) <= set(re.findall(r"[\w-]+", out))


def test_what_one_starts_with_comes_first(run):
    code, out, err = run()
    assert (code, err) == (0, "")
    assert (code, out, err) == run("--help")
    panels = re.findall(r"─ ([A-Z][\w ]+) ─", out)
    assert panels == ["Options", "Start here", "Your own pictures", "Models", "Data sets and measurements"]


@pytest.mark.parametrize("group", ["data", "benchmark"])
def test_a_group_alone_is_its_help(run, group):
    assert run(group) == run(group, "--help")
    assert run(group)[0] == 0


DEFAULTS = {
    "train": {
        "--output-dir": "models",
        "--data-root": "this folder",
        "--weights": "none; pretrain and pretrain_vitL need some",
        "--cache": "disk",
        "--cache-dir": "$COMPOSIR_CACHE, else ~/.cache/composir",
        "--save-best": "on",
        "--max-steps": "after all epochs",
    },
    "evaluate": {
        "--split": "the one whose answers are public",
        "--exclude-reference": "the data set's own rule",
        "--batch-size": "64",
        "--num-queries": "8",
    },
    "index": {
        "--out": "NAME-OF-THE-PICTURES.index, here",
        "--model": "photos; an index that exists knows its own",
        "--backend": "exact",
        "--device": "a GPU where there is one",
    },
    "search": {"--top-k": "10", "--image-weight": "0.5", "--model": "the index's own model"},
    "serve": {"--port": "8000", "--host": "127.0.0.1", "--record": "nothing is kept"},
    "ablate": {"--vary": "gated_fusion=false,true", "--out": "ablation", "--seeds": "5"},
    "data import": {"--split": "val", "--gallery": "folder", "--seed": "0"},
    "data stats": {"--split": "all that are there"},
    "convert": {"--gated-fusion": "as in the source"},
    "compare": {"--metric": "the data set's primary one"},
    "published": {"--dataset": "all"},
}


@pytest.mark.parametrize("command", DEFAULTS)
def test_defaults_are_said(run, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "300")
    _, out, _ = run(*command.split(), "--help")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for flag, default in DEFAULTS[command].items():
        (line,) = (line for line in lines if line.startswith((f"│ {flag} ", f"│ {flag},")))
        assert f"[default: {default}]" in line or f"[default: ({default})]" in line, line


def test_the_defaults_of_recipes_are_those_that_help_says():
    parameters = typer.main.get_command(app).commands["train"].params
    said = {one.name: str(one.show_default) for one in parameters}
    pretrain, mini, head = (load_recipe({"backbone": name}) for name in ("pretrain", "mini", "photos"))
    fashioniq = load_recipe({"backbone": "pretrain", "dataset": "FashionIQ"})
    for name, recipes in (
        ("num_epochs", (pretrain, fashioniq, mini, head)),
        ("batch_size", (pretrain, mini, head)),
        ("learning_rate", (pretrain, mini, head)),
        ("validation_frequency", (mini, head)),
    ):
        numbers = re.findall(r"\b\d\S*?(?=[;,]|$)", said[name])
        assert list(map(float, numbers)) == [getattr(recipe, name) for recipe in recipes], said[name]
    assert said["fusion"] == f"{pretrain.fusion}; mini {mini.fusion}"
    for name in (
        "loss_align", "loss_rtc", "loss_local", "seed", "alpha_init", "target_ratio", "transform", "num_workers",
        "output_dir", "head", "dataset", "blip_model_name",
    ):  # fmt: skip
        values = {
            getattr(recipe, name) for recipe in (pretrain, fashioniq.model_copy(update={"dataset": "CIRR"}), mini)
        }
        assert {said[name]} == {f"{one:g}" if isinstance(one, float) else str(one) for one in values}, name
    assert said["backbone"] == Recipe.model_fields["backbone"].default
    assert not any((pretrain.target_map, pretrain.deterministic, pretrain.compile, pretrain.skip_missing_images))
    assert pretrain.save_best
    assert pretrain.save_training


def test_choices_are_read_as_a_sentence():
    assert choices.one_of(("a", "b", "c")) == "a, b or c"
    assert choices.one_of(("a", "b")) == "a or b"
    assert choices.one_of(("a",)) == "a"
    assert choices.with_notes({"a": "small", "b": "large"}) == "a (small), b (large)"


@pytest.fixture(scope="module")
def mini(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini") / "model"
    save_pretrained(build("mini"), folder)
    return folder


@pytest.fixture(scope="module")
def mini_index(mini, tmp_path_factory) -> Path:
    """An index of three pictures by a model of the backbone ``mini``."""
    folder = tmp_path_factory.mktemp("pictures")
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
    out = tmp_path_factory.mktemp("index") / "pictures.index"
    index_folder(folder, out, model=mini)
    return out


def test_a_search_imports_nothing_that_trains_or_draws(mini_index):
    assert imported_by(RUN, "search", mini_index, "--text", "a red picture") == {"torch"}


def test_an_index_imports_nothing_that_trains_or_draws(mini, shapes_root, tmp_path):
    assert imported_by(RUN, "index", shapes_root, "--model", mini, "--out", tmp_path / "made.index") == {"torch"}


def test_a_server_that_has_answered_imports_nothing_that_trains_or_plots(mini_index):
    code = """
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from composir.search import Retriever
from composir.web import open_server
from composir.web.app import create_app
open_server(Path(sys.argv[1]), port=0)
with Retriever(sys.argv[1]) as retriever, TestClient(create_app(retriever), base_url="http://localhost:8000") as client:
    image_id = client.get("/api/images").json()["images"][0]["id"]
    for path in ("/api/search", "/api/heat"):
        answer = client.post(path, json={"image_id": image_id, "text": "make it red"})
        assert answer.status_code == 200, answer.text
"""
    assert imported_by(code, mini_index) == {"torch"}


def test_an_evaluation_imports_nothing_that_trains_or_draws(mini, shapes_root):
    assert imported_by(RUN, "evaluate", "--model", mini, "--data-root", shapes_root, "--json") == {"torch"}


def test_training_starts_without_what_draws_its_curves():
    code = "import sys, composir.training.runs, composir.training.ablation_report"
    assert imported_by(code) == {"torch", "accelerate", "tensorboard"}


def test_training_of_mini_imports_no_transformers(shapes_root, tmp_path):
    found = imported_by(
        RUN, "train", "--backbone", "mini", "--data-root", shapes_root, "--max-steps", 1, "--batch-size", 2,
        "--output-dir", tmp_path / "models", "--json",
    )  # fmt: skip
    assert found >= {"torch", "accelerate", "tensorboard", "matplotlib"}  # what it logs and draws with
    assert not found & {"transformers", "sentence_transformers"}
