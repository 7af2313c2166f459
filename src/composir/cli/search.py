"""The commands for pictures of one's own: ``index``, ``search``, ``serve``."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from composir.cli.choices import INDEXES, with_notes
from composir.cli.common import Dtype, Json, MaxPixels, NumWorkers, Prompt, app, model_of_flags
from composir.cli.console import Bars, err, out, print_json, printable
from composir.cli.early import require_model
from composir.errors import ComposirError, command, counted
from composir.paths import require_index, require_picture, require_pictures

if TYPE_CHECKING:
    from composir.search import Retriever


@app.command(rich_help_panel="Your own pictures")
def index(
    images_dir: Annotated[Path, typer.Argument(help="Folder of pictures; its folders are searched as well.")],
    out_: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="The index folder, NAME-OF-THE-PICTURES.index here unless given; run again to go on, or to bring it "
            "up to date.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            help="photos (the default, built in; a folder of that name: its full path), a checkpoint folder, a name of "
            "composir models, or st:NAME; an index that exists knows its own."
        ),
    ] = None,
    backend: Annotated[str | None, typer.Option(help=f"{with_notes(INDEXES)}.")] = None,
    url: Annotated[
        str | None, typer.Option(help="qdrant: address of a server; without it, inside this process.")
    ] = None,
    shards: Annotated[int | None, typer.Option(min=1, max=1024, help="qdrant: shards of a new collection.")] = None,
    replicas: Annotated[int | None, typer.Option(min=1, max=1024, help="qdrant: copies of each shard.")] = None,
    vectors_per_image: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Merge each picture's vectors to so many: smaller and faster.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern for folders that are left out, by name or path: 'raw', '2020/*'; repeatable, kept for later "
            "runs; '' for none."
        ),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Start from nothing, as for another model.")] = False,
    engine: Annotated[str, typer.Option(help="Who embeds: local, or ray (all GPUs of this machine or a cluster).")] = (
        "local"
    ),
    address: Annotated[str | None, typer.Option(help="ray: address of a cluster; without it, this machine.")] = None,
    prompt: Prompt = None,
    max_pixels: MaxPixels = None,
    dtype: Dtype = None,
    batch_size: Annotated[int | None, typer.Option(min=1, max=4096, help="For the same: pictures a pass.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU where there is one.")] = None,
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


@app.command(rich_help_panel="Your own pictures")
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
    negative_text: Annotated[str, typer.Option(help="What there should be less of.")] = "",
    without: Annotated[
        list[str] | None, typer.Option(help="The same with a weight, as in 'people:0.5'; repeatable.")
    ] = None,
    image_weight: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="0: the sentence alone, 1: the picture alone, 0.5: as the model composes them."
        ),
    ] = 0.5,
    more: Annotated[
        list[str] | None, typer.Option(help="A picture of the index, id or file, to be more like; repeatable.")
    ] = None,
    less: Annotated[list[str] | None, typer.Option(help="One to be less like; repeatable.")] = None,
    min_score: Annotated[
        float | None, typer.Option(min=-1000, max=1000, help="Leave out what scores less, such as 0.3.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, max=10_000, help="How many pictures are shown.")] = 10,
    where: Annotated[str | None, typer.Option(help="Pattern for the path, such as 'holidays/*'.")] = None,
    exclude_reference: Annotated[
        bool, typer.Option("--exclude-reference/--keep-reference", help="Whether the reference may be an answer.")
    ] = True,
    rerank: Annotated[
        int, typer.Option(min=0, max=10_000, help="Score so many of the best again with the matching head; 0: none.")
    ] = 0,
    rerank_model: Annotated[
        str | None,
        typer.Option(help="A vision-language re-ranker for --rerank, by folder or hub id, by sentence-transformers."),
    ] = None,
    contact_sheet: Annotated[Path | None, typer.Option(help="Write a PNG of the query and what was found.")] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="How the sentence was read, and what the model sees in each picture.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option(help="A head on the index's model, or where that model has moved to.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU where there is one.")] = None,
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
    from composir.search import Retriever, Sentence, load_reranker

    texts = [Sentence.parse(one) for one in text or ()]
    with Retriever(index_, model=model, device=device) as retriever:
        _note_if_incomplete(retriever)
        reranker = load_reranker(rerank_model, device=device) if rerank_model else None
        start = time.perf_counter()
        hits = retriever.search(
            image or (),
            texts=texts,
            negative_text=negative_text,
            without=[Sentence.parse(one) for one in without or ()],
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
        print_json({"results": results, **read, "milliseconds": round(milliseconds, 1)})
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


def _note_if_incomplete(retriever: Retriever) -> None:
    if not retriever.complete:
        goes_on = command("index", retriever.images.root, "--out", retriever.folder)
        err.print(f"note: {retriever.folder} is not complete; {goes_on} goes on", soft_wrap=True)


@app.command(rich_help_panel="Your own pictures")
def serve(
    index_: Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that composir index made.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but this machine's own needs --api-key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="COMPOSIR_API_KEY",
            help="What everybody who asks has to show; in the environment no list of processes shows it.",
        ),
    ] = None,
    queue: Annotated[
        int, typer.Option(min=1, max=100_000, help="Searches under way at one time; more are told to come back (503).")
    ] = 64,
    max_upload: Annotated[int, typer.Option(min=1, max=10_000, help="MiB of an uploaded picture.")] = 20,
    root_path: Annotated[
        str, typer.Option(help="What a proxy puts before all paths, such as /pictures; it may cut it off or not.")
    ] = "",
    model: Annotated[
        Path | None,
        typer.Option(
            help="A head on the index's model, seen anew when it is replaced (with --record, it may come later), or "
            "where that model has moved to."
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Keep what people mark as meant in this file (.jsonl), for composir train --from-feedback."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; a GPU where there is one.")] = None,
) -> int:
    """Search an index in a browser and over HTTP, till Ctrl-C; a later composir index is seen without a restart.

    Example: composir serve holiday.index
    """
    require_index(index_)
    from composir.web import Limits, open_server
    from composir.web.log import log_as_json

    limits = Limits(max_waiting=queue, max_upload_bytes=max_upload * 2**20)
    if api_key is None and "COMPOSIR_API_KEY" in os.environ:  # typer takes an empty one for none
        raise ComposirError(
            "COMPOSIR_API_KEY is empty", fix="unset it to serve this machine alone without a key, or put a key into it"
        )
    server = open_server(
        index_,
        host=host,
        port=port,
        api_key=api_key,
        limits=limits,
        model=model,
        device=device,
        root_path=root_path,
        record=record,
    )
    _note_if_incomplete(server.retriever)
    out.print(
        f"{counted(len(server.retriever), 'picture')} at {server.address} "
        f"(interface for programs: {server.address}/docs); Ctrl-C stops",
        soft_wrap=True,
    )
    out.print(f"model: {printable(server.retriever.model_line)}", soft_wrap=True)
    if server.awaits_head:
        out.print(
            f"no head is in {printable(model)} yet; the first that is put there answers from then on", soft_wrap=True
        )
    if record is not None:
        out.print(f"what is marked as meant is kept in {printable(record)}, and nothing else", soft_wrap=True)
    log_as_json()
    # The server raises the signal again that stopped it: after SIGTERM, the ordinary way, that is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server.run()
    return 0
