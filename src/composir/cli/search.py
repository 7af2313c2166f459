"""The commands for pictures of one's own: ``index``, ``search``."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from composir.cli.choices import INDEXES, with_notes
from composir.cli.common import (
    ANSWER,
    ASKED,
    OWN_PICTURES,
    SPEED,
    Device,
    Dtype,
    Json,
    MaxPixels,
    NumWorkers,
    Prompt,
    app,
    model_of_flags,
    note_if_incomplete,
)
from composir.cli.console import Bars, err, out, print_json, printable
from composir.cli.early import require_model
from composir.errors import ComposirError, command, counted
from composir.paths import require_index, require_picture, require_pictures

if TYPE_CHECKING:
    from composir.search import Retriever


ENGINE, WEIGHED = "How vectors are kept and compared", "More of this, less of that"


@app.command(rich_help_panel=OWN_PICTURES)
def index(
    images_dir: Annotated[Path, typer.Argument(help="Folder of pictures; its folders are searched as well.")],
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The index folder; run again to go on, or to bring it up to date.",
            show_default="NAME-OF-THE-PICTURES.index, here",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="photos (built in; a folder of that name: its full path), a checkpoint folder, a name of composir "
            "models, or st:NAME.",
            show_default="photos; an index that exists knows its own",
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help=f"{with_notes(INDEXES)}.", show_default="exact", rich_help_panel=ENGINE),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="qdrant: address of a server.", show_default="inside this process", rich_help_panel=ENGINE),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="qdrant: shards of a new collection.",
            show_default="the server's own",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="qdrant: copies of each shard.",
            show_default="the server's own",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    vectors_per_image: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="Merge each picture's vectors to so many: smaller and faster.",
            show_default="all that the model makes",
            rich_help_panel=ENGINE,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern for folders that are left out, by name or path: 'raw', '2020/*'; repeatable, kept for later "
            "runs; '' for none.",
            show_default="none",
        ),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Start from nothing, as for another model.")] = False,
    engine: Annotated[
        str,
        typer.Option(help="Who embeds: local, or ray (all GPUs of this machine or a cluster).", rich_help_panel=SPEED),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="ray: address of a cluster.", show_default="this machine", rich_help_panel=SPEED),
    ] = None,
    prompt: Prompt = None,
    max_pixels: MaxPixels = None,
    dtype: Dtype = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="For the same: pictures a pass.",
            show_default="the model's own",
            rich_help_panel=ASKED,
        ),
    ] = None,
    device: Device = None,
    num_workers: NumWorkers = 4,
    json_: Json = False,
) -> int:
    """Make a folder of pictures searchable; later runs embed only what is new and drop what is gone.

    Example: composir index holiday-pictures && composir serve holiday-pictures.index
    """
    out_ = out_ or Path(f"{images_dir.resolve().name}.index")
    is_new = not out_.exists()
    options = {"url": url, "shards": shards, "replicas": replicas}
    options = {name: value for name, value in options.items() if value is not None}
    if options and backend not in (None, "qdrant"):
        raise ComposirError(f"--{next(iter(options))} is for --backend qdrant, not {backend}")
    if address and engine != "ray":
        raise ComposirError(f"--address is for --engine ray, not {engine}")
    require_pictures(images_dir, is_new=is_new)
    require_model(model)
    from composir.search import index_folder

    start = time.perf_counter()
    with Bars() as bars:
        report = index_folder(
            images_dir,
            out_,
            model=model_of_flags(model, prompt=prompt, max_pixels=max_pixels, dtype=dtype, batch_size=batch_size),
            backend=backend or ("qdrant" if options else None),
            options=options,
            vectors_per_image=vectors_per_image,
            exclude=exclude,
            rebuild=rebuild,
            device=device,
            engine=engine,
            address=address,
            num_workers=num_workers,
            progress=bars.tell,
        )
    seconds = time.perf_counter() - start
    if report.num_kept:
        err.print(
            f"warning: {counted(report.num_kept, 'file')} in the index could not be looked at, and "
            f"{'stays' if report.num_kept == 1 else 'stay'} in it; see what was skipped",
            soft_wrap=True,
        )
    if json_:
        print_json({**asdict(report), "index": str(out_), "seconds": round(seconds, 1)})
        return 0
    for one in report.skipped:
        out.print(f"skipped {printable(one.file)}: {one.reason}", soft_wrap=True)
    for one in report.noted:
        out.print(f"note: {printable(one.file)}: {one.note}", soft_wrap=True)
    if report.excluded:
        out.print(f"left out: {', '.join(map(printable, report.excluded))}", soft_wrap=True)
    out.print(
        f"{counted(report.num_images, 'picture')} in {out_} ({report.num_added:,} new, {report.num_removed:,} gone, "
        f"{len(report.skipped):,} skipped) after {seconds:.1f} s",
        soft_wrap=True,
    )
    out.print(f"model: {printable(report.model)}", soft_wrap=True)
    if model is None and is_new:
        out.print("a better one: --model st:NAME, or a checkpoint of your own; docs/photos.md", soft_wrap=True)
    out.print(f"next: {command('search', out_, '--image', 'PICTURE', '--text', 'SENTENCE')}", soft_wrap=True)
    out.print(f"      {command('serve', out_)}", soft_wrap=True)
    return 0


@app.command(rich_help_panel=OWN_PICTURES)
def search(
    index_: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that composir index made.")],
    image: Annotated[list[Path] | None, typer.Option(help="The reference picture; repeatable.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            help="What should differ; without a picture, what to find. 'red:2' counts twice; repeatable, with several "
            "pictures one for each, in their order."
        ),
    ] = None,
    negative_text: Annotated[str, typer.Option(help="What there should be less of.", rich_help_panel=WEIGHED)] = "",
    without: Annotated[
        list[str] | None,
        typer.Option(help="The same with a weight, as in 'people:0.5'; repeatable.", rich_help_panel=WEIGHED),
    ] = None,
    image_weight: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="0: the sentence alone, 1: the picture alone, 0.5: as the model composes them.",
            rich_help_panel=WEIGHED,
        ),
    ] = 0.5,
    more: Annotated[
        list[str] | None,
        typer.Option(help="A picture of the index, id or file, to be more like; repeatable.", rich_help_panel=WEIGHED),
    ] = None,
    less: Annotated[
        list[str] | None, typer.Option(help="One to be less like; repeatable.", rich_help_panel=WEIGHED)
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(
            min=-1000, max=1000, help="Leave out what scores less, such as 0.3.", show_default="nothing is left out"
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, max=10_000, help="How many pictures are shown.")] = 10,
    where: Annotated[
        str | None, typer.Option(help="Pattern for the path, such as 'holidays/*'.", show_default="all pictures")
    ] = None,
    exclude_reference: Annotated[
        bool,
        typer.Option(
            "--exclude-reference/--keep-reference",
            help="Whether the reference is left out of the answers.",
            rich_help_panel=ANSWER,
        ),
    ] = True,
    rerank: Annotated[
        int,
        typer.Option(
            min=0,
            max=10_000,
            help="Score so many of the best again with the matching head; 0: none.",
            rich_help_panel=ASKED,
        ),
    ] = 0,
    rerank_model: Annotated[
        str | None,
        typer.Option(
            help="A vision-language re-ranker for --rerank, by folder or hub id, by sentence-transformers.",
            show_default="the model's own matching head",
            rich_help_panel=ASKED,
        ),
    ] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Write a PNG of the query and what was found.", rich_help_panel=ANSWER)
    ] = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="How the sentence was read, and what the model sees in each picture.",
            rich_help_panel=ANSWER,
        ),
    ] = False,
    model: Annotated[
        Path | None,
        typer.Option(
            help="A head on the index's model, or where that model has moved to.",
            show_default="the index's own model",
            rich_help_panel=ASKED,
        ),
    ] = None,
    device: Device = None,
    json_: Json = False,
) -> int:
    """Find pictures by a picture, a sentence that says what should differ, or both.

    Example: composir search holiday.index --image beach.jpg --text "the same beach at night"
    """
    require_index(index_)
    for one in image or ():
        require_picture(one)
    require_model(model)
    if rerank_model and not rerank:
        raise ComposirError(
            "--rerank-model is for --rerank", fix="add --rerank 20, say: how many of the best it scores"
        )
    from composir.search import Retriever, SearchQuery, Sentence, load_reranker

    texts = [Sentence.parse(one) for one in text or ()]
    less_of = [Sentence.parse(one) for one in without or ()]
    with Retriever(index_, model=model, device=device) as retriever:
        note_if_incomplete(retriever)
        reranker = load_reranker(rerank_model, device=device) if rerank_model else None
        start = time.perf_counter()
        hits = retriever.search(
            image or (),
            texts=texts,
            negative_text=negative_text,
            without=less_of,
            image_weight=image_weight,
            more=[_id_of(retriever, one) for one in more or ()],
            less=[_id_of(retriever, one) for one in less or ()],
            min_score=min_score,
            top_k=top_k,
            where=where,
            exclude=None if exclude_reference else (),
            rerank=rerank,
            reranker=reranker,
        )
        milliseconds = 1000 * (time.perf_counter() - start)
        said = [one.text for one in texts if one.text.strip()]
        readings = {
            one: reading for one in said if (reading := retriever.encoder.read(one, with_reference=bool(image)))
        }
        told = {one: reading.told(with_reference=bool(image)) for one, reading in readings.items()}
        seen = retriever.explain(hits) if explain else [None] * len(hits)
        asked = SearchQuery(
            images=tuple(image or ()), texts=tuple(texts), without=tuple(less_of), negative_text=negative_text
        )
        warnings = retriever.warnings(asked)
    for line in warnings:
        err.print(f"warning: {printable(line)}", soft_wrap=True)
    for one, reading in readings.items():
        if not reading.is_usable:
            err.print(f"note: {printable(repr(one))} did not count: {told[one]}", soft_wrap=True)
    if min_score is not None and not hits:
        err.print(f"note: no picture scores {min_score:g} or more; lower --min-score, or leave it out", soft_wrap=True)
    elif where is not None and not hits:
        err.print(
            f"note: nothing to find at --where {where!r}; it is matched with paths such as 'holidays/beach.jpg'"
            + (", and a [ in a name is written [[]" if "[" in where else ""),
            soft_wrap=True,
        )
    if contact_sheet:
        from composir.evaluation import Cell, Row, grid

        cells = tuple(Cell(hit.path, f"{hit.rank}  ·  {hit.score:.3f}") for hit in hits)
        words = [*(text or ()), *(f"without: {one}" for one in (negative_text, *(without or ())) if one)]
        note = f"and {len(image) - 1} more" if image and len(image) > 1 else ""
        grid([Row(image[0] if image else None, " ".join(words), cells, note)], contact_sheet)
    if json_:
        results = [
            {"rank": hit.rank, "path": str(hit.path), "score": hit.score, "id": hit.id}
            | ({"seen": words} if explain else {})
            for hit, words in zip(hits, seen, strict=True)
        ]
        read = {"reading": " | ".join(told.values()) or None} if explain else {}
        print_json({"results": results, **read, "warnings": warnings, "milliseconds": round(milliseconds, 1)})
        return 0
    if explain and said:
        out.print(f"read as: {' | '.join(told.values()) or 'a whole, by the network'}", soft_wrap=True)
    for hit, words in zip(hits, seen, strict=True):
        sees = f"  [{words}]" if words else ""
        out.print(f"{hit.rank:3}  {hit.score:.3f}  {printable(hit.path)}{sees}", soft_wrap=True)
    out.print(f"{len(hits)} of {counted(len(retriever), 'picture')} in {milliseconds:.0f} ms")
    out.print(f"model: {printable(retriever.model_line)}", soft_wrap=True)
    if contact_sheet:
        out.print(f"contact sheet: {contact_sheet}", soft_wrap=True)
    return 0


def _id_of(retriever: Retriever, marked: str) -> str:
    """Return the id of a picture of the index that is given by it, or by a file with its content."""
    from composir.search import content_id

    if marked in retriever.images:
        return marked
    for file in (Path(marked), retriever.images.root / marked):
        if file.is_file():
            return content_id(file.read_bytes())
    raise ComposirError(
        f"{marked!r} is neither the id of a picture in {retriever.folder} nor a file",
        fix="give a path as composir search prints it, or an id as its --json does",
    )
