"""Tables and picture of docs/ablations.md, made of docs/ablations.csv, which has a row for each training.

python scripts/ablation_figures.py                 writes both into the page
python scripts/ablation_figures.py --figure R@1    prints the tables of another figure
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from composir.evaluation.significance import over_seeds
from composir.style import colours, dress, make_figure, save

DOCS = Path(__file__).parent.parent / "docs"
DATA, PAGE, PICTURE = DOCS / "ablations.csv", DOCS / "ablations.md", DOCS / "images/ablations.png"
BEGIN, END = "<!-- made by scripts/ablation_figures.py -->\n", "<!-- end -->\n"
PRIMARY = "mean(R@5+R_s@1)"
TITLES = {
    ("first", "scenes"): "Five seeds, scenes",
    ("first", "drawings"): "Five seeds, drawings",
    ("first in float32", "scenes"): "The late gate in float32, scenes",
    ("one by one", "scenes"): "One by one, scenes",
    ("one by one", "drawings"): "One by one, drawings",
    ("300 steps", "scenes"): "300 steps, scenes",
    ("300 steps", "drawings"): "300 steps, drawings",
}
"""Of each series of trainings on each set, in the page's order."""
HEAD = "| setting | minus | by seed | mean | 95 % interval | p |\n|---|---|---|---|---|---|\n"
NUM_QUERIES = {"scenes": 550, "drawings": 840}
OF_THE_GATE = ("alpha_", "gate_")
"""How settings begin that change the gate, and so are compared with it as published."""

Runs = list[dict[str, str]]
Figures = dict[int, float]
"""A figure of the runs of one setting, by seed."""


def read_runs() -> Runs:
    """Return a row for each training, by column."""
    with DATA.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def figures_of(runs: Runs, series: str, place: str, figure: str) -> dict[str, Figures]:
    """Return a figure by setting and seed, of one series on one set; percents are those of whole numbers of queries."""
    found: dict[str, Figures] = {}
    step = 0.0 if figure.startswith(("loss", "roughness")) else 50 / NUM_QUERIES[place]  # half, as one is a mean of two
    for run in runs:
        if (run["series"], run["set"]) == (series, place) and run[figure]:
            printed = float(run[figure])
            found.setdefault(run["setting"], {})[int(run["seed"])] = round(printed / step) * step if step else printed
    return found


def differences(runs: Runs, series: str, place: str, figure: str) -> Iterator[str]:
    """Yield a row of the table for each setting: its runs minus those of the same seeds that it is compared with."""
    found = figures_of(runs, series, place, figure)
    # On drawings "one by one" trained no baseline again: theirs are the first three seeds of the first series.
    base = figures_of(runs, "first", place, figure) | found
    for setting, by_seed in found.items():
        other = "fusion=gate" if setting.startswith(OF_THE_GATE) else "fusion=none"
        if setting == other:
            continue
        seeds = sorted(by_seed)
        first, second = (np.array([one[seed] for seed in seeds]) for one in (base[other], by_seed))
        test = over_seeds(first, second, paired=True)
        cells = [
            f"`{setting}`",
            f"`{other.removeprefix('fusion=')}`",
            ", ".join(_points(one) for one in second - first),
            _points(float(np.mean(second - first))),
            "–" if test.low is None or test.high is None else f"{_points(test.low)} to {_points(test.high)}",
            _probability(test.p_value),
        ]
        yield f"| {' | '.join(cells)} |\n"


def _points(number: float) -> str:
    return f"{number:+.2f}".replace("-", "−")


def _probability(p_value: float | None) -> str:
    if p_value is None:  # the runs do not differ among each other
        return "–"
    return f"{p_value:.3f}" if p_value >= 0.0005 else "< 0.001"


def tables(runs: Runs, figure: str) -> str:
    """Return the page's tables of a figure, a heading before each."""
    parts = []
    for (series, place), title in TITLES.items():
        rows = "".join(differences(runs, series, place, figure))
        if rows:
            parts.append(f"### {title}\n\n{HEAD}{rows}\n")
    return "".join(parts)


def draw(runs: Runs) -> None:
    """Write the picture: every run of 100 steps as a dot, its setting's mean as a bar, one panel a set."""
    figure = make_figure(12, 6.6)
    own = colours()
    for axes, place in zip(figure.subplots(1, 2), ("scenes", "drawings"), strict=True):
        found: dict[str, list[float]] = {}
        for series in ("first", "one by one"):
            for setting, by_seed in figures_of(runs, series, place, PRIMARY).items():
                found.setdefault(setting, []).extend(by_seed.values())
        settings = sorted(found, key=lambda setting: np.mean(found[setting]))
        for row, setting in enumerate(settings):
            axes.plot(found[setting], [row] * len(found[setting]), "o", color=own["composed"], alpha=0.5, markersize=5)
            axes.plot(np.mean(found[setting]), row, "|", color=own["text"], markersize=14, markeredgewidth=2)
        axes.axvline(np.mean(found["fusion=none"]), color=own["faint"], linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(settings)), settings)
        words = "A dot is a training, a bar their mean. Dotted: fusion=none."
        dress(axes, title=f"Best on {place}: {settings[-1]}", x=f"{PRIMARY}, percent", words=words)
    PICTURE.parent.mkdir(exist_ok=True)
    save(figure, PICTURE)


def main() -> None:
    """Write the page's tables and its picture, or print the tables of another figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", help="a column of docs/ablations.csv")
    options = parser.parse_args()
    runs = read_runs()
    if options.figure:
        sys.stdout.write(tables(runs, options.figure))
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + tables(runs, PRIMARY) + END + rest.partition(END)[2], encoding="utf-8")
    draw(runs)


if __name__ == "__main__":
    main()
