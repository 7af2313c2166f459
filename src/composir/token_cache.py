"""Image tokens of the frozen tower, computed once an image: in files, in memory, or at every use."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float16
from torch import Tensor

from composir.data import Split, read_image
from composir.data.check import check_images
from composir.data.images import Crop, ImageSource, file_of
from composir.errors import ComposirError, ProblemsError, nearest
from composir.files import default_cache_dir, size_text
from composir.machine import available_memory, empty_for_copies, to_device
from composir.models.vision import Tower
from composir.progress import Counted
from composir.token_store import TokenStore

IMAGES_A_SUM = 64
"""Images whose tokens are read at once for a mean."""
MEANS_KEPT = 8
NUM_WORKERS = 4
SECONDS_BETWEEN_WRITES = 1.0
"""The work that a kill costs a cache on disk."""
DISK, MEMORY, OFF = "disk", "memory", "off"
CACHES = (DISK, MEMORY, OFF)
"""Where tokens can be kept."""


Item = TypeVar("Item")
Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class TokenPlace:
    """Where image tokens are kept, and how many threads decode the pictures they are made of."""

    kind: str = DISK
    """One of ``CACHES``."""
    folder: Path | None = None
    """Of tokens on disk; without one ``default_cache_dir()``."""
    num_workers: int = NUM_WORKERS

    def __post_init__(self) -> None:
        if self.kind not in CACHES:
            raise ComposirError(
                f"--cache {self.kind!r} is not known", expected=", ".join(CACHES), fix=nearest(self.kind, CACHES)
            )
        if self.folder is not None and self.kind != DISK:
            raise ComposirError(
                f"--cache {self.kind} keeps nothing in --cache-dir {self.folder}", fix="leave one of them out"
            )


ON_DISK = TokenPlace()


class TokenCache:
    """The tower's tokens of images, fp16: on disk below ``directory``, in memory without one, or never kept.

    On disk they are in a ``TokenStore``, one for each tower (its weights), transform, and kind of device with the
    precision that the tower has there, under the content of the image: a changed picture, another tower or another
    transform is never answered with what was computed before, nor a CPU with what a GPU has rounded otherwise.
    """

    def __init__(
        self, tower: Tower, directory: Path | None = None, *, is_kept: bool = True, num_workers: int = NUM_WORKERS
    ) -> None:
        self.tower = tower
        self.directory = directory
        self.is_kept = is_kept
        self.num_workers = max(1, num_workers)
        self.bytes_per_image = tower.num_tokens * tower.width * np.dtype(np.float16).itemsize
        self._place_by_source: dict[ImageSource, tuple[np.ndarray, int]] = {}
        self._means: dict[tuple[ImageSource, ...], Tensor] = {}
        key = f"{tower.fingerprint()} {tower.transform} {tower.target_ratio} {tower.image_size}"
        device = tower.mean.device
        if device.type != "cpu":
            key += f" {device.type} {tower.dtype_on(device)}"
        self._name = f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def fill(
        self, sources: Iterable[ImageSource], progress: Counted | None = None, *, share: tuple[int, int] = (0, 1)
    ) -> int:
        """Return how many images' tokens were not there and are now; nothing is done where they are not kept.

        ``progress`` counts these. With a ``share`` ``(i, n)``, for n processes at once, only the i-th of n equal parts
        of the images is computed, unless it is kept in memory. An image that cannot be read raises ``ComposirError``
        naming it, and so does a lack of space or memory, before anything is computed.
        """
        missing = [source for source in dict.fromkeys(sources) if source not in self._place_by_source]
        if not missing or not self.is_kept:
            return 0
        if self.directory is not None:
            with closing(TokenStore(self.directory / self._name, self._shape)) as store:
                return self._fill_store(store, missing, progress, share)
        num_bytes, available = len(missing) * self.bytes_per_image, available_memory()
        if available is not None and num_bytes > available:
            raise ComposirError(
                f"the tokens of {len(missing):,} images need {size_text(num_bytes)} of memory, "
                f"{size_text(available)} are left",
                fix="keep them on disk (--cache disk), or nowhere (--cache off)",
            )
        block = np.empty((len(missing), *self._shape), np.float16)
        for done, tokens in self._compute(missing, progress):
            block[done : done + len(tokens)] = tokens
        self.take({source: (block, row) for row, source in enumerate(missing)})
        return len(missing)

    def __call__(self, sources: Sequence[ImageSource]) -> Float[Tensor, "batch tokens width"]:
        """Return the tokens of the images, fp16, in their order, computing what is not there yet."""
        if not self.is_kept:
            unique = list(dict.fromkeys(sources))
            tokens = np.concatenate([tokens for _, tokens in self._compute(unique, None)])
            place_by_source = {source: (tokens, row) for row, source in enumerate(unique)}
        else:
            self.fill(sources)
            place_by_source = self._place_by_source
        places = [place_by_source[source] for source in sources]
        tokens = empty_for_copies(len(places), *self._shape, dtype=torch.float16, device=self.tower.mean.device)
        rows = tokens.numpy()

        def copy(number: int) -> None:
            block, row = places[number]
            rows[number] = block[row]

        with ThreadPoolExecutor(self.num_workers) as pool:  # a disk gives more to several
            for _ in pool.map(copy, range(len(places))):
                pass
        return tokens

    def take(self, place_by_source: Mapping[ImageSource, tuple[Float16[np.ndarray, "rows tokens width"], int]]) -> None:
        """Answer for these images with rows of blocks that hold their tokens."""
        self._place_by_source.update(place_by_source)

    def mean(self, sources: Sequence[ImageSource]) -> Float16[Tensor, "tokens width"]:
        """Return the images' mean tokens, place by place, computed once a set of images where the tower is."""
        key = tuple(sources)
        if key not in self._means:
            device = self.tower.mean.device
            total = torch.zeros(self._shape, device=device)
            for start in range(0, len(key), IMAGES_A_SUM):
                tokens = to_device(self(key[start : start + IMAGES_A_SUM]), device)
                total += tokens.sum(dim=0, dtype=torch.float32)
            if len(self._means) == MEANS_KEPT:
                del self._means[next(iter(self._means))]
            self._means[key] = (total / len(key)).half().cpu()
        return self._means[key]

    @property
    def _shape(self) -> tuple[int, int]:
        return self.tower.num_tokens, self.tower.width

    def _fill_store(
        self, store: TokenStore, missing: Sequence[ImageSource], progress: Counted | None, share: tuple[int, int]
    ) -> int:
        contents = store.contents(dict.fromkeys(map(file_of, missing)), num_workers=self.num_workers)
        image_by_source = {source: image_id(source, contents[file_of(source)]) for source in missing}
        there = store.rows()
        source_by_image = {image: source for source, image in image_by_source.items()}
        absent = [image for image in source_by_image if image not in there]
        store.require_space(len(absent))
        # The parts are of all images: another process may have added some of its part already.
        images = [image for image in list(source_by_image)[share[0] :: share[1]] if image not in there]
        waiting: list[np.ndarray] = []
        first, last_write = 0, time.monotonic()
        for done, tokens in self._compute([source_by_image[image] for image in images], progress):
            waiting.append(tokens)
            end = done + len(tokens)
            if end == len(images) or time.monotonic() - last_write > SECONDS_BETWEEN_WRITES:
                store.add(images[first:end], np.concatenate(waiting))
                waiting, first, last_write = [], end, time.monotonic()
        row_by_image, block = store.rows(), store.map()
        self.take(
            {source: (block, row_by_image[image]) for source, image in image_by_source.items() if image in row_by_image}
        )
        return len(images)

    def _compute(
        self, sources: Sequence[ImageSource], progress: Counted | None
    ) -> Iterator[tuple[int, Float16[np.ndarray, "batch tokens width"]]]:
        """Yield the tokens of the images, batch by batch, each with how many came before."""
        done = 0
        for batch in read_ahead(self._prepare, sources, size=self.tower.batch_size, num_workers=self.num_workers):
            pictures = np.stack(batch)  # (batch, 3, size, size)
            yield done, self.tower(torch.from_numpy(pictures)).cpu().numpy()
            done += len(pictures)
            if progress is not None:
                progress(done, len(sources))

    def _prepare(self, source: ImageSource) -> np.ndarray:
        return self.tower.prepare(read_image(source))


