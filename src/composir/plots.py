"""Curves of a run."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from composir.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSS_PREFIX, TOTAL = "loss_", "total"
GATE_COLUMNS = ("alpha", "mean_gate", "gate_entropy", "relative_change")
GRADIENT_PREFIX = "grad_"
OTHER_COLUMNS = ("epoch", "lr")


def plot_losses(losses_by_arm: Mapping[str, Float64[np.ndarray, "num_seeds _"]], out: Path, *, first_step: int) -> None:
    """Write the loss curves of several runs an arm as a PNG: their mean, and the range from the lowest to the highest.

    ``first_step`` is the number of the step that the first column belongs to.
    """
    figure = _figure(8, 4.5)
    axes = figure.subplots()
    for arm, losses in losses_by_arm.items():
        steps = np.arange(first_step, first_step + losses.shape[1])
        (line,) = axes.plot(steps, losses.mean(axis=0), linewidth=1.5, label=arm)
        axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=line.get_color(), alpha=0.2, linewidth=0)
        axes.plot(steps, losses.T, color=line.get_color(), alpha=0.35, linewidth=0.6)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def plot_curves(log: Path, out: Path) -> None:
    """Write the curves of a training_log.csv as a PNG: losses, figures in percent, gate, gradient norms.

    Every column is drawn that is no epoch and no rate: those of losses and gradients by how their names begin, and what
    is none of them is a figure of the validation, whatever the data set.
    """
    with log.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = list(rows[0]) if rows else []
    names += [name for row in rows for name in row if name not in names]
    losses = [name for name in names if name.startswith(LOSS_PREFIX) or name == TOTAL]
    gradients = [name for name in names if name.startswith(GRADIENT_PREFIX)]
    figures = [name for name in names if name not in {*losses, *gradients, *GATE_COLUMNS, *OTHER_COLUMNS}]
    panels = [
        ("loss", losses),
        ("validation, percent", figures),
        ("gate", list(GATE_COLUMNS)),
        ("gradient norm", gradients),
    ]
    panels = [(title, [name for name in names if any(row.get(name) for row in rows)]) for title, names in panels]
    panels = [(title, names) for title, names in panels if names]
    figure = _figure(5 * len(panels), 4)
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name in names:
            points = [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name)]
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (nothing of it is needed before the first validation)

    return Figure(figsize=(width, height), layout="constrained")
