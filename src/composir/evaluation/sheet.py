"""The contact sheet: queries beside pictures of what was retrieved for them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from composir.data.images import ImageSource, read_image
from composir.errors import ComposirError
from composir.evaluation.ranking import PADDING, Ranking, describe
from composir.files import replacing
from composir.style import colours, fitted, font, wrapped

NUM_SHOWN = 10
"""Retrieved images in a row of a contact sheet."""

HIT_COLOUR, MISS_COLOUR = colours()["right"], colours()["wrong"]

# Lengths in pixels.
MARGIN = 32
THUMBNAIL = 160
GAP = 14
FRAME_WIDTH = 6
SENTENCE_WIDTH = 230
CAPTION_HEIGHT = 26
ROW_GAP = 26
HEADING_HEIGHT = 40

_TEXT_COLOUR, _FAINT_COLOUR, _LINE_COLOUR = (colours()[name] for name in ("text", "faint", "line"))
_HEADING_SIZE = 15
_SENTENCE_SIZE = 17
_CAPTION_SIZE = 14
_LINE_SPACING = 1.3
_DASH = 14


@dataclass(frozen=True, slots=True)
class Cell:
    """One retrieved image of a picture row."""

    path: ImageSource
    caption: str
    """Stands under the image, such as ``1  ·  0.731``."""
    colour: str = ""
    """Of the frame and the caption, as Pillow names colours; empty for no frame."""
    apart: bool = False
    """Whether it stands apart from the images before it, in a dashed frame: shown, but not retrieved."""


@dataclass(frozen=True, slots=True)
class Row:
    """A query and what was retrieved for it."""

    reference: ImageSource | None
    """None where there is only a sentence."""
    sentence: str
    cells: tuple[Cell, ...]
    note: str = ""
    """Stands under the reference, such as the query's id."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A gallery image as it is shown for a query."""

    name: str
    caption: str
    """Its rank and score, such as ``1  ·  0.731``, or ``target at 1,204``."""
    is_target: bool = False
    """Whether it is a right answer."""
    apart: bool = False
    """Whether it is the target, shown although it was not retrieved."""


def contact_sheet(
    rankings: Sequence[Ranking],
    path: Path,
    *,
    num_queries: int = 8,
    seed: int = 0,
    query_ids: Sequence[str] | None = None,
) -> None:
    """Write a PNG with one query a row: the reference, the sentence and the best ten.

    The target is framed in green; where it is not among the ten it stands at the end in a dashed red frame
    with its rank. The queries are those of ``query_ids``, in that order (an id that is in several categories
    gives a row for each), else ``num_queries`` drawn with ``seed`` from all rankings.
    """
    if query_ids is None:
        places = [(ranking, row) for ranking in rankings for row in range(len(ranking.split.queries))]
        drawn = random.Random(seed).sample(range(len(places)), min(num_queries, len(places)))
        chosen = [places[place] for place in sorted(drawn)]
    else:
        chosen = _find_queries(rankings, query_ids)
    grid([_query_row(ranking, row) for ranking, row in chosen], path)


def retrieved(ranking: Ranking, row: int) -> list[Retrieved]:
    """Return the best ten images of a query, and last its target where it is not one of them."""
    split = ranking.split
    query = split.queries[row]
    best = zip(ranking.top[row, :NUM_SHOWN], ranking.scores[row, :NUM_SHOWN], strict=True)
    images = [
        Retrieved(split.gallery[place], _numbered(f"{rank}", score), is_target=split.gallery[place] in query.targets)
        for rank, (place, score) in enumerate(best, start=1)
        if place != PADDING
    ]
    if query.targets and query.targets[0] not in [image.name for image in images]:
        images.append(_missed_target(ranking, row))
    return images


