"""The token cache filled ahead of a training."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from composir.data import DATASETS, Left, find_dataset, load_splits
from composir.data.check import require_images, without_missing_images
from composir.machine import default_device
from composir.models.backbones import find_backbone
from composir.progress import Counted
from composir.token_cache import TokenCache, TokenPlace, fill_splits, make_cache
from composir.training.recipe import Recipe


@dataclass(frozen=True)
class Features:
    """What ``compute_features`` has left in the token cache."""

    num_images: int
    num_computed: int
    """Those of them that were not there yet."""
    bytes: int
    """Size of the tokens of all ``num_images``."""
    images_per_second: float
    """Of those that were computed; 0 without any."""
    folder: str
    left: dict[str, Left] = field(default_factory=dict)
    """What is left of each split, by ``split_key``, where the recipe skips what needs a missing image."""


def compute_features(
    recipe: Recipe,
    *,
    splits: Sequence[str] | None = None,
    cache_dir: Path | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> Features:
    """Return what is in the token cache once every image is that training by ``recipe`` needs, or ``splits`` have.

    ``progress`` is told what ``Observer.on_features`` is.
    """
    backbone = find_backbone(recipe.backbone, recipe.weights)
    names = splits or ("train", DATASETS[find_dataset(recipe.dataset)].evaluated)
    loaded = [split for name in names for split in load_splits(recipe.dataset, recipe.data_root, name)]
    left_by_key: dict[str, Left] = {}
    if recipe.skip_missing_images:
        reduced, left_by_key = without_missing_images(loaded)
        loaded = list(reduced)
    require_images(loaded)
    tower = backbone.tower(recipe.weights)
    tower.transform, tower.target_ratio = recipe.transform, recipe.target_ratio
    tower.to(default_device())
    tokens = make_cache(tower, TokenPlace(folder=cache_dir, num_workers=recipe.num_workers))
    start = time.perf_counter()
    num_computed = fill_splits(tokens, loaded, with_size(tokens, progress))
    num_images = len({source for split in loaded for source in split.images.values()})
    return Features(
        num_images=num_images,
        num_computed=num_computed,
        bytes=num_images * tokens.bytes_per_image,
        images_per_second=round(num_computed / (time.perf_counter() - start), 2),
        folder=str(tokens.directory),
        left=left_by_key,
    )


def with_size(tokens: TokenCache, progress: Callable[[int, int, int], None] | None) -> Counted:
    """Return a progress of (done, total) that tells ``progress`` of the bytes of all, too."""

    def tell(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total, total * tokens.bytes_per_image)

    return tell
