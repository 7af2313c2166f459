from __future__ import annotations

import math

import pytest
import torch

from composir.losses import alignment_loss, contrastive_loss


def test_contrastive_loss_by_hand():
    # Row 1: -log(e^2 / (e^2 + e^0)) = log(1 + e^-2); row 2: -log(e^1 / (e^1 + e^3)) = log(1 + e^2); their mean.
    logits = torch.tensor([[2.0, 0.0], [3.0, 1.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    assert contrastive_loss(logits).item() == pytest.approx(expected, rel=1e-6)


def test_a_shared_target_is_left_out_but_the_diagonal_stays():
    logits = torch.randn(3, 5)
    same = torch.zeros(3, 5, dtype=torch.bool)
    same[range(3), range(3)] = True
    torch.testing.assert_close(contrastive_loss(logits, same), contrastive_loss(logits))
    same[0, 4] = True
    kept = torch.cat([logits[:1, :4], torch.full((1, 1), -torch.inf)], dim=1)
    expected = contrastive_loss(torch.cat([kept, logits[1:]]))
    torch.testing.assert_close(contrastive_loss(logits, same), expected)


def test_the_gradient_is_finite_where_candidates_are_left_out():
    logits = torch.randn(2, 2, requires_grad=True)
    contrastive_loss(logits, torch.ones(2, 2, dtype=torch.bool)).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_alignment_by_hand_and_without_a_gradient_for_the_prompt():
    # Means over queries: (2, 3) and (0, 1); the prompt's: (1, 1). Squares: 1, 4, 1, 0; their mean is 1.5.
    fused = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0]]], requires_grad=True)
    prompt = torch.tensor([[[0.0, 1.0], [2.0, 1.0]]], requires_grad=True)
    loss = alignment_loss(fused, prompt)
    assert loss.item() == pytest.approx(1.5)
    loss.backward()
    assert prompt.grad is None
    assert fused.grad is not None
