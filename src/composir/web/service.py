"""What the operations share: the retriever, who waits for it, and the pictures made lately."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeVar

import anyio
import numpy as np
from fastapi import FastAPI
from PIL import Image
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from starlette.datastructures import UploadFile

from composir.cache import Cache
from composir.errors import ComposirError
from composir.search import Hit, Retriever, SearchQuery, content_id
from composir.web import scale
from composir.web.batcher import Batcher
from composir.web.limits import RETRY_SECONDS, Limits
from composir.web.pictures import HEAT_SIDE, Size, heat_of, read_indexed, read_upload
from composir.web.problems import HttpProblem
from composir.web.schemas import Scale

logger = logging.getLogger(__name__)
T = TypeVar("T")
SCALE_SECONDS = 60
"""For learning what scores mean: a model that takes longer has better things to do."""
NUM_DECODERS = 2
"""Threads that decode pictures: each may need some 100 MB for a large one."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What is kept of a request's picture while it waits: what the model sees of it, which is little.

    Models that read a picture whole (Qwen, sentence-transformers) keep it whole, up to 4,096 pixels a side: 48 MB.
    """

    id: str
    """Of the image with this content, whether it is in the index or not."""
    prepared: Image.Image
    """The square that the model sees, or the picture as it is."""
    small: Image.Image
    """For a heat map to be drawn on."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the square, as shares of the picture's width and height."""


