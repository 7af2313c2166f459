"""A training step of the Q-Former: this package beside the published way, part by part, and the processor's floor."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from composir.benchmark.peak import Products
from composir.benchmark.processes import in_fresh_process
from composir.benchmark.steps import (
    LADDER,
    OURS,
    PUBLISHED,
    REAL,
    Batch,
    Step,
    Way,
    gpu_memory_of_steps,
    in_turns,
    make_batch,
    make_model,
    make_optimizer,
    ratio,
)
from composir.machine import default_device, describe_machine, has_bf16
from composir.progress import Progress

BF16, COMPILED = "bf16", "compiled"
FROZEN_NORM, DROPOUT = "ln_vision frozen", "dropout"
PEAK, PEAK_BF16 = "products, fp32", "products, bf16"
NUM_CURVE_BATCHES = 4


def benchmark_train(
    *,
    backbone: str = REAL,
    batch_size: int = 8,
    repeats: int = 3,
    processor_time: bool = False,
    compiled: bool = False,
    curve_steps: int = 20,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return seconds, memory and ratios of a training step, as ``composir benchmark train`` prints them.

    Tokens and sentences are random, tokens being there as from the cache; no dropout, so that ways can be compared.
    From the published way (``LADDER``) to this package's one part after the other changes; all take their steps in
    turns. In ``ratios``, above 1 in favour of this package:

    - ``published_over_ours``, the same in bf16, and the published way in fp32 over this package in bf16;
    - ``shares``: what each part makes of the rung before it;
    - ``ln_vision_of_published`` and ``dropout_of_published``: the published way over itself with that norm frozen,
      and the published way with dropout over itself without, as it trains and as it is compared here;
      ``as_trained_published_over_ours``: both with dropout;
    - ``operations_published_over_ours``: the operations of the matrix products of a step, by way in ``operations``.

    ``peak_gflops`` is the rate of large matrix products in the same turns, ``floor_seconds`` a step's own operations at
    that rate, and ``over_floor`` the seconds of a step over its floor.

    ``largest_difference`` is that of the total loss and of any gradient to the published way's, ``largest_gradient``
    the largest itself. ``curve`` holds the losses of as many steps in fp32 and in bf16 over four batches in turn.
    Memory is that of a process that takes one step, on a GPU of the card. ``processor_time`` counts the seconds that
    this process had of all cores instead of those on the wall: for a machine that others use.
    """
    device = default_device()
    model, batch = make_model(backbone).to(device), make_batch(backbone, batch_size)
    bf16 = has_bf16(device)
    ways = _ways(has_norm=model.ln_vision is not None, bf16=bf16, compiled=compiled)
    optimizers = {per_tensor: make_optimizer(model, per_tensor=per_tensor) for per_tensor in (True, False)}
    steps = {name: Step(model, way, optimizers[way.per_tensor_optimizer]) for name, way in ways.items()}
    differences, operations = _compare(steps, batch)
    products = {PEAK: Products(torch.float32, device)} | ({PEAK_BF16: Products(torch.bfloat16, device)} if bf16 else {})
    seconds = in_turns(
        products | {name: partial(step, batch) for name, step in steps.items()},
        device,
        repeats=repeats,
        processor_time=processor_time,
        progress=progress,
    )
    del model, steps, optimizers
    memory = {
        name: in_fresh_process(gpu_memory_of_steps, backbone, batch_size, ways[name]) for name in (PUBLISHED, OURS)
    }
    ratios = {"published_over_ours": ratio(seconds[PUBLISHED], seconds[OURS])}
    if bf16:
        ratios |= {
            "published_over_ours_bf16": ratio(seconds[PUBLISHED], seconds[f"{OURS} {BF16}"]),
            "published_bf16_over_ours_bf16": ratio(seconds[f"{PUBLISHED} {BF16}"], seconds[f"{OURS} {BF16}"]),
        }
    with_dropout = {name: seconds[f"{name}, {DROPOUT}"] for name in (PUBLISHED, OURS)}
    if f"{PUBLISHED}, {FROZEN_NORM}" in ways:
        ratios["ln_vision_of_published"] = ratio(seconds[PUBLISHED], seconds[f"{PUBLISHED}, {FROZEN_NORM}"])
    ratios |= {
        "dropout_of_published": ratio(with_dropout[PUBLISHED], seconds[PUBLISHED]),
        "as_trained_published_over_ours": ratio(with_dropout[PUBLISHED], with_dropout[OURS]),
        "operations_published_over_ours": operations[PUBLISHED] / operations[OURS],
    }
    floors = {
        name: [operations[name] * one / products[peak].operations for one in seconds[peak]]
        for name, way in ways.items()
        for peak in [PEAK_BF16 if way.bf16 else PEAK]
    }
    rungs = list(LADDER)
    return {
        "ratios": ratios,
        "shares": {name: ratio(seconds[before], seconds[name]) for before, name in pairwise(rungs)},
        "seconds": {name: [round(one, 4) for one in times] for name, times in seconds.items()},
        "clock": "processor" if processor_time else "wall",
        "peak_memory_bytes": {name: own or peak for name, (own, peak) in memory.items()},
        "operations": operations,
        "peak_gflops": {
            name: [round(product.operations / one / 1e9, 1) for one in seconds[name]]
            for name, product in products.items()
        },
        "floor_seconds": {name: round(median(times), 4) for name, times in floors.items()},
        "over_floor": {name: ratio(seconds[name], times) for name, times in floors.items()},
        **differences,
        "curve": _curve(backbone, batch_size, curve_steps, device, bf16=bf16),
        "machine": describe_machine(),
    }


