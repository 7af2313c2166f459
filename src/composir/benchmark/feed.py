"""How long a device waits for its batches: read between the steps, and read ahead by a thread."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from composir.benchmark.features import REAL_TOKENS, fill_store, forget, real_tower
from composir.benchmark.processes import alone
from composir.benchmark.steps import REAL, make_model, make_optimizer
from composir.data import Query, Split
from composir.losses import total_loss
from composir.machine import default_device, describe_machine
from composir.models.backbones import build
from composir.models.fusion import GATE
from composir.token_cache import TokenCache
from composir.token_store import DATA, TokenStore
from composir.training.batches import Batches, Inputs
from composir.training.recipe import Recipe

INLINE, AHEAD = "inline", "ahead"


def benchmark_feed(
    *,
    num_images: int = 4096,
    batch_size: int = 128,
    num_steps: int = 20,
    step_seconds: float = 0.6,
    cold: bool = True,
    repeats: int = 1,
    directory: Path | None = None,
) -> dict[str, Any]:
    """Return which share of its time a device waits for batches, as ``composir benchmark feed`` prints it.

    Batches of BLIP-2's tokens (257 x 1408 in fp16, twice ``batch_size`` images a step) are read from a made-up token
    cache of ``num_images``, with ``cold`` after the system was told to forget the file. On a GPU a step is a real one,
    in bf16 with the gate; elsewhere a stand-in, which only takes ``step_seconds``. ``idle_share`` is the part of the
    time beyond that of the steps themselves: ``inline``, each batch read when the step before it is done, and
    ``ahead``, as training reads them.
    """
    device = default_device()
    step = _real_step(device) if device.type == "cuda" else None
    with tempfile.TemporaryDirectory(prefix="composir-benchmark-", dir=directory) as name:
        folder = Path(name)
        alone(fill_store, folder, REAL_TOKENS, num_images)
        batches = _batches(folder, device, num_images, batch_size, num_steps)
        seconds: dict[str, list[float]] = {INLINE: [], AHEAD: [], "steps": []}
        for number in range(repeats):
            for way, read in ((INLINE, _read_inline), (AHEAD, _read_ahead)):
                if cold:
                    forget(folder / DATA)
                seconds[way].append(_time(read(batches, number), step, step_seconds, device))
            resident = next(_read_inline(batches, number)).to(device)
            seconds["steps"].append(_time(iter([resident] * num_steps), step, step_seconds, device))
    steps = median(seconds["steps"])
    return {
        "ratios": {f"idle_share_{way}": 1 - steps / median(seconds[way]) for way in (INLINE, AHEAD)},
        "seconds": {way: [round(one, 4) for one in times] for way, times in seconds.items()},
        "steps": num_steps,
        "bytes_a_step": 2 * batch_size * REAL_TOKENS[0] * REAL_TOKENS[1] * 2,
        "step": f"a stand-in of {step_seconds} s" if step is None else "bf16, with the gate",
        "machine": describe_machine(),
    }


def _batches(folder: Path, device: torch.device, num_images: int, batch_size: int, num_steps: int) -> Batches:
    """Return the batches of made-up triplets, whose images are the rows of the token cache."""
    pictures = [Path(f"{number}.png") for number in range(num_images)]
    chance = np.random.default_rng(0)
    pairs = chance.integers(0, num_images, (num_steps * batch_size, 2))
    queries = [
        Query(str(number), str(reference), "make it red", ("make it red",), targets=(str(target),))
        for number, (reference, target) in enumerate(pairs)
    ]
    split = Split(
        "made up", "train", "", tuple(queries), (), {picture.stem: picture for picture in pictures}, "", False, ""
    )
    with closing(TokenStore(folder, REAL_TOKENS)) as store:
        rows = store.map()
    tokens = TokenCache(real_tower(num_blocks=0).to(device))
    tokens.take({picture: (rows, number) for number, picture in enumerate(pictures)})
    return Batches(Recipe(batch_size=batch_size), [split], build("tiny").to(device), tokens)


def _read_inline(batches: Batches, epoch: int) -> Iterator[Inputs]:
    order = np.random.default_rng([0, epoch]).permutation(len(batches.triplets))
    for start in range(0, len(order), batches.size):
        batch = [batches.triplets[index] for index in order[start : start + batches.size]]
        yield batches.inputs(batch, np.random.default_rng(0))


def _read_ahead(batches: Batches, epoch: int) -> Iterator[Inputs]:
    return (inputs for _, inputs in batches.of_epoch(epoch, 0))


def _real_step(device: torch.device) -> Callable[[Inputs], object]:
    model = make_model(REAL, fusion=GATE).to(device)
    optimizer = make_optimizer(model, per_tensor=False)

    def step(inputs: Inputs) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            losses = model.training_losses(*inputs[:4])
            total = total_loss(losses, Recipe().loss_weights)
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _time(
    inputs: Iterator[Inputs], step: Callable[[Inputs], object] | None, seconds: float, device: torch.device
) -> float:
    """Return the seconds of a step with each of the inputs, until the device is done; the first is not counted."""
    start = 0.0
    for number, one in enumerate(inputs):
        there = one.to(device)
        if step is None:
            time.sleep(seconds)
        else:
            step(there)
        if number == 0:
            start = _done(device)
    return _done(device) - start


def _done(device: torch.device) -> float:
    torch.get_device_module(device).synchronize()
    return time.perf_counter()
