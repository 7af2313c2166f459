"""Random weights that leave the caller's random numbers as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

import torch

_LOCK = RLock()
"""torch's generator is one for all threads: a model that another thread opens meanwhile would take numbers of it."""


@contextmanager
def random_numbers_aside(seed: int | None = None) -> Iterator[None]:
    """Have random numbers from ``seed`` (unless given, from where they are) inside, and outside as if none was drawn.

    One thread at a time.
    """
    with _LOCK, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
