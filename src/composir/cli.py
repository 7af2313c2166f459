"""The command line: the only place that prints. Figures go to stdout, progress and logs to stderr."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import signal
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from composir.errors import ComposirError, Problem, ProblemsError, nearest

if TYPE_CHECKING:
    from composir.data import Split
    from composir.evaluation import Embedder, Result
    from composir.search import Retriever

USER_ERROR, INTERRUPTED = 2, 130
MAX_PROBLEMS_PRINTED = 100
"""On stderr, where a command stops at them; `data check` prints all."""

app = typer.Typer(
    help="Composed image retrieval: a picture and a sentence that says what should differ, answered by a ranking.",
    no_args_is_help=True,
    add_completion=False,
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

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

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


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line and exit code 2, ``--debug`` shows where it came from."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if debug:
        arguments.remove("--debug")
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(name)s: %(message)s")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    if not debug:
        logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it warns of every run that was resumed
        # Pillow warns of pictures from 89 million pixels on and refuses them from twice that; a refusal is reported.
        warnings.filterwarnings("ignore", message=r"Image size \(\d+ pixels\) exceeds limit")
    code = USER_ERROR
    try:
        _meet_other_processes(arguments)
        code = app(arguments, prog_name="composir", standalone_mode=False) or 0
    except (typer.Exit, SystemExit) as stop:
        code = getattr(stop, "exit_code", getattr(stop, "code", 0)) or 0
    except (typer.Abort, KeyboardInterrupt):
        err.print("interrupted")
        code = INTERRUPTED
    except ComposirError as error:
        if debug:
            raise
        _print_error(_summary(error))
    except OSError as error:  # a path that cannot be written, a full disk
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        fix = "check the path, its permissions and the space on its disk; --debug shows where it happened"
        _print_error(f"{place}{error.strerror or error}; fix: {fix}")
    except Exception as error:
        if debug or not hasattr(error, "format_message"):
            raise
        _print_error(_usage_error(error, arguments))
    sys.exit(code)


def _meet_other_processes(arguments: Sequence[str]) -> None:
    """Let only the first of several processes speak; raise ``ComposirError`` where there can be but one."""
    if int(os.environ.get("RANK", "0")):
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        err.quiet = True
    number = int(os.environ.get("WORLD_SIZE", "1"))
    if number > 1 and arguments[:1] != ["train"]:
        raise ComposirError(
            f"composir {' '.join(arguments[:1])} was started as {number} processes",
            expected="one; only composir train works as several",
            fix="start it without accelerate launch and torchrun",
        )


def _usage_error(error: Any, arguments: list[str]) -> str:
    """Return one line for a mistake in the flags, with the value and the nearest flag or command that exists."""
    message = " ".join(str(error.format_message()).split())
    flag = next((flag for flag in getattr(getattr(error, "param", None), "opts", []) if flag in arguments[:-1]), None)
    if flag:
        message += f" (got {arguments[arguments.index(flag) + 1]!r})"
    option = getattr(error, "option_name", None)
    command = getattr(error.ctx, "command", None) if error.ctx else None
    if option and command is not None and not getattr(error, "possibilities", None):
        known = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
        message += f" ({nearest(option, known)})"
    return message


def _print_error(message: str) -> None:
    err.print(Text(f"error: {' '.join(message.split())}", style="red"), soft_wrap=True)


def _summary(error: ComposirError) -> str:
    """Return the error as one line, after printing its problems, one a line, where there are several."""
    if not isinstance(error, ProblemsError) or len(error.problems) == 1:
        return str(error)
    for problem in error.problems[:MAX_PROBLEMS_PRINTED]:
        err.print(Text(_one_line(problem)), soft_wrap=True)
    rest = len(error.problems) - MAX_PROBLEMS_PRINTED
    if rest > 0:
        err.print(f"... and {rest:,} more")
    files = list(dict.fromkeys(problem.file for problem in error.problems))
    return f"{_count(error.problems)} in " + (files[0] if len(files) == 1 else f"{len(files):,} files") + ", see above"


def _one_line(problem: Problem) -> str:
    return " ".join(str(problem).splitlines())


def _printable(path: object) -> str:
    """Return a path in which line breaks and what a terminal would obey are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(path))


def _count(problems: Sequence[Problem]) -> str:
    return f"{len(problems):,} problem{'' if len(problems) == 1 else 's'}"


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, indent=2, ensure_ascii=False))


class _Bars:
    """Progress bars on stderr by name, each made when its first step is told."""

    def __init__(self) -> None:
        self.bars: dict[str, TaskID] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=err,
        )

    def __enter__(self) -> _Bars:
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


# -- train -------------------------------------------------------------------------------------------------------------


AUTO = "auto"


def _int_or_auto(text: str) -> int | str:
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number and not {AUTO}") from None


