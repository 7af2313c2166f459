"""The Q-Former: query tokens that read a sentence and a picture (Li et al., BLIP-2, ICML 2023, arXiv 2301.12597).

A BERT (Devlin et al., 2019) whose first positions are learned queries. Every layer lets all positions look at each
other; every n-th layer then lets the queries look at the image tokens; queries and words have feed-forwards of their
own wherever a picture is read. Weights are named, shaped and ordered as in Hugging Face's ``Blip2QFormerModel``, and
what comes out is the same; nothing is computed that nobody reads:

- Padding: positions that are no padding are the rows of one table (``Layout``), through everything but attention.
- The last layer: only the positions that are asked for.
- Keys and values of image tokens: few queries look at many tokens, so the queries are projected instead
  (``FewQueriesAttention``).

Axis words: batch, tokens (image patches), queries, words, length (queries and words), rows (all that is no padding),
hidden (width of the Q-Former), width (of an image token), heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from composir.machine import to_device

INITIALIZER_RANGE = 0.02
"""Standard deviation of BERT's fresh weights."""
LAYER_NORM_EPS = 1e-12
"""BERT's."""
PADDING_ID = 0
"""[PAD]: its embedding is not trained."""


class Sizes(Protocol):
    """What a Q-Former is made from; ``ComposerConfig`` says what each is."""

    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def num_hidden_layers(self) -> int: ...  # noqa: D102
    @property
    def num_attention_heads(self) -> int: ...  # noqa: D102
    @property
    def intermediate_size(self) -> int: ...  # noqa: D102
    @property
    def cross_attention_frequency(self) -> int: ...  # noqa: D102
    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def max_position_embeddings(self) -> int: ...  # noqa: D102
    @property
    def num_query_tokens(self) -> int: ...  # noqa: D102
    @property
    def dropout(self) -> float: ...  # noqa: D102


