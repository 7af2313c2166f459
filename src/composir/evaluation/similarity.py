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
    query: Float[Tensor, "num_queries dim"], target: Float[Tensor, "num_targets vectors dim"]
) -> Float32[Tensor, "num_queries num_targets"]:
    """Return every query's score against every target: the largest dot product with one of its vectors.

    This is ``composir.similarity`` by blocks; with L2-normalised embeddings the scores are cosines in
    [-1, 1]. The arithmetic is float32 whatever the inputs are and also inside autocast. Beside the result
    only ``PRODUCTS_PER_BLOCK`` products and one block of targets in float32 are held; where gradients are
    asked for, autograd keeps every block until the backward pass.
    """
    _, num_vectors, dim = target.shape
    targets_per_block = max(1, PRODUCTS_PER_BLOCK // (num_vectors * max(QUERIES_PER_BLOCK, dim)))
    with torch.autocast(query.device.type, enabled=False):
        query_blocks = query.float().split(QUERIES_PER_BLOCK)
        columns = []
        for block in target.split(targets_per_block):
            vectors = block.float()
            columns.append(torch.cat([similarity_of_block(part, vectors) for part in query_blocks]))
        return torch.cat(columns, dim=1)
