"""Runs the application: an address, a graceful stop."""

from __future__ import annotations

import ipaddress
import socket
import sys
from pathlib import Path

import uvicorn

from composir.errors import ComposirError
from composir.search import Retriever
from composir.web.app import create_app
from composir.web.limits import MIN_KEY, Limits

SECONDS_TO_STOP = 30
"""For requests that are being answered when a stop is asked for."""
SECONDS_KEPT_OPEN = 75
"""A connection that nobody uses; more than the 60 of proxies, which else send into one that is just being closed."""
BACKLOG = 512


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
    ) -> None:
        _check_key(host, api_key)
        self._socket = _bind(host, port)
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self._socket.getsockname()[1]}"
        try:
            self.retriever = Retriever(index, model=model, device=device)
        except BaseException:
            self._socket.close()
            raise
        app = create_app(self.retriever, api_key=api_key, limits=limits)
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


def _check_key(host: str, api_key: str | None) -> None:
    if api_key is None:
        if not _is_loopback(host):
            raise ComposirError(
                f"--host {host} lets other machines ask, and there is no key",
                fix="give --api-key, or COMPOSIR_API_KEY in the environment, or leave out --host",
            )
    elif len(api_key) < MIN_KEY or not api_key.isascii() or not api_key.isprintable() or " " in api_key:
        raise ComposirError(
            "the key is too short or holds a character that headers do not",
            expected=f"at least {MIN_KEY} ASCII letters and digits",
            fix="python -c 'import secrets; print(secrets.token_urlsafe(32))' makes one",
        )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        if sys.platform != "win32":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen(BACKLOG)  # who asks from here on waits for the start
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise ComposirError(
            f"{host}:{port} cannot be listened on ({error.strerror})", fix="give another --port or --host"
        ) from None
    return listening
