"""Heads that learn from what people meant in an index: its vectors are taken, and what is held out stays unseen."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest
import torch

from composir.data import Query, load_splits
from composir.data.images import read_image
from composir.data.importing import import_triplets
from composir.errors import ComposirError, ProblemsError
from composir.features import CachedEmbedder
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.models.heads.folder import is_head, read_head
from composir.search import Retriever
from composir.token_cache import TokenPlace
from composir.training import load_recipe, loop, train
from composir.training.feedback import EXAMPLES, FeedbackRun, _hold_out, _without_other_targets
from composir.training.guards import make_accelerator
from composir.training.observer import Silent

IN_MEMORY = TokenPlace("memory")


@pytest.fixture(scope="session")
def choices(shapes_root, shapes_index):
    """Return the 24 triplets of the index's pictures as a server records them."""
    (split,) = load_splits("CIRR", shapes_root, "val")
    with Retriever(shapes_index) as retriever:
        id_by_name = {path.stem: image_id for image_id, path in retriever.images.items()}
    return [
        {
            "reference": id_by_name[query.reference],
            "text": query.text,
            "target": id_by_name[query.targets[0]],
            "subset": [id_by_name[name] for name in query.subset],
        }
        for query in split.queries
    ]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "choices.jsonl"


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def make_recipe(shapes_index, file, tmp_path):
    def make(**settings):
        given = {"dataset": "own", "data_root": str(file), "index": str(shapes_index)}
        given |= {"backbone": str(shapes_index.parent / "model"), "output_dir": str(tmp_path / "models")}
        return load_recipe({**given, "num_epochs": 2, "batch_size": 8, **settings})

    return make


def make_run(recipe):
    """Return a run that is ready to train."""
    accelerator = make_accelerator(recipe)
    train_splits, val_splits, _ = FeedbackRun.read(recipe, None, Silent())
    splits = {"train_splits": train_splits, "val_splits": val_splits}
    run = FeedbackRun(recipe, accelerator, **splits, observer=Silent(), place=IN_MEMORY)
    run.fill()
    return run


def test_one_command_teaches_an_index_without_embedding_its_pictures(run, shapes_index, choices, file, monkeypatch):
    folder = file.parent
    write(file, [{**row, "split": "val" if place % 3 == 0 else "train"} for place, row in enumerate(choices)])
    before = {one.name: one.read_bytes() for one in shapes_index.iterdir() if one.is_file()}

    def embed(self, paths):
        raise AssertionError("the index has these vectors")

    monkeypatch.setattr(CachedEmbedder, "embed_gallery", embed)
    head = folder / "taught"
    places = ("--output-dir", folder / "models", "--cache-dir", folder / "cache", "--out", head)
    flags = ("--head", "gate", "--seed", 3, "--num-epochs", 20, "--batch-size", 8, "--learning-rate", 0.01)
    code, out, err = run("train", "--from-feedback", file, shapes_index, *flags, *places)
    assert code == 0, err
    assert "note: 16 examples to train on; 8, those of " in err
    assert "note: held out: R@5 " in err
    assert out.splitlines()[-2:] == [
        f"best: {head}",
        f"next: composir search {shapes_index} --model {head} --image PICTURE --text SENTENCE",
    ]
    assert {one.name: one.read_bytes() for one in shapes_index.iterdir() if one.is_file()} == before
    monkeypatch.undo()
    saved = read_head(head)
    (best,) = (folder / "models").glob("clip_finetuned_on_own_head_gate_*/best")
    assert saved.weights_hash == read_head(best).weights_hash
    picture = shapes_index.parent / "pictures/val-red-ellipse.png"
    with Retriever(shapes_index) as plain, Retriever(shapes_index, model=head) as taught:
        assert plain.search(picture, "make it blue") != taught.search(picture, "make it blue")


