"""The picture: for every sentence a row of one size, with maps on the reference and what was retrieved beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from composir.data.images import read_image
from composir.errors import ComposirError
from composir.files import replacing
from composir.heat import HEAT_SIDE, heat
from composir.style import colours, fitted, font, wrapped
from composir.visualize.answers import Answer, Hit, in_words
from composir.visualize.heads import GATE_TITLE, HeadAnswer
from composir.visualize.maps import Map, limits_by_map

# Lengths in pixels, letters among them: to be read at half the size.
MARGIN, GAP = 40, 32
PANEL = 360
"""Side of the square that holds the reference or a map."""
THUMBNAIL, THUMBNAIL_GAP, NUM_HITS = 140, 12, 5
FRAME = 5
HEADING, SENTENCE, TITLE, WORDS = 34, 30, 22, 20
LINE_SPACING = 1.3
BAR = 12
OUTLINE = 0.5
"""How strong the picture's outlines are on a map."""
MAX_SENTENCE_LINES, NUM_WORD_LINES = 3, 3
CELL_GAP, ROW_GAP = 16, 34

Box = tuple[float, float, float, float]


class Sheet:
    """A white sheet with rows of one height, each a sentence over cells of one size and retrieved pictures."""

    def __init__(
        self, title: str, note: str, sentences: Sequence[str], *, num_cells: int, num_further: int = 0, num_ways: int
    ) -> None:
        """Make the sheet with its headings; ``num_further`` cells stand below the first ones and what was found."""
        self.num_cells = num_cells
        self.cells_right = MARGIN + num_cells * (PANEL + GAP)
        hits_width = NUM_HITS * (THUMBNAIL + THUMBNAIL_GAP) - THUMBNAIL_GAP + GAP
        width = self.cells_right - GAP + (GAP + hits_width if num_ways else 0) + MARGIN
        self.further_columns = (width - 2 * MARGIN + GAP) // (PANEL + GAP)
        lines_by_row = [
            wrapped(f"“{text}”", font(SENTENCE, bold=True), width - 2 * MARGIN, MAX_SENTENCE_LINES)
            for text in sentences
        ]
        self.first_cell = max(map(len, lines_by_row)) * _height(SENTENCE) + 14
        self.cell_height = _height(TITLE) + 6 + PANEL + 3 * BAR + (1 + NUM_WORD_LINES) * _height(WORDS) + CELL_GAP
        num_lines = 1 + -(-num_further // self.further_columns)
        self.row_height = ROW_GAP + self.first_cell + num_lines * self.cell_height
        self.top = MARGIN + _height(HEADING) + _height(WORDS)
        self.image = Image.new("RGB", (width, self.top + len(sentences) * self.row_height), colours()["page"])
        self.draw = ImageDraw.Draw(self.image)
        self.write((MARGIN, MARGIN), title, HEADING, width=width - 2 * MARGIN, bold=True)
        self.write((MARGIN, MARGIN + _height(HEADING)), note, WORDS, width=width - 2 * MARGIN, colour="faint")
        for row, lines in enumerate(lines_by_row):
            top = self.top + row * self.row_height
            self.draw.line((MARGIN, top + ROW_GAP // 2, width - MARGIN, top + ROW_GAP // 2), colours()["line"], 2)
            for number, line in enumerate(lines):
                at = (MARGIN, top + ROW_GAP + number * _height(SENTENCE))
                self.write(at, line, SENTENCE, width=width - 2 * MARGIN, bold=True)

    def corner(self, row: int, cell: int) -> tuple[int, int]:
        """Return the left and the top of a cell, counted line by line."""
        line, column = 0, cell
        if cell >= self.num_cells:
            line, column = divmod(cell - self.num_cells, self.further_columns)
            line += 1
        top = self.top + row * self.row_height + ROW_GAP + self.first_cell + line * self.cell_height
        return MARGIN + column * (PANEL + GAP), top

    def panel(self, row: int, cell: int) -> tuple[int, int]:
        """Return the left and the top of a cell's square."""
        left, top = self.corner(row, cell)
        return left, top + _height(TITLE) + 6

    def write(
        self, at: tuple[int, int], text: str, size: int, *, width: int, colour: str = "text", bold: bool = False
    ) -> None:
        """Write one line, cut where it is wider than ``width``."""
        letters = font(size, bold=bold)
        self.draw.text(at, fitted(text, letters, width), fill=colours()[colour], font=letters)

    def title(self, row: int, cell: int, text: str) -> None:
        """Write a cell's title."""
        self.write(self.corner(row, cell), text, TITLE, width=PANEL, bold=True)

    def paragraph(self, at: tuple[int, int], text: str, *, width: int) -> None:
        """Write plain words in a few lines."""
        left, top = at
        for number, line in enumerate(wrapped(text, font(WORDS), width, NUM_WORD_LINES)):
            self.write((left, top + number * _height(WORDS)), line, WORDS, width=width, colour="faint")

    def words(self, row: int, cell: int, text: str) -> None:
        """Write plain words below a cell's square and its bar."""
        left, top = self.panel(row, cell)
        self.paragraph((left, top + PANEL + 3 * BAR + _height(WORDS)), text, width=PANEL)

    def bar(
        self, row: int, cell: int, ends: tuple[str, str, str], table: Float64[np.ndarray, "256 3"] | None = None
    ) -> None:
        """Draw the colours of a map below its square, and what the first stands for, the unit, and the last."""
        left, top = self.panel(row, cell)
        top += PANEL + BAR
        if table is not None:
            strip = Image.fromarray(np.round(255 * table).astype(np.uint8)[None])
            self.image.paste(strip.resize((PANEL, BAR)), (left, top))
        for share, text in zip((0, 0.5, 1), ends, strict=True):
            at = left + round(share * (PANEL - font(WORDS).getlength(text)))
            self.write((at, top + BAR + 4), text, WORDS, width=PANEL, colour="faint")

    def hits(self, row: int, rankings: Mapping[str, tuple[Hit, ...]]) -> None:
        """Draw the best pictures of each way to rank, one way under the other, and words below."""
        top = self.corner(row, 0)[1]
        for number, (way, hits) in enumerate(rankings.items()):
            at = top + number * (_height(TITLE) + THUMBNAIL + _height(WORDS) + 24)
            self.write((self.cells_right, at), f"found {way}", TITLE, width=5 * THUMBNAIL, bold=True)
            for place, hit in enumerate(hits[:NUM_HITS]):
                left = self.cells_right + place * (THUMBNAIL + THUMBNAIL_GAP)
                self._hit((left, at + _height(TITLE) + 6), f"{place + 1}  ·  {hit.score:.3f}", hit)
        at = self.cells_right, self.panel(row, 0)[1] + PANEL + 3 * BAR + _height(WORDS)
        if rankings:
            self.paragraph(at, in_words(rankings, NUM_HITS), width=self.image.width - self.cells_right - MARGIN)

    def _hit(self, at: tuple[int, int], caption: str, hit: Hit) -> None:
        left, top = at
        inner = THUMBNAIL - 2 * FRAME
        picture = ImageOps.contain(read_image(hit.source), (inner, inner), Image.Resampling.LANCZOS)
        corner = left + (THUMBNAIL - picture.width) // 2, top + (THUMBNAIL - picture.height) // 2
        self.image.paste(picture, corner)
        edge = (left, top, left + THUMBNAIL - 1, top + THUMBNAIL - 1)
        colour, width = ("right", FRAME) if hit.is_target else ("line", 1)
        self.draw.rectangle(edge, outline=colours()[colour], width=width)
        under = (left, top + THUMBNAIL + 2)
        self.write(under, caption, WORDS, width=THUMBNAIL, colour="right" if hit.is_target else "faint")

    def save(self, out: Path) -> None:
        """Write the PNG; raise ``ComposirError`` where the disk does not take it."""
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(out) as temporary:
                self.image.save(temporary, format="PNG")
        except OSError as error:
            raise cannot_be_written(out, error) from error


def draw(image: Path, answers: Sequence[Answer], out: Path, *, every_map: bool = False) -> None:
    """Write a PNG: for every sentence the reference, the two maps that say most, and what was retrieved.

    With ``every_map`` the other maps stand below them. Each map has one scale for all sentences.
    """
    picture = read_image(image)
    limits = {one: held for one, held in limits_by_map([one.trace for one in answers]).items() if one.main or every_map}
    sheet = Sheet(
        f"What the model looks at in {image.name}",
        "Every map has one scale for all sentences.",
        [one.text for one in answers],
        num_cells=1 + sum(one.main for one in limits),
        num_further=sum(not one.main for one in limits),
        num_ways=len(answers[0].rankings),
    )
    for row, one in enumerate(answers):
        sheet.title(row, 0, "the picture")
        sheet.image.paste(*_framed(sheet, row, 0, picture, one.trace.box))
        for cell, (kind, bounds) in enumerate(limits.items(), 1):
            values = kind.values(one.trace)
            if values is None:
                continue
            under, box = picture, one.trace.box
            if kind.of_target:
                assert one.target is not None
                assert one.trace.target_box is not None
                under, box = read_image(one.target), one.trace.target_box
            sheet.title(row, cell, kind.title)
            sheet.image.paste(*_framed(sheet, row, cell, _pale(under), box, values=values, kind=kind, limits=bounds))
            low, high = map(kind.told, bounds)
            sheet.bar(row, cell, (low, kind.unit, high), kind.table)
            sheet.words(row, cell, kind.meaning)
        sheet.hits(row, one.rankings)
    sheet.save(out)


def draw_head(image: Path, answers: Sequence[HeadAnswer], out: Path) -> None:
    """Write a PNG: for every sentence how far the head's gate is open, what is told in numbers, what was retrieved."""
    picture = read_image(image)
    has_gate = answers[0].channels is not None
    sheet = Sheet(
        f"What the head makes of {image.name}",
        "A head reads one vector of the picture, so there are no patches to draw.",
        [one.text for one in answers],
        num_cells=2 + has_gate,
        num_ways=len(answers[0].rankings),
    )
    most = max((one.channels.max() for one in answers if one.channels is not None), default=0)
    for row, one in enumerate(answers):
        sheet.title(row, 0, "the picture")
        sheet.image.paste(*_framed(sheet, row, 0, picture, (0, 0, *picture.size)))
        if one.channels is not None:
            sheet.title(row, 1, "what the gate opens")
            _draw_channels(sheet, row, 0.96 * one.channels / most)
            sheet.bar(row, 1, ("0, shut", "", "1, open"))
            sheet.words(row, 1, f"The {one.channels.sum()} {GATE_TITLE}.")
        sheet.title(row, 1 + has_gate, "what the head does")
        left, top = sheet.panel(row, 1 + has_gate)
        for number, (name, value) in enumerate(one.figures().items()):
            at = top + number * (_height(SENTENCE) + 2 * _height(WORDS) + 10)
            sheet.write((left, at), value, SENTENCE, width=PANEL, bold=True)
            sheet.paragraph((left, at + _height(SENTENCE)), name, width=PANEL)
        sheet.hits(row, one.rankings)
    sheet.save(out)


def _height(size: int) -> int:
    """Return the pixels from one line of letters to the next."""
    return round(size * LINE_SPACING)


def _framed(
    sheet: Sheet,
    row: int,
    cell: int,
    picture: Image.Image,
    box: Box,
    *,
    values: Float32[np.ndarray, "rows columns"] | None = None,
    kind: Map | None = None,
    limits: tuple[float, float] = (0, 1),
) -> tuple[Image.Image, tuple[int, int]]:
    """Return a cell's square with the picture, and values over it on ``box``, and where the square goes.

    ``box`` is what the patches share, in pixels of the picture. Beyond it lies what the model does not see, without
    colour; padding, which it does see, is dark. All squares of one picture have it at the same place.
    """
    left, top, right, bottom = min(box[0], 0), min(box[1], 0), max(box[2], picture.width), max(box[3], picture.height)
    scale = PANEL / max(right - left, bottom - top)
    square = Image.new("RGB", (PANEL, PANEL), colours()["page"])
    shift_x, shift_y = (
        (PANEL - scale * (right - left)) / 2 - scale * left,
        (PANEL - scale * (bottom - top)) / 2 - scale * top,
    )

    def paste(one: Image.Image, edge: Box) -> None:
        x0, y0, x1, y1 = (
            round(scale * value + shift) for value, shift in zip(edge, (shift_x, shift_y) * 2, strict=True)
        )
        square.paste(one.resize((x1 - x0, y1 - y0), Image.Resampling.LANCZOS), (x0, y0))

    paste(picture, (0, 0, *picture.size))
    if values is not None and kind is not None:
        seen = picture.transform((HEAT_SIDE, HEAT_SIDE), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
        # Light outlines on dark colours, dark ones on colours that are light in the middle.
        coloured = heat(seen, values, limits, kind.table) + OUTLINE * (-1 if kind.diverging else 1) * _edges(seen)
        paste(Image.fromarray(np.round(255 * coloured.clip(0, 1)).astype(np.uint8)), box)
    return square, sheet.panel(row, cell)


def _edges(square: Image.Image) -> Float32[np.ndarray, "height width 1"]:
    """Return where a picture's brightness changes, 0 to 1: its outlines, which are seen on dark colours, too."""
    grey = np.asarray(ImageOps.grayscale(square).filter(ImageFilter.GaussianBlur(1)), dtype=np.float32) / 255
    down, across = np.gradient(grey)
    return np.minimum(8 * np.hypot(down, across), 1)[..., None]


def _pale(picture: Image.Image) -> Image.Image:
    """Return the picture in pale grey."""
    return ImageOps.grayscale(picture).point([160 + value * 3 // 8 for value in range(256)]).convert("RGB")


def _draw_channels(sheet: Sheet, row: int, shares: Float64[np.ndarray, " bins"]) -> None:
    """Draw the gate's histogram into its cell; 1 is as high as the square."""
    left, top = sheet.panel(row, 1)
    step = PANEL / len(shares)
    for place, share in enumerate(shares):
        edge = (left + place * step, top + PANEL * (1 - share), left + (place + 1) * step - 3, top + PANEL)
        if share:
            sheet.draw.rectangle(edge, fill=colours()["composed"])
    sheet.draw.line((left, top + PANEL, left + PANEL, top + PANEL), colours()["line"], 2)


def cannot_be_written(file: Path, error: OSError) -> ComposirError:
    """Return the error of a picture or page that the disk does not take."""
    return ComposirError(f"cannot be written ({error.strerror})", file=file, fix="name a file in a folder of your own")
