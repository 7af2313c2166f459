"""What this machine has: its device, its memory, and how a figure of speed names it."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any

import torch


def default_device() -> torch.device:
    """Return the GPU where there is one, else the CPU: what computes unless another device was asked for."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def describe_machine() -> dict[str, Any]:
    """Return what a figure's machine is: processor, cores, memory, GPU, system and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


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
