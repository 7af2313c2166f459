"""The application: search, pictures, health, metrics, documentation and the page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.resources
import logging
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from typing import Annotated, Any, TypeVar

import anyio
import numpy as np
from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.security import HTTPBearer
from PIL import Image
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.types import ASGIApp

from composir.errors import ComposirError
from composir.search import Hit, Retriever, SearchQuery, content_id
from composir.version import own_version
from composir.web import problems
from composir.web.asked import Asked, HeatFields, SearchFields, described, no_parameters_but, reader
from composir.web.batcher import Batcher
from composir.web.guard import COOKIE, PAGE_POLICY, Guard, session_of
from composir.web.limits import MAX_PAGE, RETRY_SECONDS, Limits
from composir.web.pictures import (
    HEAT_SIDE,
    SIDE_BY_SIZE,
    Cache,
    Size,
    draw_heat,
    encode,
    heat_limits,
    heat_of,
    read_indexed,
    read_upload,
)
from composir.web.problems import Problem, responses

logger = logging.getLogger(__name__)
T = TypeVar("T")
NUM_DECODERS = 2
"""Threads that decode pictures: each may need some 100 MB for a large one."""
PICTURE_AGE = "private, max-age=31536000, immutable"
"""An id is the hash of a content, so what it shows never changes."""

ImageId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="An image's id, as a search or the listing gives.")]
Tags = Annotated[list[str] | None, Header(alias="If-None-Match", description="ETags of what is already there, or `*`.")]


class Result(BaseModel):
    """An image that was found."""

    rank: int
    """From 1."""
    id: str
    path: str
    """Relative to the folder that was indexed, with forward slashes."""
    score: float


class Found(BaseModel):
    """The answer to a search."""

    results: list[Result]
    """Best first."""
    reference: str | None
    """The id of the reference, where it is in the index (an uploaded file is known by its content)."""
    milliseconds: float
    """From the picture's being read to the answer, waiting included."""


class Listed(BaseModel):
    """An image of the index."""

    id: str
    path: str
    """As in ``Result``."""


class Listing(BaseModel):
    """A page of all images, in the order of their paths."""

    total: int
    start: int
    images: list[Listed]


class Heat(BaseModel):
    """Where the model looked in a reference picture, for a sentence."""

    map: str
    """``gate`` (how far it is open, mean over channels), ``text_attention`` or ``attention``."""
    low: float
    """The value of the darkest colour."""
    high: float
    values: list[list[float]]
    """By row and column of patches."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of what the patches cover, as shares of the picture's width and height."""
    picture: str
    """The values drawn over the picture, a JPEG as a data URI."""


class Health(BaseModel):
    """That the server answers."""

    status: str
    num_images: int


