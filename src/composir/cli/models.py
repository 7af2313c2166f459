"""The commands around a model: ``convert`` and ``visualize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from composir.cli.common import (
    MODELS,
    Categories,
    Dataset,
    Device,
    Json,
    Seed,
    app,
    require_choice,
    require_one,
    splits_of_flags,
)
from composir.cli.console import Bars, out, print_json
from composir.cli.early import require_data_root, require_model
from composir.errors import ComposirError, command, counted, listed
from composir.paths import require_picture, require_there

STORED = "What is stored"


@app.command(rich_help_panel=MODELS)
def convert(
    source: Annotated[str, typer.Argument(help="A file, a folder, a hub id or a name of composir models.")],
    out_: Annotated[Path, typer.Option("--out", help="The checkpoint folder to make; with --to the file.")],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="lavis (.pth), sprc (.pt), hf (folder or hub id, safetensors); composir with --vision-tower.",
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="sprc: a checkpoint folder into a file that SPRC reads.")
    ] = None,
    vision_tower: Annotated[
        str | None,
        typer.Option(help="The vision tower's own file, where the source has none: eva_vit_g.pth, clip_vit_L.pth."),
    ] = None,
    state_dict: Annotated[
        str,
        typer.Option(
            help="Which weights, where a file holds several sets, such as model and ema.", show_default="the only set"
        ),
    ] = "",
    qformer_config: Annotated[
        Path | None, typer.Option(help="JSON with what weights do not show, such as num_attention_heads.")
    ] = None,
    gated_fusion: Annotated[
        bool | None,
        typer.Option(
            "--gated-fusion/--no-gated-fusion",
            help="A fresh gate, or none.",
            show_default="as in the source",
            rich_help_panel=STORED,
        ),
    ] = None,
    embed_tower: Annotated[
        bool,
        typer.Option(
            "--embed-tower",
            help="Store the frozen vision tower, too, instead of where it was read.",
            rich_help_panel=STORED,
        ),
    ] = False,
    seed: Seed = 0,
    json_: Json = False,
) -> int:
    """Turn weights of LAVIS, SPRC or the hub into a checkpoint folder, or a checkpoint into SPRC's file.

    Example: composir convert --from lavis blip2_pretrained.pth --vision-tower eva_vit_g.pth --out models/blip2
    """
    require_one({"--from": from_, "--to": to})
    require_model(source)
    for file in (vision_tower, qformer_config):
        if file is not None:
            require_there(Path(file), "a file of that kind")
    from composir.models.catalogue import source_of_name
    from composir.models.transfer import convert as convert_weights
    from composir.models.transfer import export_sprc

    if to is not None:
        require_choice("--to", to, ("sprc",))
        done = export_sprc(source, out_)
    else:
        assert from_ is not None
        require_choice("--from", from_, ("lavis", "sprc", "hf", "composir"))
        done = convert_weights(
            source_of_name(source),
            from_,
            out_,
            qformer_config=qformer_config,
            gated_fusion=gated_fusion,
            embed_tower=embed_tower,
            vision_tower=vision_tower,
            state=state_dict,
            seed=seed,
        )
    if json_:
        print_json(done.to_json())
        return 0
    for line in done.layout.lines():
        out.print(line, soft_wrap=True)
    reasons = dict.fromkeys(one.reason for one in done.dropped)
    for reason in reasons:
        keys = [one.key for one in done.dropped if one.reason == reason]
        out.print(f"dropped {len(keys)} ({reason}): {listed(keys)}", soft_wrap=True)
    if done.fresh:
        out.print(f"not there, start fresh: {listed(done.fresh)}", soft_wrap=True)
    if to is None and done.tower == "none":
        join = command("convert", "--from", "composir", done.out, "--vision-tower")
        out.print(
            f"no vision tower in it: the model works on image tokens; to join one: {join} FILE --out NEW",
            soft_wrap=True,
        )
    if done.tower == "embedded" and to is None and not embed_tower:
        out.print("the vision tower is stored, as the source alone does not bring it back", soft_wrap=True)
    if to is None and not done.has_tokenizer:
        out.print("not BLIP-2's vocabulary: the model works on token ids", soft_wrap=True)
    out.print(f"{counted(len(done.mapped), 'weight')}: {done.out}", soft_wrap=True)
    return 0


def _require_asked(image: Path, target: Path | None, gallery: Path | None) -> None:
    """Raise ``ComposirError`` where a picture, or the folder of a gallery, is not there."""
    for one in filter(None, (image, target)):
        require_picture(one)
    if gallery is not None:
        require_there(gallery, "a folder of pictures")


@app.command(rich_help_panel=MODELS)
def visualize(
    model: Annotated[Path, typer.Option(help="A checkpoint folder, such as models/RUN/best, or that of a head.")],
    image: Annotated[Path, typer.Option(help="The reference picture.")],
    text: Annotated[list[str], typer.Option(help="What should differ; repeatable, a row of the picture each.")],
    out_: Annotated[Path, typer.Option("--out", help="The PNG to write.")],
    html: Annotated[Path | None, typer.Option(help="Also write a page that tells every value of every patch.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="A folder of pictures to rank.")] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Or a data set whose gallery is ranked: its folder, or its parent.")
    ] = None,
    dataset: Dataset = "CIRR",
    split: Annotated[
        str | None, typer.Option(help="Whose gallery.", show_default="the split whose answers are public")
    ] = None,
    categories: Categories = None,
    target: Annotated[
        Path | None,
        typer.Option(
            help="A picture whose score is explained.", show_default="the known answer, else the first retrieved"
        ),
    ] = None,
    every_map: Annotated[bool, typer.Option("--all", help="Draw every map, not only the two that say most.")] = False,
    device: Device = None,
    json_: Json = False,
) -> int:
    """Draw what a model looks at in a picture, sentence by sentence, and what it retrieves with its fusion and without.

    Of a head: how far its gate is open, how it changes the query, and what is retrieved with it and without.

    Example: composir visualize --model models/RUN/best --image F.png --text "make it red" --out F.map.png
    """
    require_model(model)
    _require_asked(image, target, gallery)
    require_data_root(dataset, data_root, split)
    from composir.features import OpenedHead, open_model
    from composir.machine import usable_device
    from composir.models.composer import Composer
    from composir.visualize import (
        answer,
        answer_head,
        draw,
        draw_head,
        gallery_of_folder,
        gallery_of_splits,
        write_head_page,
        write_page,
    )

    ranked = None
    if gallery is not None or data_root is not None:
        require_one({"--gallery": gallery, "--data-root": data_root})
        ranked = (
            gallery_of_splits(splits_of_flags(dataset, data_root, split, categories), image)
            if data_root is not None
            else gallery_of_folder(gallery or Path())
        )
    loaded = open_model(model, usable_device(device))
    if not isinstance(loaded, (Composer, OpenedHead)):
        raise ComposirError(
            f"{loaded.kind} does not show what it looks at",
            file=model,
            fix="give a checkpoint folder, such as models/RUN/best, or that of a head on it",
        )
    if isinstance(loaded, OpenedHead) and target is not None:
        raise ComposirError("a head reads no patches, by which a score could be explained", fix="leave out --target")
    if isinstance(loaded, OpenedHead) and every_map:
        raise ComposirError("a head reads no patches, of which there were maps", fix="leave out --all")
    with Bars() as bars:
        if isinstance(loaded, OpenedHead):
            of_head = answer_head(loaded, image, text, gallery=ranked, progress=bars.tell)
            draw_head(image, of_head, out_)
            if html is not None:
                write_head_page(image, of_head, html)
        else:
            answers = answer(
                loaded,
                image,
                text,
                gallery=ranked,
                target=target,
                progress=lambda done, total: bars.tell("image tokens", done, total),
            )
            draw(image, answers, out_, every_map=every_map)
            if html is not None:
                write_page(image, answers, html)
    files = [out_] if html is None else [out_, html]
    if json_:
        print_json({"files": [str(file) for file in files]})
    else:
        for file in files:
            out.print(str(file), soft_wrap=True)
    return 0
