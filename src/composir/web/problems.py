"""Errors as RFC 9457 problem documents: what is wrong with the request, nothing of the inside."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

logger = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"


class ProblemDocument(BaseModel):
    """RFC 9457; ``type`` is ``urn:composir:problem:NAME``, or ``about:blank`` where the status says it all."""

    type: str = "about:blank"
    title: str
    status: int = Field(ge=400, le=599)
    detail: str = ""
    instance: str = ""
    """Names this request; the log has the same number."""
    errors: list[str] = []
    """One line for each field that is wrong."""


class HttpProblem(HTTPException):
    """A request that cannot be answered, and why; ``name`` is what a program can tell it by."""

    def __init__(self, status: int, name: str, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(status, detail, headers={} if retry_after is None else {"Retry-After": str(retry_after)})
        self.name = name


def problem_response(
    status: int,
    detail: str = "",
    *,
    name: str = "",
    instance: str = "",
    errors: list[str] | None = None,
    headers: Any = None,
) -> JSONResponse:
    """Return the answer to a request that failed."""
    document = ProblemDocument(
        type=f"urn:composir:problem:{name}" if name else "about:blank",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=instance,
        errors=errors or [],
    )
    return JSONResponse(document.model_dump(), status, headers=headers, media_type=MEDIA_TYPE)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what an operation's OpenAPI entry says of its errors."""
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Answer whatever an application raises with a problem document."""

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        if isinstance(error.__cause__, UnicodeDecodeError):  # FastAPI's, for JSON; what else is no JSON is its 422
            detail = "body: it is not UTF-8"
            return problem_response(422, detail, name="invalid-request", instance=_instance(request), errors=[detail])
        name = error.name if isinstance(error, HttpProblem) else ""
        return problem_response(
            error.status_code, error.detail, name=name, instance=_instance(request), headers=error.headers
        )

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        errors = [f"{'.'.join(map(str, one['loc'][1:])) or one['loc'][0]}: {one['msg']}" for one in error.errors()]
        return problem_response(
            422, "; ".join(errors), name="invalid-request", instance=_instance(request), errors=errors
        )

    async def on_failure(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s failed", _instance(request), exc_info=error)
        return problem_response(500, "the server's log says more", instance=_instance(request))

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_failure)


def _instance(request: Request) -> str:
    return f"urn:uuid:{request.scope['composir.request_id']}"
