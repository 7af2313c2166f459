"""The command ``bench``: models beside each other on data sets, and the leaderboard's files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from composir.cli.common import MODELS, USER_ERROR, Cache, CacheDir, Json, NumWorkers, app, require_one
from composir.cli.console import Bars, err, one_line, out, print_json, printable
from composir.errors import ComposirError, counted
from composir.paths import require_there

if TYPE_CHECKING:
    from rich.table import Table

    from composir.bench.table import BenchTable
    from composir.bench.work import Event


@app.command(rich_help_panel=MODELS)
def bench(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG.toml", help="Models and data sets by name (docs/leaderboard.md).")
    ] = None,
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder of what is measured and of the table; a second call goes on there. "
            "With --verify: write the table into it.",
            show_default="bench",
        ),
    ] = None,
    submit: Annotated[
        Path | None,
        typer.Option(
            help="Also write each model's ranks and figures into this folder, a file a data set: leaderboard."
        ),
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(help="Instead of a CONFIG: compute every figure in such a folder again from its ranks."),
    ] = None,
    num_workers: NumWorkers = 4,
    cache: Cache = "disk",
    cache_dir: CacheDir = None,
    json_: Json = False,
) -> int:
    """Measure how well models answer: all models of a file on all its data sets, as one table with intervals.

    How fast composir computes is for composir benchmark.
    Example: composir bench leaderboard/bench.toml --out bench --submit leaderboard
    """
    require_one({"CONFIG.toml": config, "--verify": verify})
    if verify is not None:
        if submit is not None:
            raise ComposirError("--submit writes what a CONFIG measures", fix="leave out --submit or --verify")
        return _verify(verify, out_, json_=json_)
    assert config is not None
    require_there(config, "a bench's TOML file (docs/leaderboard.md)")
    from composir.bench.config import load_config
    from composir.bench.entries import write_entries
    from composir.bench.running import run_bench
    from composir.bench.table import make_table
    from composir.token_cache import TokenPlace

    loaded = load_config(config)
    num_cells = len(loaded.datasets) * sum(len(entry.model) for entry in loaded.models.values())
    folder = out_ or Path("bench")
    with Bars() as bars:
        log = _Log(bars, num_cells)
        found = run_bench(loaded, folder, place=TokenPlace(cache, cache_dir, num_workers), tell=log.tell)
    if submit is not None:
        for file in write_entries(found, submit):
            err.print(f"{printable(file)}: {file.stat().st_size:,} bytes", soft_wrap=True)
    _show(make_table(found), folder, json_=json_)
    return USER_ERROR if found.failures else 0


class _Log:
    """Draws how far a bench is, and a line of each cell."""

    def __init__(self, bars: Bars, num_cells: int) -> None:
        self.bars, self.num_cells, self.num_done = bars, num_cells, 0

    def tell(self, event: Event) -> None:
        """Show an event."""
        from composir.bench.work import Done, Step

        if isinstance(event, Step):
            self.bars.tell("cells", self.num_done, self.num_cells, f"{event.name} {event.done:,}/{event.total:,}")
            return
        self.num_done += 1
        if not isinstance(event, Done):
            what = f"failed: {event.message}"
        elif event.reason:
            what = f"{event.seconds:.1f} s ({event.reason})"
        else:
            what = "is there"
        err.print(f"{self.num_done}/{self.num_cells} {event.title} on {event.dataset}: {what}", soft_wrap=True)


def _show(table: BenchTable, folder: Path | None, *, json_: bool) -> None:
    """Print the table, after writing it into a folder where one is given."""
    from composir.bench.writing import write_table

    files = write_table(table, folder) if folder is not None else {}
    if json_:
        print_json({**table.to_json(), "files": {form: str(file) for form, file in files.items()}})
        return
    for view in _views(table):
        out.print(view)
    for failure in table.failures:
        out.print(f"failed: {failure.title} on {failure.dataset}: {failure.message}", soft_wrap=True)
    for form, file in files.items():
        out.print(f"{form}: {printable(file)}", soft_wrap=True)


def _views(table: BenchTable) -> Iterator[Table]:
    """Give a table for the terminal of every data set; ``*`` marks what is bold in the files."""
    from rich.table import Table

    from composir.bench.writing import figure_text, seconds_text
    from composir.evaluation import metric_label
    from composir.files import size_text

    for section in table.sections:
        key = section.primary
        view = Table(
            title=f"{section.dataset}: {section.num_queries:,} queries, {section.num_gallery:,} gallery images",
            caption="* the best, or not significantly worse",
        )
        view.add_column("model", overflow="fold")
        headings = (f"{metric_label(key)} (95 %)", "image only", "text only", "shortcut-free", "runs", "s", "memory")
        for heading in headings:
            view.add_column(heading, justify="right")
        for row in section.rows:
            audit = (
                f"{100 * part[key]:.2f}" if key in part else "–"
                for part in (row.image_only, row.text_only, row.shortcut_free)
            )
            mark = " *" if row.stands_out(key) else "  "
            memory = size_text(row.peak_gpu_memory_bytes or row.peak_memory_bytes)
            cost = (str(len(row.seeds)), seconds_text(row), memory)
            view.add_row(row.model, figure_text(row, key) + mark, *audit, *cost)
        yield view


def _verify(folder: Path, out_: Path | None, *, json_: bool) -> int:
    from composir.bench.entries import find_entries, read_bench, read_entry, verify
    from composir.bench.table import make_table

    files = find_entries(folder)
    problems = [problem for file in files for problem in verify(file, read_entry(file))]
    for problem in problems:
        err.print(one_line(problem), soft_wrap=True)
    if problems:
        raise ComposirError(
            counted(len(problems), "figure") + " not as the ranks beside them give, see above",
            file=folder,
            expected="figures as the bench wrote them",
        )
    _show(make_table(read_bench(files)), out_, json_=json_)
    err.print(
        f"{len(files)} results: every figure is what its ranks give; that the ranks are the model's own, and times and "
        "memory, only running it again can tell",
        soft_wrap=True,
    )
    return 0
