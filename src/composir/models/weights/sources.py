"""Where weights are read from: LAVIS's and SPRC's files, folders of the hub's layout, folders of this project.

Nothing is unpickled but tensors, and where the format allows it nothing is read before it is asked for.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from composir.errors import ComposirError, command, listed
from composir.models.config import CONFIG, MODEL_NAME, WEIGHTS
from composir.models.weights.published import CLIP_FILE, EVA_FILE
from composir.models.weights.tensors import LazyTensors

FORMER_LN_VISION = "ln_vision.safetensors"
"""In former checkpoints without a vision tower: scale and shift of the norm that belongs behind one."""
INDEX = "model.safetensors.index.json"
"""Which file holds which key, where the weights are in several (Hugging Face's layout)."""
LAVIS, SPRC, HF, OWN = "lavis", "sprc", "hf", "composir"
FORMS = {
    LAVIS: "a BLIP-2 stage-1 checkpoint of LAVIS, such as blip2_pretrained.pth",
    SPRC: "a .pt file that SPRC's training saved",
    HF: "a folder or hub id in the layout of Salesforce/blip2-itm-vit-g, with safetensors",
    OWN: "a checkpoint folder of composir",
}
DOWNLOAD_AGAIN = "download or copy it again, and compare its size with the original's"
HUB_FILES = ("*.json", "*.safetensors", "*.md", "*.toml")
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
"""Of files of weights."""
CLIP_WIDTH = 1024
"""Of the image tokens of ViT-L."""

MODEL_SET, TOWER_SET, OTHER_SET = "model", "tower", "other"
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What ``torch.compile``, FSDP and checkpointed layers put into names, wherever a layer is wrapped."""
_QFORMER = re.compile(r"(.*?)(?<![^.])Qformer\.bert\.")
_PATCHES = (
    (re.compile(r"(.*?)(?<![^.])patch_embed\.proj\.weight$"), "blocks.0."),
    (re.compile(r"(.*?)(?<![^.])conv1\.weight$"), "transformer.resblocks.0."),
)
"""The weight that starts a tower of EVA's or of CLIP's names, and the start of further names beside it."""
_LANGUAGE_MODELS = {
    "opt_": "OPT",
    "t5_": "T5",
    "llm_": "a language model",
    "language_": "a language model",
    "text_decoder.": "a decoder of captions",
}
"""Starts of names that only models which answer in words have."""
_DEPTH = 4
"""So many dictionaries in each other are looked into for weights."""


@dataclass(frozen=True)
class Layout:
    """How a file holds its weights."""

    state: str = ""
    """The keys that lead to the weights, joined by dots; empty where they are at the top."""
    prefix: str = ""
    """What stood before the names, or in them, and is taken off."""
    others: tuple[str, ...] = ()
    """The other sets of weights in the file, which were not read."""
    saved_by: str = ""
    """The library whose layout it is, where that shows."""

    def lines(self) -> list[str]:
        """Return what is worth telling a person, a line each."""
        where = [f"as {self.saved_by} saves it"] if self.saved_by else []
        if self.state:
            where.append(f"weights under {self.state!r}")
        if self.others:
            where.append(f"beside other weights under {', '.join(map(repr, self.others))}, which were not read")
        lines = [f"recognised: {', '.join(where)}"] if self.saved_by or self.others else []
        if self.prefix:
            lines.append(f"recognised: {self.prefix!r} taken off the names of the weights")
        return lines


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
    layout: Layout = Layout()
    beside: Mapping[str, str] = field(default_factory=dict)
    """Keys of the same dictionary that are not of this set of weights, and why."""
    tower: Source | None = None
    """Where the vision tower is, if that is another file."""

    @property
    def lacks_tower(self) -> bool:
        """Whether these are weights by LAVIS's names that need a tower from another file."""
        return self.tower is None and not any(name.startswith("visual_encoder.") for name in self.weights)


def open_source(source: str, form: str = "", *, state: str = "", width: int = 0) -> Source:
    """Return the weights at a path or hub id; raise ``ComposirError`` where they are not of the ``form`` asked for.

    Without a form the file itself says which it is. ``state`` chooses among several sets of weights in a file, and
    ``width``, that of image tokens, among several files in a folder.
    """
    path, name = locate(source, FORMS[form] if form else "a file or folder of weights, or a hub id")
    found = _open_folder(path, name, form, state, width) if path.is_dir() else _open_file(path, name, form, state)
    if state and found.form in {HF, OWN}:
        raise ComposirError(f"holds one set of weights, and {state!r} was asked for", file=path, fix="leave it out")
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
    if not is_hub_id(source):
        raise ComposirError("no such file or folder", file=source, expected=expected, fix="check the path")
    from huggingface_hub import snapshot_download  # noqa: PLC0415 (not for a source on this machine)
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError  # noqa: PLC0415

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


def is_hub_id(source: str) -> bool:
    """Return whether a name is one that a repository of the hub can have, and not a path."""
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or Path(source).suffix in SUFFIXES:
        return False
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415 (not for a source on this machine)
    from huggingface_hub.utils import validate_repo_id  # noqa: PLC0415

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def convert_command(source: Source, *flags: str) -> str:
    """Return the command that makes a checkpoint folder of a source, ready to be pasted; ``flags`` follow.

    Where the source has no vision tower, the command joins the published one that belongs to it.
    """
    path = source.path
    out = path.with_suffix("") if path.suffix in SUFFIXES else path.with_name(f"{path.name}-composir")
    if out.exists():
        out = out.with_name(f"{out.name}-composir")
    name = source.name if not path.exists() or not Path(source.name).is_absolute() else str(path)
    words = ["convert", "--from", source.form, name, "--out", out, *flags]
    if source.form == OWN or (source.form in {LAVIS, SPRC} and source.lacks_tower):
        words += ["--vision-tower", CLIP_FILE if _token_width(source.weights) == CLIP_WIDTH else EVA_FILE]
    return command(*words)


def language_model(keys: Sequence[str]) -> str:
    """Return in words which language model weights have that answer in words, "" where they have none."""
    names = (name for start, name in _LANGUAGE_MODELS.items() if any(key.startswith(start) for key in keys))
    return next(names, "")


def _open_folder(folder: Path, name: str, form: str, state: str, width: int) -> Source:
    if not (folder / CONFIG).is_file():
        return _open_loose(folder, name, form, state, width)
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


def _open_loose(folder: Path, name: str, form: str, state: str, width: int) -> Source:
    """Return the weights in a folder of files alone: a model, and its tower where that is a second file."""
    models: list[Source] = []
    towers: list[Source] = []
    unread: list[str] = []
    if (folder / INDEX).is_file():
        models.append(_of_held(folder, name, _open_shards(folder), form, state))
    else:
        for file in sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file()):
            try:
                held = _read(file)
                kinds = {one.kind for one in _find_sets(held)}
                if MODEL_SET in kinds:
                    opened = _of_held(file, str(file.resolve()), held, form, state)
                    if not language_model(list(opened.weights)):
                        models.append(opened)
                elif TOWER_SET in kinds:
                    towers.append(_of_held(file, str(file.resolve()), held, form, ""))
            except ComposirError as error:
                unread.append(str(error))
    models = [one for one in models if _token_width(one.weights) == width] or models
    if not models:
        raise ComposirError(
            f"holds {towers[0].path.name}, a vision tower, and no Q-Former" if towers else "holds no config.json",
            file=folder,
            expected=f"{FORMS[OWN]}, or {FORMS[HF]}, or files such as blip2_pretrained.pth and {EVA_FILE}",
            fix=f"these files were not read: {listed(unread)}" if unread else "check the path",
        )
    model = _only(folder, models, "models")
    tower = None
    if model.lacks_tower:
        fitting = [one for one in towers if _tower_width(one.weights) == _token_width(model.weights)]
        tower = _only(folder, fitting, "vision towers") if fitting else None
    layout = model.layout
    if model.path.name in {WEIGHTS, "pytorch_model.bin"} or model.path == folder:
        layout = replace(layout, saved_by="Accelerate")
    if tower is None:
        return replace(model, layout=layout)
    return replace(model, path=folder, name=name, layout=layout, tower=tower)


