"""Search by pictures and sentences in an index folder."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock
from typing import TypeAlias

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from composir.data.images import read_bytes, read_image
from composir.errors import ComposirError
from composir.features import require_matching_head
from composir.models.composer import Composer
from composir.models.photos import PHOTOS
from composir.models.photos.sentences import NOTHING
from composir.models.vision import TOWER_BATCH
from composir.models.watch import NUM_READINGS, Reading, watch
from composir.search.embedding import content_id
from composir.search.encoder import NO_PICTURE, ComposerEncoder, Encoder, HeadEncoder, open_encoder
from composir.search.folder import usable_device
from composir.search.index import Index
from composir.search.manifest import MANIFEST, Manifest, read_manifest, rebuild_command
from composir.search.table import Table

logger = logging.getLogger(__name__)

Picture: TypeAlias = Image.Image | Path | str | bytes
"""A decoded picture, a file, or a file's content."""


@dataclass(frozen=True, slots=True)
class SearchQuery:
    """What is asked for; ``Retriever.search`` says what each part means."""

    images: tuple[Picture, ...] = ()
    text: str = ""
    negative_text: str = ""
    top_k: int = 10
    where: str | None = None
    exclude: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that was found."""

    rank: int
    """From 1."""
    id: str
    path: Path
    """Of the first of its files that is there, of those that fit ``where``."""
    score: float
    """Cosine of the query and the nearest of the image's vectors; the matching logit where it was re-ranked."""


class Images(Mapping[str, Path]):
    """Every image of an index by its id: its file, the first that is there where several hold it.

    Ids come in the order of the first paths.
    """

    def __init__(self, table: Table, root: Path) -> None:
        self.root = root
        self._table = table

    def __getitem__(self, image_id: str) -> Path:
        file = self.file(image_id)
        if file is None:
            raise KeyError(image_id)
        return file

    def __iter__(self) -> Iterator[str]:
        return (image_id for image_id, _ in self.page(0, len(self)))

    def __len__(self) -> int:
        return len(self._table)

    def files(self, image_id: str, where: str | None = None) -> list[Path]:
        """Return all files with the image's content, in the order of their paths, or those that fit a pattern."""
        return [self.root / path for path in self._table.paths_of(image_id, where)]

    def file(self, image_id: str, where: str | None = None) -> Path | None:
        """Return the first of ``files`` that is there; where none is, the first; None where the index has none."""
        files = self.files(image_id, where)
        return next((file for file in files if file.is_file()), files[0] if files else None)

    def page(self, start: int, count: int) -> list[tuple[str, Path]]:
        """Return ``count`` ids from place ``start``, with their files."""
        return [(image_id, self.root / path) for image_id, path in self._table.images_in_order(start, count)]


