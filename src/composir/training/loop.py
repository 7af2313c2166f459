"""The training loop: one path from a recipe to a run folder, resumable at any step."""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import itertools
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs
from jaxtyping import UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from composir import parallel
from composir.data import DATASETS, Left, Query, Split, find_dataset, load_splits
from composir.data.check import require_images, without_missing_images
from composir.data.images import ImageSource, read_image
from composir.errors import ComposirError, command
from composir.evaluation import COMPOSED, Result, evaluate, metric_label, rank_splits
from composir.evaluation.saved import RANKINGS, RECIPE, pack_rankings
from composir.features import DISK, CachedEmbedder, TokenCache, fill_splits, make_cache
from composir.files import (
    locked,
    read_toml,
    recover_folder,
    replacing_folder,
    require_locks,
    require_space,
    size_text,
    write_text,
)
from composir.losses import LOSSES
from composir.machine import available_memory
from composir.models.checkpoint import (
    WEIGHTS,
    load_weights,
    model_card,
    save_pretrained,
    weights_hash,
)
from composir.models.fusion import WEIGHTS as FUSION_WEIGHTS
from composir.models.presets import BACKBONES, build
from composir.models.trace import Reading, patches, watch
from composir.plots import GRADIENT_PREFIX, heat, plot_curves
from composir.training.fingerprint import require_same_data, write_fingerprint
from composir.training.memory import StepMemory, measure_step
from composir.training.mining import Mined, mine, read_mined, write_mined
from composir.training.recipe import Recipe, validate

LOG, STATE, LOCK = "training_log.csv", "training.pt", ".lock"
NO_LOCKS_FIX = "give --output-dir a folder on a local disk; to go on with a run, copy its folder there"
PATIENCE = datetime.timedelta(days=1)
"""How long processes wait for another one, such as for validation; the launcher ends them when one of them dies."""
PARALLEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
LOSS_COLUMNS = ("loss_itc", "loss_rtc", "loss_align", "loss_local")
MINED = "mined"
"""Folder of the mined negatives in a run folder, one file a mining."""
NUM_STATISTICS_IMAGES = 1024
"""Training images whose tokens fit the channel statistics of towers that need them."""
TEMPERATURE_RANGE = (0.01, 0.5)
"""Kept to after every step: logits are never scaled by more than 100, as in CLIP (Radford et al., 2021)."""
NUM_CENTER_TRIPLETS = 256
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
    "text_embeddings.": "words",
    "temperature": "temperature",
}
"""The parts whose gradient norms are logged, by how the names of their weights begin."""


class Observer(Protocol):
    """Hears how a run goes on; the command line draws progress bars with it."""

    def on_missing_images(self, left_by_key: Mapping[str, Left]) -> None:
        """So much is left of each split, by ``split_key``; told where the recipe skips what needs a missing image."""

    def on_features(self, done: int, total: int, num_bytes: int) -> None:
        """So many images have their tokens; those of all ``total`` take ``num_bytes``."""

    def on_start(self, run: Path, recipe: Recipe, first_step: int, num_steps: int) -> None:
        """The first step comes next."""

    def on_note(self, note: str) -> None:
        """Something that is no error should be known, in a sentence."""

    def on_step(self, step: int, loss: float, alpha: float | None) -> None:
        """A step is done; ``loss`` is the weighted total of its batch."""

    def on_validation(self, epoch: int, result: Result, is_best: bool) -> None:
        """A validation is done."""


class _Silent(Observer):
    """Hears and says nothing."""


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


