"""What a bench measures: models and data sets by name, read from a TOML file and checked as a whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from composir.data import DATASETS, Split, find_dataset, load_splits
from composir.data.check import require_images
from composir.errors import ComposirError, Problem, ProblemsError, nearest, short, wrong_fields
from composir.evaluation import check_scorable
from composir.files import read_toml
from composir.models.sprc import GLOBAL, SCORINGS

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,99}")
"""Of a model or data set: what can be a file's name on any disk."""
FIX = "docs/leaderboard.md shows a whole file"

_Entry = TypeVar("_Entry", bound=BaseModel)


class DataEntry(BaseModel):
    """A data set, and by which rules it is measured."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    dataset: str
    """Key of ``DATASETS``."""
    data_root: str
    """Folder of the data set, or its parent, from where the command is called."""
    split: str = ""
    """The split whose answers are public where it is empty."""
    categories: list[str] = Field(default_factory=list)
    gallery: str = "original"
    exclude_reference: bool | None = None
    text_rule: str | None = None
    only: str = ""
    """A list of queries that are measured alone, as ``composir.data.only`` reads it; empty for all."""

    def load(self) -> tuple[Split, ...]:
        """Return the splits; raise what ``load_splits``, ``check_scorable`` and ``require_images`` raise."""
        splits = load_splits(
            self.dataset,
            self.data_root,
            self.split or DATASETS[find_dataset(self.dataset)].evaluated,
            categories=self.categories or None,
            gallery=self.gallery,
            exclude_reference=self.exclude_reference,
            text_rule=self.text_rule,
            only=Path(self.only) if self.only else None,
        )
        check_scorable(splits)
        require_images(splits)
        return splits


class ModelEntry(BaseModel):
    """A model, in one run or in several that differ in the seed of their training."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: list[str] = Field(min_length=1)
    """What ``composir evaluate --model`` takes: one name or folder, or a list of them, the runs."""
    note: str = ""
    """What a reader of the table should know, such as what the model was trained on."""
    scoring: str = GLOBAL
    """One of ``SCORINGS``."""
    batch_size: int = Field(default=64, ge=1, le=1_000_000)
    """Pictures or queries that are embedded at once."""

    @field_validator("model", mode="before")
    @classmethod
    def _as_list(cls, model: object) -> object:
        return [model] if isinstance(model, str) else model

    @field_validator("model")
    @classmethod
    def _is_each_once(cls, model: list[str]) -> list[str]:
        if len(set(model)) < len(model):
            raise ValueError("a run is named twice: a copy tells nothing of other seeds")
        return model

    @field_validator("scoring")
    @classmethod
    def _is_a_scoring(cls, scoring: str) -> str:
        if scoring not in SCORINGS:
            raise ValueError(f"expected {' or '.join(SCORINGS)}")
        return scoring


@dataclass(frozen=True, slots=True)
class Config:
    """The models and data sets of a bench by name, in the file's order."""

    models: Mapping[str, ModelEntry]
    datasets: Mapping[str, DataEntry]


def load_config(file: Path) -> Config:
    """Return what a TOML file says, with tables ``models`` and ``datasets``; all data sets were read.

    Raises ``ProblemsError`` with everything that is wrong in the file, and in the annotations that it names. Whether
    a model can be opened shows when it is its turn.
    """
    content = read_toml(file)
    problems = [
        Problem(str(file), key, "there is no such key", nearest(key, ("models", "datasets")))
        for key in content
        if key not in ("models", "datasets")
    ]
    models = _read_entries(content, "models", ModelEntry, file, problems)
    datasets = _read_entries(content, "datasets", DataEntry, file, problems)
    for name, entry in datasets.items():
        try:
            entry.load()
        except ProblemsError as error:
            problems += error.problems
        except ComposirError as error:
            place = f"{error.file}: " if error.file else ""
            expected = f"; expected {error.expected}" if error.expected else ""
            fix = error.fix or "see docs/data.md"
            problems.append(Problem(str(file), f"datasets.{name}", f"{place}{error.message}{expected}", fix))
    if problems:
        raise ProblemsError(problems)
    return Config(models, datasets)


def _read_entries(
    content: Mapping[str, Any], table: str, kind: type[_Entry], file: Path, problems: list[Problem]
) -> dict[str, _Entry]:
    """Return the entries of a table that are as they should be, and add what is wrong with the others."""

    def add(where: str, message: str, fix: str = FIX) -> None:
        problems.append(Problem(str(file), where, message, fix))

    named = content.get(table)
    if not isinstance(named, dict) or not named:
        add(table, f"there is no table [{table}.NAME]")
        return {}
    entries: dict[str, _Entry] = {}
    name_by_folded: dict[str, str] = {}
    for name, settings in named.items():
        where = f"{table}.{name}"
        other = name_by_folded.setdefault(name.casefold(), name)
        if not NAME.fullmatch(name):
            add(where, "the name cannot be a file's", "take letters, digits, space, and . _ + - after the first")
        elif other != name:
            add(where, f"differs from {other} in capitals alone, and both name a folder", "rename one of them")
        elif not isinstance(settings, dict):
            add(where, f"is {short(settings)}, not a table")
        else:
            try:
                entries[name] = kind(**settings)
            except ValidationError as error:
                for line in wrong_fields(error, kind):
                    add(where, line)
    return entries
