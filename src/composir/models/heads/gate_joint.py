"""A gate whose direction reads the picture, too."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from composir.models.heads.change import Change, two_layers, zeroed
from composir.models.token_fusion import ALPHA_INIT, alpha


class GateJoint(Change):
    """``alpha * sigmoid(W2 relu(W1 [x; t])) * tanh(V2 relu(V1 [x; t]))``: gate and direction both read both.

    V2 starts at zero. Parameters at width D with hidden width H: ``2 (H (2 D + T) + H + D) + 1``.
    """

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.gate = two_layers(dim + text_dim, dim)
        self.delta = two_layers(dim + text_dim, dim)
        zeroed(self.delta[-1])
        self.scale = alpha(ALPHA_INIT)

    @property
    def alpha(self) -> Tensor:
        """What scales the direction."""
        return self.scale

    def forward(
        self, reference: Float[Tensor, "batch dim"], sentence: Float[Tensor, "batch text_dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the change."""
        both = torch.cat([reference, sentence], dim=-1)
        return self.scale * self.gate(both).sigmoid() * self.delta(both).tanh()

    def opened(
        self, reference: Float[Tensor, "batch dim"], sentence: Float[Tensor, "batch text_dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the gate in (0, 1) for every channel."""
        return self.gate(torch.cat([reference, sentence], dim=-1)).sigmoid()
