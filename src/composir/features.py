"""Image tokens of the frozen tower, computed once an image, and the embeddings made from them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from composir.data import Split, read_image
from composir.data.check import check_images, require_images
from composir.data.images import Crop, ImageSource, file_of
from composir.errors import ComposirError, ProblemsError, nearest
from composir.files import replacing
from composir.models.checkpoint import from_pretrained, weights_hash
from composir.models.composer import GLOBAL, SCORINGS, Composer
from composir.models.st import PREFIX, SentenceEmbedder, load_sentence_embedder
from composir.models.vision import Tower

TOWER_BATCH = 8
"""Pictures a pass of the tower; more is slower on a CPU (the feature maps leave its cache)."""
NUM_WORKERS = 4

Progress = Callable[[int, int], None]
"""Called with how many images are done, and of how many."""

Item = TypeVar("Item")
Read = TypeVar("Read")


def default_cache_dir() -> Path:
    """Return ``$COMPOSIR_CACHE``, else ``composir`` under the user's cache folder (``$XDG_CACHE_HOME``)."""
    if "COMPOSIR_CACHE" in os.environ:
        return Path(os.environ["COMPOSIR_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "composir"


class TokenCache:
    """The tower's tokens of image files, fp16, in memory-mapped files of ``directory``, or in memory without one.

    A file is named by what its tokens depend on: the tower's weights, the transform and the content of the images.
    A changed picture, another tower or another transform is another file, never a wrong answer.
    """

    def __init__(self, tower: Tower, directory: Path | None = None, *, num_workers: int = NUM_WORKERS) -> None:
        self.tower = tower
        self.directory = directory
        self.num_workers = max(1, num_workers)
        self._place_by_path: dict[ImageSource, tuple[np.ndarray, int]] = {}
        self._key = f"{tower.fingerprint()} {tower.transform} {tower.target_ratio} {tower.image_size}"

    def fill(self, paths: Iterable[ImageSource], progress: Progress | None = None) -> None:
        """Make the tokens of every file present; one that cannot be read raises ``ComposirError`` naming it."""
        missing = [path for path in dict.fromkeys(paths) if path not in self._place_by_path]
        if not missing:
            return
        shape = (len(missing), self.tower.num_tokens, self.tower.width)
        if self.directory is None:
            block = np.empty(shape, np.float16)
            self._compute(missing, block, progress)
        else:
            file = self.directory / f"tokens-{self._content_key(missing)}.npy"
            if not file.exists():
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file) as temporary:
                    written = np.lib.format.open_memmap(temporary, "w+", np.float16, shape)
                    self._compute(missing, written, progress)
                    written.flush()
            block = np.load(file, mmap_mode="r")
        self._place_by_path.update({path: (block, row) for row, path in enumerate(missing)})

    def __call__(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch tokens width"]:
        """Return the tokens of the files, fp16, in their order, computing what is not there yet."""
        self.fill(paths)
        rows = [block[row] for block, row in (self._place_by_path[path] for path in paths)]
        return torch.from_numpy(np.stack(rows))

    def _content_key(self, paths: Sequence[ImageSource]) -> str:
        with ThreadPoolExecutor(self.num_workers) as pool:
            contents = pool.map(_content, paths)
            digest = hashlib.sha256(self._key.encode())
            for content in contents:
                digest.update(content)
        return digest.hexdigest()[:32]

    def _compute(self, paths: Sequence[ImageSource], out: np.ndarray, progress: Progress | None) -> None:
        done = 0
        for batch in read_ahead(self._prepare, paths, size=TOWER_BATCH, num_workers=self.num_workers):
            pictures = np.stack(batch)  # (batch, 3, size, size)
            out[done : done + len(pictures)] = self.tower(torch.from_numpy(pictures)).cpu().numpy()
            done += len(pictures)
            if progress is not None:
                progress(done, len(paths))

    def _prepare(self, path: ImageSource) -> np.ndarray:
        return self.tower.prepare(read_image(path))


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


def _content(source: ImageSource) -> bytes:
    digest = hashlib.sha256(file_of(source).read_bytes())
    if isinstance(source, Crop):
        digest.update(repr(source.box).encode())
    return digest.digest()


def fill_splits(tokens: TokenCache, splits: Sequence[Split], progress: Progress | None = None) -> None:
    """Make the tokens of every image of the splits present; raise ``ProblemsError`` with all that cannot be read."""
    try:
        tokens.fill([path for split in splits for path in split.images.values()], progress)
    except ComposirError:
        problems = check_images(splits)
        if problems:
            raise ProblemsError(problems) from None
        raise


def open_embedder(
    model: Path | str,
    splits: Sequence[Split],
    *,
    rerank: bool = False,
    cache_dir: Path | None = None,
    num_workers: int = NUM_WORKERS,
    scoring: str = GLOBAL,
    progress: Progress | None = None,
) -> tuple[CachedEmbedder | SentenceEmbedder, str]:
    """Return the embedder of a model, every token of ``splits`` present, and the hash of its weights.

    A ``scoring`` other than ``global`` stands behind the hash: the same weights then rank in another way.
    ``model`` is a checkpoint folder, a hub id or ``st:NAME`` (see ``SentenceEmbedder``). It computes on the GPU where
    there is one. Raises ``ProblemsError`` with every image that is missing or cannot be read, before anything is
    ranked, and ``ComposirError`` for what is no model, has no vision tower or, with ``rerank``, no trained matching
    head.
    """
    require_images(splits)
    if str(model).startswith(PREFIX):
        if rerank:
            raise ComposirError("a sentence-transformers model has no matching head", fix="leave out --rerank")
        if scoring != GLOBAL:
            raise ComposirError(f"a sentence-transformers model has no {scoring} scoring", fix="leave out --scoring")
        sentence_embedder = load_sentence_embedder(str(model))
        return sentence_embedder, sentence_embedder.weights_hash()
    composer = from_pretrained(model, device="cuda" if torch.cuda.is_available() else "cpu")
    if composer.tower is None or composer.tokenizer is None:
        lacking = "vision tower" if composer.tower is None else "tokenizer"
        raise ComposirError(
            f"has no {lacking} and cannot embed pictures and sentences",
            file=model,
            fix="give a checkpoint of a whole model",
        )
    if rerank:
        require_matching_head(composer)
    tokens = TokenCache(composer.tower, cache_dir or default_cache_dir(), num_workers=num_workers)
    fill_splits(tokens, splits, progress)
    name = weights_hash(composer) if scoring == GLOBAL else f"{weights_hash(composer)}-{scoring}"
    return CachedEmbedder(composer, tokens, scoring=scoring), name


class CachedEmbedder:
    """A model's embeddings of image files through a token cache: what evaluation asks of a model.

    The text-only embedding puts the mean tokens of the gallery that was embedded last, place by place, where the
    reference would be: a picture that says nothing but what all pictures say. ``scoring`` is one of ``SCORINGS``.
    """

    def __init__(self, model: Composer, tokens: TokenCache, *, scoring: str = GLOBAL) -> None:
        if scoring not in SCORINGS:
            raise ComposirError(
                f"unknown scoring {scoring!r}", expected=", ".join(SCORINGS), fix=nearest(scoring, SCORINGS)
            )
        self.model = model
        self.tokens = tokens
        self.scoring = scoring
        self._token_sum: Tensor | float = 0.0
        self._num_images = 0
        self._is_asked = False

    @torch.inference_mode()
    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch vectors dim"]:
        """Return the target embedding of every image."""
        if self._is_asked:  # another gallery begins
            self._token_sum, self._num_images, self._is_asked = 0.0, 0, False
        tokens = self.tokens(paths)
        self._token_sum = self._token_sum + tokens.double().sum(dim=0)
        self._num_images += len(tokens)
        return self.model.encode_target(tokens.to(self.model.device))

    @torch.inference_mode()
    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch *parts dim"]:
        """Return the query embedding of every pair of reference image and sentence."""
        return self._encode(self.tokens(paths).to(self.model.device), texts)

    @torch.inference_mode()
    def embed_text_only(self, texts: Sequence[str]) -> Float[Tensor, "batch *parts dim"]:
        """Return the query embedding of every sentence with the gallery's mean tokens as the reference."""
        neutral = self._neutral().to(self.model.device)
        return self._encode(neutral.expand(len(texts), -1, -1), texts)

    @torch.inference_mode()
    def match(
        self, references: Sequence[ImageSource | None], texts: Sequence[str], candidates: Sequence[ImageSource]
    ) -> Float[Tensor, " pairs"]:
        """Return how well each candidate answers its reference and sentence; the reference ``None`` is neutral."""
        require_matching_head(self.model)
        if None in references:
            neutral = self._neutral()
            rows = [neutral if reference is None else self.tokens([reference])[0] for reference in references]
            tokens = torch.stack(rows)
        else:
            tokens = self.tokens([reference for reference in references if reference is not None])
        device = self.model.device
        pictures = (tokens.to(device), self.tokens(candidates).to(device))
        return self.model.match(pictures, *self.model.tokenize(texts))

    def _neutral(self) -> Float[Tensor, "tokens width"]:
        if not self._num_images:
            raise RuntimeError("embed the gallery first: the neutral reference is its mean")
        return torch.as_tensor(self._token_sum / self._num_images).half()

    def _encode(
        self, tokens: Float[Tensor, "batch tokens width"], texts: Sequence[str]
    ) -> Float[Tensor, "batch *parts dim"]:
        self._is_asked = True
        inputs = tokens, *self.model.tokenize(texts)
        if self.scoring == GLOBAL:
            return self.model.encode_query(*inputs)
        return self.model.encode_query_parts(*inputs, scoring=self.scoring)


def require_matching_head(model: Composer) -> None:
    """Return nothing; raise ``ComposirError`` where the model's matching head was never trained."""
    if not model.config.matching_head:
        raise ComposirError(
            f"the {model.config.backbone} model has no trained matching head, and would re-rank with noise",
            expected="weights with one: a checkpoint converted from LAVIS, SPRC or the hub, or trained from it",
            fix="leave out --rerank",
        )
