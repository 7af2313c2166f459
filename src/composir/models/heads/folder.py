"""A head as a folder: config.json, model.safetensors, and a card for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from composir.errors import ComposirError, nearest, wrong_fields
from composir.files import replacing_folder
from composir.models.checkpoint import load_weights
from composir.models.config import CARD, CONFIG, FORMAT, HEAD, WEIGHTS
from composir.models.heads import HEADS
from composir.models.heads.head import Head, head_hash
from composir.models.weights.sources import read_json
from composir.models.weights.tensors import Undrawn, write_safetensors
from composir.version import own_version


class HeadConfig(BaseModel):
    """What ``config.json`` of a head holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    composir_version: str = Field(default_factory=own_version)
    model: str = HEAD
    head: str
    """Key of ``HEADS``."""
    base: str
    """The model below it, as ``--model`` names it anywhere on this machine (``lasting_name``)."""
    base_hash: str
    dim: int = Field(gt=0)
    """Of the base's vectors."""
    text_dim: int = Field(gt=0)
    """Of its sentences' vectors."""
    target_map: bool = False
    """Whether it maps the targets' vectors as well."""


@dataclass(frozen=True, slots=True)
class SavedHead:
    """A head that was read from a folder."""

    head: Head
    config: HeadConfig

    @property
    def weights_hash(self) -> str:
        """What identifies it and its base."""
        return head_hash(self.head, self.config.base_hash)


def make_head(config: HeadConfig) -> Head:
    """Return a fresh head, which changes nothing yet."""
    return Head(HEADS[config.head](config.dim, config.text_dim), config.dim, target_map=config.target_map)


def is_head(folder: Path | str) -> bool:
    """Return whether a folder is that of a head."""
    file = Path(folder) / CONFIG
    return file.is_file() and read_json(file).get("model") == HEAD


def save_head(
    head: Head, config: HeadConfig, folder: Path, *, card: str = "", extra_files: Mapping[str, bytes] | None = None
) -> None:
    """Write the folder, whole or not at all; ``extra_files`` are further ones by name."""
    with replacing_folder(folder) as temporary:
        (temporary / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_safetensors(head.own_weights(), temporary / WEIGHTS, {})
        (temporary / CARD).write_text(card or head_card(config), encoding="utf-8")
        for name, content in (extra_files or {}).items():
            (temporary / name).write_bytes(content)


def read_head(folder: Path | str) -> SavedHead:
    """Return the head of a folder, in evaluation mode.

    Raises ``ComposirError`` for a config.json of a newer format, with an unknown head or wrong sizes, and for weights
    that do not fit it.
    """
    file = Path(folder) / CONFIG
    document = read_json(file)
    if document.get("format") != FORMAT:
        raise ComposirError(
            f"is a head in format {document.get('format')}",
            file=file,
            expected=f"format {FORMAT}",
            fix="a newer composir may read it",
        )
    try:
        config = HeadConfig(**document)
    except ValidationError as error:
        wrong = "; ".join(wrong_fields(error, HeadConfig))
        raise ComposirError(wrong, file=file, fix="use the config.json that the head was saved with") from None
    if config.head not in HEADS:
        raise ComposirError(f"head {config.head!r} is not known", file=file, fix=nearest(config.head, HEADS))
    with Undrawn():
        head = make_head(config)
    load_weights(head, file.parent / WEIGHTS)
    return SavedHead(head.eval(), config)


def head_card(config: HeadConfig, about: str = "") -> str:
    """Return a card: what the head is, ``about`` it (figures, say), and how to use it."""
    base = Path(config.base).name if Path(config.base).is_absolute() else config.base
    searched = "once its vectors were mapped, which is done by itself" if config.target_map else "as it stands"
    about = f"\n{about.strip()}\n" if about else ""
    return f"""---
library_name: composir
tags: [composed-image-retrieval]
---
# A head ({config.head}) on {base}

Changes what {base} (`{config.base_hash}`) makes of a picture and a sentence.
{about}
An index by {base} is searched {searched}:

```bash
composir search INDEX --model THIS_FOLDER --image PICTURE --text SENTENCE
```
"""
