"""An ablation for people: one picture of the losses, one Markdown and one HTML page with the same content."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from jinja2 import Environment

from composir.evaluation import OverSeeds, metric_label
from composir.files import write_text
from composir.machine import describe_machine
from composir.plots import plot_losses
from composir.style import look
from composir.training.ablation import SMOOTHING_STEPS, Ablation, Training, moving_average

LOSSES, MARKDOWN, PAGE, DOCUMENT = "losses.png", "report.md", "report.html", "ablation.json"
TEMPLATE = "ablation.html.jinja"
_TRAINING_LABELS = {
    "seconds_per_step": "seconds a step (median)",
    "mean_loss": "loss, mean over all steps",
    "roughness": "roughness of the loss",
}


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a table and what has to be known to read it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    num_names: int = 1
    """Columns at the left that hold names, not numbers."""


def write_report(ablation: Ablation, out: Path, *, command: str) -> dict[str, Path]:
    """Write the report into ``out`` and return its files: ``json``, ``markdown``, ``html`` and ``losses``.

    ``command`` is what repeats the ablation.
    """
    files = {"json": out / DOCUMENT, "markdown": out / MARKDOWN, "html": out / PAGE, "losses": out / LOSSES}
    write_text(files["json"], json.dumps(ablation.to_json(), indent=2, ensure_ascii=False))
    smooth = {arm: moving_average(losses) for arm, losses in ablation.losses.items()}
    plot_losses(
        smooth, files["losses"], first_step=min(SMOOTHING_STEPS, *(c.shape[1] for c in ablation.losses.values()))
    )
    title = "Ablation: " + ", ".join(row.name for row in ablation.comparison.rows)
    facts = {
        "command": command,
        "measured": ablation.comparison.signature,
        "machine": ", ".join(f"{name} {value}" for name, value in describe_machine().items() if value is not None),
    }
    tables = sections(ablation)
    write_text(files["markdown"], _markdown(title, facts, tables))
    template = resources.files("composir.training").joinpath(TEMPLATE).read_text(encoding="utf-8")
    picture = base64.b64encode(files["losses"].read_bytes()).decode()
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    write_text(files["html"], page.render(title=title, facts=facts, sections=tables, picture=picture, style=look()))
    return files


def sections(ablation: Ablation) -> list[Section]:
    """Return the tables of the report, in percent where figures are shares."""
    keys = list(ablation.comparison.rows[0].metrics)
    runs = Section(
        "All runs",
        ("arm", "seed", *map(metric_label, keys), "seconds a step", "run"),
        tuple(
            (
                run.arm,
                str(run.seed),
                *(f"{100 * run.metrics[key]:.2f}" for key in keys),
                f"{run.seconds_per_step:.3f}",
                run.run.name,
            )
            for run in ablation.runs
        ),
        "The best validation of each run, in percent.",
    )
    means = Section(
        "Means over the seeds",
        ("arm", *map(metric_label, keys)),
        tuple(
            (row.name, *(f"{100 * row.metrics[key]:.2f} ({_range(*row.intervals[key])})" for key in keys))
            for row in ablation.comparison.rows
        ),
        "With the 95 % bootstrap interval over queries.",
    )
    differences = Section(
        "Differences",
        ("of", "over", "figure", "points", "95 % over queries", "p", "95 % over seeds", "p (seeds)", "p (seeds), Holm"),
        tuple(
            (
                one.b,
                one.a,
                metric_label(one.metric),
                f"{100 * one.delta:+.2f}",
                _range(one.low, one.high, signed=True),
                f"{one.p_value:.4f}",
                *_seeds(one.over_seeds),
            )
            for one in ablation.comparison.differences
        ),
        "Over queries: would other queries show it, with these trained models? Over seeds: would training again?",
        num_names=3,
    )
    training = Section(
        "Training",
        ("of", "over", "figure", "mean", "mean of the other", "ratio", "95 % of the difference over seeds", "p"),
        tuple(_training_row(one) for one in ablation.training),
        f"Roughness: the standard deviation of the loss about its moving average over {SMOOTHING_STEPS} steps, "
        "relative to it. The runs followed each other on one machine: compare seconds within a seed.",
        num_names=3,
    )
    return [differences, means, runs, training]


def _range(low: float, high: float, *, signed: bool = False) -> str:
    return f"{100 * low:+.2f} to {100 * high:+.2f}" if signed else f"{100 * low:.2f}–{100 * high:.2f}"


def _seeds(over_seeds: OverSeeds | None) -> tuple[str, str, str]:
    if over_seeds is None or over_seeds.low is None or over_seeds.high is None or over_seeds.p_value is None:
        return "–", "–", "–"
    adjusted = over_seeds.p_value if over_seeds.p_adjusted is None else over_seeds.p_adjusted
    return _range(over_seeds.low, over_seeds.high, signed=True), f"{over_seeds.p_value:.4f}", f"{adjusted:.4f}"


def _training_row(one: Training) -> tuple[str, ...]:
    test = one.over_seeds
    known = test is not None and test.low is not None and test.p_value is not None
    return (
        one.b,
        one.a,
        _TRAINING_LABELS[one.figure],
        f"{one.b_mean:.4f}",
        f"{one.a_mean:.4f}",
        f"{one.b_mean / one.a_mean:.3f}" if one.a_mean else "–",
        f"{test.low:+.4f} to {test.high:+.4f}" if test is not None and known else "–",
        f"{test.p_value:.4f}" if test is not None and known else "–",
    )


def _markdown(title: str, facts: dict[str, str], tables: list[Section]) -> str:
    parts = [f"# {title}", *(f"- {name}: `{value}`" for name, value in facts.items())]
    for section in tables:
        lines = [section.header, tuple("---" for _ in section.header), *section.rows]
        parts += ["", f"## {section.title}", "", *("| " + " | ".join(line) + " |" for line in lines)]
        parts += ["", section.note] if section.note else []
    return "\n".join([*parts, "", "## Losses", "", f"![The losses of all runs by arm]({LOSSES})", ""])
