"""The benchmarks for devices, at small sizes and on the CPU."""

from __future__ import annotations

import json

import pytest

from composir.benchmark import device as device_module
from composir.benchmark.device import benchmark_device
from composir.benchmark.feed import benchmark_feed
from composir.models.backbones.tiny import tiny_tower


@pytest.fixture
def small(monkeypatch):
    """Let the sizes be those of the tiny backbone."""
    monkeypatch.setattr(device_module, "REAL", "tiny")
    monkeypatch.setattr(device_module, "real_tower", lambda device: tiny_tower().to(device))


@pytest.mark.usefixtures("small")
def test_steps_and_passes_of_the_tower_are_measured_by_batch():
    told = []
    document = benchmark_device(
        batch_sizes=(2, 3), tower_batches=(1, 2), num_steps=2, progress=lambda *progress: told.append(progress)
    )
    assert set(document["seconds"]) == {"step fp32 gate 3", "step fp32 none 3", "tower 1", "tower 2"}
    assert all(len(times) == 2 for times in document["seconds"].values())
    assert document["cirr_epoch_seconds"]["step fp32 none 3"] == pytest.approx(
        9409 * sum(document["seconds"]["step fp32 none 3"]) / 2
    )
    assert set(document["images_per_second"]) == {"tower 1", "tower 2"}
    assert document["too_large"] == []
    assert [place for _, place, _ in told] == [0, 1, 2, 3]


def test_batches_feed_steps_inline_and_ahead(tmp_path, monkeypatch):
    monkeypatch.setattr("composir.benchmark.feed.alone", lambda work, *arguments: work(*arguments))
    document = benchmark_feed(num_images=6, batch_size=2, num_steps=3, step_seconds=0.01, directory=tmp_path)
    assert set(document["seconds"]) == {"inline", "ahead", "steps"}
    assert document["bytes_a_step"] == 4 * 257 * 1408 * 2
    assert all(share < 1 for share in document["ratios"].values())
    assert list(tmp_path.iterdir()) == []


def test_the_commands_print_the_documents(run, monkeypatch):
    document = {"ratios": {"idle_share_ahead": 0.02}, "seconds": {"ahead": [1.0]}, "machine": {"gpu": None}}
    for name in ("feed", "device"):
        monkeypatch.setattr(f"composir.benchmark.{name}.benchmark_{name}", lambda **_: document)
        code, out, _ = run("benchmark", name, "--json")
        assert code == 0
        assert json.loads(out) == document
