"""The page: a file of its own in which every patch can be pointed at."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib import colormaps
from PIL import Image, ImageOps

from composir.data.images import read_image
from composir.files import write_text
from composir.heat import DIVERGING, SEQUENTIAL
from composir.models.trace import patches
from composir.style import look
from composir.visualize.answers import NUM_SHOWN, Answer, Hit, in_words
from composir.visualize.drawing import cannot_be_written
from composir.visualize.heads import GATE_TITLE, HeadAnswer
from composir.visualize.maps import Map, limits_by_map

HTML_PICTURE, HTML_THUMBNAIL = 448, 128
"""Pixels of the longer side in the page."""


def write_page(image: Path, answers: Sequence[Answer], out: Path) -> None:
    """Write an HTML page of its own that asks nothing of a network: point at a patch to read all its values.

    It also has the attention of every layer, head and query token.
    """
    picture = read_image(image)
    colours = {name: [_hex(colormaps[name](step / 63)) for step in range(64)] for name in (SEQUENTIAL, DIVERGING)}
    limits = limits_by_map([one.trace for one in answers])
    page = {
        "picture": _data_uri(picture, HTML_PICTURE),
        "size": picture.size,
        "colours": colours,
        "maps": [
            {
                **{name: getattr(one, name) for name in ("key", "title", "meaning", "unit", "digits", "main")},
                "colours": one.colours,
                "ofTarget": one.of_target,
                "limits": bounds,
                "ends": [one.told(bound) for bound in bounds],
            }
            for one, bounds in limits.items()
        ],
        "answers": [_page_answer(one, limits) for one in answers],
    }
    _write("page.html.jinja", out, title=image.name, page=page)


def write_head_page(image: Path, answers: Sequence[HeadAnswer], out: Path) -> None:
    """Write an HTML page of its own, without a script: the figures of every sentence, its gate, what was retrieved."""
    _write(
        "head.html.jinja",
        out,
        title=image.name,
        picture=_data_uri(read_image(image), HTML_PICTURE),
        answers=[
            (one, _page_rankings(one.rankings), in_words(one.rankings, NUM_SHOWN) if one.rankings else "")
            for one in answers
        ],
        most=max((one.channels.max() for one in answers if one.channels is not None), default=0),
        gate_title=GATE_TITLE,
    )


def _write(template: str, out: Path, **values: Any) -> None:
    loader = PackageLoader("composir.visualize", "")
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=loader)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # rankings keep their order
    style = look() + resources.files("composir.visualize").joinpath("style.css").read_text(encoding="utf-8")
    html = environment.get_template(template).render(style=style, **values)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, html.encode(errors="backslashreplace").decode())
    except OSError as error:
        raise cannot_be_written(out, error) from error


def _page_answer(answer: Answer, shown: Iterable[Map]) -> dict[str, Any]:
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
        "rankings": _page_rankings(answer.rankings),
        "words": in_words(answer.rankings, NUM_SHOWN) if answer.rankings else "",
    }


def _page_rankings(rankings: Mapping[str, Sequence[Hit]]) -> dict[str, list[dict[str, Any]]]:
    return {
        way: [
            {
                "name": hit.name,
                "picture": _data_uri(read_image(hit.source), HTML_THUMBNAIL),
                "score": round(hit.score, 4),
                "isTarget": hit.is_target,
            }
            for hit in hits
        ]
        for way, hits in rankings.items()
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
