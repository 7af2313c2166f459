"""The picture: rows of heat maps on the reference, and what was retrieved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from PIL import Image, ImageOps

from composir.data.images import read_image
from composir.errors import ComposirError
from composir.files import replacing
from composir.heat import HEAT_SIDE, heat
from composir.visualize.answers import Answer, Hit
from composir.visualize.heads import GATE_TITLE, NUM_BINS, HeadAnswer
from composir.visualize.maps import Map, limits_by_map

MAX_NUMBERED = 9
"""Rows of patches up to which every patch has its number written on it."""
PANEL = 2.5
"""Inches a map is wide."""
RANKING = 1.25
"""Inches a row of retrieved pictures is high."""
DPI = 110
TARGET_COLOUR = "#0b6e99"


def draw(image: Path, answers: Sequence[Answer], out: Path) -> None:
    """Write a PNG: a row of heat maps for every sentence, and under it what was retrieved.

    Each column has one scale for all sentences, so that they can be compared; its bar is below the last row.
    """
    picture = read_image(image)
    limits = limits_by_map([one.trace for one in answers])
    num_columns = max(len(limits) + 1, 4)
    has_rankings = bool(answers[0].rankings)
    num_rankings = len(answers[0].rankings)
    heights = []
    for number in range(len(answers)):
        heights += [PANEL + (0.75 if number == len(answers) - 1 or has_rankings else 0.1) + 0.35]
        heights += [RANKING * num_rankings + 0.2] if has_rankings else []
    figure = Figure(figsize=(PANEL * num_columns, sum(heights)), layout="constrained", dpi=DPI)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    step = 2 if has_rankings else 1
    for number, one in enumerate(answers):
        part = parts[step * number]
        _draw_maps(part, picture, one, limits=limits, num_columns=num_columns)
        if has_rankings:
            _draw_rankings(parts[step * number + 1], one.rankings)
    _save(figure, out)


def draw_head(image: Path, answers: Sequence[HeadAnswer], out: Path) -> None:
    """Write a PNG: for every sentence how far the head's gate is open, what is told in numbers, what was retrieved."""
    picture = read_image(image)
    num_rankings = len(answers[0].rankings)
    heights = [PANEL + 0.35, *([RANKING * num_rankings + 0.2] if num_rankings else [])]
    height = sum(heights) * len(answers)
    figure = Figure(figsize=(4 * PANEL, height), layout="constrained", dpi=DPI)
    parts = figure.subfigures(len(heights) * len(answers), 1, height_ratios=heights * len(answers), squeeze=False)
    most = max((one.channels.max() for one in answers if one.channels is not None), default=0)
    for one, rows in zip(answers, parts.reshape(len(answers), -1), strict=True):
        _write_sentence(rows[0], one.text)
        panels = rows[0].subplots(1, 3, width_ratios=(1, 1.5, 1.5))
        panels[0].imshow(picture)
        panels[0].set_title("reference", fontsize=9)
        panels[2].text(0, 0.9, "\n".join(f"{name}: {value}" for name, value in one.figures().items()), va="top")
        for panel in (panels[0], panels[2], *([panels[1]] if one.channels is None else [])):
            panel.set_axis_off()
        if one.channels is not None:
            panels[1].stairs(one.channels, np.linspace(0, 1, NUM_BINS + 1), fill=True, color=TARGET_COLOUR)
            panels[1].set(xlim=(0, 1), ylim=(0, 1.05 * most))
            panels[1].set_title(GATE_TITLE, fontsize=9)
            panels[1].tick_params(labelsize=7)
        if num_rankings:
            _draw_rankings(rows[1], one.rankings)
    _save(figure, out)


def _draw_maps(
    part: SubFigure,
    picture: Image.Image,
    answer: Answer,
    *,
    limits: Mapping[Map, tuple[float, float]],
    num_columns: int,
) -> None:
    _write_sentence(part, answer.text)
    panels = part.subplots(1, num_columns, squeeze=False)[0]
    for panel in panels:
        panel.set_axis_off()
    panels[0].imshow(picture)
    panels[0].set_title("reference", fontsize=9)
    target = None if answer.target is None else read_image(answer.target)
    for panel, one in zip(panels[1:], limits, strict=False):
        values = one.values(answer.trace)
        if values is None:
            continue
        under, box = (target, answer.trace.target_box) if one.of_target else (picture, answer.trace.box)
        assert under is not None
        assert box is not None
        _draw_heat(panel, under, box, values, kind=one, limits=limits[one])
        panel.set_title(one.title, fontsize=9)
        bar = part.colorbar(
            ScalarMappable(Normalize(*limits[one]), one.colours),
            ax=panel,
            location="bottom",
            fraction=0.05,
            pad=0.02,
        )
        bar.ax.tick_params(labelsize=7)
        bar.set_label(_wrap(one.meaning), fontsize=7)