class Retriever:
    """A model and an index, opened once and asked often, also from several threads.

    ``index`` is the folder that ``composir index`` made; ``model`` is a head on the index's model, which changes its
    queries and needs no other vectors, or where that model has moved to. ``device`` is that of the model: a GPU where
    there is one, unless given. Raises ``ComposirError`` where the folder is no index, or was made by another model or
    format; then with the command that rebuilds it.
    """

    def __init__(self, index: Path | str, *, model: Path | str | None = None, device: str | None = None) -> None:
        self.folder = Path(index)
        self._model_folder = None if model is None else Path(model)
        self._device = usable_device(device)
        self._lock = RLock()
        self._left: Table | None = None
        manifest = read_manifest(self.folder)
        self._open(manifest, _load_encoder(self.folder, manifest, self._model_folder, self._device))

    def _open(self, manifest: Manifest, encoder: Encoder) -> None:
        self.manifest, self.encoder = manifest, encoder
        self._table = self.manifest.open_table(self.folder)
        self._identity = self._read_state()[0]
        self.index: Index = self.manifest.open_index(self._table)
        self.images = Images(self._table, self.manifest.root.find(self.folder))

    def __len__(self) -> int:
        """Return how many images can be found."""
        return len(self.index)

    @property
    def complete(self) -> bool:
        """Whether the last run of ``composir index`` came to its end."""
        return self._table.complete

    def __enter__(self) -> Retriever:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the index's files."""
        self.index.close()
        self._table.close()
        if self._left is not None:
            self._left.close()

    def reload_if_changed(self) -> bool:
        """Return whether the index had changed on disk; it is then read again, with another model if it has one.

        A run of ``composir index`` that has not come to its end is not looked at: till then the old state answers, as
        it does where this raises ``ComposirError`` (the new model cannot be loaded).
        """
        with self._lock:
            if not (self.folder / MANIFEST).is_file():
                return False  # moved away, or being made anew
            identity, complete = self._read_state()
            if identity == self._identity or not complete:
                return False
            manifest = read_manifest(self.folder)
            same_model = manifest.weights_hash == self.manifest.weights_hash
            encoder = self.encoder
            if not same_model:
                encoder = _load_encoder(self.folder, manifest, self._model_folder, self._device)
            self.index.close()
            # Another thread may be looking a file up in ``images`` now: that table is closed at the next change.
            if self._left is not None:
                self._left.close()
            self._left = self._table
            self._open(manifest, encoder)
            return True

    def search(
        self,
        images: Picture | Sequence[Picture] | None = None,
        text: str | None = None,
        *,
        negative_text: str | None = None,
        top_k: int = 10,
        where: str | None = None,
        exclude: Sequence[str] | None = None,
        rerank: int = 0,
    ) -> list[Hit]:
        """Return the ``top_k`` images nearest to what is asked for, best first.

        ``images`` is the reference, or several: the query is then the mean of the queries that each gives with the
        sentence. A picture alone asks for what is like it, a sentence alone for what it describes.
        ``negative_text`` names what there should be less of: the difference that it would make as a sentence is taken
        off the query. ``where`` is a pattern for the path from the root (``holidays/*``; ``*`` crosses folders).
        ``exclude`` are ids to leave out: unless given, those of the references that are in the index (known by
        content, so not those given as decoded pictures); ``()`` leaves out none. ``rerank`` scores so many of the best
        again, pair by pair, with the model's matching head; their scores are then its logits.

        Raises ``ComposirError`` where there is neither picture nor sentence, for a picture that cannot be read, and
        for ``rerank`` where the model has no trained matching head or there is no picture to match.
        """
        if rerank:
            require_matching_head(self.model)
        if images is None:
            images = ()
        elif isinstance(images, (Image.Image, Path, str, bytes)):
            images = (images,)
        query = SearchQuery(
            images=tuple(images),
            text=text or "",
            negative_text=negative_text or "",
            top_k=max(top_k, rerank),
            where=where,
            exclude=None if exclude is None else tuple(exclude),
        )
        hits = self.search_many([query])[0]
        return self._rerank(query, hits, rerank)[:top_k] if rerank else hits

    @torch.inference_mode()
    def _rerank(self, query: SearchQuery, hits: Sequence[Hit], count: int) -> list[Hit]:
        """Return the hits with the first ``count`` in the order of their matching logits, the mean over references."""
        if not query.images or query.negative_text:
            raise ComposirError(
                "re-ranking matches a picture and a sentence with each candidate",
                expected="a picture, and no negative text",
                fix="leave out --rerank, or the negative text",
            )
        ((pictures,), _) = _read_pictures([query], self.encoder.side)
        scores: list[float] = []
        with self._lock:
            references = self.model.tokens(pictures)  # (references, tokens, width)
            for start in range(0, len(hits[:count]), TOWER_BATCH):
                batch = hits[:count][start : start + TOWER_BATCH]
                candidates = self.model.tokens([_read(hit.path, self.encoder.side) for hit in batch])
                words = self.model.tokenize([query.text] * len(batch))
                logits = [self.model.match((one.expand(len(batch), -1, -1), candidates), *words) for one in references]
                scores += torch.stack(logits).mean(dim=0).tolist()
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        best = [replace(hits[place], rank=rank, score=scores[place]) for rank, place in enumerate(order, start=1)]
        return [*best, *hits[count:]]

    def search_many(self, queries: Sequence[SearchQuery]) -> list[list[Hit]]:
        """Return the answers to many queries, embedded and searched together; each as ``search`` would give it."""
        if not queries:
            return []
        for query in queries:
            _check(query, self.encoder)
        pictures, references = _read_pictures(queries, self.encoder.side)
        with self._lock, torch.inference_mode():
            embeddings = _embed(self.encoder, queries, pictures)
            answers: list[list[Hit]] = [[] for _ in queries]
            # All queries with one filter are one search; what is left out is asked for as well, then left out.
            for where in dict.fromkeys(query.where for query in queries):
                places = [place for place, query in enumerate(queries) if query.where == where]
                left_out = {place: set(_excluded(queries[place], references[place])) for place in places}
                top_k = max(queries[place].top_k + len(left_out[place]) for place in places)
                found = self.index.search(embeddings[places], top_k, where=where)
                for place, candidates in zip(places, found, strict=True):
                    wanted = [one for one in candidates if one[0] not in left_out[place]]
                    answers[place] = self._hits(wanted, queries[place].top_k, where)
            return answers

    def prepare(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the model sees it, a small square: a search by it is a search by the picture."""
        return self.encoder.square(picture)

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of that square, in pixels of a picture of this width and height."""
        return self.encoder.box(size)

    def read(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Reading:
        """Return what the model's query tokens read of each picture with its sentence."""
        with self._lock, watch(self.model, keep=2 * NUM_READINGS) as seen:
            self.model.embed_query(pictures, texts)
        return next(one for one in seen if one.with_text)

    def explain(self, hits: Sequence[Hit]) -> list[str | None]:
        """Return in words what the model sees in each image that was found; None where it has no words for it."""
        snapshot = self.index.snapshot
        rows = [snapshot.rows_of([hit.id]) for hit in hits]
        return [self.encoder.seen(snapshot.vectors[found[0]]) if len(found) else None for found in rows]

    @property
    def model_line(self) -> str:
        """Which model answers, and what it was trained for; with a head, that it asks."""
        if isinstance(self.encoder, HeadEncoder):
            return f"a head ({self.encoder.name}) on {self.manifest.model_line}"
        return self.manifest.model_line

    @property
    def shows_where_it_looks(self) -> bool:
        """Whether the index has a ``model`` that ``read`` can watch."""
        return isinstance(self.encoder, ComposerEncoder)

    @property
    def model(self) -> Composer:
        """The model of the index; ``ComposirError`` where it is none of composir's checkpoints."""
        if not isinstance(self.encoder, ComposerEncoder):
            kind = "photos" if self.encoder.backbone == PHOTOS else "a sentence-transformers model"
            if isinstance(self.encoder, HeadEncoder):
                raise ComposirError(
                    "is asked by a head, which neither matches pairs nor shows where it looks",
                    file=self.folder,
                    fix="leave that out, or ask without --model",
                )
            raise ComposirError(
                f"is the index of {kind}, which neither matches pairs nor shows where it looks",
                file=self.folder,
                fix="leave that out, or index the pictures with a checkpoint of composir",
            )
        return self.encoder.model

    def _hits(self, found: Sequence[tuple[str, float]], top_k: int, where: str | None) -> list[Hit]:
        hits: list[Hit] = []
        for image_id, score in found:
            if len(hits) == top_k:
                break
            path = self.images.file(image_id, where)
            if path is not None:  # none: removed since the index was read
                hits.append(Hit(len(hits) + 1, image_id, path, score))
        return hits

    def _read_state(self) -> tuple[tuple[bytes, int], bool]:
        with closing(self.manifest.open_table(self.folder)) as table:
            return ((self.folder / MANIFEST).read_bytes(), table.version), table.complete


def _load_encoder(folder: Path, manifest: Manifest, given: Path | None, device: str) -> Encoder:
    """Return the model that the index was made by."""
    place = given or manifest.model.find(folder)
    if given is None and place.is_absolute() and not place.is_dir():
        raise ComposirError(
            f"its model is no longer at {place}", file=folder, fix="give --model, the folder it has moved to"
        )
    encoder = open_encoder(place, device)
    if isinstance(encoder, HeadEncoder):
        if encoder.base.identity == manifest.weights_hash:
            return encoder
        raise ComposirError(
            f"is the index of another model (weights {manifest.weights_hash}) than the one below the head {place} "
            f"({encoder.base.identity})",
            file=folder,
            fix="give a head that was trained on the index's model, or leave out --model",
        )
    if encoder.identity != manifest.weights_hash:
        raise ComposirError(
            f"is the index of another model (weights {manifest.weights_hash}, {place} has {encoder.identity})",
            file=folder,
            fix=rebuild_command(folder, root=manifest.root.find(folder), model=place),
        )
    return encoder


def _check(query: SearchQuery, encoder: Encoder) -> None:
    if not query.images and not query.text.strip():
        raise ComposirError("there is nothing to search for", expected="a picture, a sentence, or both")
    alone = encoder.base if isinstance(encoder, HeadEncoder) else encoder  # a head changes no sentence alone
    if not query.images and (reading := alone.read(query.text)) and not reading.is_usable:
        raise ComposirError(
            f"there is nothing to search for in {query.text!r}: {NOTHING}", fix='name a thing, as in "a dog"'
        )
    if query.top_k < 1:
        raise ComposirError(f"top_k is {query.top_k}", expected="1 or more")


def _excluded(query: SearchQuery, references: Sequence[str]) -> Sequence[str]:
    return references if query.exclude is None else query.exclude


def _read_pictures(queries: Sequence[SearchQuery], side: int) -> tuple[list[list[Image.Image]], list[list[str]]]:
    """Return the pictures of every query, and the ids of those whose content is known."""
    pictures: list[list[Image.Image]] = []
    ids: list[list[str]] = []
    for query in queries:
        pictures.append([])
        ids.append([])
        for picture in query.images:
            if isinstance(picture, Image.Image):
                pictures[-1].append(picture)
            else:
                content = picture if isinstance(picture, bytes) else read_bytes(Path(picture))
                pictures[-1].append(_read(content if isinstance(picture, bytes) else Path(picture), side))
                ids[-1].append(content_id(content))
    return pictures, ids


def _read(source: Path | bytes, side: int) -> Image.Image:
    """Return a picture as ``composir index`` reads it; what is odd about it is logged."""
    notes: list[str] = []
    picture = read_image(io.BytesIO(source) if isinstance(source, bytes) else source, side=side, notes=notes)
    for note in notes:
        logger.warning("%s: %s", "picture" if isinstance(source, bytes) else source, note)
    return picture


def _embed(
    encoder: Encoder, queries: Sequence[SearchQuery], pictures: Sequence[Sequence[Image.Image]]
) -> Float[Tensor, "num_queries dim"]:
    """Return the L2-normalised vector of every query, on the CPU, all through one pass of the tower."""
    asked: list[tuple[int, str]] = []  # (place in images or NO_PICTURE, sentence)
    images: list[Image.Image] = []

    def ask(place: int, text: str) -> int:
        asked.append((place, text))
        return len(asked) - 1

    plans: list[list[tuple[int, float]]] = []  # for every query, rows of ``asked`` and their weights
    for query, own in zip(queries, pictures, strict=True):
        places = list(range(len(images), len(images) + len(own))) or [NO_PICTURE]
        images += own
        plan = []
        for place in places:
            plan.append((ask(place, query.text), 1.0))
            if query.negative_text.strip():
                plan += [(ask(place, query.negative_text), -1.0), (ask(place, ""), 1.0)]
        plans.append(plan)
    vectors = encoder.embed_asked(images, asked).cpu()
    sums = [sum(weight * vectors[row] for row, weight in plan) for plan in plans]
    return nn.functional.normalize(torch.stack([torch.as_tensor(one) for one in sums]), dim=-1)
