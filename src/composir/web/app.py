"""The application: search, pictures, health, metrics, documentation and the page."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.resources
import logging
import re
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Annotated, Any

import anyio
from fastapi import Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.security import HTTPBearer
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp

from composir.data.images.folder import PICTURE_SUFFIXES
from composir.errors import ComposirError
from composir.search import NothingAskedError, NotInIndexError, Retriever, SearchQuery, Sentence
from composir.search.thumbnails import encode
from composir.version import own_version
from composir.web import problems
from composir.web.asked import Asked, HeatFields, MeantFields, SearchFields, described, no_parameters_but, reader
from composir.web.examples import pick_examples
from composir.web.feedback import Feedback
from composir.web.guard import COOKIE, PAGE_FILES, PAGE_POLICY, Guard, session_of
from composir.web.limits import MAX_PAGE, Limits
from composir.web.pictures import QUALITY, SIDE_BY_SIZE, Size, draw_heat, heat_limits, read_thumbnail
from composir.web.problems import HttpProblem, responses
from composir.web.schemas import Examples, Found, Health, Heat, Listed, Listing, Recorded, Result
from composir.web.service import Service

logger = logging.getLogger(__name__)
PICTURE_AGE = "private, max-age=31536000, immutable"
"""An id is the hash of a content, so what it shows never changes."""

ImageId = Annotated[str, Path(pattern="^[0-9a-f]{32}$", description="An image's id, as a search or the listing gives.")]
Tags = Annotated[list[str] | None, Header(alias="If-None-Match", description="ETags of what is already there, or `*`.")]


def create_app(
    retriever: Retriever,
    *,
    api_key: str | None = None,
    limits: Limits | None = None,
    host: str = "localhost",
    root_path: str = "",
    feedback: Feedback | None = None,
    head: FilePath | None = None,
) -> ASGIApp:
    """Return the application over an open retriever, which stays the caller's to close.

    ``host`` is the name that it listens under, ``root_path`` the prefix (``/pictures``) that a proxy puts before it,
    ``feedback`` the file for what people meant; without one nothing is kept. ``head`` is the folder of a head, or where
    one will be: what it holds at a request is what is asked.
    """
    limits = limits or Limits()
    registry = CollectorRegistry()
    service = Service(retriever, limits, registry, head=head)
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
    if feedback is not None:
        _add_meant(app, service, feedback)
    _add_images(app, service)
    _add_session(app, api_key, root_path)
    _add_pages(app)

    @app.get("/api/health", tags=["server"])
    def health() -> Health:
        """Say that the server answers, and over how many images."""
        return Health(
            status="ok",
            num_images=len(retriever),
            model=retriever.model_line,
            heat=retriever.shows_where_it_looks,
            suffixes=list(PICTURE_SUFFIXES),
            records=feedback is not None,
        )

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


def _add_search(app: FastAPI, service: Service) -> None:
    refusals = responses(400, 403, 404, 413, 415, 503)

    # What comes in the address of these is refused rather than passed over: it belongs in the body.
    options: dict[str, Any] = {"tags": ["search"], "responses": refusals, "dependencies": [no_parameters_but()]}

    @app.post("/api/search", **options, openapi_extra=described(SearchFields))
    async def search(asked: Annotated[Asked[SearchFields], Depends(reader(SearchFields))]) -> Found:
        """Find images by a picture, a sentence that says what should differ, or both."""
        start = asyncio.get_running_loop().time()
        fields = asked.fields
        with service.admitted():
            first = await service.reference(asked.image, fields.image_id)
            references = ([] if first is None else [first]) + [
                one for image_id in fields.image_ids if (one := await service.reference(None, image_id))
            ]
            query = SearchQuery(
                images=tuple(one.prepared for one in references),
                text=fields.text,
                negative_text=fields.negative_text,
                top_k=fields.top_k,
                where=fields.where or None,
                exclude=() if fields.keep_reference else tuple(one.id for one in references),
                texts=tuple(map(Sentence.parse, fields.texts)),
                without=tuple(map(Sentence.parse, fields.without)),
                image_weight=fields.image_weight,
                min_score=fields.min_score,
                more=tuple(fields.more),
                less=tuple(fields.less),
            )
            _check(service.retriever, query)
            hits = await service.search(query)
        seen = await anyio.to_thread.run_sync(service.retriever.explain, hits)
        images = service.retriever.images
        results = [
            Result(
                rank=hit.rank, id=hit.id, path=hit.path.relative_to(images.root).as_posix(), score=hit.score, seen=words
            )
            for hit, words in zip(hits, seen, strict=True)
        ]
        said = [one.text for one in query.sentences if one.text.strip()]
        beside = bool(references)
        readings = [service.retriever.encoder.read(one, with_reference=beside) for one in said]
        told = [one.told(with_reference=beside) for one in readings if one]
        warnings = await anyio.to_thread.run_sync(service.retriever.warnings, query)
        milliseconds = 1000 * (asyncio.get_running_loop().time() - start)
        return Found(
            results=results,
            reference=references[0].id if references and references[0].id in images else None,
            reading=" | ".join(told) or None,
            warnings=warnings,
            scale=service.scale_of(query),
            milliseconds=round(milliseconds, 1),
        )

    @app.post("/api/heat", **options, openapi_extra=described(HeatFields))
    async def heat(asked: Annotated[Asked[HeatFields], Depends(reader(HeatFields))]) -> Heat:
        """Show where the model looks in a reference picture, for a sentence."""
        with service.admitted():
            reference = await service.reference(asked.image, asked.fields.image_id)
            if reference is None:
                raise HttpProblem(422, "nothing-asked", "give a picture")
            if not service.retriever.shows_where_it_looks:
                raise HttpProblem(422, "no-heat", "this model does not show where it looks")
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


def _add_meant(app: FastAPI, service: Service, feedback: Feedback) -> None:
    refusals = responses(403, 404, 413, 503)

    @app.post("/api/meant", tags=["search"], responses=refusals, dependencies=[no_parameters_but()])
    async def meant(choice: MeantFields) -> Recorded:
        """Keep which answer a search meant: the ids of the pictures and the sentence, and nothing else."""
        images = service.retriever.images
        if choice.image_id == choice.target:
            raise HttpProblem(422, "same-picture", "the picture meant is the reference itself")
        if not all(one in images for one in (choice.image_id, choice.target, *choice.shown)):
            detail = "a picture is not in the index; what is uploaded is not kept"
            raise HttpProblem(404, "no-such-image", detail)
        with service.admitted():
            try:
                given = choice.image_id, choice.text, choice.target, choice.shown
                return Recorded(new=await anyio.to_thread.run_sync(feedback.add, *given))
            except OSError as error:
                logger.warning("%s cannot be written: %s", feedback.file, error)
                raise HttpProblem(503, "not-recorded", "the choice could not be written down") from None


def _check(retriever: Retriever, query: SearchQuery) -> None:
    """Refuse what cannot be asked, each kind of it by its name."""
    try:
        retriever.check(query)
    except NothingAskedError as error:
        raise HttpProblem(422, "nothing-asked", str(error)) from None
    except NotInIndexError as error:
        raise HttpProblem(404, "no-such-image", str(error)) from None
    except ComposirError as error:
        raise HttpProblem(422, "cannot-be-asked", str(error)) from None


def _add_images(app: FastAPI, service: Service) -> None:
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

    @app.get("/api/examples", tags=["images"], dependencies=[no_parameters_but()])
    def examples() -> Examples:
        """Give searches to begin with, made of the images."""
        return Examples(examples=pick_examples(service.retriever))

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
            if size == "thumbnail":
                return read_thumbnail(service.retriever.images, service.retriever.thumbnails, image_id)
            side = SIDE_BY_SIZE[size]
            return encode(service.indexed(image_id, side=2 * side), side, quality=QUALITY)

        if _is_there(headers["ETag"], if_none_match) and image_id in service.retriever.images:
            return Response(status_code=304, headers=headers)
        content = service.cache.get((image_id, size)) if image_id in service.retriever.images else None
        if content is None:
            content = await service.decode(make)
            service.cache.put((image_id, size), content, len(content))
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
    for name in PAGE_FILES:
        add(f"/{name}", (folder / name).read_bytes(), "text/css" if name.endswith(".css") else "text/javascript")
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
