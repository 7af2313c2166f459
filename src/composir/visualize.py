"""What a model does with a picture and a sentence, drawn: heat maps on the patches, and what it retrieves."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from jinja2 import Environment, StrictUndefined
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from PIL import Image, ImageOps
from torch import Tensor

from composir.data import Query, Split
from composir.data.check import require_images
from composir.data.images import ImageSource, file_of, find_pictures, read_image
from composir.errors import ComposirError
from composir.evaluation import PADDING, rank_embeddings
from composir.features import CachedEmbedder, Progress, TokenCache, default_cache_dir, fill_splits
from composir.files import replacing, write_text
from composir.models.composer import Composer
from composir.models.trace import Trace, patches, without_fusions
from composir.plots import DIVERGING, HEAT_SIDE, SEQUENTIAL, heat

NUM_SHOWN = 8
"""Retrieved pictures in a row."""
IMAGES_PER_BATCH = 64
MAX_NUMBERED = 9
"""Rows of patches up to which every patch has its number written on it."""
PANEL = 2.5
"""Inches a map is wide."""
DPI = 110
HTML_PICTURE, HTML_THUMBNAIL = 448, 128
"""Pixels of the longer side in the page."""
TARGET_COLOUR, FAINT = "#0b6e99", "#57606a"


@dataclass(frozen=True)
class Map:
    """One kind of heat map: where its values are in a trace and how they are shown."""

    key: str
    title: str
    meaning: str
    scale: float = 1.0
    """Values are multiplied by it, to be numbers a person can read."""
    digits: int = 2
    diverging: bool = False
    """Whether zero is the middle of the colours."""
    of_target: bool = False
    min_span: float = 0.0
    """The colours span at least this much: what hardly differs looks even. 0: they start at zero."""

    def values(self, trace: Trace) -> Float32[np.ndarray, "rows columns"] | None:
        """Return the map's values by patch, scaled; None where the trace has none."""
        values = getattr(trace, self.key)
        return None if values is None else patches(values) * self.scale

    def limits(self, maps: Sequence[np.ndarray]) -> tuple[float, float]:
        """Return the values of the first and the last colour, the same for all of these maps."""
        low, high = (float(values) for values in (min(m.min() for m in maps), max(m.max() for m in maps)))
        if self.diverging:
            bound = max(abs(low), abs(high), 1e-9)
            return -bound, bound
        if not self.min_span:
            return 0.0, max(high, 1e-9)
        missing = max(self.min_span - (high - low), 0.0) / 2
        return low - missing, high + missing

    @property
    def colours(self) -> str:
        """The colour map, readable with any colour vision: from dark to light, or between two hues."""
        return DIVERGING if self.diverging else SEQUENTIAL


MAPS = (
    Map("influence", "influence", "how far the query moves when the patch is hidden, distance x 100", 100, 1),
    Map("attention", "attention", "share of the query tokens' attention, %", 100, 1),
    Map("gate", "gate", "how far the gate is open, 0 to 1, mean over channels", min_span=0.1),
    Map("text_attention", "sentence's attention", "where the sentence looks, %", 100, 1),
    Map("relative_change", "change", "size of what the fusion adds, % of the token", 100, 1),
    Map("fusion_influence", "influence of the change", "how far the query moves without it here, distance x 100", 100),
    Map(
        "reference_attribution",
        "worth to the score",
        "target's score falls when the patch is hidden, x 100",
        100,
        1,
        True,
    ),
    Map("target_attribution", "worth of the target's patches", "the same, in the target", 100, 1, True, of_target=True),
)
"""What is drawn, in this order, where the trace has it."""


@dataclass(frozen=True)
class Hit:
    """One retrieved picture."""

    name: str
    source: ImageSource
    score: float
    is_target: bool


@dataclass(frozen=True)
class Answer:
    """What a model made of the picture with one sentence."""

    text: str
    trace: Trace
    target: ImageSource | None
    """The picture whose score is attributed: the one given, else the known answer, else the first retrieved."""
    rankings: Mapping[str, tuple[Hit, ...]]
    """The best pictures by name of the row; empty without a gallery."""


def gallery_of_folder(folder: Path) -> Split:
    """Return a split without queries whose gallery is every picture below the folder; one without any is an error."""
    if not folder.is_dir():
        raise ComposirError("is not a folder", file=folder, fix="give a folder of pictures with --gallery")
    names = find_pictures(folder).names
    if not names:
        raise ComposirError("holds no picture", file=folder, fix="give a folder with .jpg, .png or other pictures")
    images = {name: folder / name for name in names}
    return Split("", "gallery", "", (), tuple(names), images, "folder", True, "as given", file=folder)


