"""What a run writes down: gradient norms, by hand."""

from __future__ import annotations

import pytest
import torch

from composir.training.log import gradient_norms


def with_gradient(*values: float) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    return parameter


def test_norms_are_of_all_gradients_of_a_part_and_without_the_scaler_s_factor():
    parts = {"qformer": [with_gradient(3.0), with_gradient(0.0, 4.0), torch.nn.Parameter(torch.zeros(2))]}
    parts["heads"] = [with_gradient(6.0, 8.0)]
    assert gradient_norms(parts) == {"qformer": pytest.approx(5.0), "heads": pytest.approx(10.0)}
    assert gradient_norms(parts, 4.0) == {"qformer": pytest.approx(1.25), "heads": pytest.approx(2.5)}
