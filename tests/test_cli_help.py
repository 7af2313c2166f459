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
