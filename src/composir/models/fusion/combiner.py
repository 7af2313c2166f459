"""CLIP4Cir's Combiner (Baldrati et al., *Effective conditioned and composed image retrieval*, CVPR 2022)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

DROPOUT = 0.5


class Combiner(nn.Module):
    """``(1 - s) v + s c + O relu(H [v'; c'])`` with ``s = sigmoid(S2 relu(S1 [v'; c']))``, one number a query.

    ``v`` is the reference's embedding; ``c``, the composed query's, is in the place of CLIP's sentence. ``v'`` and
    ``c'`` are ``relu`` of a linear layer each, to 4 D; the two hidden layers are 8 D wide; dropout follows each relu,
    all as published. Parameters at width D: ``144 D^2 + 33 D + 1`` (weights 4 + 4 + 64 + 8 + 64, S2 another 8 D;
    biases 4 + 4 + 8 + 1 + 8 times D, and one).
    """

    def __init__(self, dim: int, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.reference = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Dropout(dropout))
        self.query = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Dropout(dropout))
        self.mixture = nn.Sequential(
            nn.Linear(8 * dim, 8 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8 * dim, dim)
        )
        self.share = nn.Sequential(
            nn.Linear(8 * dim, 8 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8 * dim, 1), nn.Sigmoid()
        )

    def forward(
        self, reference: Float[Tensor, "batch dim"], query: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the mix of both and what the hidden layer adds, not normalised."""
        joint = torch.cat([self.reference(reference), self.query(query)], dim=-1)  # (batch, 8 dim)
        share = self.share(joint)  # (batch, 1)
        return (1 - share) * reference + share * query + self.mixture(joint)