def gallery_of_splits(splits: Sequence[Split], image: Path) -> Split:
    """Return the split that the picture is from, else the only one; several and none of them fits is an error."""
    holding = [split for split in splits if _name_in(split, image)]
    if len(splits) > 1 and not holding:
        raise ComposirError(
            "is in none of the categories " + ", ".join(split.category for split in splits),
            file=image,
            fix="say which gallery is meant with --categories",
        )
    return (holding or splits)[0]


def answer(
    model: Composer,
    image: Path,
    texts: Sequence[str],
    *,
    gallery: Split | None = None,
    target: Path | None = None,
    cache_dir: Path | None = None,
    num_shown: int = NUM_SHOWN,
    progress: Progress | None = None,
) -> list[Answer]:
    """Return what the model makes of the picture with each sentence: its trace, and its ranking of the gallery.

    A model with a fusion ranks twice, as it is and with the fusion left out (the same weights). Where the gallery's
    split asks the very same question (picture and sentence), its targets are known and marked.
    """
    rankings: list[dict[str, tuple[Hit, ...]]] = [{} for _ in texts]
    known: list[tuple[str, ...]] = [() for _ in texts]
    if gallery is not None:
        split = _with_questions(gallery, image, texts)
        known = [query.targets for query in split.queries]
        rankings = _rank(model, image, split, cache_dir or default_cache_dir(), num_shown=num_shown, progress=progress)
    answers = []
    for text, ranked, targets in zip(texts, rankings, known, strict=True):
        source: ImageSource | None = target
        if source is None and gallery is not None:
            source = gallery.images[targets[0]] if targets else next(iter(ranked.values()))[0].source
        seen = model.trace(image, text, None if source is None else read_image(source))
        answers.append(Answer(text, seen, source, ranked))
    return answers


def _name_in(split: Split, image: Path) -> str:
    """Return the picture's name in the split, "" where it is none of its files."""
    path = image.resolve()
    return next((name for name, source in split.images.items() if file_of(source).resolve() == path), "")


def _with_questions(gallery: Split, image: Path, texts: Sequence[str]) -> Split:
    name = _name_in(gallery, image)
    targets = {query.text: query.targets for query in gallery.queries if query.reference == name}
    questions = tuple(
        Query(str(number), name, text, (text,), targets=targets.get(text, ())) for number, text in enumerate(texts)
    )
    return replace(gallery, queries=questions)


def _rank(
    model: Composer, image: Path, split: Split, cache_dir: Path, *, num_shown: int, progress: Progress | None
) -> list[dict[str, tuple[Hit, ...]]]:
    """Return the best pictures for each sentence by how they were ranked."""
    assert model.tower is not None  # the caller traces pictures with it
    require_images([split])
    tokens = TokenCache(model.tower, cache_dir)
    fill_splits(tokens, [split], progress)
    embedder = CachedEmbedder(model, tokens)
    paths = [split.images[name] for name in split.gallery]
    targets = torch.cat(
        [embedder.embed_gallery(paths[i : i + IMAGES_PER_BATCH]) for i in range(0, len(paths), IMAGES_PER_BATCH)]
    )
    texts = [query.text for query in split.queries]
    ways: dict[str, Callable[[Composer], Any]] = {"as trained": nullcontext}
    if model.config.fusion != "none":
        ways = {"with the fusion": nullcontext, "fusion left out": without_fusions}
    rankings: list[dict[str, tuple[Hit, ...]]] = [{} for _ in texts]
    for way, entering in ways.items():
        with entering(model), torch.inference_mode():
            queries: Tensor = model.embed_query([image] * len(texts), texts)
        ranking = rank_embeddings(queries, targets, split)
        for row, query in enumerate(split.queries):
            best = zip(ranking.top[row, :num_shown], ranking.scores[row, :num_shown], strict=True)
            rankings[row][way] = tuple(
                Hit(name, split.images[name], float(score), name in query.targets)
                for name, score in ((split.gallery[place], score) for place, score in best if place != PADDING)
            )
    return rankings


# -- the picture -------------------------------------------------------------------------------------------------------


