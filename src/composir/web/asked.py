"""What a search asks for: the same fields as a form and as JSON, and a plain word for what is neither."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData, UploadFile

from composir.errors import ComposirError, nearest
from composir.search import Sentence
from composir.web.limits import (
    MAX_MARKS,
    MAX_PATTERN,
    MAX_SENTENCE,
    MAX_SENTENCES,
    MAX_SHOWN,
    MAX_TEXT,
    MAX_TOP_K,
)
from composir.web.problems import HttpProblem

FORM, SHORT_FORM, JSON = "multipart/form-data", "application/x-www-form-urlencoded", "application/json"
MAX_FIELDS = 160
"""Of a form, each item of a list being one."""
MAX_WRONG = 16
"""Fields that are named in an answer."""
MAX_FIELD_BYTES = 16 * 1024
MAX_JSON_BYTES = 64 * 1024
"""Half as much again as the longest fields need with every character written as an escape."""
MAX_NAMED = 60
"""Characters of a wrong name or type that are repeated."""
PICTURE = {"type": "string", "contentMediaType": "application/octet-stream"}
PICTURE_HINT = "The reference, a picture file."
ID = "^[0-9a-f]{32}$"


def _check_weight(written: str) -> str:
    try:
        Sentence.parse(written)
    except ComposirError as error:
        raise ValueError(str(error)) from None
    return written


def _check_not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text


Id = Annotated[str, Field(pattern=ID)]
Weighted = Annotated[str, Field(max_length=MAX_SENTENCE), AfterValidator(_check_weight)]


class HeatFields(BaseModel):
    """The fields of ``/api/heat``, beside the file ``image``."""

    model_config = ConfigDict(extra="forbid")

    image_id: Annotated[str | None, Field(pattern=ID, description="The reference, an image of the index.")] = None
    text: Annotated[
        str, Field(max_length=MAX_TEXT, description="What should differ; without a picture, what to find.")
    ] = ""


class SearchFields(HeatFields):
    """The fields of ``/api/search``, beside the file ``image``."""

    negative_text: Annotated[str, Field(max_length=MAX_TEXT, description="What there should be less of.")] = ""
    top_k: Annotated[int, Field(ge=1, le=MAX_TOP_K, description="How many images are wanted.")] = 10
    where: Annotated[
        str | None, Field(max_length=MAX_PATTERN, description="Pattern for the path, such as `holidays/*`.")
    ] = None
    keep_reference: Annotated[bool, Field(description="Whether the reference may be an answer.")] = False
    image_ids: Annotated[
        list[Id], Field(max_length=MAX_SENTENCES, description="Further references, images of the index.")
    ] = []
    texts: Annotated[
        list[Weighted],
        Field(
            max_length=MAX_SENTENCES,
            description="Further sentences; one that ends in `:NUMBER` (0 to 10) has that weight. Of several "
            "references and several sentences, `text` first, each has its own.",
        ),
    ] = []
    without: Annotated[
        list[Weighted], Field(max_length=MAX_SENTENCES, description="What there should be less of, likewise.")
    ] = []
    image_weight: Annotated[
        float, Field(ge=0, le=1, description="0: the sentence alone, 1: the picture alone, 0.5: as the model composes.")
    ] = 0.5
    min_score: Annotated[float | None, Field(allow_inf_nan=False, description="What scores less is left out.")] = None
    more: Annotated[list[Id], Field(max_length=MAX_MARKS, description="Images of the index to be more like.")] = []
    less: Annotated[list[Id], Field(max_length=MAX_MARKS, description="Images of the index to be less like.")] = []


class MeantFields(BaseModel):
    """The JSON of ``/api/meant``: a search by a picture of the index and a sentence, and which answer was meant."""

    model_config = ConfigDict(extra="forbid")

    image_id: Annotated[str, Field(pattern=ID, description="The reference, an image of the index.")]
    text: Annotated[
        str,
        Field(min_length=1, max_length=MAX_TEXT, description="The sentence of the search."),
        AfterValidator(_check_not_blank),
    ]
    target: Annotated[str, Field(pattern=ID, description="What was meant, an image of the index.")]
    shown: Annotated[
        list[Id], Field(max_length=MAX_SHOWN, description="All that the search has shown, and that was not meant.")
    ] = []


Fields = TypeVar("Fields", bound=HeatFields)


@dataclass(frozen=True, slots=True)
class Asked(Generic[Fields]):
    """A request's fields, and the file that came with them."""

    fields: Fields
    image: UploadFile | None = None


