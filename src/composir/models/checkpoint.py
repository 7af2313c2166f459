"""A model as a folder: config.json, model.safetensors, tokenizer.json, and a card for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from composir.errors import ComposirError, listed
from composir.files import replacing_folder
from composir.machine import keep_freed_memory
from composir.models.backbones import read_config, tower_of
from composir.models.composer import Composer
from composir.models.config import CARD, CONFIG, FORMAT, MODEL_NAME, TOKENIZER, TOWER, WEIGHTS, ComposerConfig
from composir.models.fusion import fusion_names
from composir.models.text import Tokenizer
from composir.models.vision import Tower, hash_weights
from composir.models.weights.sources import (
    FORMS,
    OWN,
    convert_command,
    locate,
    open_safetensors,
    open_source,
    read_json,
)
from composir.models.weights.start import not_finite, require_qformer
from composir.models.weights.tensors import LazyTensors, Undrawn, write_safetensors
from composir.version import own_version

TRAINED_ON = "trained_on.txt"
"""Of a checkpoint folder: what the model was trained on, in a line."""


def weights_hash(model: Composer) -> str:
    """Return 16 hex digits that identify the model: its weights, its tower's weights and its config."""
    identity = model.own_weights()
    tower = model.tower.fingerprint() if model.tower is not None else ""
    words = f"{tower} {model.config.model_dump_json()}".encode()
    identity["#identity"] = torch.frombuffer(bytearray(words), dtype=torch.uint8)
    return hash_weights(identity)


def save_pretrained(
    model: Composer,
    folder: Path,
    *,
    card: str = "",
    extra_files: Mapping[str, bytes] | None = None,
    embed_tower: bool = False,
) -> None:
    """Write the checkpoint folder, whole or not at all; ``extra_files`` are further ones by name.

    The frozen tower is not stored unless ``embed_tower`` asks for it: config.json names it and its hash, and loading
    checks both.
    """
    tower = model.tower
    write_folder(
        folder,
        model.config,
        model.own_weights(),
        tower=None if tower is None else tower_identity(tower),
        tower_weights=tower.state_dict() if tower is not None and embed_tower else None,
        tokenizer=model.tokenizer,
        card=card,
        extra_files=extra_files,
    )


