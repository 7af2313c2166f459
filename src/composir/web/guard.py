"""Around the whole application: who may ask, security headers, one line of log and the metrics of each request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from composir.web.problems import problem_response

access = logging.getLogger("composir.web.access")
COOKIE = "composir-session"
SCRIPTS = ("page", "results", "viewer", "look", "earlier", "server", "steps", "text", "dom")
PAGE_FILES = ("page.css", *(f"{name}.js" for name in SCRIPTS))
"""What the page is made of beside ``index.html``."""
OPEN_PATHS = ("/", *(f"/{name}" for name in PAGE_FILES), "/api/health", "/openapi.json", "/docs")
"""What needs no key: the page itself and what programs read first; none of it shows a picture."""
CLIENT_GONE = 499
"""In log and metrics, as nginx has it: who asked did not wait for the answer, so there is none."""
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
"""Of every answer that does not say something else itself."""
MAX_LOGGED = 200
"""Characters of a path in the log."""
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


def session_of(key: str) -> str:
    """Return what a browser is given to show in place of the key: nothing from which the key could be had."""
    return hmac.new(key.encode(), b"composir session", hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Return whether a name or an address (of IPv6 also in brackets) can be none but this machine's own."""
    try:
        address = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class Guard:
    """The application with a guard before it; both are one ASGI application.

    Without a key only this machine may ask, and only under its own names and the one it listens under: a page elsewhere
    whose name is pointed at 127.0.0.1 is refused. With one, everything but ``OPEN_PATHS`` needs it, as
    ``Authorization: Bearer KEY`` or by the cookie that ``POST /api/session`` gives for it.

    HEAD is answered as GET is, without the body. ``root_path`` may stand before a path or be cut off by the proxy. The
    work for a client that went away is cancelled.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: str | None,
        max_upload_bytes: int,
        registry: CollectorRegistry,
        host: str,
        root_path: str,
    ) -> None:
        self._app = app
        self._host = host.lower()
        self._root_path = root_path
        self._key = None if api_key is None else api_key.encode()
        self._session = None if api_key is None else session_of(api_key).encode()
        self._max_bytes = max_upload_bytes
        self._requests = Counter(
            "composir_requests_total", "Requests", ("method", "route", "status"), registry=registry
        )
        self._seconds = Histogram(
            "composir_request_seconds", "Time to answer", ("route",), buckets=BUCKETS, registry=registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or what else ASGI has to say."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        method, path = scope["method"], self._route_path(scope["path"])
        scope = {
            **scope,
            "method": "GET" if method == "HEAD" else method,
            "root_path": self._root_path,
            "path": self._root_path + path,
            "composir.request_id": str(uuid.uuid4()),
        }
        status, num_bytes, answered = 0, 0, False

        async def send_on(message: Message) -> None:
            nonlocal status, num_bytes, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-ID"] = scope["composir.request_id"]
                if headers.get("allow") == "GET":
                    headers["Allow"] = "GET, HEAD"
                if "location" in headers:
                    headers["Location"] = self._redirection(path, headers["location"])
            elif method == "HEAD":
                message = {**message, "body": b""}
            num_bytes += len(message.get("body", b""))
            answered = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            refusal = self._refusal(scope, path, Headers(scope=scope))
            if not await _while_there(refusal or self._app, scope, receive, send_on, lambda: answered):
                status = status or CLIENT_GONE
        except Exception:
            if not status:
                raise  # nothing was answered: the server closes the connection and says why in its log
        finally:
            seconds = time.perf_counter() - start
            self._tell(scope, method=method, path=path, status=status, num_bytes=num_bytes, seconds=seconds)

    def _route_path(self, path: str) -> str:
        """Return a path without the prefix, whether the proxy has cut it off or not; empty: the prefix alone."""
        if path == self._root_path or path.startswith(f"{self._root_path}/"):
            return path[len(self._root_path) :]
        return path

    def _redirection(self, path: str, location: str) -> str:
        """Return where a redirection leads, without scheme and host, which are a proxy's to know.

        All lead to a path without the slashes at the end of ``path``. Without a prefix that we know, the answer is
        relative to what was asked, so that one we do not know stays.
        """
        target, mark, query = re.sub("^https?://[^/]*", "", location).partition("?")
        if not self._root_path:
            target = "../" * (len(path) - len(path.rstrip("/"))) + target.rpartition("/")[2]
        return target + mark + query

    def _refusal(self, scope: Scope, path: str, headers: Headers) -> ASGIApp | None:
        """Return the answer to a request that may not ask, before anything of its body is read."""

        def refuse(status: int, name: str, detail: str, **more: str) -> ASGIApp:
            instance = f"urn:uuid:{scope['composir.request_id']}"
            return problem_response(status, detail, name=name, instance=instance, headers=more)

        host = _without_port(headers.get("host", ""))
        if self._key is None and not is_loopback(host) and host != self._host:
            detail = "without a key this server answers to localhost only; --api-key lets it be asked by other names"
            return refuse(421, "not-this-host", detail)
        if scope["method"] == "POST" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return refuse(403, "another-site", "another site's page may not ask")
        if not path:  # what the page names lies below the prefix only if its address ends with a slash
            return RedirectResponse(f"{self._root_path}/?{scope['query_string'].decode('latin-1')}".removesuffix("?"))
        if not self._may_ask(path, headers):
            more = {"WWW-Authenticate": "Bearer"}
            return refuse(401, "key-needed", "send the key as 'Authorization: Bearer KEY'", **more)
        length = headers.get("content-length", "0")
        if length.isascii() and length.isdecimal() and int(length) > self._max_bytes:
            limit = f"{self._max_bytes / 2**20:g} MiB"
            return refuse(413, "too-large", f"the request is larger than {limit}", Connection="close")
        return None

    def _may_ask(self, path: str, headers: Headers) -> bool:
        if self._key is None or self._session is None or path in OPEN_PATHS or path.startswith("/docs/"):
            return True
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode("latin-1"), self._key):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and hmac.compare_digest(cookie.value.encode("latin-1", "replace"), self._session)

    def _tell(self, scope: Scope, *, method: str, path: str, status: int, num_bytes: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        counted = method if method in ("GET", "HEAD", "POST") else "other"
        self._requests.labels(counted, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        line = {
            "client": (scope.get("client") or ("",))[0],
            "method": method,
            "path": path[:MAX_LOGGED],
            "status": status,
            "bytes": num_bytes,
            "milliseconds": round(1000 * seconds, 1),
            "request": scope["composir.request_id"],
        }
        access.info("%s", json.dumps(line), extra={"fields": line})


async def _while_there(app: ASGIApp, scope: Scope, receive: Receive, send: Send, answered: Callable[[], bool]) -> bool:
    """Answer a request and return True; if the client goes away first, cancel the answer and return False."""
    gone = False
    watcher: asyncio.Task[None] | None = None

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        if not answered():  # a server says the same after the last of an answer
            gone = True
            answer.cancel()

    async def receive_on() -> Message:
        nonlocal gone, watcher
        message = await receive()
        if message["type"] == "http.disconnect":
            gone = True
            raise asyncio.CancelledError
        if not message.get("more_body"):
            watcher = asyncio.ensure_future(watch())
        return message

    answer = asyncio.ensure_future(app(scope, receive_on, send))
    if scope["method"] == "GET":  # whose body nobody reads
        watcher = asyncio.ensure_future(watch())
    try:
        await answer
    except (asyncio.CancelledError, Exception):
        if not gone:
            raise
    finally:
        if watcher is not None:
            watcher.cancel()
    return not gone


def _without_port(host: str) -> str:
    return host.rsplit(":", 1)[0].lower() if not host.endswith("]") else host.lower()
