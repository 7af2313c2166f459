"""The running server: its address, its log, its stop; and the mistakes that keep it from starting."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx2
import pytest
from prometheus_client import CollectorRegistry

from composir.errors import ComposirError
from composir.web import PACKAGES, Limits, open_server
from composir.web.guard import Guard
from composir.web.log import JsonLines
from composir.web.scale import Scales

KEY = "a-key-that-nobody-guesses"
LINUX = sys.platform == "linux"
"""Which has all of 127.0.0.0/8 without being told."""
MISTAKES = [
    (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines ask, and there is no key; fix: give --api-key, or"),
    (["--host", "::"], "--host :: lets other machines ask"),
    (["--host", "0"], "--host 0 lets other machines ask"),
    (["--host", "far.example"], "--host far.example lets other machines ask"),
    (["--host", "nowhere.example"], "--host 'nowhere.example' is no address and no name of one; fix: leave out --host"),
    (["--host", ""], "--host '' is no address and no name of one"),
    (["--host", "http://localhost"], "--host 'http://localhost' is no address and no name of one"),
    (["--host", "x" * 70, "--api-key", KEY], "is no address and no name of one; fix: leave out --host for this"),
    (["--host", "198.51.100.7", "--api-key", KEY], "198.51.100.7:0 cannot be listened on (Cannot assign requested "
     "address); fix: leave out --host for this machine alone, or give one of its own addresses"),
    (["--port", "taken"], "cannot be listened on (Address already in use); fix: give another --port (0: any that is"),
    (["--api-key", ""], "the key is empty; expected at least 16 ASCII letters and digits; fix: python -c"),
    (["--api-key", "fifteen-letters"], "expected at least 16 ASCII letters and digits; fix: python -c"),
    (["--api-key", "sixteen letters!"], "the key is too short or holds a character that headers do not"),
    (["--api-key", "ключ" * 9], "the key is too short or holds a character that headers do not"),
    (["--root-path", "pictures"], "--root-path 'pictures' is not the beginning of a path; expected a slash and names"),
    (["--root-path", "https://a.example/b"], "give what the proxy puts before the paths of this server, such as"),
    (["--root-path", "//a.example"], "is not the beginning of a path"),
    (["--root-path", "/a/../b"], "is not the beginning of a path"),
    (["--root-path", "/a?b"], "is not the beginning of a path"),
    (["--root-path", "/\u00e9"], "is not the beginning of a path"),
    (["--root-path", "/[b]a"], "--root-path '/[b]a' is not the beginning of a path"),
    (["--root-path", "/api/x"], "--root-path '/api/x' begins with a name that this server uses itself; fix: let the"),
    (["--device", "foo"], "--device 'foo' is none that torch can use here; expected cpu"),
    (["--device", "meta"], "--device 'meta' is none that torch can use here; expected cpu"),
    (["--device", ""], "--device '' is none that torch can use here; expected cpu"),
]  # fmt: skip


@pytest.fixture
def names(monkeypatch) -> None:
    """Stand in for the names that a network knows."""
    ask = socket.getaddrinfo
    known = {"far.example": "203.0.113.5", "mine.example": "127.0.0.1", "LocalHost": "127.0.0.1"}

    def answer(host, *more, **options):
        if host in ("nowhere.example", "http://localhost"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return ask(known.get(host, host), *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("arguments", "words"), MISTAKES, ids=lambda one: " ".join(one) if isinstance(one, list) else ""
)
def test_what_keeps_a_server_from_starting_is_one_line(run, shapes_index, arguments, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = [port if one == "taken" else one for one in arguments]
        code, out, err = run("serve", shapes_index, *([] if "--port" in arguments else ["--port", 0]), *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert words in err
    assert "fix: " in err
    if "--api-key" in arguments and arguments[-1] not in ("", KEY):
        assert arguments[-1] not in err


def test_an_empty_key_in_the_environment_is_no_leave_to_go_without(run, shapes_index, monkeypatch):
    monkeypatch.setenv("COMPOSIR_API_KEY", "")
    code, out, err = run("serve", shapes_index, "--port", 0)
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: COMPOSIR_API_KEY is empty; fix: unset it to serve this machine alone without a key, or"
    )


@pytest.mark.parametrize("what", ["nothing", "a file", "an empty folder", "a folder of pictures"])
def test_what_is_no_index_is_one_line(run, shapes_index, tmp_path, what):
    place = tmp_path / "here [x]"
    if what == "a file":
        place.write_text("")
    elif what == "an empty folder":
        place.mkdir()
    elif what == "a folder of pictures":
        place = shapes_index.parent / "pictures"
    code, out, err = run("serve", place, "--port", 0)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    is_pictures = what == "a folder of pictures"
    assert f"{place}: {'is a folder of pictures, not its index' if is_pictures else 'is not an index'}" in err
    assert "composir index" in err


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.1", "mine.example"] + ["127.0.0.2"] * LINUX)
def test_every_address_and_name_of_this_machine_alone_is_answered(shapes_index, running, host):
    with running(shapes_index, host=host) as server:
        port = server.address.rpartition(":")[2]
        assert server.address == f"http://{host}:{port}"
        bound = server._socket.getsockname()[0]
        for given, status in ((f"{host}:{port}", 200), (host.upper(), 200), ("evil.example", 421)):
            for method in ("GET", "HEAD"):
                connection = http.client.HTTPConnection(bound, int(port), timeout=60)
                connection.request(method, "/api/health", headers={"Host": given})
                answer = connection.getresponse()
                assert answer.status == status
                assert (answer.read() == b"") == (method == "HEAD")
                connection.close()


def test_what_is_no_index_frees_the_address_again(tmp_path):
    with pytest.raises(ComposirError, match="is not an index"):
        open_server(tmp_path, port=0)


def test_a_missing_extra_gives_the_command_that_installs_it(shapes_index, monkeypatch):
    for package in PACKAGES:
        with monkeypatch.context() as patch, pytest.raises(ComposirError) as error:
            patch.setitem(sys.modules, package, None)
            open_server(shapes_index, port=0)
        assert str(error.value).startswith(
            f"serving needs packages that are not installed: {package}; fix: pip install 'fastapi-offline>="
        )


def test_every_flag_reaches_the_server(run, monkeypatch, shapes_index):
    opened = []

    class Opened:
        complete, folder = False, Path("some.index")
        images = SimpleNamespace(root=Path("pictures"))
        model_line = "photos (for photographs)"

        def __len__(self) -> int:
            return 1234

    class Stopped:
        retriever = Opened()
        address = "http://here"
        awaits_head = True

        def run(self) -> None:
            opened.append("run")

    monkeypatch.setattr(
        "composir.web.open_server", lambda index, **options: opened.append((index, options)) or Stopped()
    )
    monkeypatch.setattr("composir.web.log.log_as_json", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    flags = {"host": "::1", "port": 12, "api-key": "k" * 16, "queue": 3, "max-upload": 7, "model": "m", "device": "cpu"}
    flags |= {"root-path": "/pictures", "record": "choices.jsonl"}
    code, out, err = run("serve", shapes_index, *[part for flag in flags.items() for part in (f"--{flag[0]}", flag[1])])
    assert code == 0
    assert out == (
        "1,234 pictures at http://here (interface for programs: http://here/docs); Ctrl-C stops\n"
        "model: photos (for photographs)\n"
        "no head is in m yet; the first that is put there answers from then on\n"
        "what is marked as meant is kept in choices.jsonl, and nothing else\n"
    )
    assert err == "note: some.index is not complete; composir index pictures --out some.index goes on\n"
    limits = Limits(max_waiting=3, max_upload_bytes=7 * 2**20)
    options = {"host": "::1", "port": 12, "api_key": "k" * 16, "limits": limits, "model": Path("m"), "device": "cpu"}
    options |= {"root_path": "/pictures", "record": Path("choices.jsonl")}
    assert opened == [(shapes_index, options), "run"]


def test_a_log_record_is_one_line_of_json():
    lines = JsonLines()
    record = logging.LogRecord("composir.web", logging.INFO, "", 0, "two\nlines %s", ("x",), None)
    assert json.loads(lines.format(record))["message"] == "two\nlines x"
    assert "\n" not in lines.format(record)
    record.fields = {"status": 200}
    assert json.loads(lines.format(record))["status"] == 200
    assert "message" not in json.loads(lines.format(record))
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("composir.web", logging.ERROR, "", 0, "failed", (), sys.exc_info())
    assert "ValueError: why" in json.loads(lines.format(record))["error"]


def test_a_stop_answers_who_is_waiting(shapes_index):
    """A whole process: its one line on stdout, JSON lines on stderr, no key in either; SIGTERM ends it with 0."""
    environment = {**os.environ, "COMPOSIR_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from composir.cli import main; main()", "serve", str(shapes_index), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line, model_line = process.stdout.readline(), process.stdout.readline()
        port = int(line.split(" at http://127.0.0.1:")[1].split(" ")[0])
        body = b"text=x&top_k=3"
        head = (
            f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
            "Expect: 100-continue\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 100")  # it waits for the body now
            process.send_signal(signal.SIGTERM)
            connection.sendall(body)
            answer = b"".join(iter(lambda: connection.recv(2**16), b""))
        out, log = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, log
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["results"]) == 3
    assert line.startswith("12 pictures at ")
    assert model_line.startswith("model: ")
    assert out == ""
    (asked,) = [one for one in map(json.loads, log.splitlines()) if one.get("path") == "/api/search"]
    assert asked["status"] == 200
    assert KEY not in line + log


def send(address: str, request: bytes) -> socket.socket:
    """Return the connection on which a request, or its beginning, was sent."""
    place = urlsplit(address)
    connection = socket.create_connection((place.hostname or "", place.port or 0), timeout=60)
    connection.sendall(request.replace(b"\n", b"\r\n"))
    return connection


def search_of(text: bytes) -> bytes:
    head = b"POST /api/search HTTP/1.1\nHost: localhost\nContent-Type: application/x-www-form-urlencoded\n"
    return head + b"Content-Length: %d\n\ntext=%b" % (len(text) + 5, text)


def failures(caplog) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]


def count_of(metrics: str, status: int) -> float:
    return sum(float(one) for one in re.findall(rf'requests_total\{{.*status="{status}"\}} (\S+)', metrics))


def test_a_search_that_nobody_waits_for_is_not_computed(shapes_index, running, monkeypatch, caplog, until):
    monkeypatch.setattr("composir.web.scale.measure", lambda *_, **__: Scales())  # it searches as well
    caplog.set_level(logging.INFO)
    seen: list[str] = []

    def remember(server) -> None:
        ask = server.retriever.search_many
        server.retriever.search_many = lambda queries: [seen.extend(one.text for one in queries), ask(queries)][1]

    with running(shapes_index, remember) as server, httpx2.Client(base_url=server.address, trust_env=False) as client:
        metrics = lambda: client.get("/metrics").text  # noqa: E731
        with server.retriever._lock:  # the model is busy with the first
            first = send(server.address, search_of(b"first"))
            until(lambda: seen == ["first"])
            gone = send(server.address, search_of(b"gone"))
            last = send(server.address, search_of(b"last"))
            until(lambda: "composir_waiting 3.0" in metrics())
            gone.close()
            until(lambda: "composir_waiting 2.0" in metrics())  # its place is free at once
        for connection in (first, last):
            assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
            connection.close()
        assert seen == ["first", "last"]
        assert count_of(metrics(), 499) == 1
        assert count_of(metrics(), 500) == 0
    assert failures(caplog) == []
    logged = [one.fields for one in caplog.records if one.name == "composir.web.access"]
    assert [one["path"] for one in logged if one["status"] == 499] == ["/api/search"]


def test_a_picture_that_nobody_waits_for_is_not_made(shapes_index, running, monkeypatch, caplog, until):
    held, made = threading.Event(), []
    monkeypatch.setattr("composir.web.service.NUM_DECODERS", 1)
    monkeypatch.setattr("composir.web.app.encode", lambda *_, **__: [made.append(1), held.wait(60), b"picture"][2])

    def get(image_id: str, method: str = "GET") -> bytes:
        return f"{method} /api/images/{image_id} HTTP/1.1\nHost: localhost\n\n".encode()

    with running(shapes_index) as server, httpx2.Client(base_url=server.address, trust_env=False) as client:
        first, gone, last = list(server.retriever.images)[:3]
        waiting = [send(server.address, get(first))]
        until(lambda: made == [1])
        going = [send(server.address, get(gone)), send(server.address, get(gone, "HEAD"))]
        waiting.append(send(server.address, get(last)))
        for connection in going:
            connection.close()
        until(lambda: count_of(client.get("/metrics").text, 499) == 2)
        held.set()
        for connection in waiting:
            answer = b""
            while not answer.endswith(b"picture"):
                answer += connection.recv(2**16)
            connection.close()
    assert made == [1, 1]
    assert failures(caplog) == []


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=x", "application/json", "image/png"])
def test_who_goes_away_while_sending_is_no_error(shapes_index, running, caplog, kind, until):
    head = f"POST /api/search HTTP/1.1\nHost: localhost\nContent-Type: {kind}\nContent-Length: 900\n\n"
    with running(shapes_index) as server, httpx2.Client(base_url=server.address, trust_env=False) as client:
        for body in ("", '--x\nContent-Disposition: form-data; name="image"; filename="a.png"\n\nhalf'):
            send(server.address, (head + body).encode()).close()
        until(lambda: count_of(client.get("/metrics").text, 499) == 2)
        assert count_of(client.get("/metrics").text, 500) == 0
        assert client.post("/api/search", json={"text": "x"}).status_code == 200
    assert failures(caplog) == []


def test_what_follows_an_answer_is_not_cut_short():
    """A server says "disconnected" after every answer; what tidies up behind it then still runs."""
    sent, done = asyncio.Event(), []

    async def answer(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})
        for _ in range(10):
            await asyncio.sleep(0)
        done.append("tidy")

    async def receive() -> dict:
        await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message) -> None:
        if message["type"] == "http.response.body":
            sent.set()

    guard = Guard(
        answer, api_key=None, max_upload_bytes=1, registry=CollectorRegistry(), host="localhost", root_path=""
    )
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")], "query_string": b""}
    asyncio.run(guard(scope, receive, send))
    assert done == ["tidy"]


def test_who_goes_away_with_the_answer_in_hand_is_counted_as_answered(shapes_index, running, caplog):
    with running(shapes_index) as server, httpx2.Client(base_url=server.address, trust_env=False) as client:
        for _ in range(20):
            connection = send(server.address, search_of(b"x"))
            assert connection.recv(1).startswith(b"H")
            connection.close()
        metrics = client.get("/metrics").text
        assert (count_of(metrics, 200), count_of(metrics, 499)) == (20, 0)
    assert failures(caplog) == []
