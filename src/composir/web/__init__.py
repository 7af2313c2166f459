"""The search of an index over HTTP, and a page for it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from composir.errors import ComposirError
from composir.version import pip_install
from composir.web.limits import Limits

if TYPE_CHECKING:
    from composir.web.server import Server

__all__ = ["Limits", "open_server"]

PACKAGES = ("fastapi", "fastapi_offline", "prometheus_client", "python_multipart", "uvicorn")
"""Of the extra ``web``."""


def open_server(
    index: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key: str | None = None,
    limits: Limits | None = None,
    model: Path | None = None,
    device: str | None = None,
    root_path: str = "",
    record: Path | None = None,
) -> Server:
    """Return a server that is bound to its address, with model and index open; ``run`` answers till it is stopped.

    ``root_path`` is the prefix (``/pictures``) that a proxy puts before all paths, ``record`` the JSONL file that what
    people meant is added to. A head that ``model`` names is taken up anew whenever its folder holds another; with
    ``record`` it need not be there yet. Raises ``ComposirError`` where the extra ``web`` is not installed, for an
    address that is not this machine alone without a key, a key that is too short, an address that is taken or not this
    machine's, a prefix that is none, a file to record in that cannot be written or holds something else, and whatever
    ``Retriever`` raises.
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ComposirError(
            f"serving needs packages that are not installed: {', '.join(missing)}", fix=pip_install("web")
        )
    from composir.web.server import Server  # noqa: PLC0415 (an extra)

    return Server(
        index,
        host=host,
        port=port,
        api_key=api_key,
        limits=limits or Limits(),
        model=model,
        device=device,
        root_path=root_path,
        record=record,
    )
