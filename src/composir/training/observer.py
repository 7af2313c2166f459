"""What hears how a training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from composir.data import Left
from composir.evaluation import Result
from composir.training.recipe import Recipe


class Observer(Protocol):
    """Hears how a run goes on; the command line draws progress bars with it."""

    def on_missing_images(self, left_by_key: Mapping[str, Left]) -> None:
        """So much is left of each split, by ``split_key``; told where the recipe skips what needs a missing image."""

    def on_features(self, done: int, total: int, num_bytes: int) -> None:
        """So many images have their tokens; those of all ``total`` take ``num_bytes``."""

    def on_vectors(self, done: int, total: int, num_bytes: int) -> None:
        """So many pictures have the vectors that a head is trained on; those of all ``total`` take ``num_bytes``."""

    def on_start(self, run: Path, recipe: Recipe, first_step: int, num_steps: int) -> None:
        """The first step comes next."""

    def on_note(self, note: str) -> None:
        """Something that is no error should be known, in a sentence."""

    def on_step(self, step: int, losses: Mapping[str, float], alpha: float | None) -> None:
        """A step is done; ``losses`` are those of its batch by name, ``total`` their weighted sum."""

    def on_epoch(self, epoch: int, losses: Mapping[str, float]) -> None:
        """An epoch is done, its validation not yet; ``losses`` are the means over its batches."""

    def on_validation(self, epoch: int, result: Result, is_best: bool) -> None:
        """A validation is done."""


class Silent(Observer):
    """Hears and says nothing."""
