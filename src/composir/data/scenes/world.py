"""What there is in a scene, and what an edit, a mention and a sentence say of it: symbols, nothing drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace

RGB_BY_COLOUR = {
    "red": (217, 38, 38),
    "green": (38, 145, 60),
    "blue": (40, 84, 214),
    "yellow": (245, 200, 25),
    "purple": (146, 60, 176),
    "black": (28, 28, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "cross")
RADIUS_BY_SIZE = {"small": 11, "large": 20}
RGB_BY_BACKGROUND = {
    "white": (255, 255, 255),
    "grey": (222, 222, 222),
    "cream": (250, 238, 212),
    "sky": (218, 234, 248),
}
PLACES = (
    ("top left", "top middle", "top right"),
    ("middle left", "centre", "middle right"),
    ("bottom left", "bottom middle", "bottom right"),
)
PLACE_BY_CELL = tuple(place for row in PLACES for place in row)
CELLS_BY_AREA = {
    "top row": (0, 1, 2),
    "bottom row": (6, 7, 8),
    "left column": (0, 3, 6),
    "right column": (2, 5, 8),
}

PAIRS = tuple((colour, shape) for colour in RGB_BY_COLOUR for shape in SHAPES)
HELD_OUT_PAIRS = tuple(zip(RGB_BY_COLOUR, SHAPES, strict=False))
"""Colour and shape that appear together in val and test1 only, one pair a shape."""


@dataclass(frozen=True, slots=True)
class Object:
    """One coloured shape."""

    colour: str
    shape: str
    size: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows: a background and, for each of the nine cells row by row, an object or nothing."""

    background: str
    cells: tuple[Object | None, ...]

    def put(self, cell: int, thing: Object | None) -> Scene:
        """Return the scene with ``thing`` (or nothing) in ``cell``."""
        return replace(self, cells=(*self.cells[:cell], thing, *self.cells[cell + 1 :]))

    def taken(self) -> list[int]:
        """Return the cells that hold an object."""
        return [cell for cell, thing in enumerate(self.cells) if thing is not None]

    def free(self) -> list[int]:
        """Return the cells that hold nothing."""
        return [cell for cell, thing in enumerate(self.cells) if thing is None]


@dataclass(frozen=True, slots=True)
class Edit:
    """One change to a scene: ``kind``, the cell it starts from and the cell and object it ends with."""

    kind: str
    """``recolour``, ``reshape``, ``resize``, ``move``, ``remove`` or ``add``."""
    source: int
    """The cell of the object that changes; for ``add`` the same as ``cell``."""
    cell: int
    thing: Object | None
    """What is in ``cell`` afterwards."""

    def apply(self, scene: Scene) -> Scene:
        """Return the scene after the edit."""
        return scene.put(self.source, None).put(self.cell, self.thing)


@dataclass(frozen=True, slots=True)
class Mention:
    """The words that pick out an object: what is None is not said."""

    colour: str | None = None
    shape: str | None = None
    size: str | None = None
    cells: tuple[int, ...] | None = None

    def find(self, scene: Scene) -> list[int]:
        """Return the cells whose object fits the words."""
        return [
            cell
            for cell, thing in enumerate(scene.cells)
            if thing is not None
            and self.colour in (None, thing.colour)
            and self.shape in (None, thing.shape)
            and self.size in (None, thing.size)
            and (self.cells is None or cell in self.cells)
        ]


@dataclass(frozen=True, slots=True)
class Sentence:
    """A wording of an edit, and what can be concluded from it with and without the reference."""

    text: str
    meanings: tuple[Edit, ...]
    """Every edit of the reference that the words allow."""
    about: Mention
    """Without the reference, the words say only that the target holds such an object, ..."""
    present: bool
    """... or, where this is False, that it does not."""


@dataclass(frozen=True, slots=True)
class SceneQuery:
    """A query by number of scene in its split: from the base ``reference`` to its edit ``target``."""

    reference: int
    target: int
    sentence: Sentence
    members: tuple[int, ...]
    """The image set: reference, target and four others, in the order that is written."""


@dataclass(frozen=True, slots=True)
class SceneSplit:
    """The scenes of one split, in the order of its gallery, and its queries."""

    name: str
    scenes: tuple[Scene, ...]
    queries: tuple[SceneQuery, ...]
