"""Around the whole application: who may ask, security headers, one line of log and the metrics of each request."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import time
import uuid
from http.cookies import CookieError, SimpleCookie

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from composir.web.problems import problem_response

access = logging.getLogger("composir.web.access")
COOKIE = "composir-session"
OPEN_PATHS = ("/", "/page.css", "/page.js", "/api/health", "/openapi.json", "/docs")
"""What needs no key: the page itself and what programs read first; none of it shows a picture."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
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


class Guard:
    """The application with a guard before it; both are one ASGI application.

    Without a key only this machine may ask, and only under its own names: a page elsewhere whose name is pointed at
    127.0.0.1 is refused. With one, everything but ``OPEN_PATHS`` needs it, as ``Authorization: Bearer KEY`` or by the
    cookie that ``POST /api/session`` gives for it.
    """

    def __init__(
        self, app: ASGIApp, *, api_key: str | None, max_upload_bytes: int, registry: CollectorRegistry
    ) -> None:
        self._app = app
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
        scope["composir.request_id"] = str(uuid.uuid4())
        status, num_bytes = 0, 0

        async def send_on(message: Message) -> None:
            nonlocal status, num_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-ID"] = scope["composir.request_id"]
            num_bytes += len(message.get("body", b""))
            await send(message)

        try:
            refusal = self._refusal(scope, Headers(scope=scope))
            await (refusal or self._app)(scope, receive, send_on)
        except Exception:
            if not status:
                raise  # nothing was answered: the server closes the connection and says why in its log
        finally:
            self._tell(scope, status, num_bytes, time.perf_counter() - start)

    def _refusal(self, scope: Scope, headers: Headers) -> ASGIApp | None:
        """Return the answer to a request that may not ask, before anything of its body is read."""

        def refuse(status: int, name: str, detail: str, **more: str) -> ASGIApp:
            instance = f"urn:uuid:{scope['composir.request_id']}"
            return problem_response(status, detail, name=name, instance=instance, headers=more)

        if self._key is None and _without_port(headers.get("host", "")) not in LOOPBACK_NAMES:
            return refuse(421, "not-this-host", "without a key this server answers to localhost only")
        if scope["method"] == "POST" and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return refuse(403, "another-site", "another site's page may not ask")
        if not self._may_ask(scope["path"], headers):
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

    def _tell(self, scope: Scope, status: int, num_bytes: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in ("GET", "POST") else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        line = {
            "client": (scope.get("client") or ("",))[0],
            "method": scope["method"],
            "path": scope["path"][:MAX_LOGGED],
            "status": status,
            "bytes": num_bytes,
            "milliseconds": round(1000 * seconds, 1),
            "request": scope["composir.request_id"],
        }
        access.info("%s", json.dumps(line), extra={"fields": line})


def _without_port(host: str) -> str:
    return host.rsplit(":", 1)[0].lower() if not host.endswith("]") else host.lower()
