"""A dual encoder that was trained here: a folder in the hub's layout that also says how its features are composed."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from composir.errors import ComposirError, wrong_fields
from composir.files import replacing_folder
from composir.machine import keep_freed_memory
from composir.models.checkpoint import TRAINED_ON
from composir.models.config import CARD, FORMAT, WEIGHTS
from composir.models.dual import Composition, DualEncoder
from composir.models.identity import CONFIGS
from composir.models.vision import hash_weights
from composir.models.weights.sources import open_safetensors, read_json
from composir.models.weights.tensors import write_safetensors
from composir.version import own_version

COMPOSITION = "composition.json"
"""Of the folder: what ``TunedConfig`` holds."""


class TunedConfig(BaseModel):
    """What the folder says beside what ``transformers`` reads of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    composir_version: str = Field(default_factory=own_version)
    base: str
    """The model that was trained, as it calls itself."""
    base_hash: str
    """Of its weights, its words and its preprocessing, of which the last two are still the same."""
    image_weight: float = Field(ge=0, le=1)
    is_normalised: bool
    """Both as in ``Composition``."""

    @classmethod
    def of(cls, base: DualEncoder) -> TunedConfig:
        """Return what is said of a model that is trained from ``base``."""
        way = base.composition
        return cls(
            base=base.backbone,
            base_hash=base.weights_hash(),
            image_weight=way.image_weight,
            is_normalised=way.is_normalised,
        )


def is_tuned(folder: Path | str) -> bool:
    """Return whether a folder is that of a dual encoder that was trained here."""
    return (Path(folder) / COMPOSITION).is_file()


def save_tuned(
    base: DualEncoder,
    weights: Mapping[str, Tensor],
    config: TunedConfig,
    folder: Path,
    *,
    about: str = "",
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write the folder, whole or not at all: other ``weights``, and all else that ``base`` is made of.

    ``about`` goes on its card; ``extra_files`` are further ones by name.
    """
    with replacing_folder(folder) as temporary:
        for file in sorted(base.folder.iterdir()):
            if file.name.endswith(CONFIGS) and not file.name.endswith(".index.json"):
                shutil.copyfile(file, temporary / file.name)
        said = copy.deepcopy(base.network.config)
        vars(said).pop("auto_map", None)  # the address of code, which is not copied
        vars(said)["architectures"] = [type(base.network).__name__]
        said.save_pretrained(temporary)
        write_safetensors(weights, temporary / WEIGHTS, {})
        (temporary / COMPOSITION).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (temporary / CARD).write_text(_card(config, about), encoding="utf-8")
        for name, content in (extra_files or {}).items():
            (temporary / name).write_bytes(content)


def open_tuned(folder: Path | str, device: str | torch.device, *, dtype: str | None = None) -> DualEncoder:
    """Return the dual encoder of a folder; ``dtype`` as ``DualEncoder`` takes it.

    Raises ``ComposirError`` for a composition.json of a newer format or with wrong values, and as ``DualEncoder`` does.
    """
    keep_freed_memory()
    folder = Path(folder)
    document = read_json(folder / COMPOSITION)
    if document.get("format") != FORMAT:
        raise ComposirError(
            f"is in format {document.get('format')}",
            file=folder / COMPOSITION,
            expected=f"format {FORMAT}",
            fix="a newer composir may read it",
        )
    try:
        config = TunedConfig(**document)
    except ValidationError as error:
        wrong = "; ".join(wrong_fields(error, TunedConfig))
        raise ComposirError(wrong, file=folder / COMPOSITION, fix="use the file that was saved") from None
    weights, _ = open_safetensors(folder / WEIGHTS)
    encoder = DualEncoder(
        config.base,
        folder,
        composition=Composition(config.image_weight, config.is_normalised),
        device=device,
        dtype=dtype,
        identity=tuned_hash(weights, config),
    )
    if (folder / TRAINED_ON).is_file():
        encoder.about = f"{config.base}, {' '.join((folder / TRAINED_ON).read_text(encoding='utf-8').split())}"
    return encoder


def tuned_hash(weights: Mapping[str, Tensor], config: TunedConfig) -> str:
    """Return what identifies weights, and the base that words and preprocessing are of."""
    base = torch.frombuffer(bytearray(config.base_hash.encode()), dtype=torch.uint8)
    return hash_weights({**weights, "#base": base})


def _card(config: TunedConfig, about: str) -> str:
    about = f"\n{about.strip()}\n" if about else ""
    return f"""---
library_name: transformers
tags: [composed-image-retrieval]
---
# {config.base}, trained further

The whole model, in the layout of {config.base} (`{config.base_hash}`), whose licence goes on.
{about}
Pictures are embedded anew: an index by {config.base} does not fit.

```bash
composir index PICTURES --model THIS_FOLDER --out INDEX
composir search INDEX --image PICTURE --text SENTENCE
```
"""
