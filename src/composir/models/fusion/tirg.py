"""TIRG's gated residual (Vo et al., *Composing Text and Image for Image Retrieval*, CVPR 2019, arXiv 1812.07119)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

KEEP_INIT, CHANGE_INIT = 1.0, 10.0


class TirgGating(nn.Module):
    """``c + unit(a0 * sigmoid(W relu(N[v; p])) * v + a1 * R2 relu(R1 relu(N[v; p])))`` at width D.

    ``v`` is the reference's embedding, ``p`` the sentence's; what TIRG makes of the two, at length 1, is added to the
    composed query c. ``a0`` and ``a1`` are learned from 1 and 10, as published. N is layer norm, one for each of the
    two branches; TIRG has batch norm, which would let a query's answer depend on the others of its batch.
    Parameters: ``8 D^2 + 12 D + 2`` (weights 2 + 4 + 2, biases 1 + 2 + 1, norms 4 + 4).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.LayerNorm(2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim), nn.Sigmoid())
        self.residual = nn.Sequential(
            nn.LayerNorm(2 * dim), nn.ReLU(), nn.Linear(2 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim)
        )
        self.scales = nn.Parameter(torch.tensor([KEEP_INIT, CHANGE_INIT]))

    def forward(
        self,
        query: Float[Tensor, "batch dim"],
        reference: Float[Tensor, "batch dim"],
        sentence: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the query with the gated reference and its change added, not normalised."""
        joint = torch.cat([reference, sentence], dim=-1)  # (batch, 2 dim)
        keep, change = self.scales
        joined = keep * self.gate(joint) * reference + change * self.residual(joint)
        return query + nn.functional.normalize(joined, dim=-1)
