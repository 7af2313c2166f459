"""A folder of pictures into an index: only what is new is embedded, and a run can be killed at any moment."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from composir.data.images import find_pictures, read_image
from composir.errors import ComposirError
from composir.features import NUM_WORKERS, read_ahead
from composir.search.encoder import Encoder, open_encoder
from composir.search.index import Index, Progress
from composir.search.manifest import MANIFEST, Manifest, Place, check_backend, read_manifest, rebuild_command
from composir.search.merging import merge_vectors
from composir.search.table import DATABASE, ID_LENGTH, WRITER_LOCK, FileRecord, Table, writing

IMAGES_A_COMMIT = 256
"""New images after which a kill cannot take them back."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that looks like a picture and is not in the index."""

    file: str
    """Relative to the root, with forward slashes."""
    reason: str


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a run of ``index_folder`` did."""

    num_images: int
    """In the index now; files of equal content are one image."""
    num_files: int
    num_added: int
    num_removed: int
    skipped: tuple[Skipped, ...]


def content_id(content: bytes) -> str:
    """Return the id of the image that a file with this content holds: 32 hex digits of its SHA-256."""
    return hashlib.sha256(content).hexdigest()[:ID_LENGTH]


def default_device() -> str:
    """Return ``cuda`` where there is one, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def index_folder(
    root: Path,
    out: Path,
    *,
    model: Path | None = None,
    backend: str | None = None,
    options: Mapping[str, Any] | None = None,
    vectors_per_image: int | None = None,
    rebuild: bool = False,
    device: str | None = None,
    num_workers: int = NUM_WORKERS,
    progress: Progress | None = None,
) -> IndexReport:
    """Return what was done to make ``out`` the index of all pictures under ``root``.

    What is already there and has not changed is left as it is; files that are gone are dropped; an image is known by
    its content, so that a file that was renamed, or a root that was moved, is not embedded again. A file that cannot
    be read is reported and does not stop the run. A run that was killed is gone on with by the next.

    ``model``, ``backend``, ``options`` (of the engine, as ``Manifest.options``) and ``vectors_per_image`` are what an
    index that exists was made with, unless given. Another backend is made from the vectors that are there; another
    model or number of vectors needs ``rebuild``, which keeps the engine. Raises ``ComposirError`` for those, and for a
    root that is no folder or holds no picture any more.
    """
    if not root.is_dir():
        raise ComposirError("is not a folder", file=root, expected="a folder with pictures")
    old = _old_manifest(out, rebuild=rebuild)
    encoder, manifest = _agree(
        out,
        root,
        old,
        model=model,
        backend=backend,
        options=options,
        vectors_per_image=vectors_per_image,
        rebuild=rebuild,
        device=device,
    )
    _require_index_or_empty(out)
    with writing(out):
        if rebuild:
            _clear(out)
        with closing(manifest.open_table(out)) as table:
            table.recover()
            manifest.write(out)
            with closing(manifest.open_index(table)) as index:
                return _Run(root, index, encoder, num_workers=num_workers, progress=progress).bring_up_to_date()


def _old_manifest(out: Path, *, rebuild: bool) -> Manifest | None:
    """Return what the index says of itself, if there is one; for ``rebuild`` also none where it cannot be read."""
    if not (out / MANIFEST).is_file():
        return None
    try:
        return read_manifest(out)
    except ComposirError:
        if rebuild:
            return None
        raise


