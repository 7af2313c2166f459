"""The plain sum: what every other way to join a picture with a sentence is compared with."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class PlainSum(nn.Module):
    """``v + c`` of the reference's embedding v and the composed query's c. No parameters."""

    def forward(
        self, reference: Float[Tensor, "batch dim"], query: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the sum, not normalised."""
        return reference + query
