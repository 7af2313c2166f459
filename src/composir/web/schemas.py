"""The documents that the operations answer with."""

from __future__ import annotations

from pydantic import BaseModel


class Result(BaseModel):
    """An image that was found."""

    rank: int
    """From 1."""
    id: str
    path: str
    """Relative to the folder that was indexed, with forward slashes."""
    score: float
    seen: str | None
    """In words what the model sees in it; null where it has no words for it."""


class Scale(BaseModel):
    """What scores of a query of this kind mean: how well the best picture fits things that are named at random."""

    may_fit: float
    """What the best picture for three of four such things stays below."""
    fits_well: float
    """What it stays below for nineteen of twenty."""


class Found(BaseModel):
    """The answer to a search."""

    results: list[Result]
    """Best first."""
    reference: str | None
    """The id of the reference, where it is in the index (an uploaded file is known by its content)."""
    reading: str | None
    """How the sentence was read; null where there was none, or the network reads it as a whole."""
    warnings: list[str]
    """A line for each sentence of which the model reads little, such as one in a script that it does not know."""
    scale: Scale | None
    """Null for what was not measured: a picture alone, weights, marks, a path; and till the server has measured it."""
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


class Example(BaseModel):
    """A search to begin with."""

    image_id: str
    text: str
    """Empty where the picture alone is to be asked by."""


class Examples(BaseModel):
    """Searches to begin with, made of the gallery."""

    examples: list[Example]


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


class Recorded(BaseModel):
    """That a choice is in the file."""

    new: bool
    """False where it was there already: it is kept once."""


class Health(BaseModel):
    """That the server answers."""

    status: str
    num_images: int
    model: str
    """The model's name, and what it was trained for."""
    heat: bool
    """Whether the model shows where it looks."""
    suffixes: list[str]
    """Of the files that can be pictures."""
    records: bool
    """Whether ``/api/meant`` is there: what people meant is kept in a file of the server."""
