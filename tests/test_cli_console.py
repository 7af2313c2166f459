"""How far work is: bars in a terminal, lines without one; a training by its losses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from composir.cli import console
from composir.cli.console import Bars, TrainBars, in_words


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set: ``clock.now``."""
    one = SimpleNamespace(now=100.0)
    monkeypatch.setattr(console.time, "monotonic", lambda: one.now)
    monkeypatch.setattr(console.time, "perf_counter", lambda: one.now)
    return one


def test_without_a_terminal_lines_come_every_thirty_seconds(capsys, clock):
    with Bars() as bars:
        for second in range(0, 101, 5):
            clock.now = 100.0 + second
            bars.tell("images", 20 * second, 2000, "a note")
    assert capsys.readouterr().err.splitlines() == [
        "images: 0 of 2,000; a note",
        "images: 600 of 2,000, 20 a second, 1 min 10 s left; a note",
        "images: 1,200 of 2,000, 20 a second, 40 s left; a note",
        "images: 1,800 of 2,000, 20 a second, 10 s left; a note",
        "images: 2,000 of 2,000, 20 a second; a note",
    ]


def test_further_pieces_of_work_are_told_when_they_are_done(capsys, clock):
    with Bars() as bars:
        bars.tell("gallery", 1, 2)
        clock.now += 2
        bars.tell("gallery", 2, 2)
        bars.tell("queries", 1, 3)
        bars.tell("queries", 3, 3)
        clock.now += 100
        bars.tell("queries", 1, 3)  # the same once more, timed anew
        clock.now += 4
        bars.tell("queries", 3, 3)
    assert capsys.readouterr().err.splitlines() == [
        "gallery: 1 of 2",
        "gallery: 2 of 2, 0.5 a second",
        "queries: 3 of 3",
        "queries: 3 of 3, 0.5 a second",
    ]


def test_a_terminal_gets_bars(capsys, monkeypatch):
    monkeypatch.setattr(console.err, "_force_terminal", True)
    with Bars() as bars:
        bars.tell("images", 1, 2)
    assert "━" in capsys.readouterr().err


def test_a_training_is_told_by_its_losses(capsys, clock):
    recipe = SimpleNamespace(batch_size=10, gradient_accumulation=1, subset_negatives=1)
    losses = {"loss_itc": 2.0, "loss_rtc": 1.5, "loss_align": 0.25, "total": 2.7}
    with Bars() as bars:
        told = TrainBars(bars)
        told.on_start(Path("run"), recipe, 0, 4)
        for step in (1, 2):
            clock.now += 30
            told.on_step(step, losses, 0.5)
        told.on_epoch(1, losses)
        clock.now += 500  # a validation
        told.on_validation(1, SimpleNamespace(metrics={"recall_at_1": 0.5}), is_best=True)
        clock.now += 40
        told.on_step(3, losses, None)
        told.on_step(4, losses, None)
        told.on_epoch(2, losses)
    lines = capsys.readouterr().err.splitlines()
    terms = "loss_itc 2.00  loss_rtc 1.50  loss_align 0.25"
    means = "loss 2.7000  loss_itc 2.0000  loss_rtc 1.5000  loss_align 0.2500"
    assert lines == [
        "run folder: run",
        f"training: 1 of 4; loss 2.70  1 images/s  alpha 0.500  {terms}",
        f"training: 2 of 4, 0.033 a second, 1 min 0 s left; loss 2.70  1 images/s  alpha 0.500  {terms}",
        f"epoch 1: {means}  1 images/s",
        "epoch 1: R@1 50.00  (best)",
        f"training: 3 of 4, 0.0035 a second, 4 min 45 s left; loss 2.70  1 images/s  {terms}",
        f"training: 4 of 4, 0.0053 a second; loss 2.70  2 images/s  {terms}",
        f"epoch 2: {means}  2 images/s",
    ]


def test_of_brief_epochs_those_are_told_that_are_validated(capsys, clock):
    losses = {"loss_itc": 2.0, "total": 2.0}
    with Bars() as bars:
        told = TrainBars(bars)
        told.on_start(Path("run"), SimpleNamespace(batch_size=10, gradient_accumulation=1, subset_negatives=0), 0, 100)
        for epoch in range(1, 8):
            clock.now += 5
            told.on_epoch(epoch, losses)
            if epoch == 3:
                told.on_validation(epoch, SimpleNamespace(metrics={"recall_at_1": 0.5}), is_best=False)
    told_epochs = [line.split(":")[0] for line in capsys.readouterr().err.splitlines()[1:]]
    assert told_epochs == ["epoch 3", "epoch 3"]  # its losses, its figures
    with Bars() as bars:
        clock.now += 5 * bars.seconds
        told.on_epoch(8, losses)
    assert capsys.readouterr().err.startswith("epoch 8: loss 2.0000  loss_itc 2.0000  ")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (59.4, "59 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (360000, "100 h 0 min")],
)
def test_times_are_told_in_two_parts(seconds, words):
    assert in_words(seconds) == words
