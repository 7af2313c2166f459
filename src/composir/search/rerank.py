"""What scores a query with each candidate, pair by pair: a matching head, or a vision-language model by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image

from composir.errors import ComposirError
from composir.models.composer import Composer
from composir.version import pip_install

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

RERANK_SIDE = 1024
"""Pixels of the longer side that the processor of a vision-language model is given at most."""
PAIRS_AT_ONCE = 8
INSTRUCTION = "Given an image and a text that says what should differ, retrieve the image that this describes."
"""What a model that takes an instruction is told of a picture with a sentence; of one of them alone, its own."""


class Reranker(Protocol):
    """What scores a reference and a sentence with a candidate."""

    side: int
    """Pixels of the longer side that a picture has to keep when it is decoded (``read_image``)."""
    needs_picture: bool
    """Whether it cannot score a sentence alone."""

    def score(
        self, references: Sequence[Image.Image], text: str, candidates: Iterable[Sequence[Image.Image]]
    ) -> list[float]:
        """Return the score of every candidate of all batches, the mean over the references; larger is better."""
        ...


class MatchingHead:
    """BLIP-2's matching head over a checkpoint of composir's; its scores are logits."""

    needs_picture = True

    def __init__(self, model: Composer, side: int) -> None:
        self.model = model
        self.side = side

    def score(
        self, references: Sequence[Image.Image], text: str, candidates: Iterable[Sequence[Image.Image]]
    ) -> list[float]:
        """Return the mean logit of every candidate."""
        tokens = self.model.tokens(references)  # (references, tokens, width)
        scores: list[float] = []
        for batch in candidates:
            targets = self.model.tokens(batch)
            words = self.model.tokenize([text] * len(batch))
            logits = [self.model.match((one.expand(len(batch), -1, -1), targets), *words) for one in tokens]
            scores += torch.stack(logits).mean(dim=0).tolist()
        return scores


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers that reads pictures; its scores are what its ``predict`` gives.

    A query is ``{"image": reference, "text": sentence}`` under ``INSTRUCTION``, or whichever of the two there is; a
    candidate is a picture.
    """

    side = RERANK_SIDE
    needs_picture = False

    def __init__(self, model: CrossEncoder) -> None:
        self.model = model

    def score(
        self, references: Sequence[Image.Image], text: str, candidates: Iterable[Sequence[Image.Image]]
    ) -> list[float]:
        """Return the mean score of every candidate."""
        asked = [_asked(one, text) for one in references] or [text]
        prompt = INSTRUCTION if references and text else None
        scores: list[float] = []
        for batch in candidates:
            pictures = [_small(one) for one in batch]
            found = self.model.predict(
                [(query, picture) for query in asked for picture in pictures],
                prompt=prompt,
                batch_size=PAIRS_AT_ONCE,
                show_progress_bar=False,
                convert_to_tensor=True,
            )
            scores += found.float().reshape(len(asked), len(pictures)).mean(dim=0).tolist()
        return scores


def _asked(picture: Image.Image, text: str) -> Any:
    return {"image": _small(picture), "text": text} if text else _small(picture)


def _small(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((RERANK_SIDE, RERANK_SIDE))
    return small


def load_reranker(name: str, *, device: str | None = None) -> CrossEncoderReranker:
    """Return the vision-language re-ranker of a folder or hub id; on a GPU where there is one, unless told.

    Raises ``ComposirError`` where the extra is not installed, nothing of that name can be loaded, or the model does
    not read a picture and a sentence together. Remote code is not run.
    """
    try:
        from sentence_transformers import CrossEncoder  # noqa: PLC0415 (an extra)
    except ImportError:
        raise ComposirError(
            f"{name} needs the package sentence-transformers, which is not installed",
            fix=pip_install("sentence-transformers"),
        ) from None
    try:
        model = CrossEncoder(name, device=device)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ComposirError(
            f"cannot be loaded by sentence-transformers ({reason})",
            file=name,
            expected="a folder or hub id of a vision-language re-ranker, such as Qwen/Qwen3-VL-Reranker-2B",
            fix="check the name; without network: give a folder on this machine",
        ) from None
    if not model.supports(("image", "text")):
        raise ComposirError(
            "does not read a picture and a sentence together",
            file=name,
            expected="a vision-language re-ranker, such as Qwen/Qwen3-VL-Reranker-2B",
        )
    return CrossEncoderReranker(model)
