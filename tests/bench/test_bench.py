"""A bench from its file to the table: what is kept, what is computed anew, what fails, and every problem at once."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from composir import features
from composir.bench import work
from composir.bench.cells import CELL, Cell
from composir.bench.config import ModelEntry, load_config
from composir.bench.running import _in_own_process
from composir.bench.work import Failed, Job, Step, do_job
from composir.errors import ProblemsError
from composir.evaluation import evaluate
from composir.evaluation.saved import RANKINGS
from composir.features import open_embedder
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.models.dual import DualEncoder
from composir.token_cache import TokenPlace

from ..small_duals import save_clip

IN_MEMORY = TokenPlace("memory")


def save_tiny(folder, seed):
    torch.manual_seed(seed)
    save_pretrained(build("tiny").eval(), folder)
    (folder / "recipe.toml").write_text(f"seed = {seed}\n")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three runs of a tiny model, and one whose weights are not numbers."""
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        save_tiny(folder / f"tiny-{seed}", seed)
    model = build("tiny").eval()
    with torch.no_grad():
        model.text_proj.weight.fill_(float("nan"))
    save_pretrained(model, folder / "broken")
    return folder


@pytest.fixture
def config(tmp_path, shapes_root, models):
    """Write a bench of two models on val with two galleries, which share their pictures."""

    def write(model_tables, datasets=("whole", "union")):
        lines = [f'[models."{name}"]\n{settings}' for name, settings in model_tables.items()]
        for name in datasets:
            gallery = "val-union" if name == "union" else "original"
            lines.append(f'[datasets.{name}]\ndataset = "cirr"\ndata_root = "{shapes_root}"\ngallery = "{gallery}"')
        file = tmp_path / "bench.toml"
        file.write_text("\n".join(lines))
        return file

    return write


@pytest.fixture
def job(config, models, tmp_path):
    loaded = load_config(config({"tiny": f'model = "{models}/tiny-0"'}))
    return Job("tiny", loaded.models["tiny"], 0, dict(loaded.datasets), tmp_path / "out", IN_MEMORY)


def tell_all(job):
    """Return what a job tells but for its steps."""
    events = []
    do_job(job, events.append)
    return [event for event in events if not isinstance(event, Step)]


def test_a_bench_from_file_to_leaderboard(run, config, models, tmp_path):
    runs = ", ".join(f'"{models}/tiny-{seed}"' for seed in (0, 1))
    file = config(
        {"two runs": f"model = [{runs}]\nnote = 'untrained'", "broken": f'model = "{models}/broken"'}, ["whole"]
    )
    out, board = tmp_path / "out", tmp_path / "board"
    code, printed, told = run("bench", file, "--out", out, "--submit", board, "--json", "--cache", "memory")
    assert code == 2
    document = json.loads(printed)
    (section,) = document["datasets"]
    (row,) = section["rows"]
    assert (row["model"], row["note"], row["seeds"]) == ("two runs", "untrained", [0, 1])
    (failure,) = document["failures"]
    assert (failure["title"], failure["dataset"]) == ("broken", "whole")
    assert "holds weights that are not numbers" in failure["message"]
    assert "1/3 two runs, run 1 on whole: " in told
    assert "3/3 broken on whole: failed: " in told
    assert all(Path(name).exists() for name in document["files"].values())
    assert "| broken | failed |" in (out / "bench.md").read_text()
    code, printed, told = run("bench", "--verify", board, "--json")
    assert code == 0
    (again,) = json.loads(printed)["datasets"]
    assert again["rows"] == section["rows"]
    assert "1 results: every figure is what its ranks give" in told


