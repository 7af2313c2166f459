"""How things are printed: figures on stdout, everything else on stderr, bars among it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass
class _Begun:
    """A piece of work: when and at what count it was first told of, the count told last, and when it was printed."""

    at: float
    first: int
    last: int
    printed: float


class Bars:
    """How far work is, on stderr by name: progress bars, or plain lines where there is no terminal.

    Lines come when the first piece of work begins, every ``seconds`` after that, and when each piece is done.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self.begun: dict[str, _Begun] = {}
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
        """Show that ``done`` of ``total`` are done; a count that falls starts anew."""
        if not err.is_terminal:
            self._print(name, done, total, note)
            return
        if not self.bars:
            self.progress.start()
        if name not in self.bars or done < self.progress.tasks[self.bars[name]].completed:
            self.bars[name] = self.progress.add_task(name, note="")
        self.progress.update(self.bars[name], completed=done, total=total, note=note)

    def _print(self, name: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        is_first = not self.begun
        begun = self.begun.get(name)
        if begun is None or done < begun.last:
            begun = self.begun[name] = _Begun(now, done, done, now)
        begun.last = done
        is_due = is_first or now - begun.printed >= self.seconds
        if not is_due and done < total:
            return
        begun.printed = now
        parts = [f"{name}: {done:,} of {total:,}"]
        rate = (done - begun.first) / (now - begun.at) if now > begun.at else 0.0
        if rate:
            parts.append(f"{rate:,.0f} a second" if rate >= 10 else f"{rate:.2g} a second")
        if rate and done < total:
            parts.append(f"{in_words((total - done) / rate)} left")
        err.print(", ".join(parts) + (f"; {note}" if note else ""), soft_wrap=True)


def in_words(seconds: float) -> str:
    """Return a time to two parts: ``40 s``, ``3 min 5 s``, ``2 h 10 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


class TrainBars:
    """Tells of a training run by ``Bars``, and of every epoch and validation by a line."""

    def __init__(self, bars: Bars, *, tells_batch: bool = False) -> None:
        self.bars, self.tells_batch = bars, tells_batch
        self.num_steps = 0
        self.step = self.first_step = 0
        self.images_per_step = 0
        self.start = 0.0
        self.epoch_line, self.epoch_printed = "", 0.0

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
        self.num_steps, self.step = num_steps, first_step
        # Of each triplet: reference, target and look-alikes.
        self.images_per_step = recipe.batch_size * recipe.gradient_accumulation * (2 + recipe.subset_negatives)
        self.epoch_printed = time.monotonic()
        self._begin()
        err.print(f"run folder: {run}", soft_wrap=True)
        if self.tells_batch:
            err.print(f"batch size: {recipe.batch_size}")

    def on_note(self, note: str) -> None:
        """Print it."""
        err.print(f"note: {note}", soft_wrap=True)

    def on_step(self, step: int, losses: Mapping[str, float], alpha: float | None) -> None:
        """Show the losses, images a second and alpha."""
        self.step = step
        parts = [f"loss {losses['total']:.2f}", self._speed(step)]
        parts += [] if alpha is None else [f"alpha {alpha:.3f}"]
        self.bars.tell("training", step, self.num_steps, "  ".join([*parts, *_terms(losses)]))

    def on_epoch(self, epoch: int, losses: Mapping[str, float]) -> None:
        """Print its mean losses and images a second, at once or with its validation; of brief epochs not each."""
        means = [f"epoch {epoch}: loss {losses['total']:.4f}", *_terms(losses, digits=4), self._speed(self.step)]
        self.epoch_line = "  ".join(means)
        if time.monotonic() - self.epoch_printed >= self.bars.seconds:
            self._print_epoch()
        self._begin()

    def _print_epoch(self) -> None:
        if self.epoch_line:
            err.print(self.epoch_line, soft_wrap=True)
        self.epoch_line, self.epoch_printed = "", time.monotonic()

    def _begin(self) -> None:
        """Count images a second from here on."""
        self.first_step, self.start = self.step, time.perf_counter()

    def _speed(self, step: int) -> str:
        return f"{(step - self.first_step) * self.images_per_step / (time.perf_counter() - self.start):.0f} images/s"

    def on_validation(self, epoch: int, result: Result, is_best: bool) -> None:
        """Print the figures."""
        from composir.evaluation import metric_label

        self._print_epoch()
        figures = "  ".join(f"{metric_label(key)} {100 * value:.2f}" for key, value in result.metrics.items())
        err.print(f"epoch {epoch}: {figures}{'  (best)' if is_best else ''}", soft_wrap=True)
        self._begin()


def _terms(losses: Mapping[str, float], *, digits: int = 2) -> list[str]:
    """Return the terms of the loss by name, without their total."""
    return [f"{name} {value:.{digits}f}" for name, value in losses.items() if name != "total"]


def tell_features(bars: Bars, done: int, total: int, num_bytes: int, *, name: str = "image tokens") -> None:
    """Show how many images have their tokens, or what is named instead, and the size of all."""
    from composir.files import size_text

    bars.tell(name, done, total, size_text(num_bytes))
