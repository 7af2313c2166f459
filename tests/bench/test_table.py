"""The table of a bench: what is bold by hand, and the same figures in every form."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest

from composir.bench.running import Bench
from composir.bench.table import make_table
from composir.bench.work import Failed
from composir.bench.writing import to_csv, to_html, to_markdown
from composir.errors import ComposirError
from composir.evaluation import compare
from composir.evaluation.significance import holm

from .conftest import make_split

SPLIT = make_split([[10 + number] for number in range(20)])
BEST = [1] * 18 + [11] * 2
NEAR = [1] * 17 + [11] * 3
FAR = [1] * 4 + [11] * 16


@pytest.fixture
def bench(make_measured):
    """LaSCo is compared by R@10: 18, 17 and 4 of 20 queries."""
    models = {
        "far": make_measured(SPLIT, FAR, name="far"),
        "best": make_measured(SPLIT, BEST, name="best", note="made | up"),
        "near": make_measured(SPLIT, NEAR, name="near"),
    }
    return Bench({"things": models}, (Failed("broken", "broken", "things", "no such file"),))


def test_the_best_and_what_is_not_significantly_worse_stand_out(bench):
    (section,) = make_table(bench).sections
    assert [row.model for row in section.rows] == ["best", "near", "far"]
    assert [row.metrics["recall_at_10"] for row in section.rows] == [0.9, 0.85, 0.2]
    # near: one query differs, so p is 1; far: 14 differ, all one way, which 2 of 2^14 sign changes reach.
    assert [row.stands_out("recall_at_10") for row in section.rows] == [True, True, False]
    assert section.rows[0].p_values["recall_at_10"] == 1


def test_p_values_are_those_of_compare_after_holm_within_the_column(bench):
    (section,) = make_table(bench).sections
    groups = {name: bench.measured["things"][name].runs for name in ("best", "near", "far")}
    differences = compare(groups, ["recall_at_1"]).differences
    expected = dict(zip(("near", "far"), holm([one.p_value for one in differences]), strict=True))
    found = {row.model: row.p_values["recall_at_1"] for row in section.rows}
    assert found == {"best": 1.0, **expected}


def test_a_model_of_several_seeds_is_worse_only_if_it_is_so_over_seeds_as_well(make_measured):
    # R@10 of the runs: 20 and 20 of 20 against 19 and 1: sure over queries, and not over two seeds.
    good = make_measured(SPLIT, [1] * 20, [1] * 20, name="good")
    mixed = make_measured(SPLIT, [1] * 19 + [11], [1] + [11] * 19, name="mixed")
    one = make_measured(SPLIT, [1] * 10 + [11] * 10, name="one")
    (section,) = make_table(Bench({"things": {"good": good, "mixed": mixed, "one": one}}, ())).sections
    rows = {row.model: row for row in section.rows}
    assert rows["mixed"].metrics["recall_at_10"] == rows["one"].metrics["recall_at_10"] == 0.5
    assert rows["mixed"].stands_out("recall_at_10")
    assert not rows["one"].stands_out("recall_at_10")
    assert rows["mixed"].seeds == (0, 1)


def test_of_a_figure_of_which_less_is_better_the_lowest_stands_out(make_measured):
    # Ten images stand before a target that is missed, the last of them the query's explicit negative, g9.
    split = make_split([[10 + number] for number in range(20)], "PinPoint")
    split = replace(split, queries=tuple(replace(query, negatives=("g9",)) for query in split.queries))
    models = {name: make_measured(split, ranks, name=name) for name, ranks in (("miss", [30] * 20), ("hit", [1] * 20))}
    (section,) = make_table(Bench({"things": models}, ())).sections
    found = {
        row.model: (row.metrics["negative_rate_at_10"], row.stands_out("negative_rate_at_10")) for row in section.rows
    }
    assert found == {"hit": (0.0, True), "miss": (1.0, False)}


def test_a_single_model_has_a_table(make_measured):
    (section,) = make_table(Bench({"things": {"far": make_measured(SPLIT, FAR)}}, ())).sections
    assert section.rows[0].stands_out("recall_at_10")


def test_rows_of_other_rules_are_refused_by_name(make_measured):
    other = make_split([[10 + number] for number in range(20)], text_rule="with a prompt")
    measured = {"a": make_measured(SPLIT, FAR), "b": make_measured(other, FAR, name="b")}
    with pytest.raises(ComposirError, match=r"^b/0: text is 'with a prompt', not 'as annotated' as in a/0; expected"):
        make_table(Bench({"things": measured}, ()))


def test_markdown_csv_html_and_json_have_the_same_figures(bench):
    table = make_table(bench)
    markdown = to_markdown(table)
    assert "| best | **90.00 (75.0–100.0)** | 0.00 | 0.00 | 90.00 |" in markdown
    assert "| far | 20.00 (5.0–40.0) |" in markdown
    assert "| broken | failed |" in markdown
    assert "- best: made \\| up\n" in markdown
    assert "- broken on things: no such file" in markdown
    assert "Measured on: a processor, 2 cores, 1 thread, 8.0 GB, torch 2.13.0.\n" in markdown
    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    (row,) = (row for row in rows if (row["model"], row["metric"]) == ("far", "recall_at_10"))
    json_row = table.to_json()["datasets"][0]["rows"][2]
    assert float(row["value"]) == json_row["metrics"]["recall_at_10"] == 0.2
    assert [float(row["low"]), float(row["high"])] == json_row["intervals"]["recall_at_10"]
    assert (row["stands_out"], row["seconds"], row["runs"]) == ("0", "2.5", "1")
    html = to_html(table)
    values = {float(value) for value in re.findall(r'<data value="([^"]+)"', html)}
    shown = {value for one in table.sections[0].rows for value in one.metrics.values()}
    assert shown <= values
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")
    assert html.count("<h2") == 4  # all data sets, things, failed, how to read this
