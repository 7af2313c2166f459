"""What a device does with BLIP-2's sizes: steps and memory by batch and precision, the tower by batch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor

from composir.benchmark.features import real_tower
from composir.benchmark.steps import REAL, Batch, make_batch, make_model, make_optimizer, time_of
from composir.losses import total_loss
from composir.machine import default_device, describe_machine
from composir.models.fusion import GATE, NONE
from composir.models.vision import GPU_BATCH, Tower
from composir.models.vit import LastHidden
from composir.progress import Progress
from composir.training.recipe import Recipe

CIRR_TRIPLETS = 28_225
WARM_UP = 2
PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def benchmark_device(
    *,
    batch_sizes: tuple[int, ...] = (64, 128, 256),
    tower_batches: tuple[int, ...] = (8, 16, 32, 64, 128, 256),
    num_steps: int = 10,
    compiled: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return what the device does at BLIP-2's sizes, as ``composir benchmark device`` prints it; weights are random.

    - ``seconds``: of training steps on tokens that are there, by precision, fusion and batch, dropout on as in
      training; ``step NAME compiled`` with the losses compiled. ``tower fp16 N``: of EVA ViT-g on N pictures.
    - ``peak_memory_bytes``: the most that the device's memory held in them, weights and optimiser included.
    - ``images_per_second`` of the tower, ``cirr_epoch_seconds``: CIRR's 28,225 triplets by the step of 128.
    - ``attention_kernels``: how often a step in bf16 ran which; ``flash`` where nothing is padded.
    - ``tower_rounding``: distance of fp16 tokens to those in float32, over their length, and seconds of a pass: with
      norms and sums in float32, as here and in LAVIS, and with all in fp16.

    A batch that the memory does not hold is left out and named in ``too_large``.
    """
    device = default_device()
    document: dict[str, Any] = {"seconds": {}, "peak_memory_bytes": {}, "too_large": []}
    work: dict[str, Callable[[], Callable[[], object]]] = {}
    for fusion in (GATE, NONE):
        for name in PRECISIONS if device.type == "cuda" else ("fp32",):
            for size in batch_sizes if name == "bf16" else batch_sizes[1:2]:
                work[f"step {name} {fusion} {size}"] = partial(_make_step, device, name, fusion, size)
    if compiled and device.type == "cuda":
        work[f"step bf16 {GATE} {batch_sizes[1]} compiled"] = partial(
            _make_step, device, "bf16", GATE, batch_sizes[1], compiled=True
        )
    tower = real_tower(device=device)
    for size in tower_batches:
        work[f"tower {size}"] = partial(_tower_on, tower, size)
    if compiled and device.type == "cuda":
        work[f"tower {tower_batches[-1]} compiled"] = partial(_tower_on, tower, tower_batches[-1], compiled=True)
    for place, (name, make) in enumerate(work.items()):
        if progress is not None:
            progress(name, place, len(work))
        try:
            document["seconds"][name], document["peak_memory_bytes"][name] = _measure(make, device, num_steps)
        except torch.OutOfMemoryError:
            document["too_large"].append(name)
    document["images_per_second"] = {
        name: int(name.split()[1]) / median(times) for name, times in document["seconds"].items() if "tower" in name
    }
    document["cirr_epoch_seconds"] = {
        name: math.ceil(CIRR_TRIPLETS / int(name.split()[3])) * median(times)
        for name, times in document["seconds"].items()
        if name.startswith("step")
    }
    if device.type == "cuda":
        document["attention_kernels"] = _attention_kernels(device, batch_sizes[0])
        document["tower_rounding"] = _tower_rounding(tower)
    document["ratios"] = _ratios(document["seconds"], batch_sizes[1])
    return document | {"machine": describe_machine()}


def _ratios(seconds: dict[str, list[float]], size: int) -> dict[str, float]:
    pairs = {
        "gated_over_plain_bf16": (f"step bf16 {GATE} {size}", f"step bf16 {NONE} {size}"),
        "fp32_over_bf16": (f"step fp32 {GATE} {size}", f"step bf16 {GATE} {size}"),
        "fp16_over_bf16": (f"step fp16 {GATE} {size}", f"step bf16 {GATE} {size}"),
        "compiled_over_not": (f"step bf16 {GATE} {size} compiled", f"step bf16 {GATE} {size}"),
    }
    there = {name: pair for name, pair in pairs.items() if all(one in seconds for one in pair)}
    return {name: median(seconds[over]) / median(seconds[under]) for name, (over, under) in there.items()}


def _measure(make: Callable[[], Callable[[], object]], device: torch.device, num_steps: int) -> tuple[list[float], int]:
    """Return the seconds of pieces of work, those to warm up left out, and the most memory that they took."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    work = make()
    seconds = [time_of(work, device, processor_time=False) for _ in range(WARM_UP + num_steps)][WARM_UP:]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return [round(one, 5) for one in seconds], peak


def _autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _inputs(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the inputs as training has them: all on the device but the mask."""
    reference, target, ids, mask = batch.inputs(padded=False)
    return reference.to(device), target.to(device), ids.to(device), mask


def _make_step(
    device: torch.device, precision: str, fusion: str, size: int, *, compiled: bool = False
) -> Callable[[], object]:
    with device:
        model = make_model(REAL, fusion=fusion, dropout=0.1)
    optimizer, inputs = make_optimizer(model, per_tensor=False), _inputs(make_batch(REAL, size), device)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    losses_of = torch.compile(model.training_losses) if compiled else model.training_losses

    def step() -> None:
        with _autocast(device, precision):
            total = total_loss(losses_of(*inputs), Recipe().loss_weights)
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _tower_on(tower: Tower, size: int, *, compiled: bool = False) -> Callable[[], object]:
    pixels = torch.randint(0, 256, (size, 3, tower.image_size, tower.image_size), dtype=torch.uint8)
    compute = torch.compile(tower.forward) if compiled else tower.forward
    return lambda: compute(pixels)


def _attention_kernels(device: torch.device, size: int) -> dict[str, int]:
    step = _make_step(device, "bf16", NONE, size)
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step()
        torch.cuda.synchronize()
    names = (event.name for event in profile.events() or ())
    kinds = ("flash", "fmha", "cudnn")
    return dict(Counter(kind for name in names for kind in kinds if kind in name.lower()))


def _tower_rounding(tower: Tower, size: int = GPU_BATCH) -> dict[str, float]:
    """Return errors and seconds of fp16; the tower is left wholly in it."""
    network = cast("LastHidden", tower.network)
    pixels = torch.randn(size, 3, tower.image_size, tower.image_size, device=tower.mean.device)

    def run(autocast: bool) -> tuple[Tensor, float]:
        dtype = next(network.parameters()).dtype
        with torch.inference_mode(), torch.autocast("cuda", torch.float16, enabled=autocast):
            again = partial(network, pixels if autocast else pixels.to(dtype))
            tokens = again()
            seconds = [time_of(again, pixels.device, processor_time=False) for _ in "12345"]
        return tokens.float(), median(seconds)

    mixed, mixed_seconds = run(autocast=True)
    network.float()
    exact, _ = run(autocast=False)
    network.transformer.get_submodule("embeddings")._forward_hooks.clear()
    network.half()
    whole, whole_seconds = run(autocast=False)
    return {
        "mixed_error": ((mixed - exact).norm() / exact.norm()).item(),
        "whole_fp16_error": ((whole - exact).norm() / exact.norm()).item(),
        "mixed_over_whole_seconds": mixed_seconds / whole_seconds,
    }
