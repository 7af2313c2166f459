"""A folder of pictures into an index: only what is new is embedded, and a run can be killed at any moment."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from composir.data.images.files import picture_bounds
from composir.data.images.folder import Pictures, find_pictures
from composir.errors import ComposirError, nearest
from composir.files import telling_full_disk
from composir.machine import usable_device
from composir.models.photos.embedder import PHOTOS
from composir.paths import MANIFEST, holds_no_picture, require_pictures
from composir.progress import Progress
from composir.search.embedding import Embedded, Noted, Outcome, PictureEmbedder, PictureFile, Skipped, Unseen
from composir.search.encoder import Encoder, HeadEncoder, open_encoder
from composir.search.index import Index
from composir.search.manifest import (
    EXACT,
    INDEXES,
    Manifest,
    Place,
    check_backend,
    read_manifest,
    rebuild_command,
)
from composir.search.mapped import clear_mapped
from composir.search.ray import Work, embed_by_ray
from composir.search.table import DATABASE, WRITER_LOCK, FileRecord, Table, writing
from composir.search.thumbnails import THUMBNAILS, Thumbnails
from composir.token_cache import NUM_WORKERS
from composir.version import pip_install

NUM_REASONS_SHOWN = 8
IMAGES_A_COMMIT = 256
"""New images after which a kill cannot take them back."""
LOCAL, RAY = "local", "ray"
ENGINES = (LOCAL, RAY)
"""Who embeds: this process, or the workers of a Ray cluster."""

Engine = Callable[[Sequence[PictureFile]], Iterator[list[Outcome]]]


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a run of ``index_folder`` did."""

    num_images: int
    """In the index now; files of equal content are one image."""
    num_files: int
    num_added: int
    num_removed: int
    num_kept: int
    """Files in the index that could not be looked at, and stay in it; ``skipped`` says why."""
    skipped: tuple[Skipped, ...]
    noted: tuple[Noted, ...]
    """Files read by this run that are in the index, though something is odd about them."""
    excluded: tuple[str, ...]
    """Folders that were left out by a pattern."""
    model: str
    """Its name, and what it was trained for, in a line."""


def index_folder(
    root: Path,
    out: Path,
    *,
    model: Path | None = None,
    backend: str | None = None,
    options: Mapping[str, Any] | None = None,
    vectors_per_image: int | None = None,
    exclude: Sequence[str] | None = None,
    rebuild: bool = False,
    device: str | None = None,
    engine: str = LOCAL,
    address: str | None = None,
    num_workers: int = NUM_WORKERS,
    progress: Progress | None = None,
) -> IndexReport:
    """Return what was done to make ``out`` the index of all pictures under ``root``.

    What is already there and has not changed is left as it is; files that are gone are dropped; an image is known by
    its content, so that a file that was renamed, or a root that was moved, is not embedded again. A file that cannot
    be read is reported and does not stop the run. What cannot be looked at, as a file or folder that gives an error
    and a folder that held pictures and is empty, keeps what the index has of it. A run that was killed is gone on with
    by the next.
    ``engine="ray"`` lets the workers of a Ray cluster at ``address`` (without one: of this machine) embed; the index is
    the same.

    ``model``, ``backend``, ``options`` (of the engine, as ``Manifest.options``), ``vectors_per_image`` and ``exclude``
    (patterns for the name, or the path from the root, of folders that are left out) are what an index that exists was
    made with, unless given; a new one then has the model ``photos``. Another backend is made from the vectors that are
    there, and takes over once it is complete; another model or number of vectors needs ``rebuild``, which keeps the
    engine. Raises ``ComposirError`` for those, for a root that is no folder or holds no picture that can be read, and
    for a full disk.
    """
    if engine not in ENGINES:
        raise ComposirError(f"engine {engine!r} is not known", fix=nearest(engine, ENGINES))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ComposirError(
            "composir index was started as several processes, and an index has one writer",
            fix="leave out accelerate launch; --engine ray uses all GPUs",
        )
    picture_bounds()
    old = _old_manifest(out, rebuild=rebuild)
    require_pictures(root, is_new=old is None or rebuild)
    encoder, manifest = _agree(
        out,
        root,
        old,
        model=model,
        backend=backend,
        options=options,
        vectors_per_image=vectors_per_image,
        exclude=exclude,
        rebuild=rebuild,
        device=device,
    )
    _require_index_or_empty(out)
    found = find_pictures(root, exclude=manifest.exclude)
    if not found.names and (old is None or rebuild):
        raise holds_no_picture(root, found)
    # Another engine is named once it has everything: till then, and where it fails, the old one answers.
    is_change = old is not None and not rebuild and (old.backend, old.options) != (manifest.backend, manifest.options)
    with _one_line_for_a_full_disk(out), writing(out):
        if rebuild:
            _clear(out)
        with closing(manifest.open_table(out)) as table:
            table.recover()
            if not is_change:
                manifest.write(out)
            with closing(manifest.open_index(table)) as index:
                work = Work(
                    model=manifest.model.find(out),
                    root=root.resolve(),
                    num_vectors=manifest.vectors_per_image,
                    batch_size=encoder.batch_size,
                    device=usable_device(device),
                    num_threads=num_workers,
                )
                embed = _engine(engine, encoder, table, work=work, address=address)
                run = _Run(index, embed, root.resolve(), model=manifest.model_line, progress=progress)
                report = run.bring_up_to_date(found)
            if is_change:
                manifest.write(out)
    if not report.num_images:
        raise _none_can_be_read(root, report.skipped)
    return report


