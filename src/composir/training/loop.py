"""The training loop: epochs and steps of whatever model, resumable at any step."""

from __future__ import annotations

import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from composir import parallel
from composir.data import DATASETS, Left, Split, find_dataset, load_splits
from composir.data.check import require_images, without_missing_images
from composir.errors import ComposirError, counted
from composir.evaluation import COMPOSED, Embedder, evaluate, rank_splits
from composir.evaluation.saved import RANKINGS, RECIPE, pack_rankings
from composir.files import locked, write_text
from composir.losses import LOSSES, total_loss
from composir.models.checkpoint import TRAINED_ON
from composir.token_cache import ON_DISK, TokenPlace
from composir.training.batches import Inputs, Triplet
from composir.training.fingerprint import write_fingerprint
from composir.training.guards import NO_LOCKS_FIX, in_use, interrupts
from composir.training.log import Log, gradient_norms, parts_of
from composir.training.mining import mine, read_mined, write_mined
from composir.training.numbers import Numbers
from composir.training.observer import Observer
from composir.training.optimizer import TEMPERATURE_RANGE, keep_temperature, make_optimizer
from composir.training.recipe import Recipe
from composir.training.state import LOCK, MINED, State, about, load_last, new_run, save_last, trained_on


@dataclass
class TrainResult:
    """What a finished or interrupted run leaves behind."""

    run: Path
    best: Path | None
    epochs: int
    """Epochs that were completed."""
    metrics: dict[str, float]
    """The best validation's figures, fractions."""
    interrupted: bool = False


