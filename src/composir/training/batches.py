"""Batches of a training set: their order, the sentence of each triplet, its look-alikes, and all of it as tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from composir import parallel
from composir.data import Query, Split
from composir.data.images import ImageSource
from composir.machine import to_device
from composir.models.composer import Composer
from composir.token_cache import TokenCache
from composir.training.mining import Mined
from composir.training.recipe import Recipe

BATCHES_AHEAD = 2
"""Batches that are read while a step is computed: at 128 triplets of BLIP-2's tokens 185 MB each."""
Triplet = tuple[Split, Query]


class Inputs(NamedTuple):
    """A batch as ``Sprc.training_losses`` takes it."""

    reference_tokens: Float[Tensor, "batch tokens width"]
    target_tokens: Float[Tensor, "candidates tokens width"]
    input_ids: Int[Tensor, "batch words"]
    attention_mask: Int[Tensor, "batch words"]
    same_target: Bool[Tensor, "batch candidates"] | None
    """Which candidates show the target of which query; of all processes, as the last."""
    num_all: tuple[int, int]
    """Queries and candidates of all processes."""

    def to(self, device: torch.device) -> Inputs:
        """Return the inputs on a device, all but the mask; from pinned memory they are copied while the CPU goes on."""
        return Inputs(
            to_device(self.reference_tokens, device),
            to_device(self.target_tokens, device),
            to_device(self.input_ids, device),
            self.attention_mask,
            None if self.same_target is None else to_device(self.same_target, device),
            self.num_all,
        )


Moved = TypeVar("Moved", bound="Movable")


class Drawing(NamedTuple):
    """A batch as it was drawn, before it is read."""

    references: Sequence[ImageSource]
    """This process's share."""
    candidates: Sequence[ImageSource]
    """This process's share: the targets in the order of the queries, then further pictures."""
    texts: Sequence[str]
    """Of all processes: words are padded to the longest of them all."""
    same_target: Bool[Tensor, "batch candidates"] | None
    num_all: tuple[int, int]
    """Queries and candidates of all processes."""
    is_shared: bool

    def share(self, rows: parallel.Rows) -> parallel.Rows:
        """Return this process's share of what was made of all texts; all of it outside training."""
        return parallel.share(rows) if self.is_shared else rows


class Movable(Protocol):
    """What a model takes in of a batch."""

    def to(self: Moved, device: torch.device) -> Moved: ...  # noqa: D102


Read = TypeVar("Read", bound=Movable)


class Drawn(ABC, Generic[Read]):
    """The triplets of a training set, and how they are drawn: by seed, epoch and number of the batch alone."""

    def __init__(self, recipe: Recipe, splits: Sequence[Split], device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.triplets: list[Triplet] = [(split, query) for split in splits for query in split.queries]
        self.mined: Mined = {}
        """The negatives that were mined last."""

    @property
    def size(self) -> int:
        """Triplets in a batch: what the recipe says, or all there are."""
        return min(self.recipe.batch_size, len(self.triplets))

    @property
    def num_batches(self) -> int:
        """Batches of an epoch, the last of them smaller than the others where it is kept."""
        num_full, rest = divmod(len(self.triplets), self.size)
        return num_full + (rest > 0 and not self.recipe.drop_last)

    @abstractmethod
    def read_all(self, drawn: Drawing) -> Read:
        """Return what the model takes in of these pictures and sentences: this process's share, where they are."""

    def of_epoch(self, epoch: int, first: int) -> Generator[tuple[list[Triplet], Read], None, None]:
        """Give the epoch's batches from number ``first`` on; their order depends on seed and epoch alone.

        A thread reads ``BATCHES_AHEAD`` of them ahead into the computer's memory; ``to`` takes them further.
        """
        order = np.random.default_rng([self.recipe.seed, epoch]).permutation(len(self.triplets))
        size = self.size
        numbers = iter(range(first, self.num_batches))

        def read(number: int) -> tuple[list[Triplet], Read]:
            batch = [self.triplets[index] for index in order[number * size : (number + 1) * size]]
            return batch, self._read(batch, np.random.default_rng([self.recipe.seed, epoch, number]))

        with ThreadPoolExecutor(1) as pool:
            ahead = deque(pool.submit(read, number) for number in islice(numbers, BATCHES_AHEAD))
            try:
                while ahead:
                    found = ahead.popleft().result()
                    ahead.extend(pool.submit(read, number) for number in islice(numbers, 1))
                    yield found
            finally:
                for future in ahead:
                    future.cancel()

    def inputs(self, batch: Sequence[Triplet], generator: np.random.Generator | None) -> Read:
        """Return what the model takes in of a batch; with a ``generator``, for training, this process's share of it."""
        return self._read(batch, generator).to(self.device)

    def _read(self, batch: Sequence[Triplet], generator: np.random.Generator | None) -> Read:
        references = [split.images[query.reference] for split, query in batch]
        candidates = [split.images[query.targets[0]] for split, query in batch]
        texts = [query.text for _, query in batch]
        same_target = None
        if generator is not None:
            texts = [query.texts[generator.integers(len(query.texts))] for _, query in batch]
            candidates += [path for triplet in batch for path in self.look_alikes(*triplet, generator)]
            if self.recipe.mask_same_target or self.recipe.subset_negatives:
                index_by_path = {path: index for index, path in enumerate(candidates)}
                indices = torch.tensor([index_by_path[path] for path in candidates])
                same_target = indices[: len(batch), None] == indices[None]
        num_all, is_shared = (len(references), len(candidates)), generator is not None
        if is_shared:
            references, candidates = parallel.share(references), parallel.share(candidates)
        return self.read_all(Drawing(references, candidates, texts, same_target, num_all, is_shared))

    def look_alikes(self, split: Split, query: Query, generator: np.random.Generator) -> list[ImageSource]:
        """Return the files of as many pictures like the query's target as the recipe asks for."""
        if not self.recipe.subset_negatives:
            return []
        names = [name for name in (*query.subset, query.reference) if name != query.targets[0]]
        chosen = [names[index] for index in generator.permutation(len(names))[: self.recipe.subset_negatives]]
        mined = self.mined.get((split.category, query.id), [])
        if mined:
            instead = generator.random(len(chosen)) < self.recipe.mined_ratio
            drawn = generator.choice(mined, len(chosen))
            chosen = [str(hard) if use else name for name, hard, use in zip(chosen, drawn, instead, strict=True)]
        return [split.images[name] for name in chosen]


class Batches(Drawn[Inputs]):
    """Batches of image tokens and words, for ``Composer``."""

    def __init__(self, recipe: Recipe, splits: Sequence[Split], model: Composer, tokens: TokenCache) -> None:
        super().__init__(recipe, splits, model.device)
        self.model, self.tokens = model, tokens

    def read_all(self, drawn: Drawing) -> Inputs:
        """Return tokens of the pictures and ids of the words."""
        input_ids, mask = (drawn.share(one) for one in self.model.words(drawn.texts))
        references, candidates = self.tokens(drawn.references), self.tokens(drawn.candidates)
        return Inputs(references, candidates, input_ids, mask, drawn.same_target, drawn.num_all)
