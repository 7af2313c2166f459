"""CLIP4Cir's Combiner (Baldrati et al., *Effective conditioned and composed image retrieval*, CVPR 2022)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

DROPOUT = 0.5


class Combiner(nn.Module):
    """``c + unit((1 - s) v + s p + O relu(H [v'; p']))`` with ``s = sigmoid(S2 relu(S1 [v'; p']))``, one a query.

    ``v`` is the reference's embedding, ``p`` the sentence's; what the Combiner makes of the two, at length 1, is added
    to the composed query c. ``v'`` and ``p'`` are ``relu`` of a linear layer each, to 4 D; the two hidden layers are
    8 D wide; dropout follows each relu, all as published. Parameters at width D: ``144 D^2 + 33 D + 1`` (weights
    4 + 4 + 64 + 8 + 64, S2 another 8 D; biases 4 + 4 + 8 + 1 + 8 times D, and one).
    """

    def __init__(self, dim: int, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.reference = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Dropout(dropout))
        self.sentence = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Dropout(dropout))
        self.mixture = nn.Sequential(
            nn.Linear(8 * dim, 8 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8 * dim, dim)
        )
        self.share = nn.Sequential(
            nn.Linear(8 * dim, 8 * dim), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8 * dim, 1), nn.Sigmoid()
        )

    def forward(
        self,
        query: Float[Tensor, "batch dim"],
        reference: Float[Tensor, "batch dim"],
        sentence: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the query with the mix of both and what the hidden layer adds to it, not normalised."""
        joint = torch.cat([self.reference(reference), self.sentence(sentence)], dim=-1)  # (batch, 8 dim)
        share = self.share(joint)  # (batch, 1)
        joined = (1 - share) * reference + share * sentence + self.mixture(joint)
        return query + nn.functional.normalize(joined, dim=-1)