class Run(ABC):
    """One run: its model, data and state. Lives as long as ``runs.train``.

    What is particular to a kind of model is in the abstract methods, which its own run has.
    """

    model: Any
    batches: Any

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        *,
        train_splits: Sequence[Split],
        val_splits: Sequence[Split],
        observer: Observer,
        left_by_key: Mapping[str, Left] | None = None,
        place: TokenPlace = ON_DISK,
    ) -> None:
        self.recipe, self.accelerator, self.observer = recipe, accelerator, observer
        self.is_first = parallel.process_index() == 0
        self.saved_at = time.monotonic()
        self.train_splits, self.val_splits, self.left_by_key = train_splits, val_splits, left_by_key or {}
        torch.manual_seed(recipe.seed)
        self.make(replace(place, num_workers=recipe.num_workers))
        self.contrast = LOSSES[recipe.contrastive_loss](recipe)
        # Dynamic: batches differ in their words, and the last one in its size.
        losses_of = self.model.training_losses
        self.losses_of = torch.compile(losses_of, dynamic=True) if recipe.compile else losses_of
        self.parts = parts_of(self.model)
        self.numbers = Numbers(accelerator.device)
        self.log: Log | None = None
        """Of the first process alone."""

    @classmethod
    def read(
        cls, recipe: Recipe, resume: Path | None, observer: Observer
    ) -> tuple[Sequence[Split], Sequence[Split], Mapping[str, Left]]:
        """Return what is trained on, what it is validated on, and what is left of each, all images looked at."""
        validated, text_rule = DATASETS[find_dataset(recipe.dataset)].evaluated, recipe.text_rule or None
        train_splits = load_splits(recipe.dataset, recipe.data_root, "train", text_rule=text_rule)
        val_splits = load_splits(recipe.dataset, recipe.data_root, validated, text_rule=text_rule)
        left_by_key: dict[str, Left] = {}
        if recipe.skip_missing_images:
            splits, left_by_key = without_missing_images([*train_splits, *val_splits])
            train_splits, val_splits = splits[: len(train_splits)], splits[len(train_splits) :]
            observer.on_missing_images(left_by_key)
        require_images([*train_splits, *val_splits])
        return train_splits, val_splits, left_by_key

    @abstractmethod
    def make(self, place: TokenPlace) -> None:
        """Make the fresh ``model``, and the ``batches`` that are read for it."""

    @abstractmethod
    def fill(self, share: tuple[int, int] = (0, 1)) -> None:
        """Make present what the frozen part makes of all images, or of a share of them, of several processes' own."""

    @abstractmethod
    def take_largest_batch(self) -> None:
        """Let the batch be the largest power of two that fits; raise ``ComposirError`` where none can be told."""

    @abstractmethod
    def require_room(self) -> None:
        """Raise ``ComposirError`` where what a training of this size surely needs is more than there is."""

    @abstractmethod
    def prepare(self) -> None:
        """Fit what a fresh model takes from the training data."""

    @abstractmethod
    def embedder(self) -> Embedder:
        """Return the model as evaluation asks it."""

    @abstractmethod
    def weights_hash(self) -> str:
        """Return what identifies the model as it is."""

    @abstractmethod
    def save_model(self, folder: Path, about: str, files: Mapping[str, bytes]) -> None:
        """Write the model's folder with ``about`` on its card and further ``files``."""

    @abstractmethod
    def make_log(self) -> Log:
        """Return what writes the run down, from this step on."""

    @property
    @abstractmethod
    def alpha(self) -> Tensor | None:
        """The one scalar of a gate, for the log; None where there is none."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps, the last of them of what is left."""
        return math.ceil(self.batches.num_batches / self.recipe.gradient_accumulation)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        all_steps = self.steps_per_epoch * self.recipe.num_epochs
        return min(all_steps, self.recipe.max_steps) if self.recipe.max_steps else all_steps

    @property
    def is_done(self) -> bool:
        """Whether all epochs or steps are done."""
        return self.state.epoch >= self.recipe.num_epochs or self.state.step >= self.num_steps

    @property
    def keeps_epoch(self) -> bool:
        """Whether ``last/`` is written at the end of this epoch."""
        return True

    def train(self, resume: Path | None) -> TrainResult:
        """Train to the end or to an interrupt, in a new run folder or in the one to go on with."""
        recipe = self.recipe
        self.optimizer, self.schedule = make_optimizer(
            self.model, recipe, num_steps=self.num_steps, steps_per_epoch=self.steps_per_epoch
        )
        with ExitStack() as held:
            if resume is None:
                self.prepare()
                parallel.copy_from_first(self.model.own_weights().values())
            with parallel.together(self.accelerator.device):
                if self.is_first:
                    self.run = resume or new_run(recipe)
                    held.enter_context(locked(self.run / LOCK, in_use(self.run), without_locks=NO_LOCKS_FIX))
                    if resume is None:
                        self.keep_data()
            self.run = parallel.from_first(self.run if self.is_first else Path())
            with parallel.together(self.accelerator.device):
                self.state = State() if resume is None else self._load()
                self._read_mined()
            self.optimizer = self.accelerator.prepare(self.optimizer)
            if resume is None:
                self._save()
            self._tell_start()
            if self.is_first:
                self.log = held.enter_context(self.make_log())
            interrupted = held.enter_context(interrupts())
            while not self.is_done:
                if self._train_epoch(interrupted):
                    self._save()
                    return self._result(interrupted=True)
                self._end_epoch()
                if self.keeps_epoch:
                    self._save()
        return self._result(interrupted=False)

    def keep_data(self) -> None:
        """Write down what the run begins with: its recipe, and what it trains on."""
        write_text(self.run / RECIPE, self.recipe.to_toml())
        write_fingerprint(self.run, [*self.train_splits, *self.val_splits])

    def _tell_start(self) -> None:
        given, size = self.recipe.batch_size, self.batches.size
        if size < given:
            there = counted(size, "triplet")
            self.observer.on_note(f"batch size {given:,} is more than there are: a batch is all {there}")
        temperature, (lowest, highest) = self.model.temperature.item(), TEMPERATURE_RANGE
        if not lowest <= temperature <= highest:
            self.observer.on_note(
                f"the temperature of the weights is {temperature:.4g}, outside {lowest} to {highest}, where training "
                "keeps it: it stays as it is, or comes nearer"
            )
        if self.recipe.mixed_precision == "fp16" and self.accelerator.scaler is None:
            self.observer.on_note("mixed_precision fp16 is for GPUs: here the computing is done in float32")
        as_trained = self.recipe.model_copy(update={"batch_size": size})
        self.observer.on_start(self.run, as_trained, self.state.step, self.num_steps)

    def _train_epoch(self, interrupted: threading.Event) -> bool:
        """Return whether an interrupt, of any process, stopped the epoch before its end or at it."""
        state, device = self.state, self.accelerator.device
        with closing(self.batches.of_epoch(state.epoch, state.batch)) as batches:
            while True:
                with parallel.together(device):
                    read = next(batches, None)
                if read is None:
                    return False
                batch, inputs = read
                self._step(batch, inputs.to(device))
                if self._is_between_steps():
                    is_time = time.monotonic() - self.saved_at > 60 * self.recipe.save_minutes
                    stopped, must_save = parallel.any_process(
                        interrupted.is_set(), is_time and self.is_first, device=device
                    )
                    if stopped:
                        return True
                    if state.step >= self.num_steps:
                        return False
                    if must_save:
                        self._save()

    def _step(self, batch: Sequence[Triplet], inputs: Inputs) -> None:
        """Add a batch's gradients, and take the optimiser's step where enough have been added."""
        recipe, state = self.recipe, self.state
        if not self.is_first:  # dropout of its own; process 0 goes on with what last/ holds
            own = np.random.SeedSequence([recipe.seed, state.epoch, state.batch, parallel.process_index()])
            torch.manual_seed(int(own.generate_state(1, np.uint64)[0]) >> 1)
        self.model.train()
        with self.accelerator.autocast():
            losses = self.losses_of(
                *inputs[:4],
                same_target=inputs.same_target,
                contrast=self.contrast,
                local=recipe.loss_local > 0,
                terms=tuple(recipe.loss_terms),
                num_all=inputs.num_all,
            )
            total = total_loss(losses, recipe.loss_weights)
        self.accelerator.backward(total / self._batches_of_step())
        state.batch += 1
        norms: dict[str, Tensor] = {}
        if self._is_between_steps():
            parallel.average_gradients(self.model.parameters())
            scaler = self.accelerator.scaler
            norms = gradient_norms(self.parts, 1.0 if scaler is None else scaler.get_scale())
            if recipe.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
            temperature = self.model.temperature.detach().clone()
            self.optimizer.step()
            self.optimizer.zero_grad()
            if self.schedule.last_epoch + 1 < self.schedule.total_steps:  # its last rate stays
                self.schedule.step()
            keep_temperature(self.model.temperature, temperature)
            state.step += 1
        self._tell_step(batch, {**losses, "total": total}, norms, self.alpha)

    def _tell_step(
        self, batch: Sequence[Triplet], losses: Mapping[str, Tensor], norms: Mapping[str, Tensor], alpha: Tensor | None
    ) -> None:
        """Log a step, once its numbers are there; a loss that is not finite raises ``ComposirError`` then."""
        step = self.state.step

        def tell(numbers: list[float]) -> None:
            rest = iter(numbers)
            told_losses, told_norms = ({name: next(rest) for name in named} for named in (losses, norms))
            told_alpha = next(rest, None)
            total = told_losses["total"]
            if not math.isfinite(total):
                ids = ", ".join(query.id for _, query in batch)
                raise ComposirError(
                    f"the loss is {total} at step {step + (not norms)}, on the triplets {ids}",
                    file=self.run,
                    fix="look at these triplets, or train with a smaller --learning-rate; last/ is the last good state",
                )
            if self.log is not None:
                self.log.record(self.state, step, told_losses, told_norms, told_alpha)
                self.observer.on_step(step, told_losses, told_alpha)

        told = [*losses.values(), *norms.values(), *([] if alpha is None else [alpha])]
        self.numbers.tell(torch.stack([one.detach().float().reshape(()) for one in told]), tell)

    def _batches_of_step(self) -> int:
        """Return how many batches add up to the step that the next batch belongs to: at an epoch's end what is left."""
        most = self.recipe.gradient_accumulation
        return min(most, self.batches.num_batches - self.state.batch // most * most)

    def _is_between_steps(self) -> bool:
        """Return whether the gradients of all batches so far are in the weights."""
        return self.state.batch == self.batches.num_batches or self.state.batch % self.recipe.gradient_accumulation == 0

    def _end_epoch(self) -> None:
        recipe, state = self.recipe, self.state
        self.numbers.flush()
        num_batches = state.batch
        state.epoch, state.batch = state.epoch + 1, 0
        is_end = self.is_done
        with parallel.together(self.accelerator.device):
            if self.log is not None:
                num_steps = math.ceil(num_batches / recipe.gradient_accumulation)
                rate = float(max(self.schedule.get_last_lr()))
                row = self.log.row(state, num_batches=num_batches, num_steps=num_steps, rate=rate)
                self.observer.on_epoch(state.epoch, self.log.mean_losses(state, num_batches))
                is_validated = is_end or state.epoch % recipe.validation_frequency == 0
                if is_validated:
                    row |= self.validate()
                if recipe.mined_ratio and state.epoch % recipe.mining_frequency == 0 and not is_end:
                    self._mine()
                state.rows.append(row)
                self.log.write(state, with_curves=is_validated)
        state.sums, state.skipped_steps = {}, 0
        if not is_end:
            self._read_mined()

    def validate(self) -> dict[str, str]:
        """Return the log's columns of the model's figures; where they are the best so far, ``best/`` is the model."""
        assert self.log is not None
        recipe, state = self.recipe, self.state
        self.model.eval()
        result = evaluate(self.embedder(), self.val_splits, weights_hash=self.weights_hash(), baselines=False)
        best_by = recipe.select_by or result.primary
        figure = result.metrics[best_by]
        is_best = figure > state.best
        if is_best:
            state.best, state.best_metrics = figure, dict(result.metrics)
        if recipe.save_training:
            files = {
                RECIPE: recipe.to_toml().encode(),
                RANKINGS: pack_rankings(result),
                TRAINED_ON: f"{trained_on(recipe.dataset, self.train_splits)}\n".encode(),
            }
            folders = ([self.run / "best"] if is_best else []) + (
                [] if recipe.save_best else [self.run / f"epoch-{state.epoch}"]
            )
            for folder in folders:
                self.save_model(folder, about(recipe, result, self.left_by_key), files)
        self.observer.on_validation(state.epoch, result, is_best)
        return self.log.validated(state, result, best_by)

    def _mine(self) -> None:
        """Mine negatives with the model as it is and write them down, so that a resumed run has the same."""
        recipe = self.recipe
        self.model.eval()
        ranked = rank_splits(self.embedder(), self.train_splits)[COMPOSED]
        mined = mine(ranked, depth=recipe.mining_depth, skip=recipe.mining_skip, margin=recipe.mining_margin)
        write_mined(mined, ranked, self._mined_file(self.state.epoch))

    def _read_mined(self) -> None:
        """Take over the negatives that were mined last."""
        epoch = self.state.epoch - self.state.epoch % self.recipe.mining_frequency
        if self.recipe.mined_ratio and epoch:
            self.batches.mined = read_mined(self._mined_file(epoch))

    def _mined_file(self, epoch: int) -> Path:
        return self.run / MINED / f"epoch-{epoch}.jsonl"

    def _save(self) -> None:
        """Write ``last/``, where the recipe keeps it: the weights and everything else a resumed run needs."""
        self.numbers.flush()  # a loss that is not finite is told before what it made of the weights is kept
        if self.recipe.save_training:
            with parallel.together(self.accelerator.device):
                if self.is_first:
                    save_last(self.run, self.state, save_model=self._save_last_model, **self._kept())
        self.saved_at = time.monotonic()

    def _load(self) -> State:
        return load_last(self.run, model=self.model, num_triplets=len(self.batches.triplets), **self._kept())

    def _save_last_model(self, folder: Path) -> None:
        self.save_model(folder, "", {RECIPE: self.recipe.to_toml().encode()})

    def _kept(self) -> dict[str, Any]:
        return {
            "accelerator": self.accelerator,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }

    def _result(self, *, interrupted: bool) -> TrainResult:
        best = self.run / "best"
        return TrainResult(
            run=self.run,
            best=best if best.exists() else None,
            epochs=self.state.epoch,
            metrics=self.state.best_metrics,
            interrupted=interrupted,
        )