@contextmanager
def _one_line_for_a_full_disk(out: Path) -> Iterator[None]:
    try:
        with telling_full_disk(out):
            yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ComposirError(
            f"cannot be written ({error.strerror})",
            file=out,
            fix="make room on its disk, then run the command again: it goes on",
        ) from error


def _none_can_be_read(root: Path, skipped: Sequence[Skipped]) -> ComposirError:
    """Return the error for a folder of which nothing came into the index."""
    reasons = Counter(one.reason for one in skipped).most_common(NUM_REASONS_SHOWN)
    needs_heic = any("pillow-heif" in reason for reason, _ in reasons)
    return ComposirError(
        f"holds no picture that can be read: {'; '.join(f'{count:,} x {reason}' for reason, count in reasons)}",
        file=root,
        fix=pip_install("heic") if needs_heic else "mend the files, or export them again",
    )


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
    for file in (DATABASE, f"{DATABASE}-journal", THUMBNAILS, f"{THUMBNAILS}-journal"):
        (out / file).unlink(missing_ok=True)
    for file in out.glob("vectors-*.f16"):
        file.unlink()
    clear_mapped(out)
    for index in INDEXES.values():
        index.clear(out)


def _agree(
    out: Path,
    root: Path,
    old: Manifest | None,
    *,
    model: Path | None,
    backend: str | None,
    options: Mapping[str, Any] | None,
    vectors_per_image: int | None,
    exclude: Sequence[str] | None,
    rebuild: bool,
    device: str | None,
) -> tuple[Encoder, Manifest]:
    """Return the model and the manifest of a run: what is asked for, where it fits what is there."""
    check_backend(backend or EXACT)
    folder = model or (old.model.find(out) if old else Path(PHOTOS))
    encoder = open_encoder(folder, usable_device(device))
    if isinstance(encoder, HeadEncoder):
        raise ComposirError(
            "is a head, which changes queries and no picture's vectors",
            file=folder,
            fix=f"index by the model below it ({encoder.base_name}), then search with --model {folder}",
        )
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
    backend = backend or (old.backend if old else EXACT)
    kept = old.options if old else {}
    kept_out = old.exclude if old else ()
    return encoder, Manifest(
        model=Place.of(folder, out),
        weights_hash=identity,
        about=encoder.about,
        backbone=encoder.backbone,
        tower=encoder.tower,
        root=Place.of(root, out),
        vectors_per_image=wanted,
        dim=encoder.dim,
        backend=backend,
        options=INDEXES[backend].defaults({**kept, **(options or {})}),
        exclude=tuple(pattern.removesuffix("/") for pattern in exclude if pattern) if exclude is not None else kept_out,
    )


def _engine(name: str, encoder: Encoder, table: Table, *, work: Work, address: str | None) -> Engine:
    """Return what embeds files: this process, or the workers of a Ray cluster."""
    if name == RAY:
        known = np.sort(table.snapshot().ids)
        return lambda files: embed_by_ray(work, files, known, address=address)
    embedder = PictureEmbedder(encoder, work.root, num_vectors=work.num_vectors, is_known=table.has)
    return lambda files: embedder.batches(files, num_workers=work.num_threads)