def _require_index_or_empty(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ComposirError("is a file", file=out, expected="a folder for the index", fix="give another --out")
    names = {file.name for file in out.iterdir()} if out.exists() else set()
    if names and not names & {MANIFEST, DATABASE, WRITER_LOCK}:
        raise ComposirError(
            f"is not an index (it has no {MANIFEST}) and not empty", file=out, fix="give a new folder as --out"
        )


def _clear(out: Path) -> None:
    """Remove what an index holds; its manifest stays till the new one is written, so that a kill leaves an index."""
    for file in (DATABASE, f"{DATABASE}-journal"):
        (out / file).unlink(missing_ok=True)
    for file in (*out.glob("vectors-*.f16"), *out.glob("faiss-*.index")):
        file.unlink()
    shutil.rmtree(out / "qdrant", ignore_errors=True)


def _agree(
    out: Path,
    root: Path,
    old: Manifest | None,
    *,
    model: Path | None,
    backend: str | None,
    options: Mapping[str, Any] | None,
    vectors_per_image: int | None,
    rebuild: bool,
    device: str | None,
) -> tuple[Encoder, Manifest]:
    """Return the model and the manifest of a run: what is asked for, where it fits what is there."""
    check_backend(backend or "exact")
    folder = model or (old.model.find(out) if old else None)
    if folder is None:
        raise ComposirError("a new index needs a model", file=out, fix="--model models/RUN/best")
    encoder = open_encoder(folder, device or default_device())
    identity, most = encoder.identity, encoder.num_vectors
    wanted = vectors_per_image or (old.vectors_per_image if old and not rebuild else most)
    command = rebuild_command(out, root=root, model=folder, vectors_per_image=min(wanted, most))
    if old and not rebuild and old.weights_hash != identity:
        raise ComposirError(
            f"is the index of another model (weights {old.weights_hash}, {folder} has {identity})",
            file=out,
            fix=command,
        )
    if wanted > most:
        raise ComposirError(
            f"--vectors-per-image {wanted} is more than the model makes",
            file=folder,
            expected=f"at most {most}",
        )
    if old and not rebuild and old.vectors_per_image != wanted:
        raise ComposirError(f"holds {old.vectors_per_image} vectors an image, not {wanted}", file=out, fix=command)
    backend = backend or (old.backend if old else "exact")
    kept = old.options if old else {}
    if backend == "qdrant" and "collection" not in kept:
        kept = {**kept, "collection": f"composir-{uuid.uuid4().hex[:12]}"}
    return encoder, Manifest(
        model=Place.of(folder, out),
        weights_hash=identity,
        backbone=encoder.backbone,
        tower=encoder.tower,
        root=Place.of(root, out),
        vectors_per_image=wanted,
        dim=encoder.dim,
        backend=backend,
        options={**kept, **(options or {})},
    )


@dataclass(frozen=True, slots=True)
class _New:
    """A picture that has to be embedded, as the model takes it in."""

    record: FileRecord
    prepared: Any


class _Run:
    """One pass over a root: look, embed what is new, drop what is gone, bring the engine up to it."""

    def __init__(
        self, root: Path, index: Index, encoder: Encoder, *, num_workers: int, progress: Progress | None
    ) -> None:
        self.root = root.resolve()
        self.index = index
        self.table: Table = index.table
        self.encoder = encoder
        self.num_workers = num_workers
        self.progress = progress
        self.skipped: list[Skipped] = []
        self.added: set[str] = set()
        self.pending: dict[str, _New] = {}
        self.num_uncommitted = 0

    def bring_up_to_date(self) -> IndexReport:
        paths = self._pictures()
        known = {record.path: record for record in self.table.files()}
        if known and not paths:
            raise ComposirError(
                f"holds no picture, and the index {len(known):,}",
                file=self.root,
                expected="the folder that was indexed (is its drive there?)",
                fix=f"give the right folder, or delete {self.table.folder} if it is meant",
            )
        changed = [path for path, file in paths.items() if not _is_unchanged(file, known.get(path))]
        try:
            self._read(changed, paths)
        except KeyboardInterrupt:
            self.table.commit(complete=False)
            raise
        unreadable = {one.file for one in self.skipped}
        self.table.drop_files([path for path in known if path not in paths or path in unreadable])
        removed = self.table.ids_without_files()
        self.index.remove(removed)
        self.index.save(self.progress)
        return IndexReport(
            num_images=len(self.index),
            num_files=sum(1 for _ in self.table.files()),
            num_added=len(self.added),
            num_removed=len(removed),
            skipped=tuple(sorted(self.skipped, key=lambda one: one.file)),
        )

    def _pictures(self) -> dict[str, os.stat_result]:
        """Return every picture file by its path from the root, in order; note why others are not taken."""
        paths, reasons = find_pictures(self.root)
        self.skipped += [Skipped(path, reason) for path, reason in reasons.items()]
        stats = {}
        for path in paths:
            try:
                status = (self.root / path).stat()
            except OSError as error:
                self.skipped.append(Skipped(path, error.strerror or type(error).__name__))
                continue
            if stat.S_ISREG(status.st_mode):
                stats[path] = status
            else:
                self.skipped.append(Skipped(path, "not a regular file"))
        return stats

    def _read(self, paths: Sequence[str], stats: Mapping[str, os.stat_result]) -> None:
        """Read files that are new or changed, in order, and embed what they hold."""
        done = 0
        for batch in read_ahead(
            lambda path: self._open(path, stats[path]),
            paths,
            size=self.encoder.batch_size,
            num_workers=self.num_workers,
        ):
            for one in batch:
                self._take(one)
            done += len(batch)
            if self.progress is not None:
                self.progress("pictures", done, len(paths))
        self._embed(list(self.pending.values()))
        self.table.commit(complete=False)

    def _open(self, path: str, status: os.stat_result) -> FileRecord | _New | Skipped:
        """Return the record of a file whose image is known, else its picture for the tower; called by threads."""
        try:
            content = (self.root / path).read_bytes()
        except OSError as error:
            return Skipped(path, error.strerror or type(error).__name__)
        record = FileRecord(path, content_id(content), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if self.table.has(record.id):
            return record
        try:
            return _New(record, self.encoder.prepare(read_image(io.BytesIO(content))))
        except ComposirError as error:
            return Skipped(path, error.message)

    def _take(self, one: FileRecord | _New | Skipped) -> None:
        if isinstance(one, Skipped):
            self.skipped.append(one)
        elif isinstance(one, FileRecord):
            self.table.put_files([one])
        elif one.record.id in self.pending or self.table.has(one.record.id):
            self.table.put_files([one.record])
        else:
            self.pending[one.record.id] = one
            if len(self.pending) == self.encoder.batch_size:
                self._embed(list(self.pending.values()))

    @torch.inference_mode()
    def _embed(self, new: Sequence[_New]) -> None:
        """Embed up to a batch of pictures."""
        self.pending = {}
        if not new:
            return
        targets = self.encoder.embed_pictures([one.prepared for one in new])
        vectors = merge_vectors(targets, self.table.shape[0]).half().cpu().numpy()
        if not np.isfinite(vectors).all():
            raise ComposirError("embeds pictures into numbers that are not finite", fix="give another --model")
        self.index.add([one.record.id for one in new], vectors)
        self.table.put_files([one.record for one in new])
        self.added |= {one.record.id for one in new}
        self.num_uncommitted += len(new)
        if self.num_uncommitted >= IMAGES_A_COMMIT:
            self.table.commit(complete=False)
            self.num_uncommitted = 0


def _is_unchanged(file: os.stat_result, known: FileRecord | None) -> bool:
    return known is not None and (file.st_size, file.st_mtime_ns, file.st_ctime_ns) == (
        known.size,
        known.mtime_ns,
        known.ctime_ns,
    )