def test_pictures_are_the_vectors_of_the_index_and_pairs_the_queries_of_its_model(make_recipe, choices, file):
    write(file, choices)
    run = make_run(make_recipe())
    (split,) = run.train_splits
    with Retriever(run.recipe.index) as retriever:
        snapshot = retriever.index.snapshot
        for image_id, path in split.images.items():
            (row,) = snapshot.rows_of([image_id])
            assert torch.equal(run.vectors.embed_gallery([path])[0], torch.tensor(snapshot.vectors[row]).float())
        query = split.queries[0]
        path = split.images[query.reference]
        expected = retriever.model.eval().embed_query([read_image(path)], [query.text])
    torch.testing.assert_close(run.vectors.embed_queries([path], [query.text]), expected)
    assert run.config.dim == snapshot.vectors.shape[-1]


def test_few_examples_are_all_trained_on_and_nothing_is_said_to_be_measured(run, shapes_index, choices, file, tmp_path):
    write(file, choices[:8])
    places = ("--output-dir", tmp_path / "models", "--cache", "memory", "--num-epochs", 2)
    code, out, err = run("train", "--from-feedback", file, shapes_index, *places, "--json")
    assert code == 0, err
    assert "note: 8 examples are too few to hold some out: all are trained on, none measured" in err
    document = json.loads(out)
    assert document["metrics"] == {}
    assert is_head(document["best"])
    assert "nothing was measured" in (tmp_path / document["best"] / "README.md").read_text()


def test_what_is_held_out_are_all_examples_of_every_fifth_reference():
    def query(number, text="a"):
        return Query(str(number), f"{number:032x}", text, (text,), ("f" * 32,))

    queries = [query(number, text) for number in range(40) for text in "ab"]
    rest, held_out = _hold_out(queries)
    assert sorted({int(one.reference, 16) for one in held_out}) == list(range(0, 40, 5))
    assert len(held_out) == 16
    assert sorted([*rest, *held_out], key=queries.index) == queries
    more = [*queries, query(41), query(45)]  # what was held out before is so later
    assert _hold_out(more) == ([*rest, more[-2]], [*held_out, more[-1]])
    assert _hold_out(queries[:30]) == (queries[:30], [])  # six would be too few to measure by


def test_what_another_example_calls_right_is_no_negative():
    first = Query("1", "r", "red", ("red",), ("a",), subset=("a", "b", "c"))
    second = Query("2", "r", "red", ("red",), ("b",), subset=("b", "a"))
    other = Query("3", "r", "blue", ("blue",), ("c",), subset=("c", "a"))
    kept = _without_other_targets([first, second, other])
    assert [one.subset for one in kept] == [("a", "c"), (), ("c", "a")]


def test_a_stopped_run_goes_on_though_people_went_on(make_recipe, choices, file, monkeypatch):
    write(file, choices[:16])
    recipe = make_recipe(num_epochs=3)
    unbroken = train(recipe, place=IN_MEMORY).best
    step, count = loop.Run._step, []

    def stop(self, *batch):
        step(self, *batch)
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Run, "_step", stop)
    stopped = train(recipe, place=IN_MEMORY)
    assert stopped.interrupted
    monkeypatch.setattr(loop.Run, "_step", step)
    write(file, choices)
    resumed = train(recipe, resume=stopped.run, place=IN_MEMORY)
    assert len((resumed.run / EXAMPLES).read_text().splitlines()) == 16
    assert read_head(resumed.best).weights_hash == read_head(unbroken).weights_hash


def test_the_examples_of_a_run_are_own_triplets(make_recipe, choices, file, shapes_index, tmp_path):
    write(file, [{**row, "split": "val" if place < 8 else "train"} for place, row in enumerate(choices)])
    run = train(make_recipe(num_epochs=1), place=IN_MEMORY).run
    imported = import_triplets(run / EXAMPLES, shapes_index.parent / "pictures", tmp_path / "own")
    assert {name: one["num_queries"] for name, one in imported.counts.items()} == {"train": 16, "val": 8}


# -- what cannot be ------------------------------------------------------------------------------------------------


