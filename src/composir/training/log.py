"""What a run writes down as it goes: training_log.csv, curves.png and TensorBoard."""

from __future__ import annotations

import csv
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from composir.data import Split
from composir.data.images import ImageSource, read_image
from composir.evaluation import Result, metric_label
from composir.files import write_text
from composir.heat import heat
from composir.models.composer import Composer
from composir.models.fusion import WEIGHTS as FUSION_WEIGHTS
from composir.models.trace import patches
from composir.models.vision import Tower
from composir.models.watch import Reading, watch
from composir.plots import GRADIENT_PREFIX, STEP, plot_curves
from composir.training.batches import Batches
from composir.training.state import State

LOG, CURVES = "training_log.csv", "curves.png"
NUM_PROBE_TRIPLETS = 32
"""Training triplets on which the log measures gate and change."""
PART_BY_WEIGHTS = {
    **dict.fromkeys(FUSION_WEIGHTS, "fusion"),
    "qformer.": "qformer",
    "text_proj.": "heads",
    "vision_proj.": "heads",
    "query_tokens": "queries",
    "prompt_tokens": "queries",
    "adapter.": "adapter",
    "ln_vision.": "ln_vision",
    "text_embeddings.": "words",
    "temperature": "temperature",
    "change.": "head",
    "balance": "head",
    "adapted.": "lora",
}
"""The parts whose gradient norms are logged, by how the names of their weights begin."""


Example = tuple[ImageSource, str, Image.Image]
"""A reference, its sentence, and the reference as the tower sees it."""