def read_ahead(
    read: Callable[[Item], Read], items: Sequence[Item], *, size: int, num_workers: int
) -> Iterator[list[Read]]:
    """Yield what ``read`` returns for the items, in order and in batches; threads read on while a batch is used."""
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        batches = iter([items[start : start + size] for start in range(0, len(items), size)])
        waiting = [[pool.submit(read, item) for item in batch] for batch in islice(batches, 2)]
        try:
            while waiting:
                batch = [future.result() for future in waiting.pop(0)]
                waiting += [[pool.submit(read, item) for item in following] for following in islice(batches, 1)]
                yield batch
        finally:
            for future in (future for batch in waiting for future in batch):
                future.cancel()


def image_id(source: ImageSource, content: str) -> str:
    """Return what identifies a picture by the hash of its file's content: of a cutout its box, too."""
    return f"{content} {source.box}" if isinstance(source, Crop) else content


def make_cache(tower: Tower, place: TokenPlace = ON_DISK) -> TokenCache:
    """Return the cache of a tower's tokens in their place."""
    folder = place.folder or default_cache_dir() if place.kind == DISK else None
    return TokenCache(tower, folder, is_kept=place.kind != OFF, num_workers=place.num_workers)


def fill_splits(
    tokens: TokenCache, splits: Sequence[Split], progress: Counted | None = None, *, share: tuple[int, int] = (0, 1)
) -> int:
    """Return how many images of the splits had no tokens yet, after ``TokenCache.fill`` of all of them.

    Raises ``ProblemsError`` with all images that cannot be read. Where tokens are not kept, every image is still
    decoded once, so that a broken one is told now and not in the middle of what follows.
    """
    problems = [] if tokens.is_kept else check_images(splits, progress=progress)
    if problems:
        raise ProblemsError(problems)
    try:
        return tokens.fill([path for split in splits for path in split.images.values()], progress, share=share)
    except ComposirError:
        problems = check_images(splits)
        if problems:
            raise ProblemsError(problems) from None
        raise
