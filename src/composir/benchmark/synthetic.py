"""Embeddings without pictures, to measure search by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

IMAGES_A_THEME, IMAGES_A_BLOCK = 50, 500
IMAGE_SPREAD, VECTOR_SPREAD, QUERY_SPREAD = 0.7, 0.3, 0.6
"""Lengths, to the theme's 1, of what sets an image apart from its theme, a vector from its image, a query from its
target."""


def synthetic_blocks(
    num_images: int, num_vectors: int, dim: int, *, seed: int = 0, every: int = 1
) -> Iterator[np.ndarray]:
    """Yield L2-normalised fp16 (images, num_vectors, dim) block by block; with ``every`` each so-many-th block.

    Images lie around themes, an image's vectors are near copies of each other. Every block has random numbers of its
    own, so one that is passed over costs nothing.
    """
    themes = _gauss(max(8, num_images // IMAGES_A_THEME), dim, seed=(seed, 0))
    for number, start in enumerate(range(0, num_images, IMAGES_A_BLOCK)):
        if number % every == 0:
            count = min(IMAGES_A_BLOCK, num_images - start)
            chosen = np.random.default_rng((seed, number)).integers(len(themes), size=count)
            images = themes[chosen] + IMAGE_SPREAD * _gauss(count, dim, seed=(seed, 1, number))
            vectors = _gauss(count, num_vectors, dim, seed=(seed, 2, number))
            vectors.mul_(VECTOR_SPREAD).add_(images[:, None])
            yield nn.functional.normalize(vectors, dim=-1, out=vectors).half().numpy()


def queries_near(vectors: np.ndarray, num_queries: int, *, seed: int = 0) -> Float[Tensor, "num_queries dim"]:
    """Return L2-normalised queries, each some way off a vector of an image drawn from ``vectors``."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(vectors), size=num_queries)
    places = rng.integers(vectors.shape[1], size=num_queries)
    near = torch.from_numpy(vectors[rows, places]).float()
    return nn.functional.normalize(near + QUERY_SPREAD * _gauss(*near.shape, seed=(seed, 3)), dim=-1)


def _gauss(*shape: int, seed: tuple[int, ...]) -> Tensor:
    """Return random vectors of length 1, on average; several times as fast as numpy's."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    return torch.randn(shape, generator=generator).div_(shape[-1] ** 0.5)