@app.command(rich_help_panel="Models")
def train(
    context: typer.Context,
    dataset: Annotated[str | None, typer.Option(help="CIRR or FashionIQ.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data set, or its parent.")] = None,
    blip_model_name: Annotated[str | None, typer.Option(help="blip2_cir_align_prompt.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(help="mini (no downloads), pretrain (ViT-g), pretrain_vitL, tiny (tests)."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="Folder or file of the backbone's pretrained weights.")] = None,
    num_epochs: Annotated[int | None, typer.Option(help="Passes over the training triplets.")] = None,
    batch_size: Annotated[
        Any,
        typer.Option(
            parser=_int_or_auto, metavar="N|auto", help="Triplets a step, each other's negatives; auto: all that fit."
        ),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    loss_align: Annotated[float | None, typer.Option(help="Weight of the alignment loss.")] = None,
    loss_rtc: Annotated[float | None, typer.Option(help="Weight of the text-to-target loss.")] = None,
    loss_local: Annotated[float | None, typer.Option(help="Weight of the patch-level alignment [0].")] = None,
    validation_frequency: Annotated[int | None, typer.Option(help="Epochs between validations.")] = None,
    save_training: Annotated[
        bool | None, typer.Option("--save-training/--no-save-training", help="Keep last/ and best/.")
    ] = None,
    save_best: Annotated[
        bool | None,
        typer.Option("--save-best/--no-save-best", help="Keep the best checkpoint only, or one an epoch as well."),
    ] = None,
    target_ratio: Annotated[float | None, typer.Option(help="Targetpad's long side over short side.")] = None,
    transform: Annotated[str | None, typer.Option(help="targetpad or squarepad.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Threads that decode images.")] = None,
    output_dir: Annotated[str | None, typer.Option(help="Where run folders are made [models].")] = None,
    fusion: Annotated[
        str | None,
        typer.Option(
            help="How sentence and reference are joined: gate, attention, late, tirg, combiner, sum, none; a+b."
        ),
    ] = None,
    gated_fusion: Annotated[
        bool | None,
        typer.Option("--gated-fusion/--no-gated-fusion", help="The same as --fusion gate, --fusion none."),
    ] = None,
    alpha_init: Annotated[float | None, typer.Option(help="Start of the gate's alpha [0.5].")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and choices.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many optimiser steps.")] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic/--no-deterministic", help="Only algorithms that repeat themselves exactly."),
    ] = None,
    cache: Cache = "disk",
    cache_dir: CacheDir = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to go on with.")] = None,
    config: Annotated[Path | None, typer.Option(help="A recipe.toml; flags given here win over it.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value of any other setting of a recipe; repeatable."),
    ] = None,
    json_: Json = False,
) -> int:
    """Train a model; flags that are not given come from --config, else from the backbone's own recipe.

    Example: composir train --dataset CIRR --data-root DIR --backbone mini
    """
    from composir.training import load_recipe, resume_recipe
    from composir.training import train as run_training

    start = time.perf_counter()
    given, largest_batch = _given(context.params, settings), False
    if resume is not None:
        if given or config:
            raise ComposirError(
                f"--resume goes on by the run's own recipe; {', '.join(sorted(given)) or '--config'} cannot change it",
                fix=f"composir train --resume {resume}",
            )
        recipe = resume_recipe(resume)
    else:
        if largest_batch := given.get("batch_size") == AUTO:
            del given["batch_size"]
        recipe = load_recipe(given, config)
    _warn_of_learning_rate(recipe, given)
    with _Bars() as bars:
        result = run_training(
            recipe,
            resume=resume,
            observer=_TrainBars(bars, tells_batch=largest_batch),
            cache=cache,
            cache_dir=cache_dir,
            largest_batch=largest_batch,
        )
    if result.interrupted:
        err.print(f"stopped and saved; go on with: composir train --resume {result.run}", soft_wrap=True)
        return INTERRUPTED
    document = {
        "run": str(result.run),
        "best": str(result.best) if result.best else None,
        "epochs": result.epochs,
        "metrics": result.metrics,
        "seconds": round(time.perf_counter() - start, 1),
    }
    if json_:
        _print_json(document)
    else:
        out.print(f"run: {result.run}", soft_wrap=True)
        if result.best:
            out.print(
                f"best: {result.best}\nnext: composir evaluate --model {result.best} --dataset {recipe.dataset} "
                f"--data-root {recipe.data_root}",
                soft_wrap=True,
            )
    return 0


def _given(parameters: dict[str, Any], settings: list[str] | None) -> dict[str, Any]:
    """Return the settings of a recipe that were given as flags of ``train``, and by its ``--set``."""
    from composir.training import FUSION_SWITCH, Recipe

    names = {*Recipe.model_fields, FUSION_SWITCH}
    given = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in parameters.items()
        if name in names and value is not None
    }
    return given | _settings(settings or [])


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Return the keys and values of ``--set key=value``, values read as TOML, else as words."""
    from composir.training import parse_value

    settings = {}
    for pair in pairs:
        key, value = _key_and_value("--set", pair)
        settings[key.replace("-", "_")] = parse_value(value)
    return settings


def _key_and_value(flag: str, pair: str) -> tuple[str, str]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise ComposirError(f"{flag} {pair!r} has no value", expected="key=value", fix=f"{flag} {key}=...")
    return key.strip(), value.strip()


PUBLISHED_LEARNING_RATE_LIMIT = 1e-4


def _warn_of_learning_rate(recipe: Any, given: dict[str, Any]) -> None:
    if recipe.backbone == "mini" and given.get("learning_rate", 1.0) < PUBLISHED_LEARNING_RATE_LIMIT:
        err.print(
            f"note: --learning-rate {recipe.learning_rate:g} is meant for the pretrained BLIP-2 backbones; the mini "
            "backbone hardly learns at it. Leave the flag out to train with the mini recipe's own.",
            soft_wrap=True,
        )


def _tell_features(bars: _Bars, done: int, total: int, num_bytes: int) -> None:
    from composir.files import size_text

    bars.tell("image tokens", done, total, size_text(num_bytes))


class _TrainBars:
    """Draws a training run as progress bars, and every validation as a line."""

    def __init__(self, bars: _Bars, *, tells_batch: bool = False) -> None:
        self.bars, self.tells_batch = bars, tells_batch
        self.num_steps = 0
        self.first_step = 0
        self.images_per_step = 0
        self.start = 0.0

    def on_features(self, done: int, total: int, num_bytes: int) -> None:
        _tell_features(self.bars, done, total, num_bytes)

    def on_start(self, run: Path, recipe: Any, first_step: int, num_steps: int) -> None:
        self.num_steps, self.first_step = num_steps, first_step
        # Of each triplet: reference, target and look-alikes.
        self.images_per_step = recipe.batch_size * recipe.gradient_accumulation * (2 + recipe.subset_negatives)
        self.start = time.perf_counter()
        err.print(f"run folder: {run}", soft_wrap=True)
        if self.tells_batch:
            err.print(f"batch size: {recipe.batch_size}")

    def on_step(self, step: int, loss: float, alpha: float | None) -> None:
        rate = (step - self.first_step) * self.images_per_step / (time.perf_counter() - self.start)
        gate = "" if alpha is None else f" alpha {alpha:.3f}"
        self.bars.tell("training", step, self.num_steps, f"loss {loss:.2f}{gate} {rate:.0f} images/s")

    def on_validation(self, epoch: int, result: Result, is_best: bool) -> None:
        from composir.evaluation import metric_label

        figures = "  ".join(f"{metric_label(key)} {100 * value:.2f}" for key, value in result.metrics.items())
        err.print(f"epoch {epoch}: {figures}{'  (best)' if is_best else ''}", soft_wrap=True)


# -- ablate ------------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Models", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def ablate(
    context: typer.Context,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="key=a,b: a setting of a recipe and its values, the first the one compared with; repeatable."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="How many seeds, from 0 on, or which: 0,3,7.")] = "5",
    out_: Annotated[Path, typer.Option("--out", help="Folder of runs and report; the same again goes on.")] = Path(
        "ablation"
    ),
    metric: Annotated[
        list[str] | None, typer.Option(help="Differences of this figure [the data set's primary one]; repeatable.")
    ] = None,
    json_: Json = False,
) -> int:
    """Train with and without a setting over seeds, compare, and write a report. Takes all flags of train as well.

    Example: composir ablate --seeds 5 --dataset CIRR --data-root DIR --backbone mini --max-steps 300
    """
    from composir.training.ablation import ablate as run_ablation
    from composir.training.ablation_report import sections, write_report

    train_command: Any = typer.main.get_command(app)
    train_context = train_command.commands["train"].make_context("composir ablate", list(context.args))
    parameters = train_context.params
    if parameters["resume"] is not None or parameters["seed"] is not None:
        raise ComposirError(
            "ablate has seeds and stopped trainings of its own",
            fix="leave --resume and --seed out; --seeds gives the seeds, and the same command again goes on",
        )
    if parameters["batch_size"] == AUTO:
        raise ComposirError("trainings are compared at one batch size", fix="give --batch-size a number")
    with _Bars() as bars:
        ablation = run_ablation(
            _given(parameters, parameters["settings"]),
            vary=_vary(vary or [GATE_ABLATION]),
            seeds=_seeds(seeds),
            out=out_,
            config=parameters["config"],
            metrics=metric or (),
            observer=_TrainBars(bars),
            cache=parameters["cache"],
            cache_dir=parameters["cache_dir"],
            tell=bars.tell,
        )
    command = shlex.join(["composir", "ablate", *sys.argv[2:]])
    if ablation is None:
        err.print(f"stopped and saved; go on with: {command}", soft_wrap=True)
        return INTERRUPTED
    files = write_report(ablation, out_, command=command)
    if json_:
        _print_json({**ablation.to_json(), "files": {name: str(file) for name, file in files.items()}})
        return 0
    for section in sections(ablation):
        view = Table(*section.header, title=section.title, caption=section.note)
        for row in section.rows:
            view.add_row(*row)
        out.print(view)
    out.print(f"report: {files['html']} and {files['markdown']}", soft_wrap=True)
    return 0


GATE_ABLATION = "gated_fusion=false,true"


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
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ComposirError(f"--seeds {text!r} are no numbers", expected="5, or 0,3,7") from None
    if min(numbers) < 0 or (len(numbers) == 1 and not numbers[0]):
        raise ComposirError(f"--seeds {text!r} gives no seed", expected="how many, or which ones from 0 on")
    return list(range(numbers[0])) if len(numbers) == 1 else numbers


# -- features ----------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Models")
def features(
    data_root: DataRoot,
    dataset: Dataset = "CIRR",
    backbone: Annotated[
        str, typer.Option(help="mini (no downloads), pretrain (ViT-g), pretrain_vitL, tiny (tests).")
    ] = "mini",
    weights: Annotated[str, typer.Option(help="Folder or file of the backbone's pretrained weights.")] = "",
    split: Annotated[
        list[str] | None, typer.Option(help="Instead of train and the split it is validated on; repeatable.")
    ] = None,
    transform: Annotated[str | None, typer.Option(help="targetpad or squarepad.")] = None,
    target_ratio: Annotated[float | None, typer.Option(help="Targetpad's long side over short side.")] = None,
    num_workers: Annotated[int | None, typer.Option(min=0, help="Threads that decode images.")] = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
) -> int:
    """Compute the image tokens that training and evaluation need, ahead of them; again: only what is not there.

    Example: composir features --backbone mini --dataset CIRR --data-root DIR
    """
    from composir.files import size_text
    from composir.training import compute_features, load_recipe

    given = {
        "dataset": dataset, "data_root": str(data_root), "backbone": backbone, "weights": weights,
        "transform": transform, "target_ratio": target_ratio, "num_workers": num_workers,
    }  # fmt: skip
    recipe = load_recipe({name: value for name, value in given.items() if value is not None})
    with _Bars() as bars:
        filled = compute_features(
            recipe, splits=split, cache_dir=cache_dir, progress=lambda *told: _tell_features(bars, *told)
        )
    if json_:
        _print_json(asdict(filled))
    else:
        speed = f"{filled.images_per_second:.1f} images/s" if filled.num_computed else "nothing to compute"
        out.print(
            f"{filled.num_images:,} images, {size_text(filled.bytes)} in {filled.folder}; "
            f"{filled.num_computed:,} computed now, {speed}",
            soft_wrap=True,
        )
    return 0


# -- evaluate ----------------------------------------------------------------------------------------------------------

Gallery = Annotated[str, typer.Option("--gallery", help="original, or val-union: FashionIQ's smaller one.")]
ExcludeReference = Annotated[
    bool | None,
    typer.Option("--exclude-reference/--keep-reference", help="Instead of the data set's own rule."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images or queries embedded at once.")]
NumWorkers = Annotated[int, typer.Option(min=0, help="Threads that decode images.")]


@app.command(rich_help_panel="Models")
def evaluate(
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint folder, such as models/RUN/best, a hub id, or st:NAME.")
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(help="Instead of a model: a file in the data set's submission form; repeatable."),
    ] = None,
    rankings: Annotated[
        Path | None, typer.Option(help="Instead of a model: what --save-rankings wrote; needs no data root.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data set in its published layout, or its parent.")
    ] = None,
    dataset: Dataset = "CIRR",
    split: Annotated[
        str | None, typer.Option(help="The split whose answers are public unless given; train: learned by heart?")
    ] = None,
    categories: Categories = None,
    gallery: Gallery = "original",
    exclude_reference: ExcludeReference = None,
    skip_missing_images: Annotated[
        bool, typer.Option("--skip-missing-images", help="Measure the queries whose images are all there.")
    ] = False,
    scoring: Annotated[
        str, typer.Option(help="How a model's queries are scored: global (its embedding), local (part by part), both.")
    ] = "global",
    rerank: Annotated[
        int, typer.Option(min=0, help="Score so many of each query's best again with the matching head; 0: none.")
    ] = 0,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = 4,
    cache: Cache = "disk",
    cache_dir: CacheDir = None,
    save_rankings: Annotated[
        Path | None, typer.Option(help="Write the rankings; --rankings and compare read them.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page into this folder.")] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Write a PNG: queries with their top 10, the target framed.")
    ] = None,
    num_queries: Annotated[int, typer.Option(min=1, help="Rows of the contact sheet.")] = 8,
    json_: Json = False,
) -> int:
    """Measure a model, a file of predictions or saved rankings on a split.

    A model is also asked with the picture alone and with the sentence alone.
    Example: composir evaluate --model models/RUN/best --dataset CIRR --data-root DIR
    """
    from composir.evaluation import audit_lines, rerank_lines, table
    from composir.evaluation import contact_sheet as write_sheet
    from composir.evaluation import save_rankings as write_rankings

    _require_one({"--model": model, "--predictions": predictions, "--rankings": rankings})
    if data_root is None and (rankings is None or contact_sheet):
        raise ComposirError(
            "--data-root is missing",
            expected="with --model, --predictions and --contact-sheet; --rankings goes without",
            fix="give the data set's folder, or its parent",
        )
    splits = None
    if data_root is not None:
        splits = _load_splits(
            dataset, data_root, split, categories, gallery, exclude_reference, skip_missing=skip_missing_images
        )
    if rerank and model is None:
        raise ComposirError("--rerank needs a model", expected="it beside --model", fix="leave out --rerank")
    result = _measure(
        model,
        predictions,
        rankings,
        splits,
        scoring=scoring,
        rerank=rerank,
        batch_size=batch_size,
        num_workers=num_workers,
        cache=cache,
        cache_dir=cache_dir,
    )
    files = {}
    if save_rankings:
        write_rankings(result, save_rankings)
        files["rankings"] = save_rankings
    if contact_sheet:
        write_sheet(result.rankings["composed"], contact_sheet, num_queries=num_queries)
        files["contact sheet"] = contact_sheet
    if report:
        from composir.evaluation.page import write_page

        files["report"] = write_page(result, report)
    if json_:
        _print_json(result.to_json())
    else:
        out.print(table(result))
        for line in (*rerank_lines(result), *audit_lines(result)):
            out.print(line, soft_wrap=True)
        for name, file in files.items():
            out.print(f"{name}: {file}", soft_wrap=True)
    return 0


def _measure(
    model: Path | None,
    predictions: list[Path] | None,
    rankings: Path | None,
    splits: tuple[Split, ...] | None,
    *,
    scoring: str,
    rerank: int,
    batch_size: int,
    num_workers: int,
    cache: str,
    cache_dir: Path | None,
) -> Result:
    """Return the figures of whichever of the three was given; only saved rankings go without ``splits``."""
    from composir.evaluation import check_scorable, load_rankings, measure, predictions_hash, read_predictions
    from composir.evaluation import evaluate as evaluate_model

    if rankings is not None:
        saved = load_rankings(rankings, splits)
        return measure(saved.rankings, signature=saved.signature_fields, rerank=saved.rerank)
    assert splits is not None
    check_scorable(splits)
    if predictions:
        ranked = read_predictions(predictions, splits)
        return measure({"composed": ranked}, weights_hash=predictions_hash(predictions))
    assert model is not None
    with _Bars() as bars:
        embedder, weights_hash = _open_embedder(
            model,
            splits,
            num_workers,
            bars,
            scoring=scoring,
            rerank=bool(rerank),
            cache=cache,
            cache_dir=cache_dir,
        )
        return evaluate_model(
            embedder, splits, rerank=rerank, batch_size=batch_size, weights_hash=weights_hash, progress=bars.tell
        )


def _open_embedder(
    model: Path,
    splits: tuple[Split, ...],
    num_workers: int,
    bars: _Bars,
    *,
    scoring: str = "global",
    rerank: bool = False,
    cache: str = "disk",
    cache_dir: Path | None = None,
) -> tuple[Embedder, str]:
    from composir.features import open_embedder

    return open_embedder(
        model,
        splits,
        num_workers=num_workers,
        scoring=scoring,
        rerank=rerank,
        cache=cache,
        cache_dir=cache_dir,
        progress=lambda done, total: bars.tell("image tokens", done, total),
    )


def _require_one(value_by_flag: dict[str, Any]) -> None:
    """Raise ``ComposirError`` unless exactly one of the flags was given."""
    given = [flag for flag, value in value_by_flag.items() if value]
    if len(given) != 1:
        raise ComposirError(
            f"{' and '.join(given)} were given" if given else "nothing to do was given",
            expected=f"exactly one of {', '.join(value_by_flag)}",
        )


def _load_splits(
    dataset: str,
    data_root: Path,
    split: str | None,
    categories: list[str] | None = None,
    gallery: str = "original",
    exclude_reference: bool | None = None,
    *,
    skip_missing: bool = False,
) -> tuple[Split, ...]:
    """Return the splits that the flags name; with ``skip_missing`` say on stderr how many queries are left."""
    from composir.data import load_splits
    from composir.data.datasets import DATASETS, find_dataset

    splits = load_splits(
        dataset,
        data_root,
        split or DATASETS[find_dataset(dataset)].evaluated,
        categories=categories or None,
        gallery=gallery,
        exclude_reference=exclude_reference,
    )
    if skip_missing:
        from composir.data.check import without_missing_images

        splits, counts = without_missing_images(splits)
        for name, (kept, total) in counts.items():
            err.print(f"{name}: {kept:,} of {total:,} queries have all their images", soft_wrap=True)
    return splits


# -- submit ------------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Models")
def submit(
    data_root: DataRoot,
    dataset: Annotated[str, typer.Option(help="CIRR or CIRCO; with --validate any other, too.")] = "CIRR",
    model: Annotated[Path | None, typer.Option(help="A checkpoint folder, such as models/RUN/best.")] = None,
    validate: Annotated[
        list[Path] | None, typer.Option(help="Instead of a model: only check this file; repeatable.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The test server's (test1, test) unless given; val is a dry run.")
    ] = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Folder of the files.")] = None,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = 4,
    json_: Json = False,
) -> int:
    """Write the files that the test server of CIRR or CIRCO takes, and check them; or check files that are there.

    Example: composir submit --model models/RUN/best --dataset CIRR --data-root DIR --out submission
    """
    from composir.data.datasets import DATASETS, find_dataset
    from composir.evaluation import check_predictions, rank_splits, require_test_server, write_submission

    _require_one({"--model": model, "--validate": validate})
    dataset = find_dataset(dataset)
    split = split or DATASETS[dataset].submitted
    files: list[Path] = []
    problems: list[Problem] = []
    if validate:
        splits = _load_splits(dataset, data_root, split)
        for file in validate:
            problems += check_predictions(file, splits)
    else:
        assert model is not None
        require_test_server(dataset)
        if out_ is None:
            raise ComposirError("--out is missing", fix="give the folder that the files are written to")
        splits = _load_splits(dataset, data_root, split)
        with _Bars() as bars:
            embedder, _ = _open_embedder(model, splits, num_workers, bars)
            rankings = rank_splits(embedder, splits, batch_size=batch_size, progress=bars.tell)
        files = list(write_submission(rankings["composed"], out_))
    if json_:
        _print_json({"files": [str(file) for file in files], "problems": [asdict(one) for one in problems]})
    else:
        for file in files:
            out.print(f"{file}: {file.stat().st_size:,} bytes, valid", soft_wrap=True)
        for problem in problems:
            out.print(Text(str(problem)), soft_wrap=True)
        if validate:
            out.print(f"{len(problems)} problems in {len(validate)} {'file' if len(validate) == 1 else 'files'}")
    return USER_ERROR if problems else 0


# -- compare -----------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Models")
def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Run folders, checkpoint folders or files of --save-rankings; the others are compared with the first. "
            "NAME=PATH[,PATH...] names one, or is a group of runs that differ in the seed.",
        ),
    ],
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Compare by this, such as recall_at_5, not the primary one; repeatable."),
    ] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Compare each with each.")] = False,
    json_: Json = False,
) -> int:
    """Say how sure a difference between models is: over the same queries and, with several runs of each, over seeds.

    Example: composir compare plain=models/A,models/B gate=models/C,models/D
    """
    from composir.evaluation import compare as run_comparison
    from composir.evaluation import comparison_tables, load_groups

    comparison = run_comparison(load_groups(sources), metrics or (), all_pairs=all_pairs)
    if json_:
        _print_json(comparison.to_json())
    else:
        for view in comparison_tables(comparison):
            out.print(view)
    return 0


# -- index and search --------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Your own pictures")
def index(
    images_dir: Annotated[Path, typer.Argument(help="Folder of pictures; its folders are searched as well.")],
    out_: Annotated[
        Path, typer.Option("--out", help="The index folder; run again to go on, or to bring it up to date.")
    ],
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint folder, or st:NAME; an index that exists knows its own.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="exact (default), faiss (large galleries), qdrant (a server or a cluster).")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="qdrant: address of a server; without it, inside this process.")
    ] = None,
    shards: Annotated[int | None, typer.Option(min=1, help="qdrant: shards of a new collection.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, help="qdrant: copies of each shard.")] = None,
    vectors_per_image: Annotated[
        int | None, typer.Option(min=1, help="Merge each picture's vectors to so many: smaller and faster.")
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Start from nothing, as for another model.")] = False,
    engine: Annotated[str, typer.Option(help="Who embeds: local, or ray (all GPUs of this machine or a cluster).")] = (
        "local"
    ),
    address: Annotated[str | None, typer.Option(help="ray: address of a cluster; without it, this machine.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU where there is one.")] = None,
    num_workers: NumWorkers = 4,
    json_: Json = False,
) -> int:
    """Make a folder of pictures searchable; later runs embed only what is new and drop what is gone.

    Example: composir index holiday-pictures --model models/RUN/best --out holiday.index
    """
    from composir.search import index_folder

    start = time.perf_counter()
    options = {"url": url, "shards": shards, "replicas": replicas}
    options = {name: value for name, value in options.items() if value is not None}
    if options and backend not in (None, "qdrant"):
        raise ComposirError(f"--{next(iter(options))} is for --backend qdrant, not {backend}")
    if address and engine != "ray":
        raise ComposirError(f"--address is for --engine ray, not {engine}")
    with _Bars() as bars:
        report = index_folder(
            images_dir,
            out_,
            model=model,
            backend=backend or ("qdrant" if options else None),
            options=options,
            vectors_per_image=vectors_per_image,
            rebuild=rebuild,
            device=device,
            engine=engine,
            address=address,
            num_workers=num_workers,
            progress=bars.tell,
        )
    seconds = time.perf_counter() - start
    if json_:
        _print_json({**asdict(report), "index": str(out_), "seconds": round(seconds, 1)})
        return 0
    for one in report.skipped:
        out.print(Text(f"skipped {_printable(one.file)}: {one.reason}"), soft_wrap=True)
    out.print(
        f"{report.num_images:,} pictures in {out_} ({report.num_added:,} new, {report.num_removed:,} gone, "
        f"{len(report.skipped):,} skipped) after {seconds:.1f} s",
        soft_wrap=True,
        markup=False,
    )
    out.print(f"next: composir search {out_} --image PICTURE --text SENTENCE", soft_wrap=True, markup=False)
    out.print(f"      composir serve {out_}", soft_wrap=True, markup=False)
    return 0


@app.command(rich_help_panel="Your own pictures")
def search(
    index_: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that composir index made.")],
    image: Annotated[list[Path] | None, typer.Option(help="The reference picture; repeatable.")] = None,
    text: Annotated[str, typer.Option(help="What should differ; without a picture, what to find.")] = "",
    negative_text: Annotated[str, typer.Option(help="What there should be less of.")] = "",
    top_k: Annotated[int, typer.Option(min=1, help="How many pictures are shown.")] = 10,
    where: Annotated[str | None, typer.Option(help="Pattern for the path, such as 'holidays/*'.")] = None,
    exclude_reference: Annotated[
        bool, typer.Option("--exclude-reference/--keep-reference", help="Whether the reference may be an answer.")
    ] = True,
    rerank: Annotated[
        int, typer.Option(min=0, help="Score so many of the best again with the matching head; 0: none.")
    ] = 0,
    contact_sheet: Annotated[Path | None, typer.Option(help="Write a PNG of the query and what was found.")] = None,
    model: Annotated[Path | None, typer.Option(help="Where the index's model has moved to.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU where there is one.")] = None,
    json_: Json = False,
) -> int:
    """Find pictures by a picture, a sentence that says what should differ, or both.

    Example: composir search holiday.index --image beach.jpg --text "the same beach at night"
    """
    from composir.search import Retriever

    with Retriever(index_, model=model, device=device) as retriever:
        _note_if_incomplete(retriever)
        start = time.perf_counter()
        hits = retriever.search(
            image or (),
            text,
            negative_text=negative_text,
            top_k=top_k,
            where=where,
            exclude=None if exclude_reference else (),
            rerank=rerank,
        )
        milliseconds = 1000 * (time.perf_counter() - start)
    if where is not None and not hits:
        err.print(f"note: nothing to find at --where {where!r}; it is matched with paths such as 'holidays/beach.jpg'")
    if contact_sheet:
        from composir.evaluation import Cell, Row, grid

        cells = tuple(Cell(hit.path, f"{hit.rank}  ·  {hit.score:.3f}") for hit in hits)
        without = f"without: {negative_text}" if negative_text else ""
        note = f"and {len(image) - 1} more" if image and len(image) > 1 else ""
        grid([Row(image[0] if image else None, f"{text} {without}".strip(), cells, note)], contact_sheet)
    if json_:
        results = [{"rank": hit.rank, "path": str(hit.path), "score": hit.score, "id": hit.id} for hit in hits]
        _print_json({"results": results, "milliseconds": round(milliseconds, 1)})
        return 0
    for hit in hits:
        out.print(f"{hit.rank:3}  {hit.score:.3f}  {_printable(hit.path)}", soft_wrap=True, markup=False)
    out.print(f"{len(hits)} of {len(retriever):,} pictures in {milliseconds:.0f} ms")
    if contact_sheet:
        out.print(f"contact sheet: {contact_sheet}", soft_wrap=True, markup=False)
    return 0


def _note_if_incomplete(retriever: Retriever) -> None:
    if not retriever.complete:
        goes_on = f"composir index {retriever.images.root} --out {retriever.folder}"
        err.print(f"note: {retriever.folder} is not complete; {goes_on} goes on", soft_wrap=True, markup=False)


@app.command(rich_help_panel="Your own pictures")
def serve(
    index_: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that composir index made.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs --api-key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="COMPOSIR_API_KEY",
            help="What everybody who asks has to show; in the environment no list of processes shows it.",
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, help="Searches under way at one time; more are told to come back (503).")
    ] = 64,
    max_upload: Annotated[int, typer.Option(min=1, help="MiB of an uploaded picture.")] = 20,
    model: Annotated[Path | None, typer.Option(help="Where the index's model has moved to.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU where there is one.")] = None,
) -> int:
    """Search an index in a browser and over HTTP, till Ctrl-C; a later composir index is seen without a restart.

    Example: composir serve holiday.index
    """
    from composir.web import Limits, open_server
    from composir.web.log import log_as_json

    limits = Limits(max_waiting=queue, max_upload_bytes=max_upload * 2**20)
    server = open_server(index_, host=host, port=port, api_key=api_key, limits=limits, model=model, device=device)
    _note_if_incomplete(server.retriever)
    out.print(
        f"{len(server.retriever):,} pictures at {server.address} (interface for programs: {server.address}/docs); "
        "Ctrl-C stops",
        soft_wrap=True,
        markup=False,
    )
    log_as_json()
    # The server raises the signal again that stopped it: after SIGTERM, the ordinary way, that is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run()
    return 0


# -- convert -----------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Models")
def convert(
    source: Annotated[str, typer.Argument(help="A file, a folder or a hub id.")],
    out_: Annotated[Path, typer.Option("--out", help="The checkpoint folder to make; with --to the file.")],
    from_: Annotated[
        str | None, typer.Option("--from", help="lavis (.pth), sprc (.pt) or hf (folder or hub id, safetensors).")
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="sprc: a checkpoint folder into a file that SPRC reads.")
    ] = None,
    qformer_config: Annotated[
        Path | None, typer.Option(help="JSON with what weights do not show, such as num_attention_heads.")
    ] = None,
    gated_fusion: Annotated[
        bool | None,
        typer.Option("--gated-fusion/--no-gated-fusion", help="A fresh gate, or none; else as in the source."),
    ] = None,
    embed_tower: Annotated[
        bool, typer.Option("--embed-tower", help="Store the frozen vision tower, too, instead of where it was read.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of what the source does not hold.")] = 0,
    json_: Json = False,
) -> int:
    """Turn weights of LAVIS, SPRC or the hub into a checkpoint folder, or a checkpoint into SPRC's file.

    Example: composir convert --from lavis blip2_pretrained.pth --out models/blip2
    """
    from composir.models.transfer import convert as convert_weights
    from composir.models.transfer import export_sprc

    _require_one({"--from": from_, "--to": to})
    if to is not None:
        _require_choice("--to", to, ("sprc",))
        done = export_sprc(source, out_)
    else:
        assert from_ is not None
        _require_choice("--from", from_, ("lavis", "sprc", "hf"))
        done = convert_weights(
            source,
            from_,
            out_,
            qformer_config=qformer_config,
            gated_fusion=gated_fusion,
            embed_tower=embed_tower,
            seed=seed,
        )
    if json_:
        _print_json(done.to_json())
        return 0
    reasons = dict.fromkeys(one.reason for one in done.dropped)
    for reason in reasons:
        keys = [one.key for one in done.dropped if one.reason == reason]
        out.print(f"dropped {len(keys)} ({reason}): {', '.join(keys)}", soft_wrap=True, markup=False)
    if done.fresh:
        out.print(f"not there, start fresh: {', '.join(done.fresh)}", soft_wrap=True, markup=False)
    if to is None and done.tower == "none":
        out.print("no vision tower in it: the model works on image tokens", soft_wrap=True)
    if to is None and not done.has_tokenizer:
        out.print("not BLIP-2's vocabulary: the model works on token ids", soft_wrap=True)
    out.print(f"{len(done.mapped)} weights: {done.out}", soft_wrap=True, markup=False)
    return 0


def _require_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ComposirError(
            f"{flag} {value!r} is not known", expected=" or ".join(choices), fix=nearest(value, choices)
        )


# -- visualize ---------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Models")
def visualize(
    model: Annotated[Path, typer.Option(help="A checkpoint folder, such as models/RUN/best.")],
    image: Annotated[Path, typer.Option(help="The reference picture.")],
    text: Annotated[list[str], typer.Option(help="What should differ; repeatable, a row of the picture each.")],
    out_: Annotated[Path, typer.Option("--out", help="The PNG to write.")],
    html: Annotated[Path | None, typer.Option(help="Also write a page that tells every value of every patch.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="A folder of pictures to rank.")] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Or a data set whose gallery is ranked: its folder, or its parent.")
    ] = None,
    dataset: Dataset = "CIRR",
    split: Annotated[str | None, typer.Option(help="The split whose answers are public unless given.")] = None,
    categories: Categories = None,
    target: Annotated[
        Path | None,
        typer.Option(help="A picture whose score is explained; else the known answer, else the first retrieved."),
    ] = None,
    json_: Json = False,
) -> int:
    """Draw what a model looks at in a picture, sentence by sentence, and what it retrieves with its fusion and without.

    Example: composir visualize --model models/RUN/best --image F.png --text "make it red" --out F.map.png
    """
    from composir.models.checkpoint import from_pretrained
    from composir.visualize import answer, draw, gallery_of_folder, gallery_of_splits, write_page

    ranked = None
    if gallery is not None or data_root is not None:
        _require_one({"--gallery": gallery, "--data-root": data_root})
        ranked = (
            gallery_of_splits(_load_splits(dataset, data_root, split, categories), image)
            if data_root is not None
            else gallery_of_folder(gallery or Path())
        )
    loaded = from_pretrained(model)
    with _Bars() as bars:
        answers = answer(
            loaded,
            image,
            text,
            gallery=ranked,
            target=target,
            progress=lambda done, total: bars.tell("image tokens", done, total),
        )
    draw(image, answers, out_)
    files = [out_]
    if html is not None:
        write_page(image, answers, html)
        files.append(html)
    if json_:
        _print_json({"files": [str(file) for file in files]})
    else:
        for file in files:
            out.print(str(file), soft_wrap=True, markup=False)
    return 0


# -- quickstart --------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Start here")
def quickstart(
    out_: Annotated[Path, typer.Option("--out", help="Where everything goes; run again to go on.")] = Path(
        "quickstart"
    ),
    minutes: Annotated[float, typer.Option(min=0.1, help="About how long training takes on two cores.")] = 3.0,
    json_: Json = False,
) -> int:
    """Make a licence-free data set, train the mini model on it, measure it and show what it retrieves."""
    from composir.evaluation import table
    from composir.quickstart import quickstart as run_quickstart

    with _Bars() as bars:
        done = run_quickstart(out_, minutes=minutes, observer=_TrainBars(bars), tell=bars.tell)
    if json_:
        _print_json(done.to_json())
        return 0
    out.print(table(done.result))
    root = out_ / "scenes"
    reference, sentence = done.example
    for line in (
        f"three example queries:  {done.contact_sheet}",
        f"curves of the training: {done.curves}",
        f"the model:              {done.run / 'best'}",
        f"the gallery's index:    {done.index}",
        "",
        "what to try next:",
        f'  composir search {done.index} --image {reference} --text "{sentence}" --contact-sheet found.png',
        f"  composir serve {done.index}   # in a browser; pip install 'composir[web]'",
        f"  composir index YOUR_PICTURES --model {done.run / 'best'} --out your.index   # then search in your own",
        f"  composir train --dataset CIRR --data-root {root} --backbone mini --no-gated-fusion   # the gate off",
        f"  composir evaluate --model {done.run / 'best'} --data-root {root} --contact-sheet more.png --num-queries 20",
        f"  tensorboard --logdir {done.run.parent}",
        "  composir train --help                                  # your own recipe, CIRR, FashionIQ, BLIP-2 weights",
    ):
        out.print(line, soft_wrap=True, markup=False)
    return 0


# -- selfcheck ---------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel="Start here")
def selfcheck(
    hidden_size: Annotated[int, typer.Option(min=1, help="Width of the image tokens.")] = 768,
    json_: Json = False,
) -> int:
    """Check the gated fusion module: parameters, shapes, gradients, and that the sentence drives the change."""
    from composir.selfcheck import check_gated_fusion

    report = check_gated_fusion(hidden_size)
    if json_:
        _print_json({"num_parameters": report.num_parameters, "passed": report.passed})
    else:
        out.print("\n".join(report.lines), soft_wrap=True, markup=False)
    return 0 if report.passed else 1


# -- data --------------------------------------------------------------------------------------------------------------


@data_app.command("scenes")
def data_scenes(
    out_: Annotated[Path, typer.Option("--out", help="Folder to make, in CIRR's layout.")],
    images: Annotated[int, typer.Option(min=1, help="Pictures, shared 4 : 1 : 1 by train, val and test1.")] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed makes the same files.")] = 0,
    json_: Json = False,
) -> int:
    """Make the generated set: scenes of coloured shapes and sentences that edit them, free of any licence."""
    from composir.data.scenes import generate

    counts = generate(out_, num_images=images, seed=seed)
    if json_:
        _print_json({"counts": counts})
    else:
        for name, count in counts.items():
            out.print(f"{name}: {count['num_queries']:,} queries, {count['num_gallery']:,} pictures")
        out.print(f"next: composir train --dataset CIRR --data-root {out_} --backbone mini", soft_wrap=True)
    return 0


@data_app.command("import")
def data_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Triplets: CSV with a header, or JSONL.")],
    images: Annotated[Path, typer.Option(help="The folder that the paths in FILE start from.")],
    out_: Annotated[Path, typer.Option("--out", help="Folder to make: the data root of --dataset own.")],
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="What FILE calls a column, as reference=ref_img; repeatable."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val or test where FILE has no column split; val unless given.")
    ] = None,
    gallery: Annotated[
        str, typer.Option(help="folder: every picture of the folder; named: those in FILE alone.")
    ] = "folder",
    copy_images: Annotated[
        bool, typer.Option("--copy-images", help="Copy the pictures into the data root instead of pointing to them.")
    ] = False,
    json_: Json = False,
) -> int:
    """Make a checked data root of your own triplets, for --dataset own.

    FILE has the columns (or keys) reference, text and target, and may have split, subset and id; paths start from the
    images folder. Every row and every picture is checked; exit code 2, and nothing is written, when there is a problem.

    Example: composir data import triplets.csv --images photos --out mydata
    """
    from composir.data.own import import_triplets

    problems: Sequence[Problem] = ()
    imported = None
    try:
        with _Bars() as bars:
            imported = import_triplets(
                file,
                images,
                out_,
                columns=dict(_key_and_value("--column", pair) for pair in columns or []),
                split=split,
                gallery=gallery,
                copy_images=copy_images,
                progress=lambda *told: bars.tell("images", *told),
            )
    except ProblemsError as error:
        if not json_:
            raise
        problems = error.problems
    if json_:
        _print_json(
            {
                "counts": imported.counts if imported else {},
                "problems": [asdict(one) for one in problems],
                "notes": imported.notes if imported else [],
            }
        )
    elif imported:
        for name, count in imported.counts.items():
            out.print(f"{name}: {count['num_queries']:,} queries, {count['num_gallery']:,} images in the gallery")
        for note in imported.notes:
            out.print(Text(f"note: {note}"), soft_wrap=True)
        out.print(f"next: composir data check --dataset own --data-root {out_}", soft_wrap=True)
    return USER_ERROR if problems else 0


@data_app.command("check")
def data_check(
    data_root: DataRoot,
    dataset: Dataset = "CIRR",
    categories: Categories = None,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Count files with the same content, but do not list them.")
    ] = False,
    json_: Json = False,
) -> int:
    """Read every annotation and decode every image that is there; all problems at once, each with its fix.

    Exit code 2 when there is a problem. Splits and categories that are not there are named, and no problem.

    Example: composir data check --dataset FashionIQ --data-root DIR --categories dress
    """
    from composir.data.check import check_dataset

    with _Bars() as bars:
        checked = check_dataset(
            dataset,
            data_root,
            categories=categories,
            allow_duplicates=allow_duplicates,
            progress=lambda *told: bars.tell("images", *told),
        )
    if json_:
        _print_json(
            {
                "problems": [asdict(one) for one in checked.problems],
                "counts": checked.counts,
                "absent": checked.absent,
            }
        )
    else:
        for problem in checked.problems:
            out.print(Text(_one_line(problem)), soft_wrap=True)
        for name, count in checked.counts.items():
            copies = count["num_duplicate_images"]
            out.print(
                f"{name}: {count['num_queries']:,} queries, {count['num_images']:,} images"
                + (f", {copies:,} of them with the content of another" if copies else "")
            )
        _print_absent(checked.absent)
        out.print(_count(checked.problems))
    return USER_ERROR if checked.problems else 0


@data_app.command("stats")
def data_stats(
    data_root: DataRoot,
    dataset: Dataset = "CIRR",
    split: Annotated[str | None, typer.Option(help="One split; all that are there unless given.")] = None,
    categories: Categories = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A checkpoint folder: also count the queries that it solves by one modality alone."),
    ] = None,
    json_: Json = False,
) -> int:
    """Count queries, gallery images, words and duplicate targets of every split.

    The images need not be there, unless a model is asked.

    Example: composir data stats --dataset CIRR --data-root DIR --json
    """
    from composir.data.check import stats
    from composir.data.datasets import load_present

    present = load_present(dataset, data_root, split=split, categories=categories)
    if present.problems:
        raise ProblemsError(present.problems)
    counts = stats(present.splits)
    lines = [] if model is None else _count_solved(model, present.splits, counts)
    if json_:
        _print_json({"counts": counts, "absent": present.absent})
        return 0
    table = Table(box=None)
    table.add_column("", no_wrap=True)
    for heading in STATS_COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, count in counts.items():
        cells = [count.get(key) for key in STATS_COLUMNS]
        table.add_row(name, *("–" if cell is None else f"{round(cell, 1):,}" for cell in cells))
    out.print(table)
    for line in lines:
        out.print(line, soft_wrap=True)
    _print_absent(present.absent)
    return 0


SOLVED_COUNTS = ("num_shortcut_solvable", "num_image_solves", "num_text_solves")
STATS_COLUMNS = {
    "num_queries": "queries",
    "gallery_original": "gallery",
    "gallery_val_union": "val-union",
    "num_pairs": "pairs",
    "num_duplicate_targets": "repeats",
    "words_mean": "words",
    "words_max": "most",
}


def _count_solved(model: Path, splits: Sequence[Split], counts: dict[str, dict[str, int | float]]) -> list[str]:
    """Add to the ``counts`` of every split with public answers what one modality alone solves; return it in words."""
    from composir.data.triplets import split_key
    from composir.evaluation import audit_lines
    from composir.evaluation import evaluate as evaluate_model
    from composir.features import NUM_WORKERS

    lines = []
    for split in splits:
        if all(query.targets for query in split.queries):
            with _Bars() as bars:
                embedder, _ = _open_embedder(model, (split,), NUM_WORKERS, bars)
                result = evaluate_model(embedder, [split], progress=bars.tell)
            assert result.audit is not None
            key = split_key(split.name, split.category)
            counts[key] |= {name: getattr(result.audit, name) for name in SOLVED_COUNTS}
            lines.append(f"{key}: {audit_lines(result)[0]}")
    return lines


def _print_absent(absent: list[str]) -> None:
    if absent:
        out.print(f"not there: {', '.join(absent)}", soft_wrap=True)


# -- benchmark ---------------------------------------------------------------------------------------------------------

Repeats = Annotated[int, typer.Option(min=1, help="Repetitions of each part; the median counts.")]


@benchmark_app.command("evaluate")
def benchmark_evaluate(
    num_queries: Annotated[int, typer.Option(min=1, help="Queries of the large part.")] = 1000,
    num_gallery: Annotated[
        int, typer.Option(min=60, help="Gallery images of the large part; CIRCO's number.")
    ] = 123403,
    repeats: Repeats = 3,
    json_: Json = False,
) -> int:
    """Score synthetic embeddings: a gallery of CIRCO's size, CIRR's size beside the published way, the bootstrap."""
    from composir.benchmark import benchmark_evaluate as run

    _print_benchmark(run(num_queries=num_queries, num_gallery=num_gallery, repeats=repeats), json_=json_)
    return 0


BenchmarkBackbone = Annotated[
    str, typer.Option(help="real (BLIP-2's sizes, random weights), or a backbone that needs no weights.")
]
ProcessorTime = Annotated[
    bool, typer.Option(help="Seconds that this process had of all cores, for a machine that others use.")
]


@benchmark_app.command("train")
def benchmark_train(
    backbone: BenchmarkBackbone = "real",
    batch_size: Annotated[int, typer.Option(min=2, help="Triplets a step.")] = 8,
    repeats: Repeats = 3,
    processor_time: ProcessorTime = False,
    compiled: Annotated[bool, typer.Option(help="Measure torch.compile as well; needs a C++ compiler.")] = False,
    curve_steps: Annotated[int, typer.Option(min=1, help="Steps of the loss curves in fp32 and bf16.")] = 20,
    json_: Json = False,
) -> int:
    """Take training steps the published way and this package's, part by part, with equal losses and gradients.

    Example: composir benchmark train --backbone mini --batch-size 32
    """
    from composir.benchmark import benchmark_train as run

    _require_free_backbone(backbone)
    with _Bars() as bars:
        document = run(
            backbone=backbone,
            batch_size=batch_size,
            repeats=repeats,
            processor_time=processor_time,
            compiled=compiled,
            curve_steps=curve_steps,
            progress=bars.tell,
        )
    _print_benchmark(document, json_=json_)
    return 0


@benchmark_app.command("gate")
def benchmark_gate(
    backbone: BenchmarkBackbone = "real",
    token_width: Annotated[
        int | None, typer.Option(min=1, help="real: width of the image tokens instead of 1408.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=2, help="Triplets a step.")] = 8,
    repeats: Repeats = 3,
    processor_time: ProcessorTime = False,
    json_: Json = False,
) -> int:
    """Take training steps with gated fusion and without, beside what its products alone must cost."""
    from composir.benchmark import benchmark_gate as run

    _require_free_backbone(backbone)
    if token_width is not None and backbone != "real":
        raise ComposirError(f"the width of {backbone}'s tokens is fixed", fix="leave out --token-width")
    with _Bars() as bars:
        document = run(
            backbone=backbone,
            token_width=token_width,
            batch_size=batch_size,
            repeats=repeats,
            processor_time=processor_time,
            progress=bars.tell,
        )
    _print_benchmark(document, json_=json_)
    return 0


@benchmark_app.command("methods")
def benchmark_methods(
    backbone: BenchmarkBackbone = "mini",
    batch_size: Annotated[int, typer.Option(min=2, help="Triplets a step.")] = 32,
    repeats: Repeats = 5,
    processor_time: ProcessorTime = False,
    json_: Json = False,
) -> int:
    """Take training steps with each fusion, loss and kind of negatives, beside those of SPRC."""
    from composir.benchmark import benchmark_methods as run

    _require_free_backbone(backbone)
    with _Bars() as bars:
        document = run(
            backbone=backbone,
            batch_size=batch_size,
            repeats=repeats,
            processor_time=processor_time,
            progress=bars.tell,
        )
    _print_benchmark(document, json_=json_)
    return 0


@benchmark_app.command("features")
def benchmark_features(
    backbone: BenchmarkBackbone = "real",
    num_images: Annotated[
        int, typer.Option(min=1, help="Images in the made-up token cache; CIRR's train set.")
    ] = 16939,
    num_reads: Annotated[int, typer.Option(min=1, help="Images read from it at random.")] = 2048,
    num_tower_images: Annotated[int, typer.Option(min=1, help="Images that go through the tower.")] = 8,
    repeats: Repeats = 3,
    num_workers: Annotated[int, typer.Option(min=1, help="Threads that decode.")] = 4,
    directory: Annotated[Path | None, typer.Option(help="Where the cache lies meanwhile: 12.3 GB for real.")] = None,
    json_: Json = False,
) -> int:
    """Read a token cache at random, decode and prepare pictures, run the tower: images a second of each."""
    from composir.benchmark import benchmark_features as run

    _require_free_backbone(backbone)
    document = run(
        backbone=backbone,
        num_images=num_images,
        num_reads=num_reads,
        num_tower_images=num_tower_images,
        repeats=repeats,
        num_workers=num_workers,
        directory=directory,
    )
    _print_benchmark(document, json_=json_)
    return 0


def _require_free_backbone(backbone: str) -> None:
    free = ("real", "mini", "tiny")
    if backbone not in free:
        raise ComposirError(f"backbone {backbone!r} cannot be measured", expected=", ".join(free))


@benchmark_app.command("search")
def benchmark_search(
    images: Annotated[str, typer.Option(help="Sizes of the gallery, such as 10000,100000.")] = "10000",
    backends: Annotated[str, typer.Option(help="Engines, such as exact,faiss.")] = "exact,faiss,qdrant",
    vectors_per_image: Annotated[str, typer.Option(help="Merge 32 vectors a picture to so many.")] = "32",
    url: Annotated[str | None, typer.Option(help="qdrant: address of a server.")] = None,
    num_queries: Annotated[int, typer.Option(min=1, help="Queries, alone and all at once.")] = 100,
    json_: Json = False,
) -> int:
    """Build and search synthetic galleries: time, memory, disk and recall of every engine.

    Example: composir benchmark search --images 10000 --vectors-per-image 32,16,8,4
    """
    from composir.benchmark import benchmark_search as run
    from composir.search import check_backend

    names = backends.split(",")
    for name in names:
        check_backend(name)
    with _Bars() as bars:
        document = run(
            images=_numbers("--images", images),
            backends=names,
            vectors_per_image=_numbers("--vectors-per-image", vectors_per_image),
            url=url,
            num_queries=num_queries,
            progress=bars.tell,
        )
    if json_:
        _print_json(document)
        return 0
    view = Table(box=None)
    view.add_column("engine", no_wrap=True)
    for name in ("build s", "p50 ms", "p99 ms", "in a batch ms", "recall@10", "peak memory MiB", "disk MiB"):
        view.add_column(name, justify="right")
    for name, latency in document["latency_ms"].items():
        view.add_row(
            name,
            f"{document['seconds'][f'{name} build'][0]:.1f}",
            *(f"{latency[key]:.2f}" for key in ("p50", "p99", "batch")),
            f"{document['recall_at_10'][name]:.3f}",
            *(
                f"{size / 2**20:,.0f}"
                for size in (document["peak_memory_bytes"][f"{name} alone"], document["disk_bytes"][name])
            ),
        )
    out.print(view)
    _print_ratios_and_machine(document)
    return 0


def _numbers(flag: str, text: str) -> list[int]:
    """Return the numbers of a list such as ``10000,100000``."""
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) for word in words):
        raise ComposirError(f"{flag} is {text!r}", expected="whole numbers from 1 with commas, such as 10000,100000")
    return [int(word) for word in words]


def _print_benchmark(document: dict[str, Any], *, json_: bool) -> None:
    if json_:
        _print_json(document)
        return
    view = Table()
    for name in ("part", "median seconds", "all seconds", "peak memory"):
        view.add_column(name, justify="left" if name == "part" else "right")
    for name, seconds in document["seconds"].items():
        peak = document["peak_memory_bytes"].get(name)
        memory = "" if peak is None else f"{peak / 2**20:,.0f} MiB"
        view.add_row(name, f"{median(seconds):.3f}", " ".join(f"{one:.3f}" for one in seconds), memory)
    out.print(view)
    _print_ratios_and_machine(document)


def _print_ratios_and_machine(document: dict[str, Any]) -> None:
    for name, ratio in document["ratios"].items():
        out.print(f"{name}: {ratio:.2f}")
    out.print(", ".join(f"{name} {value}" for name, value in document["machine"].items()), soft_wrap=True)
