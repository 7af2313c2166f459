"""Numbers of a step: at once on a CPU, and on CUDA, of which events and copies stand in here, one step later."""

from __future__ import annotations

import pytest
import torch

from composir.training import numbers
from composir.training.numbers import Numbers


def test_a_cpu_tells_at_once():
    told = []
    Numbers(torch.device("cpu")).tell(torch.tensor([1.0, 2.0]), told.append)
    assert told == [[1.0, 2.0]]


@pytest.fixture
def cuda(monkeypatch):
    """Return Numbers as on CUDA; what waits for the device is written down."""
    waited = []

    class Event:
        def record(self):
            pass

        def synchronize(self):
            waited.append(self)

    monkeypatch.setattr(numbers.torch.cuda, "Event", Event)
    monkeypatch.setattr(numbers, "empty_for_copies", lambda *shape, **_: torch.empty(*shape))
    return Numbers(torch.device("cuda")), waited


def test_cuda_tells_a_step_when_the_next_is_under_way(cuda):
    later, waited = cuda
    told = []
    later.tell(torch.tensor([1.0]), told.append)
    assert (told, waited) == ([], [])
    later.tell(torch.tensor([2.0]), told.append)
    assert (told, len(waited)) == ([[1.0]], 1)
    later.flush()
    later.flush()
    assert (told, len(waited)) == ([[1.0], [2.0]], 2)


def test_what_is_told_with_an_error_is_told_once(cuda):
    later, _ = cuda

    def fail(_):
        raise ValueError

    later.tell(torch.tensor([1.0]), fail)
    with pytest.raises(ValueError):
        later.flush()
    later.flush()
