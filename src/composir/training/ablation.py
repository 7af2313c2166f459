"""Does a setting help: the same training with and without it, over seeds, compared run by run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from jaxtyping import Float64
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from composir.errors import ComposirError
from composir.evaluation import Comparison, OverSeeds, compare, find_rankings, load_rankings, over_seeds
from composir.evaluation.saved import RECIPE
from composir.files import read_toml, write_text
from composir.progress import Progress
from composir.token_cache import ON_DISK, TokenPlace
from composir.training.observer import Observer
from composir.training.recipe import Recipe, load_recipe, parse_value, validate
from composir.training.runs import train
from composir.training.state import resume_recipe

RESULT = "result.json"
"""In a run folder: the run is finished, and what came out of it."""
RUNS = "runs"
SMOOTHING_STEPS = 25
"""Steps of the moving average that a loss curve is measured against."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One training of an ablation."""

    arm: str
    """The settings that make the difference, such as ``fusion=none``."""
    seed: int
    recipe: Recipe
    """Its ``output_dir`` is a folder of this training alone."""


@dataclass(frozen=True, slots=True)
class Finished:
    """One training that is done."""

    arm: str
    seed: int
    run: Path
    metrics: dict[str, float]
    """Of the best validation, fractions in [0, 1]."""
    seconds_per_step: float
    """Median over the steps; validation and saving are not in it."""
    mean_loss: float
    """The weighted total loss, mean over all steps: lower is faster learning."""
    roughness: float
    """How far the loss jumps about its own moving average over 25 steps: the standard deviation, relative to it."""


@dataclass(frozen=True, slots=True)
class Training:
    """How another arm's training differs from the first one's."""

    a: str
    b: str
    figure: str
    """A field of ``Finished``."""
    a_mean: float
    b_mean: float
    over_seeds: OverSeeds | None
    """Of the difference, ``b`` minus ``a``; None with one seed."""


