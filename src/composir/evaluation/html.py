"""How a page is made: a template, and the parts, style and filters that all pages share; one file without a script."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from composir.errors import ComposirError
from composir.evaluation.metrics import metric_label
from composir.files import write_text
from composir.style import look

OWN = "composir.evaluation"


def render(package: str, **values: Any) -> str:
    """Return the page that ``page.html.jinja`` of a package makes of ``values``.

    The template has the filters below, and may import from ``parts.html.jinja`` here. A page holds its style, and its
    content security policy lets nothing else in: no network, no script.
    """
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: _read(OWN, name)),
    )
    environment.filters |= {
        "label": metric_label,
        "kind": lambda kind: kind.replace("_", " "),
        "percent": lambda value: f"{100 * value:.2f}",
        "points": lambda value: f"{100 * value:+.2f}".replace("-", "−"),
        "count": lambda number: f"{number:,}",
    }
    style = look() + _read(OWN, "page.css")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    html = environment.from_string(_read(package, "page.html.jinja")).render(style=style, style_hash=digest, **values)
    return html.encode(errors="backslashreplace").decode()  # a file's name may hold what is no character


def write_html(html: str, file: Path) -> Path:
    """Return ``file`` after writing a page into it; raise ``ComposirError`` where it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, html)
    except OSError as error:
        raise ComposirError(
            f"the report cannot be written ({error.strerror})",
            file=file,
            expected="a folder that is there or can be made, and can be written to",
            fix="name another folder",
        ) from error
    return file


def _read(package: str, name: str) -> str:
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")
