"""What evaluation asks of a model: its embeddings of image files and sentences, opened by the model's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from composir.data import Split
from composir.data.check import require_images
from composir.data.images import ImageSource
from composir.errors import ComposirError, command, nearest
from composir.machine import default_device
from composir.models.checkpoint import from_pretrained, require_whole, weights_hash
from composir.models.composer import Composer
from composir.models.config import CONFIG
from composir.models.embedder import VectorEmbedder
from composir.models.heads.embedder import HeadEmbedder
from composir.models.heads.folder import SavedHead, is_head, read_head
from composir.models.named import find_address, open_named
from composir.models.sprc import GLOBAL, SCORINGS
from composir.models.tuned import is_tuned, open_tuned
from composir.models.weights.sources import FORMS, OWN, locate
from composir.progress import Counted
from composir.token_cache import ON_DISK, TokenCache, TokenPlace, fill_splits, make_cache

__all__ = [
    "CachedEmbedder",
    "TokenCache",
    "TokenPlace",
    "embedder_of",
    "hash_of",
    "open_embedder",
    "open_model",
    "require_matching_head",
]


Opened: TypeAlias = Composer | VectorEmbedder
BaseEmbedder: TypeAlias = "CachedEmbedder | VectorEmbedder"
"""What a head can be trained on."""


@dataclass(frozen=True, slots=True)
class OpenedHead:
    """A head and the model that it is trained on."""

    saved: SavedHead
    base: Opened
    kind = "a head"


def open_model(model: Path | str, device: str | torch.device) -> Opened | OpenedHead:
    """Return the model of a checkpoint or head folder, a hub id or a name of ``open_named``, with all that it needs.

    Raises ``ComposirError`` where it cannot be loaded, or cannot embed pictures and sentences.
    """
    folder = find_head(model)
    if folder is None:
        return _open(model, device)
    saved = read_head(folder)
    saved.head.to(device)
    base = open_base(saved.config.base, device, file=folder / CONFIG)
    require_same_base(saved, identity_of(base), model)
    return OpenedHead(saved, base)


def find_head(model: Path | str) -> Path | None:
    """Return the folder of a head that is given by its path or hub id, downloaded if need be; None for other models.

    Raises ``ComposirError`` where nothing of that name is here or on the hub.
    """
    if find_address(str(model)) is not None:
        return None
    folder, _ = locate(str(model), FORMS[OWN])
    return folder if is_head(folder) else None


def open_base(model: Path | str, device: str | torch.device, *, file: Path | None = None) -> Opened:
    """Return what ``open_model`` does, of all but a head; ``file`` is the head's config.json that names it."""
    address = find_address(str(model))
    place = Path(address.place if address else model)
    if file is not None and place.is_absolute() and not place.exists():
        raise ComposirError(
            f"names the model below it, {model}, which is not there",
            file=file,
            fix="put it back, or write where it is now under base",
        )
    head = find_head(model)
    if head is not None:
        raise ComposirError(
            "is a head, and a head goes on a model",
            file=model,
            fix=f"give its own base, {read_head(head).config.base}",
        )
    return _open(model, device)


def _open(model: Path | str, device: str | torch.device) -> Opened:
    """Return a model that is no head."""
    named = open_named(str(model), device)
    if named is not None:
        return named
    if is_tuned(model):
        return open_tuned(model, device)
    composer = from_pretrained(model, device=device)
    require_whole(composer, model)
    return composer


def identity_of(opened: Opened) -> str:
    """Return what identifies the weights of a model."""
    return weights_hash(opened) if isinstance(opened, Composer) else opened.weights_hash()


def words_of(opened: Opened) -> Callable[[Sequence[str]], Float[Tensor, "batch text_dim"]]:
    """Return what gives a head a vector of every sentence."""
    if isinstance(opened, Composer):
        return lambda texts: opened.encode_prompt(*opened.tokenize(texts))
    return opened.embed_words


def require_same_base(saved: SavedHead, base_hash: str, head: Path | str) -> None:
    """Raise ``ComposirError`` where the model that a head names is no longer the one that it was trained on."""
    if saved.config.base_hash != base_hash:
        raise ComposirError(
            f"is a head on {saved.config.base} as it was ({saved.config.base_hash}), and now it is {base_hash}",
            file=head,
            expected="the same weights below it",
            fix=f"put them back, or train anew: {command('train', '--backbone', saved.config.base)}",
        )


def open_embedder(
    model: Path | str,
    splits: Sequence[Split],
    *,
    rerank: bool = False,
    scoring: str = GLOBAL,
    place: TokenPlace = ON_DISK,
    progress: Counted | None = None,
) -> tuple[BaseEmbedder | HeadEmbedder, str]:
    """Return the embedder of a model, every token of ``splits`` present, and the hash of its weights.

    A ``scoring`` other than ``global`` stands behind the hash: the same weights then rank in another way.
    ``model`` is what ``open_model`` takes; a ``VectorEmbedder`` keeps no tokens in ``place``. It computes on the GPU
    where there is one. Raises ``ProblemsError`` with every image that is missing or cannot be read, before anything is
    ranked, and ``ComposirError`` for what is no model, has no vision tower or, with ``rerank``, no trained matching
    head.
    """
    require_images(splits)
    opened = open_model(model, default_device())
    embedder = embedder_of(opened, splits, rerank=rerank, scoring=scoring, place=place, progress=progress)
    return embedder, hash_of(opened, scoring=scoring)


