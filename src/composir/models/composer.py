"""The composed-retrieval model on pictures and sentences: a frozen vision tower, words, and SPRC behind them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from composir.data.images import read_image
from composir.errors import ComposirError, counted
from composir.machine import to_device
from composir.models.config import ComposerConfig
from composir.models.sprc import Sprc
from composir.models.text import Tokenizer
from composir.models.trace import Trace, Traced, trace
from composir.models.vision import Tower


class Composer(Sprc):
    """SPRC's model (``blip2_cir_align_prompt``), with gated fusion of the reference's tokens where it is on.

    ``embed_query`` and ``embed_target`` take pictures and sentences, ``encode_query`` and ``encode_target`` the
    tokens they turn into; evaluation, search and training all pass through these.
    """

    def __init__(
        self, config: ComposerConfig, *, tower: Tower | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        super().__init__(config)
        self.tokenizer = tokenizer
        self.tower = tower
        self.trained_on = ""
        """What it was trained on, in a line; "" where that is not known."""
        if tower is not None:
            tower.transform, tower.target_ratio = config.transform, config.target_ratio

    def tokens(self, images: Sequence[Image.Image | Path | str]) -> Float[Tensor, "batch tokens width"]:
        """Return the tower's image tokens of pictures or image files."""
        if self.tower is None:
            raise RuntimeError("this model was built without a vision tower and works on tokens only")
        return self.tower.tokens([_open(image) for image in images]).to(self.device)

    def tokenize(self, texts: Sequence[str]) -> tuple[Int[Tensor, "batch words"], Int[Tensor, "batch words"]]:
        """Return input ids and attention mask of normalised sentences, padded to the longest of them.

        The mask stays on the CPU, which has to know how many words there are: the Q-Former computes nothing for
        padding. The model takes it from there.
        """
        input_ids, attention_mask = self.words(texts)
        return to_device(input_ids, self.device), attention_mask

    def words(self, texts: Sequence[str]) -> tuple[Int[Tensor, "batch words"], Int[Tensor, "batch words"]]:
        """Return what ``tokenize`` does, all on the CPU."""
        if self.tokenizer is None:
            raise RuntimeError("this model was built without a tokenizer and works on token ids only")
        return self.tokenizer(texts, max_words=self.config.max_words)

    @torch.inference_mode()
    def embed_query(
        self, images: Sequence[Image.Image | Path | str], texts: Sequence[str]
    ) -> Float[Tensor, "batch dim"]:
        """Return one L2-normalised vector for each picture with its sentence, of lists of equal length."""
        _require_lists(images, texts)
        return self.encode_query(self.tokens(images), *self.tokenize(texts))

    @torch.inference_mode()
    def embed_target(self, images: Sequence[Image.Image | Path | str]) -> Float[Tensor, "batch queries dim"]:
        """Return the L2-normalised vectors of each picture of a list as a candidate."""
        _require_lists(images)
        return self.encode_target(self.tokens(images))

    def trace(
        self, image: Image.Image | Path | str, text: str, target: Image.Image | Path | str | None = None
    ) -> Trace:
        """Return what the model made of a picture with a sentence: named arrays by image token, see ``Trace``.

        With a ``target`` also its score, and what each patch of either picture is worth to it.
        """
        picture, ids_and_mask = _open(image), self.tokenize([text])
        return trace(
            self, self._traced(picture), *ids_and_mask, None if target is None else self._traced(_open(target))
        )

    def _traced(self, picture: Image.Image) -> Traced:
        tokens = self.tokens([picture])
        assert self.tower is not None  # its tokens were just made
        return Traced(tokens, self.tower.box(picture.size))


def _require_lists(images: Sequence[Image.Image | Path | str], texts: Sequence[str] | None = None) -> None:
    """Raise ``ComposirError`` where one picture or sentence is given for a list, or the lists differ in length."""
    one = "picture" if isinstance(images, (str, Path, Image.Image)) else "sentence" if isinstance(texts, str) else ""
    if one:
        raise ComposirError(
            f"one {one} is given, and a list is wanted",
            fix="pass lists: embed_query([picture], [sentence]), embed_target([picture])",
        )
    if texts is not None and len(images) != len(texts):
        raise ComposirError(
            f"there are {counted(len(images), 'picture')} and {counted(len(texts), 'sentence')}",
            expected="a sentence for each picture",
        )


def _open(image: Image.Image | Path | str) -> Image.Image:
    return image if isinstance(image, Image.Image) else read_image(Path(image))
