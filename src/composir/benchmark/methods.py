"""What each fusion, loss and way to find negatives costs a training step on cached tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from composir.benchmark.steps import (
    LADDER,
    OURS,
    Batch,
    Step,
    in_turns,
    make_batch,
    make_model,
    ratio,
)
from composir.losses import hard_negative_loss
from composir.machine import default_device, describe_machine
from composir.models.fusion import FUSIONS, GATE, NONE
from composir.progress import Progress

LOCAL, HARD, SUBSET, MINED = "local alignment", "hn-nce", "subset negatives", "mined negatives"
BETA = 0.5
"""Of hn-nce; what it is costs nothing."""
TOGETHER = (f"{GATE}+attention", f"{GATE}+late")


def benchmark_methods(
    *,
    backbone: str = "mini",
    batch_size: int = 32,
    repeats: int = 5,
    processor_time: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return what each method of docs/methods.md costs, as ``composir benchmark methods`` prints it.

    In ``ratios`` the seconds of a step with the method over those of SPRC's step, all taken in turns: each fusion;
    local alignment and HN-NCE; one look-alike a triplet (``subset negatives``: as many candidates again); and what
    mining after every epoch adds, the forward passes over every query and every target once an epoch, its ranking
    left out (``mined negatives``, beside the step with look-alikes).
    """
    device = default_device()
    batch = make_batch(backbone, batch_size)
    doubled = Batch(
        batch.reference,
        torch.cat([batch.target, make_batch(backbone, batch_size, seed=1).target]),
        batch.input_ids,
        batch.attention_mask,
    )
    plain = make_model(backbone).to(device)
    step = Step(plain, LADDER[OURS])
    takes: dict[str, Callable[[], object]] = {NONE: partial(step, batch)}
    for fusion in (*FUSIONS, *TOGETHER):
        takes[fusion] = partial(Step(make_model(backbone, fusion=fusion).to(device), LADDER[OURS]), batch)
    takes[LOCAL] = partial(Step(plain, LADDER[OURS], step.optimizer, local=True), batch)
    takes[HARD] = partial(
        Step(plain, LADDER[OURS], step.optimizer, contrast=partial(hard_negative_loss, beta=BETA)), batch
    )
    takes[SUBSET] = partial(step, doubled)

    def mined() -> None:
        step(doubled)
        with torch.no_grad():
            reference, target, input_ids, mask = (tensor.to(device) for tensor in batch.inputs(padded=False))
            plain.encode_query(reference, input_ids, mask)
            plain.encode_target(target)

    takes[MINED] = mined
    seconds = in_turns(takes, device, repeats=repeats, processor_time=processor_time, progress=progress)
    beside = {name: seconds[SUBSET if name == MINED else NONE] for name in takes if name != NONE}
    return {
        "ratios": {name: ratio(seconds[name], other) for name, other in beside.items()},
        "seconds": {name: [round(one, 4) for one in times] for name, times in seconds.items()},
        "clock": "processor" if processor_time else "wall",
        "machine": describe_machine(),
    }
