"""BLIP-2's vision transformers as frozen towers, from Hugging Face's parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from composir.data.transforms import CLIP_MEAN, CLIP_STD
from composir.errors import ComposirError
from composir.models.vision import Tower

if TYPE_CHECKING:
    from transformers import Blip2VisionModel, CLIPVisionModel

NUM_HEADS_BY_WIDTH = {1408: 16, 1024: 16}
"""EVA ViT-g and CLIP ViT-L: the number of heads does not show in weights."""
NUM_BLOCKS_BY_WIDTH = {1408: 39, 1024: 23}
"""Of EVA ViT-g's 40 and of CLIP ViT-L's 24 blocks: so many BLIP-2 has, whatever a file holds (LAVIS's models)."""
EVA, CLIP = "eva-vit", "clip-vit"
EVA_EPS, CLIP_EPS = 1e-6, 1e-5
LN_VISION_EPS = 1e-5
"""Of the LayerNorm behind the tower (``ln_vision``) in LAVIS: torch's default, unlike the tower's own in EVA."""
NORM = "network.norm."
"""Start of the names, in a tower, of the scale and shift that are frozen there."""
_LAYER = re.compile(r"network\.transformer\.encoder\.layers\.(\d+)\.")


def known_heads(width: int) -> int | None:
    """Return the number of heads of a published tower, ``None`` for any other width."""
    return NUM_HEADS_BY_WIDTH.get(width)


def known_blocks(width: int) -> int | None:
    """Return how many blocks of a published tower BLIP-2 has, ``None`` for any other width."""
    return NUM_BLOCKS_BY_WIDTH.get(width)


class LastHidden(nn.Module):
    """A vision transformer's last hidden states, normalised as BLIP-2 reads them (``ln_vision``).

    Scale and shift of that norm are the model's, which trains them (``ComposerConfig.ln_vision``); with ``affine``, as
    in checkpoints from before, they are here and frozen. The transformer's own last norm, which Hugging Face's classes
    have and LAVIS's towers lack, is taken out.
    """

    def __init__(
        self, transformer: Blip2VisionModel | CLIPVisionModel, width: int, eps: float, *, affine: bool
    ) -> None:
        super().__init__()
        transformer.add_module("post_layernorm", nn.Identity())
        transformer.get_submodule("embeddings").register_forward_hook(_in_float32)
        self.transformer = transformer
        self.norm = nn.LayerNorm(width, eps=eps, elementwise_affine=affine)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens width"]:
        """Return [CLS] and the patches, row by row, normalised."""
        return self.norm(self.transformer(pixel_values=pixels).last_hidden_state)


def _in_float32(module: nn.Module, inputs: object, embeddings: Tensor) -> Tensor:
    """Let what the blocks add up to be float32 also where their products are in half precision, as in LAVIS."""
    return embeddings.float()


def vit_network(
    weights: Mapping[str, Tensor], *, num_heads: int | None = None, norm_eps: float = LN_VISION_EPS
) -> LastHidden:
    """Return the network of the sizes that ``weights`` (by the names of ``Tower.state_dict``) show, without weights.

    It lies on torch's ``meta`` device. ``KeyError`` names a weight that is missing and shows a size; a width whose
    number of heads is not known is a ``ComposirError``.
    """
    from transformers import (  # noqa: PLC0415 (seconds, which only these towers are worth)
        Blip2VisionConfig,
        Blip2VisionModel,
        CLIPVisionConfig,
        CLIPVisionModel,
    )

    embeddings = "network.transformer.embeddings."
    patches = weights[f"{embeddings}patch_embedding.weight"]
    is_clip = f"{embeddings}position_embedding.weight" in weights
    positions = weights[f"{embeddings}position_embedding{'.weight' if is_clip else ''}"]
    width, num_tokens, patch = patches.shape[0], positions.shape[-2], patches.shape[-1]
    num_heads = num_heads or known_heads(width)
    if num_heads is None:
        raise ComposirError(
            f"the vision tower is {width} wide, and weights do not show its number of heads",
            expected=f"a width of {' or '.join(map(str, NUM_HEADS_BY_WIDTH))}, or the number",
            fix="give vit_num_attention_heads in the file of --qformer-config",
        )
    settings = {
        "hidden_size": width,
        "intermediate_size": weights["network.transformer.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": 1 + max(int(match[1]) for name in weights if (match := _LAYER.match(name))),
        "num_attention_heads": num_heads,
        "image_size": patch * round((num_tokens - 1) ** 0.5),
        "patch_size": patch,
    }
    affine = f"{NORM}weight" in weights
    with torch.device("meta"):
        if is_clip:
            clip = CLIPVisionConfig(**settings, layer_norm_eps=CLIP_EPS, hidden_act="quick_gelu")
            return LastHidden(CLIPVisionModel(clip), width, norm_eps, affine=affine)
        eva = Blip2VisionConfig(**settings, layer_norm_eps=EVA_EPS, qkv_bias=True)
        return LastHidden(Blip2VisionModel(eva), width, norm_eps, affine=affine)


def describe_vit(network: LastHidden) -> tuple[str, dict[str, str]]:
    """Return the name of the tower that the network makes, and what its weights do not show of it."""
    num_heads = cast(int, network.transformer.config.num_attention_heads)
    name = CLIP if network.transformer.config.model_type == "clip_vision_model" else EVA
    return name, {"num_heads": str(num_heads), "norm_eps": repr(network.norm.eps)}


def vit_tower(
    weights: Mapping[str, Tensor],
    *,
    num_heads: int | None = None,
    norm_eps: float = LN_VISION_EPS,
    source: str = "",
) -> Tower:
    """Return the tower of ``weights`` (by the names of ``Tower.state_dict``) in float32: EVA's, or CLIP's.

    They load strictly: ``RuntimeError`` names those too many and too few.
    """
    network = vit_network(weights, num_heads=num_heads, norm_eps=norm_eps).to_empty(device="cpu")
    embeddings = network.transformer.embeddings
    counted = dict(embeddings.named_buffers()).get("position_ids")
    if counted is not None:  # not among the weights: nothing below fills it
        counted.copy_(torch.arange(embeddings.num_positions).expand(1, -1))
    network.load_state_dict({name.removeprefix("network."): weights[name] for name in weights}, strict=True)
    name, details = describe_vit(network)
    return Tower(
        name,
        network,
        num_tokens=embeddings.num_positions,
        width=network.norm.normalized_shape[0],
        mean=CLIP_MEAN,
        std=CLIP_STD,
        image_size=cast(int, embeddings.image_size),
        weights=source,
        half_on_gpu=True,
        details=details,
    )
