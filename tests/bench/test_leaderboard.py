"""The leaderboard of this repository: every figure follows from its ranks, and the page shows what the files say."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from composir.bench.config import NAME, DataEntry, ModelEntry
from composir.bench.entries import find_entries
from composir.files import read_toml

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "leaderboard"
START, END = "<!-- table -->\n", "<!-- end of table -->"


def test_every_figure_is_verified_and_the_page_shows_the_files(run, tmp_path):
    code, printed, told = run("bench", "--verify", BOARD, "--out", tmp_path)
    assert code == 0, told
    assert "every figure is what its ranks give" in told
    assert "not significantly worse" in printed
    page = (ROOT / "docs/leaderboard.md").read_text(encoding="utf-8")
    shown = page.partition(START)[2].partition(END)[0].strip()
    made = (tmp_path / "bench.md").read_text(encoding="utf-8").strip()
    assert shown == made, "put the table of `composir bench --verify leaderboard --out bench` into docs/leaderboard.md"


def test_a_changed_digit_is_named_with_its_file_and_figure(run, tmp_path):
    source = find_entries(BOARD)[0]
    file = tmp_path / "board" / source.parent.name / source.name
    file.parent.mkdir(parents=True)
    shutil.copy(source, file)
    document = json.loads(gzip.decompress(file.read_bytes()))
    metrics = document["runs"][0]["figures"]["metrics"]
    metrics["recall_at_5"] = round(metrics["recall_at_5"] + 0.000001, 6)
    file.write_bytes(gzip.compress(json.dumps(document).encode()))
    code, printed, told = run("bench", "--verify", tmp_path / "board")
    assert (code, printed) == (2, "")
    place = "metrics/recall_at_5" if len(document["runs"]) == 1 else "run 1, metrics/recall_at_5"
    assert f"{file} ({place}): is {metrics['recall_at_5']}, and its ranks give " in told.replace("\n", "")


def test_files_are_a_few_kilobytes_and_name_no_picture():
    for file in find_entries(BOARD):
        document = json.loads(gzip.decompress(file.read_bytes()))
        assert file.stat().st_size < 12_000 * len(document["runs"])
        assert ".png" not in json.dumps(document)


@pytest.mark.parametrize(("table", "kind"), [("models", ModelEntry), ("datasets", DataEntry)])
def test_the_recipe_is_a_bench_of_the_rows(table, kind):
    entries = read_toml(ROOT / "leaderboard/bench.toml")[table]
    measured = {file.parent.name if table == "datasets" else file.name[:-8] for file in find_entries(BOARD)}
    assert set(entries) == measured
    for name, settings in entries.items():
        assert NAME.fullmatch(name)
        kind(**settings)
