"""Any sentence-transformers model that embeds pictures and sentences, as evaluation asks a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from composir.data.images import ImageSource, read_image
from composir.errors import ComposirError
from composir.models.vision import hash_weights

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

PREFIX = "st:"
"""Before the name or folder of such a model, where a model is asked for."""
IMAGE_WEIGHT = 0.5
"""Of the reference's embedding in the sum that stands for a composed query, where a model cannot take both at once."""


class SentenceEmbedder:
    """A sentence-transformers model on image files and sentences.

    One that takes a picture and a sentence in one input composes them itself. Of one that does not (CLIP, say) the
    query is ``IMAGE_WEIGHT * picture + (1 - IMAGE_WEIGHT) * sentence``, both L2-normalised before and the sum after.
    A query without a sentence is the picture alone, one without a picture the sentence alone; a candidate is one
    vector.
    """

    def __init__(self, model: SentenceTransformer) -> None:
        self.model = model
        self.composes = model.supports(("image", "text"))

    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch 1 dim"]:
        """Return the embedding of every image, as a document."""
        return self.embed_documents([read_image(path) for path in paths])

    def embed_documents(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch 1 dim"]:
        """Return what ``embed_gallery`` does, of decoded pictures."""
        return self._encode(self.model.encode_document, list(images)).unsqueeze(1)

    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every pair of reference and sentence."""
        return self.embed_pairs([read_image(path) for path in paths], texts)

    def embed_pairs(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return what ``embed_queries`` does, of decoded pictures."""
        spoken = [row for row, text in enumerate(texts) if text]
        silent = [row for row, text in enumerate(texts) if not text]
        parts = []
        if spoken and self.composes:
            pairs = [{"image": images[row], "text": texts[row]} for row in spoken]
            parts.append(self._encode(self.model.encode_query, pairs))
        elif spoken:
            pictures = self._encode(self.model.encode_query, [images[row] for row in spoken])
            sentences = self.embed_sentences([texts[row] for row in spoken])
            parts.append(nn.functional.normalize(IMAGE_WEIGHT * pictures + (1 - IMAGE_WEIGHT) * sentences, dim=-1))
        if silent:
            parts.append(self._encode(self.model.encode_query, [images[row] for row in silent]))
        order = torch.tensor([*spoken, *silent]).argsort().to(parts[0].device)
        return torch.cat(parts)[order]

    def embed_text_only(self, texts: Sequence[str], gallery: Sequence[ImageSource]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every sentence, as a query without a picture; the gallery says nothing here."""
        return self.embed_sentences(texts)

    def embed_sentences(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return what ``embed_text_only`` does."""
        return self._encode(self.model.encode_query, list(texts))

    def embed_words(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return what ``embed_sentences`` does: what a head reads of a sentence."""
        return self.embed_sentences(texts)

    def weights_hash(self) -> str:
        """Return what identifies the model and the way it composes."""
        weights = dict(self.model.state_dict())
        if not self.composes:
            weights["#image-weight"] = torch.tensor(IMAGE_WEIGHT)
        return f"st-{hash_weights(weights)}"

    @staticmethod
    def _encode(encode: Any, inputs: list[Any]) -> Float[Tensor, "batch dim"]:
        found = encode(inputs, convert_to_tensor=True, show_progress_bar=False, batch_size=len(inputs))
        return nn.functional.normalize(found.float(), dim=-1)


def load_sentence_embedder(model: str, *, device: str | None = None) -> SentenceEmbedder:
    """Return the embedder of ``st:NAME``, NAME being a folder or hub id; on a GPU where there is one, unless told.

    Raises ``ComposirError`` where the extra is not installed, nothing of that name can be loaded, or the model does
    not embed both pictures and sentences.
    """
    name = model.removeprefix(PREFIX)
    try:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 (an extra)
    except ImportError:
        raise ComposirError(
            f"{model} needs the package sentence-transformers, which is not installed",
            fix="pip install 'composir[sentence-transformers]'",
        ) from None
    try:
        loaded = SentenceTransformer(name, device=device)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ComposirError(
            f"cannot be loaded by sentence-transformers ({reason})",
            file=name,
            expected="a folder or hub id of such a model",
            fix="check the name; without network: give a folder on this machine",
        ) from None
    lacking = [modality for modality in ("image", "text") if not loaded.supports(modality)]
    if lacking:
        raise ComposirError(
            f"embeds no {' and no '.join(lacking)}",
            file=name,
            expected="a model of pictures and sentences, such as sentence-transformers/clip-ViT-B-32",
        )
    return SentenceEmbedder(loaded)
