"""The late gate: what the picture alone and the sentence alone say joins the composed query, by learned shares."""

from __future__ import annotations

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LateGate(nn.Module):
    """``c + g_v v + g_p p`` with ``(g_v, g_p) = sigmoid(W2 relu(W1 [c; v; p]))``, two numbers a query.

    ``c`` is the composed query's embedding, ``v`` the reference's and ``p`` the sentence's, each of length 1. ``W2``
    and its bias start at zero, so both shares start at a half. ``v`` and ``p`` are what the model already computes:
    ``v`` as of any picture it retrieves, ``p`` for ``loss_rtc``.
    Parameters at width D: ``3 D^2 + 3 D + 2``.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(3 * dim, dim), nn.ReLU(), nn.Linear(dim, 2), nn.Sigmoid())
        last = cast(nn.Linear, self.gate[2])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def shares(
        self,
        query: Float[Tensor, "batch dim"],
        reference: Float[Tensor, "batch dim"],
        sentence: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch 2"]:
        """Return the weights in (0, 1) of the reference's and of the sentence's embedding."""
        return self.gate(torch.cat([query, reference, sentence], dim=-1))

    def forward(
        self,
        query: Float[Tensor, "batch dim"],
        reference: Float[Tensor, "batch dim"],
        sentence: Float[Tensor, "batch dim"],
    ) -> Float[Tensor, "batch dim"]:
        """Return the three embeddings added up by their shares, not normalised."""
        of_reference, of_sentence = self.shares(query, reference, sentence).split(1, dim=-1)  # (batch, 1) each
        return query + of_reference * reference + of_sentence * sentence
