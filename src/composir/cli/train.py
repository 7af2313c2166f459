"""The command that trains: ``train``."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from composir.cli.choices import BACKBONES, DATASETS, FUSIONS, HEADS, LOSSES, TRANSFORMS, one_of, with_notes
from composir.cli.common import (
    INTERRUPTED,
    MODELS,
    SPEED,
    Cache,
    CacheDir,
    Json,
    app,
    key_and_value,
)
from composir.cli.console import Bars, TrainBars, err, out, print_json
from composir.cli.early import require_training
from composir.errors import ComposirError, command

AUTO = "auto"
TRAINED, LENGTH, SWITCHES = "What is trained", "The loss, and how long", "On or off"
EPOCHS = "pretrain 50, on FashionIQ 30; mini 10; a head 30"
BATCHES = "pretrain 64; mini 32; a head 256"
LEARNING_RATES = "pretrain 1e-5; mini 5e-4; a head 2e-3"
VALIDATIONS = "1; a head 10"
"""Defaults of the backbones' own recipes, which tests/test_cli_help.py compares."""


def _int_or_auto(text: str) -> int | str:
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number and not {AUTO}") from None


@app.command(rich_help_panel=MODELS)
def train(
    context: typer.Context,
    dataset: Annotated[
        str | None, typer.Option(help=f"{one_of(DATASETS)} (docs/data.md).", show_default="CIRR")
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root", "--data-path", help="Folder of the data set, or its parent.", show_default="this folder"
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help=f"{with_notes(BACKBONES)}; or a model that stays as it is and gets a head: photos, lite0, st:NAME or "
            "a folder.",
            show_default="pretrain",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="The backbone's pretrained weights: a file, or a folder (with the vision tower's file).",
            show_default="none; pretrain and pretrain_vitL need some",
        ),
    ] = None,
    num_epochs: Annotated[
        int | None, typer.Option(help="Passes over the training triplets.", show_default=EPOCHS)
    ] = None,
    batch_size: Annotated[
        Any,
        typer.Option(
            parser=_int_or_auto,
            metavar="N|auto",
            help="Triplets a step, each other's negatives; auto: all that fit.",
            show_default=BATCHES,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default=LEARNING_RATES)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and choices.", show_default="0")] = None,
    output_dir: Annotated[str | None, typer.Option(help="Where run folders are made.", show_default="models")] = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to go on with.")] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A recipe.toml; flags given here win over it.", show_default="the backbone's own recipe"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help=f"key=value of any other setting of a recipe, as contrastive_loss={LOSSES[-1]} (or {LOSSES[0]}); "
            "repeatable.",
        ),
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(
            help=f"How sentence and reference are joined: {', '.join(FUSIONS)}, none; a+b.",
            show_default="gate; mini gate+late",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    alpha_init: Annotated[
        float | None, typer.Option(help="Start of the gate's alpha.", show_default="0.5", rich_help_panel=TRAINED)
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            help=f"On a model that stays as it is: {one_of(HEADS)}.", show_default="joint", rich_help_panel=TRAINED
        ),
    ] = None,
    lora: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Of a CLIP-like model: train adapters of this rank.",
            show_default="a head instead",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    from_feedback: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="FILE INDEX",
            help="Instead of a data set: a head for INDEX, from what its searches meant (serve --record FILE).",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    blip_model_name: Annotated[
        str | None,
        typer.Option(help="The one model there is.", show_default="blip2_cir_align_prompt", rich_help_panel=TRAINED),
    ] = None,
    transform: Annotated[
        str | None, typer.Option(help=f"{one_of(TRANSFORMS)}.", show_default="targetpad", rich_help_panel=TRAINED)
    ] = None,
    target_ratio: Annotated[
        float | None,
        typer.Option(help="Targetpad's long side over short side.", show_default="1.25", rich_help_panel=TRAINED),
    ] = None,
    text_rule: Annotated[
        str | None,
        typer.Option(
            help="How CIRR's and FashionIQ's sentences are made, such as 'MMEB instruction' (evaluate).",
            show_default="the data set's own rule",
            rich_help_panel=TRAINED,
        ),
    ] = None,
    loss_align: Annotated[
        float | None,
        typer.Option(help="Weight of the alignment loss.", show_default="0.4", rich_help_panel=LENGTH),
    ] = None,
    loss_rtc: Annotated[
        float | None,
        typer.Option(help="Weight of the text-to-target loss.", show_default="0.4", rich_help_panel=LENGTH),
    ] = None,
    loss_local: Annotated[
        float | None,
        typer.Option(help="Weight of the patch-level alignment.", show_default="0", rich_help_panel=LENGTH),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(
            help="Stop after so many optimiser steps.", show_default="after all epochs", rich_help_panel=LENGTH
        ),
    ] = None,
    validation_frequency: Annotated[
        int | None,
        typer.Option(help="Epochs between validations.", show_default=VALIDATIONS, rich_help_panel=LENGTH),
    ] = None,
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Put the best model there at the end, in one move; serve --model takes up a head at once.",
            show_default="it stays in the run folder",
            rich_help_panel=LENGTH,
        ),
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="Threads that decode images.", show_default="4", rich_help_panel=SPEED)
    ] = None,
    cache: Cache = "disk",
    cache_dir: CacheDir = None,
    gated_fusion: Annotated[
        bool | None,
        typer.Option(
            "--gated-fusion/--no-gated-fusion",
            help="The same as --fusion gate, --fusion none.",
            show_default="as --fusion",
            rich_help_panel=SWITCHES,
        ),
    ] = None,
    target_map: Annotated[
        bool | None,
        typer.Option(
            "--target-map/--no-target-map",
            help="The head also maps the targets: an index gets a second set of vectors.",
            show_default="off",
            rich_help_panel=SWITCHES,
        ),
    ] = None,
    skip_missing_images: Annotated[
        bool | None,
        typer.Option(
            "--skip-missing-images/--no-skip-missing-images",
            help="Do without the queries that need a missing image; says how many are left.",
            show_default="off: a missing image is an error",
            rich_help_panel=SWITCHES,
        ),
    ] = None,
    save_training: Annotated[
        bool | None,
        typer.Option(
            "--save-training/--no-save-training",
            help="Keep last/ and best/.",
            show_default="on",
            rich_help_panel=SWITCHES,
        ),
    ] = None,
    save_best: Annotated[
        bool | None,
        typer.Option(
            "--save-best/--no-save-best",
            help="Keep the best checkpoint only, or one an epoch as well.",
            show_default="on",
            rich_help_panel=SWITCHES,
        ),
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(
            "--deterministic/--no-deterministic",
            help="Only algorithms that repeat themselves exactly.",
            show_default="off",
            rich_help_panel=SWITCHES,
        ),
    ] = None,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Let torch compile the losses; the first step takes minutes.",
            show_default="off",
            rich_help_panel=SWITCHES,
        ),
    ] = None,
    json_: Json = False,
) -> int:
    """Train a model; flags that are not given come from --config, else from the backbone's own recipe.

    Example: composir train --dataset CIRR --data-root DIR --backbone mini
    """
    require_training(context.params, config, resume)
    from composir.token_cache import TokenPlace
    from composir.training import load_recipe, resume_recipe
    from composir.training import train as run_training

    start = time.perf_counter()
    given, largest_batch = given_settings(context.params, settings), False
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
    _warn_of_learning_rate(recipe)
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
    said = sorted({"dataset", "data_root", "index"} & given.keys())
    if said:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in said)
        raise ComposirError(f"--from-feedback says what is trained on, and so does {flags}", fix=f"leave {flags} out")
    if not file.is_file():
        raise ComposirError(
            "no such file of examples", file=file, fix=f"{command('serve', index, '--record', file)} makes one"
        )
    from composir.training.feedback import index_model

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


def given_settings(parameters: dict[str, Any], settings: list[str] | None) -> dict[str, Any]:
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


def _warn_of_learning_rate(recipe: Any) -> None:
    if recipe.backbone == "mini" and recipe.learning_rate < PUBLISHED_LEARNING_RATE_LIMIT:
        err.print(
            f"note: a learning rate of {recipe.learning_rate:g} is meant for the pretrained BLIP-2 backbones; the mini "
            "backbone hardly learns at it. Leave out what names it (--learning-rate, --config) to train with the mini "
            "recipe's own.",
            soft_wrap=True,
        )
