from __future__ import annotations

import math

import pytest
import torch

from composir.losses import (
    alignment_loss,
    contrastive_loss,
    hard_negative_log_weights,
    hard_negative_loss,
    total_loss,
)


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


def slow_hard_negative_loss(logits, same, *, beta, alpha):
    """The formula by loops, in the plain numbers that logarithms are there to avoid."""

    def direction(rows, duplicates):
        losses = []
        for i, row in enumerate(rows):
            others = [j for j in range(len(row)) if j != i and not duplicates[i][j]]
            total = sum(math.exp(beta * row[j]) for j in others)
            negatives = sum(len(others) * math.exp(beta * row[j]) / total * math.exp(row[j]) for j in others)
            losses.append(-math.log(math.exp(row[i]) / (alpha * math.exp(row[i]) + negatives)))
        return sum(losses) / len(losses)

    count = len(logits)
    columns = [[logits[i][j] for i in range(count)] for j in range(count)]
    return (
        direction(logits, same) + direction(columns, [[same[i][j] for i in range(count)] for j in range(count)])
    ) / 2


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_the_hard_negative_loss_equals_the_slow_one(beta, alpha):
    torch.manual_seed(1)
    logits = torch.randn(4, 7, dtype=torch.float64)
    same = torch.zeros(4, 7, dtype=torch.bool)
    same[0, 2] = same[2, 0] = same[1, 6] = same[3, 3] = True
    expected = slow_hard_negative_loss(logits.tolist(), same.tolist(), beta=beta, alpha=alpha)
    assert hard_negative_loss(logits, same, beta=beta, alpha=alpha).item() == pytest.approx(expected, rel=1e-12)


def test_without_hardness_the_loss_is_the_contrastive_one_in_both_directions():
    torch.manual_seed(2)
    logits = torch.randn(5, 5)
    expected = (contrastive_loss(logits) + contrastive_loss(logits.T)) / 2
    torch.testing.assert_close(hard_negative_loss(logits, beta=0.0), expected)


def test_weights_sum_to_the_number_of_negatives_in_both_directions():
    torch.manual_seed(3)
    logits = 20 * torch.randn(6, 6)
    for direction in (logits, logits.T):
        weights = hard_negative_log_weights(direction, beta=0.7).exp()
        torch.testing.assert_close(weights.sum(dim=1), torch.full((6,), 5.0))
        assert weights.diagonal().tolist() == [0] * 6
        assert weights[0].argmax() == direction[0, 1:].argmax() + 1


def test_hard_negatives_keep_gradients_finite_for_large_logits_and_empty_rows():
    logits = torch.tensor([[300.0, -300.0], [250.0, -200.0]], requires_grad=True)
    hard_negative_loss(logits, beta=1.0).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    logits = torch.randn(2, 2, requires_grad=True)
    loss = hard_negative_loss(logits, torch.ones(2, 2, dtype=torch.bool), beta=0.5)
    loss.backward()
    assert loss.item() == 0  # log(alpha): the target is the only candidate
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_the_total_is_the_weighted_sum_of_the_losses_that_there_are():
    losses = {"loss_itc": torch.tensor(3.0), "loss_rtc": torch.tensor(5.0), "loss_align": torch.tensor(0.5)}
    # 1 * 3 + 0.4 * 5 + 2 * 0.5; the local loss, which is not among them, adds nothing
    weights = {"loss_itc": 1.0, "loss_rtc": 0.4, "loss_align": 2.0, "loss_local": 9.0}
    assert total_loss(losses, weights).item() == pytest.approx(6.0)
    assert total_loss(losses, {"loss_rtc": 0.5}).item() == pytest.approx(2.5)
