"""The command ``features``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from composir.cli.choices import BACKBONES, TRANSFORMS, one_of, with_notes
from composir.cli.common import MODELS, SPEED, CacheDir, DataRoot, Dataset, Json, app
from composir.cli.console import Bars, out, print_json, tell_features, tell_left
from composir.cli.early import require_data_root, require_weights
from composir.errors import counted


@app.command(rich_help_panel=MODELS)
def features(
    data_root: DataRoot,
    dataset: Dataset = "CIRR",
    backbone: Annotated[str, typer.Option(help=f"{with_notes(BACKBONES)}.")] = "mini",
    weights: Annotated[str, typer.Option(help="Folder or file of the backbone's pretrained weights.")] = "",
    split: Annotated[
        list[str] | None,
        typer.Option(help="Whose images; repeatable.", show_default="train, and the split that it is validated on"),
    ] = None,
    skip_missing_images: Annotated[
        bool, typer.Option("--skip-missing-images", help="Do without the images that are missing; says how many.")
    ] = False,
    transform: Annotated[str | None, typer.Option(help=f"{one_of(TRANSFORMS)}.", show_default="targetpad")] = None,
    target_ratio: Annotated[
        float | None, typer.Option(help="Targetpad's long side over short side.", show_default="1.25")
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option(help="Threads that decode images.", show_default="4", rich_help_panel=SPEED)
    ] = None,
    cache_dir: CacheDir = None,
    json_: Json = False,
) -> int:
    """Compute the image tokens that training and evaluation need, ahead of them; again: only what is not there.

    Example: composir features --backbone mini --dataset CIRR --data-root DIR
    """
    require_data_root(dataset, data_root, next(iter(split or ["train"])))
    require_weights(backbone, weights)
    from composir.files import size_text
    from composir.training import compute_features, load_recipe

    given = {
        "dataset": dataset, "data_root": str(data_root), "backbone": backbone, "weights": weights,
        "transform": transform, "target_ratio": target_ratio, "num_workers": num_workers,
        "skip_missing_images": skip_missing_images,
    }  # fmt: skip
    recipe = load_recipe({name: value for name, value in given.items() if value is not None})
    with Bars() as bars:
        filled = compute_features(
            recipe, splits=split, cache_dir=cache_dir, progress=lambda *told: tell_features(bars, *told)
        )
    tell_left(filled.left)
    if json_:
        print_json(asdict(filled))
    else:
        speed = f"{filled.images_per_second:.1f} images/s" if filled.num_computed else "nothing to compute"
        out.print(
            f"{counted(filled.num_images, 'image')}, {size_text(filled.bytes)} in {filled.folder}; "
            f"{filled.num_computed:,} computed now, {speed}",
            soft_wrap=True,
        )
    return 0
