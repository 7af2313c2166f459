"""``tiny``: random, and small enough for tests."""

from __future__ import annotations

import string
from collections.abc import Mapping

from jaxtyping import Float
from tokenizers import Tokenizer as WordPieceTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from composir.data.transforms import CLIP_MEAN, CLIP_STD
from composir.models.backbones.base import Backbone, wake_cross_attention
from composir.models.config import ComposerConfig
from composir.models.randomness import random_numbers_aside
from composir.models.text import Tokenizer
from composir.models.vision import Tower


class PatchFeatures(nn.Module):
    """A random convolution over patches: a tower small enough for tests, with no claim to see anything."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens width"]:
        """Return one token a patch."""
        return self.convolution(pixels).flatten(2).transpose(1, 2)


def tiny_tower(weights: Mapping[str, Tensor] | None = None, *, seed: int = 0) -> Tower:
    """Return a tower of 9 tokens, 24 wide, over pictures of 48 px: random, the same for a seed, or ``weights``."""
    with random_numbers_aside(seed):
        features = PatchFeatures(16, 24)
    tower = Tower("tiny", features, num_tokens=9, width=24, mean=CLIP_MEAN, std=CLIP_STD, image_size=48)
    if weights is not None:
        tower.load_state_dict(dict(weights))
    return tower


def _tokenizer() -> Tokenizer:
    characters = string.ascii_lowercase + string.digits + string.punctuation
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{character}" for character in characters)]
    tokenizer = WordPieceTokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return Tokenizer(tokenizer)


def _config(_: str) -> ComposerConfig:
    return ComposerConfig(
        token_width=24,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=4 + 2 * len(string.ascii_lowercase + string.digits + string.punctuation),
        num_query_tokens=4,
        embed_dim=16,
        dropout=0.0,
    )


TINY = Backbone(_config, lambda weights: tiny_tower(), _tokenizer, wake_cross_attention, {"": "tiny.toml"})
