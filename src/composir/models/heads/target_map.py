"""One linear map of the targets' vectors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TargetMap(nn.Module):
    """``y + W y`` at the length of y, for every vector y of a target. W starts at zero, which leaves y bit for bit.

    So weight decay draws the map to the identity, not to zero.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, vectors: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Return the mapped vectors; one of zeros stays."""
        moved = vectors + nn.functional.linear(vectors, self.weight)
        length, wanted = (one.norm(dim=-1, keepdim=True) for one in (moved, vectors))
        return moved * (wanted / length.clamp(min=torch.finfo(length.dtype).tiny))
