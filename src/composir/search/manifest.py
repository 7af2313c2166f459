"""What an index folder says of itself: which model, which pictures, which engine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from composir.errors import ComposirError, command, nearest, wrong_fields
from composir.files import write_text
from composir.models.named import find_address
from composir.paths import MANIFEST, require_index
from composir.search.exact import ExactIndex
from composir.search.faiss import FaissIndex
from composir.search.index import Index
from composir.search.qdrant import QdrantIndex
from composir.search.table import Table
from composir.tables import Table as NamedTable
from composir.version import own_version

FORMAT = 1
"""Version of the folder's layout and of what the vectors mean; a reader refuses any other."""

EXACT = "exact"
"""The engine of an index that was not given another."""
INDEXES: NamedTable[type[Index]] = NamedTable(
    "indexes", {EXACT: ExactIndex, "faiss": FaissIndex, "qdrant": QdrantIndex}
)


class Place(BaseModel):
    """A folder, found again when it moved together with the index, and when only the index moved."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    """Absolute, or the name of a model that is no folder here."""
    from_index: str
    """Relative to the index folder; "" where there is no such path (another drive)."""

    @classmethod
    def of(cls, path: Path, index: Path) -> Place:
        """Return the place of ``path``; of what is no folder here, a hub id or an ``Address``, the name itself."""
        name = str(path)
        if address := find_address(name):
            return cls(path=str(address.resolved()), from_index="")
        if not path.exists():
            return cls(path=name, from_index="")
        try:
            relative = os.path.relpath(path.resolve(), index.resolve())
        except ValueError:
            relative = ""
        return cls(path=str(path.resolve()), from_index=Path(relative).as_posix())

    def find(self, index: Path) -> Path:
        """Return where the folder is now; where it is at neither place, the absolute one."""
        relative = (index / self.from_index).resolve()
        return relative if self.from_index and relative.is_dir() else Path(self.path)


class Manifest(BaseModel):
    """The contents of ``index.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = FORMAT
    composir_version: str = Field(default_factory=own_version)
    model: Place
    weights_hash: str
    """Of the whole model, its tower included."""
    about: str = ""
    """What the model was trained for, in a line; "" in an index of before this was kept."""
    backbone: str
    tower: str
    root: Place
    """Of the pictures; paths are relative to it."""
    vectors_per_image: int = Field(gt=0)
    dim: int = Field(gt=0)
    backend: str
    options: dict[str, Any] = {}
    """Of the engine."""
    exclude: tuple[str, ...] = ()
    """Patterns of folders that are left out."""

    @property
    def model_line(self) -> str:
        """The model's name, of a folder its last two parts, and what it was trained for."""
        path = Path(self.model.path)
        name = "/".join(path.parts[-2:]) if path.is_absolute() else str(path)
        return f"{name} ({self.about})" if self.about else name

    def write(self, folder: Path) -> None:
        """Write it into an index folder, whole or not at all."""
        write_text(folder / MANIFEST, self.model_dump_json(indent=2) + "\n")

    def open_table(self, folder: Path) -> Table:
        """Return the images of the index folder."""
        return Table(folder, num_vectors=self.vectors_per_image, dim=self.dim)

    def open_index(self, table: Table) -> Index:
        """Return the engine over the images."""
        return INDEXES[self.backend](table, self.options)


def read_manifest(folder: Path) -> Manifest:
    """Return what an index folder says of itself.

    Raises ``ComposirError`` where it is no index, damaged, or of another format; then with the command that rebuilds
    it.
    """
    file = folder / MANIFEST
    require_index(folder)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"a {type(fields).__name__}, not an object")
    except ValueError as error:
        raise ComposirError(f"is not JSON ({error})", file=file, fix=rebuild_command(folder)) from None
    rebuild = rebuild_command(folder, root=_path_of(fields, "root"), model=_path_of(fields, "model"))
    if fields.get("format") != FORMAT:
        raise ComposirError(
            f"was written by composir {fields.get('composir_version')} in format {fields.get('format')}",
            file=file,
            expected=f"format {FORMAT}",
            fix=rebuild,
        )
    try:
        manifest = Manifest(**fields)
    except ValidationError as error:
        raise ComposirError("; ".join(wrong_fields(error, Manifest)), file=file, fix=rebuild) from None
    check_backend(manifest.backend)
    return manifest


def check_backend(name: str) -> None:
    """Raise ``ComposirError`` for a name that is not in ``INDEXES``."""
    if name not in INDEXES:
        raise ComposirError(f"backend {name!r} is not known", fix=nearest(name, INDEXES))


def rebuild_command(
    folder: Path, *, root: Path | None = None, model: Path | None = None, vectors_per_image: int | None = None
) -> str:
    """Return the command that makes an index anew, ready for a shell."""
    merged = () if vectors_per_image is None else ("--vectors-per-image", vectors_per_image)
    words = (root or "IMAGES_DIR", "--model", model or "MODEL_DIR", "--out", folder, *merged)
    return command("index", *words, "--rebuild")


def _path_of(fields: dict[str, Any], name: str) -> Path | None:
    """Return a folder that a manifest names, as far as one of another format can be read."""
    place = fields.get(name)
    path = place.get("path") if isinstance(place, dict) else None
    return Path(path) if isinstance(path, str) else None
