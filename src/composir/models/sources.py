"""Where weights are read from: LAVIS's and SPRC's files, folders of the hub's layout, folders of this project.

Nothing is unpickled but tensors, and where the format allows it nothing is read before it is asked for.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import Tensor

from composir.errors import ComposirError
from composir.models.tensors import LazyTensors

CONFIG, WEIGHTS, TOKENIZER, TOWER, CARD = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tower.safetensors",
    "README.md",
)
INDEX = "model.safetensors.index.json"
"""Which file holds which key, where the weights are in several (Hugging Face's layout)."""
MODEL_NAME = "blip2_cir_align_prompt"
LAVIS, SPRC, HF, OWN = "lavis", "sprc", "hf", "composir"
FORMS = {
    LAVIS: "a BLIP-2 stage-1 checkpoint of LAVIS, such as blip2_pretrained.pth",
    SPRC: "a .pt file that SPRC's training saved",
    HF: "a folder or hub id in the layout of Salesforce/blip2-itm-vit-g, with safetensors",
    OWN: "a checkpoint folder of composir",
}
DOWNLOAD_AGAIN = "download or copy it again, and compare its size with the original's"
HUB_FILES = ("*.json", "*.safetensors", "*.md", "*.toml")


@dataclass(frozen=True)
class Source:
    """Weights by the names of the project that wrote them."""

    form: str
    """Key of ``FORMS``."""
    path: Path
    """The file or folder on this machine."""
    name: str
    """What finds it again: the absolute path, or the hub id."""
    weights: Mapping[str, Tensor]
    config: Mapping[str, Any]
    """``config.json`` of a folder, as it is."""


def open_source(source: str, form: str = "") -> Source:
    """Return the weights at a path or hub id; raise ``ComposirError`` where they are not of the ``form`` asked for.

    Without a form the file itself says which it is.
    """
    path, name = locate(source, FORMS[form] if form else "a file or folder of weights, or a hub id")
    found = _open_folder(path, name) if path.is_dir() else _open_file(path, name, form)
    if form and found.form != form:
        raise ComposirError(
            f"is {FORMS[found.form]}, not {FORMS[form]}",
            file=path,
            fix=f"composir convert --from {found.form}" if found.form != OWN else "it needs no conversion",
        )
    return found


def locate(source: str, expected: str) -> tuple[Path, str]:
    """Return where a path or hub id is on this machine, downloaded if need be, and what names it anywhere.

    Raises ``ComposirError`` where it is neither here nor, by network or cache, on the hub.
    """
    path = Path(source)
    if path.exists():
        return path, str(path.resolve())
    if not _is_hub_id(source):
        raise ComposirError("no such file or folder", file=source, expected=expected, fix="check the path")
    try:
        return Path(snapshot_download(source, allow_patterns=list(HUB_FILES))), source
    except OSError as error:  # the library's errors of HTTP, of the network and of its cache
        answer = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        reason = "neither here nor in the hub's cache, and the hub cannot be reached"
        if isinstance(answer, HfHubHTTPError):
            reason = f"not here, and the hub answers {answer.response.status_code}: no such repository, or no access"
    raise ComposirError(
        f"is {reason}",
        file=source,
        expected=expected,
        fix="check the name; behind a login: hf auth login; without network: give a folder on this machine",
    )


def read_json(file: Path) -> dict[str, Any]:
    """Return the object of a JSON file; anything else in it is a ``ComposirError``."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ComposirError("no such file", file=file, fix="check the path") from None
    except (ValueError, OSError) as error:
        raise ComposirError(f"is not JSON ({error})", file=file, fix=DOWNLOAD_AGAIN) from None
    if not isinstance(content, dict):
        raise ComposirError("is not a JSON object", file=file, fix=DOWNLOAD_AGAIN)
    return content


def open_safetensors(file: Path) -> tuple[LazyTensors, dict[str, str]]:
    """Return the tensors of a safetensors file, read when asked for, and its metadata."""
    try:
        content = safe_open(file, framework="pt")
        names = list(content.keys())
    except FileNotFoundError:
        raise ComposirError("is missing", file=file, fix="the folder is not complete: copy it again") from None
    except (SafetensorError, OSError) as error:
        raise ComposirError(
            f"is not a readable safetensors file ({error})", file=file, fix=f"it may be cut off: {DOWNLOAD_AGAIN}"
        ) from None
    return LazyTensors({name: partial(content.get_tensor, name) for name in names}), content.metadata() or {}


def _is_hub_id(source: str) -> bool:
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or Path(source).suffix in {".pt", ".pth"}:
        return False
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def _open_folder(folder: Path, name: str) -> Source:
    if not (folder / CONFIG).is_file():
        raise ComposirError(
            "holds no config.json", file=folder, expected=f"{FORMS[OWN]}, or {FORMS[HF]}", fix="check the path"
        )
    config = read_json(folder / CONFIG)
    form = OWN if config.get("model") == MODEL_NAME else HF
    if (folder / INDEX).is_file():
        return Source(form, folder, name, _open_shards(folder), config)
    pickled = sorted(folder.glob("*.bin"))
    if pickled and not (folder / WEIGHTS).is_file():
        raise ComposirError(
            "holds pickled weights",
            file=pickled[0],
            expected=f"{WEIGHTS}, or {INDEX} and its parts",
            fix="take a revision of the repository with safetensors",
        )
    return Source(form, folder, name, open_safetensors(folder / WEIGHTS)[0], config)


def _open_shards(folder: Path) -> LazyTensors:
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict):
        raise ComposirError("has no weight_map", file=folder / INDEX, fix=DOWNLOAD_AGAIN)
    files = sorted({str(part) for part in places.values()})
    missing = [part for part in files if not (folder / part).is_file()]
    if missing:
        raise ComposirError(
            f"names {len(files)} files, of which {', '.join(missing)} are missing", file=folder / INDEX,
            fix="download the missing parts",
        )  # fmt: skip
    parts = {part: open_safetensors(folder / part)[0] for part in files}
    absent = [key for key, part in places.items() if key not in parts[part]]
    if absent:
        raise ComposirError(
            f"{', '.join(absent)} not in the file that the index names", file=folder / INDEX, fix=DOWNLOAD_AGAIN
        )
    return LazyTensors({key: partial(parts[part].__getitem__, key) for key, part in places.items()})


def _open_file(file: Path, name: str, form: str) -> Source:
    if file.suffix == ".safetensors":
        found, weights = "", open_safetensors(file)[0]
    else:
        found, weights = _unwrap(file, _unpickle(file))
    if not found:  # a bare state dict: the names are the same in both
        found = form if form in {LAVIS, SPRC} else SPRC if "prompt_tokens" in weights else LAVIS
    return Source(found, file, name, weights, {})


def _unpickle(file: Path) -> Any:
    """Return what a file of torch.save holds; memory-mapped, except in torch's format before 1.6."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        code = next((line for line in lines if "GLOBAL" in line), "")
        if code:
            raise ComposirError(
                f"holds more than weights, and was not loaded: unpickling it could run code ({code})",
                file=file,
                expected="tensors, numbers and words alone",
                fix="save the state dict alone, on a machine where the file is trusted",
            ) from None
        reason = next((line for line in lines if "Unpickler" in line), "no pickle of torch's")
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise ComposirError(
        f"cannot be read as a file of weights ({reason})",
        file=file,
        expected=f"{FORMS[LAVIS]}, or {FORMS[SPRC]}",
        fix=f"it may be cut off: {DOWNLOAD_AGAIN}",
    )


def _unwrap(file: Path, held: Any) -> tuple[str, Mapping[str, Tensor]]:
    """Return the form and the state dict: under "model" (LAVIS), under the model's class name (SPRC), or bare ("")."""
    if isinstance(held, Mapping):
        if _is_state_dict(held):
            return "", held
        inside = {str(key): value for key, value in held.items() if _is_state_dict(value)}
        if set(inside) == {"model"}:
            return LAVIS, inside["model"]
        if len(inside) == 1:
            return SPRC, next(iter(inside.values()))
    holds = f"the keys {', '.join(map(str, list(held)[:8]))}" if isinstance(held, Mapping) else type(held).__name__
    raise ComposirError(
        f"holds no weights where they are expected, but {holds}",
        file=file,
        expected=f"{FORMS[LAVIS]}: under 'model'; or {FORMS[SPRC]}: under the name of the model's class",
        fix="check that it is the right file",
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items())
    )
