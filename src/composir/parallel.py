"""Several processes that train one model: what each computes, what they tell one another.

They are started by ``accelerate launch`` or ``torchrun``, and joined by Accelerate. In a process alone every function
here does nothing. Every process must call the same ones in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn

from composir.errors import ComposirError

Rows = TypeVar("Rows", Tensor, Sequence)
Value = TypeVar("Value")


def num_processes() -> int:
    """Return how many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def process_index() -> int:
    """Return which of them this is; 0 alone writes, prints and validates."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share(rows: Rows) -> Rows:
    """Return this process's part of what all have, in order; where there are too few, a row that ``gather`` drops."""
    start, end = _bounds(len(rows))[process_index()]
    return rows[start:end] if end > start else rows[:1]  # pyright: ignore[reportReturnType]


def gather(rows: Float[Tensor, "share ..."], total: int) -> Float[Tensor, "total ..."]:
    """Return what all processes have made of their ``share`` of ``total`` rows, in order.

    Gradients flow back to where the rows come from, summed over the processes. So where each process computes the
    same loss of the gathered rows, the mean of their gradients is that of one process with all rows.
    """
    if num_processes() == 1:
        return rows
    sizes = [end - start for start, end in _bounds(total)]
    own = rows[: sizes[process_index()]]
    padding = max(sizes) - len(own)
    padded = nn.functional.pad(own, (0, 0) * (rows.dim() - 1) + (0, padding))
    parts: Tensor = _Gather.apply(padded)  # pyright: ignore[reportAssignmentType]
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    """A tensor of every process, one behind the other; the gradient of each is the sum over the processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(num_processes())]
        distributed.all_gather(parts, own.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total[process_index()]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes."""
    if num_processes() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= num_processes()
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def from_first(value: Value) -> Value:
    """Return the value that process 0 gives."""
    if num_processes() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Make the tensors those of process 0."""
    if num_processes() > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def any_process(*flags: bool, device: torch.device) -> list[bool]:
    """Return for every flag whether it is true in one of the processes."""
    if num_processes() == 1:
        return list(flags)
    raised = torch.tensor(flags, dtype=torch.int32, device=device)
    distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
    return raised.bool().tolist()


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Wait at the end for all processes, and raise in each of them what one of them has raised."""
    if num_processes() == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    if not any_process(error is not None, device=device)[0]:
        return
    told: list[str | None] = [None] * num_processes()
    distributed.all_gather_object(told, None if error is None else str(error))
    if error is not None:
        raise error
    raise ComposirError(next(words for words in told if words is not None))


def is_loss_of_another(error: RuntimeError) -> bool:
    """Return whether an error says that another process does not answer any more."""
    return num_processes() > 1 and (isinstance(error, distributed.DistError) or "gloo" in str(error))


def _bounds(total: int) -> list[tuple[int, int]]:
    processes = num_processes()
    return [(total * index // processes, total * (index + 1) // processes) for index in range(processes)]
