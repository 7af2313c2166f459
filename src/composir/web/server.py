"""Runs the application: an address, a graceful stop."""

from __future__ import annotations

import errno
import re
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn

from composir.errors import ComposirError
from composir.models.heads.folder import is_head
from composir.models.named import find_address
from composir.search import Retriever
from composir.web.app import create_app
from composir.web.feedback import Feedback
from composir.web.guard import PAGE_FILES, is_loopback
from composir.web.limits import MIN_KEY, Limits

SECONDS_TO_STOP = 30
"""For requests that are being answered when a stop is asked for."""
SECONDS_KEPT_OPEN = 75
"""A connection that nobody uses; more than the 60 of proxies, which else send into one that is just being closed."""
BACKLOG = 512
OWN_NAMES = ("api", "docs", "metrics", "openapi.json", *PAGE_FILES)
"""What paths begin with here; below a prefix of that name it would not be known whether it was cut off already."""


class Server:
    """See ``composir.web.open_server``."""

    def __init__(
        self,
        index: Path,
        *,
        host: str,
        port: int,
        api_key: str | None,
        limits: Limits,
        model: Path | None,
        device: str | None,
        root_path: str,
        record: Path | None,
    ) -> None:
        root_path = _checked_prefix(root_path)
        feedback = None if record is None else Feedback(record)
        self._socket = _bind(host, port, api_key)
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self._socket.getsockname()[1]}{root_path}"
        try:
            self.awaits_head = record is not None and model is not None and _is_free(model)
            self.retriever = Retriever(index, model=None if self.awaits_head else model, device=device)
        except BaseException:
            self._socket.close()
            raise
        app = create_app(
            self.retriever,
            api_key=api_key,
            limits=limits,
            host=host,
            root_path=root_path,
            feedback=feedback,
            head=model if model is not None and (self.awaits_head or is_head(model)) else None,
        )
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=SECONDS_KEPT_OPEN,
                timeout_graceful_shutdown=SECONDS_TO_STOP,
            )
        )

    def run(self) -> None:
        """Answer till ``stop``, SIGINT or SIGTERM (raised again then); requests under way are answered first."""
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self.retriever.close()

    def stop(self) -> None:
        """Let ``run``, in another thread, come to its end."""
        self._server.should_exit = True


def _is_free(model: Path) -> bool:
    """Return whether a head may come there: no file, no folder and no model by name."""
    return not model.exists() and find_address(str(model)) is None


def _checked_prefix(root_path: str) -> str:
    """Return the prefix without a slash at its end; raise ``ComposirError`` for what is none."""
    prefix = root_path.rstrip("/")
    names = prefix.split("/")[1:]
    if not re.fullmatch(r"(/[\w.~-]+)*", prefix, re.ASCII) or {".", ".."} & set(names):
        raise ComposirError(
            f"--root-path {root_path!r} is not the beginning of a path",
            expected="a slash and names of letters, digits, '-', '.', '_' and '~'",
            fix="give what the proxy puts before the paths of this server, such as --root-path /pictures",
        )
    if names and names[0] in OWN_NAMES:
        raise ComposirError(
            f"--root-path {root_path!r} begins with a name that this server uses itself",
            fix=f"let the proxy use another than {', '.join(OWN_NAMES)}, such as --root-path /pictures",
        )
    return prefix


def _bind(host: str, port: int, api_key: str | None) -> socket.socket:
    """Return a socket that listens; raise ``ComposirError`` if it cannot, or others could ask without a key."""
    if api_key is not None and (
        len(api_key) < MIN_KEY or not api_key.isascii() or not api_key.isprintable() or " " in api_key
    ):
        raise ComposirError(
            "the key is empty" if not api_key else "the key is too short or holds a character that headers do not",
            expected=f"at least {MIN_KEY} ASCII letters and digits",
            fix="python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one",
        )
    family, kind, protocol, _, address = _resolved(host, port)
    if api_key is None and not is_loopback(str(address[0])):
        raise ComposirError(
            f"--host {host} lets other machines ask, and there is no key",
            fix="give --api-key, or COMPOSIR_API_KEY in the environment, or leave out --host",
        )
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)  # who asks from here on waits for the start
    except OSError as error:
        listening.close()
        fix = {
            errno.EADDRINUSE: "give another --port (0: any that is free), or stop what listens there",
            errno.EADDRNOTAVAIL: "leave out --host for this machine alone, or give one of its own addresses",
            errno.EACCES: "give a --port from 1024 on; those below are for the system",
        }.get(error.errno or 0, "give another --port or --host")
        raise ComposirError(f"{host}:{port} cannot be listened on ({error.strerror})", fix=fix) from None
    return listening


def _resolved(host: str, port: int) -> tuple[int, int, int, str, Any]:
    """Return the first of what ``socket.getaddrinfo`` says; raise ``ComposirError`` where it says none."""
    try:
        if host:  # an empty name would mean all addresses
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, ValueError):  # ValueError: what cannot be a name, such as 70 letters without a dot
        pass
    raise ComposirError(
        f"--host {host!r} is no address and no name of one",
        fix="leave out --host for this machine alone, or give one of its addresses (0.0.0.0: all, with --api-key)",
    )
