"""What a model is made of: every size and switch, as ``config.json`` of a checkpoint holds them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from composir.data.transforms import TARGET_RATIO
from composir.errors import ComposirError, wrong_fields
from composir.models.fusion import GATE, NONE, fusion_names
from composir.models.token_fusion import ALPHA_INIT, MASKED, Pooling
from composir.version import own_version

CONFIG, WEIGHTS, TOKENIZER, TOWER, CARD = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tower.safetensors",
    "README.md",
)
MODEL_NAME = "blip2_cir_align_prompt"
HEAD = "head"
"""What config.json of a head says under ``model``."""
FORMAT = 1
"""Version of the folder's layout; a reader refuses a newer one."""
SAVED_WITH = "use the config.json the checkpoint was saved with"
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
    ln_vision: bool = False
    """Scale and shift of the norm behind the tower are weights of the model, which training changes, as in LAVIS; off,
    as in checkpoints from before there was this, they are the frozen tower's, or there are none."""
    fusion: str = GATE
    """Keys of ``FUSIONS`` joined by +, or ``none``: nothing is constructed, and the model is SPRC. What was made before
    there were several says ``use_gated_fusion`` instead: true is ``gate``, false ``none``."""
    alpha_init: float = ALPHA_INIT
    """Start of the gate's scalar, and of the attention's."""
    gate_layer_norm: bool = False
    """The gate reads the reference's tokens through a layer norm; the published one does not."""
    gate_pooling: Pooling = MASKED
    """What the sentence is the mean of for the gate, and the attention: ``masked``, its words, [CLS] and [SEP] among
    them; ``all``, all ``max_words`` positions, [PAD] included, as in the fork that the gate comes from."""
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


def parse_config(document: Mapping[str, Any], file: Path) -> tuple[ComposerConfig, dict[str, str] | None]:
    """Return the model's config and the tower's identity of the ``document`` that config.json, ``file``, holds."""
    fields = dict(document)
    if fields.get("model") != MODEL_NAME:
        raise ComposirError("is not the config of a composir model", file=file, fix="give the best/ folder of a run")
    written_by, layout, tower = fields.get("composir_version"), fields.pop("format", None), fields.pop("tower", None)
    if type(layout) is not int:
        raise ComposirError(f"format is {layout!r}", file=file, expected=f"a whole number, {FORMAT}", fix=SAVED_WITH)
    if layout > FORMAT:
        raise ComposirError(
            f"was written by composir {written_by}, which is newer", file=file, fix="install a newer composir"
        )
    if tower is not None and not _is_identity(tower):
        raise ComposirError(
            f"tower is {tower!r}",
            file=file,
            expected="null, or its name, weights and fingerprint as text",
            fix=SAVED_WITH,
        )
    for name in ("composir_version", "model"):
        fields.pop(name, None)
    try:
        config = ComposerConfig(**fields)
    except ValidationError as error:
        wrong = "; ".join(wrong_fields(error, ComposerConfig))
        here = own_version()
        other = f"was written by composir {written_by}, this is {here}: " if written_by != here else ""
        raise ComposirError(
            other + wrong,
            file=file,
            fix=f"install composir {written_by}" if other else SAVED_WITH,
        ) from None
    return config, tower


def _is_identity(tower: Any) -> bool:
    return (
        isinstance(tower, dict)
        and {"name", "fingerprint"} <= set(tower)
        and all(isinstance(value, str) for value in tower.values())
    )