def _only(folder: Path, found: Sequence[Source], what: str) -> Source:
    if len(found) > 1:
        raise ComposirError(
            f"holds {len(found)} {what}: {listed([one.path.name for one in found])}",
            file=folder,
            expected="one, with its vision tower beside it where that is a file of its own",
            fix=f"leave one there, or convert it: {convert_command(found[0])}"
            if what == "models"
            else "leave one there",
        )
    return found[0]


def _token_width(weights: Mapping[str, Tensor]) -> int:
    """Return the width of the image tokens that a Q-Former reads, by LAVIS's names or ours; 0 where there is none."""
    keys = (key for key in weights if ".crossattention." in key and key.endswith(".key.weight"))
    return next((weights[key].shape[-1] for key in keys), 0)


def _tower_width(weights: Mapping[str, Tensor]) -> int:
    return next((weights[key].shape[0] for key in weights if key.endswith(("proj.weight", "conv1.weight"))), 0)


def _open_shards(folder: Path) -> LazyTensors:
    places = read_json(folder / INDEX).get("weight_map")
    if not isinstance(places, dict):
        raise ComposirError("has no weight_map", file=folder / INDEX, fix=DOWNLOAD_AGAIN)
    files = sorted({str(part) for part in places.values()})
    missing = [part for part in files if not (folder / part).is_file()]
    if missing:
        raise ComposirError(
            f"names {len(files)} files, of which {listed(missing)} are missing", file=folder / INDEX,
            fix="download the missing parts",
        )  # fmt: skip
    parts = {part: open_safetensors(folder / part)[0] for part in files}
    absent = [key for key, part in places.items() if key not in parts[part]]
    if absent:
        raise ComposirError(
            f"{listed(absent)} not in the file that the index names", file=folder / INDEX, fix=DOWNLOAD_AGAIN
        )
    return LazyTensors({key: partial(parts[part].__getitem__, key) for key, part in places.items()})


