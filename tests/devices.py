"""Stand-ins for a GPU: tensors that say they lie on ``cuda`` or ``mps``, hold numbers on the CPU, and behave.

A process with a CPU build of torch can so run what a machine with a GPU runs, with real numbers, and is told of what a
real GPU would refuse or wait for:

- a tensor of the CPU that meets one of the GPU raises ``RuntimeError``, as does ``.numpy()`` of one on the GPU;
- every wait of the CPU for the GPU (``.item()``, ``.cpu()``, ``nonzero``, an index by a mask, ...) is noted with the
  line of composir that asked for it, see ``Device.syncs``;
- autocast changes types as the documented tables of torch say for CUDA;
- ``mps`` refuses float64, and operators for which torch's own table (``native_functions.yaml``) has no kernel there.

What it cannot tell: whether kernels of a real device are right, how fast they are, and what they round.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchgen
import yaml
from accelerate.state import AcceleratorState, PartialState
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_SOURCE = str(Path(next(iter(find_spec("composir").submodule_search_locations))))  # type: ignore[union-attr,arg-type]
_aten = torch.ops.aten


def _is_asking(file: str) -> bool:
    return file.startswith(_SOURCE) and not file.endswith("/composir/machine.py")


@dataclass(frozen=True)
class Sync:
    """A wait of the CPU for the GPU."""

    operation: str
    place: str
    """``file:function`` of composir that asked for it."""


class OnGpu(Tensor):
    """A tensor of a stand-in's; ``on_cpu`` holds its numbers."""

    on_cpu: Tensor
    owner: Device

    @staticmethod
    def __new__(cls, on_cpu: Tensor, owner: Device) -> OnGpu:
        tensor = Tensor._make_subclass(cls, on_cpu)
        tensor.on_cpu, tensor.owner = on_cpu, owner
        return tensor

    @property
    def device(self) -> torch.device:
        return self.owner.name

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def __repr__(self, **_: Any) -> str:
        return f"{self.on_cpu!r} on {self.device}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.on_cpu.__reduce_ex__(protocol)  # as what torch.load(map_location="cpu") gives

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copy = OnGpu(self.on_cpu.clone(), self.owner)
        return torch.nn.Parameter(copy, self.requires_grad) if isinstance(self, torch.nn.Parameter) else copy

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        owner = next(one.owner for one in _leaves((args, kwargs)) if isinstance(one, OnGpu))
        name = getattr(func, "__name__", "")
        if name in {"numpy", "__array__"}:
            raise TypeError(f"can't convert {owner.name} device type tensor to numpy. Use Tensor.cpu() first")
        if name == "tolist":
            owner.note(name)
            return args[0].on_cpu.tolist()
        if name in {"to", "cpu"} and isinstance(args[0], OnGpu):
            return _move(owner, name, *args, **kwargs)
        if name == "backward":  # not below: it may compute layers again (checkpointing), whose functions come here
            loss, ones = args[0], torch.ones_like(args[0])
            run = torch.autograd.graph._engine_run_backward
            return run((loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True)
        if torch.is_autocast_enabled(owner.name.type):
            args, kwargs = _autocast(name, args, kwargs, torch.get_autocast_dtype(owner.name.type))
        owner.running.append(name)
        try:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        finally:
            owner.running.pop()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        owner = next(one.owner for one in _leaves((args, kwargs)) if isinstance(one, OnGpu))
        return owner.run(func, args, kwargs or {})


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what is in lists, tuples and dicts; torch's own for that takes three times as long."""
    if isinstance(value, (list, tuple)):
        for one in value:
            yield from _leaves(one)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """Return the same lists, tuples and dicts of what ``change`` makes of what is in them."""
    if isinstance(value, dict):
        return {key: _map(change, one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_map(change, one) for one in value])
    return change(value)


def _move(owner: Device, name: str, tensor: OnGpu, *args: Any, **kwargs: Any) -> Tensor:
    """Do ``tensor.to(...)`` or ``tensor.cpu()``, which torch's own would do for a tensor of the CPU."""
    where, copy = ("cpu", *args) if name == "cpu" else args, kwargs.pop("copy", False)
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*where, **kwargs)
    dtype = dtype or tensor.dtype
    with torch._C.DisableTorchFunctionSubclass():
        if device is None or device.type == owner.name.type:
            return tensor if dtype == tensor.dtype and not copy else torch.ops.aten._to_copy(tensor, dtype=dtype)
        owner.running.append("to the CPU")
        try:
            return torch.ops.aten._to_copy(tensor, dtype=dtype, device=device, non_blocking=non_blocking)
        finally:
            owner.running.pop()


