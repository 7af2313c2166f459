"""Text-guided attention: the sentence looks at the reference's patches, and changes those that it looks at."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from composir.models.token_fusion import ALPHA_INIT, TokenFusion, alpha, feed_forward


class TextGuidedAttention(TokenFusion):
    """``fused_i = x_i + alpha * N A_i * tanh(V2 relu(V1 t))`` for the N image tokens x of a picture.

    ``A = softmax((Wq t) (Wk x)^T / sqrt(H))`` over the patches is the map of where the sentence t looks; N makes its
    mean one. ``t``, ``alpha`` and the direction are those of ``GatedFusion``; instead of its number for each channel
    there is one a patch, and patches compete for it. Parameters: ``4 H^2 + 3 H + 1`` at width H, and
    ``H * text_size + H`` more for the projection.
    """

    def __init__(self, hidden_size: int, text_size: int, alpha_init: float = ALPHA_INIT) -> None:
        super().__init__()
        self.text_proj = nn.Linear(text_size, hidden_size) if text_size != hidden_size else None
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(hidden_size, hidden_size, bias=False)  # it would add the same to all patches
        self.delta = feed_forward(hidden_size, nn.Tanh())
        self.alpha = alpha(alpha_init)

    def attention(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        text: Float[Tensor, "batch width"],
    ) -> Float[Tensor, "batch tokens"]:
        """Return the map A of a summarised sentence over the patches: positive, its sum 1."""
        query = self.query(text)  # (batch, width)
        scores = torch.einsum("bnh,bh->bn", self.key(image_tokens), query) / query.shape[-1] ** 0.5
        return torch.softmax(scores, dim=-1)

    def forward(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        text_tokens: Float[Tensor, "batch words text_width"],
        text_mask: Int[Tensor, "batch words"] | None = None,
    ) -> Float[Tensor, "batch tokens width"]:
        """Return the image tokens as the sentence changes them, same shape; ``text_mask`` is 1 for real words."""
        text = self.summarise(text_tokens, text_mask)
        weight = self.attention(image_tokens, text) * image_tokens.shape[1]  # (batch, tokens), mean 1
        return image_tokens + self.alpha * weight.unsqueeze(-1) * self.delta(text).unsqueeze(1)

    def maps(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        text_tokens: Float[Tensor, "batch words text_width"],
        text_mask: Int[Tensor, "batch words"] | None = None,
    ) -> dict[str, Float[Tensor, "batch tokens"]]:
        """Return ``text_attention``: where the sentence looks, the sum 1."""
        return {"text_attention": self.attention(image_tokens, self.summarise(text_tokens, text_mask))}
