"""Which run trains which kind of model."""

from __future__ import annotations

from pathlib import Path

from composir.models.backbones import BACKBONES
from composir.token_cache import ON_DISK, TokenPlace
from composir.training import loop
from composir.training.feedback import FeedbackRun
from composir.training.heads import HeadRun
from composir.training.loop import Observer, Run, TrainResult
from composir.training.lora import LoraRun
from composir.training.recipe import Recipe


def train(
    recipe: Recipe,
    *,
    resume: Path | None = None,
    observer: Observer | None = None,
    place: TokenPlace = ON_DISK,
    largest_batch: bool = False,
) -> TrainResult:
    """Return what ``loop.train`` does: of a backbone a whole model, of any other a head on its vectors or adapters.

    With an ``index`` the pictures' vectors are those of that.
    """
    of_other: type[Run] = LoraRun if recipe.lora else FeedbackRun if recipe.index else HeadRun
    return loop.train(
        recipe,
        resume=resume,
        observer=observer,
        place=place,
        largest_batch=largest_batch,
        make_run=Run if recipe.backbone in BACKBONES else of_other,
    )