def draw(image: Path, answers: Sequence[Answer], out: Path) -> None:
    """Write a PNG: a row of heat maps for every sentence, and under it what was retrieved.

    Each column has one scale for all sentences, so that they can be compared; its bar is below the last row.
    """
    picture = read_image(image)
    shown = _shown_maps(answers)
    num_columns = max(len(shown) + 1, 4)
    has_rankings = bool(answers[0].rankings)
    num_rankings = len(answers[0].rankings)
    heights = []
    for number in range(len(answers)):
        heights += [PANEL + (0.75 if number == len(answers) - 1 or has_rankings else 0.1) + 0.35]
        heights += [1.25 * num_rankings + 0.2] if has_rankings else []
    figure = Figure(figsize=(PANEL * num_columns, sum(heights)), layout="constrained", dpi=DPI)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    limits = {
        one.key: one.limits([values for a in answers if (values := one.values(a.trace)) is not None]) for one in shown
    }
    step = 2 if has_rankings else 1
    for number, one in enumerate(answers):
        part = parts[step * number]
        _draw_maps(part, picture, one, shown=shown, limits=limits, num_columns=num_columns)
        if has_rankings:
            _draw_rankings(parts[step * number + 1], one)
    _save(figure, out)


def _shown_maps(answers: Sequence[Answer]) -> list[Map]:
    return [one for one in MAPS if any(one.values(answer.trace) is not None for answer in answers)]


def _draw_maps(
    part: SubFigure,
    picture: Image.Image,
    answer: Answer,
    *,
    shown: Sequence[Map],
    limits: Mapping[str, tuple[float, float]],
    num_columns: int,
) -> None:
    part.suptitle(f"“{answer.text}”", fontsize=12, fontweight="bold", x=0.01, ha="left", parse_math=False)
    panels = part.subplots(1, num_columns, squeeze=False)[0]
    for panel in panels:
        panel.set_axis_off()
    panels[0].imshow(picture)
    panels[0].set_title("reference", fontsize=9)
    target = None if answer.target is None else read_image(answer.target)
    for panel, one in zip(panels[1:], shown, strict=False):
        values = one.values(answer.trace)
        if values is None:
            continue
        under, box = (target, answer.trace.target_box) if one.of_target else (picture, answer.trace.box)
        assert under is not None
        assert box is not None
        _draw_heat(panel, under, box, values, kind=one, limits=limits[one.key])
        panel.set_title(one.title, fontsize=9)
        bar = part.colorbar(
            ScalarMappable(Normalize(*limits[one.key]), one.colours),
            ax=panel,
            location="bottom",
            fraction=0.05,
            pad=0.02,
        )
        bar.ax.tick_params(labelsize=7)
        bar.set_label(_wrap(one.meaning), fontsize=7)


