"""What a model made of one picture and one sentence, and what each patch is worth to the answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn

from composir.models.sprc import Sprc
from composir.models.watch import Reading, token_fusions, watch, without_fusions
from composir.scoring import similarity

__all__ = ["Reading", "Trace", "Traced", "patches", "trace", "watch", "without_fusions"]

ROWS_PER_PASS = 32
"""Copies of a picture, each with another patch hidden, that go through the model at once."""


@dataclass(frozen=True)
class Trace:
    """What a model made of one picture and one sentence, by image token: float32 arrays.

    ``tokens`` run row by row from the top left, behind the class token where the tower has one (ViT);
    ``patches`` turns them into rows and columns. *Hidden* means: replaced by the mean of the picture's tokens.
    """

    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the square that the patches share, in pixels of the picture: beyond its edge
    where the transform pads, within it where it crops."""
    query: Float32[np.ndarray, " dim"]
    """The query embedding."""
    cross_attention: Float32[np.ndarray, "layers heads queries tokens"]
    """See ``Reading``."""
    attention: Float32[np.ndarray, " tokens"]
    """``cross_attention``, mean over layers, heads and queries: the sum is 1."""
    influence: Float32[np.ndarray, " tokens"]
    """How far the query embedding moves when the patch is hidden from it: Euclidean distance, 0 to 2."""
    maps: Mapping[str, Float32[np.ndarray, " tokens"]]
    """What each fusion of tokens shows, see ``Reading``."""
    change: Float32[np.ndarray, " tokens"] | None
    """See ``Reading``; None without a fusion of tokens, as the next two."""
    relative_change: Float32[np.ndarray, " tokens"] | None
    fusion_influence: Float32[np.ndarray, " tokens"] | None
    """How far the query embedding moves when the fusion leaves this one patch as it was."""
    score: float | None = None
    """The target's score, as everywhere: the largest of ``vector_scores``. None, as all below, without a target."""
    vector_scores: Float32[np.ndarray, " queries"] | None = None
    """The dot product of the query with each of the target's vectors, one a query token."""
    reference_attribution: Float32[np.ndarray, " tokens"] | None = None
    """By how much the score falls when the patch of the reference is hidden; negative where it rises."""
    target_attribution: Float32[np.ndarray, " tokens"] | None = None
    """The same for the patches of the target."""
    target_box: tuple[float, float, float, float] | None = None
    """``box`` of the target."""

    @property
    def gate(self) -> Float32[np.ndarray, " tokens"] | None:
        """``maps["gate"]``; None without gated fusion."""
        return self.maps.get("gate")

    @property
    def text_attention(self) -> Float32[np.ndarray, " tokens"] | None:
        """``maps["text_attention"]``; None without text-guided attention."""
        return self.maps.get("text_attention")


@dataclass(frozen=True)
class Traced:
    """A picture as a trace takes it."""

    tokens: Float[Tensor, "1 tokens width"]
    box: tuple[float, float, float, float]
    """See ``Trace.box``."""


def patches(values: Float32[np.ndarray, "*other tokens"]) -> Float32[np.ndarray, "*other rows columns"]:
    """Return values by token as rows and columns of patches, without the class token (257 = 1 + 16 x 16).

    A number of tokens that is neither a square nor one more raises ``ValueError``.
    """
    num_tokens = values.shape[-1]
    side = math.isqrt(num_tokens)
    if num_tokens - side * side > 1:
        raise ValueError(f"{num_tokens} tokens are no square of patches, with or without a class token")
    return values[..., num_tokens - side * side :].reshape(*values.shape[:-1], side, side)


@torch.no_grad()
def trace(
    model: Sprc,
    picture: Traced,
    input_ids: Int[Tensor, "1 words"],
    attention_mask: Int[Tensor, "1 words"],
    target: Traced | None = None,
) -> Trace:
    """Return what the model made of a picture with a sentence, and of its score against ``target`` where one is given.

    The influences and attributions are measured, not estimated from gradients: the model answers once for every
    patch hidden, so a trace takes one to three passes a patch.
    """
    tokens = picture.tokens

    def ask(rows: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows dim"]:
        return model.encode_query(rows, input_ids.expand(len(rows), -1), attention_mask.expand(len(rows), -1))

    with _evaluating(model):
        with watch(model, keep=8) as seen:
            query = ask(tokens)
        reading = next(one for one in seen if one.with_text)
        queries_without = torch.cat([ask(rows) for rows in _hide_each(tokens)])  # (tokens, dim)
        fusion_influence = None
        if reading.change is not None:
            reverted = _ask_with_each_left_as_it_was(model, tokens, ask)
            fusion_influence = _array((reverted - query).norm(dim=-1))
        about_target = {} if target is None else _trace_target(model, query, queries_without, target)
    return Trace(
        box=picture.box,
        query=_array(query[0]),
        cross_attention=_array(reading.cross_attention[0]),
        attention=_array(reading.cross_attention[0].mean(dim=(0, 1, 2))),
        influence=_array((queries_without - query).norm(dim=-1)),
        maps={name: _array(values[0]) for name, values in reading.maps.items()},
        change=_first(reading.change),
        relative_change=_first(reading.relative_change),
        fusion_influence=fusion_influence,
        **about_target,
    )


def _trace_target(model: Sprc, query: Tensor, queries_without: Tensor, target: Traced) -> dict[str, Any]:
    vectors = model.encode_target(target.tokens)  # (1, queries, dim)
    score = similarity(query, vectors)[0, 0]
    hidden = torch.cat([similarity(query, model.encode_target(rows))[0] for rows in _hide_each(target.tokens)])
    return {
        "score": score.item(),
        "vector_scores": _array(vectors[0] @ query[0]),
        "reference_attribution": _array(score - similarity(queries_without, vectors)[:, 0]),
        "target_attribution": _array(score - hidden),
        "target_box": target.box,
    }


def _hide_each(tokens: Float[Tensor, "1 tokens width"]) -> Iterator[Float[Tensor, "rows tokens width"]]:
    """Give copies of a picture's tokens, in each of them another one replaced by the mean of all, in order."""
    num_tokens = tokens.shape[1]
    mean = tokens.float().mean(dim=1).to(tokens.dtype)
    for start in range(0, num_tokens, ROWS_PER_PASS):
        places = torch.arange(start, min(start + ROWS_PER_PASS, num_tokens))
        rows = tokens.repeat(len(places), 1, 1)
        rows[torch.arange(len(places)), places] = mean
        yield rows


def _ask_with_each_left_as_it_was(
    model: Sprc, tokens: Float[Tensor, "1 tokens width"], ask: Callable[[Tensor], Tensor]
) -> Float[Tensor, "tokens dim"]:
    """Return the query embeddings where the fusions change all patches but one, for each patch in order."""
    num_tokens = tokens.shape[1]
    places = torch.arange(0)

    def put_back(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = torch.arange(len(places))
        output[rows, places] = inputs[0][rows, places]
        return output

    handles = [module.register_forward_hook(put_back) for module in token_fusions(model)]
    try:
        queries = []
        for start in range(0, num_tokens, ROWS_PER_PASS):
            places = torch.arange(start, min(start + ROWS_PER_PASS, num_tokens))
            queries.append(ask(tokens.expand(len(places), -1, -1)))
        return torch.cat(queries)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(model: Sprc) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _array(values: Tensor) -> Float32[np.ndarray, ...]:
    return values.detach().float().cpu().numpy()


def _first(values: Tensor | None) -> Float32[np.ndarray, " tokens"] | None:
    return None if values is None else _array(values[0])