def test_the_figures_are_those_of_evaluate(job, models):
    assert [event.reason for event in tell_all(job)] == ["new", "new"]
    for name, entry in job.datasets.items():
        splits = entry.load()
        embedder, weights_hash = open_embedder(models / "tiny-0", splits, place=IN_MEMORY)
        expected = evaluate(embedder, splits, weights_hash=weights_hash)
        saved, cost = Cell("tiny", name, 0).read(job.out, job.address)
        assert (saved.signature_fields, saved.seed) == (expected.signature_fields, 0)
        for kind, rankings in expected.rankings.items():
            assert (saved.rankings[kind][0].top == rankings[0].top).all()
            assert (saved.rankings[kind][0].target_ranks == rankings[0].target_ranks).all()
        assert cost.seconds > 0
        assert cost.peak_memory_bytes > 0


def test_only_what_lacks_or_changed_is_computed(job, models, shapes_root, tmp_path):
    tell_all(job)
    before = {file: file.read_bytes() for file in job.out.rglob(CELL)}
    assert [event.reason for event in tell_all(job)] == ["", ""]
    assert {file: file.read_bytes() for file in job.out.rglob(CELL)} == before
    shutil.rmtree(job.out / "cells/whole")
    (job.out / "cells/union/tiny/0" / RANKINGS).write_bytes(b"cut off")
    assert [event.reason for event in tell_all(job)] == ["new", "what is there is damaged"]
    other = replace(job, entry=ModelEntry(model=[f"{models}/tiny-1"]))
    assert [event.reason for event in tell_all(other)] == ["model changed", "model changed"]
    moved = shutil.copytree(shapes_root, tmp_path / "moved")
    datasets = {name: entry.model_copy(update={"data_root": str(moved)}) for name, entry in job.datasets.items()}
    assert [event.reason for event in tell_all(replace(other, datasets=datasets))] == ["data changed", "data changed"]
    picture = next((moved / "dev").iterdir())
    os.utime(picture, ns=(0, 0))
    assert [event.reason for event in tell_all(replace(other, datasets=datasets))] == ["data changed", "data changed"]


def test_a_model_that_cannot_be_opened_fails_on_every_data_set(job):
    events = tell_all(replace(job, entry=ModelEntry(model=["nowhere/at/all"])))
    assert [(type(event), event.dataset) for event in events] == [(Failed, "whole"), (Failed, "union")]
    assert all("no such file or folder" in event.message for event in events)


def test_a_model_that_gives_nan_fails_where_it_does_and_the_rest_is_finished(job, monkeypatch):
    class Broken:
        def __init__(self, embedder):
            self.embed_gallery, self.embed_text_only = embedder.embed_gallery, embedder.embed_text_only
            self.embed_queries = lambda paths, texts: embedder.embed_queries(paths, texts) * float("nan")

    calls = []

    def embedder_of_once(*arguments, **options):
        calls.append(arguments)
        embedder = features.embedder_of(*arguments, **options)
        return Broken(embedder) if len(calls) == 1 else embedder

    monkeypatch.setattr(work, "embedder_of", embedder_of_once)
    failed, done = tell_all(job)
    assert (failed.dataset, done.dataset, done.reason) == ("whole", "union", "new")
    assert "is not a number (NaN)" in failed.message
    monkeypatch.undo()
    assert [(event.dataset, event.reason) for event in tell_all(job)] == [("whole", "new"), ("union", "")]


class Ends:
    """What ends the process that unpickles it, as a kernel without memory does, with a code of its own."""

    def __reduce__(self):
        return os._exit, (7,)


def test_a_process_that_dies_fails_what_it_did_not_come_to(job):
    events = list(_in_own_process(replace(job, place=Ends())))
    assert [(event.dataset, event.message) for event in events] == [
        ("whole", "its process ended with code 7"),
        ("union", "its process ended with code 7"),
    ]


