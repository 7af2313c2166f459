"""Numbers of a step, which a GPU knows later than the program that asked for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from composir.machine import empty_for_copies

Tell = Callable[[list[float]], None]


@dataclass(frozen=True, slots=True)
class _Waiting:
    there: torch.cuda.Event
    values: Float[Tensor, " numbers"]
    tell: Tell


class Numbers:
    """Tells what a step computed; on CUDA while the next step is under way, so that the GPU never waits for it.

    A number that is asked for at once stops the program until the GPU has done all its work, and the GPU then stands
    still until it is given more. Here it is copied when it is there, and told when the next one is handed in.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._waiting: _Waiting | None = None

    def tell(self, numbers: Float[Tensor, " numbers"], tell: Tell) -> None:
        """Have ``tell`` called with the numbers: at once, or on CUDA by the next ``tell`` or ``flush``."""
        if self.device.type != "cuda":
            tell(numbers.tolist())
            return
        values = empty_for_copies(len(numbers), dtype=numbers.dtype, device=self.device)
        values.copy_(numbers, non_blocking=True)
        there = torch.cuda.Event()
        there.record()
        self.flush()
        self._waiting = _Waiting(there, values, tell)

    def flush(self) -> None:
        """Have all that is still waiting told."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.there.synchronize()
            waiting.tell(waiting.values.tolist())
