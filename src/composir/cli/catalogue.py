"""The field's public models by name: ``models`` and ``models get``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composir.cli.common import Json, models_app, require_choice
from composir.cli.console import out, print_json

if TYPE_CHECKING:
    from composir.models.catalogue import NamedModel

HEADINGS = ("name", "kind", "parameters", "download", "licence", "languages")
FIGURES = {"cirr": "CIRR R@1", "cirr_subset": "R_s@1", "circo": "CIRCO mAP@5", "fashioniq": "FashionIQ R@10"}


@models_app.callback()
def models(context: typer.Context, json_: Json = False) -> int:
    """List the field's public models: sizes, licences, published figures, and which are on this machine.

    Example: composir models
    """
    if context.invoked_subcommand is not None:
        return 0
    from composir.models.catalogue import MODELS, convert_command

    if json_:
        print_json({"models": {name: _document(model) for name, model in MODELS.items()}})
        return 0
    rows = [(*HEADINGS, *FIGURES.values(), "here")]
    rows += [_row(name, model) for name, model in MODELS.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        out.print(line.rstrip(), soft_wrap=True)
    out.print("\n-: not stated by its authors; here: in the hub's cache on this machine", soft_wrap=True)
    out.print("photos (docs/photos.md) and lite0 (docs/heads.md) are built in, no download needed", soft_wrap=True)
    for source in dict.fromkeys(model.figures.source for model in MODELS.values()):
        names = ", ".join(name for name, model in MODELS.items() if model.figures.source == source)
        out.print(f"figures of {names}: {source}", soft_wrap=True)
    for name, model in MODELS.items():
        if model.load is None:
            out.print(f"a checkpoint of {name}: {convert_command(name)}", soft_wrap=True)
    return 0


@models_app.command()
def get(
    name: Annotated[
        str, typer.Argument(help="A name that composir models lists, or ORG/NAME of a checkpoint or head on the hub.")
    ],
    json_: Json = False,
) -> int:
    """Download a model's files into the hub's cache; a download that breaks off goes on where it ended.

    One that was stopped keeps the files that were whole.

    Example: composir models get bge-vl-base
    """
    from composir.models.catalogue import MODELS, convert_command, get_own
    from composir.models.catalogue import get as download
    from composir.models.heads.folder import is_head
    from composir.models.weights.sources import is_hub_id

    next_ = f"composir index PICTURES --model {name} --out PICTURES.index"
    if name not in MODELS and is_hub_id(name):
        folder = get_own(name)
        revision = folder.name
        if is_head(folder):
            next_ = f"composir search INDEX --model {name} --image PICTURE --text SENTENCE"
    else:
        require_choice("the model", name, tuple(MODELS))
        folder, revision = download(name), MODELS[name].revision
        if MODELS[name].load is None:
            next_ = convert_command(name)
    if json_:
        print_json({"name": name, "folder": str(folder), "revision": revision})
        return 0
    out.print(str(folder), soft_wrap=True)
    out.print(f"next: {next_}", soft_wrap=True)
    return 0


def _row(name: str, model: NamedModel) -> tuple[str, ...]:
    figures = (getattr(model.figures, key) for key in FIGURES)
    return (
        name,
        model.kind,
        f"{model.num_parameters / 1e6:,.0f} M",
        model.size,
        model.licence,
        model.languages,
        *("-" if value is None else str(value) for value in figures),
        "yes" if model.folder() else "no",
    )


def _document(model: NamedModel) -> dict[str, Any]:
    folder = model.folder()
    return {
        "kind": model.kind,
        "hub_id": model.hub_id or None,
        "revision": model.revision or None,
        "num_parameters": model.num_parameters,
        "num_bytes": model.num_bytes,
        "licence": model.licence,
        "languages": model.languages,
        "figures": asdict(model.figures),
        "is_converted": model.load is None,
        "folder": None if folder is None else str(folder),
    }