def test_pictures_that_data_sets_share_are_embedded_once_by_a_model_of_vectors(job, tmp_path, monkeypatch):
    address = f"clip-vit-b-32:{save_clip(tmp_path / 'clip')}"
    asked = []
    embed_gallery = DualEncoder.embed_gallery
    monkeypatch.setattr(
        DualEncoder, "embed_gallery", lambda self, paths: asked.extend(paths) or embed_gallery(self, paths)
    )
    tell_all(replace(job, name="clip", entry=ModelEntry(model=[address])))
    splits = job.datasets["whole"].load()
    assert sorted(asked) == sorted(splits[0].images.values())
    monkeypatch.undo()
    embedder, weights_hash = open_embedder(address, splits)
    expected = evaluate(embedder, splits, weights_hash=weights_hash)
    saved, _ = Cell("clip", "whole", 0).read(job.out, address)
    assert saved.signature_fields == expected.signature_fields
    for kind, (ranking,) in expected.rankings.items():
        assert (saved.rankings[kind][0].top == ranking.top).all()


def test_every_problem_of_a_file_is_told_at_once(tmp_path, shapes_root):
    file = tmp_path / "bench.toml"
    file.write_text(f"""
seed = 1
[models.a]
model = []
batch_size = 0
[models.b]
scoring = "best"
models = "photos"
[models."no/file"]
model = "photos"
[models.A]
model = ["photos", "photos"]
[datasets.one]
dataset = "CIRR"
data_root = "nowhere"
[datasets.two]
dataset = "CIR"
data_root = "{shapes_root}"
[datasets.three]
dataset = "CIRR"
data_root = "{shapes_root}"
split = "test1"
[datasets.four]
dataset = "CIRR"
""")
    with pytest.raises(ProblemsError) as error:
        load_config(file)
    found = [(problem.where, problem.message) for problem in error.value.problems if problem.file == str(file)]
    places = [place for place, _ in found]
    assert places == [
        "seed", "models.a", "models.a", "models.b", "models.b", "models.b", "models.no/file", "models.A",
        "datasets.four", "datasets.one", "datasets.two", "datasets.three",
    ]  # fmt: skip
    messages = " | ".join(message for _, message in found)
    for expected in (
        "there is no such key",
        "batch_size = 0: expected a whole number, at least 1 and at most 1,000,000",
        "model is missing",
        "unknown key 'models' (did you mean 'model'?)",
        "scoring = 'best': expected global or",
        "the name cannot be a file's",
        "differs from a in capitals alone",
        "unknown data set 'CIR'",
        "data_root is missing",
        "nowhere",
    ):
        assert expected in messages


def test_missing_pictures_are_told_before_anything_is_computed(config, shapes_root, tmp_path):
    moved = shutil.copytree(shapes_root, tmp_path / "moved")
    lost = next((moved / "dev").iterdir())
    lost.unlink()
    file = config({"tiny": 'model = "photos"'}, ["whole"])
    file.write_text(file.read_text().replace(str(shapes_root), str(moved)))
    with pytest.raises(ProblemsError) as error:
        load_config(file)
    assert any(lost.stem in str(problem) for problem in error.value.problems)


def test_a_data_set_may_be_some_of_the_queries(config, models, tmp_path):
    (tmp_path / "list.json").write_text('["100", "103"]')
    file = config({"tiny": f'model = "{models}/tiny-0"'}, ["whole"])
    file.write_text(file.read_text() + f'\nonly = "{tmp_path}/list.json"')
    (split,) = load_config(file).datasets["whole"].load()
    assert [query.id for query in split.queries] == ["100", "103"]


def test_a_file_without_tables_is_two_problems(tmp_path):
    file = tmp_path / "bench.toml"
    file.write_text("models = 3\n")
    with pytest.raises(ProblemsError, match=r"there is no table \[models.NAME\].*there is no table \[datasets.NAME\]"):
        load_config(file)


def test_config_and_verify_exclude_each_other(run, tmp_path):
    assert run("bench")[0] == 2
    code, _, told = run("bench", "--verify", tmp_path, "--submit", tmp_path)
    assert code == 2
    assert "leave out --submit or --verify" in told


def test_the_two_helps_say_which_is_which(run):
    assert "composir benchmark" in run("bench", "--help")[1]
    assert "composir bench." in " ".join(run("benchmark", "--help")[1].replace("│", " ").split())
