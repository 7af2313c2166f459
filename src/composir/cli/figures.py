"""The command ``published``: what papers print, and by which rules."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from composir.cli.common import MODELS, Json, app, require_choice
from composir.cli.console import out, print_json

if TYPE_CHECKING:
    from composir.evaluation.published import Published


@app.command(rich_help_panel=MODELS)
def published(
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", help="Only its figures: CIRR, FashionIQ, CIRCO or PinPoint.", show_default="all"),
    ] = None,
    json_: Json = False,
) -> None:
    """List published figures by the rules they were measured by, each with its source; none was measured by composir.

    Example: composir published --dataset FashionIQ
    """
    from composir.evaluation.published import KEYS, PUBLISHED

    if dataset is not None:
        dataset = {name.casefold(): name for name in KEYS}.get(dataset.casefold(), dataset)
        require_choice("--dataset", dataset, tuple(KEYS))
    rows = [row for row in PUBLISHED if dataset in (None, row.rules.dataset)]
    if json_:
        print_json({"published": [asdict(row) for row in rows]})
        return
    for rules in dict.fromkeys(row.rules for row in rows):
        out.print(
            f"{rules.dataset} {rules.split}, gallery {rules.gallery}, reference {rules.reference}, text {rules.text}",
            soft_wrap=True,
        )
        _print_rows([row for row in rows if row.rules == rules])
    out.print("percent; -: not stated; figures compare only below one heading", soft_wrap=True)


def _print_rows(rows: list[Published]) -> None:
    """Print rows of the same rules as a table, then where each of them is from."""
    from composir.evaluation.metrics import metric_label

    keys = [key for key in dict.fromkeys(key for row in rows for key in row.figures) if "." not in key]
    table = [("method", "trained on", *map(metric_label, keys))]
    table += [(row.method, row.training, *map(row.text, keys)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        out.print(f"  {cells}".rstrip(), soft_wrap=True)
    for row in rows:
        note = f"; {row.note}" if row.note else ""
        out.print(
            f"  {row.method}: {row.source}; figures from {row.figures_from}; rules from {row.rules_from}{note}",
            soft_wrap=True,
        )
    out.print()
