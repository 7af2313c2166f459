"""The Q-Former's attention without work that nothing reads: for padding, for a key or a value of every image token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention


@dataclass(frozen=True, slots=True)
class Layout:
    """Which rows of a table are which positions of a batch of sequences, each some queries and a sentence behind them.

    Rows are positions that are no padding: first the queries of all sequences, then the words. Whatever works on
    each position for itself works on rows; attention needs the sequences, with padding.
    """

    num_queries: int
    mask: Bool[Tensor, "batch length"] | None = None
    """True where a sequence has a query or a word; None where there are only queries, and any number of sequences."""
    places: Int[Tensor, " rows"] | None = None
    """The place of every row in the flattened ``mask``."""

    @classmethod
    def of(cls, num_queries: int, words: Int[Tensor, "batch words"]) -> Layout:
        """Return the layout of sentences behind as many queries; ``words`` is 1 where there is a word."""
        mask = torch.cat([words.new_ones(len(words), num_queries), words], dim=1).bool()
        places = torch.arange(mask.numel(), device=words.device).view(mask.shape)
        of_queries, of_words = places.split([num_queries, words.shape[1]], dim=1)
        return cls(num_queries, mask, torch.cat([of_queries.flatten(), of_words[words.bool()]]))

    @property
    def attend(self) -> Bool[Tensor, "batch 1 1 length"] | None:
        """The mask as attention takes it: (batch, head, from, to)."""
        return None if self.mask is None else self.mask[:, None, None]

    def rows(self, sequences: Float[Tensor, "batch length width"]) -> Float[Tensor, "rows width"]:
        """Return the rows of padded sequences."""
        flat = sequences.flatten(0, 1)
        return flat if self.places is None else flat.index_select(0, self.places)

    def sequences(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "batch length width"]:
        """Return the padded sequences of rows; padding is zero."""
        if self.mask is None or self.places is None:
            return rows.unflatten(0, (-1, self.num_queries))
        padding = rows.new_zeros(self.mask.numel(), rows.shape[1])
        return padding.index_copy(0, self.places, rows).unflatten(0, self.mask.shape)

    def split(
        self, rows: Float[Tensor, "rows width"]
    ) -> tuple[Float[Tensor, "batch queries width"], Float[Tensor, "words width"] | None]:
        """Return the queries of every sequence, and the rows of all words."""
        if self.mask is None:
            return self.sequences(rows), None
        num_query_rows = len(self.mask) * self.num_queries
        queries, words = rows.split([num_query_rows, len(rows) - num_query_rows])
        return queries.unflatten(0, (-1, self.num_queries)), words


class _WithLibraryWeights(nn.Module):
    """An attention that holds the library's weights and settings, under the library's names."""

    def __init__(self, attention: Blip2QFormerMultiHeadAttention) -> None:
        super().__init__()
        self.query, self.key, self.value = attention.query, attention.key, attention.value
        self.num_attention_heads = attention.num_attention_heads
        self.scaling = attention.scaling
        self.attention_dropout = attention.attention_dropout


class SelfAttention(_WithLibraryWeights):
    """The library's attention of a sequence to itself, with its weights and results, on rows: padding costs nothing
    but a place in the products of attention weights."""

    def forward(
        self, hidden_states: Float[Tensor, "rows hidden"], *, layout: Layout, **_: Any
    ) -> tuple[Float[Tensor, "rows hidden"], None]:
        """Return what each row sees of its own sequence; the weights are not kept."""
        query, key, value = (
            layout.sequences(linear(hidden_states)).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        dropout = self.attention_dropout if self.training else 0.0
        if value.dtype == torch.bfloat16 and value.device.type == "cpu":  # the fused kernel is slow there (backward)
            scores = query * self.scaling @ key.transpose(2, 3)
            if layout.attend is not None:
                scores = scores.masked_fill(~layout.attend, -torch.inf)
            seen = nn.functional.dropout(scores.softmax(dim=-1), dropout) @ value
        else:
            seen = nn.functional.scaled_dot_product_attention(
                query, key, value, attn_mask=layout.attend, dropout_p=dropout, scale=self.scaling
            )
        return layout.rows(seen.transpose(1, 2).flatten(2)), None


class FewQueriesAttention(_WithLibraryWeights):
    """The library's attention to other states, with its weights and its results, its products in another order.

    For every head h ``(Q_h K_h^T) x^T`` instead of ``Q_h (x K_h)^T``, and ``(P_h x) V_h`` instead of ``P_h (x V_h)``:
    what is projected are the queries of each head, not the tokens. With fewer queries than a head is wide (32 of 64
    in BLIP-2, over 257 tokens of 1408) that is a third less work, and half of it for the tokens' gradient, which gated
    fusion needs. The key's bias adds the same to all scores of a query, so the softmax does not see it and it gets no
    gradient.
    """

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
        # In the order (queries, heads) the products on either side read what lies there; (heads, queries) would copy.
        asked = torch.einsum("bqhd,hdw->bqhw", query, self.key.weight.unflatten(0, heads)).flatten(1, 2)
        scores = torch.einsum("brw,btw->brt", asked, encoder_hidden_states)  # (batch, queries x heads, tokens)
        if encoder_attention_mask is not None:
            scores = scores.masked_fill(~encoder_attention_mask[:, 0], -torch.inf)
        weights = nn.functional.dropout(scores.softmax(dim=-1), self.attention_dropout, self.training)
        seen = (weights @ encoder_hidden_states).unflatten(1, (-1, self.num_attention_heads))
        context = torch.einsum("bqhw,hdw->bqhd", seen, self.value.weight.unflatten(0, heads))
        bias = self.value.bias.unflatten(0, heads)
        weights = weights.unflatten(1, (-1, self.num_attention_heads)).transpose(1, 2)
        if self.training and self.attention_dropout:  # else the weights sum to 1
            bias = bias * weights.sum(dim=-1).transpose(1, 2).unsqueeze(-1)
        return (context + bias).flatten(2), weights
