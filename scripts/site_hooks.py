"""What ``mkdocs`` makes while it builds the site: pages out of the program itself, and links into the repository."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import griffe
from mkdocs.structure.files import File, Files
from pydantic.fields import FieldInfo

from composir.errors import range_of
from composir.training.recipe import Recipe

ROOT = Path(__file__).parent.parent
OUTSIDE = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")
"""A link from a page to a file of the repository that is no page."""
SETTINGS_HEAD = """# Settings of a training

Every field of a recipe, made from the program. A recipe is a TOML file that `composir train --config FILE` reads; a
setting is `name = value` there, `--set name=value` on the command line, and often a flag of its own
([Commands](commands.md)). What they do and which to choose: [Train](../training.md).

| setting | default | values | what it is |
|---|---|---|---|
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from the program: commands and settings."""
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    files.append(File.generated(config, "reference/settings.md", content=settings_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Say a file's path, without a link, where a page links to a file of the repository that is no page."""
    return OUTSIDE.sub(lambda link: _outside(link, page), markdown)


def _outside(link: re.Match[str], page: Any) -> str:
    target = (ROOT / "docs" / page.file.src_uri).parent / link[2].split("#")[0]
    inside = target.resolve().is_relative_to(ROOT / "docs")
    return link[0] if inside else link[1]


def commands_page() -> str:
    """Return every command and flag with its default, as Typer writes them."""
    made = subprocess.run(
        [sys.executable, "-m", "typer", "composir.cli", "utils", "docs", "--name", "composir"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    body = html.unescape(made.stdout.split("\n", 1)[1])
    return (
        f"# Commands\n\nEvery command and flag, made from the program; `composir COMMAND --help` is the same.\n{body}"
    )


def settings_page() -> str:
    """Return every setting of a recipe with its default, its values and its sentence."""
    described = griffe.load("composir.training.recipe", search_paths=[ROOT / "src"])["Recipe"].members
    rows = []
    for name, field in Recipe.model_fields.items():
        default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)!r}`"
        docstring = described[name].docstring
        said = " ".join(docstring.value.split()).replace("``", "`") if docstring else ""
        rows.append(f"| `{name}` | {default} | {_values(field)} | {said} |".replace("\n", " "))
    return SETTINGS_HEAD + "\n".join(rows) + "\n"


def _values(field: FieldInfo) -> str:
    """Return what a setting may be, in words."""
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    if choices:
        return ", ".join(f"`{one}`" for one in choices)
    kind = getattr(field.annotation, "__name__", str(field.annotation))
    return f"`{kind}` {range_of(field)}".strip()
