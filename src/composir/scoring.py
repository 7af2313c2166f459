"""The one similarity: a query vector against the several vectors of each target."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def similarity(
    query: Float[Tensor, "num_queries dim"], target: Float[Tensor, "num_targets vectors dim"]
) -> Float[Tensor, "num_queries num_targets"]:
    """Return the largest dot product of each query with any of a target's vectors."""
    num_targets, vectors, dim = target.shape
    products = query @ target.reshape(num_targets * vectors, dim).T
    return products.view(len(query), num_targets, vectors).amax(dim=-1)
