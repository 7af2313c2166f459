"""The command ``serve``."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from composir.cli.common import OWN_PICTURES, Device, app, note_if_incomplete
from composir.cli.console import out, printable
from composir.cli.early import require_model
from composir.errors import ComposirError, counted
from composir.paths import require_index

OTHERS = "Where others ask"


@app.command(rich_help_panel=OWN_PICTURES)
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
            show_default="none: this machine alone may ask",
            rich_help_panel=OTHERS,
        ),
    ] = None,
    queue: Annotated[
        int,
        typer.Option(
            min=1,
            max=100_000,
            help="Searches under way at one time; more are told to come back (503).",
            rich_help_panel=OTHERS,
        ),
    ] = 64,
    max_upload: Annotated[
        int, typer.Option(min=1, max=10_000, help="MiB of an uploaded picture.", rich_help_panel=OTHERS)
    ] = 20,
    root_path: Annotated[
        str,
        typer.Option(
            help="What a proxy puts before all paths, such as /pictures; it may cut it off or not.",
            show_default="nothing",
            rich_help_panel=OTHERS,
        ),
    ] = "",
    model: Annotated[
        Path | None,
        typer.Option(
            help="A head on the index's model, seen anew when it is replaced (with --record, it may come later), or "
            "where that model has moved to.",
            show_default="the index's own model",
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Keep what people mark as meant in this file (.jsonl), for composir train --from-feedback.",
            show_default="nothing is kept",
        ),
    ] = None,
    device: Device = None,
) -> int:
    """Search an index in a browser and over HTTP, till Ctrl-C; a later composir index is seen without a restart.

    Example: composir serve holiday.index
    """
    require_index(index_)
    if record is None:  # with it, a head may come later
        require_model(model)
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
    note_if_incomplete(server.retriever)
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
