"""The commands that train: ``train``, ``ablate``, ``features``."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from composir.cli.choices import BACKBONES, DATASETS, FUSIONS, HEADS, LOSSES, TRANSFORMS, one_of, with_notes
from composir.cli.common import INTERRUPTED, Cache, CacheDir, DataRoot, Dataset, Json, app, key_and_value
from composir.cli.console import Bars, TrainBars, err, out, print_json, tell_features, tell_left
from composir.errors import ComposirError, command, short
from composir.limits import MAX_SEED

if TYPE_CHECKING:
    pass

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
    dataset: Annotated[str | None, typer.Option(help=f"{one_of(DATASETS)} (docs/data.md).")] = None,
    data_root: Annotated[
        Path | None, typer.Option("--data-root", "--data-path", help="Folder of the data set, or its parent.")
    ] = None,
    from_feedback: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="FILE INDEX",
            help="Instead of a data set: a head for INDEX, from what its searches meant (serve --record FILE).",
        ),
    ] = None,
    skip_missing_images: Annotated[
        bool | None,
        typer.Option(
            "--skip-missing-images/--no-skip-missing-images",
            help="Do without the queries that need a missing image; says how many are left.",
        ),
    ] = None,
    text_rule: Annotated[
        str | None,
        typer.Option(help="How CIRR's and FashionIQ's sentences are made, such as 'MMEB instruction' (evaluate)."),
    ] = None,
    blip_model_name: Annotated[str | None, typer.Option(help="blip2_cir_align_prompt.")] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help=f"{with_notes(BACKBONES)}; or a model that stays as it is and gets a head: photos, lite0, st:NAME or "
            "a folder."
        ),
    ] = None,
    head: Annotated[
        str | None, typer.Option(help=f"On a model that stays as it is: {one_of(HEADS)} \\[joint].")
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Of a CLIP-like model: train adapters of this rank instead of a head."),
    ] = None,
    target_map: Annotated[
        bool | None,
        typer.Option(
            "--target-map/--no-target-map",
            help="The head also maps the targets: an index gets a second set of vectors.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="The backbone's pretrained weights: a file, or a folder (with the vision tower's file)."),
    ] = None,
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
    transform: Annotated[str | None, typer.Option(help=f"{one_of(TRANSFORMS)}.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Threads that decode images.")] = None,
    output_dir: Annotated[str | None, typer.Option(help="Where run folders are made \\[models].")] = None,
    fusion: Annotated[
        str | None,
        typer.Option(help=f"How sentence and reference are joined: {', '.join(FUSIONS)}, none; a+b."),
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
    compile: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="Let torch compile the losses; the first step takes minutes."),
    ] = None,
    cache: Cache = "disk",
    cache_dir: CacheDir = None,
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Put the best model there at the end, in one move; serve --model takes up a head at once."
        ),
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to go on with.")] = None,
    config: Annotated[Path | None, typer.Option(help="A recipe.toml; flags given here win over it.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help=f"key=value of any other setting of a recipe, as contrastive_loss={'|'.join(LOSSES)}; repeatable.",
        ),
    ] = None,
    json_: Json = False,
) -> int:
    """Train a model; flags that are not given come from --config, else from the backbone's own recipe.

    Example: composir train --dataset CIRR --data-root DIR --backbone mini
    """
    from composir.token_cache import TokenPlace
    from composir.training import load_recipe, resume_recipe
    from composir.training import train as run_training

    start = time.perf_counter()
    given, largest_batch = _given(context.params, settings), False
    if from_feedback is not None:
        given = _of_feedback(given, *from_feedback)
    _require_replaceable(out_)
    if resume is not None:
        if given or config:
            raise ComposirError(
                f"--resume goes on by the run's own recipe; {', '.join(sorted(given)) or '--config'} cannot change it",
                fix=command("train", "--resume", resume),
            )
        recipe = resume_recipe(resume)
    else:
        if largest_batch := given.get("batch_size") == AUTO:
            del given["batch_size"]
        recipe = load_recipe(given, config)
    _warn_of_learning_rate(recipe, given)
    with Bars() as bars:
        result = run_training(
            recipe,
            resume=resume,
            observer=TrainBars(bars, tells_batch=largest_batch),
            place=TokenPlace(cache, cache_dir),
            largest_batch=largest_batch,
        )
    if result.interrupted:
        err.print(f"stopped and saved; go on with: {command('train', '--resume', result.run)}", soft_wrap=True)
        return INTERRUPTED
    best = _put(result.best, out_)
    document = {
        "run": str(result.run),
        "best": str(best) if best else None,
        "epochs": result.epochs,
        "metrics": result.metrics,
        "seconds": round(time.perf_counter() - start, 1),
    }
    if json_:
        print_json(document)
    else:
        out.print(f"run: {result.run}", soft_wrap=True)
        if best:
            out.print(f"best: {best}\nnext: {_next_command(recipe, best)}", soft_wrap=True)
    return 0


def _of_feedback(given: dict[str, Any], file: Path, index: Path) -> dict[str, Any]:
    """Return the settings with those of a head on an index; ``ComposirError`` where they say that otherwise."""
    from composir.training.feedback import index_model

    said = sorted({"dataset", "data_root", "index"} & given.keys())
    if said:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in said)
        raise ComposirError(f"--from-feedback says what is trained on, and so does {flags}", fix=f"leave {flags} out")
    if not file.is_file():
        raise ComposirError(
            "no such file of examples", file=file, fix=f"{command('serve', index, '--record', file)} makes one"
        )
    return {"backbone": index_model(index), **given, "dataset": "own", "data_root": str(file), "index": str(index)}


def _next_command(recipe: Any, best: Path) -> str:
    if recipe.index:
        return command("search", recipe.index, "--model", best, "--image", "PICTURE", "--text", "SENTENCE")
    skip = ("--skip-missing-images",) * recipe.skip_missing_images
    rule = ("--text-rule", recipe.text_rule) if recipe.text_rule else ()
    data = ("--dataset", recipe.dataset, "--data-root", recipe.data_root)
    return command("evaluate", "--model", best, *data, *rule, *skip)


def _put(best: Path | None, place: Path | None) -> Path | None:
    """Return where the best model is, after copying it to ``place``, whole or not at all."""
    from composir.files import replacing_folder

    if best is None or place is None:
        return best
    with replacing_folder(place.resolve()) as folder:
        shutil.copytree(best, folder, dirs_exist_ok=True)
    return place


def _require_replaceable(folder: Path | None) -> None:
    """Raise ``ComposirError`` where ``--out`` names anything but a model, an empty folder or nothing yet."""
    from composir.models.config import CONFIG

    if folder is None or not folder.exists():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / CONFIG).is_file()):
        raise ComposirError("is there and is no model", file=folder, fix="give --out a new folder, or that of a model")


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
        key, value = key_and_value("--set", pair)
        settings[key.replace("-", "_")] = parse_value(value)
    return settings


PUBLISHED_LEARNING_RATE_LIMIT = 1e-4


def _warn_of_learning_rate(recipe: Any, given: dict[str, Any]) -> None:
    if recipe.backbone == "mini" and given.get("learning_rate", 1.0) < PUBLISHED_LEARNING_RATE_LIMIT:
        err.print(
            f"note: --learning-rate {recipe.learning_rate:g} is meant for the pretrained BLIP-2 backbones; the mini "
            "backbone hardly learns at it. Leave the flag out to train with the mini recipe's own.",
            soft_wrap=True,
        )


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
        list[str] | None, typer.Option(help="Differences of this figure \\[the data set's primary one]; repeatable.")
    ] = None,
    json_: Json = False,
) -> int:
    """Train with and without a setting over seeds, compare, and write a report. Takes all flags of train as well.

    Example: composir ablate --seeds 5 --dataset CIRR --data-root DIR --backbone mini --max-steps 300
    """
    from composir.token_cache import TokenPlace
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
    if parameters["from_feedback"] is not None:
        raise ComposirError(
            "ablate compares on a data set", fix="composir data import, then --dataset own --data-root R"
        )
    if parameters["batch_size"] == AUTO:
        raise ComposirError("trainings are compared at one batch size", fix="give --batch-size a number")
    with Bars() as bars:
        ablation = run_ablation(
            _given(parameters, parameters["settings"]),
            vary=_vary(vary or [GATE_ABLATION]),
            seeds=_seeds(seeds),
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
    expected = f"how many, from 1 to {MAX_SEEDS:,}, or which ones from 0 to {MAX_SEED:,}, as 0,3,7"
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ComposirError(f"--seeds {short(text)} are no numbers", expected=expected) from None
    if not (0 < numbers[0] <= MAX_SEEDS if len(numbers) == 1 else 0 <= min(numbers) <= max(numbers) <= MAX_SEED):
        raise ComposirError(f"--seeds {short(text)} is out of range", expected=expected)
    return list(range(numbers[0])) if len(numbers) == 1 else numbers


@app.command(rich_help_panel="Models")
def features(
    data_root: DataRoot,
    dataset: Dataset = "CIRR",
    backbone: Annotated[str, typer.Option(help=f"{with_notes(BACKBONES)}.")] = "mini",
    weights: Annotated[str, typer.Option(help="Folder or file of the backbone's pretrained weights.")] = "",
    split: Annotated[
        list[str] | None, typer.Option(help="Instead of train and the split it is validated on; repeatable.")
    ] = None,
    skip_missing_images: Annotated[
        bool, typer.Option("--skip-missing-images", help="Do without the images that are missing; says how many.")
    ] = False,
    transform: Annotated[str | None, typer.Option(help=f"{one_of(TRANSFORMS)}.")] = None,
    target_ratio: Annotated[float | None, typer.Option(help="Targetpad's long side over short side.")] = None,
    num_workers: Annotated[int | None, typer.Option(help="Threads that decode images.")] = None,
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
        "skip_missing_images": skip_missing_images,
    }  # fmt: skip
    recipe = load_recipe({name: value for name, value in given.items() if value is not None})
    with Bars() as bars:
        filled = compute_features(
            recipe, splits=split, cache_dir=cache_dir, progress=lambda *told: tell_features(bars, *told)
        )
    tell_left(filled.left)
    if json_:
        print_json(asdict(filled))
    else:
        speed = f"{filled.images_per_second:.1f} images/s" if filled.num_computed else "nothing to compute"
        out.print(
            f"{filled.num_images:,} images, {size_text(filled.bytes)} in {filled.folder}; "
            f"{filled.num_computed:,} computed now, {speed}",
            soft_wrap=True,
        )
    return 0