def create_app(
    retriever: Retriever,
    *,
    api_key: str | None = None,
    limits: Limits | None = None,
    host: str = "localhost",
    root_path: str = "",
) -> ASGIApp:
    """Return the application over an open retriever, which stays the caller's to close.

    ``host`` is the name that it listens under, ``root_path`` the prefix (``/pictures``) that a proxy puts before it.
    """
    limits = limits or Limits()
    registry = CollectorRegistry()
    service = _Service(retriever, limits, registry)
    app = FastAPI(
        title="composir",
        version=own_version(),
        description="Find pictures by a picture and a sentence that says what should differ.",
        servers=[{"url": "."}],  # beside the document, whatever prefix a proxy puts before both
        root_path_in_servers=False,
        docs_url=None,
        redoc_url=None,
        lifespan=service.lifespan,
        max_body_size=limits.max_upload_bytes,
        dependencies=[] if api_key is None else [Depends(HTTPBearer(auto_error=False))],
        responses=responses(422, 401 if api_key else 421),
    )
    problems.install(app)
    _add_search(app, service)
    _add_images(app, service)
    _add_session(app, api_key, root_path)
    _add_pages(app)

    @app.get("/api/health", tags=["server"])
    def health() -> Health:
        """Say that the server answers, and over how many images."""
        return Health(status="ok", num_images=len(retriever))

    @app.get("/metrics", tags=["server"], response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics() -> Response:
        """Give counts and times in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    _describe_problems(app)
    return Guard(
        app,
        api_key=api_key,
        max_upload_bytes=limits.max_upload_bytes,
        registry=registry,
        host=host,
        root_path=root_path,
    )


@dataclass(frozen=True, slots=True)
class _Reference:
    """What is kept of a request's picture while it waits: little, however large the picture is."""

    id: str
    """Of the image with this content, whether it is in the index or not."""
    prepared: Image.Image
    """The square that the model sees."""
    small: Image.Image
    """For a heat map to be drawn on."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the square, as shares of the picture's width and height."""


class _Service:
    """What the operations share: the retriever, who waits for it, and the pictures made lately."""

    def __init__(self, retriever: Retriever, limits: Limits, registry: CollectorRegistry) -> None:
        self.retriever = retriever
        self.limits = limits
        self.cache = Cache(limits.cached_bytes)
        self._num_waiting = 0
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
        self._searches = Batcher(
            self.retriever.search_many, max_batch=self.limits.max_batch, on_batch=self._batches.observe
        )
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
        while not stop.wait(self.limits.reload_seconds):
            try:
                if self.retriever.reload_if_changed():
                    logger.info("the index has changed and was read again: %d images", len(self.retriever))
                said = ""
            except (ComposirError, OSError, sqlite3.Error) as error:
                if str(error) != said:
                    said = str(error)
                    logger.warning("the index cannot be read again: %s", error)

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

    async def reference(self, upload: UploadFile | None, image_id: str | None) -> _Reference | None:
        """Return the picture that a request gives, if any."""
        if upload is not None and image_id is not None:
            raise Problem(422, "two-references", "give image or image_id, not both")
        if upload is not None:
            return await self.decode(lambda: self._uploaded(upload))
        if image_id is not None:
            return await self.decode(lambda: self._reference(self.indexed(image_id), image_id))
        return None

    def _uploaded(self, upload: UploadFile) -> _Reference:
        content = upload.file.read()
        side = self.retriever.encoder.side
        picture = read_upload(content, max_pixels=self.limits.max_pixels, side=side)
        return self._reference(picture, content_id(content))

    def _reference(self, picture: Image.Image, image_id: str) -> _Reference:
        width, height = picture.size
        left, top, right, bottom = self.retriever.box(picture.size)
        prepared = self.retriever.prepare(picture)
        picture.thumbnail((HEAT_SIDE, HEAT_SIDE))
        return _Reference(image_id, prepared, picture, (left / width, top / height, right / width, bottom / height))

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


def _busy() -> Problem:
    return Problem(503, "busy", "too many searches are waiting; try again soon", retry_after=RETRY_SECONDS)


def _add_search(app: FastAPI, service: _Service) -> None:
    refusals = responses(400, 403, 404, 413, 415, 503)

    # What comes in the address of these is refused rather than passed over: it belongs in the body.
    options: dict[str, Any] = {"tags": ["search"], "responses": refusals, "dependencies": [no_parameters_but()]}

    @app.post("/api/search", **options, openapi_extra=described(SearchFields))
    async def search(asked: Annotated[Asked[SearchFields], Depends(reader(SearchFields))]) -> Found:
        """Find images by a picture, a sentence that says what should differ, or both."""
        start = asyncio.get_running_loop().time()
        fields = asked.fields
        with service.admitted():
            reference = await service.reference(asked.image, fields.image_id)
            if reference is None and not fields.text.strip():
                raise Problem(422, "nothing-asked", "give a picture, a sentence, or both")
            query = SearchQuery(
                images=() if reference is None else (reference.prepared,),
                text=fields.text,
                negative_text=fields.negative_text,
                top_k=fields.top_k,
                where=fields.where or None,
                exclude=() if fields.keep_reference or reference is None else (reference.id,),
            )
            hits = await service.search(query)
        known = reference.id if reference and reference.id in service.retriever.images else None
        root = service.retriever.images.root
        results = [
            Result(rank=hit.rank, id=hit.id, path=hit.path.relative_to(root).as_posix(), score=hit.score)
            for hit in hits
        ]
        milliseconds = 1000 * (asyncio.get_running_loop().time() - start)
        return Found(results=results, reference=known, milliseconds=round(milliseconds, 1))

    @app.post("/api/heat", **options, openapi_extra=described(HeatFields))
    async def heat(asked: Annotated[Asked[HeatFields], Depends(reader(HeatFields))]) -> Heat:
        """Show where the model looks in a reference picture, for a sentence."""
        with service.admitted():
            reference = await service.reference(asked.image, asked.fields.image_id)
            if reference is None:
                raise Problem(422, "nothing-asked", "give a picture")
            name, values = await service.read(reference.prepared, asked.fields.text)
            span = heat_limits(name, values)
            drawn = await service.decode(lambda: draw_heat(reference.small, values, reference.box, span))
        return Heat(
            map=name,
            low=span[0],
            high=span[1],
            values=values.tolist(),
            box=reference.box,
            picture=f"data:image/jpeg;base64,{base64.b64encode(drawn).decode()}",
        )


def _add_images(app: FastAPI, service: _Service) -> None:
    @app.get("/api/images", tags=["images"], dependencies=[no_parameters_but("start", "count")])
    def images(
        start: Annotated[int, Query(ge=0, le=2**31, description="How many to pass over.")] = 0,
        count: Annotated[int, Query(ge=1, le=MAX_PAGE, description="How many to list.")] = 60,
    ) -> Listing:
        """List the images, in the order of their paths."""
        all_images = service.retriever.images
        return Listing(
            total=len(all_images),
            start=start,
            images=[
                Listed(id=image_id, path=path.relative_to(all_images.root).as_posix())
                for image_id, path in all_images.page(start, count)
            ],
        )

    @app.get(
        "/api/images/{image_id}",
        tags=["images"],
        dependencies=[no_parameters_but("size")],
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, 304: {"description": "Not Modified"}, **responses(404)},
    )
    async def image(
        image_id: ImageId,
        size: Annotated[Size, Query(description="Longer side at most 320, 1,024 or 4,096 pixels.")] = "full",
        if_none_match: Tags = None,
    ) -> Response:
        """Give an image as a JPEG, encoded anew, without what the file says beside its pixels (EXIF)."""
        headers = {"ETag": f'"{image_id}-{size}"', "Cache-Control": PICTURE_AGE}

        def make() -> bytes:
            side = SIDE_BY_SIZE[size]
            return encode(service.indexed(image_id, side=2 * side), side)

        if _is_there(headers["ETag"], if_none_match) and image_id in service.retriever.images:
            return Response(status_code=304, headers=headers)
        content = service.cache.get((image_id, size)) if image_id in service.retriever.images else None
        if content is None:
            content = await service.decode(make)
            service.cache.put((image_id, size), content)
        return Response(content, media_type="image/jpeg", headers=headers)


