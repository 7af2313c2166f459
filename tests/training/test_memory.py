"""What a step takes, measured on a few triplets, beside a count by hand."""

from __future__ import annotations

import pytest
import torch

from composir.models.backbones import build
from composir.training.memory import StepMemory, _Tracker, measure_step

TEXTS = ["make it red", "is longer and blue"]


def test_the_tracker_counts_what_lives():
    with _Tracker() as tracker:
        first = torch.zeros(1000)
        second = first + 1
        assert tracker.live == tracker.peak == 8000
        view = second[:10]
        assert tracker.live == 8000
        del first, second
        assert tracker.live == 4000
        del view
        third = torch.ones(500)
        third.add_(1)
    assert (tracker.live, tracker.peak) == (2000, 8000)


def test_the_largest_batch_is_a_power_of_two_that_fits_with_the_margin():
    memory = StepMemory(fixed=100, per_triplet=10)
    assert memory.of(8) == 180
    assert memory.largest_batch(225) == 8
    assert memory.largest_batch(224) == 4
    assert memory.largest_batch(149) == 0
    assert memory.largest_batch(10**9) == 1024


def test_a_step_s_line_foretells_a_larger_batch_and_leaves_no_trace():
    model = build("tiny", fusion="gate")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    memory = measure_step(model, TEXTS)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.train()
    ids, mask = model.tokenize([TEXTS[number % 2] for number in range(24)])
    tokens = torch.rand(48, 9, 24)
    with _Tracker() as tracker:
        losses = model.training_losses(tokens[:24], tokens[24:], ids, mask)
        torch.stack(list(losses.values())).sum().backward()
    assert memory.of(24) == pytest.approx(tracker.peak, rel=0.1)


def test_checkpointing_look_alikes_and_more_pictures_are_in_it():
    model = build("tiny", fusion="none", num_hidden_layers=6)
    plain = measure_step(model, TEXTS)
    assert measure_step(model, TEXTS, pictures_per_triplet=4).per_triplet > 1.1 * plain.per_triplet
    model.qformer.gradient_checkpointing = True
    assert measure_step(model, TEXTS).per_triplet < 0.5 * plain.per_triplet
