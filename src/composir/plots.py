"""Curves of a run, and of the runs of an ablation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from composir.style import LINES, colours, dress, make_figure, name_ends, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP, LOSS_PREFIX, TOTAL = "step", "loss_", "total"
GATE_NAMES = {
    "alpha": "alpha",
    "mean_gate": "gate, mean",
    "gate_entropy": "gate's entropy, bits",
    "relative_change": "change, relative",
}
"""What the gate's columns are called in the picture."""
GRADIENT_PREFIX = "grad_"
OTHER_COLUMNS = ("epoch", "lr", "skipped_steps")
SMOOTHED_STEPS = 25
"""Batches of the running mean that is drawn over the losses; a quarter of them all where there are few."""
PANEL = 6.0, 4.3
"""Inches a panel is wide and high."""
DASHES = ("-", "--", ":")
"""Of lines that have run out of colours."""

Points = tuple[Sequence[float], Sequence[float]]


def plot_losses(losses_by_arm: Mapping[str, Float64[np.ndarray, "num_seeds _"]], out: Path, *, first_step: int) -> None:
    """Write the loss curves of several runs an arm as a PNG: their mean, and the range from the lowest to the highest.

    ``first_step`` is the number of the step that the first column belongs to.
    """
    figure = make_figure(9, 5)
    axes = figure.subplots()
    ends = []
    for (arm, losses), (colour, dash) in zip(losses_by_arm.items(), _looks(len(losses_by_arm)), strict=True):
        steps = np.arange(first_step, first_step + losses.shape[1])
        mean = losses.mean(axis=0)
        axes.plot(steps, mean, dash, linewidth=2, color=colour)
        axes.fill_between(steps, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.15, linewidth=0)
        axes.plot(steps, losses.T, color=colour, alpha=0.35, linewidth=0.6)
        ends.append((float(mean[-1]), arm, colour))
    lowest = min(ends)
    words = "The line is the mean over the seeds, the band reaches from the lowest run to the highest."
    dress(
        axes,
        title=f"At the end the loss is lowest with {lowest[1]}: {lowest[0]:.2f}",
        x="step",
        y="loss",
        words=words,
        whole_x=True,
    )
    name_ends(axes, ends)
    save(figure, out)


