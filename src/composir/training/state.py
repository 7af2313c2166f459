"""Where a run stands and how that is kept: the run folder's names, ``last/`` to go on from, the best model's card."""

from __future__ import annotations

import contextlib
import datetime
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from composir.data import DATASETS, Left, Split
from composir.data.scenes import is_generated
from composir.errors import ComposirError, command
from composir.evaluation import Result, metric_label
from composir.evaluation.saved import RECIPE
from composir.files import read_toml, recover_folder, replacing_folder
from composir.models.backbones import BACKBONES
from composir.models.checkpoint import Weighted, load_weights
from composir.models.config import WEIGHTS
from composir.training.recipe import Recipe, validate

STATE, LOCK = "training.pt", ".lock"
LAST_MODEL = "last/model"
"""Folder of the model in a run folder, as it was when the run was last saved."""
MINED = "mined"
"""Folder of the mined negatives in a run folder, one file a mining."""

Schedule = torch.optim.lr_scheduler.LRScheduler


@dataclass
class State:
    """Where a run stands, beside the weights: everything a resumed run needs to go on as if unbroken."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Of what the log shows as means of the epoch, so far."""
    losses: dict[str, list[float]] = field(default_factory=dict)
    """The losses of every batch so far, by name, and under ``step`` the step that each belongs to: for the curves."""
    skipped_steps: int = 0
    """Of the epoch so far: those whose gradients overflowed in fp16."""
    best: float = -1.0
    best_metrics: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)


def resume_recipe(run: Path) -> Recipe:
    """Return the recipe of a run folder that can be resumed; raise ``ComposirError`` where there is none."""
    recover_folder(run / "last")
    if not (run / "last" / STATE).is_file():
        raise ComposirError(
            "holds no state to resume from",
            file=run,
            expected="a run folder with last/training.pt, such as models/clip_finetuned_on_...",
            fix="give the folder of a run that was trained with --save-training, or start anew without --resume",
        )
    return validate(read_toml(run / RECIPE), run / RECIPE)


def new_run(recipe: Recipe) -> Path:
    """Return a run folder that was not there before, named by data set, model and time."""
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H.%M.%S")
    model = f"lora_{recipe.lora}" if recipe.lora else f"head_{recipe.head}"
    if recipe.backbone in BACKBONES:
        model = recipe.blip_model_name
    name = f"clip_finetuned_on_{recipe.dataset.lower()}_{model}_{stamp}"
    for number in itertools.count():
        run = Path(recipe.output_dir) / (f"{name}_{number}" if number else name)
        with contextlib.suppress(FileExistsError):
            run.mkdir(parents=True)
            return run
    raise AssertionError("unreachable")


def save_last(
    run: Path,
    state: State,
    *,
    save_model: Callable[[Path], None],
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
) -> None:
    """Write ``last/``: the weights, by ``save_model``, and everything else that a resumed run needs."""
    device, scaler = accelerator.device, accelerator.scaler
    buffer = io.BytesIO()
    torch.save(
        {
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
            "scaler": None if scaler is None else scaler.state_dict(),
            "state": vars(state),
        },
        buffer,
    )
    with replacing_folder(run / "last") as temporary:
        save_model(temporary / "model")
        (temporary / STATE).write_bytes(buffer.getvalue())


def load_last(
    run: Path,
    *,
    model: Weighted,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    num_triplets: int,
) -> State:
    """Return where a run stood when ``last/`` was written; weights, optimiser, schedule, random numbers are of then."""
    last = run / "last"
    try:
        saved: dict[str, Any] = torch.load(last / STATE, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ComposirError(f"cannot be read ({error})", file=last / STATE, fix="start anew without --resume") from None
    planned, needed = (one["total_steps"] for one in (saved["schedule"], schedule.state_dict()))
    if planned not in (needed, needed + 1):  # without a fingerprint; former versions' cycles are a step longer
        raise ComposirError(
            f"was planned for {planned:,} steps, and by its recipe {num_triplets:,} triplets are {needed:,}",
            file=run,
            expected="the annotations that the run began with",
            fix=f"put them back, or start a new run: {command('train', '--config', run / RECIPE)}",
        )
    load_weights(model, run / LAST_MODEL / WEIGHTS)
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    torch.set_rng_state(saved["rng"])
    device, scaler = accelerator.device, accelerator.scaler
    if saved["cuda_rng"] and device.type == "cuda":
        torch.cuda.set_rng_state(saved["cuda_rng"][0], device)
    if scaler is not None and saved.get("scaler"):
        scaler.load_state_dict(saved["scaler"])
    return State(**saved["state"])


def about(recipe: Recipe, result: Result, left_by_key: Mapping[str, Left]) -> str:
    """Return what the model card says of the run: recipe, figures with intervals, signature, data that was missing."""
    figures = "\n".join(
        f"| {metric_label(key)} | {100 * value:.2f} | {100 * result.intervals[key][0]:.2f} – "
        f"{100 * result.intervals[key][1]:.2f} |"
        for key, value in result.metrics.items()
    )
    return f"""
Trained on {recipe.dataset} by `recipe.toml` beside this file; `composir train --config recipe.toml` repeats it.

| {recipe.dataset} {DATASETS[recipe.dataset].evaluated} | percent | 95 % interval |
|---|---|---|
{figures}

Signature: `{result.signature}`
{_about_missing(left_by_key)}"""


def trained_on(dataset: str, splits: Sequence[Split]) -> str:
    """Return what a checkpoint says that it was trained on, in a line."""
    if all(is_generated(split) for split in splits):
        return "trained on generated scenes of coloured shapes, and knows only those: no photographs"
    return f"trained on {dataset}"


def _about_missing(left_by_key: Mapping[str, Left]) -> str:
    """Return what the model card says of the images that were missing; empty where none was."""
    left = [f"- {key}: {left}" for key, left in left_by_key.items() if left.is_less]
    if not left:
        return ""
    return (
        "\nNot the published set: queries that need an image that was missing are left out.\n\n"
        + "\n".join(left)
        + "\n"
    )
