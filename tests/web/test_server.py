"""The running server: its address, its log, its stop; and the mistakes that keep it from starting."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from composir.errors import ComposirError
from composir.web import PACKAGES, Limits, open_server
from composir.web.log import JsonLines


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "--host 0.0.0.0 lets other machines ask, and there is no key; fix: give --api-key, or"),
        ({"host": "::"}, "--host :: lets other machines ask"),
        ({"host": "pictures.example"}, "--host pictures.example lets other machines ask"),
        ({"api_key": "fifteen-letters"}, "expected at least 16 ASCII letters and digits; fix: python -c"),
        ({"api_key": "sixteen letters!"}, "the key is too short or holds a character that headers do not"),
        ({"api_key": "ключ" * 9}, "the key is too short or holds a character that headers do not"),
        ({"host": "127.0.0.1", "port": "taken"}, "cannot be listened on (Address already in use); fix: give another"),
    ],
)
def test_what_keeps_a_server_from_starting_is_said(shapes_index, options, words):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if options.get("port") == "taken":
            options = {**options, "port": taken.getsockname()[1]}
        with pytest.raises(ComposirError) as error:
            open_server(shapes_index, **{"port": 0, **options})
    assert words in str(error.value)
    assert "api_key" not in options or options["api_key"] not in str(error.value)


def test_what_is_no_index_frees_the_address_again(tmp_path):
    with pytest.raises(ComposirError, match="is not an index"):
        open_server(tmp_path, port=0)


def test_a_missing_extra_gives_the_command_that_installs_it(shapes_index, monkeypatch):
    for package in PACKAGES:
        with monkeypatch.context() as patch, pytest.raises(ComposirError) as error:
            patch.setitem(sys.modules, package, None)
            open_server(shapes_index, port=0)
        assert str(error.value) == (
            f"serving needs packages that are not installed: {package}; fix: pip install 'composir[web]'"
        )


def test_every_flag_reaches_the_server(run, monkeypatch, shapes_index):
    opened = []

    class Opened:
        complete, folder = False, Path("some.index")
        images = SimpleNamespace(root=Path("pictures"))

        def __len__(self) -> int:
            return 1234

    class Stopped:
        retriever = Opened()
        address = "http://here"

        def run(self) -> None:
            opened.append("run")

    monkeypatch.setattr(
        "composir.web.open_server", lambda index, **options: opened.append((index, options)) or Stopped()
    )
    monkeypatch.setattr("composir.web.log.log_as_json", lambda: None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    flags = {"host": "::1", "port": 12, "api-key": "k" * 16, "queue": 3, "max-upload": 7, "model": "m", "device": "cpu"}
    code, out, err = run("serve", shapes_index, *[part for flag in flags.items() for part in (f"--{flag[0]}", flag[1])])
    assert code == 0
    assert out == "1,234 pictures at http://here (interface for programs: http://here/docs); Ctrl-C stops\n"
    assert err == "note: some.index is not complete; composir index pictures --out some.index goes on\n"
    limits = Limits(max_waiting=3, max_upload_bytes=7 * 2**20)
    options = {"host": "::1", "port": 12, "api_key": "k" * 16, "limits": limits, "model": Path("m"), "device": "cpu"}
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
    key = "a-key-that-nobody-guesses"
    environment = {**os.environ, "COMPOSIR_API_KEY": key, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from composir.cli import main; main()", "serve", str(shapes_index), "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = int(line.split(" at http://127.0.0.1:")[1].split(" ")[0])
        body = b"text=x&top_k=3"
        head = (
            f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
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
    assert out == ""
    (asked,) = [one for one in map(json.loads, log.splitlines()) if one.get("path") == "/api/search"]
    assert asked["status"] == 200
    assert key not in line + log
