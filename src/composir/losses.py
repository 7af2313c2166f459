"""The losses of SPRC (Bai et al., *Sentence-level Prompts Benefit Composed Image Retrieval*, ICLR 2024), and more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from composir.tables import Table

ContrastiveLoss = Callable[..., Tensor]
"""Takes logits and ``same_target``, as ``contrastive_loss`` does."""


def contrastive_loss(
    logits: Float[Tensor, "queries candidates"], same_target: Bool[Tensor, "queries candidates"] | None = None
) -> Float[Tensor, ""]:
    """Return the cross entropy of each query against the candidates of its batch, the diagonal being right.

    Candidates beyond the number of queries are negatives for all. ``same_target[i, j]`` marks a candidate j that is
    the very image of query i's target; off the diagonal it is left out, so that an image is never its own negative.
    ``None`` is the published loss.
    """
    labels = torch.arange(logits.shape[0], device=logits.device)
    if same_target is not None:
        duplicate = same_target.clone()
        duplicate[labels, labels] = False
        logits = logits.masked_fill(duplicate, -torch.inf)
    return nn.functional.cross_entropy(logits, labels)


def hard_negative_loss(
    logits: Float[Tensor, "queries candidates"],
    same_target: Bool[Tensor, "queries candidates"] | None = None,
    *,
    beta: float,
    alpha: float = 1.0,
) -> Float[Tensor, ""]:
    """Return HN-NCE: the contrastive loss with negatives weighted by how close they are, in both directions.

    For every query i, ``-log(e^s_ii / (alpha e^s_ii + sum_j w_ij e^s_ij))`` over the negatives j, of which there are
    N_i, with ``w_ij = N_i e^(beta s_ij) / sum_k e^(beta s_ik)``, so that the weights of a row sum to N_i; then the same
    for every target against the queries, whose weights are normalised over the queries. The mean of both directions.
    Gradients pass through the weights. ``beta = 0`` and ``alpha = 1`` are the mean of ``contrastive_loss`` of the
    logits and of their transpose. ``same_target`` as there; candidates beyond the queries are no targets.

    Source: Radenovic et al., *Filtering, Distillation, and Hard Negatives for Vision-Language Pre-Training*, CVPR 2023
    (arXiv 2301.02280), equation 4. A row whose only candidate is its own target has the loss ``log(alpha)``.
    """
    num_queries = len(logits)
    targets = logits[:, :num_queries]
    same_of_targets = None if same_target is None else same_target[:, :num_queries].T
    losses = [
        _hard_negative_direction(direction, duplicate, beta=beta, alpha=alpha)
        for direction, duplicate in ((logits, same_target), (targets.T, same_of_targets))
    ]
    return (losses[0] + losses[1]) / 2


def _hard_negative_direction(
    logits: Float[Tensor, "rows columns"], duplicate: Bool[Tensor, "rows columns"] | None, *, beta: float, alpha: float
) -> Float[Tensor, ""]:
    weighted = logits.masked_fill(~negatives(logits, duplicate), -torch.inf) + hard_negative_log_weights(
        logits, duplicate, beta=beta
    )
    positive = logits.diagonal()
    log_alpha = math.log(alpha) if alpha else -math.inf
    total = torch.logsumexp(torch.cat([(positive + log_alpha)[:, None], weighted], dim=1), dim=1)
    return (total - positive).mean()


def hard_negative_log_weights(
    logits: Float[Tensor, "rows columns"], duplicate: Bool[Tensor, "rows columns"] | None = None, *, beta: float
) -> Float[Tensor, "rows columns"]:
    """Return the logarithm of every negative's weight in its row, minus infinity where it is no negative."""
    is_negative = negatives(logits, duplicate)
    num_negatives = is_negative.sum(dim=1, keepdim=True)
    scaled = (beta * logits).masked_fill(~is_negative, -torch.inf)
    # A row without negatives has no weights, and the logarithm of an empty sum no gradient.
    total = torch.logsumexp(scaled.masked_fill(num_negatives == 0, 0.0), dim=1, keepdim=True)
    return scaled - total + num_negatives.clamp(min=1).to(logits.dtype).log()


def negatives(
    logits: Float[Tensor, "rows columns"], duplicate: Bool[Tensor, "rows columns"] | None = None
) -> Bool[Tensor, "rows columns"]:
    """Return which candidates are negatives: all but the diagonal and those marked as the same image."""
    is_positive = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
    return ~is_positive if duplicate is None else ~(is_positive | duplicate)


def alignment_loss(
    fused_queries: Float[Tensor, "batch queries hidden"], prompt: Float[Tensor, "1 queries hidden"]
) -> Float[Tensor, ""]:
    """Return the mean squared distance of the mean fused query to the mean prompt token, which gets no gradient."""
    mean = fused_queries.mean(dim=1)  # (batch, hidden)
    return nn.functional.mse_loss(mean, prompt.mean(dim=1).detach().expand_as(mean))


class LossSettings(Protocol):
    """The settings of contrastive losses; ``Recipe`` says what each is."""

    @property
    def hard_negative_beta(self) -> float: ...  # noqa: D102
    @property
    def hard_negative_alpha(self) -> float: ...  # noqa: D102


LOSSES: Table[Callable[[LossSettings], ContrastiveLoss]] = Table(
    "losses",
    {
        "infonce": lambda settings: contrastive_loss,
        "hn-nce": lambda settings: partial(
            hard_negative_loss, beta=settings.hard_negative_beta, alpha=settings.hard_negative_alpha
        ),
    },
)
"""What sets a query's target apart from other candidates, by name, made by a recipe; a new loss is a line here."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a training step has computed, of all processes, for further terms of the loss (``TERMS``)."""

    query: Float[Tensor, "batch dim"]
    """Composed queries, L2-normalised."""
    prompt: Float[Tensor, "batch dim"]
    """The sentences behind the prompt tokens, L2-normalised."""
    target: Float[Tensor, "candidates queries dim"]
    """The vectors of each candidate, L2-normalised; those of the queries' targets come first, in their order."""
    logits: Float[Tensor, "batch candidates"]
    """Similarity of the queries with the candidates, over the temperature."""
    temperature: Float[Tensor, ""]
    same_target: Bool[Tensor, "batch candidates"] | None


Term = Callable[[Outputs], Tensor]
TERMS: Table[Term] = Table("loss_terms", {})
"""Further terms of the loss by name: ``--set loss_terms={NAME=0.1}`` adds one with that weight, and the log has it as
``loss_NAME``. SPRC's own three, and the local one, are computed by the model."""


def term_losses(outputs: Outputs, names: Sequence[str]) -> dict[str, Tensor]:
    """Return ``loss_NAME`` for each of the names, keys of ``TERMS``."""
    return {f"loss_{name}": TERMS[name](outputs) for name in names}


PUBLISHED_TERMS = {"loss_itc": "", "loss_rtc": "loss_rtc", "loss_align": "loss_align", "loss_local": "loss_local"}
"""The setting that weights each of the model's own terms, in the order in which they are added; "" is 1."""


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Return the weighted sum of the losses that there are, in the order of ``weights``."""
    total: Tensor | None = None
    for name, weight in weights.items():
        if name in losses:
            term = losses[name] if weight == 1 else weight * losses[name]
            total = term if total is None else total + term
    assert total is not None
    return total