def write_folder(
    folder: Path,
    config: ComposerConfig,
    weights: Mapping[str, Tensor],
    *,
    tower: Mapping[str, Any] | None,
    tower_weights: Mapping[str, Tensor] | None = None,
    tokenizer: Tokenizer | None = None,
    card: str = "",
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint folder of parts, whole or not at all; weights are read one at a time.

    ``tower`` is what ``tower_identity`` returns; ``tower_weights`` are stored beside the model's where given, and
    the fingerprint is then theirs as they are read again, in float32: on a GPU a tower may hold them rounded to fp16.
    """
    if tower is not None and tower_weights is not None:
        floats = LazyTensors({name: partial(_as_read, tower_weights, name) for name in tower_weights})
        tower = {**tower, "weights": TOWER, "fingerprint": hash_weights(floats)}
    document: dict[str, Any] = {
        "format": FORMAT,
        "composir_version": own_version(),
        "model": MODEL_NAME,
        "tower": None if tower is None else {key: tower[key] for key in ("name", "weights", "fingerprint")},
        **config.model_dump(),
    }
    with replacing_folder(folder) as temporary:
        (temporary / CONFIG).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
        write_safetensors(weights, temporary / WEIGHTS, {})
        if tower is not None and tower_weights is not None:
            write_safetensors(tower_weights, temporary / TOWER, {"name": tower["name"], **tower["details"]})
        if tokenizer is not None:
            tokenizer.save(temporary / TOKENIZER)
        (temporary / CARD).write_text((card or model_card(config)) + _tower_notice(document), encoding="utf-8")
        for name, content in (extra_files or {}).items():
            (temporary / name).write_bytes(content)


def _as_read(weights: Mapping[str, Tensor], name: str) -> Tensor:
    tensor = weights[name]
    return tensor.float() if tensor.is_floating_point() else tensor


def tower_identity(tower: Tower) -> dict[str, Any]:
    """Return what a checkpoint says of its tower: its name, where its weights were read from, and their hash."""
    return {
        "name": tower.name,
        "weights": tower.weights,
        "fingerprint": tower.fingerprint(),
        "details": tower.details,
    }


def from_pretrained(source: Path | str, *, device: str | torch.device = "cpu") -> Composer:
    """Return the model of a checkpoint folder or hub id, in evaluation mode.

    Raises ``ComposirError`` where it is neither here nor on the hub, is no checkpoint, is of a newer format, or does
    not fit: weights load strictly, and the tower found on this machine must have the hash the checkpoint was made
    with.
    """
    keep_freed_memory()
    folder, _ = locate(str(source), FORMS[OWN])
    _require_checkpoint(folder)
    config, identity = read_config(read_json(folder / CONFIG), folder / CONFIG)
    tokenizer = None
    if (folder / TOKENIZER).exists():
        tokenizer = Tokenizer.load(folder / TOKENIZER)
        if tokenizer.vocab_size != config.vocab_size:
            raise ComposirError(
                f"knows {tokenizer.vocab_size:,} words, and the weights have a row for {config.vocab_size:,}",
                file=folder / TOKENIZER,
                expected="the tokenizer that the model was trained with",
                fix="copy the tokenizer.json of the same checkpoint",
            )
    tower = tower_of(config, identity, folder) if identity else None
    with Undrawn():
        model = Composer(config, tower=tower, tokenizer=tokenizer)
    load_weights(model, folder / WEIGHTS)
    if (folder / TRAINED_ON).is_file():
        model.trained_on = " ".join((folder / TRAINED_ON).read_text(encoding="utf-8").split())
    return model.to(device).eval()


def require_whole(model: Composer, source: Path | str) -> Tower:
    """Return the vision tower of a model that was read from ``source``.

    Raises ``ComposirError`` where it has none, and so cannot see, or no tokenizer, and so cannot read.
    """
    if model.tower is None:
        raise ComposirError(
            "has no vision tower and cannot embed pictures",
            file=source,
            fix=f"join one: {convert_command(open_source(str(source)))}",
        )
    if model.tokenizer is None:
        raise ComposirError(
            "has no tokenizer and cannot embed sentences",
            file=source,
            expected="a model of BLIP-2's vocabulary, or one with its tokenizer.json",
        )
    return model.tower


def _require_checkpoint(path: Path) -> None:
    """Raise ``ComposirError`` for anything but a checkpoint folder; for weights of other layouts, how to make one."""
    has_config = (path / CONFIG).is_file()
    if has_config and read_json(path / CONFIG).get("model_type") is None:
        return
    opened = None
    try:
        opened = open_source(str(path))
        require_qformer(opened)
    except ComposirError:
        if path.is_file():
            raise
    expected = f"a folder with {CONFIG} and {WEIGHTS}, such as models/<run>/best"
    if opened is not None:
        raise ComposirError(
            f"is no checkpoint of composir yet, but {FORMS[opened.form]}",
            file=path,
            expected=expected,
            fix=f"convert it once: {convert_command(opened)}",
        )
    raise ComposirError(
        "is not a checkpoint folder: it has no config.json" if not has_config else "is no checkpoint of composir",
        file=path,
        expected=expected,
        fix="give the best/ folder of a run",
    )


def push_to_hub(folder: Path | str, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Return the address of the commit that put a checkpoint folder on the hub; the repository is made if need be.

    Raises ``ComposirError`` where the folder is no whole checkpoint, its tower lies on this machine alone, or the hub
    refuses or cannot be reached. Without ``token`` the one of ``hf auth login`` is used.
    """
    folder = Path(folder)
    _, identity = read_config(read_json(folder / CONFIG), folder / CONFIG)
    open_safetensors(folder / WEIGHTS)
    tower = (identity or {}).get("weights", "")
    if tower and tower != TOWER and Path(tower).is_absolute():
        raise ComposirError(
            f"its vision tower is {tower}, which only this machine has",
            file=folder,
            fix="save it with embed_tower=True (composir convert --embed-tower), "
            f"or write a hub id that holds it under tower.weights in {CONFIG}",
        )
    from huggingface_hub import HfApi  # noqa: PLC0415 (only to push)

    api = HfApi(token=token)
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload a checkpoint of composir")
    except (OSError, ValueError) as error:  # HTTP errors are OSError, a name that cannot be is ValueError
        raise ComposirError(
            f"cannot be put on the hub as {repo_id} ({str(error).splitlines()[0]})",
            file=folder,
            fix="check the name, that you may write there (hf auth login), and the network",
        ) from None


class Weighted(Protocol):
    """A model whose weights are in one file."""

    def own_weights(self) -> Mapping[str, Tensor]: ...  # noqa: D102
    def load_own_weights(self, weights: Mapping[str, Tensor]) -> None: ...  # noqa: D102


def load_weights(model: Weighted, file: Path) -> None:
    """Load a model.safetensors strictly; a key too many or too few, or another shape, is a ``ComposirError``."""
    weights, _ = open_safetensors(file)
    own = model.own_weights()
    problems = _differences(own, weights)
    if any(problems):
        raise ComposirError(
            "does not fit its config.json: " + listed(*problems),
            file=file,
            fix="use the config.json and model.safetensors of one and the same checkpoint",
        )
    if broken := not_finite(weights):
        raise ComposirError(
            f"holds weights that are not numbers, or infinite: {listed(broken)}",
            file=file,
            fix="give a checkpoint from before the training failed",
        )
    model.load_own_weights(weights)


def _differences(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[Sequence[str], ...]:
    """Return what is missing, what has no place, and what has another shape."""
    missing = [f"missing {name}" for name in sorted(set(own) - set(weights))]
    extra = [f"unexpected {name}" for name in sorted(set(weights) - set(own))]
    shapes = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"
        for name in sorted(set(own) & set(weights))
        if own[name].shape != weights[name].shape
    ]
    return missing, extra, shapes


def model_card(config: ComposerConfig, about: str = "") -> str:
    """Return a model card: what the model is, ``about`` it (figures, say), and how to use it."""
    names = fusion_names(config.fusion)
    fusion = f"with the fusion {' and '.join(names)}" if names else "without a fusion"
    about = f"\n{about.strip()}\n" if about else ""
    return f"""---
library_name: composir
tags: [composed-image-retrieval]
---
# {MODEL_NAME}, {config.backbone} backbone, {fusion}

Finds a picture by a reference picture and a sentence that says what should differ.
{about}
```python
import composir

model = composir.load("path/to/this/folder")
query = model.embed_query(["reference.jpg"], ["the same, but red"])   # (1, {config.embed_dim})
targets = model.embed_target(["a.jpg", "b.jpg"])   # (2, {config.num_query_tokens}, {config.embed_dim})
print(composir.similarity(query, targets))
```
"""


def _tower_notice(document: Mapping[str, Any]) -> str:
    """Return the end of a card: where the frozen vision tower is."""
    tower = document["tower"]
    if tower is None:
        return (
            "\nThere is no vision tower: the model works on image tokens. To join one: "
            "`composir convert --from composir THIS_FOLDER --vision-tower FILE --out NEW_FOLDER`.\n"
        )
    where = {"": "comes with composir", TOWER: f"is in {TOWER}"}.get(
        tower["weights"], f"is not stored here, it is read from `{tower['weights']}`"
    )
    return f"\nThe frozen vision tower {tower['name']} ({tower['fingerprint']}) {where}.\n"
