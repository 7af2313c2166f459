"""What one starts with: ``--version``, ``quickstart`` and ``selfcheck``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

import composir
from composir.cli.common import START, Json, app
from composir.cli.console import Bars, TrainBars, out, print_json
from composir.errors import command


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"composir {composir.__version__}")
        raise typer.Exit


@app.callback()
def _before_a_command(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command(rich_help_panel=START)
def quickstart(
    out_: Annotated[Path, typer.Option("--out", help="Where everything goes; run again to go on.")] = Path(
        "quickstart"
    ),
    minutes: Annotated[
        float, typer.Option(min=0.1, max=10_000, help="About how long training takes on two cores.")
    ] = 3.0,
    json_: Json = False,
) -> int:
    """Make a licence-free data set, train the mini model on it, measure it and show what it retrieves."""
    from composir.evaluation import table
    from composir.quickstart import quickstart as run_quickstart

    with Bars() as bars:
        done = run_quickstart(out_, minutes=minutes, observer=TrainBars(bars), tell=bars.tell)
    if json_:
        print_json(done.to_json())
        return 0
    out.print(table(done.result))
    data, best, sheet = ("--data-root", out_ / "scenes"), ("--model", done.run / "best"), ("--contact-sheet",)
    reference, sentence = done.example
    photo, asked = done.asked
    for line in (
        f"three example queries:  {done.contact_sheet}",
        f"curves of the training: {done.curves}",
        f"the model:              {done.run / 'best'}",
        f"the gallery's index:    {done.index}",
        "",
        "a search in photographs, by the built-in model, which needs no training:",
        f"  {photo.name} + {asked!r}",
        *(f"  {hit.rank}  {hit.score:.3f}  {hit.path.name}" for hit in done.found),
        f"  as a picture: {done.photo_sheet}",
        "",
        "your own photographs:",
        f"  {command('index', 'YOUR_PICTURES')}",
        f"  {command('serve', 'YOUR_PICTURES.index')}   # a page; or serve {done.photos}",
        f"  {command('serve', 'YOUR_PICTURES.index', '--record', 'FILE.jsonl')}   # mark what was meant: docs/heads.md",
        "",
        "your own model:",
        f"  {command('search', done.index, '--image', reference, '--text', sentence, *sheet, 'found.png')}",
        f"  {command('train', *data, '--backbone', 'mini', '--no-gated-fusion')}   # the gate off",
        f"  {command('evaluate', *best, *data, *sheet, 'more.png', '--num-queries', 20)}",
        f"  {shlex.join(['tensorboard', '--logdir', str(done.run.parent)])}",
        "  composir train --help                                  # your own recipe, CIRR, FashionIQ, BLIP-2 weights",
    ):
        out.print(line, soft_wrap=True)
    return 0


@app.command(rich_help_panel=START)
def selfcheck(
    hidden_size: Annotated[int, typer.Option(min=1, max=16_384, help="Width of the image tokens.")] = 768,
    json_: Json = False,
) -> int:
    """Check the gated fusion module: parameters, shapes, gradients, and that the sentence drives the change."""
    from composir.selfcheck import check_gated_fusion

    report = check_gated_fusion(hidden_size)
    if json_:
        print_json({"num_parameters": report.num_parameters, "passed": report.passed})
    else:
        out.print("\n".join(report.lines), soft_wrap=True)
    return 0 if report.passed else 1
