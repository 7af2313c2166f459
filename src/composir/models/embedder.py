"""Models of one vector a picture, whoever made them: what evaluation, an index and a search ask of such a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from composir.data.images import ImageSource, read_image

VECTOR_SIDE = 2048
"""Pixels of the longer side that a picture keeps at least, unless a model says that it sees less."""


class Reading(Protocol):
    """How rules read a sentence."""

    @property
    def is_usable(self) -> bool:
        """Whether the sentence moves the query at all."""
        ...

    def told(self, *, with_reference: bool) -> str:
        """Return it as one line for people, of a query with a picture or without."""
        ...


class VectorEmbedder(ABC):
    """A model that embeds pictures, sentences, and a picture with a sentence, as one L2-normalised vector each."""

    kind: str
    """What messages call it, such as "a sentence-transformers model"."""
    backbone: str
    """What an index writes down of it."""
    about = "its own card says what it was trained on"
    """What it was trained for, in a line."""
    batch_size: int
    """Pictures that one pass should take where the model is."""
    side = VECTOR_SIDE
    """Pixels of the longer side that a picture has to keep when it is decoded."""
    has_words = False
    """Whether it says in words what it sees (``seen``)."""

    @cached_property
    def dim(self) -> int:
        """Length of its vectors."""
        return self.embed_sentences(["a picture"]).shape[1]

    @abstractmethod
    def prepare(self, picture: Image.Image) -> Any:
        """Return an RGB picture as ``embed_prepared`` takes it in; called by threads."""

    @abstractmethod
    def embed_prepared(self, prepared: Sequence[Any]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every picture as a candidate, of what ``prepare`` returned."""

    @abstractmethod
    def embed_pairs(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query embedding of every picture with its sentence; "" is the picture alone."""

    def embed_pairs_and_pictures(
        self, pictures: Sequence[Image.Image], asked: Sequence[tuple[int, str]]
    ) -> tuple[Float[Tensor, "asked dim"], Float[Tensor, "pictures dim"]]:
        """Return the query of every (place in ``pictures``, sentence), and the embedding of every picture."""
        pairs = self.embed_pairs([pictures[place] for place, _ in asked], [text for _, text in asked])
        return pairs, self.embed_prepared([self.prepare(picture) for picture in pictures])

    @abstractmethod
    def embed_sentences(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query embedding of every sentence without a picture."""

    def embed_words(self, texts: Sequence[str]) -> Float[Tensor, "batch text_dim"]:
        """Return a vector of every sentence, whatever it asks for: what a head reads; "" has one, too."""
        return self.embed_sentences(texts)

    @cached_property
    def scripts(self) -> frozenset[str] | None:
        """The scripts that its words are in (``composir.models.scripts``); None where that is not known."""
        return None

    @abstractmethod
    def weights_hash(self) -> str:
        """Return what identifies the weights and the way they are used; the same on every machine."""

    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch 1 dim"]:
        """Return the embedding of every image as a candidate."""
        return self.embed_prepared([self.prepare(read_image(path)) for path in paths]).unsqueeze(1)

    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return what ``embed_pairs`` does, of image files."""
        return self.embed_pairs([read_image(path) for path in paths], texts)

    def embed_text_only(self, texts: Sequence[str], gallery: Sequence[ImageSource]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every sentence, as a query without a picture; the gallery says nothing here."""
        return self.embed_sentences(texts)

    def square(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the model sees it."""
        return picture

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of what it sees, in pixels of a picture of this width and height."""
        return 0, 0, *size

    def read(self, text: str) -> Reading | None:
        """Return how its rules read a sentence; None where a network reads it as a whole."""
        return None

    def seen(self, vector: Float[np.ndarray, " dim"]) -> str | None:
        """Return in words what it sees in a picture of this vector; None where it has no words for it."""
        return None

    def named(self, vector: Float[np.ndarray, " dim"]) -> tuple[str, str] | None:
        """Return the thing and its main colour in a picture of this vector; None where it is not sure of the thing."""
        return None


class VectorComposer(VectorEmbedder):
    """One whose queries are made of no more of a picture than its embedding: it looks at each picture once.

    Files are decoded at its ``side``.
    """

    @abstractmethod
    def pairs_of_vectors(self, vectors: Float[Tensor, "batch dim"], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return what ``embed_pairs`` does, of pictures' embeddings."""

    def embed_documents(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "batch 1 dim"]:
        """Return the embedding of every picture as a candidate."""
        return self.embed_prepared([self.prepare(picture) for picture in pictures]).unsqueeze(1)

    def embed_pairs(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query of every picture with its sentence."""
        different, places = distinct(pictures)
        return self.embed_pairs_and_pictures(different, list(zip(places, texts, strict=True)))[0]

    def embed_pairs_and_pictures(
        self, pictures: Sequence[Image.Image], asked: Sequence[tuple[int, str]]
    ) -> tuple[Float[Tensor, "asked dim"], Float[Tensor, "pictures dim"]]:
        """Return the queries, and the embeddings that they are made of."""
        vectors = self.embed_documents(pictures)[:, 0]
        return self.pairs_of_vectors(vectors[[place for place, _ in asked]], [text for _, text in asked]), vectors

    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch 1 dim"]:
        """Return the embedding of every image file."""
        return self.embed_documents([read_image(path, side=self.side) for path in paths])

    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query of every image file with its sentence."""
        return self.embed_pairs([read_image(path, side=self.side) for path in paths], texts)


def distinct(pictures: Sequence[Image.Image]) -> tuple[list[Image.Image], list[int]]:
    """Return the pictures with those that are the very same object once, and the place of each in them.

    A search asks for one picture with several sentences; what a model sees in it is the same.
    """
    place_by_id: dict[int, int] = {}
    places = [place_by_id.setdefault(id(picture), len(place_by_id)) for picture in pictures]
    return [pictures[places.index(place)] for place in range(len(place_by_id))], places