class Service:
    """What the operations share: the retriever, who waits for it, and the pictures made lately."""

    def __init__(
        self, retriever: Retriever, limits: Limits, registry: CollectorRegistry, *, head: Path | None = None
    ) -> None:
        self.retriever = retriever
        self.head = head
        self.limits = limits
        self.cache = Cache[tuple[str, Size], bytes](limits.cached_bytes)
        self._num_waiting = 0
        self._measured: tuple[str, np.ndarray, scale.Scales] | None = None
        """By which model, over which images, and what came of it."""
        self._batches = Histogram(
            "composir_batch_size", "Queries that went through the model together", buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )  # fmt: skip
        waiting = Gauge("composir_waiting", "Searches being read or answered", registry=registry)
        waiting.set_function(lambda: self._num_waiting)
        images = Gauge("composir_images", "Images in the index", registry=registry)
        images.set_function(lambda: len(retriever))
        ProcessCollector(registry=registry)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start what runs beside the requests; at the end answer who still waits, then stop it."""
        self._decoders = ThreadPoolExecutor(NUM_DECODERS, thread_name_prefix="decoder")
        self._searches = Batcher(self._search_many, max_batch=self.limits.max_batch, on_batch=self._batches.observe)
        self._readings = Batcher(self._read, max_batch=self.limits.max_batch)
        stop = Event()
        watcher = Thread(target=self._watch, args=(stop,), name="reload", daemon=True)
        watcher.start()
        yield
        stop.set()
        for part in (self._searches, self._readings):
            await anyio.to_thread.run_sync(part.close)
        await anyio.to_thread.run_sync(self._decoders.shutdown)
        await anyio.to_thread.run_sync(watcher.join)

    def _watch(self, stop: Event) -> None:
        """Look at the index on disk again and again; what is wrong with it is said once, and the old one answers."""
        said = ""
        self._warm()
        self._measure(stop)
        while not stop.wait(self.limits.reload_seconds):
            try:
                if self.retriever.reload_if_changed():
                    logger.info("the index has changed and was read again: %d images", len(self.retriever))
                    if self._measured is not None and scale.has_much_changed(self._measured[1], self.retriever.ids):
                        self._measured = None
                    self._warm()
                said = ""
            except (ComposirError, OSError, sqlite3.Error) as error:
                if str(error) != said:
                    said = str(error)
                    logger.warning("the index cannot be read again: %s", error)
            if self._measured is None or self._measured[0] != self.retriever.encoder.identity:
                self._measure(stop)

    def _warm(self) -> None:
        """Ready the retriever for many searches; where that fails, they go on as before."""
        try:
            self.retriever.warm()
        except Exception as error:  # of whatever kind: a search that meets it again says it
            logger.warning("the model or the index could not be made ready", exc_info=error)

    def _measure(self, stop: Event) -> None:
        """Learn what scores mean by the model that answers now; where that fails, none is told."""
        identity, ids = self.retriever.encoder.identity, self.retriever.ids
        last = time.monotonic() + SCALE_SECONDS
        try:
            scales = scale.measure(self.retriever, is_wanted=lambda: not stop.is_set() and time.monotonic() < last)
        except Exception as error:  # of whatever kind, as above
            logger.warning("what scores mean could not be measured", exc_info=error)
            scales = scale.Scales()
        self._measured = identity, ids, scales

    def scale_of(self, query: SearchQuery) -> Scale | None:
        """Return what the scores of a query mean, where that was measured by the model that answers it."""
        measured = self._measured  # which another thread may replace meanwhile
        if measured is None or measured[0] != self.retriever.encoder.identity:
            return None
        return measured[2].of(query)

    def _search_many(self, queries: Sequence[SearchQuery]) -> list[list[Hit]]:
        """Answer by the head that is in its folder now; what is wrong with it is said once, and the old one answers."""
        try:
            if self.head is not None and self.retriever.take_head(self.head):
                logger.info("a new head answers: %s", self.head)
        except (ComposirError, OSError) as error:
            logger.warning("the new head cannot be taken: %s", error)
        return self.retriever.search_many(queries)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Take one of the places for those who wait, or refuse."""
        if self._num_waiting >= self.limits.max_waiting:
            raise _busy()
        self._num_waiting += 1
        try:
            yield
        finally:
            self._num_waiting -= 1

    async def decode(self, work: Callable[[], T]) -> T:
        """Return the result of work on pictures, of which only a few run at a time.

        Who is cancelled takes back work that has not begun; what has begun keeps its place till it ends.
        """
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work)

    async def reference(self, upload: UploadFile | None, image_id: str | None) -> Reference | None:
        """Return the picture that a request gives, if any."""
        if upload is not None and image_id is not None:
            raise HttpProblem(422, "two-references", "give image or image_id, not both")
        if upload is not None:
            return await self.decode(lambda: self._uploaded(upload))
        if image_id is not None:
            return await self.decode(lambda: self._reference(self.indexed(image_id), image_id))
        return None

    def _uploaded(self, upload: UploadFile) -> Reference:
        content = upload.file.read()
        side = self.retriever.encoder.side
        picture = read_upload(content, max_pixels=self.limits.max_pixels, side=side)
        return self._reference(picture, content_id(content))

    def _reference(self, picture: Image.Image, image_id: str) -> Reference:
        width, height = picture.size
        left, top, right, bottom = self.retriever.box(picture.size)
        prepared = self.retriever.prepare(picture)
        small = picture.copy()  # what a model reads whole is the picture itself
        small.thumbnail((HEAT_SIDE, HEAT_SIDE))
        return Reference(image_id, prepared, small, (left / width, top / height, right / width, bottom / height))

    def indexed(self, image_id: str, *, side: int | None = None) -> Image.Image:
        """Return an image of the index, as the model's is read, or with a longer side of at least ``side``."""
        return read_indexed(self.retriever.images, image_id, side=side or self.retriever.encoder.side)

    async def search(self, query: SearchQuery) -> list[Hit]:
        """Return the answer to a query, embedded together with those of others."""
        return await self._answer(self._searches, query)

    async def read(self, picture: Image.Image, text: str) -> tuple[str, np.ndarray]:
        """Return the name and the values of the heat map of a picture, prepared for the model, with a sentence."""
        return await self._answer(self._readings, (picture, text))

    def _read(self, asked: Sequence[tuple[Image.Image, str]]) -> list[tuple[str, np.ndarray]]:
        pictures, texts = zip(*asked, strict=True)
        reading = self.retriever.read(pictures, texts)
        return [heat_of(reading, row) for row in range(len(asked))]

    async def _answer(self, batcher: Batcher[Any, T], asked: object) -> T:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(batcher.ask(asked)), self.limits.max_seconds)
        except asyncio.TimeoutError:
            raise _busy() from None


def _busy() -> HttpProblem:
    return HttpProblem(503, "busy", "too many searches are waiting; try again soon", retry_after=RETRY_SECONDS)
