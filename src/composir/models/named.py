"""Models that are named rather than given as a folder: ``photos``, ``lite0``, those of ``MODELS``, and ``st:NAME``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from composir.errors import ComposirError
from composir.machine import keep_freed_memory
from composir.models.address import ST, Address
from composir.models.catalogue import MODELS, open_model_by_name
from composir.models.embedder import VectorEmbedder
from composir.models.lite0 import LITE0, Lite0Embedder
from composir.models.photos.embedder import PHOTOS, PhotosEmbedder
from composir.models.st import load_sentence_embedder

BUILT_IN: dict[str, Callable[[str | torch.device], VectorEmbedder]] = {PHOTOS: PhotosEmbedder, LITE0: Lite0Embedder}
"""Models whose weights come with the package's own extras."""


def find_address(model: str) -> Address | None:
    """Return the address in ``model``, None where it is a path or a hub id; a folder of the same name: its full path.

    Raises ``ComposirError`` for options that are none.
    """
    return Address.read(model, lambda name: name in BUILT_IN or name == ST or name in MODELS)


def lasting_name(model: str) -> str:
    """Return what names a model also from another folder: of a folder, behind a name as well, the absolute path."""
    if address := find_address(model):
        return str(address.resolved())
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def open_named(model: str, device: str | torch.device) -> VectorEmbedder | None:
    """Return the model of a name, None where ``model`` is a path or a hub id.

    Raises ``ComposirError`` where it is not on this machine or cannot be loaded.
    """
    address = find_address(model)
    if address is None:
        return None
    keep_freed_memory()
    if address.name in BUILT_IN:
        address.options.require_only(address.name)
        if address.place:
            raise ComposirError(
                f"{address.name} is built in and has no place", file=model, fix=f"--model {address.name}"
            )
        return BUILT_IN[address.name](device)
    if address.name == ST:
        for name, known in MODELS.items():
            if known.hub_id == address.place and known.load is not None:
                raise ComposirError(
                    "has a name here, by which it is asked and composed as its authors do it",
                    file=model,
                    fix=f"--model {name}",
                )
        return load_sentence_embedder(address.place, device=device, options=address.options)
    return open_model_by_name(address.name, address.place, device, address.options)
