"""Models of one vector a picture, whoever made them: what evaluation, an index and a search ask of such a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from composir.data.images import ImageSource, read_image


class VectorEmbedder(ABC):
    """A model that embeds pictures, sentences, and a picture with a sentence, as one L2-normalised vector each."""

    kind: str
    """What messages call it, such as "a sentence-transformers model"."""
    backbone: str
    """What an index writes down of it."""
    batch_size: int
    """Pictures that one pass should take where the model is."""

    @abstractmethod
    def prepare(self, picture: Image.Image) -> Any:
        """Return an RGB picture as ``embed_prepared`` takes it in; called by threads."""

    @abstractmethod
    def embed_prepared(self, prepared: Sequence[Any]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every picture as a candidate, of what ``prepare`` returned."""

    @abstractmethod
    def embed_pairs(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query embedding of every picture with its sentence; "" is the picture alone."""

    @abstractmethod
    def embed_sentences(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query embedding of every sentence without a picture."""

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
