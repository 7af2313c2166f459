"""The one similarity: the vectors of a query against the several vectors of each target."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def similarity(
    query: Float[Tensor, "num_queries *parts dim"], target: Float[Tensor, "num_targets vectors dim"]
) -> Float[Tensor, "num_queries num_targets"]:
    """Return the largest dot product of each query with any of a target's vectors.

    A query of several vectors scores the sum over them, each with the target's vector that fits it best: late
    interaction (Khattab and Zaharia, 2020; FILIP, arXiv 2111.07783, with the vectors' weights in their length).

    The arithmetic is float32 (float64 where the inputs are) also inside autocast: at the temperatures that training
    ends with, bf16's three digits tie one largest product in six and shift every logit by tenths.
    """
    num_targets, vectors, dim = target.shape
    precise = torch.promote_types(torch.promote_types(query.dtype, target.dtype), torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        flat = target.reshape(num_targets * vectors, dim).to(precise)
        products = query.to(precise) @ flat.T  # (queries, [parts,] targets x vectors)
        best = products.unflatten(-1, (num_targets, vectors)).amax(dim=-1)
        return best if query.ndim == 2 else best.sum(dim=1)
