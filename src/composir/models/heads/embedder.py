"""A head on its base, as evaluation asks a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from composir.data.images import ImageSource
from composir.models.heads.head import Head


class Base(Protocol):
    """The frozen model below a head: its embeddings, without gradients, however they are batched."""

    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch vectors dim"]:
        """Return the L2-normalised vectors of every picture."""
        ...

    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return its own query of every picture with its sentence."""
        ...

    def embed_text_only(self, texts: Sequence[str], gallery: Sequence[ImageSource]) -> Float[Tensor, "batch dim"]:
        """Return its own query of every sentence with the reference neutralised."""
        ...

    def embed_words(self, texts: Sequence[str]) -> Float[Tensor, "batch text_dim"]:
        """Return a vector of every sentence, whatever it asks for; "" has one, too."""
        ...


class HeadEmbedder:
    """A head on image files and sentences.

    It has learned what a sentence does to a picture: a picture alone and a sentence alone are the base's own queries.
    """

    def __init__(self, head: Head, base: Base) -> None:
        self.head, self.base = head, base

    @torch.no_grad()
    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch vectors dim"]:
        """Return the base's vectors, mapped where the head has a map of targets."""
        return self.head.map_targets(self.base.embed_gallery(paths).to(self.head.device))

    @torch.no_grad()
    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the query of every pair of reference and sentence."""
        queries = self.base.embed_queries(paths, texts).to(self.head.device)
        spoken = [row for row, text in enumerate(texts) if text]
        if spoken:
            references = self.base.embed_gallery([paths[row] for row in spoken])
            sentences = self.base.embed_words([texts[row] for row in spoken])
            queries = queries.clone()
            queries[spoken] = self.head(
                queries[spoken], references.to(self.head.device), sentences.to(self.head.device)
            )
        return queries

    def embed_text_only(self, texts: Sequence[str], gallery: Sequence[ImageSource]) -> Float[Tensor, "batch dim"]:
        """Return the base's queries of sentences alone."""
        return self.base.embed_text_only(texts, gallery)
