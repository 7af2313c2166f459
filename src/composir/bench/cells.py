"""A cell of the table: one model's rankings on one data set in a folder, and what they were made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from composir.data import Split
from composir.data.images import file_of
from composir.errors import ComposirError
from composir.evaluation import Result, Saved, load_rankings, save_rankings
from composir.evaluation.saved import RANKINGS, seed_of
from composir.files import replacing_folder, write_text
from composir.version import own_version

CELL = "cell.json"
"""Beside the rankings: what ``Origin`` and ``Cost`` hold."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a cell is computed from; a cell of another origin is computed anew."""

    model: str
    """What identifies its weights and how it scores."""
    data: str
    """What identifies rules, queries, gallery, and its image files by path, size and time of the last change."""
    composir: str
    """The version."""

    @classmethod
    def of(cls, weights_hash: str, splits: Sequence[Split]) -> Origin:
        """Return the origin of what a model makes of splits now."""
        return cls(weights_hash, _hash_data(splits), own_version())

    def changes(self, before: Origin) -> str:
        """Return in words what is no longer as it was, such as ``model and data``; empty where all is."""
        return " and ".join(name for name, value in asdict(self).items() if value != getattr(before, name))


@dataclass(frozen=True, slots=True)
class Cost:
    """What computing a cell took."""

    seconds: float
    """To embed and rank, by the clock; image tokens and vectors that were kept already were not computed again."""
    processor_seconds: float
    """What the process had of all cores meanwhile, which others on the machine change less."""
    peak_memory_bytes: int
    """The largest resident size until then of the process that measured this model alone, the interpreter included."""
    peak_gpu_memory_bytes: int | None
    """None without CUDA."""
    machine: dict[str, Any]
    """What ``describe_machine`` says."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a model on one data set."""

    model: str
    dataset: str
    run: int
    """Its place among the model's runs, from 0."""

    def folder(self, out: Path) -> Path:
        """Return where the cell is, or is to be."""
        return out / "cells" / self.dataset / self.model / str(self.run)

    def write(self, out: Path, result: Result, origin: Origin, cost: Cost) -> None:
        """Write the cell, all of it or nothing."""
        with replacing_folder(self.folder(out)) as folder:
            save_rankings(result, folder / RANKINGS)
            document = {"origin": asdict(origin), "cost": asdict(cost)}
            write_text(folder / CELL, json.dumps(document, indent=1, ensure_ascii=False) + "\n")

    def read(self, out: Path, address: str) -> tuple[Saved, Cost]:
        """Return the rankings, with the seed of the checkpoint folder ``address`` if it says one, and their cost."""
        _, cost = self._read_document(out)
        saved = load_rankings(self.folder(out) / RANKINGS)
        return replace(saved, seed=seed_of(Path(address))), cost

    def reason_to_compute(self, out: Path, origin: Origin) -> str:
        """Return in a word or two why the cell must be computed; empty where it is there, whole, and of ``origin``."""
        if not self.folder(out).exists():
            return "new"
        try:
            before, _ = self._read_document(out)
            load_rankings(self.folder(out) / RANKINGS)
        except ComposirError:
            return "what is there is damaged"
        changes = origin.changes(before)
        return f"{changes} changed" if changes else ""

    def _read_document(self, out: Path) -> tuple[Origin, Cost]:
        file = self.folder(out) / CELL
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            return Origin(**document["origin"]), Cost(**document["cost"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ComposirError(f"is damaged ({error})", file=file, fix="call the bench again") from None


def _hash_data(splits: Sequence[Split]) -> str:
    digest = hashlib.sha256()
    for split in splits:
        rules = (
            split.dataset,
            split.name,
            split.category,
            split.gallery_rule,
            split.exclude_reference,
            split.text_rule,
        )
        parts = [rules, [asdict(query) for query in split.queries], split.gallery]
        digest.update(json.dumps(parts).encode())
        for source in split.images.values():
            status = file_of(source).stat()
            digest.update(f"{source} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