class TextEmbeddings(nn.Module):
    """A vector for each word and one for its position, added up; the Q-Former's own norm comes behind it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(sizes.vocab_size, sizes.hidden_size, padding_idx=PADDING_ID)
        self.position_embeddings = nn.Embedding(sizes.max_position_embeddings, sizes.hidden_size)

    def forward(self, input_ids: Int[Tensor, "batch words"]) -> Float[Tensor, "batch words hidden"]:
        """Return the embeddings of words that stand at the first positions."""
        return self.word_embeddings(input_ids) + self.position_embeddings.weight[: input_ids.shape[1]]


class QFormer(nn.Module):
    """Called with queries, words and image tokens, as far as there are any, it returns what it reads at ``at``."""

    gradient_checkpointing = False
    """In training, keep of each layer but the last what goes in, and compute it again in the backward pass."""

    def __init__(self, sizes: Sizes, token_width: int) -> None:
        super().__init__()
        self.num_query_tokens = sizes.num_query_tokens
        self.layernorm = nn.LayerNorm(sizes.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(sizes.dropout)
        layers = [Layer(sizes, number, token_width) for number in range(sizes.num_hidden_layers - 1)]
        layers.append(LastLayer(sizes, sizes.num_hidden_layers - 1, token_width))
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        self.apply(_start)

    @property
    def layers(self) -> list[Layer]:
        """The layers in their order; the last is a ``LastLayer``."""
        return list(cast("nn.ModuleList", self.encoder["layer"]))  # pyright: ignore[reportReturnType]

    def forward(
        self,
        queries: Float[Tensor, "batch_or_1 queries hidden"],
        words: Float[Tensor, "batch words hidden"] | None = None,
        mask: Int[Tensor, "batch words"] | None = None,
        image_tokens: Float[Tensor, "batch tokens width"] | None = None,
        affine: Affine | None = None,
        *,
        at: slice,
    ) -> Float[Tensor, "batch read hidden"]:
        """Return the last hidden states at some positions; queries come first, words (``mask`` 1) behind them.

        With image tokens the queries look at them, scaled and shifted by ``affine`` where there is one, and only
        queries can be read. One set of queries may serve all sentences or pictures.
        """
        if words is None or mask is None:
            layout, embeddings = Layout(queries.shape[1]), queries
        else:
            layout = self._layout(mask).to(queries.device)
            embeddings = torch.cat([queries.expand(len(words), -1, -1), words], dim=1)  # (batch, length, hidden)
        rows = self.dropout(self.layernorm(layout.rows(embeddings)))  # (rows, hidden)
        *layers, last = self.layers
        for layer in layers:
            if self.gradient_checkpointing and self.training:
                rows = cast(Tensor, checkpoint(layer, rows, layout, image_tokens, affine, use_reentrant=False))
            else:
                rows = layer(rows, layout, image_tokens, affine)
        return last(rows, layout, image_tokens, affine, at)  # (batch, read, hidden)

    def _layout(self, mask: Int[Tensor, "batch words"]) -> Layout:
        return Layout.of(self.num_query_tokens, mask)


class Layer(nn.Module):
    """Attention to each other, attention of the queries to the picture (in every n-th layer), feed-forward."""

    def __init__(self, sizes: Sizes, number: int, token_width: int) -> None:
        super().__init__()
        self.attention = Attend(self.make_attention(sizes), sizes)
        has_cross_attention = number % sizes.cross_attention_frequency == 0
        if has_cross_attention:
            self.crossattention = Attend(FewQueriesAttention(sizes, token_width), sizes)
        self.has_cross_attention = has_cross_attention
        self.intermediate, self.output = Widen(sizes), AddNorm(sizes.intermediate_size, sizes)
        self.intermediate_query, self.output_query = Widen(sizes), AddNorm(sizes.intermediate_size, sizes)

    @staticmethod
    def make_attention(sizes: Sizes) -> nn.Module:
        """Return the attention of the positions to each other."""
        return SelfAttention(sizes)

    def forward(
        self,
        rows: Float[Tensor, "rows hidden"],
        layout: Layout,
        image_tokens: Float[Tensor, "batch tokens width"] | None,
        affine: Affine | None,
    ) -> Float[Tensor, "rows hidden"]:
        """Return the rows behind the layer."""
        rows = self.attention(rows, layout)
        if image_tokens is None:
            return self.feed_forward(rows)
        queries, words = layout.split(rows)  # (batch, queries, hidden), (rows of words, hidden)
        queries = self.look(queries, image_tokens, affine).flatten(0, 1)
        return queries if words is None else torch.cat([queries, self.feed_forward(words)])

    def look(
        self,
        queries: Float[Tensor, "batch_or_1 queries hidden"],
        image_tokens: Float[Tensor, "batch tokens width"],
        affine: Affine | None,
    ) -> Float[Tensor, "batch queries hidden"]:
        """Return the queries behind a look at the picture, where the layer has one, and their own feed-forward."""
        if self.has_cross_attention:
            queries = self.crossattention(queries, image_tokens, None, affine)
        return self.output_query(self.intermediate_query(queries), queries)

    def feed_forward(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        """Return the states behind the feed-forward of words, and of queries where no picture is read."""
        return self.output(self.intermediate(states), states)


class LastLayer(Layer):
    """The layer of whose positions only some are read."""

    @staticmethod
    def make_attention(sizes: Sizes) -> nn.Module:
        """Return an attention of few positions to all."""
        return FewQueriesAttention(sizes, sizes.hidden_size)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        rows: Float[Tensor, "rows hidden"],
        layout: Layout,
        image_tokens: Float[Tensor, "batch tokens width"] | None,
        affine: Affine | None,
        at: slice,
    ) -> Float[Tensor, "batch read hidden"]:
        """Return the states at the positions ``at``, queries alone where there are image tokens."""
        hidden = layout.sequences(rows)  # (batch, length, hidden)
        read = self.attention(hidden[:, at], hidden, layout.attend)
        return self.feed_forward(read) if image_tokens is None else self.look(read, image_tokens, affine)


class Attend(nn.Module):
    """An attention and what makes a residual of it; further inputs are the attention's own."""

    def __init__(self, attention: nn.Module, sizes: Sizes) -> None:
        super().__init__()
        self.attention = attention
        self.output = AddNorm(sizes.hidden_size, sizes)

    def forward(self, states: Float[Tensor, "*batch hidden"], *context: object) -> Float[Tensor, "*batch hidden"]:
        """Return the states and what they saw, normalised."""
        return self.output(self.attention(states, *context), states)


