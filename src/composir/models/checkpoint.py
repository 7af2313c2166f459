"""A model as a folder: config.json, model.safetensors, tokenizer.json, and a card for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from composir.errors import ComposirError
from composir.files import replacing_folder
from composir.models.composer import Composer, ComposerConfig
from composir.models.fusion import fusion_names
from composir.models.presets import BACKBONES
from composir.models.text import Tokenizer
from composir.models.vision import hash_weights

FORMAT = 1
"""Version of the folder's layout; a reader refuses a newer one."""
CONFIG, WEIGHTS, TOKENIZER, CARD = "config.json", "model.safetensors", "tokenizer.json", "README.md"
MODEL_NAME = "blip2_cir_align_prompt"


def weights_hash(model: Composer) -> str:
    """Return 16 hex digits that identify the model: its weights, its tower's weights and its config."""
    identity = model.own_weights()
    tower = model.tower.fingerprint() if model.tower is not None else ""
    words = f"{tower} {model.config.model_dump_json()}".encode()
    identity["#identity"] = torch.frombuffer(bytearray(words), dtype=torch.uint8)
    return hash_weights(identity)


def save_pretrained(
    model: Composer, folder: Path, *, card: str = "", extra_files: Mapping[str, bytes] | None = None
) -> None:
    """Write the checkpoint folder, whole or not at all; ``extra_files`` are further ones by name.

    The frozen tower is not stored: config.json names it and its hash, and loading checks both.
    """
    config: dict[str, Any] = {
        "format": FORMAT,
        "composir_version": version("composir"),
        "model": MODEL_NAME,
        "tower": None,
        **model.config.model_dump(),
    }
    if model.tower is not None:
        config["tower"] = {
            "name": model.tower.name,
            "weights": model.tower.weights,
            "fingerprint": model.tower.fingerprint(),
        }
    contiguous = {name: tensor.contiguous() for name, tensor in model.own_weights().items()}
    with replacing_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(contiguous, temporary / WEIGHTS, metadata={"format": "pt"})
        if model.tokenizer is not None:
            model.tokenizer.save(temporary / TOKENIZER)
        (temporary / CARD).write_text(card or model_card(model), encoding="utf-8")
        for name, content in (extra_files or {}).items():
            (temporary / name).write_bytes(content)


def from_pretrained(folder: Path | str, *, device: str | torch.device = "cpu") -> Composer:
    """Return the model of a checkpoint folder, in evaluation mode.

    Raises ``ComposirError`` where the folder is not a checkpoint, is of a newer format, or does not fit: weights load
    strictly, and the tower found on this machine must have the hash the checkpoint was made with.
    """
    folder = Path(folder)
    config, tower_identity = _read_config(folder)
    parts = BACKBONES.get(config.backbone)
    if parts is None:
        raise ComposirError(
            f"backbone {config.backbone!r} is not known",
            file=folder / CONFIG,
            expected=f"one of {', '.join(BACKBONES)}",
            fix="a newer composir may know it: pip install -U composir",
        )
    tower = parts.tower(tower_identity.get("weights", "")) if tower_identity else None
    if tower is not None and tower_identity and tower.fingerprint() != tower_identity.get("fingerprint"):
        raise ComposirError(
            f"was made with tower weights {tower_identity.get('fingerprint')}, here they are {tower.fingerprint()}",
            file=folder / CONFIG,
            expected="the same frozen tower",
            fix=f"install the {tower_identity.get('name')} weights the model was trained with",
        )
    tokenizer = Tokenizer.load(folder / TOKENIZER) if (folder / TOKENIZER).exists() else None
    model = Composer(config, tower=tower, tokenizer=tokenizer)
    load_weights(model, folder / WEIGHTS)
    return model.to(device).eval()


def load_weights(model: Composer, file: Path) -> None:
    """Load a model.safetensors strictly; a key too many or too few, or another shape, is a ``ComposirError``."""
    try:
        weights = load_file(file)
    except FileNotFoundError:
        raise ComposirError(
            "is missing", file=file, fix="the checkpoint folder is not complete: copy it again"
        ) from None
    except SafetensorError as error:
        raise ComposirError(
            f"is not a readable safetensors file ({error})",
            file=file,
            fix="the file is cut off: copy it again",
        ) from None
    own = model.own_weights()
    problems = _differences(own, weights)
    if problems:
        raise ComposirError(
            "does not fit its config.json: " + ", ".join(problems),
            file=file,
            fix="use the config.json and model.safetensors of one and the same checkpoint",
        )
    model.load_own_weights(weights)


def _differences(own: dict[str, Tensor], weights: dict[str, Tensor]) -> Sequence[str]:
    missing = [f"missing {name}" for name in sorted(set(own) - set(weights))]
    extra = [f"unexpected {name}" for name in sorted(set(weights) - set(own))]
    shapes = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(weights))
        if own[name].shape != weights[name].shape
    ]
    return [*missing, *extra, *shapes]


def _read_config(folder: Path) -> tuple[ComposerConfig, dict[str, str] | None]:
    file = folder / CONFIG
    if not file.is_file():
        raise ComposirError(
            "is not a checkpoint folder: it has no config.json",
            file=folder,
            expected=f"a folder with {CONFIG} and {WEIGHTS}, such as models/<run>/best",
            fix="give the best/ folder of a run",
        )
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ComposirError(f"is not JSON ({error})", file=file, fix="copy the checkpoint again") from None
    if not isinstance(fields, dict) or fields.get("model") != MODEL_NAME:
        raise ComposirError("is not the config of a composir model", file=file, fix="give the best/ folder of a run")
    if fields.pop("format", 0) > FORMAT:
        raise ComposirError(
            f"was written by composir {fields.get('composir_version')}, which is newer",
            file=file,
            fix="pip install -U composir",
        )
    tower = fields.pop("tower", None)
    for name in ("composir_version", "model"):
        fields.pop(name, None)
    try:
        return ComposerConfig(**fields), tower
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ComposirError(wrong, file=file, fix="use the config.json the checkpoint was saved with") from None


def model_card(model: Composer, about: str = "") -> str:
    """Return a model card: what the model is, ``about`` it (figures, say), and how to use it."""
    names = fusion_names(model.config.fusion)
    fusion = f"with the fusion {' and '.join(names)}" if names else "without a fusion"
    about = f"\n{about.strip()}\n" if about else ""
    return f"""---
library_name: composir
tags: [composed-image-retrieval]
---
# {MODEL_NAME}, {model.config.backbone} backbone, {fusion}

Finds a picture by a reference picture and a sentence that says what should differ.
{about}
```python
import composir

model = composir.load("path/to/this/folder")
query = model.embed_query(["reference.jpg"], ["the same, but red"])   # (1, {model.config.embed_dim})
targets = model.embed_target(["a.jpg", "b.jpg"])   # (2, {model.config.num_query_tokens}, {model.config.embed_dim})
print(composir.similarity(query, targets))
```
"""
