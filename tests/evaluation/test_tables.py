"""A result and a comparison as a person reads them."""

from __future__ import annotations

import dataclasses
import io

import pytest
import torch
from rich.console import Console
from rich.table import Table

from composir.evaluation import (
    Comparison,
    Difference,
    OverSeeds,
    Result,
    Run,
    Standing,
    comparison_tables,
    rank,
    rerank_lines,
    table,
)
from composir.evaluation.result import Rerank


@pytest.fixture
def result(make_split, make_query) -> Result:
    split = make_split([make_query(0, "g59", ["g0"]), make_query(1, "g59", ["g1"])], 60, dataset="FashionIQ")
    ranking = rank(torch.linspace(1, 0, 60).repeat(2, 1), split)
    return Result(
        metrics={
            "recall_at_10": 0.4,
            "recall_at_50": 0.6,
            "mean_r10_r50": 0.5,
            "dress.recall_at_10": 0.12345,
        },
        intervals={
            "recall_at_10": (0.35, 0.45),
            "recall_at_50": (0.55, 0.65),
            "mean_r10_r50": (0.45, 0.55),
            "dress.recall_at_10": (0.1, 0.2),
        },
        baselines={
            "image_only": dict.fromkeys(["recall_at_10", "recall_at_50", "mean_r10_r50", "dress.recall_at_10"], 0.01),
            "text_only": dict.fromkeys(["recall_at_10", "recall_at_50", "mean_r10_r50", "dress.recall_at_10"], 0.02),
        },
        audit=None,
        signature_fields={"dataset": "FashionIQ", "split": "val", "weights": "abc"},
        rankings={"composed": (ranking,)},
    )


def printed(*views: Table) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    for view in views:
        console.print(view)
    assert isinstance(console.file, io.StringIO)
    return [" ".join(line.replace("│", " ").split()) for line in console.file.getvalue().splitlines()]


def test_the_table_stands_in_percent_beside_the_baselines(result):
    lines = printed(table(result))
    assert "FashionIQ val: 2 queries, 60 gallery images" in lines
    assert "R@10 40.00 35.00 – 45.00 1.00 2.00" in lines
    assert "mean(R@10+R@50) 50.00 45.00 – 55.00 1.00 2.00" in lines
    assert "dress R@10 12.35 10.00 – 20.00 1.00 2.00" in lines
    assert "dataset:FashionIQ split:val weights:abc" in lines


def test_the_table_without_baselines(result):
    assert "R@10 40.00 35.00 – 45.00" in printed(table(dataclasses.replace(result, baselines={})))


def test_what_re_ranking_started_from_is_a_sentence(result):
    assert rerank_lines(result) == []
    reranked = dataclasses.replace(result, rerank=Rerank(100, 0.6543, {result.primary: 0.2}))
    assert rerank_lines(reranked) == [
        "the best 100 of each query are re-ranked; 65.43 % of the targets are among them, the ceiling of recall; "
        "mean(R@10+R@50) was 20.00"
    ]


@pytest.fixture
def comparison() -> Comparison:
    """Two groups of two runs; what is sure of their difference is told for R@10 and not for R@1."""
    metrics = {"recall_at_1": 0.125, "recall_at_10": 0.5}
    runs = tuple(Run(f"{seed}", seed, f"{seed}", metrics) for seed in (3, 8))
    rows = tuple(
        Standing(name, metrics, {"recall_at_1": (0.0, 0.375), "recall_at_10": (0.25, 0.75)}, runs)
        for name in ("plain", "gate")
    )
    sure = OverSeeds("paired t", -1.2133, 1.9633, p_value=0.2048, p_adjusted=0.4096)
    unsure = OverSeeds("Welch t", None, None, None)
    differences = (
        Difference("plain", "gate", "recall_at_10", 0.375, -0.25, 0.75, 0.00005, 4, 2, sure, p_adjusted=0.0001),
        Difference("plain", "gate", "recall_at_1", 0.0, 0.0, 0.0, 1.0, 1204, 2, unsure),
    )
    return Comparison(rows, differences, {"dataset": "LaSCo", "ties": "pessimistic"})


def test_a_comparison_is_a_table_of_figures_and_one_of_differences_for_each_metric(comparison):
    lines = printed(*comparison_tables(comparison))
    assert "R@1 12.50 0.00–37.50 12.50 0.00–37.50" in lines
    assert sum("2 runs ┃ 2 runs" in line for line in lines) == 1
    assert sum("dataset:LaSCo ties:pessimistic" in line for line in lines) == 1
    first, second = (lines.index(f"differences of {label}, percentage points") for label in ("R@10", "R@1"))
    assert first < second
    assert "gate − plain 4 queries +37.50 -25.00 to +75.00 < 0.0001 0.0001" in lines[first:second]
    assert "2 runs, paired t -121.33 to +196.33 0.2048 0.4096" in lines[first:second]
    assert "gate − plain 1,204 queries +0.00 +0.00 to +0.00 1.0000 1.0000" in lines[second:]


def test_what_runs_do_not_prove_is_a_dash(comparison):
    assert "2 runs, Welch t – – –" in printed(*comparison_tables(comparison))


def test_a_group_of_one_run_has_one_line_a_difference(comparison):
    rows = tuple(dataclasses.replace(row, runs=row.runs[:1]) for row in comparison.rows)
    differences = tuple(dataclasses.replace(one, over_seeds=None) for one in comparison.differences)
    lines = printed(*comparison_tables(dataclasses.replace(comparison, rows=rows, differences=differences)))
    assert not [line for line in lines if "runs" in line]
