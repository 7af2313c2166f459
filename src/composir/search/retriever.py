"""Search by pictures and sentences in an index folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from threading import RLock

import numpy as np
import torch
from jaxtyping import Shaped
from PIL import Image

from composir.data.images.files import read_bytes
from composir.errors import ComposirError, command
from composir.features import require_matching_head
from composir.machine import usable_device
from composir.models.composer import Composer
from composir.models.config import CONFIG, WEIGHTS
from composir.models.heads.folder import read_head
from composir.models.vision import TOWER_BATCH
from composir.models.watch import NUM_READINGS, Reading, watch
from composir.paths import MANIFEST
from composir.search.encoder import ComposerEncoder, Encoder, HeadEncoder, VectorEncoder, open_encoder, with_head
from composir.search.index import Index, float32
from composir.search.manifest import EXACT, Manifest, read_manifest, rebuild_command
from composir.search.mapped import MappedIndex
from composir.search.query import (
    COMPOSED,
    Picture,
    SearchQuery,
    Sentence,
    check_query,
    embed_queries,
    move_by_marks,
    read_picture,
    read_pictures,
    warnings_of,
)
from composir.search.rerank import MatchingHead, Reranker
from composir.search.table import Table
from composir.search.thumbnails import Thumbnails

WARM_UP_SIDE, WARM_UP_TEXT = 64, "a red car"
"""Of a query that no answer is asked for."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that was found."""

    rank: int
    """From 1."""
    id: str
    path: Path
    """Of the first of its files that is there, of those that fit ``where``."""
    score: float
    """Cosine of the query and the nearest of the image's vectors; the re-ranker's score where it was re-ranked."""


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

    def unchanged(self, image_id: str) -> Iterator[Path]:
        """Yield those of ``files`` that have not changed since they were indexed, by their size and times."""
        for record in self._table.records_of(image_id):
            file = self.root / record.path
            with suppress(OSError):
                if record.is_as(file.stat()):
                    yield file

    def page(self, start: int, count: int) -> list[tuple[str, Path]]:
        """Return ``count`` ids from place ``start``, with their files."""
        return [(image_id, self.root / path) for image_id, path in self._table.images_in_order(start, count)]


