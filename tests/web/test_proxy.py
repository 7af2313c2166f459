"""Behind a proxy, under a prefix that it cuts off or keeps."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urljoin, urlsplit

import httpx2
import pytest

from composir.web.guard import PAGE_FILES

KEY = "a-key-that-nobody-guesses"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "host"}


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on as nginx does unless told otherwise: with the address of the server behind as ``Host``."""

    protocol_version = "HTTP/1.1"
    behind = ""
    cuts_off = True

    def hand_on(self) -> None:
        """Answer one request."""
        path = self.path
        if not path.startswith("/pictures"):
            self.send_error(404)
            return
        if self.cuts_off:
            path = path.removeprefix("/pictures") or "/"
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        headers["X-Forwarded-Proto"] = "https"
        with httpx2.Client(trust_env=False) as client:
            answer = client.request(self.command, self.behind + path, headers=headers, content=body)
        self.send_response(answer.status_code)
        for name, value in answer.headers.multi_items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_HEAD = do_POST = hand_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(
    scope="module",
    params=[("", True), ("/pictures", True), ("/pictures/", False)],
    ids=["cut off and not told", "cut off", "kept"],
)
def proxied(request, shapes_index, running) -> Iterator[httpx2.Client]:
    """Return a client of a proxy before a server with a key; its address ends with the prefix and a slash."""
    root_path, cuts_off = request.param
    with running(shapes_index, api_key=KEY, root_path=root_path) as server:
        behind = f"http://{urlsplit(server.address).netloc}"
        assert server.address == behind + root_path.rstrip("/")
        handler = type("Handler", (Proxy,), {"behind": behind, "cuts_off": cuts_off})
        proxy = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        address = f"http://127.0.0.1:{proxy.server_port}/pictures/"
        with httpx2.Client(base_url=address, trust_env=False, headers={"Authorization": f"Bearer {KEY}"}) as client:
            yield client
        proxy.shutdown()
        thread.join()
        proxy.server_close()


@pytest.mark.parametrize("path", ["docs/", "api/health/", "api/images/?count=3&start=2", "openapi.json/"])
def test_a_redirection_stays_below_the_prefix(proxied, path):
    answer = proxied.get(path)
    assert answer.status_code == 307
    bare, mark, query = path.partition("?")
    there = urljoin(str(answer.url), answer.headers["location"])
    assert there == str(proxied.base_url) + bare.rstrip("/") + mark + query
    assert proxied.get(there).status_code == 200
    assert urlsplit(answer.headers["location"])[:2] == ("", "")  # scheme and host are the proxy's


def test_many_slashes_are_all_taken_back(client):
    """A browser counts each as a folder."""
    answer = client.get("/docs///?x=1", follow_redirects=False)
    assert answer.headers["location"] == "../../../docs?x=1"


def test_a_search_is_redirected_with_its_body(proxied):
    answer = proxied.post("api/search/", json={"text": "x", "top_k": 3}, follow_redirects=True)
    assert len(answer.json()["results"]) == 3


def test_all_that_the_page_and_the_documentation_load_lies_below_the_prefix(proxied):
    for place in ("", "docs"):
        page = proxied.get(place)
        links = re.findall(r'(?:href|src)="([^"#]+)"', page.text) + re.findall(r"url: '([^']+)'", page.text)
        links = [link for link in links if not link.startswith("data:")]
        assert len(links) >= 3
        for link in links:
            assert proxied.get(urljoin(str(page.url), link)).status_code == 200
    script = "".join(proxied.get(name).text for name in PAGE_FILES)
    assert len(re.findall(r"""["'`]api/""", script)) >= 5
    assert not re.search(r"""["'`]/(api|docs|page)""", script)


def test_the_document_says_where_its_operations_are(proxied):
    document = proxied.get("openapi.json")
    (server,) = document.json()["servers"]
    base = urljoin(str(document.url), server["url"])
    assert base == str(proxied.base_url)
    assert proxied.get(base.rstrip("/") + "/api/health").json()["status"] == "ok"


def test_a_browser_is_let_in_and_nobody_else(proxied, retriever):
    picture = f"api/images/{next(iter(retriever.images))}"
    session = proxied.post("api/session")
    assert "Secure" in session.headers["set-cookie"]
    with httpx2.Client(base_url=proxied.base_url, trust_env=False) as other:
        for path in (
            picture,
            "api/images",
            "metrics",
            "pictures/api/images",
            "docs/../api/images",
            "/docs/x/../../api",
        ):
            assert other.get(path).status_code in (401, 404)
        assert other.get(picture).status_code == 401
        assert other.head("docs").status_code == 200
        cookie = session.headers["set-cookie"].partition(";")[0]
        assert other.get(picture, headers={"Cookie": cookie}).status_code == 200


def test_the_cookie_is_for_the_prefix_that_is_known(proxied, request):
    told = "not told" not in request.node.name
    cookie = proxied.post("api/session").headers["set-cookie"]
    assert re.findall("Path=([^;]+)", cookie) == ["/pictures" if told else "/"]


def test_the_prefix_alone_leads_to_the_page(shapes_index, running):
    with running(shapes_index, api_key=KEY, root_path="/a/b.c") as server, httpx2.Client(trust_env=False) as client:
        answer = client.get(f"{server.address}?x=1")
        assert (answer.status_code, answer.headers["location"]) == (307, "/a/b.c/?x=1")
        for path in ("/a/b.c/", "/"):  # kept and cut off
            assert "<title>composir" in client.get(urljoin(server.address, path)).text
        client.headers["Authorization"] = f"Bearer {KEY}"
        for path in ("/a/b.cx/", "/a/b.c/a/b.c/", "/a/b.c//evil.example/docs/", "/a/b"):
            assert client.get(urljoin(server.address, path)).status_code == 404
