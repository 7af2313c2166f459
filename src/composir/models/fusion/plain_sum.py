"""The plain sum: what every other way to join a picture with a sentence is compared with."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class PlainSum(nn.Module):
    """``c + v + p`` of the composed query's, the reference's and the sentence's embeddings. No parameters."""

    def forward(
        self,
        query: Float[Tensor, "batch dim"],
        reference: Float[Tensor, "batch dim"],
        sentence: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the sum, not normalised."""
        return query + reference + sentence
