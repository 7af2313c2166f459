"""Attention in which few queries look at many tokens, without a key or a value of any token."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention


class FewQueriesAttention(nn.Module):
    """The library's attention to other states, with its weights and its results, its products in another order.

    For every head h ``(Q_h K_h^T) x^T`` instead of ``Q_h (x K_h)^T``, and ``(P_h x) V_h`` instead of ``P_h (x V_h)``:
    what is projected are the queries of each head, not the tokens. With fewer queries than a head is wide (32 of 64
    in BLIP-2, over 257 tokens of 1408) that is a third less work, and half of it for the tokens' gradient, which gated
    fusion needs. The key's bias adds the same to all scores of a query, so the softmax does not see it and it gets no
    gradient.
    """

    def __init__(self, attention: Blip2QFormerMultiHeadAttention) -> None:
        super().__init__()
        self.query, self.key, self.value = attention.query, attention.key, attention.value
        self.num_attention_heads = attention.num_attention_heads
        self.scaling = attention.scaling
        self.attention_dropout = attention.attention_dropout

    def forward(
        self,
        hidden_states: Float[Tensor, "batch_or_1 queries hidden"],
        encoder_hidden_states: Float[Tensor, "batch tokens width"],
        encoder_attention_mask: Bool[Tensor, "batch 1 1 tokens"] | None = None,
        **_: Any,
    ) -> tuple[Float[Tensor, "batch queries hidden"], Float[Tensor, "batch heads queries tokens"]]:
        """Return what each query sees of the tokens, and its weights over them; those masked False have weight 0."""
        heads = (self.num_attention_heads, -1)
        query = self.query(hidden_states).unflatten(-1, heads) * self.scaling
        asked = torch.einsum("bqhd,hdw->bhqw", query, self.key.weight.unflatten(0, heads)).flatten(1, 2)
        scores = torch.einsum("brw,btw->brt", asked, encoder_hidden_states)  # (batch, heads x queries, tokens)
        if encoder_attention_mask is not None:
            scores = scores.masked_fill(~encoder_attention_mask[:, 0], -torch.inf)
        weights = nn.functional.dropout(scores.softmax(dim=-1), self.attention_dropout, self.training)
        seen = (weights @ encoder_hidden_states).unflatten(1, heads)  # (batch, heads, queries, width)
        context = torch.einsum("bhqw,hdw->bqhd", seen, self.value.weight.unflatten(0, heads))
        bias = self.value.bias.unflatten(0, heads)
        if self.training and self.attention_dropout:  # else the weights sum to 1
            bias = bias * weights.sum(dim=-1).unflatten(1, heads).transpose(1, 2).unsqueeze(-1)
        return (context + bias).flatten(2), weights.unflatten(1, heads)
