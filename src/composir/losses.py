"""The losses of SPRC (Bai et al., *Sentence-level Prompts Benefit Composed Image Retrieval*, ICLR 2024)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


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


def alignment_loss(
    fused_queries: Float[Tensor, "batch queries hidden"], prompt: Float[Tensor, "1 queries hidden"]
) -> Float[Tensor, ""]:
    """Return the mean squared distance of the mean fused query to the mean prompt token, which gets no gradient."""
    mean = fused_queries.mean(dim=1)  # (batch, hidden)
    return nn.functional.mse_loss(mean, prompt.mean(dim=1).detach().expand_as(mean))
