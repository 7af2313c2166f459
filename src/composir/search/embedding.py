"""Picture files into what an index keeps of them: the same code in this process and in each worker of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from composir.data.images import read_image
from composir.data.images.files import NO_MEMORY, Content, UnseenError, content_id, read_bytes
from composir.errors import ComposirError
from composir.search.encoder import Encoder
from composir.search.merging import merge_vectors
from composir.search.table import FileRecord
from composir.search.thumbnails import THUMBNAIL_SIDE, make_thumbnail
from composir.token_cache import read_ahead


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture file as it was found; ``path`` is relative to the root, with forward slashes."""

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that looks like a picture, or a folder, that was passed over."""

    file: str
    """Relative to the root, with forward slashes."""
    reason: str


@dataclass(frozen=True, slots=True)
class Unseen:
    """A file that could not be looked at; what the index has of it stays."""

    file: str
    """As of ``Skipped``."""
    reason: str


@dataclass(frozen=True, slots=True)
class Noted:
    """A file that was read, and what is odd about it."""

    file: str
    """As of ``Skipped``."""
    note: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """A file that was read."""

    record: FileRecord
    vectors: np.ndarray | None
    """fp16 (vectors, dim); None where its image was known already, or is that of an earlier file of the batch."""
    note: str = ""
    """What is odd about it."""
    thumbnail: bytes | None = None
    """A JPEG; None as of the vectors, and where too little of the picture was decoded to make one of it."""


@dataclass(frozen=True, slots=True)
class _New:
    """A picture that has to be embedded, as the model takes it in."""

    record: FileRecord
    prepared: Any
    note: str
    thumbnail: bytes | None


Read = FileRecord | _New | Skipped | Unseen
Outcome = Embedded | Skipped | Unseen


class PictureEmbedder:
    """A model over the files of a root; ``is_known`` says of an id whether its image need not be embedded again."""

    def __init__(self, encoder: Encoder, root: Path, *, num_vectors: int, is_known: Callable[[str], bool]) -> None:
        self.encoder = encoder
        self.root = root
        self.num_vectors = num_vectors
        self.is_known = is_known

    def batches(self, files: Sequence[PictureFile], *, num_workers: int) -> Iterator[list[Outcome]]:
        """Yield what became of the files, in order and in batches; threads read on meanwhile."""
        for batch in read_ahead(self._read, files, size=self.encoder.batch_size, num_workers=num_workers):
            yield self._embed(batch)

    def _read(self, file: PictureFile) -> Read:
        """Return the record of a file whose image is known, else its picture for the tower; called by threads."""
        try:
            content = read_bytes(self.root / file.path)
            record = FileRecord(file.path, content_id(content), file.size, file.mtime_ns, file.ctime_ns)
            if self.is_known(record.id):
                return record
            notes: list[str] = []
            picture = read_image(Content(content, self.root / file.path), side=self.encoder.side, notes=notes)
            is_enough = max(self.encoder.side, *picture.size) >= THUMBNAIL_SIDE
            thumbnail = make_thumbnail(picture) if is_enough else None
            return _New(record, self.encoder.prepare(picture), "; ".join(notes), thumbnail)
        except ComposirError as error:
            return (Unseen if isinstance(error, UnseenError) else Skipped)(file.path, error.message)
        except MemoryError:
            return Unseen(file.path, NO_MEMORY)
        except Exception as error:  # whatever a model's own processor trips over
            return Skipped(file.path, f"the model does not take it ({' '.join(str(error).split())})")

    @torch.inference_mode()
    def _embed(self, batch: Sequence[Read]) -> list[Outcome]:
        """Embed up to a batch of pictures."""
        new = {one.record.id: one for one in reversed(batch) if isinstance(one, _New)}  # the first of each content
        firsts = [one for one in batch if isinstance(one, _New) and new[one.record.id] is one]
        refused: dict[str, str] = {}
        vectors = self._vectors(firsts, refused) if firsts else {}
        results: list[Outcome] = []
        for one in batch:
            if isinstance(one, (Skipped, Unseen)):
                results.append(one)
                continue
            record = one.record if isinstance(one, _New) else one
            if record.id in refused:
                results.append(Skipped(record.path, refused[record.id]))
            elif isinstance(one, _New):
                made = vectors.pop(record.id, None)
                results.append(Embedded(record, made, one.note, None if made is None else one.thumbnail))
            else:
                results.append(Embedded(record, vectors.pop(record.id, None)))
        return results

    def _vectors(self, pictures: Sequence[_New], refused: dict[str, str]) -> dict[str, np.ndarray]:
        """Return the vectors of each picture by its id; those that the model refuses go to ``refused``, with why."""
        try:
            targets = self.encoder.embed_pictures([one.prepared for one in pictures])
        except ValueError as error:  # as a model's own processor says that it does not take a shape
            if len(pictures) > 1:
                return {i: rows for one in pictures for i, rows in self._vectors([one], refused).items()}
            refused[pictures[0].record.id] = f"the model does not take it ({' '.join(str(error).split())})"
            return {}
        merged = merge_vectors(targets, self.num_vectors).half().cpu().numpy()
        if not np.isfinite(merged).all():
            raise ComposirError("embeds pictures into numbers that are not finite", fix="give another --model")
        return {one.record.id: rows for one, rows in zip(pictures, merged, strict=True)}