def embedder_of(
    opened: Opened | OpenedHead,
    splits: Sequence[Split],
    *,
    rerank: bool = False,
    scoring: str = GLOBAL,
    place: TokenPlace = ON_DISK,
    progress: Counted | None = None,
) -> BaseEmbedder | HeadEmbedder:
    """Return the embedder of an open model, every token of ``splits`` present; otherwise as ``open_embedder``."""
    if isinstance(opened, OpenedHead):
        _require_plain(opened.kind, rerank=rerank, scoring=scoring)
        return embedder_of_head(opened, splits, place=place, progress=progress)
    if isinstance(opened, VectorEmbedder):
        _require_plain(opened.kind, rerank=rerank, scoring=scoring)
        return opened
    if rerank:
        require_matching_head(opened)
    assert opened.tower is not None
    tokens = make_cache(opened.tower, place)
    fill_splits(tokens, splits, progress)
    return CachedEmbedder(opened, tokens, scoring=scoring)


def hash_of(opened: Opened | OpenedHead, *, scoring: str = GLOBAL) -> str:
    """Return what identifies how an open model ranks: its weights and, where it is not ``global``, the scoring."""
    weights = opened.saved.weights_hash if isinstance(opened, OpenedHead) else identity_of(opened)
    return weights if scoring == GLOBAL else f"{weights}-{scoring}"


def embedder_of_head(
    opened: OpenedHead, splits: Sequence[Split], *, place: TokenPlace = ON_DISK, progress: Counted | None = None
) -> HeadEmbedder:
    """Return the embedder of an open head, every token of ``splits`` present that its base needs."""
    base = embedder_of(opened.base, splits, place=place, progress=progress)
    assert not isinstance(base, HeadEmbedder)  # a head goes on a model
    return HeadEmbedder(opened.saved.head, base)


def _require_plain(kind: str, *, rerank: bool, scoring: str) -> None:
    """Raise ``ComposirError`` for what only composir's own checkpoints have."""
    if rerank:
        raise ComposirError(f"{kind} has no matching head", fix="leave out --rerank")
    if scoring != GLOBAL:
        raise ComposirError(f"{kind} has no {scoring} scoring", fix="leave out --scoring")


def open_base_embedder(model: Path | str, place: TokenPlace = ON_DISK) -> tuple[BaseEmbedder, str]:
    """Return the embedder of a model that a head can be trained on, and the hash of its weights."""
    opened = open_base(model, default_device())
    if isinstance(opened, Composer):
        assert opened.tower is not None
        return CachedEmbedder(opened, make_cache(opened.tower, place)), weights_hash(opened)
    return opened, opened.weights_hash()


class CachedEmbedder:
    """A model's embeddings of image files through a token cache: what evaluation asks of a model.

    Without a reference the gallery's mean tokens, place by place, stand for it: a picture that says nothing but what
    all pictures say. ``scoring`` is one of ``SCORINGS``.
    """

    def __init__(self, model: Composer, tokens: TokenCache, *, scoring: str = GLOBAL) -> None:
        if scoring not in SCORINGS:
            raise ComposirError(
                f"unknown scoring {scoring!r}", expected=", ".join(SCORINGS), fix=nearest(scoring, SCORINGS)
            )
        self.model = model
        self.tokens = tokens
        self.scoring = scoring

    @torch.inference_mode()
    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch vectors dim"]:
        """Return the target embedding of every image."""
        return self.model.encode_target(self.tokens(paths).to(self.model.device))

    @torch.inference_mode()
    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch *parts dim"]:
        """Return the query embedding of every pair of reference image and sentence."""
        return self._encode(self.tokens(paths).to(self.model.device), texts)

    @torch.inference_mode()
    def embed_text_only(
        self, texts: Sequence[str], gallery: Sequence[ImageSource]
    ) -> Float[Tensor, "batch *parts dim"]:
        """Return the query embedding of every sentence with the gallery's mean tokens as the reference."""
        neutral = self._neutral(gallery).to(self.model.device)
        return self._encode(neutral.expand(len(texts), -1, -1), texts)

    @torch.inference_mode()
    def embed_words(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every sentence behind the prompt tokens, no picture read: what a head reads."""
        return words_of(self.model)(texts)

    @torch.inference_mode()
    def match(
        self,
        references: Sequence[ImageSource | None],
        texts: Sequence[str],
        candidates: Sequence[ImageSource],
        gallery: Sequence[ImageSource],
    ) -> Float[Tensor, " pairs"]:
        """Return how well each candidate answers its reference and sentence; ``None`` is the gallery's mean tokens."""
        require_matching_head(self.model)
        if None in references:
            neutral = self._neutral(gallery)
            rows = [neutral if reference is None else self.tokens([reference])[0] for reference in references]
            tokens = torch.stack(rows)
        else:
            tokens = self.tokens([reference for reference in references if reference is not None])
        device = self.model.device
        pictures = (tokens.to(device), self.tokens(candidates).to(device))
        return self.model.match(pictures, *self.model.tokenize(texts))

    def _neutral(self, gallery: Sequence[ImageSource]) -> Float[Tensor, "tokens width"]:
        if not gallery:
            raise ComposirError("a gallery of no image has no mean, which stands for the reference")
        return self.tokens.mean(gallery)

    def _encode(
        self, tokens: Float[Tensor, "batch tokens width"], texts: Sequence[str]
    ) -> Float[Tensor, "batch *parts dim"]:
        inputs = tokens, *self.model.tokenize(texts)
        if self.scoring == GLOBAL:
            return self.model.encode_query(*inputs)
        return self.model.encode_query_parts(*inputs, scoring=self.scoring)


def require_matching_head(model: Composer) -> None:
    """Raise ``ComposirError`` where the model's matching head was never trained."""
    if not model.config.matching_head:
        raise ComposirError(
            f"the {model.config.backbone} model has no trained matching head, and would re-rank with noise",
            expected="weights with one: a checkpoint converted from LAVIS, SPRC or the hub, or trained from it",
            fix="leave out --rerank",
        )
