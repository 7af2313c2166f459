"""The command ``ablate``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from composir.cli.common import INTERRUPTED, MODELS, Json, app
from composir.cli.console import Bars, TrainBars, err, out, print_json
from composir.cli.early import require_training
from composir.cli.train import AUTO, given_settings
from composir.errors import ComposirError, command, short
from composir.limits import MAX_SEED

GATE_ABLATION = "gated_fusion=false,true"


@app.command(rich_help_panel=MODELS, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def ablate(
    context: typer.Context,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="key=a,b: a setting of a recipe and its values, the first the one compared with; repeatable.",
            show_default=GATE_ABLATION,
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="How many seeds, from 0 on, or which: 0,3,7.")] = "5",
    out_: Annotated[Path, typer.Option("--out", help="Folder of runs and report; the same again goes on.")] = Path(
        "ablation"
    ),
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Differences of this figure; repeatable.", show_default="the data set's primary one"),
    ] = None,
    json_: Json = False,
) -> int:
    """Train with and without a setting over seeds, compare, and write a report. Takes all flags of train as well.

    Example: composir ablate --seeds 5 --dataset CIRR --data-root DIR --backbone mini --max-steps 300
    """
    train_command: Any = typer.main.get_command(app)
    train_context = train_command.commands["train"].make_context("composir ablate", list(context.args))
    parameters = train_context.params
    if parameters["resume"] is not None or parameters["seed"] is not None:
        raise ComposirError(
            "ablate has seeds and stopped trainings of its own",
            fix="leave --resume and --seed out; --seeds gives the seeds, and the same command again goes on",
        )
    if parameters["from_feedback"] is not None:
        raise ComposirError(
            "ablate compares on a data set", fix="composir data import, then --dataset own --data-root R"
        )
    if parameters["batch_size"] == AUTO:
        raise ComposirError("trainings are compared at one batch size", fix="give --batch-size a number")
    values_by_key, seeds_ = _vary(vary or [GATE_ABLATION]), _seeds(seeds)
    require_training(parameters, parameters["config"], None)
    from composir.token_cache import TokenPlace
    from composir.training.ablation import ablate as run_ablation
    from composir.training.ablation_report import sections, write_report

    with Bars() as bars:
        ablation = run_ablation(
            given_settings(parameters, parameters["settings"]),
            vary=values_by_key,
            seeds=seeds_,
            out=out_,
            config=parameters["config"],
            metrics=metric or (),
            observer=TrainBars(bars),
            place=TokenPlace(parameters["cache"], parameters["cache_dir"]),
            tell=bars.tell,
        )
    again = command("ablate", *sys.argv[2:])
    if ablation is None:
        err.print(f"stopped and saved; go on with: {again}", soft_wrap=True)
        return INTERRUPTED
    files = write_report(ablation, out_, command=again)
    if json_:
        print_json({**ablation.to_json(), "files": {name: str(file) for name, file in files.items()}})
        return 0
    for section in sections(ablation):
        view = Table(*section.header, title=section.title, caption=section.note)
        for row in section.rows:
            view.add_row(*row)
        out.print(view)
    out.print(f"report: {files['html']} and {files['markdown']}", soft_wrap=True)
    return 0


MAX_SEEDS = 1000


def _vary(pairs: list[str]) -> dict[str, list[str]]:
    values_by_key: dict[str, list[str]] = {}
    for pair in pairs:
        key, equals, values = pair.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or key in values_by_key:
            raise ComposirError(
                f"--vary {pair!r} {'repeats a key' if equals else 'has no values'}",
                expected="key=a,b, each key once",
                fix=f"--vary {key}=A,B",
            )
        values_by_key[key] = [value.strip() for value in values.split(",")]
    return values_by_key


def _seeds(text: str) -> list[int]:
    expected = f"how many, from 1 to {MAX_SEEDS:,}, or which ones from 0 to {MAX_SEED:,}, as 0,3,7"
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ComposirError(f"--seeds {short(text)} are no numbers", expected=expected) from None
    if not (0 < numbers[0] <= MAX_SEEDS if len(numbers) == 1 else 0 <= min(numbers) <= max(numbers) <= MAX_SEED):
        raise ComposirError(f"--seeds {short(text)} is out of range", expected=expected)
    return list(range(numbers[0])) if len(numbers) == 1 else numbers
