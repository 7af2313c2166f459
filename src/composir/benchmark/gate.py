"""What gated fusion costs a training step on cached tokens, beside what its products alone must cost."""

from __future__ import annotations

from functools import partial
from typing import Any

from composir.benchmark.processes import in_fresh_process
from composir.benchmark.steps import (
    LADDER,
    OURS,
    PUBLISHED,
    REAL,
    Step,
    gpu_memory_of_steps,
    in_turns,
    make_batch,
    make_model,
    ratio,
)
from composir.machine import default_device, describe_machine
from composir.models.fusion import GATE, NONE
from composir.progress import Progress

PLAIN, GATED = "plain", "gated"
FUSIONS_MEASURED = {PLAIN: NONE, GATED: GATE}


def benchmark_gate(
    *,
    backbone: str = REAL,
    token_width: int | None = None,
    batch_size: int = 8,
    repeats: int = 3,
    processor_time: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Return what the gate costs a step whose tokens are cached, as ``composir benchmark gate`` prints it.

    In ``ratios``:

    - ``gated_over_plain``: seconds of a step with the gate over those without, 1.04 being four per cent more;
    - ``bound``: the same of the operations of all matrix products, which no implementation of this model goes below;
      the gate's own are five products of tokens by width by width a sample, the rest is the gradient of the tokens;
    - ``gate_over_published_step`` and its ``_bound``: what the gate adds over the plain step the published way.

    ``token_width`` replaces the 1,408 of BLIP-2's image tokens.
    """
    device = default_device()
    batch = make_batch(backbone, batch_size, token_width=token_width)
    models = {
        name: make_model(backbone, fusion=fusion, token_width=token_width).to(device)
        for name, fusion in FUSIONS_MEASURED.items()
    }
    steps = {name: Step(model, LADDER[OURS]) for name, model in models.items()}
    steps[PUBLISHED] = Step(models[PLAIN], LADDER[PUBLISHED])
    operations = {name: step.gradients(batch)[2] for name, step in steps.items()}
    seconds = in_turns(
        {name: partial(step, batch) for name, step in steps.items()},
        device,
        repeats=repeats,
        processor_time=processor_time,
        progress=progress,
    )
    del models, steps
    memory = {
        name: in_fresh_process(gpu_memory_of_steps, backbone, batch_size, LADDER[OURS], fusion, token_width)
        for name, fusion in FUSIONS_MEASURED.items()
    }
    added = [gated - plain for gated, plain in zip(seconds[GATED], seconds[PLAIN], strict=True)]
    return {
        "ratios": {
            "gated_over_plain": ratio(seconds[GATED], seconds[PLAIN]),
            "bound": operations[GATED] / operations[PLAIN],
            "gate_over_published_step": ratio(added, seconds[PUBLISHED]),
            "gate_over_published_step_bound": (operations[GATED] - operations[PLAIN]) / operations[PUBLISHED],
        },
        "seconds": {name: [round(one, 4) for one in times] for name, times in seconds.items()},
        "clock": "processor" if processor_time else "wall",
        "peak_memory_bytes": {name: own or peak for name, (own, peak) in memory.items()},
        "operations": operations,
        "machine": describe_machine(),
    }