@dataclass(frozen=True, slots=True)
class Ablation:
    """All trainings of an ablation and what differs between them."""

    runs: tuple[Finished, ...]
    comparison: Comparison
    training: tuple[Training, ...]
    losses: dict[str, Float64[np.ndarray, "num_seeds num_steps"]]
    """The weighted total loss of every step, by arm, in the order of the seeds."""

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``composir ablate --json``: that of ``compare``, with ``runs`` and ``training``."""
        return {
            **self.comparison.to_json(),
            "runs": [{**asdict(run), "run": str(run.run)} for run in self.runs],
            "training": [asdict(one) for one in self.training],
        }


def ablate(
    given: Mapping[str, Any],
    *,
    vary: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    out: Path,
    config: Path | None = None,
    metrics: Sequence[str] = (),
    observer: Observer | None = None,
    place: TokenPlace = ON_DISK,
    tell: Progress | None = None,
) -> Ablation | None:
    """Return the comparison of trainings with every combination of the values in ``vary``, each with every seed.

    The first combination is the one that the others are compared with. All trainings share batches, texts and the
    start of all weights that they have in common, by construction of seed and recipe, and the token cache. Finished
    ones under ``out`` are not repeated and stopped ones go on; None where an interrupt stopped the work.

    Raises ``ComposirError`` before anything is trained: for a key or value that no recipe has, for contradictions,
    and where ``out`` holds a training of the same arm and seed by another recipe.
    """
    plan = make_plan(given, vary=vary, seeds=seeds, out=out, config=config)
    for planned in plan:
        _check_unchanged(planned)
    for number, planned in enumerate(plan):
        if tell is not None:
            tell(f"trainings: {planned.arm} seed {planned.seed}", number, len(plan))
        if not _train(planned, observer, place):
            return None
    runs = tuple(_finished(planned) for planned in plan)
    arms = list(dict.fromkeys(planned.arm for planned in plan))
    by_arm = {arm: [run for run in runs if run.arm == arm] for arm in arms}
    comparison = compare(
        {arm: [load_rankings(find_rankings(run.run)) for run in group] for arm, group in by_arm.items()}, metrics
    )
    first, *others = arms
    training = tuple(
        _compare_training(by_arm[first], by_arm[other], figure)
        for other in others
        for figure in ("seconds_per_step", "mean_loss", "roughness")
    )
    return Ablation(runs, comparison, training, {arm: _losses(group) for arm, group in by_arm.items()})


def make_plan(
    given: Mapping[str, Any],
    *,
    vary: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    out: Path,
    config: Path | None = None,
) -> list[Planned]:
    """Return every training, those of one seed one after the other; raise ``ComposirError`` for what cannot be."""
    for key, values in vary.items():
        if key in given:
            raise ComposirError(
                f"{key} is given both as a setting and to --vary", fix=f"leave --{key.replace('_', '-')} out"
            )
        if key in ("seed", "output_dir", "save_training"):
            raise ComposirError(f"{key} cannot be varied", fix="--seeds gives the seeds, --out the folder")
        if key == "text_rule":
            raise ComposirError(
                "text_rule cannot be varied: results on other sentences are not compared",
                fix="train by each rule, and read each against published results of its own",
            )
        if len(values) < 2 or len(set(values)) < len(values):
            raise ComposirError(
                f"--vary {key}={','.join(values)} does not compare different values",
                expected="two or more values, each once",
                fix=f"--vary {key}=A,B; the first is what the others are compared with",
            )
    if not vary or not seeds or len(set(seeds)) < len(seeds):
        raise ComposirError("nothing to compare", expected="a key with its values, and seeds, each once")
    if not given.get("save_training", True):
        raise ComposirError("an ablation compares what is saved", fix="leave --no-save-training out")
    plan = []
    for seed in seeds:
        for values in itertools.product(*vary.values()):
            pairs = dict(zip(vary, values, strict=True))
            arm = ",".join(f"{key}={value}" for key, value in pairs.items())
            settings = {
                **given,
                **{key: parse_value(value) for key, value in pairs.items()},
                "seed": seed,
                "output_dir": str(out / RUNS / _folder_name(arm) / f"seed-{seed}"),
            }
            plan.append(Planned(arm, seed, load_recipe(settings, config)))
    return plan


def _folder_name(arm: str) -> str:
    return "".join(character if character.isalnum() or character in "=,.+-_" else "_" for character in arm)


def _check_unchanged(planned: Planned) -> None:
    """Raise ``ComposirError`` where the folder of the training holds one by another recipe.

    A setting that a recipe of an earlier version does not have yet counts as its default, and the folder of all
    trainings may have been moved.
    """
    wanted = planned.recipe.model_dump(mode="json")
    for file in sorted(Path(planned.recipe.output_dir).glob(f"*/{RECIPE}")):
        found = validate(read_toml(file), file).model_dump(mode="json")
        changed = [
            f"{key} was {found[key]!r} and is now {value!r}"
            for key, value in wanted.items()
            if found[key] != value and key != "output_dir"
        ]
        if changed:
            raise ComposirError(
                f"is a training of the same arm and seed by another recipe: {'; '.join(changed)}",
                file=file.parent,
                fix="give another --out, or the settings of the first time",
            )


def _run_of(planned: Planned) -> Path | None:
    """Return the run folder of a training that was begun: the finished one, else the one that can go on."""
    folder = Path(planned.recipe.output_dir)
    finished = [file.parent for file in sorted(folder.glob(f"*/{RESULT}"))]
    return next(iter(finished), None) or next((state.parent for state in sorted(folder.glob("*/last"))), None)


def _train(planned: Planned, observer: Observer | None, place: TokenPlace) -> bool:
    """Return whether the training is finished, which may have been so before."""
    begun = _run_of(planned)
    if begun is not None and (begun / RESULT).is_file():
        return True
    recipe = planned.recipe if begun is None else resume_recipe(begun)
    done = train(recipe, resume=begun, observer=observer, place=place)
    if done.interrupted:
        return False
    losses, seconds = read_steps(done.run)
    document = {
        "metrics": done.metrics,
        "seconds_per_step": median(seconds) if len(seconds) else 0.0,
        "mean_loss": float(losses.mean()),
        "roughness": roughness(losses),
    }
    write_text(done.run / RESULT, json.dumps(document, indent=2))
    return True


def _finished(planned: Planned) -> Finished:
    run = _run_of(planned)
    assert run is not None
    return Finished(planned.arm, planned.seed, run, **json.loads((run / RESULT).read_text(encoding="utf-8")))


def read_steps(run: Path) -> tuple[Float64[np.ndarray, " num_steps"], Float64[np.ndarray, " _"]]:
    """Return a run's weighted total loss of every step and the seconds between them, from its TensorBoard events.

    Where validation or a stop lies between two steps, that time is not among the seconds.
    """
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {event.step: event for event in events.Scalars("train/total")}
    steps = sorted(scalars)
    validated = {event.step for event in events.Scalars("val/recall_at_10")}
    seconds = [
        scalars[step].wall_time - scalars[before].wall_time
        for before, step in itertools.pairwise(steps)
        if step == before + 1 and before not in validated
    ]
    return np.array([scalars[step].value for step in steps]), np.array(seconds)


def roughness(losses: Float64[np.ndarray, " num_steps"]) -> float:
    """Return the standard deviation of a loss curve about its moving average over 25 steps, relative to it.

    0 for a curve that is a straight line, and for one that is shorter than the average is long.
    """
    if len(losses) <= SMOOTHING_STEPS:
        return 0.0
    average = moving_average(losses)
    start = (SMOOTHING_STEPS - 1) // 2
    middle = losses[start : start + len(average)]
    return float(np.std((middle - average) / average))


def moving_average(losses: Float64[np.ndarray, "*batch num_steps"]) -> Float64[np.ndarray, "*batch _"]:
    """Return the mean of every 25 consecutive steps, 24 values fewer than steps; of all where there are fewer."""
    width = min(SMOOTHING_STEPS, losses.shape[-1])
    sums = np.cumsum(np.concatenate([np.zeros((*losses.shape[:-1], 1)), losses], axis=-1), axis=-1)
    return (sums[..., width:] - sums[..., :-width]) / width


def _losses(runs: Sequence[Finished]) -> Float64[np.ndarray, "num_seeds num_steps"]:
    curves = [read_steps(run.run)[0] for run in runs]
    num_steps = min(len(curve) for curve in curves)
    return np.stack([curve[:num_steps] for curve in curves])


def _compare_training(a: Sequence[Finished], b: Sequence[Finished], figure: str) -> Training:
    first, second = (np.array([getattr(run, figure) for run in runs]) for runs in (a, b))
    return Training(
        a[0].arm,
        b[0].arm,
        figure,
        a_mean=float(first.mean()),
        b_mean=float(second.mean()),
        over_seeds=over_seeds(first, second, paired=True) if len(a) > 1 else None,
    )
