"""What commands share: the applications they belong to, options, bars, and how things are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from composir.errors import ComposirError, Note, Problem, nearest
from composir.limits import MAX_SEED, MAX_WORKERS

if TYPE_CHECKING:
    from composir.data import Left

USER_ERROR, INTERRUPTED = 2, 130

app = typer.Typer(
    help="Composed image retrieval: a picture and a sentence that says what should differ, answered by a ranking.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Check, describe and make data sets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
benchmark_app = typer.Typer(
    help="Measure speed and memory, as ratios within one run; every repetition and the machine are printed.",
    no_args_is_help=True,
)
app.add_typer(benchmark_app, name="benchmark")

# Text is printed as it is: what a user calls a folder, "runs[lr=1]" or ":star:", is no markup.
out = Console(markup=False, emoji=False, highlight=False)
err = Console(stderr=True, markup=False, emoji=False, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
DataRoot = Annotated[
    Path, typer.Option("--data-root", help="Folder of the data set in its published layout, or its parent.")
]
Dataset = Annotated[
    str,
    typer.Option("--dataset", help="CIRR, FashionIQ, CIRCO, GeneCIS, Fashion200k, Shoes, LaSCo or own (docs/data.md)."),
]
Cache = Annotated[
    str, typer.Option("--cache", help="Where image tokens are kept: disk, memory, or off: computed at every use.")
]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", help="Folder of the tokens on disk [$COMPOSIR_CACHE, ~/.cache/composir].")
]
Categories = Annotated[
    list[str] | None, typer.Option("--categories", help="Only these, such as dress of FashionIQ; repeatable.")
]

BatchSize = Annotated[int, typer.Option(min=1, max=1_000_000, help="Images or queries embedded at once.")]
NumWorkers = Annotated[int, typer.Option(min=0, max=MAX_WORKERS, help="Threads that decode images.")]


Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="The same seed makes the same choices.")]


def one_line(problem: Problem | Note) -> str:
    """Return a problem or a note without its line breaks."""
    return " ".join(str(problem).splitlines())


def printable(path: object) -> str:
    """Return a path in which line breaks and what a terminal would obey are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def count_problems(problems: Sequence[Problem]) -> str:
    """Return how many there are, in words."""
    return f"{len(problems):,} problem{'' if len(problems) == 1 else 's'}"


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


def key_and_value(flag: str, pair: str) -> tuple[str, str]:
    """Return what stands on either side of the first equals sign; raise ``ComposirError`` without one."""
    key, equals, value = pair.partition("=")
    if not equals:
        raise ComposirError(f"{flag} {pair!r} has no value", expected="key=value", fix=f"{flag} {key}=...")
    return key.strip(), value.strip()


def require_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ComposirError`` naming the choices where the value is none of them."""
    if value not in choices:
        raise ComposirError(
            f"{flag} {value!r} is not known", expected=" or ".join(choices), fix=nearest(value, choices)
        )
