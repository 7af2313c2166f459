"""How things are printed: figures on stdout, everything else on stderr, bars among it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from composir.errors import Note, Problem

if TYPE_CHECKING:
    from composir.data import Left
    from composir.evaluation import Result

# Text is printed as it is: what a user calls a folder, "runs[lr=1]" or ":star:", is no markup.
out = Console(markup=False, emoji=False, highlight=False)
err = Console(stderr=True, markup=False, emoji=False, highlight=False)


def one_line(problem: Problem | Note) -> str:
    """Return a problem or a note without its line breaks."""
    return " ".join(str(problem).splitlines())


def printable(path: object) -> str:
    """Return a path in which line breaks and what a terminal would obey are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def tell_left(left_by_key: Mapping[str, Left]) -> None:
    """Say on stderr what the missing images leave of each split."""
    for key, left in left_by_key.items():
        err.print(f"{key}: {left}", soft_wrap=True)


def print_json(document: dict[str, Any]) -> None:
    """Print the one document of ``--json``."""
    print(json.dumps(document, indent=2, ensure_ascii=False))


class Bars:
    """Progress bars on stderr by name, each made when its first step is told."""

    def __init__(self) -> None:
        self.bars: dict[str, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=err,
        )

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *error: object) -> None:
        if self.bars:
            self.progress.stop()

    def tell(self, name: str, done: int, total: int, note: str = "") -> None:
        """Show that ``done`` of ``total`` are done; a count that falls starts the bar anew."""
        if not self.bars:
            self.progress.start()
        if name not in self.bars or done < self.progress.tasks[self.bars[name]].completed:
            self.bars[name] = self.progress.add_task(name, note="")
        self.progress.update(self.bars[name], completed=done, total=total, note=note)


class TrainBars:
    """Draws a training run as progress bars, and every validation as a line."""

    def __init__(self, bars: Bars, *, tells_batch: bool = False) -> None:
        self.bars, self.tells_batch = bars, tells_batch
        self.num_steps = 0
        self.first_step = 0
        self.images_per_step = 0
        self.start = 0.0

    def on_missing_images(self, left_by_key: Mapping[str, Left]) -> None:
        """Tell what is left of each split."""
        tell_left(left_by_key)

    def on_features(self, done: int, total: int, num_bytes: int) -> None:
        """Show how many images have their tokens."""
        tell_features(self.bars, done, total, num_bytes)

    def on_vectors(self, done: int, total: int, num_bytes: int) -> None:
        """Show how many pictures have their vectors."""
        tell_features(self.bars, done, total, num_bytes, name="vectors")

    def on_start(self, run: Path, recipe: Any, first_step: int, num_steps: int) -> None:
        """Tell the run folder."""
        self.num_steps, self.first_step = num_steps, first_step
        # Of each triplet: reference, target and look-alikes.
        self.images_per_step = recipe.batch_size * recipe.gradient_accumulation * (2 + recipe.subset_negatives)
        self.start = time.perf_counter()
        err.print(f"run folder: {run}", soft_wrap=True)
        if self.tells_batch:
            err.print(f"batch size: {recipe.batch_size}")

    def on_note(self, note: str) -> None:
        """Print it."""
        err.print(f"note: {note}", soft_wrap=True)

    def on_step(self, step: int, loss: float, alpha: float | None) -> None:
        """Show loss, alpha and images a second."""
        rate = (step - self.first_step) * self.images_per_step / (time.perf_counter() - self.start)
        gate = "" if alpha is None else f" alpha {alpha:.3f}"
        self.bars.tell("training", step, self.num_steps, f"loss {loss:.2f}{gate} {rate:.0f} images/s")

    def on_validation(self, epoch: int, result: Result, is_best: bool) -> None:
        """Print the figures."""
        from composir.evaluation import metric_label

        figures = "  ".join(f"{metric_label(key)} {100 * value:.2f}" for key, value in result.metrics.items())
        err.print(f"epoch {epoch}: {figures}{'  (best)' if is_best else ''}", soft_wrap=True)


def tell_features(bars: Bars, done: int, total: int, num_bytes: int, *, name: str = "image tokens") -> None:
    """Show how many images have their tokens, or what is named instead, and the size of all."""
    from composir.files import size_text

    bars.tell(name, done, total, size_text(num_bytes))