class Log(ABC):
    """The log of one run, kept by its first process; ``with`` closes what TensorBoard reads."""

    def __init__(self, run: Path, *, first_step: int) -> None:
        self.run = run
        self.board = SummaryWriter(str(run), purge_step=first_step + 1)
        self.best_by = ""
        """The column by which the best validation is chosen, known from the first one on."""

    @abstractmethod
    def gate_figures(self) -> dict[str, float]:
        """Return what gate and fusion do to the first training triplets, by column."""

    @abstractmethod
    def show(self, state: State) -> None:
        """Write what a validation shows beside its figures to TensorBoard."""

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *error: object) -> None:
        self.board.close()

    def record(
        self,
        state: State,
        step: int,
        losses: Mapping[str, float],
        norms: Mapping[str, float],
        alpha: float | None,
    ) -> None:
        """Add a batch to the means of its epoch, the curves and TensorBoard at ``step``; norms where it ends a step.

        Norms that are not finite, because fp16 overflowed and the step was skipped, are counted and left out.
        """
        for name, value in {STEP: float(step), **losses}.items():
            state.losses.setdefault(name, []).append(value)
        for name, value in losses.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
            self.board.add_scalar(f"train/{name}", value, step)
        if not all(map(math.isfinite, norms.values())):
            state.skipped_steps += 1
            norms = {}
        for part, norm in norms.items():
            name = f"{GRADIENT_PREFIX}{part}"
            state.sums[name] = state.sums.get(name, 0.0) + norm
            self.board.add_scalar(f"gradient/{part}", norm, step)
        if alpha is not None:
            self.board.add_scalar("gate/alpha", alpha, step)

    def mean_losses(self, state: State, num_batches: int) -> dict[str, float]:
        """Return an epoch's mean losses by name."""
        return {name: sum_ / num_batches for name, sum_ in state.sums.items() if not name.startswith(GRADIENT_PREFIX)}

    def row(self, state: State, *, num_batches: int, num_steps: int, rate: float) -> dict[str, str]:
        """Return an epoch's columns but those of a validation: mean losses and gradient norms, the rate, the gate."""
        row = {"epoch": str(state.epoch)}
        row |= {name: f"{mean:.6f}" for name, mean in self.mean_losses(state, num_batches).items()}
        row["lr"] = f"{rate:.3g}"
        if state.skipped_steps:
            row["skipped_steps"] = str(state.skipped_steps)
        num_steps -= state.skipped_steps
        norms = {name: sum_ / num_steps for name, sum_ in state.sums.items() if name.startswith(GRADIENT_PREFIX)}
        return row | self._gate_columns(state) | {name: f"{norm:.4g}" for name, norm in norms.items()}

    def _gate_columns(self, state: State) -> dict[str, str]:
        """Return ``gate_figures`` as columns; the same goes to TensorBoard."""
        figures = self.gate_figures()
        for name, tag in (("mean_gate", "mean"), ("gate_entropy", "entropy"), ("relative_change", "relative_change")):
            if name in figures:
                self.board.add_scalar(f"gate/{tag}", figures[name], state.step)
        return {name: f"{figure:.6f}" for name, figure in figures.items()}

    def validated(self, state: State, result: Result, best_by: str) -> dict[str, str]:
        """Return the columns of a validation, which TensorBoard gets, too; the best is that by the key ``best_by``."""
        self.best_by = metric_label(best_by)
        for key, value in result.metrics.items():
            self.board.add_scalar(f"val/{key}", 100 * value, state.step)
        self.show(state)
        return {metric_label(key): f"{100 * value:.2f}" for key, value in result.metrics.items()}

    def write(self, state: State, *, with_curves: bool) -> None:
        """Write training_log.csv and, where they are wanted, its curves, which take a second to draw."""
        columns = list(dict.fromkeys(column for row in state.rows for column in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(state.rows)
        write_text(self.run / LOG, text.getvalue())
        if with_curves:
            plot_curves(state.rows, state.losses, self.run / CURVES, best_by=self.best_by)


class RunLog(Log):
    """The log of a ``Composer``: its fusions on the first training triplets, and the maps of two queries."""

    def __init__(
        self, run: Path, model: Composer, batches: Batches, examples: Sequence[Example], *, first_step: int
    ) -> None:
        super().__init__(run, first_step=first_step)
        self.model, self.batches, self.examples = model, batches, examples

    def gate_figures(self) -> dict[str, float]:
        """Return the gate's alpha, mean and entropy, and the fusions' change."""
        self.model.eval()
        inputs = self._probe()
        with torch.no_grad(), watch(self.model) as seen:
            self.model.fuse(*inputs)
            figures = {}
            if (gate := self.model.gated_fusion) is not None:
                values = self.model.gate_values(*inputs)
                figures["alpha"] = gate.alpha.item()
                figures["mean_gate"] = values.mean().item()
                figures["gate_entropy"] = entropy(values).mean().item()
            if (change := seen[-1].relative_change) is not None:
                figures["relative_change"] = change.mean().item()
        return figures

    def show(self, state: State) -> None:
        """Write histograms of gate and change, and the maps of two queries of val, to TensorBoard."""
        inputs = self._probe()
        with torch.no_grad(), watch(self.model) as seen:
            self.model.fuse(*inputs)
            if self.model.gated_fusion is not None:
                self.board.add_histogram("gate/values", self.model.gate_values(*inputs), state.step)
            if (change := seen[-1].relative_change) is not None:
                self.board.add_histogram("gate/relative_changes", change, state.step)
            for number, (source, text, square) in enumerate(self.examples):
                self.model.fuse(self.batches.tokens([source]).to(self.model.device), *self.model.tokenize([text]))
                picture, words = _draw_example(square, seen[-1])
                self.board.add_image(f"examples/{number}", picture, state.step, dataformats="HWC")
                self.board.add_text(f"examples/{number}", f"{text}: {words}", state.step)

    def _probe(self) -> tuple[Tensor, Tensor, Tensor]:
        reference, _, input_ids, mask, *_ = self.batches.inputs(self.batches.triplets[:NUM_PROBE_TRIPLETS], None)
        return reference, input_ids, mask


def examples_of(tower: Tower, splits: Sequence[Split]) -> list[Example]:
    """Return the two queries whose maps every validation shows, their pictures read: they may be gone later."""
    queries = [(split, query) for split in splits for query in split.queries]
    chosen = [(split.images[query.reference], query.text) for split, query in (queries[0], queries[len(queries) // 2])]
    return [
        (source, text, Image.fromarray(tower.prepare(read_image(source)).transpose(1, 2, 0))) for source, text in chosen
    ]


def parts_of(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """Return the trained weights by part of ``PART_BY_WEIGHTS``."""
    parts: dict[str, list[torch.nn.Parameter]] = {part: [] for part in PART_BY_WEIGHTS.values()}
    for name, parameter in model.named_parameters():
        part = next((part for start, part in PART_BY_WEIGHTS.items() if name.startswith(start)), None)
        if part and parameter.requires_grad:
            parts[part].append(parameter)
    return {part: parameters for part, parameters in parts.items() if parameters}


def gradient_norms(
    parts: Mapping[str, Sequence[torch.nn.Parameter]], scale: float = 1.0
) -> dict[str, Float[Tensor, ""]]:
    """Return the Euclidean norm of each part's gradient before clipping; ``scale`` is the scaler's, 1 without one."""
    gradients = {
        part: [parameter.grad for parameter in parameters if parameter.grad is not None]
        for part, parameters in parts.items()
    }
    return {part: torch.nn.utils.get_total_norm(one) / scale for part, one in gradients.items()}


def entropy(gate: Tensor) -> Tensor:
    """Return the binary entropy of values in (0, 1), in bits: 1 where the gate is half open, 0 where it is decided."""
    return -(torch.xlogy(gate, gate) + torch.xlogy(1 - gate, 1 - gate)) / math.log(2)


def _draw_example(square: Image.Image, reading: Reading) -> tuple[UInt8[np.ndarray, "height width 3"], str]:
    """Return the reference beside its maps, each from its smallest value to its largest, and those values in words."""
    attention = reading.cross_attention.mean(dim=(1, 2, 3))
    maps = {**reading.maps, "change": reading.relative_change, "attention": attention}
    pictures, words = [], ["the reference"]
    for name, values in maps.items():
        if values is not None:
            by_patch = patches(values[0].numpy())
            limits = float(by_patch.min()), float(by_patch.max())
            pictures.append(np.round(255 * heat(square, by_patch, limits)).astype(np.uint8))
            words.append(f"{name} {limits[0]:.4f} to {limits[1]:.4f}")
    height, width, _ = pictures[0].shape
    return np.concatenate([np.asarray(square.resize((width, height))), *pictures], axis=1), ", ".join(words)
