"""Where the BLIP-2 backbones start: LAVIS's checkpoint files and the hub's folders, read from this machine."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import Blip2ForImageTextRetrieval

from composir.errors import ComposirError
from composir.models.composer import Composer, ComposerConfig
from composir.models.convert import HF_KEYS, SPRC_KEYS, rename
from composir.models.fusion import WEIGHTS as FUSION_WEIGHTS
from composir.models.vision import Tower
from composir.models.vit import LastHidden, tower_from_lavis, vit_tower

HEAD_DIM = 64
"""Of every published Q-Former (BERT's); the number of heads does not show in weights."""
FRESH = ("prompt_tokens", "temperature", *FUSION_WEIGHTS)
"""What stage-1 weights do not hold: it keeps its fresh start."""
SOURCES = {
    "pretrain": "LAVIS's blip2_pretrained.pth, or a folder of Salesforce/blip2-itm-vit-g downloaded from the hub",
    "pretrain_vitL": "LAVIS's blip2_pretrained_vitL.pth",
}
INSTEAD = "give it with --weights, or train without any download: --backbone mini"


@dataclass(frozen=True)
class Start:
    """Pretrained parts of a model: its tower, the sizes that its weights show, and the weights by our names."""

    config: ComposerConfig
    tower: Tower
    weights: dict[str, Tensor]


@lru_cache(maxsize=1)
def read_start(backbone: str, source: str) -> Start:
    """Return what ``source`` holds for a backbone of ``SOURCES``; ``ComposirError`` says what is missing."""
    if not source:
        raise ComposirError(
            f"the backbone {backbone!r} needs pretrained weights, and none were given",
            expected=SOURCES[backbone],
            fix=INSTEAD,
        )
    path = Path(source)
    if not path.exists():
        raise ComposirError("no such file or folder of weights", file=path, expected=SOURCES[backbone], fix=INSTEAD)
    return _read_folder(backbone, path) if path.is_dir() else _read_lavis(backbone, path)


def initialise(model: Composer, start: Start) -> None:
    """Give a fresh model the pretrained weights; what they lack beyond ``FRESH`` raises ``ComposirError``."""
    own = model.own_weights()
    missing = [name for name in own if name not in start.weights and not name.startswith(FRESH)]
    unknown = [name for name in start.weights if name not in own]
    if missing or unknown:
        raise ComposirError(
            f"the weights do not fit: missing {missing or 'nothing'}, unexpected {unknown or 'nothing'}",
            file=start.tower.weights,
        )
    model.load_own_weights({**own, **start.weights})


def _read_lavis(backbone: str, file: Path) -> Start:
    try:
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ComposirError(
            f"cannot be read as a checkpoint of weights alone ({str(error).splitlines()[0]})",
            file=file,
            expected=SOURCES[backbone],
            fix="download it again",
        ) from None
    weights: Mapping[str, Tensor] = held["model"] if isinstance(held, dict) and "model" in held else held
    try:
        tower = tower_from_lavis(weights, source=str(file))
        rest = {
            name: tensor for name, tensor in weights.items() if not name.startswith(("visual_encoder.", "ln_vision."))
        }
        own = rename(rest, SPRC_KEYS).weights
        return Start(_sizes(backbone, own, tower), tower, own)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ComposirError(
            f"is not laid out as expected ({error})", file=file, expected=SOURCES[backbone], fix=INSTEAD
        ) from None


def _read_folder(backbone: str, folder: Path) -> Start:
    if backbone != "pretrain":
        raise ComposirError("is a folder", file=folder, expected=SOURCES[backbone], fix=INSTEAD)
    try:
        whole = Blip2ForImageTextRetrieval.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ComposirError(
            f"cannot be read as a BLIP-2 image-text model ({str(error).splitlines()[0]})",
            file=folder,
            expected=SOURCES[backbone],
            fix=INSTEAD,
        ) from None
    vision, norm = whole.vision_model, whole.vision_model.post_layernorm
    network = LastHidden(vision, norm.weight.shape[0], norm.eps)
    network.norm.load_state_dict(norm.state_dict())
    tower = vit_tower("eva-vit", network, source=str(folder))
    rest = {name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("vision_model.")}
    own = rename(rest, HF_KEYS).weights
    return Start(_sizes(backbone, own, tower), tower, own)


def _sizes(backbone: str, weights: Mapping[str, Tensor], tower: Tower) -> ComposerConfig:
    layers = {name.split(".")[3] for name in weights if name.startswith("qformer.encoder.layer.")}
    crossing = {int(name.split(".")[3]) for name in weights if ".crossattention." in name}
    vocabulary, hidden = weights["text_embeddings.word_embeddings.weight"].shape
    return ComposerConfig(
        backbone=backbone,
        token_width=tower.width,
        hidden_size=hidden,
        num_hidden_layers=len(layers),
        num_attention_heads=max(hidden // HEAD_DIM, 1),
        intermediate_size=weights["qformer.encoder.layer.0.intermediate.dense.weight"].shape[0],
        cross_attention_frequency=min(crossing - {0}, default=len(layers)),
        vocab_size=vocabulary,
        max_position_embeddings=weights["text_embeddings.position_embeddings.weight"].shape[0],
        num_query_tokens=weights["query_tokens"].shape[1],
        embed_dim=weights["vision_proj.weight"].shape[0],
    )
