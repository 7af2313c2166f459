"""How glibc's malloc is told to keep what is freed: what it then does, who overrules it, and that no bit changes."""

from __future__ import annotations

import ctypes
import platform

import numpy as np
import pytest
import torch

from composir import machine
from composir.machine import KEPT_BYTES, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, MOST_MAPPED, keep_freed_memory
from composir.models.backbones import build
from composir.models.backbones.mini import lite_tower
from composir.models.checkpoint import from_pretrained, save_pretrained
from composir.models.named import open_named

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="asks glibc's malloc, of 2.33 or later")
BY_ITSELF = 2**17
"""Bytes from which malloc maps a block as a process starts (mallopt(3))."""
LARGE = KEPT_BYTES // 2
"""Bytes that no heap has free by chance; nothing is written there."""


class Counts(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def mapped_by_a_tensor(num_bytes: int) -> int:
    """Return how many bytes malloc maps for a tensor of that size, apart from its heap."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Counts
    before = mallinfo().hblkhd
    tensor = torch.empty(num_bytes, dtype=torch.uint8)
    return mallinfo().hblkhd - before if len(tensor) else 0


@pytest.fixture
def plain_environment(monkeypatch):
    for name in ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def asked(plain_environment, monkeypatch) -> list[tuple[int, int]]:
    """What malloc is asked, one that takes thresholds up to ``MOST_MAPPED``."""
    calls = []

    def mallopt(parameter: int, value: int) -> int:
        calls.append((parameter, value))
        return int(parameter != M_MMAP_THRESHOLD or value <= MOST_MAPPED)

    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: type("Libc", (), {"mallopt": staticmethod(mallopt)}))
    return calls


def embeddings() -> bytes:
    """Return the bytes of what towers and a model make of noise; some of their activations are above 32 MiB."""
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 224, 224), np.uint8))
    return lite_tower()(pixels).numpy().tobytes()


@glibc
def test_a_large_tensor_is_mapped_by_itself_and_no_longer_afterwards_with_equal_results(plain_environment):
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, BY_ITSELF)
    assert mapped_by_a_tensor(LARGE) >= LARGE
    before = embeddings()
    keep_freed_memory()
    assert mapped_by_a_tensor(LARGE) == 0
    assert embeddings() == before


def test_an_older_malloc_maps_from_the_most_that_it_takes(asked):
    keep_freed_memory()
    assert asked == [(M_MMAP_THRESHOLD, KEPT_BYTES), (M_MMAP_THRESHOLD, MOST_MAPPED), (M_TRIM_THRESHOLD, KEPT_BYTES)]


@pytest.mark.parametrize(
    ("name", "value"),
    [("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_ARENA_MAX", "1"), ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=0")],
)
def test_what_the_environment_says_stands(asked, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    keep_freed_memory()
    assert asked == []


def test_tunables_of_other_parts_of_glibc_say_nothing(asked, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
    keep_freed_memory()
    assert len(asked) == 3


def test_another_library_is_left_alone(asked, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    keep_freed_memory()
    assert asked == []


def test_whatever_opens_a_model_asks_for_it(asked, tmp_path):
    for open_model in (
        lambda: save_pretrained(build("tiny"), tmp_path / "model"),
        lambda: from_pretrained(tmp_path / "model"),
        lambda: open_named("lite0", "cpu"),
    ):
        asked.clear()
        open_model()
        assert (M_TRIM_THRESHOLD, KEPT_BYTES) in asked