def grid(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG of ``rows``, each the reference, the sentence and the retrieved images."""
    if not rows:
        raise ComposirError("there is no row to draw", file=path, expected="at least one query")
    height = _row_top(len(rows)) - ROW_GAP + MARGIN
    width = max(_cell_left(row, len(row.cells)) - GAP for row in rows) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    headings = {MARGIN: "reference", _sentence_left(): "sentence", _cells_left(): "retrieved, best first"}
    for left, heading in headings.items():
        draw.text((left, MARGIN - 6), heading, fill=_FAINT_COLOUR, font=font(_HEADING_SIZE))
    for place, row in enumerate(rows):
        _draw_row(sheet, draw, row, _row_top(place))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _query_row(ranking: Ranking, row: int) -> Row:
    split = ranking.split
    query = split.queries[row]
    cells = [
        Cell(
            split.images[image.name],
            image.caption,
            colour=MISS_COLOUR if image.apart else HIT_COLOUR if image.is_target else "",
            apart=image.apart,
        )
        for image in retrieved(ranking, row)
    ]
    number = f" · 1 of {len(query.references)} pictures" if query.further_references else ""
    note = f"{split.category} {query.id}{number}".strip()
    return Row(split.images[query.reference], query.text, tuple(cells), note=note)


def _missed_target(ranking: Ranking, row: int) -> Retrieved:
    """Return the target that is not among the images shown."""
    rank, query = ranking.target_ranks[row], ranking.split.queries[row]
    if ranking.split.exclude_reference and query.targets[0] == query.reference:
        caption = "the target is the reference"
    elif not rank:
        caption = f"target below {ranking.top.shape[1]}"
    elif rank > ranking.top.shape[1]:
        caption = f"target at {rank:,}"
    else:
        caption = _numbered(f"target at {rank}", ranking.scores[row, rank - 1])
    return Retrieved(query.targets[0], caption, is_target=True, apart=True)


def _numbered(number: str, score: float) -> str:
    return number if math.isnan(score) else f"{number}  ·  {score:.3f}"


def _find_queries(rankings: Sequence[Ranking], query_ids: Sequence[str]) -> list[tuple[Ranking, int]]:
    """Return where each id is; the same id may be in several categories."""
    found: dict[str, list[tuple[Ranking, int]]] = {}
    for ranking in rankings:
        for row, query in enumerate(ranking.split.queries):
            found.setdefault(query.id, []).append((ranking, row))
    unknown = [query_id for query_id in query_ids if query_id not in found]
    if unknown:
        raise ComposirError(
            f"no query {', '.join(map(repr, unknown))}",
            file=", ".join(describe(ranking.split) for ranking in rankings),
            expected=f"one of {len(found)} ids such as {next(iter(found))!r}",
        )
    return [place for query_id in query_ids for place in found[query_id]]


def _row_top(place: int) -> int:
    return MARGIN + HEADING_HEIGHT + place * (THUMBNAIL + CAPTION_HEIGHT + ROW_GAP)


def _sentence_left() -> int:
    return MARGIN + THUMBNAIL + GAP


def _cells_left() -> int:
    return _sentence_left() + SENTENCE_WIDTH + GAP


def _cell_left(row: Row, place: int) -> int:
    """Return the x of a cell's thumbnail; a cell that stands apart has a wider gap before it."""
    num_apart = sum(cell.apart for cell in row.cells[: place + 1])
    return _cells_left() + place * (THUMBNAIL + GAP) + num_apart * 2 * GAP


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, top: int) -> None:
    if row.reference is not None:
        _paste(sheet, draw, row.reference, (MARGIN, top))
    caption_top = top + THUMBNAIL + FRAME_WIDTH
    caption_font = font(_CAPTION_SIZE)
    note = fitted(row.note, caption_font, THUMBNAIL)
    draw.text((MARGIN, caption_top), note, fill=_FAINT_COLOUR, font=caption_font)
    sentence_font = font(_SENTENCE_SIZE)
    num_lines = int(THUMBNAIL // (_SENTENCE_SIZE * _LINE_SPACING))
    for number, line in enumerate(wrapped(row.sentence, sentence_font, SENTENCE_WIDTH, num_lines)):
        line_top = top + number * _SENTENCE_SIZE * _LINE_SPACING
        draw.text((_sentence_left(), line_top), line, fill=_TEXT_COLOUR, font=sentence_font)
    for place, cell in enumerate(row.cells):
        left = _cell_left(row, place)
        _paste(sheet, draw, cell.path, (left, top))
        if cell.colour:
            _draw_frame(draw, (left, top), cell.colour, dashed=cell.apart)
        caption = fitted(cell.caption, caption_font, THUMBNAIL)
        draw.text((left, caption_top), caption, fill=cell.colour or _FAINT_COLOUR, font=caption_font)


def _paste(sheet: Image.Image, draw: ImageDraw.ImageDraw, path: ImageSource, corner: tuple[int, int]) -> None:
    """Draw the image at its own aspect in the middle of a hairline square."""
    left, top = corner
    inner = THUMBNAIL - 2 * FRAME_WIDTH
    thumbnail = ImageOps.contain(read_image(path, side=2 * inner, notes=[]), (inner, inner), Image.Resampling.LANCZOS)
    x = left + (THUMBNAIL - thumbnail.width) // 2
    y = top + (THUMBNAIL - thumbnail.height) // 2
    draw.rectangle((left, top, left + THUMBNAIL - 1, top + THUMBNAIL - 1), outline=_LINE_COLOUR)
    sheet.paste(thumbnail, (x, y))


def _draw_frame(draw: ImageDraw.ImageDraw, corner: tuple[int, int], colour: str, *, dashed: bool) -> None:
    """Draw a frame just inside the thumbnail's square."""
    left, top = corner
    right, bottom = left + THUMBNAIL - 1, top + THUMBNAIL - 1
    draw.rectangle((left, top, right, bottom), outline=colour, width=FRAME_WIDTH)
    if dashed:
        for start in range(_DASH, THUMBNAIL - _DASH, 2 * _DASH):
            stop = start + _DASH - 1
            draw.rectangle((left + start, top, left + stop, top + FRAME_WIDTH - 1), fill="white")
            draw.rectangle((left + start, bottom - FRAME_WIDTH + 1, left + stop, bottom), fill="white")
            draw.rectangle((left, top + start, left + FRAME_WIDTH - 1, top + stop), fill="white")
            draw.rectangle((right - FRAME_WIDTH + 1, top + start, right, top + stop), fill="white")
