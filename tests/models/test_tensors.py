from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from composir.models import lite0
from composir.models.photos import classifier, minilm
from composir.models.weights.start import not_finite
from composir.models.weights.tensors import LazyTensors, Undrawn, write_safetensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_the_library_reads_what_is_written(tmp_path, dtype):
    weights = {
        "matrix": torch.arange(12).reshape(3, 4).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "transposed": torch.arange(6).reshape(2, 3).to(dtype).T,
        "empty": torch.zeros(0, 3, dtype=dtype),
    }
    file = tmp_path / "weights.safetensors"
    write_safetensors(weights, file, {"name": "tower"})
    again = load_file(file)
    assert set(again) == set(weights)
    assert all(torch.equal(again[name], tensor) and again[name].dtype == dtype for name, tensor in weights.items())
    with safe_open(file, "pt") as content:
        assert content.metadata() == {"format": "pt", "name": "tower"}


def test_one_tensor_is_read_at_a_time(tmp_path):
    alive, most = 0, 0

    class Counted(torch.Tensor):
        def __del__(self):
            nonlocal alive
            alive -= 1

    def read():
        nonlocal alive, most
        alive += 1
        most = max(most, alive)
        return torch.zeros(4).as_subclass(Counted)

    write_safetensors(LazyTensors(dict.fromkeys("abcdef", read)), tmp_path / "w.safetensors", {})
    assert most <= 3  # the one before, the one at hand, and its contiguous form
    assert set(load_file(tmp_path / "w.safetensors")) == set("abcdef")


class Part(nn.Module):
    """A module of another package, with a buffer that no file holds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(2)
        self.table = nn.Parameter(torch.empty(4, 2))
        self.register_buffer("places", torch.arange(4), persistent=False)
        nn.init.trunc_normal_(self.table)  # draws until all numbers are in bounds


def test_undrawn_weights_are_zeros_and_all_else_is_as_ever():
    before = torch.get_rng_state()
    with Undrawn():
        part = Part()
    assert torch.equal(torch.get_rng_state(), before)
    assert {name for name, tensor in part.named_parameters() if not tensor.any()} == {
        "linear.weight", "linear.bias", "table", "norm.bias"
    }  # fmt: skip
    assert part.norm.weight.tolist() == [1, 1]
    assert part.places.tolist() == [0, 1, 2, 3]
    assert all(parameter.requires_grad for parameter in part.parameters())
    assert Part().linear.weight.all()


@pytest.mark.parametrize(("module", "make"), [(lite0, lite0.Lite0Embedder), (classifier, classifier.Classifier)])
def test_a_built_in_network_is_the_same_whatever_stood_in_the_place_of_its_weights(module, make, monkeypatch):
    before = torch.get_rng_state()
    undrawn = make()
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(module, "Undrawn", nullcontext)
    drawn = make()
    assert not torch.equal(torch.get_rng_state(), before)
    states = [(getattr(one, "_network", one)).state_dict() for one in (undrawn, drawn)]
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_the_reader_of_sentences_is_the_same_too(monkeypatch):
    undrawn = minilm._load.__wrapped__()[1]
    monkeypatch.setattr(minilm, "Undrawn", nullcontext)
    drawn = minilm._load.__wrapped__()[1]
    for kind in ("named_parameters", "named_buffers"):
        pairs = zip(getattr(undrawn, kind)(), getattr(drawn, kind)(), strict=True)
        assert all(one == other and torch.equal(left, right) for (one, left), (other, right) in pairs)


def test_weights_that_are_not_finite_are_named():
    weights = {
        "whole": torch.tensor([1, 2]),
        "none": torch.empty(0, 3),
        "fine": torch.tensor([-3.0e38, 3.0e38]),
        "half": torch.tensor([1.0, float("nan")], dtype=torch.bfloat16),
        "nan": torch.tensor([[1.0, 2.0], [float("nan"), 3.0]]),
        "high": torch.tensor([1.0, float("inf")]),
        "low": torch.tensor([float("-inf"), 1.0]),
    }
    assert not_finite(weights) == ["half", "nan", "high", "low"]
