"""What feeds a training step, images a second: cached tokens, decoding, the tower; and indexing beside its parts."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from composir.benchmark import indexing
from composir.benchmark.processes import Measured, alone, in_fresh_process
from composir.benchmark.steps import REAL
from composir.data import read_image
from composir.data.transforms import CLIP_MEAN, CLIP_STD, IMAGE_SIZE
from composir.machine import default_device, describe_machine
from composir.models.backbones import BACKBONES
from composir.models.vision import TOWER_BATCH, Tower
from composir.models.vit import EVA, EVA_EPS, LastHidden
from composir.token_cache import NUM_WORKERS, read_ahead
from composir.token_store import DATA, TokenStore

CIRR_TRAIN_IMAGES = 16_939
REAL_TOKENS = (257, 1408)
REAL_BLOCKS, REAL_HEADS, REAL_INTERMEDIATE = 39, 16, 6144
WEIGHTS_STD = 0.02
IMAGES_A_BLOCK = 256
BATCH = 64
"""Images that are read at once."""
INDEX = "index"
NUM_PICTURES, NUM_INDEXED, PICTURE_SIZE, JPEG_QUALITY = 256, 1_024, (640, 480), 90
"""Of the generated photographs: smooth noise, so that they take a decoder as long as photographs of this size."""


def benchmark_features(
    *,
    backbone: str = REAL,
    num_images: int = CIRR_TRAIN_IMAGES,
    num_reads: int = 2_048,
    num_tower_images: int = TOWER_BATCH,
    repeats: int = 3,
    num_workers: int = NUM_WORKERS,
    directory: Path | None = None,
) -> dict[str, Any]:
    """Return how fast images come, as ``composir benchmark features`` prints it; all data are made up.

    - ``read cold`` and ``read warm``: rows of a token cache of ``num_images`` images of the backbone's size, at random,
      by batches of 64: after the system was told to forget the file, and once more.
    - ``decode``: pictures decoded to RGB by Pillow, by as many threads; ``prepare``: what the tower takes in, from
      the file: checked, upright, targetpad, resized.
    - ``tower``: the backbone's tokens of pictures that are ready; ``real`` is EVA ViT-g with random weights.
    - ``index``, of any other backbone: ``composir index`` over 1,024 pictures on the CPU, its start included, and what
      each part takes alone: ``index: decode``, ``square``, ``tower`` and ``Q-Former`` of a picture, and ``open``, the
      opening of the model, once. These are processor time.

    In ``ratios``: ``prepare_over_decode``, in time an image; ``tower_over_prepare`` and ``tower_over_read_cold``: how
    many times longer the tower takes for an image than preparing it, and than reading its tokens from the cache;
    ``index_over_parts``: how many times longer than the four parts of a picture indexing takes for one.
    """
    shape = REAL_TOKENS if backbone == REAL else _shape(backbone)
    with tempfile.TemporaryDirectory(prefix="composir-benchmark-", dir=directory) as name:
        folder = Path(name)
        alone(fill_store, folder / "tokens", shape, num_images)
        pictures = _make_pictures(folder / "pictures", NUM_PICTURES)
        work: dict[str, tuple[int, Callable[..., float], tuple[Any, ...]]] = {
            "read cold": (num_reads, _read, (folder / "tokens", shape, num_reads, True)),
            "read warm": (num_reads, _read, (folder / "tokens", shape, num_reads, False)),
            "decode": (len(pictures), _decode, (pictures, num_workers)),
            "prepare": (len(pictures), _prepare, (pictures, num_workers, backbone)),
            "tower": (num_tower_images, _tower, (backbone, num_tower_images)),
        }
        runs: dict[str, list[Any]] = {part: [] for part in work}
        for _ in range(repeats):
            for part, (_, function, arguments) in work.items():
                runs[part].append(alone(function, *arguments))
        over_parts: list[float] = []
        if backbone != REAL:
            model = folder / "model"
            in_fresh_process(indexing.save_untrained, backbone, model)
            indexed = _make_pictures(folder / "indexed", NUM_INDEXED)
            for _ in range(repeats):
                taken, peak = in_fresh_process(indexing.parts, pictures, model)
                for part, one in taken.items():
                    runs.setdefault(f"{INDEX}: {part}", []).append(Measured(one, peak))
                whole = alone(indexing.index, indexed[0].parent, model)
                runs.setdefault(INDEX, []).append(whole)
                of_picture = sum(one for part, one in taken.items() if part != indexing.OPEN) / len(pictures)
                over_parts.append(whole.seconds / len(indexed) / of_picture)
        num_bytes = (folder / "tokens" / DATA).stat().st_size
    seconds = {part: [run.seconds for run in measured] for part, measured in runs.items()}
    counts = {part: count for part, (count, _, _) in work.items()} | {
        INDEX: NUM_INDEXED,
        f"{INDEX}: {indexing.OPEN}": 1,
    }
    per_image = {part: median(times) / counts.get(part, len(pictures)) for part, times in seconds.items()}
    ratios = {
        "prepare_over_decode": per_image["prepare"] / per_image["decode"],
        "tower_over_prepare": per_image["tower"] / per_image["prepare"],
        "tower_over_read_cold": per_image["tower"] / per_image["read cold"],
    }
    if over_parts:
        ratios["index_over_parts"] = median(over_parts)
    return {
        "ratios": ratios,
        "images_per_second": {part: 1 / one for part, one in per_image.items()},
        "seconds": {part: [round(one, 4) for one in times] for part, times in seconds.items()},
        "peak_memory_bytes": {part: max(run.peak_memory_bytes for run in measured) for part, measured in runs.items()},
        "cache_bytes": num_bytes,
        "machine": describe_machine(),
    }


def _shape(backbone: str) -> tuple[int, int]:
    tower = BACKBONES[backbone].tower("")
    return tower.num_tokens, tower.width


def fill_store(folder: Path, shape: tuple[int, int], num_images: int) -> float:
    """Return the seconds of writing a token cache; every block holds the same random tokens."""
    block = torch.randn(IMAGES_A_BLOCK, *shape, generator=torch.Generator().manual_seed(0)).half().numpy()
    start = time.perf_counter()
    with closing(TokenStore(folder, shape)) as store:
        store.require_space(num_images)
        for first in range(0, num_images, IMAGES_A_BLOCK):
            images = [str(number) for number in range(first, min(first + IMAGES_A_BLOCK, num_images))]
            store.add(images, block[: len(images)])
    return time.perf_counter() - start


def _read(folder: Path, shape: tuple[int, int], num_reads: int, is_cold: bool) -> float:
    """Return the seconds of reading rows at random, by batches, as the token cache gives them to a step."""
    if is_cold:
        forget(folder / DATA)
    with closing(TokenStore(folder, shape)) as store:
        rows = store.map()
    chosen = np.random.default_rng(0).integers(0, len(rows), num_reads)
    start = time.perf_counter()
    for first in range(0, num_reads, BATCH):
        np.stack([rows[row] for row in chosen[first : first + BATCH]])
    return time.perf_counter() - start


def forget(file: Path) -> None:
    """Have the system forget what it keeps of a file in memory."""
    if hasattr(os, "posix_fadvise"):  # not on macOS, where the first reading is cold and no other
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _make_pictures(folder: Path, count: int) -> list[Path]:
    chance = np.random.default_rng(0)
    folder.mkdir()
    pictures = [folder / f"{number:04}.jpg" for number in range(count)]
    for picture in pictures:
        coarse = Image.fromarray(chance.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        coarse.resize(PICTURE_SIZE, Image.Resampling.BICUBIC).save(picture, quality=JPEG_QUALITY)
    return pictures


def _decode(pictures: list[Path], num_workers: int) -> float:
    return _through_threads(_decode_raw, pictures, num_workers)


def _decode_raw(picture: Path) -> np.ndarray:
    with Image.open(picture) as image:
        return np.asarray(image.convert("RGB"))


def _prepare(pictures: list[Path], num_workers: int, backbone: str) -> float:
    tower = real_tower(num_blocks=0) if backbone == REAL else BACKBONES[backbone].tower("")
    return _through_threads(partial(_prepare_one, tower), pictures, num_workers)


def _prepare_one(tower: Tower, picture: Path) -> np.ndarray:
    return tower.prepare(read_image(picture))


def _through_threads(work: Callable[[Path], np.ndarray], pictures: list[Path], num_workers: int) -> float:
    start = time.perf_counter()
    for _ in read_ahead(work, pictures, size=TOWER_BATCH, num_workers=num_workers):
        pass
    return time.perf_counter() - start


def _tower(backbone: str, num_images: int) -> float:
    """Return the seconds of the tower over pictures, after one pass that is not counted."""
    device = default_device()
    tower = real_tower(device=device) if backbone == REAL else BACKBONES[backbone].tower("").to(device)
    size = tower.image_size
    pixels = torch.randint(0, 256, (num_images, 3, size, size), dtype=torch.uint8)
    tower(pixels[: tower.batch_size]).cpu()
    start = time.perf_counter()
    for batch in pixels.split(tower.batch_size):
        tower(batch).cpu()
    return time.perf_counter() - start


def real_tower(num_blocks: int = REAL_BLOCKS, device: torch.device | None = None) -> Tower:
    """Return EVA ViT-g at its real size with random weights; without blocks it prepares pictures all the same."""
    from transformers import Blip2VisionConfig, Blip2VisionModel  # noqa: PLC0415 (seconds, and only towers need it)

    device = device or torch.device("cpu")
    num_tokens, width = REAL_TOKENS
    config = Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=REAL_INTERMEDIATE,
        num_hidden_layers=num_blocks,
        num_attention_heads=REAL_HEADS,
        image_size=IMAGE_SIZE,
        patch_size=14,
        layer_norm_eps=EVA_EPS,
        qkv_bias=True,
    )
    with torch.device("meta"):
        network = LastHidden(Blip2VisionModel(config), width, EVA_EPS, affine=False)
    network.to_empty(device=device)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=WEIGHTS_STD)
    return Tower(EVA, network, num_tokens=num_tokens, width=width, mean=CLIP_MEAN, std=CLIP_STD, half_on_gpu=True).to(
        device
    )
