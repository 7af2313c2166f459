"""docs/ablations.md shows what docs/ablations.csv has."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    described = importlib.util.spec_from_file_location("ablation_figures", ROOT / "scripts/ablation_figures.py")
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def test_no_run_is_left_out(script):
    runs = script.read_runs()
    assert len(runs) == 156
    assert {(run["series"], run["set"]) for run in runs} == set(script.TITLES)
    assert min(float(run[script.PRIMARY]) for run in runs) == 34.52  # the gate that began to learn late


def test_the_page_has_the_tables_of_the_runs(script):
    page = script.PAGE.read_text(encoding="utf-8")
    assert page.partition(script.BEGIN)[2].partition(script.END)[0] == script.tables(script.read_runs(), script.PRIMARY)


def test_a_difference_by_hand(script):
    runs = script.read_runs()
    rows = list(script.differences(runs, "first", "scenes", script.PRIMARY))
    assert rows[0] == (
        "| `fusion=gate` | `none` | +4.27, −8.09, −7.18, +0.64, −2.00 | −2.47 | −8.96 to +4.01 | 0.349 |\n"
    )
    (row,) = script.differences(
        [run for run in runs if run["setting"] in {"alpha_init=1", "fusion=gate"} and run["set"] == "drawings"],
        "one by one",
        "drawings",
        "R@1",
    )
    assert row.startswith("| `alpha_init=1` | `gate` | ")  # of the first series, as this one trained no gate again