class Retriever:
    """A model and an index, opened once and asked often, also from several threads.

    ``index`` is the folder that ``composir index`` made; ``model`` is a head on the index's model, which changes its
    queries, or where that model has moved to. For a head with a map of targets a second set of vectors is made beside
    the index's own (``MappedIndex``), in which pictures with sentences are searched. ``device`` is that of the model: a
    GPU where there is one, unless given. Raises ``ComposirError`` where the folder is no index, or was made by another
    model or format; then with the command that rebuilds it.
    """

    def __init__(self, index: Path | str, *, model: Path | str | None = None, device: str | None = None) -> None:
        self.folder = Path(index)
        self.thumbnails = Thumbnails(self.folder)
        self._model_folder = None if model is None else Path(model)
        self._device = usable_device(device)
        self._lock = RLock()
        self._left: Table | None = None
        self._head_seen: tuple[tuple[int, int, int], ...] = ()
        manifest = read_manifest(self.folder)
        self._open(manifest, _load_encoder(self.folder, manifest, self._model_folder, self._device))

    def _open(self, manifest: Manifest, encoder: Encoder, *, instead: Index | None = None) -> None:
        identity = self._read_state(manifest)[0]
        table = manifest.open_table(self.folder)
        self._mapped = _open_mapped(manifest, table, encoder)  # where it fails, all else is as before
        if instead is not None:
            instead.close()
        self.manifest, self.encoder, self._table, self._identity = manifest, encoder, table, identity
        self.index: Index = manifest.open_index(table)
        self.images = Images(table, manifest.root.find(self.folder))

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
            identity, complete = self._read_state(self.manifest)
            if identity == self._identity or not complete:
                return False
            manifest = read_manifest(self.folder)
            same_model = manifest.weights_hash == self.manifest.weights_hash
            encoder = self.encoder
            if not same_model:
                encoder = _load_encoder(self.folder, manifest, self._model_folder, self._device)
            self._reopen(manifest, encoder)
            return True

    def take_head(self, folder: Path) -> bool:
        """Return whether a folder holds a new head, by which is asked from here on; the base stays open.

        Where nothing is there, nothing is changed. Raises ``ComposirError``, once, for a head that is damaged or on
        another model than the index's; then goes on what was before.
        """
        with self._lock:
            try:
                stats = [(folder / name).stat() for name in (CONFIG, WEIGHTS)]
            except (FileNotFoundError, NotADirectoryError):
                return False  # not there yet, or being replaced
            seen = tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in stats)
            if seen == self._head_seen:
                return False
            self._head_seen = seen
            saved = read_head(folder)
            if saved.config.base_hash != self.manifest.weights_hash:
                raise _on_another_model(self.folder, self.manifest, folder, saved.config.base_hash)
            if saved.weights_hash == self.encoder.identity:
                return False
            saved.head.to(self._device)
            self._reopen(self.manifest, with_head(self.encoder, saved))
            return True

    def _reopen(self, manifest: Manifest, encoder: Encoder) -> None:
        table = self._table
        self._open(manifest, encoder, instead=self.index)
        # Another thread may be looking a file up in ``images`` now: that table is closed at the next change.
        if self._left is not None:
            self._left.close()
        self._left = table

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
        texts: Sequence[Sentence] = (),
        without: Sequence[Sentence] = (),
        image_weight: float = COMPOSED,
        min_score: float | None = None,
        more: Sequence[str] = (),
        less: Sequence[str] = (),
        reranker: Reranker | None = None,
    ) -> list[Hit]:
        """Return the ``top_k`` images nearest to what is asked for, best first.

        ``images`` is the reference, or several: the query is then the mean of the queries that each gives with the
        sentence. A picture alone asks for what is like it, a sentence alone for what it describes.
        ``negative_text`` names what there should be less of: the difference that it would make as a sentence is taken
        off the query. ``where`` is a pattern for the path from the root (``holidays/*``; ``*`` crosses folders).
        ``exclude`` are ids to leave out: unless given, those of the references that are in the index (known by
        content, so not those given as decoded pictures); ``()`` leaves out none. ``rerank`` scores so many of the best
        again, pair by pair, with ``reranker``, the model's matching head unless given; their scores are then its own.

        ``texts`` and ``without`` are further sentences of either kind, each with a weight: every one adds, or takes
        off, as many times the difference that it makes. Of several pictures and several sentences, which have to be
        as many (``text``, if given, the first), each picture has its own. ``image_weight`` is 0.5 for the model's own
        composition; towards 1 the query moves to the pictures alone, towards 0 to the sentences alone. Images that
        score less than ``min_score`` are left out. ``more`` and ``less`` are ids of images that the answers should be
        like, and not like (``composir.search.query.move_by_marks``). ``composir.search.query.embed_queries`` has the
        formulas.

        Raises ``ComposirError`` where there is neither picture nor sentence, for a picture that cannot be read, a
        weight out of its range, an id that is not in the index, and for ``rerank`` where the model has no trained
        matching head or there is no picture to match.
        """
        if rerank and reranker is None:
            require_matching_head(self.model)
            reranker = MatchingHead(self.model, self.encoder.side)
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
            texts=tuple(texts),
            without=tuple(without),
            image_weight=image_weight,
            min_score=None if rerank else min_score,
            more=tuple(more),
            less=tuple(less),
        )
        hits = self.search_many([query])[0]
        if rerank and reranker:
            reranked = self._rerank(query, hits, rerank, reranker)
            hits = list(takewhile(lambda hit: _reaches(hit.score, min_score), reranked))
        return hits[:top_k]

    @torch.inference_mode()
    def _rerank(self, query: SearchQuery, hits: Sequence[Hit], count: int, reranker: Reranker) -> list[Hit]:
        """Return the hits with the first ``count`` in the order of the re-ranker's scores."""
        if query.left_out or (reranker.needs_picture and not query.images):
            raise ComposirError(
                "re-ranking matches a picture and a sentence with each candidate",
                expected="a picture, and no negative text",
                fix="leave out --rerank, or the negative text",
            )
        if len(query.sentences) > 1:
            raise ComposirError(
                f"re-ranking reads one sentence, and there are {len(query.sentences)}", fix="write them as one"
            )
        ((pictures,), _) = read_pictures([query], reranker.side)
        best = hits[:count]
        batches = (
            [read_picture(read_bytes(hit.path), reranker.side, hit.path) for hit in best[start : start + TOWER_BATCH]]
            for start in range(0, len(best), TOWER_BATCH)
        )
        with self._lock:
            scores = reranker.score(pictures, query.sentences[0].text if query.sentences else "", batches)
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        best = [replace(hits[place], rank=rank, score=scores[place]) for rank, place in enumerate(order, start=1)]
        return [*best, *hits[count:]]

    def warm(self) -> None:
        """Do once what makes many searches faster: read what the model has not needed yet, ready the index's vectors.

        What is found stays the same, bit for bit. ``ExactIndex.warm`` says what it takes of the memory.
        """
        picture = Image.new("RGB", (WARM_UP_SIDE, WARM_UP_SIDE))
        with self._lock, torch.inference_mode():
            self.encoder.embed_asked([picture], [(0, WARM_UP_TEXT)])
            for index in (self.index, self._mapped):
                if index is not None:
                    index.warm()

    def check(self, query: SearchQuery) -> None:
        """Raise ``ComposirError`` for what ``search`` would refuse of a query, its pictures aside."""
        check_query(query, self.encoder, self.images)

    def warnings(self, query: SearchQuery) -> list[str]:
        """Return a line for each sentence that ``search`` takes, and of which the model reads little or nothing."""
        return warnings_of(query, self.encoder)

    def search_many(self, queries: Sequence[SearchQuery]) -> list[list[Hit]]:
        """Return the answers to many queries, embedded and searched together; each as ``search`` would give it."""
        if not queries:
            return []
        for query in queries:
            self.check(query)
        pictures, references = read_pictures(queries, self.encoder.side)
        with self._lock, torch.inference_mode():
            embeddings = embed_queries(self.encoder, queries, pictures)
            for place, query in enumerate(queries):
                if query.more or query.less:
                    snapshot = self._index_of(query).snapshot
                    marked = (float32(snapshot.vectors[snapshot.rows_of(ids)]) for ids in (query.more, query.less))
                    embeddings[place] = move_by_marks(embeddings[place], *marked)
            answers: list[list[Hit]] = [[] for _ in queries]
            # All queries with one filter are one search; what is left out is asked for as well, then left out.
            for index, where in dict.fromkeys((self._index_of(query), query.where) for query in queries):
                places = [
                    place
                    for place, query in enumerate(queries)
                    if query.where == where and self._index_of(query) is index
                ]
                left_out = {place: set(_excluded(queries[place], references[place])) for place in places}
                top_k = max(queries[place].top_k + len(left_out[place]) for place in places)
                found = index.search(embeddings[places], top_k, where=where)
                for place, candidates in zip(places, found, strict=True):
                    least = queries[place].min_score
                    wanted = [one for one in candidates if one[0] not in left_out[place] and _reaches(one[1], least)]
                    answers[place] = self._hits(wanted, queries[place].top_k, where)
            return answers

    def _index_of(self, query: SearchQuery) -> Index:
        """Return what a query is searched in: the mapped vectors where the head changes it."""
        return self._mapped if self._mapped is not None and query.is_composed else self.index

    def prepare(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the model sees it, a small square: a search by it is a search by the picture."""
        return self.encoder.square(picture)

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of that square, in pixels of a picture of this width and height."""
        return self.encoder.box(size)

    def read(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Reading:
        """Return what the model's query tokens read of each picture with its sentence."""
        with self._lock, torch.inference_mode(), watch(self.model, keep=2 * NUM_READINGS) as seen:
            self.encoder.embed_asked(pictures, list(enumerate(texts)))
        return next(one for one in seen if one.with_text)

    def explain(self, hits: Sequence[Hit]) -> list[str | None]:
        """Return in words what the model sees in each image that was found; None where it has no words for it."""
        if not self.encoder.has_words:
            return [None] * len(hits)
        vectors = self._vectors_of([hit.id for hit in hits])
        return [self.encoder.seen(vectors[hit.id]) if hit.id in vectors else None for hit in hits]

    def named(self, ids: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Return the thing and its main colour in each of these images, without those where the model is not sure."""
        if not self.encoder.has_words:
            return {}
        vectors = self._vectors_of(ids)
        told = {image_id: self.encoder.named(vectors[image_id]) for image_id in ids if image_id in vectors}
        return {image_id: one for image_id, one in told.items() if one is not None}

    @property
    def ids(self) -> Shaped[np.ndarray, " images"]:
        """The ids of all images, ASCII, in the order in which they were added."""
        snapshot = self.index.snapshot
        return snapshot.ids[snapshot.rows]

    def sample(self, count: int) -> list[str]:
        """Return the ids of ``count`` images, evenly apart in the order in which they were added; all, if not so many.

        They are the same ones as long as the index is the same.
        """
        ids = self.ids
        count = min(count, len(ids))
        return ids[np.arange(count) * len(ids) // max(1, count)].astype(str).tolist()

    def _vectors_of(self, ids: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the vectors of images by their ids, of those that are there."""
        snapshot = self.index.snapshot
        rows = snapshot.rows_of(ids)
        return dict(zip(snapshot.ids[rows].astype(str).tolist(), snapshot.vectors[rows], strict=True))

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
        """The model of the index; ``ComposirError`` where it is one of one vector a picture."""
        if not isinstance(self.encoder, ComposerEncoder):
            if isinstance(self.encoder, HeadEncoder):
                raise ComposirError(
                    "is asked by a head, which neither matches pairs nor shows where it looks",
                    file=self.folder,
                    fix="leave that out, or ask without --model",
                )
            kind = self.encoder.embedder.kind if isinstance(self.encoder, VectorEncoder) else "another kind of model"
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

    def _read_state(self, manifest: Manifest) -> tuple[tuple[bytes, int], bool]:
        with closing(manifest.open_table(self.folder)) as table:
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
        raise _on_another_model(folder, manifest, place, encoder.base.identity)
    if encoder.identity != manifest.weights_hash:
        raise ComposirError(
            f"is the index of another model (weights {manifest.weights_hash}, {place} has {encoder.identity})",
            file=folder,
            fix=rebuild_command(folder, root=manifest.root.find(folder), model=place),
        )
    return encoder


def _on_another_model(folder: Path, manifest: Manifest, head: Path, base_hash: str) -> ComposirError:
    return ComposirError(
        f"is the index of another model (weights {manifest.weights_hash}) than the one below the head {head} "
        f"({base_hash})",
        file=folder,
        fix="give a head that was trained on the index's model, or leave out --model",
    )


def _open_mapped(manifest: Manifest, table: Table, encoder: Encoder) -> MappedIndex | None:
    """Return the index by a head's map of targets; None where there is no such map."""
    if not isinstance(encoder, HeadEncoder) or encoder.head.target_map is None:
        return None
    if manifest.backend != EXACT:
        raise ComposirError(
            f"is searched by {manifest.backend}, and vectors that a head maps are all compared ({EXACT})",
            file=table.folder,
            fix=f"{command('index', manifest.root.find(table.folder), '--out', table.folder, '--backend', EXACT)} "
            "(it embeds nothing again), or a head without --target-map",
        )
    return MappedIndex(table, encoder.head, encoder.identity)


def _excluded(query: SearchQuery, references: Sequence[str]) -> Sequence[str]:
    return references if query.exclude is None else query.exclude


def _reaches(score: float, least: float | None) -> bool:
    return least is None or score >= least
