"""Scores of many queries against many targets, in float32 and bounded memory."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from composir.scoring import similarity as similarity_of_block

QUERIES_PER_BLOCK = 512
PRODUCTS_PER_BLOCK = 2**24
"""Dot products held at once: 64 MB in float32."""


def similarity(
    query: Float[Tensor, "num_queries *parts dim"], target: Float[Tensor, "num_targets vectors dim"]
) -> Float32[Tensor, "num_queries num_targets"]:
    """Return every query's score against every target: the largest dot product with one of its vectors.

    A query of several vectors scores their sum. This is ``composir.similarity`` by blocks; with one L2-normalised
    vector a query the scores are cosines in [-1, 1]. The arithmetic is float32 whatever the inputs are. Beside the
    result only ``PRODUCTS_PER_BLOCK`` products and one block of targets in float32 are held; where gradients are asked
    for, autograd keeps every block until the backward pass.
    """
    _, num_vectors, dim = target.shape
    queries_per_block = max(1, QUERIES_PER_BLOCK // (1 if query.ndim == 2 else query.shape[1]))
    targets_per_block = max(1, PRODUCTS_PER_BLOCK // (num_vectors * max(QUERIES_PER_BLOCK, dim)))
    query_blocks = query.float().split(queries_per_block)
    columns = []
    for block in target.split(targets_per_block):
        vectors = block.float()
        columns.append(torch.cat([similarity_of_block(part, vectors) for part in query_blocks]))
    return torch.cat(columns, dim=1)