@dataclass(frozen=True)
class _Set:
    """The weights of one model in a file, which may hold several: one that was trained, and its moving average."""

    kind: str
    """``MODEL_SET``, ``TOWER_SET``, or ``OTHER_SET``: nothing that is known here."""
    name: str
    """What chooses it."""
    state: str
    prefix: str
    keys: dict[str, str]
    """The key in ``tensors`` by its name, wrappers and prefix taken off."""
    tensors: Mapping[str, Tensor]
    beside: dict[str, str]


def _open_file(file: Path, name: str, form: str, state: str) -> Source:
    return _of_held(file, name, _read(file), form, state)


def _read(file: Path) -> Any:
    return open_safetensors(file)[0] if file.suffix == ".safetensors" else _unpickle(file)


def _of_held(file: Path, name: str, held: Any, form: str, state: str) -> Source:
    """Return the one set of weights in what a file holds, or the one that ``state`` chooses."""
    sets = _find_sets(held)
    kinds = {one.kind for one in sets}
    kind = next((kind for kind in (MODEL_SET, TOWER_SET, OTHER_SET) if kind in kinds), "")
    found = [one for one in sets if one.kind == kind]
    if state:
        chosen = [one for one in sets if one.name == state and one.kind != OTHER_SET]
        if not chosen:
            raise ComposirError(
                f"holds no weights of a model under {state!r}",
                file=file,
                expected=f"one of {listed([one.name for one in found])}" if kind else None,
                fix="give --state-dict one of these, or leave it out where there is one",
            )
        others = [one.name for one in found if one is not chosen[0]]
        found = chosen
    else:
        others = []
    if not found or (len(found) > 1 and kind == OTHER_SET):
        holds = (
            f"the keys {listed(list(map(str, held)), limit=8)}" if isinstance(held, Mapping) else type(held).__name__
        )
        raise ComposirError(
            f"holds no weights where they are expected, but {holds}",
            file=file,
            expected=f"{FORMS[LAVIS]}: under 'model'; or {FORMS[SPRC]}: under the name of the model's class",
            fix="check that it is the right file",
        )
    one = found[0]
    start = "visual_encoder." if one.kind == TOWER_SET else ""
    weights = LazyTensors({start + key: partial(one.tensors.__getitem__, there) for key, there in one.keys.items()})
    layout = Layout(one.state, one.prefix, tuple(others), _saved_by(held))
    opened = Source(_form_of(one, form), file, name, weights, {}, layout, one.beside)
    if len(found) > 1:
        names = [other.name for other in found]
        raise ComposirError(
            f"holds {len(found)} sets of weights: {listed(names)}",
            file=file,
            expected="one, or to be told which",
            fix=f"choose with --state-dict: {convert_command(opened, '--state-dict', names[0])}",
        )
    return opened


