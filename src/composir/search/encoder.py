"""What an index and a search ask of a model: one of composir's own, or one of one vector a picture."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from composir.cache import Cache
from composir.features import Opened, OpenedHead, open_model, words_of
from composir.models.checkpoint import weights_hash
from composir.models.composer import Composer
from composir.models.embedder import Reading, VectorComposer, VectorEmbedder
from composir.models.heads.folder import SavedHead

SHRINK_AT_LEAST = 2
"""A JPEG is decoded no smaller than so many times what the model sees: less would be seen."""
NO_PICTURE = -1
REFERENCE_BYTES = 32 * 2**20
"""Of each thing that is kept of the last references: more than 400 pictures' tokens of ``mini``, 75 kB each."""


class Encoder(Protocol):
    """A model as search sees it."""

    identity: str
    """The hash of its weights."""
    about: str
    """What it was trained for, in a line."""
    backbone: str
    tower: str
    num_vectors: int
    """Of a picture."""
    dim: int
    side: int
    """Pixels of the longer side that a picture has to keep when it is decoded (``read_image``)."""
    batch_size: int
    """How many pictures ``embed_pictures`` takes at once."""
    has_words: bool
    """Whether it says in words what it sees (``seen``)."""

    def prepare(self, picture: Image.Image) -> Any:
        """Return the picture as ``embed_pictures`` takes it in; called by threads."""
        ...

    def embed_pictures(self, prepared: Sequence[Any]) -> Float[Tensor, "batch vectors dim"]:
        """Return the L2-normalised vectors of up to ``batch_size`` pictures, whatever stands beside each."""
        ...

    def embed_asked(
        self, pictures: Sequence[Image.Image], asked: Sequence[tuple[int, str]]
    ) -> Float[Tensor, "asked dim"]:
        """Return the L2-normalised vector of every (place in ``pictures`` or ``NO_PICTURE``, sentence)."""
        ...

    def square(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the model sees it."""
        ...

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of what it sees, in pixels of a picture of this width and height."""
        ...

    def read(self, text: str, *, with_reference: bool) -> Reading | None:
        """Return how a sentence is read, of a query with a picture or alone; None where a network takes it whole."""
        ...

    def scripts(self, *, with_reference: bool) -> frozenset[str] | None:
        """Return the scripts that it reads, of a query with a picture or alone; None where that is not known."""
        ...

    def seen(self, vectors: Float[np.ndarray, "vectors dim"]) -> str | None:
        """Return in words what it sees in a picture of these vectors; None where they say nothing in words."""
        ...

    def named(self, vectors: Float[np.ndarray, "vectors dim"]) -> tuple[str, str] | None:
        """Return the thing and its main colour in a picture of these vectors; None where it is not sure of it."""
        ...


class BaseEncoder(Encoder, Protocol):
    """A model that a head can be on."""

    def embed_asked_and_pictures(
        self, pictures: Sequence[Image.Image], asked: Sequence[tuple[int, str]]
    ) -> tuple[Float[Tensor, "asked dim"], Float[Tensor, "pictures vectors dim"]]:
        """Return what ``embed_asked`` does, and the L2-normalised vectors of every picture, of which there are some.

        A picture is looked at once for both where the model's queries are made of what its vectors are.
        """
        ...


class References:
    """One thing that a model made of the last pictures that were asked by, under ``content_of`` each.

    Who refines a query asks by the same picture again. One model's own: another one has another ``References``.
    """

    def __init__(self) -> None:
        self._kept = Cache[bytes, Tensor](REFERENCE_BYTES)

    def of(
        self, contents: Sequence[bytes], make: Callable[[list[int]], Float[Tensor, "pictures ..."]]
    ) -> Float[Tensor, "pictures ..."]:
        """Return what ``make`` makes of each picture, asked for the places of those alone that are not kept."""
        made = {content: kept for content in contents if (kept := self._kept.get(content)) is not None}
        new = [place for place, one in enumerate(contents) if one not in made and one not in contents[:place]]
        if new:
            for place, one in zip(new, make(new), strict=True):
                made[contents[place]] = one.clone()  # or it would hold the whole batch
                self._kept.put(contents[place], made[contents[place]], one.nbytes)
        return torch.stack([made[content] for content in contents]) if contents else torch.empty(0)


class ComposerEncoder:
    """A checkpoint of composir's."""

    has_words = False

    def __init__(self, model: Composer) -> None:
        assert model.tower is not None
        self.model = model
        self._tower = model.tower
        self._tokens, self._targets = References(), References()
        self.identity = weights_hash(model)
        self.about = model.trained_on or f"{model.config.backbone} backbone; it does not say what it was trained on"
        self.backbone = model.config.backbone
        self.tower = model.tower.name
        self.num_vectors = model.config.num_query_tokens
        self.dim = model.config.embed_dim
        ratio = self._tower.target_ratio if self._tower.transform == "targetpad" else 1.0
        self.side = math.ceil(SHRINK_AT_LEAST * ratio * self._tower.image_size)
        self.batch_size = self._tower.batch_size

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """Return the pixels that the tower reads."""
        return self._tower.prepare(picture)

    def embed_pictures(self, prepared: Sequence[np.ndarray]) -> Float[Tensor, "batch vectors dim"]:
        """Return their target embeddings; always as many are computed at once."""
        pixels = np.zeros((self.batch_size, *prepared[0].shape), np.uint8)
        pixels[: len(prepared)] = np.stack(prepared)
        return self.model.encode_target(self._tower(torch.from_numpy(pixels)))[: len(prepared)]

    def embed_asked(
        self, pictures: Sequence[Image.Image], asked: Sequence[tuple[int, str]]
    ) -> Float[Tensor, "asked dim"]:
        """Return query embeddings, of a sentence alone those of the pass over prompt tokens and text."""
        contents = [content_of(picture) for picture in pictures]
        tokens = self._tokens_of(pictures, contents)
        targets = self._targets_of(tokens, contents) if self.model.joins_targets else None
        return self._embed(tokens, targets, asked)

    def embed_asked_and_pictures(
        self, pictures: Sequence[Image.Image], asked: Sequence[tuple[int, str]]
    ) -> tuple[Float[Tensor, "asked dim"], Float[Tensor, "pictures vectors dim"]]:
        """Return query embeddings, and the target embeddings of the same image tokens."""
        contents = [content_of(picture) for picture in pictures]
        tokens = self._tokens_of(pictures, contents)
        targets = self._targets_of(tokens, contents)
        return self._embed(tokens, targets, asked), targets

    def _tokens_of(
        self, pictures: Sequence[Image.Image], contents: Sequence[bytes]
    ) -> Float[Tensor, "pictures tokens width"]:
        def look(new: list[int]) -> Tensor:
            batches = [new[start : start + self.batch_size] for start in range(0, len(new), self.batch_size)]
            return torch.cat([self.model.tokens([pictures[place] for place in batch]) for batch in batches])

        return self._tokens.of(contents, look)

    def _targets_of(
        self, tokens: Float[Tensor, "pictures tokens width"], contents: Sequence[bytes]
    ) -> Float[Tensor, "pictures vectors dim"]:
        return self._targets.of(
            contents, lambda new: self.model.encode_target(torch.stack([tokens[one] for one in new]))
        )

    def _embed(
        self,
        tokens: Float[Tensor, "pictures tokens width"],
        targets: Float[Tensor, "pictures vectors dim"] | None,
        asked: Sequence[tuple[int, str]],
    ) -> Float[Tensor, "asked dim"]:
        with_picture, alone = _apart(asked)
        vectors = torch.empty(len(asked), self.dim, device=self.model.device)
        if with_picture:
            rows, texts = zip(*(asked[row] for row in with_picture), strict=True)
            places = list(rows)
            vectors[with_picture] = self.model.encode_query(
                tokens[places], *self.model.tokenize(texts), None if targets is None else targets[places]
            )
        if alone:
            vectors[alone] = self.model.encode_prompt(*self.model.tokenize([asked[row][1] for row in alone]))
        return vectors

    def square(self, picture: Image.Image) -> Image.Image:
        """Return the small square that the tower reads."""
        return Image.fromarray(np.ascontiguousarray(self._tower.prepare(picture).transpose(1, 2, 0)))

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return where that square lies."""
        return self._tower.box(size)

    def read(self, text: str, *, with_reference: bool) -> Reading | None:
        """Return None: the network reads it as a whole."""
        return None

    def scripts(self, *, with_reference: bool) -> frozenset[str] | None:
        """Return those of its tokenizer."""
        return None if self.model.tokenizer is None else self.model.tokenizer.scripts

    def seen(self, vectors: Float[np.ndarray, "vectors dim"]) -> str | None:
        """Return None: its vectors say nothing in words."""
        return None

    def named(self, vectors: Float[np.ndarray, "vectors dim"]) -> tuple[str, str] | None:
        """Return None, likewise."""
        return None


class VectorEncoder:
    """A model of one vector a picture, composed as it says itself (``VectorEmbedder``)."""

    tower = ""
    num_vectors = 1

    def __init__(self, embedder: VectorEmbedder) -> None:
        self.embedder = embedder
        self._references = References()
        self.identity = embedder.weights_hash()
        self.about = embedder.about
        self.backbone = embedder.backbone
        self.batch_size = embedder.batch_size
        self.side = embedder.side
        self.dim = embedder.dim
        self.has_words = embedder.has_words

    def prepare(self, picture: Image.Image) -> Any:
        """Return the picture as the model takes it in."""
        return self.embedder.prepare(picture)

    def embed_pictures(self, prepared: Sequence[Any]) -> Float[Tensor, "batch vectors dim"]:
        """Return them as candidates."""
        return self.embedder.embed_prepared(prepared).unsqueeze(1)

    def embed_asked(
        self, pictures: Sequence[Image.Image], asked: Sequence[tuple[int, str]]
    ) -> Float[Tensor, "asked dim"]:
        """Return them as queries: pairs, pictures or sentences."""
        with_picture, _ = _apart(asked)
        if not with_picture:
            return self.embedder.embed_sentences([text for _, text in asked])
        places, texts = zip(*(asked[row] for row in with_picture), strict=True)
        if isinstance(self.embedder, VectorComposer):
            pairs = self.embedder.pairs_of_vectors(self._vectors(pictures)[list(places)], texts)
        else:
            pairs = self.embedder.embed_pairs([pictures[place] for place in places], texts)
        return self._with_sentences(pairs, asked)

    def embed_asked_and_pictures(
        self, pictures: Sequence[Image.Image], asked: Sequence[tuple[int, str]]
    ) -> tuple[Float[Tensor, "asked dim"], Float[Tensor, "pictures 1 dim"]]:
        """Return them as queries, and each picture as a candidate."""
        with_picture, _ = _apart(asked)
        pairs_asked = [asked[row] for row in with_picture]
        if isinstance(self.embedder, VectorComposer):
            seen = self._vectors(pictures)
            texts = [text for _, text in pairs_asked]
            pairs = self.embedder.pairs_of_vectors(seen[[place for place, _ in pairs_asked]], texts)
        else:
            pairs, seen = self.embedder.embed_pairs_and_pictures(pictures, pairs_asked)
        return self._with_sentences(pairs, asked), seen.unsqueeze(1)

    def _vectors(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures dim"]:
        prepare, embed = self.embedder.prepare, self.embedder.embed_prepared
        contents = [content_of(picture) for picture in pictures]
        return self._references.of(contents, lambda new: embed([prepare(pictures[place]) for place in new]))

    def _with_sentences(
        self, pairs: Float[Tensor, "pairs dim"], asked: Sequence[tuple[int, str]]
    ) -> Float[Tensor, "asked dim"]:
        """Return the queries with a picture, in their places among those of a sentence alone."""
        with_picture, alone = _apart(asked)
        if not alone:
            return pairs
        both = torch.cat([pairs, self.embedder.embed_sentences([asked[row][1] for row in alone])])
        return both[torch.tensor([*with_picture, *alone]).argsort().to(both.device)]

    def square(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the model sees it."""
        return self.embedder.square(picture)

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return where that lies."""
        return self.embedder.box(size)

    def read(self, text: str, *, with_reference: bool) -> Reading | None:
        """Return how its rules read a sentence, where it has rules."""
        return self.embedder.read(text)

    def scripts(self, *, with_reference: bool) -> frozenset[str] | None:
        """Return those of its tokenizer."""
        return self.embedder.scripts

    def seen(self, vectors: Float[np.ndarray, "vectors dim"]) -> str | None:
        """Return what it sees in a picture, where it has words for that."""
        return self.embedder.seen(vectors[0])

    def named(self, vectors: Float[np.ndarray, "vectors dim"]) -> tuple[str, str] | None:
        """Return the thing that it is sure of, where it has words for that."""
        return self.embedder.named(vectors[0])


class HeadEncoder:
    """A head on another model: it searches that model's indexes, and is no model to index by."""

    def __init__(self, saved: SavedHead, base: BaseEncoder, words: Callable[[Sequence[str]], Tensor]) -> None:
        self.head, self.base, self._words = saved.head, base, words
        self.identity, self.name, self.base_name = saved.weights_hash, saved.config.head, saved.config.base
        self.about, self.backbone, self.tower = base.about, base.backbone, base.tower
        self.has_words = base.has_words
        self.num_vectors, self.dim, self.side, self.batch_size = base.num_vectors, base.dim, base.side, base.batch_size

    def prepare(self, picture: Image.Image) -> Any:
        """Return it as the base takes it in."""
        return self.base.prepare(picture)

    def embed_pictures(self, prepared: Sequence[Any]) -> Float[Tensor, "batch vectors dim"]:
        """Return the base's vectors."""
        return self.base.embed_pictures(prepared)

    def embed_asked(
        self, pictures: Sequence[Image.Image], asked: Sequence[tuple[int, str]]
    ) -> Float[Tensor, "asked dim"]:
        """Return the base's queries, those of a picture with a sentence as the head changes them."""
        both = [row for row, (place, text) in enumerate(asked) if place != NO_PICTURE and text]
        if not both:
            return self.base.embed_asked(pictures, asked)
        queries, seen = self.base.embed_asked_and_pictures(pictures, asked)
        references, sentences = seen[[asked[row][0] for row in both]], self._words([asked[row][1] for row in both])
        device = self.head.device
        changed = self.head(queries[both].to(device), references.to(device), sentences.to(device))
        queries[both] = changed.to(queries.device)
        return queries

    def square(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the base sees it."""
        return self.base.square(picture)

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return where that lies."""
        return self.base.box(size)

    def read(self, text: str, *, with_reference: bool) -> Reading | None:
        """Return None beside a picture: a head reads it as a whole; a sentence alone is the base's."""
        return None if with_reference else self.base.read(text, with_reference=False)

    def scripts(self, *, with_reference: bool) -> frozenset[str] | None:
        """Return the base's: a head reads sentences by the base's words."""
        return self.base.scripts(with_reference=with_reference)

    def seen(self, vectors: Float[np.ndarray, "vectors dim"]) -> str | None:
        """Return what the base sees."""
        return self.base.seen(vectors)

    def named(self, vectors: Float[np.ndarray, "vectors dim"]) -> tuple[str, str] | None:
        """Return what the base is sure of."""
        return self.base.named(vectors)


def open_encoder(model: Path | str, device: str) -> Encoder:
    """Return what ``open_model`` does, as search sees it."""
    opened = open_model(model, device)
    if isinstance(opened, OpenedHead):
        return with_head(_encoder_of(opened.base), opened.saved)
    return _encoder_of(opened)


def with_head(encoder: Encoder, saved: SavedHead) -> HeadEncoder:
    """Return a head on a model, or in the place of the one that is on it."""
    base = encoder.base if isinstance(encoder, HeadEncoder) else encoder
    assert isinstance(base, (ComposerEncoder, VectorEncoder))
    return HeadEncoder(saved, base, words_of(base.model if isinstance(base, ComposerEncoder) else base.embedder))


def _encoder_of(opened: Opened) -> BaseEncoder:
    return VectorEncoder(opened) if isinstance(opened, VectorEmbedder) else ComposerEncoder(opened)


def content_of(picture: Image.Image) -> bytes:
    """Return a hash of the pixels, their number and their kind."""
    return hashlib.blake2b(picture.tobytes(), digest_size=16, key=f"{picture.mode} {picture.size}".encode()).digest()


def _apart(asked: Sequence[tuple[int, str]]) -> tuple[list[int], list[int]]:
    """Return the rows with a picture, and those without."""
    rows = range(len(asked))
    return [row for row in rows if asked[row][0] != NO_PICTURE], [row for row in rows if asked[row][0] == NO_PICTURE]