class _Run:
    """One pass over a root: look, embed what is new, drop what is gone, bring the engine up to it."""

    def __init__(self, index: Index, engine: Engine, root: Path, *, model: str, progress: Progress | None) -> None:
        self.root = root
        self.model = model
        self.index = index
        self.table: Table = index.table
        self.thumbnails = Thumbnails(index.table.folder)
        self.engine = engine
        self.progress = progress
        self.skipped: dict[str, str] = {}
        self.unseen: set[str] = set()
        self.noted: list[Noted] = []
        self.added: set[str] = set()
        self.num_uncommitted = 0

    def bring_up_to_date(self, found: Pictures) -> IndexReport:
        files = self._pictures(found)
        known = {record.path: record for record in self.table.files()}
        if known and not files:
            raise ComposirError(
                f"holds no picture, and the index {len(known):,}",
                file=self.root,
                expected="the folder that was indexed (is its drive there?)",
                fix=f"give the right folder, or delete {self.table.folder} if it is meant",
            )
        changed = [file for path, file in files.items() if not _is_unchanged(file, known.get(path))]
        try:
            self._read(changed)
        except KeyboardInterrupt:
            self.table.commit(complete=False)
            raise
        lost = [path for path in known if path not in files or path in self.skipped]
        kept = self._kept(lost, found.empty)
        self.table.drop_files([path for path in lost if path not in kept])
        removed = self.table.ids_without_files()
        self.index.remove(removed)
        self.thumbnails.drop(removed)
        self.index.save(self.progress)
        return IndexReport(
            num_images=len(self.index),
            num_files=sum(1 for _ in self.table.files()),
            num_added=len(self.added),
            num_removed=len(removed),
            num_kept=len(kept),
            skipped=tuple(Skipped(path, reason) for path, reason in sorted(self.skipped.items())),
            noted=tuple(sorted(self.noted, key=lambda one: one.file)),
            excluded=found.excluded,
            model=self.model,
        )

    def _pictures(self, found: Pictures) -> dict[str, PictureFile]:
        """Return every picture file by its path from the root, in order; note why others are not taken."""
        self.skipped.update(found.reasons)
        self.unseen.update(found.unseen)
        files = {}
        for path in found.names:
            try:
                status = (self.root / path).stat()
            except FileNotFoundError:  # a link to nothing, or gone since it was listed
                self.skipped[path] = "no such file"
                continue
            except OSError as error:
                self._skip(Unseen(path, f"cannot be looked at ({error.strerror or type(error).__name__})"))
                continue
            if stat.S_ISREG(status.st_mode):
                files[path] = PictureFile(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            else:
                self.skipped[path] = "not a regular file"
        return files

    def _skip(self, one: Skipped | Unseen) -> None:
        self.skipped[one.file] = one.reason
        if isinstance(one, Unseen):
            self.unseen.add(one.file)

    def _kept(self, lost: Sequence[str], empty: Sequence[str]) -> set[str]:
        """Return those of the files in the index that may still be there, and say so where the reason is told."""
        num_kept: Counter[str] = Counter()
        kept = set()
        for path in lost:
            folders = [str(folder) for folder in PurePosixPath(path).parents]
            place = next((one for one in (path, *folders) if one in self.unseen or one in empty), None)
            if place is not None:
                kept.add(path)
                num_kept[place] += 1
        for place, count in num_kept.items():
            stay = "stays" if count == 1 else "stay"
            what = "what the index has of it" if count == 1 and place in kept else f"{count:,} in the index"
            if place in self.unseen:
                self.skipped[place] += f"; {what} {stay}"
            else:
                self.skipped[place] = (
                    f"is empty, as the place of a missing drive is; {what} {stay} (delete the folder if they are gone)"
                )
        return kept

    def _read(self, files: Sequence[PictureFile]) -> None:
        """Read files that are new or changed, in order, and embed what they hold."""
        done = 0
        for batch in self.engine(files):
            self._take(batch)
            done += len(batch)
            if self.progress is not None:
                self.progress("pictures", done, len(files))
        self.table.commit(complete=False)

    def _take(self, batch: Sequence[Outcome]) -> None:
        """Put a batch into the table; a content that came in by an earlier one is not put in again."""
        read = [one for one in batch if isinstance(one, Embedded)]
        new = {one.record.id: one.vectors for one in read if one.vectors is not None}
        new = {image_id: vectors for image_id, vectors in new.items() if not self.table.has(image_id)}
        if new:
            self.index.add(list(new), np.stack(list(new.values())))
            made = {one.record.id: one.thumbnail for one in read if one.record.id in new and one.thumbnail is not None}
            self.thumbnails.put(made)
        self.table.put_files([one.record for one in read])
        for one in batch:
            if not isinstance(one, Embedded):
                self._skip(one)
            elif one.note:
                self.noted.append(Noted(one.record.path, one.note))
        self.added |= set(new)
        self.num_uncommitted += len(new)
        if self.num_uncommitted >= IMAGES_A_COMMIT:
            self.table.commit(complete=False)
            self.num_uncommitted = 0


def _is_unchanged(file: PictureFile, known: FileRecord | None) -> bool:
    return known is not None and (file.size, file.mtime_ns, file.ctime_ns) == (
        known.size,
        known.mtime_ns,
        known.ctime_ns,
    )