_HALF = {"linear", "matmul", "__matmul__", "bmm", "mm", "addmm", "baddbmm", "einsum", "conv1d", "conv2d",
         "scaled_dot_product_attention", "multi_head_attention_forward"}  # fmt: skip
_FULL = {"softmax", "log_softmax", "logsumexp", "layer_norm", "group_norm", "norm", "vector_norm", "normalize",
         "cosine_similarity", "cross_entropy", "nll_loss", "mse_loss", "kl_div", "exp", "log", "log2", "pow", "__pow__",
         "rsqrt", "reciprocal", "sum", "prod", "cumsum", "cdist"}  # fmt: skip
_WIDEST = {"addcmul", "addcdiv", "cat", "stack", "bilinear", "cross", "dot", "index_put", "scatter_add", "tensordot"}
"""What autocast does to arguments by the function's name: the tables of torch's documentation for CUDA."""


def _autocast(name: str, args: Any, kwargs: Any, dtype: torch.dtype) -> tuple[Any, Any]:
    def cast(to: torch.dtype) -> tuple[Any, Any]:
        def one(value: Any) -> Any:
            return value.to(to) if isinstance(value, OnGpu) and value.is_floating_point() else value

        return _map(one, (args, kwargs))

    if name in _HALF:
        return cast(dtype)
    if name in _FULL:
        return cast(torch.float32)
    if name in _WIDEST:
        types = {one.dtype for one in _leaves((args, kwargs)) if isinstance(one, OnGpu)}
        return cast(torch.float32) if torch.float32 in types else (args, kwargs)
    return args, kwargs


class _WithIndex(TorchFunctionMode):
    """Says ``cuda:0`` where ``cuda`` was asked for: torch asks the driver which one that is."""

    def __init__(self, name: torch.device) -> None:
        super().__init__()
        self.name = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        def one(value: Any) -> Any:
            is_named = isinstance(value, torch.device) and value.type == self.name.type
            return self.name if is_named or value == self.name.type else value

        given = {key: one(value) if key == "device" else value for key, value in (kwargs or {}).items()}
        return func(*(one(value) if isinstance(value, (str, torch.device)) else value for value in args), **given)


