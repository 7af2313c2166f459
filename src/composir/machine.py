"""What this machine has: its device, its memory, and how a figure of speed names it."""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composir.errors import ComposirError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3) by their numbers in glibc's malloc.h."""
KEPT_BYTES = 2**30
"""Of freed memory that malloc may keep, and the smallest block that it maps by itself."""
MOST_MAPPED = 2**25
"""The largest value of the latter that glibc takes before 2.35."""


def keep_freed_memory() -> None:
    """Let glibc's malloc keep freed memory for what is asked for next; elsewhere nothing happens.

    By itself it maps every block above 32 MiB and unmaps it when it is freed, so that in each layer of a network the
    kernel hands out and clears the pages of the activations anew. Nothing that is computed changes. Where the
    environment says how malloc works (``MALLOC_...``, or ``glibc.malloc`` in ``GLIBC_TUNABLES``), that stands.
    """
    is_set = any(name.startswith("MALLOC_") for name in os.environ)
    if is_set or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    if not mallopt(M_MMAP_THRESHOLD, KEPT_BYTES):
        mallopt(M_MMAP_THRESHOLD, MOST_MAPPED)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def default_device() -> torch.device:
    """Return the GPU where there is one (CUDA, else Apple's), else the CPU: what computes unless told otherwise."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def usable_device(device: str | None) -> str:
    """Return the device that was asked for, without one ``default_device()``, as text.

    Raises ``ComposirError`` for a device that torch does not have here.
    """
    if device is None:
        return str(default_device())
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:  # each is what torch raises for one of its devices
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        there += ["mps"] * torch.backends.mps.is_available()
        raise ComposirError(
            f"--device {device!r} is none that torch can use here",
            expected=" or ".join(there),
            fix="leave out --device",
        ) from error
    return device


def has_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 itself, as Nvidia's GPUs do from Ampere on; emulated it is slow.

    False on Apple silicon, of which the first two generations emulate it and which torch does not tell apart.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on a device, without waiting for what a CUDA device still has to do.

    CUDA has read memory that is not pinned before it returns. A copy to MPS that is not waited for may read memory that
    was given back meanwhile, and be wrong (pytorch/pytorch issues 139550 and 189690).
    """
    return tensor.to(device, non_blocking=device.type == "cuda")


def empty_for_copies(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a tensor on the CPU for copies to a device or from it: on CUDA pinned, so that nobody waits for them."""
    return torch.empty(*shape, dtype=dtype, pin_memory=device.type == "cuda")


def describe_machine() -> dict[str, Any]:
    """Return what a figure's machine is: processor, cores, memory, GPU, system and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": _gpu(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _gpu() -> str | None:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "MPS" if torch.backends.mps.is_available() else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def available_memory() -> int | None:
    """Return how many bytes this process may still take without swapping; None where the system does not say.

    A limit of the control group (version 2), as containers and batch systems set it, counts.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current"))
    except (OSError, ValueError):  # no such limit: "max" is no number
        return available
    return min(available, max(limit - used, 0))


def peak_memory() -> int:
    """Return the largest resident size of this process in bytes."""
    try:  # getrusage also counts what the process was forked from
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