def plot_curves(
    rows: Sequence[Mapping[str, str]], losses: Mapping[str, Sequence[float]], out: Path, *, best_by: str
) -> None:
    """Write the curves of a run as a PNG: losses by step, figures in percent, gate and gradient norms by epoch.

    ``rows`` are those of training_log.csv, ``losses`` as ``State`` keeps them. The best validation is marked by the
    column ``best_by``. Every column is drawn that is no epoch, rate or count: those of gradients by how their names
    begin, and what is none of the others is a figure of the validation, whatever the data set.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    points = {
        name: (
            [float(row["epoch"]) for row in rows if row.get(name)],
            [float(row[name]) for row in rows if row.get(name)],
        )
        for name in names
    }
    gradients = {name.removeprefix(GRADIENT_PREFIX): points[name] for name in names if name.startswith(GRADIENT_PREFIX)}
    gate = {title: points[name] for name, title in GATE_NAMES.items() if name in points}
    figures = {
        name: points[name]
        for name in names
        if not name.startswith((LOSS_PREFIX, GRADIENT_PREFIX)) and name not in {TOTAL, *GATE_NAMES, *OTHER_COLUMNS}
    }
    drawing = [(draw, told) for draw, told in ((_draw_gate, gate), (_draw_gradients, gradients)) if told]
    num_panels = bool(losses) + bool(figures) + len(drawing)
    num_columns = min(num_panels, 2)
    num_rows = math.ceil(num_panels / num_columns)
    figure = make_figure(PANEL[0] * num_columns, PANEL[1] * num_rows)
    panels = iter(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    if losses:
        _draw_losses(next(panels), losses)
    if figures:
        _draw_validation(next(panels), figures, best_by)
    for draw, told in drawing:
        draw(next(panels), told)
    for empty in panels:
        empty.set_axis_off()
    save(figure, out)


def smoothed(values: Sequence[float], width: int) -> Float64[np.ndarray, " num_steps"]:
    """Return the mean of each value and the ``width // 2`` before and behind it, of fewer at both ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - width // 2, 0), np.minimum(places + width // 2 + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _looks(number: int) -> list[tuple[str, str]]:
    """Return a colour and a dash for each of so many lines."""
    return [
        (colours()[LINES[place % len(LINES)]], DASHES[place // len(LINES) % len(DASHES)]) for place in range(number)
    ]


def _draw_losses(axes: Axes, losses: Mapping[str, Sequence[float]]) -> None:
    steps = losses[STEP]
    names = [TOTAL, *(name for name in losses if name != STEP and losses[name] != losses[TOTAL])]
    width = max(1, min(SMOOTHED_STEPS, len(steps) // 4))
    ends, of_total = [], smoothed(losses[TOTAL], width)
    for name, (colour, dash) in reversed(list(zip(names, _looks(len(names)), strict=True))):
        line = smoothed(losses[name], width)
        axes.plot(steps, losses[name], color=colour, alpha=0.25, linewidth=0.7)
        is_total = name == TOTAL
        marker = "o" if len(steps) == 1 else ""
        axes.plot(steps, line, dash, color=colour, linewidth=2.4 if is_total else 1.5, marker=marker)
        ends.append((float(line[-1]), name, colour))
    first, last = of_total[0], of_total[-1]
    moved = (
        f"{'falls' if last < first else 'rises'} from {first:.2f} to {last:.2f}" if len(steps) > 1 else f"is {last:.2f}"
    )
    words = f"Faint: every batch. In full: the mean of {width} of them." if width > 1 else ""
    dress(axes, title=f"The training loss {moved}", x="step", y="loss", words=words, whole_x=True)
    name_ends(axes, ends)


def _draw_validation(axes: Axes, figures: Mapping[str, Points], best_by: str) -> None:
    epochs, values = figures[best_by]
    place = int(np.argmax(values))
    best = f"{best_by} {values[place]:.1f} %"
    if len(epochs) == 1:
        _draw_bars(axes, figures, [best_by])
        dress(axes, title=f"After epoch {epochs[0]:.0f}, the one that was validated: {best}", x="percent")
        return
    own = colours()
    ends = []
    for name, (at, figure) in figures.items():
        is_best = name == best_by
        colour = own["composed"] if is_best else own["rest"]
        axes.plot(at, figure, color=colour, linewidth=2.4 if is_best else 1.2, zorder=3 if is_best else 2)
        axes.plot(at, figure, "o", color=colour, markersize=4 if is_best else 2.5, zorder=3 if is_best else 2)
        ends.append((figure[-1], name, colour if is_best else own["faint"]))
    axes.plot(epochs[place], values[place], "*", color=own["image"], markersize=15, markeredgecolor="white", zorder=4)
    dress(
        axes,
        title=f"Best after epoch {epochs[place]:.0f}: {best}",
        x="epoch",
        y="validation, percent",
        words="The star is the best model, the blue line the figure it is chosen by.",
        whole_x=True,
    )
    name_ends(axes, ends)


def _draw_gate(axes: Axes, gate: Mapping[str, Points]) -> None:
    mean, change = gate.get(GATE_NAMES["mean_gate"]), gate.get(GATE_NAMES["relative_change"])
    title = "How far the sentence changes the query"
    if mean is not None:
        title = f"The gate is open by {mean[1][-1]:.2f} on average"
    elif change is not None:
        title = f"The sentence changes the reference by {change[1][-1]:.2f} of its length"
    words = "0 is shut and 1 is open; an entropy of 1 is a gate that is half open everywhere."
    _draw_by_epoch(axes, gate, title=title, words=words if mean is not None else "")


def _draw_gradients(axes: Axes, gradients: Mapping[str, Points]) -> None:
    largest = max(gradients, key=lambda part: gradients[part][1][-1])
    words = "Norms before clipping, mean over the steps of an epoch, each part of the model by itself."
    title = f"Gradients are largest in the part “{largest}”"
    _draw_by_epoch(
        axes, gradients, title=title, words=words, log=all(min(values) > 0 for _, values in gradients.values())
    )


def _draw_by_epoch(axes: Axes, lines: Mapping[str, Points], *, title: str, words: str, log: bool = False) -> None:
    """Draw lines over epochs; of a single epoch bars, as there is nothing to follow."""
    from matplotlib.ticker import LogLocator  # noqa: PLC0415 (nothing of it is needed before the first validation)

    if max(len(at) for at, _ in lines.values()) == 1:
        _draw_bars(axes, lines, list(lines))
        dress(axes, title=title, x="", words=words)
        return
    ends = []
    for (name, (at, values)), (colour, dash) in zip(lines.items(), _looks(len(lines)), strict=True):
        axes.plot(at, values, dash, color=colour, linewidth=1.8, marker="o", markersize=3)
        ends.append((math.log10(values[-1]) if log else values[-1], name, colour))
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    dress(axes, title=title, x="epoch", words=words, whole_x=True)
    name_ends(axes, ends)


def _draw_bars(axes: Axes, figures: Mapping[str, Points], strong: Sequence[str]) -> None:
    """Draw the last value of each as a bar with its number behind it, the first on top."""
    names, values = list(figures), [values[-1] for _, values in figures.values()]
    fill = [colours()["composed" if name in strong else "rest"] for name in names]
    bars = axes.barh(names, values, color=fill, height=0.62)
    axes.bar_label(bars, [f"{value:.4g}" for value in values], padding=4, fontsize=8.5, color=colours()["text"])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14 * max(values))
