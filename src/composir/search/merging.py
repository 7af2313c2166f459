"""Fewer vectors an image: the nearest ones become one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def merge_vectors(vectors: Float[Tensor, "batch vectors dim"], num_vectors: int) -> Float[Tensor, "batch fewer dim"]:
    """Return ``num_vectors`` L2-normalised vectors an image, in float32; the input has as many or more.

    Again and again the two of an image with the largest cosine are replaced by their mean, weighted by how many
    vectors each already stands for, so that near copies go first and what is unlike all else stays.
    """
    batch, length, _ = vectors.shape
    sums = nn.functional.normalize(vectors.float(), dim=-1)
    every = torch.arange(batch, device=vectors.device)
    for count in range(length, num_vectors, -1):
        unit = nn.functional.normalize(sums, dim=-1)  # (batch, count, dim)
        cosines = unit @ unit.transpose(1, 2)
        cosines.masked_fill_(torch.ones(count, count, dtype=torch.bool, device=vectors.device).tril(), -2.0)
        nearest = cosines.flatten(1).argmax(dim=1)
        first, second = nearest // count, nearest % count  # first < second
        merged = sums[every, first] + sums[every, second]
        sums[every, first] = merged
        keep = torch.arange(count, device=vectors.device) != second[:, None]  # (batch, count)
        sums = sums[keep].view(batch, count - 1, -1)
    return nn.functional.normalize(sums, dim=-1)
