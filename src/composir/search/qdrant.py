"""Search by Qdrant: in this process without a server, or a cluster by its address."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from uuid import UUID, uuid4

import numpy as np
from torch import Tensor

from composir.errors import ComposirError
from composir.progress import Progress
from composir.search.index import Hits, Index
from composir.search.table import Table
from composir.version import pip_install

POINTS_AT_ONCE = 64
"""A point of 32 x 256 numbers is about 100 kB on the wire."""
EXACT_UP_TO = 1_000_000
"""Images up to which Qdrant compares all; above, it goes through its graph."""
NUM_TRIES, FIRST_WAIT = 5, 0.5
"""A request is tried so often, with waits of 0.5, 1, 2 and 4 seconds between."""
TIMEOUT_SECONDS = 60
BYTES_A_POINT = 100
"""Of a point's id in a filter, a text of 36 characters."""
LOCAL = "qdrant"
"""The folder of a collection without a server, in that of the index."""
TOO_MANY_REQUESTS, FIRST_SERVER_ERROR = 429, 500

Answer = TypeVar("Answer")


class QdrantIndex(Index):
    """One point an image in a collection of multi-vectors; Qdrant's MaxSim is the largest dot product.

    A point's id is the image's, its payload the image's ``paths`` and the ``folders`` above them. The table stays
    the truth: it remembers what the collection has not been told yet, so a push that breaks off is gone on with, and
    a collection that was lost is filled again. ``options``: ``url`` (none: a folder beside the table), ``collection``,
    ``shards`` and ``replicas`` of a new collection. A key is read from ``QDRANT_API_KEY``.
    """

    @classmethod
    def defaults(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with a collection of the index's own."""
        return {"collection": f"composir-{uuid4().hex[:12]}", **options}

    @classmethod
    def clear(cls, folder: Path) -> None:
        """Remove the collection in this process; one on a server goes when the index is filled again."""
        shutil.rmtree(folder / LOCAL, ignore_errors=True)

    def __init__(self, table: Table, options: Mapping[str, Any]) -> None:
        self.url: str | None = options.get("url")
        self.collection: str = options["collection"]
        self.client = _connect(self.url, table)
        super().__init__(table, options)

    def close(self) -> None:
        """Give up the connection, or the folder, which only one process may hold."""
        self.client.close()

    def _search(self, queries: Tensor, top_k: int, where: str | None) -> Hits:
        from qdrant_client import models  # noqa: PLC0415

        # The engine in this process always compares all, and warns of parameters.
        params = models.SearchParams(exact=len(self) <= EXACT_UP_TO) if self.url else None
        chosen = self._filter(where)
        requests = [
            models.QueryRequest(query=[query], limit=top_k, filter=chosen, params=params) for query in queries.tolist()
        ]
        answers = self._ask(lambda: self.client.query_batch_points(self.collection, requests))
        return [[(UUID(str(point.id)).hex, point.score) for point in answer.points] for answer in answers]

    def _filter(self, where: str | None) -> Any:
        """Return a filter by payload for a whole folder (``holidays/*``), for any other pattern one by ids.

        A name that is not ASCII has two spellings, of which the payload holds one.
        """
        from qdrant_client import models  # noqa: PLC0415

        if where is None:
            return None
        folder = where.removesuffix("/*")
        if folder != where and folder.isascii() and not set(folder) & set("*?["):
            match = models.FieldCondition(key="folders", match=models.MatchValue(value=folder))
            return models.Filter(must=[match])

        def make() -> Any:
            ids: list[Any] = [str(UUID(hex=image_id.decode())) for image_id in np.unique(self.table.ids_at(where))]
            return models.Filter(must=[models.HasIdCondition(has_id=ids)])

        return self._once("ids", where, make, lambda made: BYTES_A_POINT * len(made.must[0].has_id))

    def _update(self, progress: Progress | None) -> None:
        from qdrant_client import models  # noqa: PLC0415

        self._prepare_collection()
        if gone := self.table.removed():
            points: list[Any] = [str(UUID(hex=image_id)) for image_id in gone]
            self._ask(lambda: self.client.delete(self.collection, models.PointIdsList(points=points), wait=True))
            self.table.tell_removed(gone)
        snapshot, total, done = self.table.snapshot(), len(self.table), 0
        while new := self.table.not_pushed(POINTS_AT_ONCE):
            points = [
                models.PointStruct(
                    id=str(UUID(hex=image_id)),
                    vector=snapshot.vectors[row].tolist(),
                    payload=_payload(self.table.paths_of(image_id)),
                )
                for row, image_id in new
            ]
            self._ask(lambda points=points: self.client.upsert(self.collection, points, wait=True))
            self.table.tell_pushed([image_id for _, image_id in new])
            done += len(new)
            if progress is not None:
                progress("points", done, max(done, total))

    def _prepare_collection(self) -> None:
        """Make the collection where it is not there; one that holds less than it was told is filled from the start.

        A collection of which the table knows nothing is of an index that was rebuilt, and goes.
        """
        from qdrant_client import models  # noqa: PLC0415

        is_there = self._ask(lambda: self.client.collection_exists(self.collection))
        if is_there and not self.table.num_pushed():
            self._ask(lambda: self.client.delete_collection(self.collection))
            is_there = False
        if not is_there:
            vectors = models.VectorParams(
                size=self.table.shape[1],
                distance=models.Distance.DOT,
                datatype=models.Datatype.FLOAT16,
                multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
                on_disk=True,
            )
            sizes = {"shard_number": self.options.get("shards"), "replication_factor": self.options.get("replicas")}
            self._ask(lambda: self.client.create_collection(self.collection, vectors, **sizes))
            if self.url:  # the engine in this process has no such index, and warns
                self._ask(
                    lambda: self.client.create_payload_index(
                        self.collection, "folders", models.PayloadSchemaType.KEYWORD
                    )
                )
        if self._ask(lambda: self.client.count(self.collection, exact=True)).count < self.table.num_pushed():
            self.table.tell_nothing_pushed()

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        """Return the answer, asking again after a while where the fault may pass."""
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse  # noqa: PLC0415

        for attempt in range(NUM_TRIES):
            try:
                return request()
            except (ResponseHandlingException, UnexpectedResponse) as error:
                status = getattr(error, "status_code", None) or FIRST_SERVER_ERROR
                passes = status == TOO_MANY_REQUESTS or status >= FIRST_SERVER_ERROR
                if not passes or attempt == NUM_TRIES - 1:
                    raise ComposirError(
                        f"Qdrant does not do what it is asked for ({' '.join(str(error).split())[:200]})",
                        file=self.url,
                        expected="a reachable Qdrant server with this collection",
                        fix="start it, or check the address and QDRANT_API_KEY; then run composir index again",
                    ) from None
                time.sleep(FIRST_WAIT * 2**attempt)
        raise AssertionError("unreachable")


def _payload(paths: list[str]) -> dict[str, list[str]]:
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents} - {"."}
    return {"paths": paths, "folders": sorted(folders)}


def _connect(url: str | None, table: Table) -> Any:
    try:
        from qdrant_client import QdrantClient  # noqa: PLC0415
    except ImportError:
        raise ComposirError(
            "the qdrant engine needs the package qdrant-client, which is not installed",
            fix=pip_install("qdrant"),
        ) from None
    if url:
        return QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"), timeout=TIMEOUT_SECONDS)
    folder = table.folder / LOCAL
    local = {"path": str(folder), "force_disable_check_same_thread": True}
    try:
        return QdrantClient(**local)
    except ValueError:  # killed while it wrote its list of collections; the table has everything to fill it again
        shutil.rmtree(folder)
        return QdrantClient(**local)
    except RuntimeError:
        raise ComposirError(
            "is held by another process",
            file=folder,
            fix="let it end, or run a Qdrant server and give its address with --url",
        ) from None
