"""What stands around a training: its device and processes, one line for what a machine does to it, interrupts."""

from __future__ import annotations

import datetime
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env
from safetensors import SafetensorError

from composir import parallel
from composir.errors import ComposirError
from composir.machine import default_device, has_bf16
from composir.training.recipe import Recipe

NO_LOCKS_FIX = "give --output-dir a folder on a local disk; to go on with a run, copy its folder there"
PATIENCE = datetime.timedelta(days=1)
"""How long processes wait for another one, such as for validation; the launcher ends them when one of them dies."""
COMPILERS = ("torch._dynamo", "torch._inductor")
"""Where the errors of ``torch.compile`` are defined."""
PARALLEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Return what knows device, precision and processes; a kind of launch that is not served is an error."""
    precision = recipe.mixed_precision
    if precision == "auto":
        on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")  # as accelerate launch --cpu sets it
        precision = automatic_precision(torch.device("cpu") if on_cpu else default_device())
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[waiting])
    if accelerator.distributed_type not in PARALLEL:
        raise ComposirError(
            f"started for {accelerator.distributed_type.value}",
            expected="plain data parallel processes: every one has the whole model",
            fix="accelerate launch --multi_gpu (or --cpu), or torchrun",
        )
    return accelerator


def automatic_precision(device: torch.device) -> str:
    """Return what ``auto`` is on a device: bf16 where a GPU computes in it, else fp16; ``no`` on a CPU and on MPS."""
    if device.type != "cuda":
        return "no"
    return "bf16" if has_bf16(device) else "fp16"


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
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
def one_line_for(place: Path) -> Iterator[None]:
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
        if type(error).__module__.startswith(COMPILERS):
            raise ComposirError(
                f"the losses cannot be compiled here ({str(error).strip().splitlines()[0]})",
                file=place,
                fix="leave --compile out; on a CPU it needs a C++ compiler",
            ) from error
        if not parallel.is_loss_of_another(error):
            raise
        raise ComposirError(
            "another process of this training was stopped",
            file=place,
            fix="see what it printed; composir train --resume RUN, launched in the same way, goes on",
        ) from error


def require_writable(folder: Path) -> None:
    """Raise ``ComposirError`` where a run folder could not be made in the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ComposirError(
            f"cannot be written to ({error.strerror})", file=folder, fix="give another folder with --output-dir"
        ) from None


def in_use(run: Path) -> ComposirError:
    """Return what is raised where another process trains this run."""
    return ComposirError(
        "another process is training this run", file=run, fix="let it end, or stop it; then run the command again"
    )


@contextmanager
def interrupts() -> Iterator[threading.Event]:
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