def _ways(*, has_norm: bool, bf16: bool, compiled: bool) -> dict[str, Way]:
    """Return the ladder, and what its ends are in bf16, with ``ln_vision`` frozen and with dropout."""
    ways = dict(LADDER)
    if bf16:
        ways |= {f"{name} {BF16}": replace(LADDER[name], bf16=True) for name in (PUBLISHED, OURS)}
    if has_norm:
        ways[f"{PUBLISHED}, {FROZEN_NORM}"] = replace(LADDER[PUBLISHED], frozen_norm=True)
    ways |= {f"{name}, {DROPOUT}": replace(LADDER[name], dropout=True) for name in (PUBLISHED, OURS)}
    if compiled:
        last = f"{OURS} {BF16}" if bf16 else OURS
        ways[f"{last} {COMPILED}"] = replace(ways[last], compiled=True)
    return ways


def _compare(steps: dict[str, Step], batch: Batch) -> tuple[dict[str, Any], dict[str, int]]:
    """Return how far each way's loss and gradients are from the published way's, and each way's operations.

    Ways that train otherwise, with dropout or a frozen norm, are not compared.
    """
    loss, gradients, operations = steps[PUBLISHED].gradients(batch)
    counts, differences = {PUBLISHED: operations}, {}
    for name, step in steps.items():
        if name == PUBLISHED:
            continue
        own_loss, own, counts[name] = step.gradients(batch)
        if step.way.dropout or step.way.frozen_norm:
            continue
        largest = max((own[key] - gradient).abs().max().item() for key, gradient in gradients.items())
        differences[name] = {"loss": abs(own_loss - loss), "gradient": largest}
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    return {"largest_difference": differences, "largest_gradient": largest}, counts


def _curve(
    backbone: str, batch_size: int, num_steps: int, device: torch.device, *, bf16: bool
) -> dict[str, list[float]]:
    batches = [make_batch(backbone, batch_size, seed=number) for number in range(NUM_CURVE_BATCHES)]
    curves = {}
    for name, way in ({"fp32": LADDER[OURS]} | ({BF16: replace(LADDER[OURS], bf16=True)} if bf16 else {})).items():
        step = Step(make_model(backbone).to(device), way)
        curves[name] = [round(step(batches[number % NUM_CURVE_BATCHES]), 5) for number in range(num_steps)]
    return curves