def _is_there(etag: str, if_none_match: Sequence[str] | None) -> bool:
    """Return whether who asks has it already: under one of these tags, weak or not, or ``*`` (RFC 9110, 13.1.2)."""
    tags = ",".join(if_none_match or ())
    return tags.strip() == "*" or etag in re.findall('"[^"]*"', tags)


def _add_session(app: FastAPI, api_key: str | None, root_path: str) -> None:
    if api_key is None:
        return

    @app.post("/api/session", tags=["server"], status_code=204, response_class=Response)
    def session(request: Request) -> Response:
        """Give the browser that shows the key a cookie to show instead, which the page's pictures need."""
        response = Response(status_code=204)
        response.set_cookie(
            COOKIE,
            session_of(api_key),
            path=root_path or "/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response


def _add_pages(app: FastAPI) -> None:
    folder = importlib.resources.files("composir.web") / "page"

    def add(path: str, content: bytes, media_type: str, policy: str = PAGE_POLICY) -> None:
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
            "Cache-Control": "no-cache",
            "Content-Security-Policy": policy,
        }

        async def give(if_none_match: Tags = None) -> Response:
            if _is_there(headers["ETag"], if_none_match):
                return Response(status_code=304, headers=headers)
            return Response(content, media_type=media_type, headers=headers)

        app.get(path, include_in_schema=False, dependencies=[])(give)

    add("/", (folder / "index.html").read_bytes(), "text/html")
    add("/page.css", (folder / "page.css").read_bytes(), "text/css")
    add("/page.js", (folder / "page.js").read_bytes(), "text/javascript")
    docs = bytes(
        get_swagger_ui_html(
            openapi_url="openapi.json",
            title="composir",
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
        ).body
    )
    # The one script inside the page is allowed by its hash, nothing else that is inline.
    script = docs.rsplit(b"<script>", 1)[1].split(b"</script>", 1)[0]
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    add("/docs", docs, "text/html", PAGE_POLICY.replace("'self'", f"'self' 'sha256-{digest}'", 1))
    static = importlib.resources.files("fastapi_offline") / "static"
    for name, media_type in (
        ("swagger-ui-bundle.js", "text/javascript"),
        ("swagger-ui.css", "text/css"),
        ("favicon.png", "image/png"),
    ):
        add(f"/docs/{name}", (static / name).read_bytes(), media_type)


def _describe_problems(app: FastAPI) -> None:
    """Let the OpenAPI document say what errors look like here, not what FastAPI's own would."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas["ProblemDocument"] = problems.ProblemDocument.model_json_schema()
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        return document

    app.openapi = openapi
