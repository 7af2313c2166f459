"""Each part of a benchmark in a process of its own, so that its memory is its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from composir.machine import peak_memory

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Measured:
    """One repetition of one part."""

    seconds: float
    peak_memory_bytes: int
    """The largest resident size of the process that did nothing else, the interpreter and its inputs included."""


def alone(work: Callable[..., float], *arguments: Any) -> Measured:
    """Return what ``work``, which gives its seconds, takes in a fresh process."""
    return Measured(*in_fresh_process(work, *arguments))


def in_fresh_process(work: Callable[..., Answer], *arguments: Any) -> tuple[Answer, int]:
    """Return what ``work`` returns in a process that does nothing else, and that process's peak memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, work, *arguments).result()


def _with_peak(work: Callable[..., Answer], *arguments: Any) -> tuple[Answer, int]:
    return work(*arguments), peak_memory()