def reader(kind: type[Fields]) -> Callable[[Request], AsyncIterator[Asked[Fields]]]:
    """Return the dependency that reads a request's body: a form of either kind, or JSON without a file.

    Raises ``RequestValidationError`` with all fields that are wrong or unknown, and ``HttpProblem``: 415 for a body of
    another kind, 413 for JSON that is too long, 400 for a form that cannot be read.
    """

    async def read(request: Request) -> AsyncIterator[Asked[Fields]]:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type == JSON:
            yield Asked(_of_json(kind, await _short_body(request)))
        elif media_type in (FORM, SHORT_FORM):
            try:
                form = await request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES)
            except ValueError:  # what the parser says of a text encoding that is none
                raise HttpProblem(400, "malformed", "the form cannot be read") from None
            try:
                yield _of_form(kind, form)
            finally:
                await form.close()
        else:
            # Read to its end, since many clients look at the answer only then; nothing of it is kept.
            num_bytes = sum([len(chunk) async for chunk in request.stream()])
            if media_type or num_bytes:
                raise _unsupported(kind, media_type)
            yield Asked(kind())

    return read


def no_parameters_but(*known: str) -> Any:
    """Return the dependency that refuses what an address asks for and nobody reads, naming the nearest that is."""

    def why(name: str) -> str:
        if not known:
            return "stands in the address; send it in the body"
        return f"is no parameter of this address; {nearest(name, known)}"

    async def check(request: Request) -> None:
        unknown = [name[:MAX_NAMED] for name in request.query_params if name not in known][:MAX_WRONG]
        if unknown:
            raise RequestValidationError([{"loc": ("query", name), "msg": why(name)} for name in unknown])

    return Depends(check)


def described(kind: type[HeatFields]) -> dict[str, Any]:
    """Return what an operation's OpenAPI entry says of its body."""
    schema = kind.model_json_schema()
    # A form has no null: a field that is left out or empty is not given.
    plain = {
        name: {**next(iter(one.get("anyOf", [{}]))), **{key: value for key, value in one.items() if key != "anyOf"}}
        for name, one in schema["properties"].items()
    }
    for one in plain.values():
        if one.get("default", "") is None:
            del one["default"]
    short = {**schema, "properties": plain}
    form = {**schema, "properties": {"image": {**PICTURE, "title": "Image", "description": PICTURE_HINT}, **plain}}
    content = {FORM: {"schema": form}, SHORT_FORM: {"schema": short}, JSON: {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


async def _short_body(request: Request) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_JSON_BYTES:
            limit = f"{MAX_JSON_BYTES // 1024} KiB"
            raise HttpProblem(413, "too-large", f"the JSON is longer than {limit}; a picture's file goes into a form")
    return bytes(content)


def _of_json(kind: type[Fields], content: bytes) -> Fields:
    try:
        return kind.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise RequestValidationError(_told(error, kind, file=f"JSON takes no file: send it as {FORM}")) from None


def _of_form(kind: type[Fields], form: FormData) -> Asked[Fields]:
    given: dict[str, Any] = {}
    lists = {name for name, one in kind.model_fields.items() if isinstance(one.default, list)}
    image = None
    wrong = []

    def refuse(name: str, why: str) -> None:
        wrong.append({"loc": ("body", name[:MAX_NAMED]), "msg": why})

    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "image":
                refuse(name, "is a file; a picture's is called image, all else is text")
            elif value.filename or value.size:  # a browser sends a nameless empty file where none was chosen
                image = value
        elif name in lists:
            given.setdefault(name, []).extend([value] if value else [])
        elif name in given:
            refuse(name, "is given more than once")
        elif value or name not in _names(kind):  # a browser sends what was left empty as well
            given[name] = value
    try:
        fields = kind.model_validate(given)
    except ValidationError as error:
        wrong += _told(error, kind, file="is no file; send its content, as curl -F image=@FILE does")
    else:
        if not wrong:
            return Asked(fields, image)
    raise RequestValidationError(wrong)


def _told(error: ValidationError, kind: type[HeatFields], *, file: str) -> list[dict[str, Any]]:
    """Return what is wrong, field by field; ``file`` is what to say of an ``image`` that is none."""
    told = []
    for one in error.errors(include_url=False, include_context=False, include_input=False)[:MAX_WRONG]:
        place = tuple(str(part)[:MAX_NAMED] for part in one["loc"])
        message = one["msg"]
        if one["type"] == "extra_forbidden":
            message = file if place == ("image",) else f"is no field of this request; {nearest(place[0], _names(kind))}"
        told.append({"loc": ("body", *place), "msg": message})
    return told


def _names(kind: type[HeatFields]) -> Collection[str]:
    return ("image", *kind.model_fields)


def _unsupported(kind: type[HeatFields], media_type: str) -> HttpProblem:
    body = f"of type {media_type[:MAX_NAMED]!r}" if media_type else "of a type that is not said"
    fields = ", ".join(kind.model_fields)
    return HttpProblem(
        415,
        "no-form",
        f"the body is {body}; send a form ({FORM}) with the fields image (a picture's file), {fields}, "
        f"or {JSON} with the same fields but image",
    )
