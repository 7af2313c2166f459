"""BLIP-2's vision transformers as frozen towers, from Hugging Face's parts and LAVIS's names of weights.

The numbers of heads do not show in weights: they are those of the published models, by width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel, CLIPVisionConfig, CLIPVisionModel

from composir.data.transforms import CLIP_MEAN, CLIP_STD
from composir.models.vision import Tower

NUM_HEADS_BY_WIDTH = {1408: 16, 1024: 16}
"""EVA ViT-g and CLIP ViT-L."""
EVA_EPS, CLIP_EPS = 1e-6, 1e-5
LN_VISION_EPS = 1e-5
"""Of the LayerNorm behind the tower (``ln_vision``): torch's default, unlike the tower's own in EVA."""

EVA_KEYS = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.": "embeddings.patch_embedding.",
    "norm1.": "layer_norm1.",
    "norm2.": "layer_norm2.",
    "attn.qkv.": "self_attn.qkv.",
    "attn.proj.": "self_attn.projection.",
    "mlp.": "mlp.",
}
CLIP_KEYS = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.": "embeddings.patch_embedding.",
    "ln_pre.": "pre_layrnorm.",
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_BLOCK = re.compile(r"(?:blocks|transformer\.resblocks)\.(\d+)\.")


class LastHidden(nn.Module):
    """A vision transformer's last hidden states, and the LayerNorm that BLIP-2 reads them through (``ln_vision``).

    The transformer's own last norm, which Hugging Face's classes have and LAVIS's towers lack, is taken out.
    """

    def __init__(self, transformer: Blip2VisionModel | CLIPVisionModel, width: int, eps: float = LN_VISION_EPS) -> None:
        super().__init__()
        transformer.add_module("post_layernorm", nn.Identity())
        self.transformer = transformer
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens width"]:
        """Return [CLS] and the patches, row by row, normalised."""
        return self.norm(self.transformer(pixel_values=pixels).last_hidden_state)


def tower_from_lavis(weights: Mapping[str, Tensor], *, num_heads: int | None = None, source: str = "") -> Tower:
    """Return the tower of a LAVIS checkpoint (keys ``visual_encoder.*`` and ``ln_vision.*``): EVA or CLIP.

    A key without a place raises ``KeyError``; weights load strictly.
    """
    own = {name.removeprefix("visual_encoder."): w for name, w in weights.items() if name.startswith("visual_encoder.")}
    is_eva = "cls_token" in own
    renamed = _rename_eva(own) if is_eva else _rename_clip(own)
    patches = own["patch_embed.proj.weight" if is_eva else "conv1.weight"]
    positions = own["pos_embed" if is_eva else "positional_embedding"]
    width, num_tokens, patch = patches.shape[0], positions.shape[-2], patches.shape[-1]
    settings = {
        "hidden_size": width,
        "intermediate_size": renamed["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": 1 + max(int(match[1]) for name in own if (match := _BLOCK.match(name))),
        "num_attention_heads": num_heads or NUM_HEADS_BY_WIDTH[width],
        "image_size": patch * round((num_tokens - 1) ** 0.5),
        "patch_size": patch,
    }
    if is_eva:
        transformer = Blip2VisionModel(Blip2VisionConfig(**settings, layer_norm_eps=EVA_EPS, qkv_bias=True))
    else:
        transformer = CLIPVisionModel(CLIPVisionConfig(**settings, layer_norm_eps=CLIP_EPS, hidden_act="quick_gelu"))
    network = LastHidden(transformer, width)
    network.transformer.load_state_dict(renamed, strict=True)
    network.norm.load_state_dict({part: weights[f"ln_vision.{part}"] for part in ("weight", "bias")}, strict=True)
    return vit_tower("eva-vit" if is_eva else "clip-vit", network, source=source)


def vit_tower(name: str, network: LastHidden, *, source: str) -> Tower:
    """Return a tower of a vision transformer that takes CLIP's pixels."""
    embeddings = network.transformer.embeddings
    return Tower(
        name,
        network,
        num_tokens=embeddings.num_positions,
        width=network.norm.weight.shape[0],
        mean=CLIP_MEAN,
        std=CLIP_STD,
        image_size=cast(int, embeddings.image_size),
        weights=source,
    )


def _place(name: str, places: Mapping[str, str]) -> str:
    match = _BLOCK.match(name)
    rest = name[match.end() :] if match else name
    for theirs, ours in places.items():
        if rest == theirs or (theirs.endswith(".") and rest.startswith(theirs)):
            return (f"encoder.layers.{match[1]}." if match else "") + ours + rest[len(theirs) :]
    raise KeyError(f"no rule for visual_encoder.{name}")


def _rename_eva(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in own.items():
        if name.endswith("attn.v_bias"):
            continue  # joined below
        if name.endswith("attn.q_bias"):
            value = own[name.replace("q_bias", "v_bias")]
            joined = torch.cat([tensor, torch.zeros_like(value), value])  # EVA's keys have no bias
            renamed[_place(name.replace("q_bias", "qkv.bias"), EVA_KEYS)] = joined
        else:
            renamed[_place(name, EVA_KEYS)] = tensor
    return renamed


def _rename_clip(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in own.items():
        if ".attn.in_proj_" in name:
            head, part = name.split("attn.in_proj_")
            layer = _BLOCK.match(head)
            assert layer is not None
            for which, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"encoder.layers.{layer[1]}.self_attn.{which}_proj.{part}"] = piece
        else:
            renamed[_place(name, CLIP_KEYS)] = tensor
    return renamed
