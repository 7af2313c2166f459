"""What TIRG and CLIP4Cir's Combiner make of picture and sentence."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from composir.models.fusion.combiner import Combiner
from composir.models.fusion.tirg import TirgGating
from composir.models.heads.change import Change
from composir.models.token_fusion import alpha


class Joined(Change):
    """``scale * joined``: what ``TirgGating`` or ``Combiner`` adds to a query, by a learned number from 0 on.

    The start at zero is ReZero's (Bachlechner et al., arXiv 2003.04887). Parameters: those of the module, ``D T + D``
    and 1.
    """

    def __init__(self, join: TirgGating | Combiner, dim: int, text_dim: int) -> None:
        super().__init__()
        self.text_proj = nn.Linear(text_dim, dim)
        self.join = join
        self.scale = alpha(0.0)

    @property
    def alpha(self) -> Tensor:
        """What scales all of it."""
        return self.scale

    def forward(
        self, reference: Float[Tensor, "batch dim"], sentence: Float[Tensor, "batch text_dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the change."""
        return self.scale * self.join(torch.zeros_like(reference), reference, self.text_proj(sentence))
