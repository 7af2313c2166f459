"""Autocast: what is divided by the temperature is computed in float32, in training and in evaluation."""

from __future__ import annotations

import pytest
import torch

from composir.evaluation.similarity import similarity as similarity_in_blocks
from composir.losses import total_loss
from composir.models.config import ComposerConfig
from composir.models.sprc import Sprc
from composir.scoring import similarity

TEMPERATURE = 0.02
"""About what training ends with."""
WEIGHTS = {"loss_itc": 1.0, "loss_rtc": 0.4, "loss_align": 0.4}


def step(dtype=None, *, fusion="none", local=False):
    """Return the loss of a step and its gradient, of a model whose embeddings are all alike, as they are at first."""
    torch.manual_seed(0)
    config = ComposerConfig(
        token_width=32, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
        vocab_size=50, num_query_tokens=8, embed_dim=16, dropout=0.0, fusion=fusion, temperature_init=TEMPERATURE,

    )  # fmt: skip
    model = Sprc(config)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.xavier_uniform_(parameter)
    reference, target = torch.randn(2, 16, 9, 32)
    words = torch.randint(1, 50, (16, 5))
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        losses = model.training_losses(reference, target, words, torch.ones_like(words), local=local)
        loss = total_loss(losses, WEIGHTS | {"loss_local": 1.0})
    scale = 256.0 if dtype == torch.float16 else 1.0  # as fp16's scaler does
    (loss * scale).backward()
    gradients = [parameter.grad.flatten() / scale for parameter in model.parameters() if parameter.grad is not None]
    return loss.detach(), torch.cat(gradients)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.02), (torch.float16, 0.004)])
@pytest.mark.parametrize("fusion", ["none", "gate"])
@pytest.mark.parametrize("local", [False, True])
def test_the_gradient_under_autocast_is_near_that_of_float32(dtype, bound, fusion, local):
    exact_loss, exact = step(fusion=fusion, local=local)
    loss, gradient = step(dtype, fusion=fusion, local=local)
    assert loss.dtype == torch.float32
    assert abs(loss - exact_loss) < bound * exact_loss
    assert (gradient - exact).norm() < bound * exact.norm()


@pytest.mark.parametrize("function", [similarity, similarity_in_blocks])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_those_of_float32_inside_autocast(function, dtype):
    torch.manual_seed(0)
    query, target = torch.randn(5, 8), torch.randn(6, 3, 8)
    with torch.autocast("cpu", dtype):
        scores = function(query, target)
        of_halves = function(query.to(dtype), target.to(dtype))
    assert torch.equal(scores, function(query, target))
    assert of_halves.dtype == torch.float32
    assert torch.equal(of_halves, function(query.to(dtype).float(), target.to(dtype).float()))


def test_scores_of_float64_stay_float64():
    assert similarity(torch.randn(2, 4).double(), torch.randn(3, 1, 4).double()).dtype == torch.float64
