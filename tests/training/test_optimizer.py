"""What the optimiser's room keeps to: the temperature's range."""

from __future__ import annotations

import pytest
import torch

from composir.models.backbones import build
from composir.training.optimizer import keep_temperature


@pytest.mark.parametrize(
    ("stepped_to", "kept"), [(-0.2, 0.01), (0.0099, 0.01), (0.01, 0.01), (0.07, 0.07), (0.5, 0.5), (0.7, 0.5)]
)
def test_the_temperature_is_brought_back_into_its_range(stepped_to, kept):
    model = build("tiny")
    model.temperature.data.fill_(stepped_to)
    keep_temperature(model)
    assert model.temperature.item() == pytest.approx(kept, abs=1e-8)
    assert isinstance(model.temperature, torch.nn.Parameter)
    assert model.temperature.requires_grad
