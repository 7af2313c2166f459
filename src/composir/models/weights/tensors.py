"""Weights that are read one at a time, and the file they are written to one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

HEADER_ALIGNMENT = 8
_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DRAWN = ("normal_", "uniform_", "xavier_normal_", "xavier_uniform_", "kaiming_normal_", "kaiming_uniform_")
"""Functions of tensors and of ``torch.nn.init`` that fill with random numbers."""


class Undrawn(TorchFunctionMode):
    """Modules made in this context have zeros for weights drawn at random: those of a file come in their place.

    No random number is used up. All else is as it is without: constants, and buffers that are in no file, which torch's
    ``meta`` device would leave undefined in the fusions and heads of other packages.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what ``func`` does, zeros where it would draw."""
        if getattr(func, "__name__", "") not in _DRAWN:
            return func(*args, **(kwargs or {}))
        with torch.no_grad():
            return (args[0] if args else kwargs["tensor"]).zero_()


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each made anew whenever it is asked for: all of them need no more memory than one."""

    def __init__(self, read_by_name: Mapping[str, Callable[[], Tensor]]) -> None:
        self._read_by_name = read_by_name

    def __getitem__(self, name: str) -> Tensor:
        return self._read_by_name[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._read_by_name)

    def __len__(self) -> int:
        return len(self._read_by_name)


def write_safetensors(weights: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file with one tensor in memory at a time.

    The format: 8 bytes with the header's length, a JSON header, then the tensors' bytes. The library's own writer
    wants all tensors at once.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, tensor in weights.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little"))
        out.write(text)
        for name in weights:
            tensor = weights[name].detach().cpu().contiguous()
            out.write(tensor.flatten().view(torch.uint8).numpy().data)
