"""What a command needs on this machine, looked for before torch is imported, which takes seconds.

What these let pass is looked at again where it is opened.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from composir.cli.choices import BUILT_IN, DATASETS, MODELS
from composir.errors import ComposirError
from composir.files import read_toml
from composir.models.weights.published import EXPECTED, no_weights
from composir.paths import check_the_path, near_path, require_index, require_there
from composir.tables import Table

ST = "st"
A_MODEL = "a checkpoint folder of composir, a hub id, or a name that composir models lists"
A_RESULT = "a file of --save-rankings, a checkpoint folder, a run folder, or NAME=PATH[,PATH...]"
A_FOLDER_OF_HUB = re.compile(r"[^./~][^/]*/[^/]+")
"""What may be a hub id, ORG/NAME, as well as a folder."""


def require_model(model: Path | str | None) -> None:
    """Raise ``ComposirError`` where a model is neither there nor a name, and cannot be a hub id."""
    if model is None or Path(model).exists() or A_FOLDER_OF_HUB.fullmatch(str(model)):
        return
    name = re.split("[:?]", str(model), maxsplit=1)[0]
    names = Table("models", dict.fromkeys((*BUILT_IN, *MODELS)))  # and those of other packages
    if name == ST or name in names:
        return
    close = difflib.get_close_matches(name.casefold(), names, n=1)
    fix = f"did you mean {close[0]!r}?" if close else check_the_path(Path(model))
    raise ComposirError("no such file or folder", file=model, expected=A_MODEL, fix=fix)


def require_data_root(dataset: str, data_root: Path | None, split: str | None) -> None:
    """Raise ``ComposirError`` where a data root that was given is not there, empty, or lacks a split of one's own."""
    if data_root is None:
        return
    if not data_root.exists() and (near := near_path(data_root)):
        raise ComposirError("no such folder", file=data_root, fix=f"did you mean {str(near)!r}?")
    from composir.data.datasets import DATASETS as DATASET_BY_NAME
    from composir.data.datasets import find_dataset, require_root

    require_root(dataset, data_root, split or DATASET_BY_NAME[find_dataset(dataset)].evaluated)


def require_training(given: Mapping[str, Any], config: Path | None, resume: Path | None) -> None:
    """Raise ``ComposirError`` where what ``train`` was given leads nowhere, or a backbone lacks its weights.

    ``given`` has ``settings`` (those of ``--set``) and the flags by name, None where one was not given.
    """
    settings = {**(read_toml(config) if config else {}), **{key: one for key, one in given.items() if one is not None}}
    if resume is not None:
        require_there(resume, "a run folder with last/training.pt, such as models/clip_finetuned_on_...")
        return
    if given.get("from_feedback"):
        require_index(Path(given["from_feedback"][1]))
        return
    backbone, weights = str(settings.get("backbone", "pretrain")), str(settings.get("weights", ""))
    data_root = settings.get("data_root")
    require_data_root(str(settings.get("dataset", DATASETS[0])), Path(data_root) if data_root else None, "train")
    is_set = any(one.startswith(("backbone", "weights")) for one in given.get("settings") or ())
    if not is_set:
        require_weights(backbone, weights)


def require_weights(backbone: str, weights: str) -> None:
    """Raise ``ComposirError`` where a backbone needs weights and has none, or they are not there."""
    if weights:
        require_model(weights)
    elif backbone in EXPECTED:
        raise no_weights(backbone)


def require_sources(sources: Sequence[str]) -> None:
    """Raise ``ComposirError`` where a result to compare is not there: PATH or NAME=PATH[,PATH...]."""
    for source in sources:
        name, equals, paths = source.partition("=")
        if not equals:
            require_there(Path(source), A_RESULT)
        elif name and not Path(source).exists() and not Path(paths).exists():
            for path in filter(None, paths.split(",")):
                require_there(Path(path), A_RESULT)