def test_all_that_is_wrong_with_examples_is_told_at_once(make_recipe, choices, file, tmp_path):
    gone = "0" * 32
    rows = [
        *choices,
        {**choices[0], "reference": gone, "text": "one"},
        {**choices[0], "target": gone, "text": "two"},
        {**choices[0], "text": " "},
        {"reference": choices[0]["reference"], "text": "three"},
        choices[0],
    ]
    write(file, rows)
    file.write_text(f"{file.read_text()}not JSON\n")
    with pytest.raises(ProblemsError) as error:
        train(make_recipe(), place=IN_MEMORY)
    told = [str(problem) for problem in error.value.problems]
    assert all(problem.startswith(str(file)) for problem in told)
    for line, words in (
        (25, f"reference '{gone}' is not in the index "),
        (26, f"target '{gone}' is not in the index "),
        (27, "'text' is empty"),
        (28, "key 'targets' is missing"),
        (29, "the reference, the text and the target are those of line 1"),
        (30, "not valid JSON"),
    ):
        assert [one for one in told if f"(line {line}" in one and words in one], (line, told)
    assert not (tmp_path / "models").exists()


def test_a_picture_that_was_only_shown_may_be_gone(make_recipe, choices, file):
    rows = [{**row, "subset": [*row["subset"], "0" * 32]} for row in choices]
    write(file, rows)
    told = []

    class Notes(Silent):
        def on_note(self, note):
            told.append(note)

    (split,), _, _ = FeedbackRun.read(make_recipe(), None, Notes())
    assert "0" * 32 not in split.queries[0].subset
    assert told[0].endswith(": 24, left out")


def test_a_reference_whose_file_has_changed_is_told(make_recipe, choices, file, shapes_index, tmp_path):
    shutil.copytree(shapes_index.parent, tmp_path / "there")
    (tmp_path / "there/pictures/val-red-ellipse.png").write_bytes(b"another")
    write(file, choices)
    recipe = make_recipe(index=str(tmp_path / "there/index"), backbone=str(tmp_path / "there/model"))
    with pytest.raises(ProblemsError, match=r"val-red-ellipse\.png, is gone or has changed; fix: put it back"):
        train(recipe, place=IN_MEMORY)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (lambda rows: rows[:3], "holds 3 examples; expected 8 or more"),
        (lambda rows: [{**rows[0], "text": str(n)} for n in range(9)], "all 9 examples have the same target"),
        (lambda rows: [], "holds no triplet"),
    ],
)
def test_too_few_or_equal_examples_are_one_line(make_recipe, choices, file, rows, words):
    write(file, rows(choices))
    with pytest.raises(ComposirError, match=words):
        train(make_recipe(), place=IN_MEMORY)
    assert not (file.parent / "models").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "CIRR"], "--from-feedback says what is trained on, and so does --dataset; fix: leave --dataset"),
        (["--fusion", "late"], "fusion = 'late' is a setting of a backbone, and a head has none"),
        (["--backbone", "tiny"], "index = "),
        (["--resume", "."], "cannot change it"),
        (["--out", "pictures"], "pictures: is there and is no model; fix: give --out a new folder"),
    ],
)
def test_flags_that_cannot_be_together_are_one_line(run, shapes_index, file, arguments, words):
    file.touch()
    arguments = [shapes_index.parent / "pictures" if one == "pictures" else one for one in arguments]
    code, out, err = run("train", "--from-feedback", file, shapes_index, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_what_is_no_file_or_no_index_is_one_line(run, shapes_index, file, choices, tmp_path):
    code, _, err = run("train", "--from-feedback", file, shapes_index)
    assert (code, err.count("\n")) == (2, 1)
    assert f"no such file of examples; fix: composir serve {shapes_index} --record {file} makes one" in err
    write(file, choices)
    code, _, err = run("train", "--from-feedback", file, tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert "is not an index" in err


def test_an_index_of_another_model_is_one_line(make_recipe, choices, file, model_of_another):
    write(file, choices)
    with pytest.raises(ComposirError, match="is the index of another model") as error:
        train(make_recipe(backbone=str(model_of_another)), place=IN_MEMORY)
    assert "fix: give an index by the model that the head is on" in str(error.value)
    assert not list((file.parent / "models").iterdir())


@pytest.fixture
def model_of_another(tmp_path):
    torch.manual_seed(9)
    save_pretrained(build("tiny").eval(), tmp_path / "other")
    return tmp_path / "other"
