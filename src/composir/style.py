"""The one look of all that is drawn: colours, letters and axes, those of the evaluation report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
from PIL import ImageFont

from composir.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = ("composed", "image", "alone", "both", "rest")
"""Names of the colours of lines, in the order in which they are used; told apart with any colour vision (a test)."""
TITLE_WIDTH, WORDS_WIDTH = 52, 72
"""Letters in a line above and below a panel of six inches."""
LETTERS = 11.0
"""Points from one line of letters to the next beside a plot."""
PLOT_SHARE = 0.6
"""How much of a panel's height is at least the plot's own, below a title and above words of two lines."""
DPI = 144
"""Of the plots: they are read at half their size, too."""


@cache
def look() -> str:
    """Return the style sheet that all pages begin with; its variables are the colours."""
    return resources.files("composir").joinpath("look.css").read_text(encoding="utf-8")


@cache
def colours(*, dark: bool = False) -> dict[str, str]:
    """Return the colours of a page, light or dark, as ``#rrggbb``, by the names that the style sheet has for them."""
    light, _, rest = look().partition("@media (prefers-color-scheme: dark)")
    rules = rest if dark else light
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", rules.partition("}")[0]))


def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans, which comes with matplotlib: Pillow's own font has neither accents nor dashes."""
    import matplotlib  # noqa: PLC0415 (for a font alone, where a picture is drawn)

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def wrapped(text: str, letters: ImageFont.FreeTypeFont, width: int, num_lines: int) -> list[str]:
    """Return the text in lines no wider than ``width`` pixels; the last ends in ``…`` where text is left."""
    lines = [""]
    for word in text.split():
        extended = f"{lines[-1]} {word}".strip()
        if letters.getlength(extended) <= width:
            lines[-1] = extended
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if letters.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) <= num_lines:
        return lines
    return [*lines[: num_lines - 1], fitted(f"{lines[num_lines - 1]}…", letters, width)]


def fitted(text: str, letters: ImageFont.FreeTypeFont, width: int) -> str:
    """Return the text, or as much of its start as ``width`` pixels hold with a final ``…``."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(f"{text}…") > width:
        text = text.rstrip("…")[:-1]
    return f"{text}…"


def make_figure(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (nothing of it is needed before the first validation)
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415 (as above)

    layout = ConstrainedLayoutEngine(w_pad=0.25, h_pad=0.2)
    return Figure(figsize=(width, height), layout=layout, dpi=DPI, facecolor=colours()["page"])


def dress(axes: Axes, *, title: str, x: str, y: str = "", words: str = "", whole_x: bool = False) -> None:
    """Give a panel its title, which says what is to be seen in it, its axes' names, a quiet grid, and words below.

    With ``whole_x`` only whole numbers stand on the axis of x, and lines of the grid are for y.
    """
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 (as above)

    own = colours()
    title, words = fill(title, TITLE_WIDTH), fill(words, WORDS_WIDTH)
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=own["text"], pad=10, parse_math=False)
    below = "\n".join(part for part in (x, words) if part)
    axes.set_xlabel(below, color=own["faint"], fontsize=9, loc="left", linespacing=1.5, parse_math=False)
    axes.set_ylabel(y, color=own["faint"], fontsize=9)
    axes.tick_params(colors=own["faint"], labelsize=8.5, length=0, which="both")
    axes.grid(axis="y" if whole_x else "x", color=own["line"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(own["line"])
    if whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name beside its end at the right, none over another: so no legend hides a line.

    ``ends`` are, for each line, its last y (its logarithm where the axis is so), its name and its colour. The limits
    of y stay those of now.
    """
    is_log = axes.get_yscale() == "log"
    limits = axes.get_ylim()
    low, high = np.log10(limits) if is_log else limits
    gridspec = axes.get_gridspec()
    height = PLOT_SHARE * axes.figure.bbox.height / axes.figure.dpi / (1 if gridspec is None else gridspec.nrows)
    line_height = LETTERS / 72 * (high - low) / height
    ordered = sorted(ends)
    for (value, name, colour), y in zip(
        ordered, spread([one[0] for one in ordered], line_height, (low, high)), strict=True
    ):
        axes.annotate(
            name,
            (1, (value - low) / (high - low)),
            (1.03, (y - low) / (high - low)),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=8.5,
            va="center",
            parse_math=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )
    axes.set_ylim(limits)


def spread(values: Sequence[float], least: float, within: tuple[float, float]) -> list[float]:
    """Return ascending values moved as little as lets neighbours be ``least`` apart, each group about its own mean.

    None is beyond ``within``, as long as there is room.
    """
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _top(groups[-2], least) > _bottom(groups[-1], least) - least:
            last = groups.pop()
            groups[-1] += last
    apart = np.array([_bottom(group, least) + place * least for group in groups for place in range(len(group))])
    steps = least * np.arange(len(apart))
    low, high = within
    return np.maximum(np.minimum(apart, high - steps[::-1]), low + steps).tolist()


def _bottom(group: Sequence[float], least: float) -> float:
    return float(np.mean(group)) - (len(group) - 1) * least / 2


def _top(group: Sequence[float], least: float) -> float:
    return float(np.mean(group)) + (len(group) - 1) * least / 2


def save(figure: Figure, out: Path) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png")