def _write_sentence(part: SubFigure, text: str) -> None:
    part.suptitle(f"“{text}”", fontsize=12, fontweight="bold", x=0.01, ha="left", parse_math=False)


def _draw_heat(
    axes: Axes,
    picture: Image.Image,
    box: tuple[float, float, float, float],
    values: Float32[np.ndarray, "rows columns"],
    *,
    kind: Map,
    limits: tuple[float, float],
) -> None:
    """Draw values over a picture in pale grey, on the square ``box`` (in its pixels) that the patches share.

    Beyond the square lies what the model does not see, without colour; padding, which it does see, is dark.
    """
    left, top, right, bottom = box
    pale = 160 + np.asarray(ImageOps.grayscale(picture), dtype=np.float32) * 3 / 8
    axes.imshow(pale, cmap="gray", vmin=0, vmax=255, extent=(0, picture.width, picture.height, 0))
    square = picture.transform((HEAT_SIDE, HEAT_SIDE), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    colours = colormaps[kind.colours](np.arange(256))[:, :3]
    axes.imshow(heat(square, values, limits, colours), extent=(left, right, bottom, top), zorder=2)
    if len(values) <= MAX_NUMBERED:
        rows, columns = values.shape
        for (row, column), value in np.ndenumerate(values):
            x, y = left + (column + 0.5) * (right - left) / columns, top + (row + 0.5) * (bottom - top) / rows
            axes.text(
                x,
                y,
                f"{value:.{kind.digits}f}",
                fontsize=5.5,
                ha="center",
                va="center",
                color=_ink(value, limits, kind),
                zorder=3,
            )
    axes.set_xlim(min(0, left), max(picture.width, right))
    axes.set_ylim(max(picture.height, bottom), min(0, top))


def _ink(value: float, limits: tuple[float, float], kind: Map) -> str:
    """Return black or white, whichever is read better on the value's colour."""
    red, green, blue, _ = colormaps[kind.colours](Normalize(*limits)(value))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _draw_rankings(part: SubFigure, rankings: Mapping[str, tuple[Hit, ...]]) -> None:
    first = next(iter(rankings.values()))
    rank_before = {hit.name: rank for rank, hit in enumerate(first, 1)}
    rows = part.subplots(len(rankings), max(map(len, rankings.values())) + 1, squeeze=False)
    for number, (row, (way, hits)) in enumerate(zip(rows, rankings.items(), strict=True)):
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.axis("off")
        row[0].text(1, 0.5, way, fontsize=9, ha="right", va="center", transform=row[0].transAxes)
        for rank, (panel, hit) in enumerate(zip(row[1:], hits, strict=False), 1):
            panel.imshow(ImageOps.contain(read_image(hit.source), (160, 160)))
            moved = ""
            if number and rank_before.get(hit.name) != rank:
                moved = f" (was {rank_before[hit.name]})" if hit.name in rank_before else " (new)"
            title = f"{rank}{moved}  {hit.score:.3f}" + ("  target" if hit.is_target else "")
            panel.set_title(title, fontsize=7.5, color=TARGET_COLOUR if hit.is_target else "black")
            panel.axis("on")
            for side in panel.spines.values():
                side.set(color=TARGET_COLOUR if hit.is_target else "#ccc", linewidth=3 if hit.is_target else 0.5)


def _wrap(words: str, width: int = 34) -> str:
    lines = [""]
    for word in words.split():
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [*lines, word]
    return "\n".join(lines)


def _save(figure: Figure, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            figure.savefig(temporary, format="png")
    except OSError as error:
        raise cannot_be_written(out, error) from error


def cannot_be_written(file: Path, error: OSError) -> ComposirError:
    """Return the error of a picture or page that the disk does not take."""
    return ComposirError(f"cannot be written ({error.strerror})", file=file, fix="name a file in a folder of your own")
