from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from composir.models.weights.tensors import LazyTensors, write_safetensors


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