def _draw_heat(
    axes: Axes,
    picture: Image.Image,
    box: tuple[float, float, float, float],
    values: Float32[np.ndarray, "rows columns"],
    *,
    kind: Map,
    limits: tuple[float, float],
) -> None:
    """Draw values over a picture in pale grey, on the square ``box`` (in its pixels) that the patches share.

    Beyond the square lies what the model does not see, without colour; padding, which it does see, is dark.
    """
    left, top, right, bottom = box
    pale = 160 + np.asarray(ImageOps.grayscale(picture), dtype=np.float32) * 3 / 8
    axes.imshow(pale, cmap="gray", vmin=0, vmax=255, extent=(0, picture.width, picture.height, 0))
    square = picture.transform((HEAT_SIDE, HEAT_SIDE), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
    axes.imshow(heat(square, values, limits, kind.colours), extent=(left, right, bottom, top), zorder=2)
    if len(values) <= MAX_NUMBERED:
        rows, columns = values.shape
        for (row, column), value in np.ndenumerate(values):
            x, y = left + (column + 0.5) * (right - left) / columns, top + (row + 0.5) * (bottom - top) / rows
            axes.text(
                x,
                y,
                f"{value:.{kind.digits}f}",
                fontsize=5.5,
                ha="center",
                va="center",
                color=_ink(value, limits, kind),
                zorder=3,
            )
    axes.set_xlim(min(0, left), max(picture.width, right))
    axes.set_ylim(max(picture.height, bottom), min(0, top))


def _ink(value: float, limits: tuple[float, float], kind: Map) -> str:
    """Return black or white, whichever is read better on the value's colour."""
    red, green, blue, _ = colormaps[kind.colours](Normalize(*limits)(value))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"


def _draw_rankings(part: SubFigure, answer: Answer) -> None:
    first = next(iter(answer.rankings.values()))
    rank_before = {hit.name: rank for rank, hit in enumerate(first, 1)}
    rows = part.subplots(len(answer.rankings), max(len(hits) for hits in answer.rankings.values()) + 1, squeeze=False)
    for number, (row, (way, hits)) in enumerate(zip(rows, answer.rankings.items(), strict=True)):
        for panel in row:
            panel.set_xticks([])
            panel.set_yticks([])
            panel.axis("off")
        row[0].text(1, 0.5, way, fontsize=9, ha="right", va="center", transform=row[0].transAxes)
        for rank, (panel, hit) in enumerate(zip(row[1:], hits, strict=False), 1):
            panel.imshow(ImageOps.contain(read_image(hit.source), (160, 160)))
            moved = ""
            if number and rank_before.get(hit.name) != rank:
                moved = f" (was {rank_before[hit.name]})" if hit.name in rank_before else " (new)"
            title = f"{rank}{moved}  {hit.score:.3f}" + ("  target" if hit.is_target else "")
            panel.set_title(title, fontsize=7.5, color=TARGET_COLOUR if hit.is_target else "black")
            panel.axis("on")
            for side in panel.spines.values():
                side.set(color=TARGET_COLOUR if hit.is_target else "#ccc", linewidth=3 if hit.is_target else 0.5)


def _wrap(words: str, width: int = 34) -> str:
    lines = [""]
    for word in words.split():
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [*lines, word]
    return "\n".join(lines)


def _save(figure: Figure, out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as temporary:
            figure.savefig(temporary, format="png")
    except OSError as error:
        raise _cannot_be_written(out, error) from error


# -- the page ----------------------------------------------------------------------------------------------------------


def write_page(image: Path, answers: Sequence[Answer], out: Path) -> None:
    """Write an HTML page of its own that asks nothing of a network: point at a patch to read all its values.

    It also has the attention of every layer, head and query token.
    """
    picture = read_image(image)
    colours = {name: [_hex(colormaps[name](step / 63)) for step in range(64)] for name in (SEQUENTIAL, DIVERGING)}
    shown = _shown_maps(answers)
    page = {
        "picture": _data_uri(picture, HTML_PICTURE),
        "size": picture.size,
        "colours": colours,
        "maps": [
            {
                **{name: getattr(one, name) for name in ("key", "title", "meaning", "digits")},
                "colours": one.colours,
                "ofTarget": one.of_target,
                "limits": one.limits([v for a in answers if (v := one.values(a.trace)) is not None]),
            }
            for one in shown
        ],
        "answers": [_page_answer(one, shown) for one in answers],
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # rankings keep their order
    template = resources.files("composir").joinpath("visualize.html.jinja").read_text(encoding="utf-8")
    html = environment.from_string(template).render(title=image.name, page=page)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, html.encode(errors="backslashreplace").decode())
    except OSError as error:
        raise _cannot_be_written(out, error) from error


def _page_answer(answer: Answer, shown: Sequence[Map]) -> dict[str, Any]:
    trace = answer.trace
    attention = patches(trace.cross_attention) * 100  # (layers, heads, queries, rows, columns), %
    target = None if answer.target is None else read_image(answer.target)
    return {
        "text": answer.text,
        "box": trace.box,
        "targetBox": trace.target_box,
        "target": None if target is None else {"picture": _data_uri(target, HTML_PICTURE), "size": target.size},
        "score": trace.score,
        "values": {one.key: None if (values := one.values(trace)) is None else _rounded(values) for one in shown},
        "heads": _rounded(attention.mean(axis=2)),
        "queries": _rounded(attention.mean(axis=(0, 1))),
        "rankings": {
            way: [
                {
                    "name": hit.name,
                    "picture": _data_uri(read_image(hit.source), HTML_THUMBNAIL),
                    "score": round(hit.score, 4),
                    "isTarget": hit.is_target,
                }
                for hit in hits
            ]
            for way, hits in answer.rankings.items()
        },
    }


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(values.astype(float), 4).tolist()


def _hex(colour: tuple[float, ...]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])


def _data_uri(picture: Image.Image, side: int) -> str:
    buffer = io.BytesIO()
    small = ImageOps.contain(picture, (side, side)) if max(picture.size) > side else picture
    small.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cannot_be_written(file: Path, error: OSError) -> ComposirError:
    return ComposirError(f"cannot be written ({error.strerror})", file=file, fix="name a file in a folder of your own")