class Device(TorchDispatchMode):
    """A stand-in for ``cuda`` or ``mps``; inside ``with`` torch makes tensors on it."""

    # torch starts no device where a mode of this kind is on.
    _mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.name = torch.device(kind, 0)
        self.syncs: list[Sync] = []
        self.running: list[str] = []
        """The functions with a tensor of this device that are running: what they make lies there, too."""

    def __enter__(self) -> Device:
        _WithIndex(self.name).__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.overrides._pop_mode()

    @contextmanager
    def watched(self) -> Iterator[list[Sync]]:
        """Yield the waits that happen inside ``with``."""
        before, self.syncs = self.syncs, []
        try:
            yield self.syncs
        finally:
            self.syncs = before

    def note(self, operation: str) -> None:
        """Note a wait, with the innermost function of composir that runs."""
        frame = sys._getframe(1)
        while frame is not None and not _is_asking(frame.f_code.co_filename):
            frame = frame.f_back
        code = None if frame is None else frame.f_code
        place = "" if code is None else f"{Path(code.co_filename).relative_to(_SOURCE)}:{code.co_name}"
        self.syncs.append(Sync(operation, place))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Return what an operator gives, computed on the CPU, and lying where the device would leave it."""
        if torch.is_inference_mode_enabled() and func._can_decompose():  # there torch leaves that to the mode
            TorchDispatchMode.__enter__(self)
            try:
                return func.decompose(*args, **kwargs)
            finally:
                TorchDispatchMode.__exit__(self, None, None, None)
        tensors = [one for one in _leaves((args, kwargs)) if isinstance(one, Tensor)]
        here = [one for one in tensors if isinstance(one, OnGpu)]
        asked = kwargs.get("device")
        asked = None if asked is None else torch.device(asked)
        is_copy = func in {_aten._to_copy.default, _aten.copy_.default}
        # What is written in C++ makes tensors where it takes its tensors to lie: on the CPU.
        is_inside = bool(self.running) or torch._C._current_graph_task_id() != -1
        if not here and (asked is None or asked.type == "cpu") and (tensors or not is_inside):
            return func(*args, **kwargs)
        if here and not is_copy:
            self._refuse_mixed(func, args, tensors)
        is_move = bool(self.running) and self.running[-1] == "to the CPU"
        goes_to_cpu = is_move or (func is _aten.copy_.default and not isinstance(args[0], OnGpu))
        given = args[1] if func is _aten.copy_.default else args[0] if func is _aten._to_copy.default else None
        is_upload = isinstance(given, Tensor) and not isinstance(given, OnGpu)
        non_blocking = bool(kwargs.get("non_blocking")) or (func is _aten.copy_.default and args[2:] == (True,))
        if is_upload and not non_blocking:
            self.note("upload")
        if is_upload and self.name.type == "mps":
            _refuse_upload_to_mps(given, non_blocking=non_blocking)
        if not (goes_to_cpu and non_blocking):
            self._note_sync(func, args, goes_to_cpu=goes_to_cpu)
        wrappers = {id(one.on_cpu): one for one in here}
        plain_args, plain = _map(lambda one: one.on_cpu if isinstance(one, OnGpu) else one, (args, kwargs))
        if asked is not None:
            plain["device"] = torch.device("cpu")
        plain.pop("pin_memory", None)
        result = func(*plain_args, **plain)
        if func is _aten.copy_.default:
            return args[0]
        if goes_to_cpu:
            return result.clone() if any(result is one.on_cpu for one in here) else result
        leaves = [one for one in _leaves(result) if isinstance(one, Tensor)]
        if self.name.type == "mps":
            _refuse_on_mps(func, kwargs, leaves)

        def lay(one: Any) -> Any:
            if not isinstance(one, Tensor):
                return one
            return wrappers[id(one)] if id(one) in wrappers else OnGpu(one, self)

        return _map(lay, result)

    def _refuse_mixed(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        strangers = [one for one in tensors if not isinstance(one, OnGpu)]
        if func in {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}:
            indices = [one for one in args[1] if one is not None]  # may lie on the CPU, and are then copied
            strangers = [one for one in strangers if not any(one is index for index in indices)]
        if any(one.dim() for one in strangers):  # numbers may come from anywhere
            raise RuntimeError(f"{func}: Expected all tensors to be on the same device, {self.name} and cpu")

    def _note_sync(self, func: Any, args: Any, *, goes_to_cpu: bool) -> None:
        if goes_to_cpu:
            self.note("cpu")
        elif func is _aten._local_scalar_dense.default:
            self.note("item")
        elif func in {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}:
            masks = [one for one in args[1] if one is not None and one.dtype in {torch.bool, torch.uint8}]
            fills = func is not _aten.index.Tensor and args[2].numel() == 1  # is masked_fill_ then
            if masks and not fills:
                self.note("index by a mask")
            if any(not isinstance(one, OnGpu) for one in args[1] if one is not None):
                self.note("index from the CPU")
        elif torch.Tag.dynamic_output_shape in func.tags or func is _aten.equal.default:
            self.note(func._schema.name.removeprefix("aten::"))


@functools.cache
def _without_mps() -> frozenset[str]:
    """Return the operators, as ``aten::name.overload``, that torch's own table gives to the CPU and not to MPS."""
    table = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
    operators = yaml.load(table.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    named = {one["func"].split("(")[0]: one for one in operators}

    def has_kernel(one: dict[str, Any]) -> bool:
        if "structured_delegate" in one:
            return has_kernel(named[one["structured_delegate"]])
        keys = {key.strip() for keys in one.get("dispatch", {}) for key in keys.split(",")}
        return not keys or any(key == "MPS" or key.startswith("Composite") for key in keys)

    return frozenset(f"aten::{name}" for name, one in named.items() if not has_kernel(one))


def _refuse_upload_to_mps(given: Tensor, *, non_blocking: bool) -> None:
    if non_blocking:
        raise AssertionError("a copy to MPS that is not waited for may read other memory (pytorch issue 189690)")
    if given.dtype == torch.float64:  # even where torch would cast it on the way
        raise TypeError("float64 goes to MPS")


def _refuse_on_mps(func: Any, kwargs: dict[str, Any], results: list[Tensor]) -> None:
    """Raise what torch raises there, and where it would go on with wrong numbers, say so."""
    if kwargs.get("found_inf") is not None:
        raise AssertionError(f"{func} ignores the gradient scaler on MPS (pytorch pull request 186360)")
    schema = func._schema
    name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
    chosen_here = name.endswith("_for_cpu") or name.endswith("_for_cpu_backward")  # by torch, for where the numbers are
    if name in _without_mps() and not chosen_here:
        raise NotImplementedError(f"The operator '{name}' is not currently implemented for the MPS device.")
    if any(one.dtype in {torch.float64, torch.complex128} for one in results):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64.")


def _group_by_device_and_dtype(lists: list[list[Tensor | None]], with_indices: bool = False) -> dict[Any, Any]:
    """Do what torch's function in C++ does, which asks the tensors themselves where they lie."""
    groups: dict[Any, Any] = {}
    for row, first in enumerate(lists[0]):
        columns, rows = groups.setdefault((first.device, first.dtype), ([[] for _ in lists], []))  # type: ignore[union-attr]
        for column, values in zip(columns, lists, strict=True):
            if values:
                column.append(values[row])
        rows.append(row)
    return groups


class _Event:
    """What ``torch.cuda.Event`` is where all is done at once."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


def _empty_on_the_cpu(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="cpu")


def stand_in(kind: str, monkeypatch: pytest.MonkeyPatch, *, has_bf16: bool = True) -> Device:
    """Return the stand-in for ``cuda`` or ``mps``; torch says for the rest of the test that it has one.

    ``has_bf16`` is whether a CUDA device computes in bf16 itself: False is a T4 or a V100, where torch emulates it.
    """
    device = Device(kind)
    monkeypatch.setattr(torch._C, "_group_tensors_by_device_and_dtype", _group_by_device_and_dtype)
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
    is_cuda = kind == "cuda"

    def set_cuda(name: str, value: Callable[..., Any]) -> None:
        monkeypatch.setattr(torch.cuda, name, value)

    set_cuda("is_available", lambda: is_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: not is_cuda)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: not is_cuda)
    if is_cuda:
        set_cuda("is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation)
        set_cuda("current_device", lambda: 0)
        set_cuda("device_count", lambda: 1)
        set_cuda("get_device_name", lambda *_: "a stand-in")
        set_cuda("set_device", lambda *_: None)
        set_cuda("get_rng_state", lambda *_: torch.get_rng_state())
        set_cuda("set_rng_state", lambda state, *_: torch.set_rng_state(state))
        set_cuda("Event", _Event)
        for place in ("token_cache", "training.numbers"):  # nothing can be pinned here
            monkeypatch.setattr(f"composir.{place}.empty_for_copies", _empty_on_the_cpu)
        set_cuda("mem_get_info", lambda *_: (2**34, 2**34))
        set_cuda("reset_peak_memory_stats", lambda *_: None)
        set_cuda("memory_allocated", lambda *_: 0)
        set_cuda("max_memory_allocated", lambda *_: 0)
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    monkeypatch.setattr(PartialState, "_shared_state", {})
    return device


def numbers(tensor: Tensor) -> np.ndarray:
    """Return a tensor's numbers, wherever it lies, in float32."""
    return (tensor.on_cpu if isinstance(tensor, OnGpu) else tensor).detach().float().numpy()
