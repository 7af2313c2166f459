"""What the optimiser's room keeps to: the temperature's range."""

from __future__ import annotations

import pytest
import torch

from composir.training.optimizer import keep_temperature


@pytest.mark.parametrize(
    ("before", "stepped_to", "kept"),
    [
        (0.07, -0.2, 0.01),
        (0.011, 0.0099, 0.01),
        (0.07, 0.01, 0.01),
        (0.07, 0.08, 0.08),
        (0.49, 0.5, 0.5),
        (0.49, 0.7, 0.5),
        # Outside at the start, as pretrained weights may bring it: nearer, never further, and then as all others.
        (0.004, 0.003, 0.004),
        (0.004, 0.006, 0.006),
        (0.004, 0.02, 0.02),
        (0.9, 1.1, 0.9),
        (0.9, 0.8, 0.8),
        (0.9, 0.005, 0.01),
    ],
)
def test_the_temperature_is_kept_in_its_range_or_no_further_from_it(before, stepped_to, kept):
    temperature = torch.nn.Parameter(torch.tensor(stepped_to))
    keep_temperature(temperature, torch.tensor(before))
    assert temperature.item() == pytest.approx(kept, rel=1e-6)
    assert temperature.requires_grad
