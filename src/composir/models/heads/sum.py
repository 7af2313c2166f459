"""The sentence added by one linear map."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from composir.models.heads.change import Change, zeroed


class Sum(Change):
    """``P t``: the sentence's vector through one linear map, which starts at zero. Parameters: ``D T + D``."""

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.text_proj = zeroed(nn.Linear(text_dim, dim))

    def forward(
        self, reference: Float[Tensor, "batch dim"], sentence: Float[Tensor, "batch text_dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the change."""
        return self.text_proj(sentence)
