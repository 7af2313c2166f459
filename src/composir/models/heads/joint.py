"""A change without a gate that reads picture and sentence."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from composir.models.heads.change import Change, two_layers, zeroed


class Joint(Change):
    """``V2 relu(V1 [x; t])``: a change without a gate, of picture and sentence; V2 starts at zero.

    Parameters at width D with hidden width H: ``H (2 D + T) + H + D``.
    """

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.delta = two_layers(dim + text_dim, dim)
        zeroed(self.delta[-1])

    def forward(
        self, reference: Float[Tensor, "batch dim"], sentence: Float[Tensor, "batch text_dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the change."""
        return self.delta(torch.cat([reference, sentence], dim=-1))
