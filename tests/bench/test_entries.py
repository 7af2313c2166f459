"""A leaderboard's files: figures from ranks alone equal those of the rankings, and a changed digit is found."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import replace

import pytest

from composir.bench.entries import find_entries, read_bench, read_entry, saved_of, verify, write_entries
from composir.bench.running import Bench, Measured
from composir.bench.table import make_table
from composir.errors import ComposirError
from composir.evaluation import KINDS, Saved, measure, signature_fields

from .conftest import NUM_IMAGES, make_split, ranking_at

FIGURES = ("metrics", "intervals", "baselines", "audit")


def splits_like(kind):
    """Return splits like a data set's: subsets, several answers, aspects, categories, groups, negatives, galleries."""
    chance = random.Random(kind)
    count = 1 if kind in {"CIRR", "FashionIQ", "MT-FashionIQ"} else 4
    targets = [chance.sample(range(45), chance.randint(1, count)) for _ in range(30)]
    if kind == "FashionIQ":
        return [make_split(targets[:18], kind, "dress"), make_split(targets[18:], kind, "shirt")]
    split = make_split(targets, kind)
    changes = {
        "i-CIR": lambda row: {"group": f"instance {row // 4}", "gallery": split.gallery},
        "PinPoint": lambda row: {
            "group": f"query {row // 6}",
            "negatives": ("g47", *split.queries[row].targets[1:2], "g49")[: row % 4],  # some right ones among them
            "num_listed_targets": len(split.queries[row].targets) + row % 3,
            "num_listed_negatives": row % 4 + row % 5,
        },
        "MT-FashionIQ": lambda row: {"group": f"session {row // 3}"},
        "CIRCLED": lambda row: {"group": f"session {row // 6}"},
    }
    if kind in changes:
        queries = [replace(query, **changes[kind](row)) for row, query in enumerate(split.queries)]
        split = replace(split, queries=tuple(queries))
    return [split]


@pytest.fixture(params=["CIRR", "CIRCO", "Fashion200k", "FashionIQ", "i-CIR", "PinPoint", "MT-FashionIQ", "CIRCLED"])
def measured(request, tmp_path):
    splits = splits_like(request.param)
    chance = random.Random(1)
    runs = []
    for seed in range(2):
        rankings = {
            kind: tuple(
                ranking_at(split, [chance.randint(1, NUM_IMAGES - 1) for _ in split.queries]) for split in splits
            )
            for kind in KINDS
        }
        runs.append(Saved(rankings, signature_fields(splits, weights_hash=f"w{seed}"), tmp_path / str(seed), seed))
    return runs


@pytest.fixture
def bench(measured, make_measured):
    costs = make_measured(make_split([[1]]), [1], [1]).costs
    return Bench({"things": {"a model": Measured(tuple(measured), costs, "a note")}}, ())


def change(file, **values):
    document = json.loads(gzip.decompress(file.read_bytes()))
    document.update(values)
    file.write_bytes(gzip.compress(json.dumps(document).encode()))


def test_figures_from_ranks_equal_those_of_the_rankings(bench, measured, tmp_path):
    (file,) = write_entries(bench, tmp_path / "board")
    assert file == tmp_path / "board/things/a model.json.gz"
    for saved, whole in zip(saved_of(file, read_entry(file)), measured, strict=True):
        found, expected = (measure(one.rankings, signature=one.signature_fields).to_json() for one in (saved, whole))
        assert {name: found[name] for name in FIGURES} == {name: expected[name] for name in FIGURES}
    before, after = make_table(bench).to_json(), make_table(read_bench([file])).to_json()
    fields = before["datasets"][0]["signature_fields"]
    assert fields.pop("composir")
    assert after == before


def test_the_same_results_give_the_same_bytes(bench, tmp_path):
    (one,), (other,) = write_entries(bench, tmp_path / "one"), write_entries(bench, tmp_path / "other")
    assert one.read_bytes() == other.read_bytes()


def test_any_changed_digit_is_found_with_its_place(bench, tmp_path):
    (file,) = write_entries(bench, tmp_path)
    assert verify(file, read_entry(file)) == []
    document = json.loads(gzip.decompress(file.read_bytes()))
    metrics = document["runs"][1]["figures"]["metrics"]
    for key, value in metrics.items():
        for digit in (1e-6, -1e-6):
            metrics[key] = round(value + digit, 6)
            change(file, runs=document["runs"])
            (problem,) = verify(file, read_entry(file))
            assert (problem.file, problem.where) == (str(file), f"run 2, metrics/{key}")
            assert problem.message.startswith(f"is {metrics[key]}, and its ranks give ")
        metrics[key] = value


def test_a_changed_count_a_missing_figure_and_a_changed_rank_are_found(bench, tmp_path):
    (file,) = write_entries(bench, tmp_path)
    document = json.loads(gzip.decompress(file.read_bytes()))
    figures = document["runs"][0]["figures"]
    figures["audit"]["num_unresolved"] += 1
    key = next(iter(figures["baselines"]["text_only"]))
    del figures["baselines"]["text_only"][key]
    change(file, runs=document["runs"])
    places = [problem.where for problem in verify(file, read_entry(file))]
    assert places == [f"run 1, baselines/text_only/{key}", "run 1, audit/num_unresolved"]
    ranks = document["runs"][1]["ranks"]["composed"][0]["targets"]
    row = next(row for row, places in enumerate(ranks) if places[0] > 50)
    ranks[row][0] = 1 if 1 not in ranks[row] else 2
    change(file, runs=document["runs"])
    assert any(problem.where.startswith("run 2, metrics/") for problem in verify(file, read_entry(file)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "its format is 'other'"),
        ({"model": "another"}, "it holds 'another' on 'things'"),
        ({"runs": []}, "not every run has ranks of composed, image_only, text_only"),
        ({"note": 3}, "note = 3: input should be a valid string)"),
    ],
)
def test_what_is_no_result_is_one_line(make_measured, tmp_path, changes, message):
    bench = Bench({"things": {"a": make_measured(make_split([[1], [2]]), [1, 3])}}, ())
    (file,) = write_entries(bench, tmp_path)
    change(file, **changes)
    with pytest.raises(ComposirError) as error:
        read_entry(file)
    assert str(error.value).startswith(f"{file}: is no result of a bench (")
    assert message in str(error.value)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ComposirError, match="is no result of a bench"):
        read_entry(file)


def test_ranks_that_cannot_be_are_refused(make_measured, tmp_path):
    bench = Bench({"things": {"a": make_measured(make_split([[1], [2]]), [1, 3])}}, ())
    (file,) = write_entries(bench, tmp_path)
    document = json.loads(gzip.decompress(file.read_bytes()))
    document["runs"][0]["ranks"]["composed"][0]["targets"][1] = [61]
    change(file, runs=document["runs"])
    with pytest.raises(ComposirError, match=r"query 1 has ranks \[61\] in a gallery of 60"):
        read_entry(file)


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(ComposirError, match="holds no result"):
        find_entries(tmp_path)
