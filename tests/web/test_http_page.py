"""docs/reference/http.md shows what a server answers."""

from __future__ import annotations

import io
import json
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from composir.samples import SAMPLES
from composir.search import Retriever, index_folder

PAGE = Path(__file__).parents[2] / "docs/reference/http.md"
CURL = re.compile(r"```bash\n(curl .*?)```(?:\n\n```json\n(.*?)```)?", re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"


def curl(client, command):
    """Return the answer to what ``curl`` would send."""
    _, _, address, *rest = shlex.split(command.replace("\\\n", ""))
    fields, files, sent = {}, {}, {}
    for flag, value in zip(rest[::2], rest[1::2], strict=True):
        name, _, content = value.partition("=")
        if flag == "-F" and content.startswith("@samples/"):
            files[name] = (SAMPLES / content.removeprefix("@samples/")).read_bytes()
        elif flag == "-F":
            fields[name] = content
        elif flag == "-d":
            sent = {"json": json.loads(value)}
    if fields:
        sent = {"data": fields, "files": files}
    return client.request("POST" if sent else "GET", address.removeprefix(ADDRESS), **sent)


def assert_shows(shown, answered):
    """Check that everything shown is in the answer; scores by three digits, and times are not compared."""
    if isinstance(shown, dict):
        for name in shown.keys() - {"milliseconds"}:
            assert_shows(shown[name], answered[name])
    elif isinstance(shown, list):
        for one, other in zip(shown, answered, strict=True):
            assert_shows(one, other)
    else:
        assert shown == (pytest.approx(answered, abs=0.003) if isinstance(shown, float) else answered)


def test_its_requests_are_answered_as_it_shows(serving, tmp_path):
    index_folder(SAMPLES, tmp_path / "index")
    requests = CURL.findall(PAGE.read_text(encoding="utf-8"))
    assert len(requests) == 5
    with Retriever(tmp_path / "index") as retriever, serving(retriever) as client:
        for command, shown in requests:
            answer = curl(client, command)
            if shown:
                assert_shows(json.loads(shown), answer.json())
            else:
                assert Image.open(io.BytesIO(answer.content)).format == "JPEG"
