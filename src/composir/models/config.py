"""What a model is made of: every size and switch, as ``config.json`` of a checkpoint holds them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from composir.data.transforms import TARGET_RATIO
from composir.models.fusion import GATE, NONE, fusion_names
from composir.models.token_fusion import ALPHA_INIT

TEMPERATURE_INIT = 0.07


class ComposerConfig(BaseModel):
    """Every size and switch of a model; what ``config.json`` of a checkpoint holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backbone: str = "tiny"
    """Key of ``BACKBONES``: names the vision tower and the tokenizer."""
    token_width: int = Field(gt=0)
    """Width of the tower's image tokens (1408 for ViT-g)."""
    hidden_size: int = Field(gt=0)
    """Width of the Q-Former."""
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    cross_attention_frequency: int = Field(default=2, gt=0)
    """Every this many layers one reads the image tokens, the first included."""
    vocab_size: int = Field(gt=0)
    max_position_embeddings: int = Field(default=512, gt=0)
    num_query_tokens: int = Field(default=32, gt=0)
    """Vectors an image is embedded into."""
    embed_dim: int = Field(default=256, gt=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    max_words: int = Field(default=32, gt=2)
    """Tokens of a sentence that are read, [CLS] and [SEP] included."""
    num_adapted_tokens: int = Field(default=0, ge=0)
    """Tokens an image has where a learned adapter (standardise, project, add positions) stands before the Q-Former,
    as for towers that were not trained with one; 0 means none, as in BLIP-2."""
    fusion: str = GATE
    """Keys of ``FUSIONS`` joined by +, or ``none``: nothing is constructed, and the model is SPRC. What was made before
    there were several says ``use_gated_fusion`` instead: true is ``gate``, false ``none``."""
    alpha_init: float = ALPHA_INIT
    """Start of the gate's scalar, and of the attention's."""
    gate_layer_norm: bool = False
    """The gate reads the reference's tokens through a layer norm; the published one does not."""
    temperature_init: float = Field(default=TEMPERATURE_INIT, gt=0)
    matching_head: bool = False
    """Whether the weights of ``itm_head`` come from training; else they are as they started, and rank nothing."""
    transform: Literal["targetpad", "squarepad"] = "targetpad"
    """How a picture becomes the tower's square."""
    target_ratio: float = Field(default=TARGET_RATIO, ge=1)
    """Targetpad: pictures longer than this are padded to it before the crop."""

    @model_validator(mode="before")
    @classmethod
    def _read_the_former_switch(cls, fields: dict[str, object]) -> dict[str, object]:
        if "use_gated_fusion" not in fields:
            return fields
        rest = {name: value for name, value in fields.items() if name != "use_gated_fusion"}
        return {**rest, "fusion": GATE if fields["use_gated_fusion"] else NONE}

    @field_validator("fusion")
    @classmethod
    def _is_known(cls, fusion: str) -> str:
        fusion_names(fusion)
        return fusion