@dataclass
class _State:
    """Where a run stands, beside the weights: everything a resumed run needs to go on as if unbroken."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best: float = -1.0
    best_metrics: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)


def train(
    recipe: Recipe,
    *,
    resume: Path | None = None,
    observer: Observer | None = None,
    cache: str = DISK,
    cache_dir: Path | None = None,
    largest_batch: bool = False,
) -> TrainResult:
    """Return the result of training by ``recipe``, in a new run folder, or of going on with the run ``resume``.

    With ``largest_batch`` the recipe's ``batch_size`` becomes the largest power of two that the memory holds; a batch
    is what a query is compared with, so that another machine may train otherwise.

    Before the first step all annotations and all images are checked, and with ``resume`` that the annotations are those
    the run began with. An interrupt (Ctrl-C, SIGTERM) finishes the
    step, saves ``last/`` and returns with ``interrupted``. A loss that is not finite raises ``ComposirError`` with
    the step and the ids of the batch; ``last/`` is then the last good state.
    """
    observer = observer or _Silent()
    accelerator = _accelerator(recipe)
    with _deterministic(recipe.deterministic), _one_line_for(resume or Path(recipe.output_dir)):
        with parallel.together(accelerator.device):
            train_splits = load_splits(recipe.dataset, recipe.data_root, "train")
            evaluated = DATASETS[find_dataset(recipe.dataset)].evaluated
            val_splits = load_splits(recipe.dataset, recipe.data_root, evaluated)
            left_by_key: dict[str, Left] = {}
            if recipe.skip_missing_images:
                splits, left_by_key = without_missing_images([*train_splits, *val_splits])
                train_splits, val_splits = splits[: len(train_splits)], splits[len(train_splits) :]
                observer.on_missing_images(left_by_key)
            require_images([*train_splits, *val_splits])
            if resume is None:
                _require_writable(Path(recipe.output_dir))
            require_locks(resume or Path(recipe.output_dir), NO_LOCKS_FIX)
            if resume is not None and not require_same_data(resume, [*train_splits, *val_splits]):
                observer.on_note(
                    f"{resume} does not say what it was trained on, being of an earlier version; "
                    "whether the annotations have changed since cannot be told"
                )
            run = _Run(
                recipe,
                accelerator,
                train_splits=train_splits,
                val_splits=val_splits,
                observer=observer,
                left_by_key=left_by_key,
                cache=cache,
                cache_dir=cache_dir,
            )
            if largest_batch:
                run.take_largest_batch()
            run.require_room()
        with parallel.together(accelerator.device):
            run.fill((parallel.process_index(), parallel.num_processes()))
        if parallel.num_processes() > 1:  # what the others have computed
            with parallel.together(accelerator.device):
                run.fill()
        return run.train(resume)


@dataclass(frozen=True)
class Features:
    """What ``compute_features`` has left in the token cache."""

    num_images: int
    num_computed: int
    """Those of them that were not there yet."""
    bytes: int
    """Size of the tokens of all ``num_images``."""
    images_per_second: float
    """Of those that were computed; 0 without any."""
    folder: str
    left: dict[str, Left] = field(default_factory=dict)
    """What is left of each split, by ``split_key``, where the recipe skips what needs a missing image."""


def compute_features(
    recipe: Recipe,
    *,
    splits: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Features:
    """Return what is in the token cache once every image is that training by ``recipe`` needs, or ``splits`` have.

    ``progress`` is told what ``Observer.on_features`` is.
    """
    names = splits or ("train", DATASETS[find_dataset(recipe.dataset)].evaluated)
    loaded = [split for name in names for split in load_splits(recipe.dataset, recipe.data_root, name)]
    left_by_key: dict[str, Left] = {}
    if recipe.skip_missing_images:
        reduced, left_by_key = without_missing_images(loaded)
        loaded = list(reduced)
    require_images(loaded)
    tower = BACKBONES[recipe.backbone].tower(recipe.weights)
    tower.transform, tower.target_ratio = recipe.transform, recipe.target_ratio
    tower.to("cuda" if torch.cuda.is_available() else "cpu")
    tokens = make_cache(tower, DISK, cache_dir, num_workers=recipe.num_workers)
    start = time.perf_counter()
    num_computed = fill_splits(tokens, loaded, _with_size(tokens, progress))
    num_images = len({source for split in loaded for source in split.images.values()})
    return Features(
        num_images=num_images,
        num_computed=num_computed,
        bytes=num_images * tokens.bytes_per_image,
        images_per_second=round(num_computed / (time.perf_counter() - start), 2),
        folder=str(tokens.directory),
        left=left_by_key,
    )


def _with_size(tokens: TokenCache, progress: Callable[[int, int, int], None] | None) -> Callable[[int, int], None]:
    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, total * tokens.bytes_per_image)

    return tell


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


def _accelerator(recipe: Recipe) -> Accelerator:
    precision = recipe.mixed_precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[waiting])
    if accelerator.distributed_type not in PARALLEL:
        raise ComposirError(
            f"started for {accelerator.distributed_type.value}",
            expected="plain data parallel processes: every one has the whole model",
            fix="accelerate launch --multi_gpu (or --cpu), or torchrun",
        )
    return accelerator


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Let torch use only algorithms that give the same numbers every time, for a while."""
    before = torch.are_deterministic_algorithms_enabled()
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS refuses
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _one_line_for(place: Path) -> Iterator[None]:
    """Turn what the machine can do to a run into a ``ComposirError``: full disks, lost processes, too little memory."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ComposirError(
            f"cannot be written ({error})",
            file=place,
            fix="make room or make it writable, then composir train --resume RUN; last/ is as it was last saved",
        ) from error
    except torch.OutOfMemoryError as error:
        raise ComposirError(
            f"a batch does not fit into the GPU's memory ({str(error).splitlines()[0]})",
            file=place,
            fix="a smaller --batch-size, with --set gradient_accumulation=N to keep the size of a step",
        ) from error
    except RuntimeError as error:
        if not parallel.is_loss_of_another(error):
            raise
        raise ComposirError(
            "another process of this training was stopped",
            file=place,
            fix="see what it printed; composir train --resume RUN, launched in the same way, goes on",
        ) from error


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ComposirError(
            f"cannot be written to ({error.strerror})", file=folder, fix="give another folder with --output-dir"
        ) from None


def _in_use(run: Path) -> ComposirError:
    return ComposirError(
        "another process is training this run", file=run, fix="let it end, or stop it; then run the command again"
    )


def _new_run(recipe: Recipe) -> Path:
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H.%M.%S")
    name = f"clip_finetuned_on_{recipe.dataset.lower()}_{recipe.blip_model_name}_{stamp}"
    for number in itertools.count():
        run = Path(recipe.output_dir) / (f"{name}_{number}" if number else name)
        with contextlib.suppress(FileExistsError):
            run.mkdir(parents=True)
            return run
    raise AssertionError("unreachable")


class _Run:
    """One run: its model, data and state. Lives as long as ``train``."""

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        *,
        train_splits: Sequence[Split],
        val_splits: Sequence[Split],
        observer: Observer,
        left_by_key: Mapping[str, Left] | None = None,
        cache: str = DISK,
        cache_dir: Path | None = None,
    ) -> None:
        self.recipe, self.accelerator, self.observer = recipe, accelerator, observer
        self.is_first = parallel.process_index() == 0
        self.saved_at = time.monotonic()
        self.train_splits, self.val_splits, self.left_by_key = train_splits, val_splits, left_by_key or {}
        self.triplets = [(split, query) for split in train_splits for query in split.queries]
        torch.manual_seed(recipe.seed)
        self.model = build(
            recipe.backbone,
            recipe.weights,
            fusion=recipe.fusion,
            alpha_init=recipe.alpha_init,
            gate_layer_norm=recipe.gate_layer_norm,
            transform=recipe.transform,
            target_ratio=recipe.target_ratio,
        ).to(accelerator.device)
        assert self.model.tower is not None
        self.model.qformer.gradient_checkpointing = recipe.gradient_checkpointing
        self.contrast = LOSSES[recipe.contrastive_loss]
        if recipe.contrastive_loss == "hn-nce":
            self.contrast = partial(self.contrast, beta=recipe.hard_negative_beta, alpha=recipe.hard_negative_alpha)
        self.mined: Mined = {}
        self.tokens = make_cache(self.model.tower, cache, cache_dir, num_workers=recipe.num_workers)
        self.parts = self._parts()
        of_val = [(split, query) for split in val_splits for query in split.queries]
        self.examples = [
            (split.images[query.reference], query.text, self._square(split.images[query.reference]))
            for split, query in (of_val[0], of_val[len(of_val) // 2])
        ]

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps, the last of them of what is left."""
        return math.ceil(math.ceil(len(self.triplets) / self.batch_size) / self.recipe.gradient_accumulation)

    @property
    def batch_size(self) -> int:
        """Triplets in a batch: what the recipe says, or all there are."""
        return min(self.recipe.batch_size, len(self.triplets))

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        all_steps = self.steps_per_epoch * self.recipe.num_epochs
        return min(all_steps, self.recipe.max_steps) if self.recipe.max_steps else all_steps

    def fill(self, share: tuple[int, int] = (0, 1)) -> None:
        """Make the tokens of all images present, or of a share of them, for several processes at once."""
        tell = _with_size(self.tokens, self.observer.on_features)
        fill_splits(self.tokens, [*self.train_splits, *self.val_splits], tell, share=share)

    def take_largest_batch(self) -> None:
        """Let the batch be the largest power of two that fits; raise ``ComposirError`` where none can be told."""
        available = self._available_memory()
        if len(self.triplets) < 2:
            raise ComposirError(
                "there is one triplet, and a batch takes two or more, each other's negatives",
                file=self.train_splits[0].file,
                fix="add triplets",
            )
        if parallel.num_processes() > 1 or available is None:
            raise ComposirError(
                "--batch-size auto measures one process on a machine that tells its memory",
                fix="give --batch-size a number: what one process can hold, times the processes",
            )
        size = self.step_memory.largest_batch(available - self._trained_bytes * 3)
        size = min(size, 2 ** (len(self.triplets).bit_length() - 1))
        if size < 2:
            raise ComposirError(
                f"not even two triplets fit into the {size_text(available)} of memory that are left",
                fix="--set gradient_checkpointing=true, a smaller --backbone, or a machine with more memory",
            )
        self.recipe = self.recipe.model_copy(update={"batch_size": size})

    def require_room(self) -> None:
        """Raise ``ComposirError`` where what a training of this size surely needs is more than there is."""
        own = sum(tensor.nbytes for tensor in self.model.own_weights().values())
        available, size = self._available_memory(), self.batch_size
        trained = self._trained_bytes
        if available is not None and 3 * trained > available:
            raise ComposirError(
                f"gradients and optimiser alone need {size_text(3 * trained)} of memory, "
                f"{size_text(available)} are left",
                fix="a smaller --backbone, or a machine with more memory",
            )
        if available is not None and parallel.num_processes() == 1:
            needed = 2 * trained + self.step_memory.of(size)
            if needed > available:
                fitting = self.step_memory.largest_batch(available - 3 * trained)
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

    def _available_memory(self) -> int | None:
        device = self.accelerator.device
        return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()

    @property
    def _trained_bytes(self) -> int:
        """Of the trained weights; their gradients take as much, and AdamW's means twice as much."""
        return sum(parameter.nbytes for parameter in self.model.parameters() if parameter.requires_grad)

    @cached_property
    def step_memory(self) -> StepMemory:
        """What a step of this recipe takes."""
        return measure_step(
            self.model,
            [query.text for _, query in self.triplets],
            pictures_per_triplet=2 + self.recipe.subset_negatives,
            local=self.recipe.loss_local > 0,
            autocast=self.accelerator.autocast,  # pyright: ignore[reportArgumentType]  # its stub has no default
        )

    # -- start -----------------------------------------------------------------------------------------------------

    def _prepare_start(self) -> None:
        """Fit what a fresh model takes from the training data: channel statistics, a gate, centred heads."""
        generator = np.random.default_rng(self.recipe.seed)
        if self.model.standardise is not None:
            paths = sorted({path for split in self.train_splits for path in split.images.values()}, key=str)
            chosen = generator.permutation(len(paths))[:NUM_STATISTICS_IMAGES]
            self.model.standardise.fit(self.tokens([paths[index] for index in sorted(chosen)]))
        if self.recipe.gate_identity_start:
            self.model.start_fusions_as_identity()
        if self.recipe.center_embeddings:
            chosen = generator.permutation(len(self.triplets))[:NUM_CENTER_TRIPLETS]
            self.model.eval().center(*self._inputs([self.triplets[index] for index in sorted(chosen)], None)[:4])

    def _optimizer(self) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
        recipe = self.recipe
        new_parts = BACKBONES[recipe.backbone].new_parts
        parameters_by_rate: dict[float, list[torch.nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            if not parameter.requires_grad:
                continue
            rate = recipe.learning_rate
            of_fusion = name.startswith(FUSION_WEIGHTS)
            if of_fusion and name.endswith(".alpha") and recipe.alpha_learning_rate:
                rate = recipe.alpha_learning_rate
            elif of_fusion and recipe.gate_learning_rate:
                rate = recipe.gate_learning_rate
            elif recipe.pretrained_learning_rate and not any(part in name for part in new_parts):
                rate = recipe.pretrained_learning_rate
            parameters_by_rate.setdefault(rate, []).append(parameter)
        optimizer = torch.optim.AdamW(
            [{"params": parameters, "lr": rate} for rate, parameters in parameters_by_rate.items()],
            betas=recipe.betas,
            eps=recipe.eps,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        length = max(self.num_steps, recipe.schedule_epochs * self.steps_per_epoch)
        total_steps = max(length, 2) + 1  # the step after the last is asked for, too
        rises_for_no_step = recipe.pct_start * total_steps == 1  # torch then divides by zero
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=list(parameters_by_rate),
            total_steps=total_steps,
            pct_start=recipe.pct_start * (1 + 1e-9 * rises_for_no_step),
            div_factor=recipe.div_factor,
        )
        return optimizer, schedule

    # -- data ------------------------------------------------------------------------------------------------------

    def _batches(self, epoch: int, first: int) -> Iterator[list[tuple[Split, Query]]]:
        """Give the epoch's batches from number ``first`` on; their order depends on seed and epoch alone."""
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.triplets))
        size = self.batch_size
        for start in range(first * size, len(order), size):
            yield [self.triplets[index] for index in order[start : start + size]]

    def _inputs(
        self, batch: Sequence[tuple[Split, Query]], generator: np.random.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, tuple[int, int]]:
        """Return reference tokens, candidate tokens, input ids, mask and which candidates show the same target.

        The last is how many queries and candidates there are. With a ``generator``, for training, the first four are
        this process's share of them.
        """
        references = [split.images[query.reference] for split, query in batch]
        candidates = [split.images[query.targets[0]] for split, query in batch]
        texts = [query.text for _, query in batch]
        same_target = None
        if generator is not None:
            texts = [query.texts[generator.integers(len(query.texts))] for _, query in batch]
            candidates += [path for triplet in batch for path in self._look_alikes(*triplet, generator)]
            if self.recipe.mask_same_target or self.recipe.subset_negatives:
                index_by_path = {path: index for index, path in enumerate(candidates)}
                indices = torch.tensor([index_by_path[path] for path in candidates])
                same_target = (indices[: len(batch), None] == indices[None]).to(self.model.device)
        num_all = len(references), len(candidates)
        input_ids, mask = self.model.tokenize(texts)
        if generator is not None:
            references, candidates = parallel.share(references), parallel.share(candidates)
            input_ids, mask = parallel.share(input_ids), parallel.share(mask)
        device = self.model.device
        return (
            self.tokens(references).to(device),
            self.tokens(candidates).to(device),
            input_ids,
            mask,
            same_target,
            num_all,
        )

    def _look_alikes(self, split: Split, query: Query, generator: np.random.Generator) -> list[ImageSource]:
        """Return the files of as many pictures like the query's target as the recipe asks for."""
        if not self.recipe.subset_negatives:
            return []
        names = [name for name in (*query.subset, query.reference) if name != query.targets[0]]
        chosen = [names[index] for index in generator.permutation(len(names))[: self.recipe.subset_negatives]]
        mined = self.mined.get((split.category, query.id), [])
        if mined:
            instead = generator.random(len(chosen)) < self.recipe.mined_ratio
            drawn = generator.choice(mined, len(chosen))
            chosen = [str(hard) if use else name for name, hard, use in zip(chosen, drawn, instead, strict=True)]
        return [split.images[name] for name in chosen]

    # -- the loop --------------------------------------------------------------------------------------------------

    def train(self, resume: Path | None) -> TrainResult:
        """Train to the end or to an interrupt, in a new run folder or in the one to go on with."""
        recipe = self.recipe
        optimizer, schedule = self._optimizer()
        with ExitStack() as held:
            if resume is None:
                self._prepare_start()
                parallel.copy_from_first(self.model.own_weights().values())
            with parallel.together(self.accelerator.device):
                if self.is_first:
                    self.run = resume or _new_run(recipe)
                    held.enter_context(locked(self.run / LOCK, _in_use(self.run), without_locks=NO_LOCKS_FIX))
                    if resume is None:
                        write_text(self.run / RECIPE, recipe.to_toml())
                        write_fingerprint(self.run, [*self.train_splits, *self.val_splits])
            self.run = parallel.from_first(self.run if self.is_first else Path())
            with parallel.together(self.accelerator.device):
                state = self.state = _State() if resume is None else self._load(optimizer, schedule)
                self._read_mined()
            optimizer = self.accelerator.prepare(optimizer)
            if resume is None:
                self._save(optimizer, schedule)
            if self.batch_size < recipe.batch_size:
                there = f"{self.batch_size:,} triplet{'' if self.batch_size == 1 else 's'}"
                self.observer.on_note(
                    f"batch size {recipe.batch_size:,} is more than there are: a batch is all {there}"
                )
            as_trained = recipe.model_copy(update={"batch_size": self.batch_size})
            self.observer.on_start(self.run, as_trained, state.step, self.num_steps)
            board = None
            if self.is_first:
                board = held.enter_context(SummaryWriter(str(self.run), purge_step=state.step + 1))
            interrupted = held.enter_context(_interrupts())
            while state.epoch < recipe.num_epochs and state.step < self.num_steps:
                if self._train_epoch(optimizer, schedule, board, interrupted):
                    self._save(optimizer, schedule)
                    return self._result(interrupted=True)
                self._end_epoch(board, schedule)
                self._save(optimizer, schedule)
        return self._result(interrupted=False)

    def _train_epoch(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        board: SummaryWriter | None,
        interrupted: threading.Event,
    ) -> bool:
        """Return whether an interrupt, of any process, stopped the epoch before its end or at it."""
        state = self.state
        for batch in self._batches(state.epoch, state.batch):
            self._step(batch, optimizer, schedule, board)
            if self._is_between_steps():
                is_time = time.monotonic() - self.saved_at > 60 * self.recipe.save_minutes
                stopped, must_save = parallel.any_process(
                    interrupted.is_set(), is_time and self.is_first, device=self.accelerator.device
                )
                if stopped:
                    return True
                if state.step >= self.num_steps:
                    return False
                if must_save:
                    self._save(optimizer, schedule)
        return False

    def _read_mined(self) -> None:
        """Take over the negatives that were mined last."""
        epoch = self.state.epoch - self.state.epoch % self.recipe.mining_frequency
        if self.recipe.mined_ratio and epoch:
            self.mined = read_mined(self._mined_file(epoch))

    def _parts(self) -> dict[str, list[torch.nn.Parameter]]:
        """Return the trained weights by part of ``PART_BY_WEIGHTS``."""
        parts: dict[str, list[torch.nn.Parameter]] = {part: [] for part in PART_BY_WEIGHTS.values()}
        for name, parameter in self.model.named_parameters():
            part = next((part for start, part in PART_BY_WEIGHTS.items() if name.startswith(start)), None)
            if part and parameter.requires_grad:
                parts[part].append(parameter)
        return {part: parameters for part, parameters in parts.items() if parameters}

    def _gradient_norms(self) -> dict[str, float]:
        """Return the Euclidean norm of each part's gradient, as it is before clipping."""
        gradients = {
            part: [parameter.grad for parameter in parameters if parameter.grad is not None]
            for part, parameters in self.parts.items()
        }
        scale = 1.0 if self.accelerator.scaler is None else self.accelerator.scaler.get_scale()
        norms = torch.stack([torch.nn.utils.get_total_norm(one, foreach=True) for one in gradients.values()]) / scale
        return dict(zip(gradients, norms.tolist(), strict=True))

    def _step(
        self,
        batch: Sequence[tuple[Split, Query]],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        board: SummaryWriter | None,
    ) -> None:
        recipe, state = self.recipe, self.state
        generator = np.random.default_rng([recipe.seed, state.epoch, state.batch])
        with parallel.together(self.accelerator.device):
            *inputs, same_target, num_all = self._inputs(batch, generator)
        if not self.is_first:  # dropout of its own; process 0 goes on with what last/ holds
            own = np.random.SeedSequence([recipe.seed, state.epoch, state.batch, parallel.process_index()])
            torch.manual_seed(int(own.generate_state(1, np.uint64)[0]) >> 1)
        self.model.train()
        with self.accelerator.autocast():
            losses = self.model.training_losses(
                *inputs,
                same_target=same_target,
                contrast=self.contrast,
                local=recipe.loss_local > 0,
                num_all=num_all,
            )
            total = losses["loss_itc"] + recipe.loss_rtc * losses["loss_rtc"] + recipe.loss_align * losses["loss_align"]
            if recipe.loss_local:
                total = total + recipe.loss_local * losses["loss_local"]
        if not torch.isfinite(total):
            ids = ", ".join(query.id for _, query in batch)
            raise ComposirError(
                f"the loss is {total.item()} at step {state.step + 1}, on the triplets {ids}",
                file=self.run,
                fix="look at these triplets, or train with a smaller --learning-rate; last/ is the last good state",
            )
        self.accelerator.backward(total / recipe.gradient_accumulation)
        state.batch += 1
        norms: dict[str, float] = {}
        if self._is_between_steps():
            parallel.average_gradients(self.model.parameters())
            norms = {f"{GRADIENT_PREFIX}{part}": norm for part, norm in self._gradient_norms().items()}
            if recipe.max_grad_norm:
                self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            with torch.no_grad():
                self.model.temperature.clamp_(*TEMPERATURE_RANGE)
            state.step += 1
        if board is not None:
            self._record({**losses, "total": total}, norms, board)

    def _record(self, losses: Mapping[str, Tensor], norms: Mapping[str, float], board: SummaryWriter) -> None:
        """Add a batch to the log's means and to TensorBoard, and tell of it."""
        state = self.state
        alpha = None if self.model.gated_fusion is None else self.model.gated_fusion.alpha.item()
        for name, value in losses.items():
            state.sums[name] = state.sums.get(name, 0.0) + value.item()
            board.add_scalar(f"train/{name}", value.item(), state.step)
        for name, norm in norms.items():
            state.sums[name] = state.sums.get(name, 0.0) + norm
            board.add_scalar(f"gradient/{name.removeprefix(GRADIENT_PREFIX)}", norm, state.step)
        if alpha is not None:
            board.add_scalar("gate/alpha", alpha, state.step)
        self.observer.on_step(state.step, losses["total"].item(), alpha)

    def _is_between_steps(self) -> bool:
        """Return whether the gradients of all batches so far are in the weights."""
        is_last = self.state.batch * self.batch_size >= len(self.triplets)
        return is_last or self.state.batch % self.recipe.gradient_accumulation == 0

    # -- the end of an epoch ---------------------------------------------------------------------------------------

    def _end_epoch(self, board: SummaryWriter | None, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
        recipe, state = self.recipe, self.state
        num_batches, sums = state.batch, state.sums
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, {}
        is_end = state.epoch == recipe.num_epochs or state.step >= self.num_steps
        with parallel.together(self.accelerator.device):
            if board is not None:
                row = {"epoch": str(state.epoch)}
                for name in (*LOSS_COLUMNS, "total"):
                    if name in sums:
                        row[name] = f"{sums[name] / num_batches:.6f}"
                row["lr"] = f"{max(schedule.get_last_lr()):.3g}"
                num_steps = math.ceil(num_batches / recipe.gradient_accumulation)
                norms = {
                    f"{GRADIENT_PREFIX}{part}": sums[f"{GRADIENT_PREFIX}{part}"] / num_steps for part in self.parts
                }
                row |= self._gate_columns(board) | {name: f"{norm:.4g}" for name, norm in norms.items()}
                if is_end or state.epoch % recipe.validation_frequency == 0:
                    row |= self._validate(board)
                if recipe.mined_ratio and state.epoch % recipe.mining_frequency == 0 and not is_end:
                    self._mine()
                state.rows.append(row)
                self._write_log()
        if not is_end:
            self._read_mined()

    def _mine(self) -> None:
        """Mine negatives with the model as it is and write them down, so that a resumed run has the same."""
        recipe = self.recipe
        self.model.eval()
        ranked = rank_splits(CachedEmbedder(self.model, self.tokens), self.train_splits)[COMPOSED]
        mined = mine(ranked, depth=recipe.mining_depth, skip=recipe.mining_skip, margin=recipe.mining_margin)
        write_mined(mined, ranked, self._mined_file(self.state.epoch))

    def _mined_file(self, epoch: int) -> Path:
        return self.run / MINED / f"epoch-{epoch}.jsonl"

    def _gate_columns(self, board: SummaryWriter) -> dict[str, str]:
        """Return what the fusions do to the first training triplets; the same goes to TensorBoard."""
        self.model.eval()
        inputs = self._probe()
        with torch.no_grad(), watch(self.model) as seen:
            self.model.fuse(*inputs)
            figures = {}
            if (gate := self.model.gated_fusion) is not None:
                values = self.model.gate_values(*inputs)
                figures["alpha"] = gate.alpha.item()
                figures["mean_gate"] = values.mean().item()
                figures["gate_entropy"] = _entropy(values).mean().item()
            if (change := seen[-1].relative_change) is not None:
                figures["relative_change"] = change.mean().item()
        for name, tag in (("mean_gate", "mean"), ("gate_entropy", "entropy"), ("relative_change", "relative_change")):
            if name in figures:
                board.add_scalar(f"gate/{tag}", figures[name], self.state.step)
        return {name: f"{figure:.6f}" for name, figure in figures.items()}

    def _probe(self) -> tuple[Tensor, Tensor, Tensor]:
        reference, _, input_ids, mask, *_ = self._inputs(self.triplets[:NUM_PROBE_TRIPLETS], None)
        return reference, input_ids, mask

    def _show(self, board: SummaryWriter) -> None:
        """Write histograms of gate and change, and the maps of two queries of val, to TensorBoard."""
        inputs = self._probe()
        with torch.no_grad(), watch(self.model) as seen:
            self.model.fuse(*inputs)
            if self.model.gated_fusion is not None:
                board.add_histogram("gate/values", self.model.gate_values(*inputs), self.state.step)
            if (change := seen[-1].relative_change) is not None:
                board.add_histogram("gate/relative_changes", change, self.state.step)
            for number, (source, text, square) in enumerate(self.examples):
                self.model.fuse(self.tokens([source]).to(self.model.device), *self.model.tokenize([text]))
                picture, words = _draw_example(square, seen[-1])
                board.add_image(f"examples/{number}", picture, self.state.step, dataformats="HWC")
                board.add_text(f"examples/{number}", f"{text}: {words}", self.state.step)

    def _square(self, source: ImageSource) -> Image.Image:
        """Return a picture as the tower sees it."""
        assert self.model.tower is not None
        return Image.fromarray(self.model.tower.prepare(read_image(source)).transpose(1, 2, 0))

    def _validate(self, board: SummaryWriter) -> dict[str, str]:
        recipe, state = self.recipe, self.state
        self.model.eval()
        result = evaluate(
            CachedEmbedder(self.model, self.tokens),
            self.val_splits,
            weights_hash=weights_hash(self.model),
            baselines=False,
        )
        for key, value in result.metrics.items():
            board.add_scalar(f"val/{key}", 100 * value, state.step)
        self._show(board)
        is_best = result.metrics[result.primary] > state.best
        if is_best:
            state.best, state.best_metrics = result.metrics[result.primary], dict(result.metrics)
        if recipe.save_training:
            card = model_card(self.model.config, _about(recipe, result, self.left_by_key))
            files = {RECIPE: recipe.to_toml().encode(), RANKINGS: pack_rankings(result)}
            folders = ([self.run / "best"] if is_best else []) + (
                [] if recipe.save_best else [self.run / f"epoch-{state.epoch}"]
            )
            for folder in folders:
                save_pretrained(self.model, folder, card=card, extra_files=files)
        self.observer.on_validation(state.epoch, result, is_best)
        return {metric_label(key): f"{100 * value:.2f}" for key, value in result.metrics.items()}

    def _write_log(self) -> None:
        columns = list(dict.fromkeys(column for row in self.state.rows for column in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.state.rows)
        write_text(self.run / LOG, text.getvalue())
        plot_curves(self.run / LOG, self.run / "curves.png")

    # -- state -----------------------------------------------------------------------------------------------------

    def _save(self, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
        """Write ``last/``, where the recipe keeps it: the weights and everything else a resumed run needs."""
        if self.recipe.save_training:
            with parallel.together(self.accelerator.device):
                if self.is_first:
                    self._write_last(optimizer, schedule)
        self.saved_at = time.monotonic()

    def _write_last(self, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
        device, scaler = self.accelerator.device, self.accelerator.scaler
        buffer = io.BytesIO()
        torch.save(
            {
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "rng": torch.get_rng_state(),
                "cuda_rng": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
                "scaler": None if scaler is None else scaler.state_dict(),
                "state": vars(self.state),
            },
            buffer,
        )
        with replacing_folder(self.run / "last") as temporary:
            save_pretrained(self.model, temporary / "model", extra_files={RECIPE: self.recipe.to_toml().encode()})
            (temporary / STATE).write_bytes(buffer.getvalue())

    def _load(self, optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> _State:
        last = self.run / "last"
        try:
            saved: dict[str, Any] = torch.load(last / STATE, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ComposirError(
                f"cannot be read ({error})", file=last / STATE, fix="start anew without --resume"
            ) from None
        planned, needed = (one["total_steps"] - 1 for one in (saved["schedule"], schedule.state_dict()))
        if planned != needed:  # of a version that kept no fingerprint
            raise ComposirError(
                f"was planned for {planned:,} steps, and by its recipe {len(self.triplets):,} triplets are {needed:,}",
                file=self.run,
                expected="the annotations that the run began with",
                fix=f"put them back, or start a new run: {command('train', '--config', self.run / RECIPE)}",
            )
        load_weights(self.model, last / "model" / WEIGHTS)
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["rng"])
        device, scaler = self.accelerator.device, self.accelerator.scaler
        if saved["cuda_rng"] and device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda_rng"][0], device)
        if scaler is not None and saved.get("scaler"):
            scaler.load_state_dict(saved["scaler"])
        return _State(**saved["state"])

    def _result(self, *, interrupted: bool) -> TrainResult:
        best = self.run / "best"
        return TrainResult(
            run=self.run,
            best=best if best.exists() else None,
            epochs=self.state.epoch,
            metrics=self.state.best_metrics,
            interrupted=interrupted,
        )


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into an event for a while; a second one breaks off at once.

    Of several processes it does not: Ctrl-C reaches each of them, and their launcher sends them another signal.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def remember(number: int, frame: object) -> None:
        if event.is_set() and parallel.num_processes() == 1:
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _entropy(gate: Tensor) -> Tensor:
    """Return the binary entropy of values in (0, 1), in bits: 1 where the gate is half open, 0 where it is decided."""
    return -(torch.xlogy(gate, gate) + torch.xlogy(1 - gate, 1 - gate)) / math.log(2)


def _draw_example(square: Image.Image, reading: Reading) -> tuple[UInt8[np.ndarray, "height width 3"], str]:
    """Return the reference beside its maps, each from its smallest value to its largest, and those values in words."""
    attention = reading.cross_attention.mean(dim=(1, 2, 3))
    maps = {"gate": reading.gate, "change": reading.relative_change, "attention": attention}
    pictures, words = [], ["the reference"]
    for name, values in maps.items():
        if values is not None:
            by_patch = patches(values[0].numpy())
            limits = float(by_patch.min()), float(by_patch.max())
            pictures.append(np.round(255 * heat(square, by_patch, limits)).astype(np.uint8))
            words.append(f"{name} {limits[0]:.4f} to {limits[1]:.4f}")
    height, width, _ = pictures[0].shape
    return np.concatenate([np.asarray(square.resize((width, height))), *pictures], axis=1), ", ".join(words)


def _about(recipe: Recipe, result: Result, left_by_key: Mapping[str, Left]) -> str:
    """Return what the model card says of the run: recipe, figures with intervals, signature, data that was missing."""
    figures = "\n".join(
        f"| {metric_label(key)} | {100 * value:.2f} | {100 * result.intervals[key][0]:.2f} – "
        f"{100 * result.intervals[key][1]:.2f} |"
        for key, value in result.metrics.items()
    )
    return f"""
Trained on {recipe.dataset} by `recipe.toml` beside this file; `composir train --config recipe.toml` repeats it.

| {recipe.dataset} val | percent | 95 % interval |
|---|---|---|
{figures}

Signature: `{result.signature}`
{_about_missing(left_by_key)}"""


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
