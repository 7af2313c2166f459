"""How much memory a batch takes in training, measured on a few triplets before the first step."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from composir import parallel
from composir.errors import ComposirError
from composir.files import require_space, size_text
from composir.machine import available_memory
from composir.models.composer import Composer
from composir.training.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator

FEW, MORE = 2, 6
"""Triplets of the two forward passes that are measured."""
MOST = 1024
"""The largest batch that is ever chosen."""
MARGIN = 1.25
"""What a batch is chosen with: resident memory was 0.7 to 1.15 times as much (docs/performance.md)."""


@dataclass(frozen=True, slots=True)
class StepMemory:
    """What a forward pass keeps for the backward pass, as a line over the triplets of a batch."""

    fixed: int
    """Bytes whatever the batch: weights in another precision."""
    per_triplet: int

    def of(self, batch_size: int) -> int:
        """Return the bytes that a batch keeps."""
        return self.fixed + self.per_triplet * batch_size

    def largest_batch(self, available: int) -> int:
        """Return the largest power of two of triplets that fit into so many bytes with the margin; 0 without one."""
        sizes = [2**power for power in range(1, MOST.bit_length())]
        return max((size for size in sizes if MARGIN * self.of(size) <= available), default=0)


def measure_step(
    model: Composer,
    texts: Sequence[str],
    *,
    pictures_per_triplet: int = 2,
    local: bool = False,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> StepMemory:
    """Return what a step of a model with a tower keeps, beside what is there before it.

    Measured on the forward passes of a few random triplets with some of ``texts``; no random number is used up. With
    gradient checkpointing it is what one layer makes again, too.
    """
    tower, device = model.tower, model.device
    if tower is None:
        raise RuntimeError("this model was built without a vision tower, which says how many tokens a picture has")
    shape = (tower.num_tokens, tower.width)

    def peak(size: int) -> int:
        ids, mask = model.tokenize([texts[number % len(texts)] for number in range(size)])
        tokens = torch.rand(size * pictures_per_triplet, *shape, device=device).half()
        with autocast():
            return _peak(lambda: model.training_losses(tokens[:size], tokens[size:], ids, mask, local=local), device)

    def line() -> tuple[int, int]:
        few, more = peak(FEW), peak(MORE)
        per_triplet = max(more - few, 0) // (MORE - FEW)
        return max(few - FEW * per_triplet, 0), per_triplet

    was_training, checkpointing = model.training, model.qformer.gradient_checkpointing
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        fixed, per_triplet = line()
        if checkpointing:
            model.qformer.gradient_checkpointing = False
            per_triplet += line()[1] // model.config.num_hidden_layers
    model.train(was_training)
    model.qformer.gradient_checkpointing = checkpointing
    return StepMemory(fixed, per_triplet)


def _peak(work: Callable[[], object], device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with _Tracker() as tracker:
        work()
    return tracker.peak


class _Tracker(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {
            one.untyped_storage().data_ptr() for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, Tensor)
        }
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self.seen:
            return
        self.seen.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


class Memory:
    """What a training by a recipe needs, beside what there is."""

    def __init__(self, model: Composer, recipe: Recipe, texts: Sequence[str], accelerator: Accelerator) -> None:
        self.model, self.recipe, self.texts, self.accelerator = model, recipe, texts, accelerator

    def largest_batch(self, file: Path | None) -> int:
        """Return the largest power of two of triplets that fits; ``ComposirError`` where none can be told.

        ``file`` is where the triplets are from.
        """
        available = self.available
        if len(self.texts) < 2:
            raise ComposirError(
                "there is one triplet, and a batch takes two or more, each other's negatives",
                file=file,
                fix="add triplets",
            )
        if parallel.num_processes() > 1 or available is None:
            raise ComposirError(
                "--batch-size auto measures one process on a machine that tells its memory",
                fix="give --batch-size a number: what one process can hold, times the processes",
            )
        size = self.step.largest_batch(available - self.trained_bytes * 3)
        size = min(size, 2 ** (len(self.texts).bit_length() - 1))
        if size < 2:
            raise ComposirError(
                f"not even two triplets fit into the {size_text(available)} of memory that are left",
                fix="--set gradient_checkpointing=true, a smaller --backbone, or a machine with more memory",
            )
        return size

    def require_room(self, size: int) -> None:
        """Raise ``ComposirError`` where what a training with batches of ``size`` surely needs is more than there is."""
        own = sum(tensor.nbytes for tensor in self.model.own_weights().values())
        available = self.available
        trained = self.trained_bytes
        if available is not None and 3 * trained > available:
            raise ComposirError(
                f"gradients and optimiser alone need {size_text(3 * trained)} of memory, "
                f"{size_text(available)} are left",
                fix="a smaller --backbone, or a machine with more memory",
            )
        if available is not None and parallel.num_processes() == 1:
            needed = 2 * trained + self.step.of(size)
            if needed > available:
                fitting = self.step.largest_batch(available - 3 * trained)
                smaller = (
                    f"--batch-size {fitting} with --set gradient_accumulation={math.ceil(size / max(fitting, 1))}, or "
                )
                raise ComposirError(
                    f"a step of {size} triplets needs {size_text(needed)} of memory, {size_text(available)} are left",
                    fix=(smaller if fitting else "") + "--set gradient_checkpointing=true",
                )
        if self.recipe.save_training:
            # last/ holds the weights and AdamW's means, and best/ the weights; each is replaced by a whole new one.
            require_space(
                Path(self.recipe.output_dir),
                2 * (own + 2 * trained) + 2 * own,
                what="the last and the best state of this run",
                fix="give an --output-dir on a larger disk",
            )

    @property
    def available(self) -> int | None:
        """Bytes that are left on the device; None where a machine does not tell."""
        device = self.accelerator.device
        return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()

    @property
    def trained_bytes(self) -> int:
        """Of the trained weights; their gradients take as much, and AdamW's means twice as much."""
        return sum(parameter.nbytes for parameter in self.model.parameters() if parameter.requires_grad)

    @cached_property
    def step(self) -> StepMemory:
        """What a step of this recipe takes."""
        return measure_step(
            self.model,
            self.texts,
            pictures_per_triplet=2 + self.recipe.subset_negatives,
            local=self.recipe.loss_local > 0,
            autocast=self.accelerator.autocast,  # pyright: ignore[reportArgumentType]  # its stub has no default
        )
