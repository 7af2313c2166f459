"""Fewer vectors an image: the nearest ones become one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

IMAGES_AT_ONCE = 256
"""Whose dot products, 1 MB for 32 vectors, stay in a processor's cache."""
MERGED = -2.0
"""Below every cosine."""


def merge_vectors(vectors: Float[Tensor, "batch vectors dim"], num_vectors: int) -> Float[Tensor, "batch fewer dim"]:
    """Return ``num_vectors`` L2-normalised vectors an image, in float32; the input has as many or more.

    Again and again the two of an image with the largest cosine are replaced by their mean, weighted by how many
    vectors each already stands for, so that near copies go first and what is unlike all else stays.
    """
    return torch.cat([_merge(some, num_vectors) for some in vectors.split(IMAGES_AT_ONCE)])


def _merge(vectors: Float[Tensor, "batch vectors dim"], num_vectors: int) -> Float[Tensor, "batch fewer dim"]:
    unit = nn.functional.normalize(vectors.float(), dim=-1)
    batch, length, dim = unit.shape
    if num_vectors == length:
        return unit
    every = torch.arange(batch, device=unit.device)
    place = torch.arange(length, device=unit.device)
    owner = place.repeat(batch, 1)  # (batch, vectors): the place of the sum that a vector went into
    is_left = torch.ones_like(owner, dtype=torch.bool)
    # Sums are merged by their dot products alone: those of a + b are those of a plus those of b.
    products = unit @ unit.transpose(1, 2)  # (batch, vectors, vectors)
    cosines = products.masked_fill(torch.ones_like(products, dtype=torch.bool).tril(), MERGED)  # first < second
    for _ in range(length - num_vectors):
        nearest = cosines.flatten(1).argmax(dim=1)
        first, second = nearest // length, nearest % length
        products[every, first] += products[every, second]
        products[every, :, first] += products[every, :, second]
        owner = torch.where(owner == second[:, None], first[:, None], owner)
        cosines[every, second] = cosines[every, :, second] = MERGED
        is_left[every, second] = False
        squares = products.diagonal(dim1=1, dim2=2)  # (batch, vectors)
        row = products[every, first] / (squares * squares[every, first][:, None]).sqrt()
        row = row.masked_fill(~is_left, MERGED)
        cosines[every, first] = row.masked_fill(place <= first[:, None], MERGED)
        cosines[every, :, first] = row.masked_fill(place >= first[:, None], MERGED)
    sums = torch.zeros_like(unit).scatter_add_(1, owner[..., None].expand_as(unit), unit)
    return nn.functional.normalize(sums[is_left].view(batch, num_vectors, dim), dim=-1)