class Affine(nn.Module):
    """``a * x + b`` by channel: what a layer norm does behind the normalising (BLIP-2's ``ln_vision``)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return the scaled and shifted states."""
        return torch.addcmul(self.bias, states, self.weight)


class AddNorm(nn.Module):
    """``LayerNorm(residual + dropout(dense(states)))``: BERT normalises behind the sum."""

    def __init__(self, size: int, sizes: Sizes) -> None:
        super().__init__()
        self.dense = nn.Linear(size, sizes.hidden_size)
        self.LayerNorm = nn.LayerNorm(sizes.hidden_size, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(
        self, states: Float[Tensor, "*batch size"], residual: Float[Tensor, "*batch hidden"]
    ) -> Float[Tensor, "*batch hidden"]:
        """Return the normalised sum."""
        return self.LayerNorm(self.dropout(self.dense(states)) + residual)


class Widen(nn.Module):
    """``gelu(dense(states))``: the first half of a feed-forward."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.dense = nn.Linear(sizes.hidden_size, sizes.intermediate_size)

    def forward(self, states: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch wide"]:
        """Return the wide states."""
        return functional.gelu(self.dense(states))


class Heads(nn.Module):
    """The projections of an attention with several heads; ``width`` is that of the states looked at."""

    def __init__(self, sizes: Sizes, width: int) -> None:
        super().__init__()
        self.num_heads = sizes.num_attention_heads
        self.scaling = (sizes.hidden_size // self.num_heads) ** -0.5
        self.dropout = sizes.dropout
        self.query = nn.Linear(sizes.hidden_size, sizes.hidden_size)
        self.key = nn.Linear(width, sizes.hidden_size)
        self.value = nn.Linear(width, sizes.hidden_size)


class SelfAttention(Heads):
    """Attention of sequences to themselves on rows: padding costs a place in the products of weights, no more."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(sizes, sizes.hidden_size)

    def forward(self, rows: Float[Tensor, "rows hidden"], layout: Layout) -> Float[Tensor, "rows hidden"]:
        """Return what each row sees of its own sequence."""
        query, key, value = (
            layout.sequences(linear(rows)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )  # (batch, heads, length, hidden / heads)
        dropout = self.dropout if self.training else 0.0
        if value.dtype == torch.bfloat16 and value.device.type == "cpu":  # the fused kernel is slow there (backward)
            scores = query * self.scaling @ key.transpose(2, 3)  # (batch, heads, length, length)
            if layout.attend is not None:  # added in place, so that neither scores nor their gradient are copied
                unseen = scores.new_zeros(layout.attend.shape).masked_fill_(~layout.attend, -torch.inf)
                scores = scores.add_(unseen)
            seen = functional.dropout(scores.softmax(dim=-1), dropout) @ value
        else:
            seen = functional.scaled_dot_product_attention(
                query, key, value, attn_mask=layout.attend, dropout_p=dropout, scale=self.scaling
            )
        return layout.rows(seen.transpose(1, 2).flatten(2))


class FewQueriesAttention(Heads):
    """Attention of few queries to many states, without a key or a value of any state.

    For every head h ``(Q_h K_h^T) x^T`` instead of ``Q_h (x K_h)^T``, and ``(P_h x) V_h`` instead of ``P_h (x V_h)``:
    what is projected are the queries of each head, not the states x. With fewer queries than a head is wide (32 of 64
    in BLIP-2, over 257 tokens of 1408) that is a third less work, and half of it for the tokens' gradient, which gated
    fusion needs. The key's bias adds the same to all scores of a query, so the softmax does not see it and it gets no
    gradient.
    """

    def forward(
        self,
        queries: Float[Tensor, "batch_or_1 queries hidden"],
        states: Float[Tensor, "batch tokens width"],
        attend: Bool[Tensor, "batch 1 1 tokens"] | None = None,
        affine: Affine | None = None,
    ) -> Float[Tensor, "batch queries hidden"]:
        """Return what each query sees of the states; those where ``attend`` is False have weight 0.

        ``affine`` scales and shifts the states first. It is done to the projections, which is the same and, unlike a
        gradient of every state, costs next to nothing: ``W (a * x + b) = (W * a) x + W b``, and the scores do not see
        the key's constant.
        """
        heads = (self.num_heads, -1)
        key, value, bias = self.key.weight, self.value.weight, self.value.bias
        if affine is not None:
            key, value, bias = key * affine.weight, value * affine.weight, bias + (value * affine.bias).sum(dim=1)
        query = self.query(queries).unflatten(-1, heads) * self.scaling  # (batch, queries, heads, hidden / heads)
        # In the order (queries, heads) the products on either side read what lies there; (heads, queries) would copy.
        asked = torch.einsum("bqhd,hdw->bqhw", query, key.unflatten(0, heads)).flatten(1, 2)
        scores = torch.einsum("brw,btw->brt", asked, states)  # (batch, queries x heads, tokens)
        if attend is not None:
            scores = scores.masked_fill(~attend[:, 0], -torch.inf)
        weights = functional.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        seen = (weights @ states).unflatten(1, (-1, self.num_heads))  # (batch, queries, heads, width)
        context = torch.einsum("bqhw,hdw->bqhd", seen, value.unflatten(0, heads))
        bias = bias.unflatten(0, heads)
        if self.training and self.dropout:  # else the weights sum to 1
            bias = bias * weights.sum(dim=-1).unflatten(1, (-1, self.num_heads)).unsqueeze(-1)
        return (context + bias).flatten(2)

    def weights(
        self,
        queries: Float[Tensor, "batch_or_1 queries hidden"],
        states: Float[Tensor, "batch tokens width"],
        attend: Bool[Tensor, "batch 1 1 tokens"] | None = None,
        affine: Affine | None = None,
    ) -> Float[Tensor, "batch heads queries tokens"]:
        """Return how the queries' looks are shared among the states, in float32, before dropout: the sum is 1."""
        with torch.autocast(states.device.type, enabled=False):
            states = states.float() if affine is None else affine(states.float())
            query, key = (
                linear(tensor.float()).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for linear, tensor in ((self.query, queries), (self.key, states))
            )  # (batch, heads, queries or tokens, hidden / heads)
            return torch.softmax(query @ key.transpose(2, 3) * self.scaling, dim=-1)


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
    is_padded: bool = False
    """Whether a sentence is shorter than another one."""

    @classmethod
    def of(cls, num_queries: int, words: Int[Tensor, "batch words"]) -> Layout:
        """Return the layout of sentences behind as many queries; ``words`` is 1 where there is a word.

        How many rows there are is for the CPU to know: where ``words`` lies on a GPU, it waits for it.
        """
        mask = torch.cat([words.new_ones(len(words), num_queries), words], dim=1).bool()
        places = torch.arange(mask.numel(), device=words.device).view(mask.shape)
        of_queries, of_words = places.split([num_queries, words.shape[1]], dim=1)
        rows_of_words = of_words[words.bool()]
        is_padded = len(rows_of_words) < of_words.numel()
        return cls(num_queries, mask, torch.cat([of_queries.flatten(), rows_of_words]), is_padded)

    def to(self, device: torch.device) -> Layout:
        """Return the layout for rows on a device."""
        if self.mask is None or self.places is None:
            return self
        return replace(self, mask=to_device(self.mask, device), places=to_device(self.places, device))

    @property
    def attend(self) -> Bool[Tensor, "batch 1 1 length"] | None:
        """The mask as attention takes it, (batch, head, from, to); None without padding, for the fastest kernels."""
        return self.mask[:, None, None] if self.mask is not None and self.is_padded else None

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


def _start(module: nn.Module) -> None:
    """Start a linear map as BERT's do; norms start at one and zero as they are."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INITIALIZER_RANGE)
        nn.init.zeros_(module.bias)