def _form_of(found: _Set, asked: str) -> str:
    """Return whose file it is: both name the weights alike, and what they lie under differs."""
    if found.state[:1].isupper():  # the name of a class
        return SPRC
    has_prompt = "prompt_tokens" in found.keys
    if found.state == "model" and not has_prompt and found.kind == MODEL_SET:
        return LAVIS
    return asked if asked in {LAVIS, SPRC} else SPRC if has_prompt else LAVIS


def _saved_by(held: Any) -> str:
    if isinstance(held, LazyTensors) or not isinstance(held, Mapping):
        return ""
    if "pytorch-lightning_version" in held:
        return "Lightning"
    return (
        "DeepSpeed" if "ds_version" in held else "LAVIS's runner" if {"model", "scaler", "config"} <= set(held) else ""
    )


def _find_sets(held: Any, path: tuple[str, ...] = ()) -> list[_Set]:
    """Return every set of weights in what a file holds, in its order."""
    if not isinstance(held, Mapping):
        return []
    is_lazy = isinstance(held, LazyTensors)
    keys = [key for key in held if isinstance(key, str) and (is_lazy or isinstance(held[key], Tensor))]
    sets = list(_sets_in(held, keys, path))
    if not is_lazy and len(path) < _DEPTH:
        for key, value in held.items():
            sets += _find_sets(value, (*path, str(key)))
    return sets


def _sets_in(tensors: Mapping[str, Tensor], keys: Sequence[str], path: tuple[str, ...]) -> Iterator[_Set]:
    """Give the sets of weights of one dictionary, told apart by what stands before their names."""
    names = {key: _WRAPPERS.sub("", key) for key in keys}
    kind, heads = _heads(list(names.values()))
    state = ".".join(path)
    if kind == OTHER_SET and (not keys or len(path) > 1):
        return
    for head in heads:
        mine = {name.removeprefix(head): key for key, name in names.items() if name.startswith(head)}
        if not head and len(heads) > 1:  # what stands before the others is no part of this one
            mine = {name: key for name, key in mine.items() if not name.startswith(tuple(h for h in heads if h))}
        beside, taken = {}, set(mine.values())
        for key, name in names.items():
            if key not in taken:
                other = next((h for h in heads if h and h != head and name.startswith(h)), "")
                beside[key] = f"of other weights, under {other!r}" if other else f"not under {head!r}, as the model is"
        wrapped = next((match[0] for key in mine.values() if (match := _WRAPPERS.search(key))), "")
        first_name, first = next(iter(mine.items()))
        prefix = first[: len(first) - len(first_name)] if first.endswith(first_name) else head + wrapped
        own = head.rstrip(".") if len(heads) > 1 else ""
        name = ".".join(part for part in (state, own) if part) or "."
        yield _Set(kind, name, state, prefix or wrapped, mine, tensors, beside)


def _heads(names: Sequence[str]) -> tuple[str, list[str]]:
    """Return what the names are of, and everything that stands before such names: "" for nothing."""
    models = list(dict.fromkeys(match[1] for name in names if (match := _QFORMER.match(name))))
    if models:
        return MODEL_SET, models
    towers = [
        match[1]
        for pattern, block in _PATCHES
        for name in names
        if (match := pattern.match(name)) and any(other.startswith(match[1] + block) for other in names)
    ]
    return (TOWER_SET, list(dict.fromkeys(towers))) if towers else (OTHER_SET, [""])


def _unpickle(file: Path) -> Any:
    """Return what a file of torch.save holds; memory-mapped, except in torch's format before 1.6.

    What torch says of a file it refuses is not passed on: it ends in advice to load the file without protection.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of files that are refused below
            return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (
        *(pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError),
        *(AttributeError, IndexError, TypeError),
    ) as error:
        said = str(error)
    code = re.search(r"GLOBAL ([\w.]+)", said)
    if code or "TorchScript" in said:
        what = f"the class {code[1]}" if code else "a program, being a TorchScript archive"
        raise ComposirError(
            f"holds more than weights, and was not loaded: unpickling it could run code ({what})",
            file=file,
            expected="tensors, numbers and words alone",
            fix="where the file was made, save the weights alone: torch.save(model.state_dict(), 'weights.pt')",
        )
    reason = "no pickle of torch's" if "weights_only" in said or not said else said.splitlines()[0]
    raise ComposirError(
        f"cannot be read as a file of weights ({reason})",
        file=file,
        expected=f"{FORMS[LAVIS]}, or {FORMS[SPRC]}",
        fix=f"it may be cut off: {DOWNLOAD_AGAIN}",
    )
