"""Embeddings without pictures, to measure search by."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

IMAGES_A_THEME, IMAGES_A_BLOCK = 50, 2_000
IMAGE_SPREAD, VECTOR_SPREAD, QUERY_SPREAD = 0.7, 0.3, 0.6
"""Lengths, to the theme's 1, of what sets an image apart from its theme, a vector from its image, a query from its
target."""


def synthetic_blocks(num_images: int, num_vectors: int, dim: int, *, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield ``synthetic_targets`` in blocks of images, without ever holding all."""
    rng = np.random.default_rng(seed)
    themes = _gauss(rng, max(8, num_images // IMAGES_A_THEME), dim)
    for start in range(0, num_images, IMAGES_A_BLOCK):
        count = min(IMAGES_A_BLOCK, num_images - start)
        images = themes[rng.integers(len(themes), size=count)] + IMAGE_SPREAD * _gauss(rng, count, dim)
        vectors = images[:, None] + VECTOR_SPREAD * _gauss(rng, count, num_vectors, dim)
        yield (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float16)


def synthetic_targets(num_images: int, num_vectors: int, dim: int, *, seed: int = 0) -> np.ndarray:
    """Return L2-normalised fp16 (num_images, num_vectors, dim): images around themes, near copies within an image."""
    return np.concatenate(list(synthetic_blocks(num_images, num_vectors, dim, seed=seed)))


def queries_near(vectors: np.ndarray, num_queries: int, *, seed: int = 0) -> Float[Tensor, "num_queries dim"]:
    """Return L2-normalised queries, each some way off a vector of an image drawn from ``vectors``."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(vectors), size=num_queries)
    places = rng.integers(vectors.shape[1], size=num_queries)
    near = vectors[rows, places].astype(np.float32)
    return nn.functional.normalize(torch.from_numpy(near + QUERY_SPREAD * _gauss(rng, *near.shape)), dim=-1)


def _gauss(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return random vectors of length 1, on average."""
    return rng.standard_normal(shape, np.float32) / np.sqrt(shape[-1], dtype=np.float32)
