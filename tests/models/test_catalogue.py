"""Models by name: the table, what is downloaded and how often, what a broken download costs, and what is said."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from composir.errors import ComposirError
from composir.models.catalogue import MODELS, get, source_of_name

from ..small_duals import into_cache, save_clip

PAGE = Path(__file__).parents[2] / "docs/models.md"
BREAK = 4_000


class Hub(BaseHTTPRequestHandler):
    """What a hub answers for one repository; a file of weights breaks off after ``limit`` bytes, ``breaks`` times."""

    files: dict[str, bytes]
    name: str
    revision: str
    breaks = 0
    limit = BREAK
    asked: list[tuple[str, str]]
    """Of every file that was asked for, the range."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        here = f"/{self.name}/resolve/{self.revision}/"
        if path == f"/api/models/{self.name}/revision/{self.revision}":
            siblings = [{"rfilename": name} for name in self.files]
            self.reply_json({"id": self.name, "sha": self.revision, "siblings": siblings})
        elif path == f"/api/models/{self.name}/tree/{self.revision}":
            self.reply_json([self.entry(name) for name in self.files])
        elif path.startswith(here) and path.removeprefix(here) in self.files:
            self.reply_file(path.removeprefix(here))
        else:
            self.reply(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})

    do_HEAD = do_GET  # noqa: N815 (the names http.server calls)

    def entry(self, name):
        return {"type": "file", "path": name, "size": len(self.files[name]), "oid": self.tag(name)}

    def tag(self, name):
        content = self.files[name]
        is_large = name.endswith(".safetensors")
        return (hashlib.sha256(content) if is_large else hashlib.sha1(content)).hexdigest()

    def reply_file(self, name):
        content, wanted = self.files[name], self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        end = len(content)
        if self.command == "GET":
            self.asked.append((name, wanted))
            if name.endswith(".safetensors") and type(self).breaks > 0:
                type(self).breaks -= 1
                end = min(start + self.limit, end)
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        self.reply(206 if wanted else 200, content[start:], ETag=f'"{self.tag(name)}"', end=end - start, **span)

    def reply_json(self, document):
        self.reply(200, json.dumps(document).encode())

    def reply(self, status, content, end=None, **headers):
        self.send_response(status)
        length = {"Content-Length": str(len(content)), "X-Repo-Commit": self.revision}
        for name, value in {**length, "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:end])
            if end is not None and end < len(content):
                self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Return a running hub with a small BGE-VL-base, its cache empty on this machine."""
    folder = save_clip(tmp_path / "clip")
    model = MODELS["bge-vl-base"]
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    handler = type("TestHub", (Hub,), {"files": files, "name": model.hub_id, "revision": model.revision, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()
    server.server_close()


def test_a_name_is_downloaded_without_its_code_and_then_found(hub, run):
    code, out, err = run("models", "--json")
    assert code == 0, err
    assert json.loads(out)["models"]["bge-vl-base"]["folder"] is None
    code, out, err = run("models", "get", "bge-vl-base")
    assert code == 0, err
    assert "next: composir index PICTURES --model bge-vl-base --out PICTURES.index" in out
    folder = MODELS["bge-vl-base"].folder()
    assert str(folder) in out
    assert {file.name for file in folder.iterdir()} == {name for name in hub.files if not name.endswith(".py")}
    for file in folder.iterdir():
        assert file.read_bytes() == hub.files[file.name]
    assert folder.name == MODELS["bge-vl-base"].revision
    hub.asked.clear()
    assert get("bge-vl-base") == folder
    assert hub.asked == []  # what is there is not downloaded again
    _, out, _ = run("models", "--json")
    assert json.loads(out)["models"]["bge-vl-base"]["folder"] == str(folder)


def weights_asked(hub):
    return [wanted for name, wanted in hub.asked if name == "model.safetensors"]


@pytest.fixture
def in_small_pieces(monkeypatch):
    """Let what has come be written by the kilobyte, as by ten megabytes of a large file, and nobody wait to go on."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)


@pytest.mark.usefixtures("in_small_pieces")
def test_a_download_that_breaks_off_goes_on_where_it_ended(hub):
    hub.breaks = 3
    folder = get("bge-vl-base")
    assert (folder / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert weights_asked(hub) == ["", f"bytes={BREAK}-", f"bytes={2 * BREAK}-", f"bytes={3 * BREAK}-"]


@pytest.mark.usefixtures("in_small_pieces")
def test_a_download_that_failed_keeps_the_files_that_were_whole(hub, monkeypatch):
    monkeypatch.setattr(hub, "limit", 0)
    hub.breaks = 100
    with pytest.raises(ComposirError, match="BAAI/BGE-VL-base: could not be downloaded"):
        get("bge-vl-base")
    assert MODELS["bge-vl-base"].folder() is None
    hub.breaks = 0
    hub.asked.clear()
    folder = get("bge-vl-base")
    assert hub.asked == [("model.safetensors", "")]
    assert MODELS["bge-vl-base"].folder() == folder


def test_without_network_it_is_said_what_to_copy_where(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ComposirError) as caught:
        get("bge-vl-base")
    assert "run composir models get bge-vl-base, and copy the folder models--BAAI--BGE-VL-base" in caught.value.fix
    assert f"to {tmp_path / 'hub'} here" in caught.value.fix
    assert "into any folder and give bge-vl-base:FOLDER" in caught.value.fix


def test_a_revision_that_is_gone_is_one_line(hub, monkeypatch):
    monkeypatch.setattr(hub, "revision", "f" * 40)
    with pytest.raises(ComposirError, match="BAAI/BGE-VL-base: the hub answers 404 for revision cc4c733"):
        get("bge-vl-base")


def test_what_is_not_on_the_hub_says_where_it_is(run):
    code, _, err = run("models", "get", "sprc-cirr")
    assert code == 2
    assert "sprc-cirr is not on the hub; fix: download it from the link sprc_cirr.pt" in err
    code, _, err = run("models", "get", "bge-vl-bas")
    assert code == 2
    assert "did you mean" in err
    with pytest.raises(ComposirError, match="is listed for its figures alone: its queries have a Q-Former"):
        get("sprc-spn-cirr")
    code, _, err = run("convert", "--from", "sprc", "sprc-spn-cirr", "--out", "nowhere")
    assert code == 2
    assert "sprc-spn-cirr is not converted: its queries have a Q-Former of their own" in err


def test_convert_finds_a_name_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ComposirError, match="is not on this machine; fix: composir models get blip2-itm-vit-g"):
        source_of_name("blip2-itm-vit-g")
    into_cache(save_clip(tmp_path / "any"), tmp_path / "hub", "Salesforce/blip2-itm-vit-g", "a" * 40)
    assert source_of_name("blip2-itm-vit-g") == "Salesforce/blip2-itm-vit-g"
    assert source_of_name("another/model") == "another/model"


def test_every_name_says_what_it_is():
    for name, model in MODELS.items():
        assert model.hub_id or model.found_at, name
        assert len(model.revision) in ({40} if model.revision not in {"main", ""} else {4, 0}), name
        assert model.load or model.convert_from or model.note, name
        assert not [pattern for pattern in model.files if pattern.endswith((".py", "*"))], name  # never code


def test_the_table_prints_what_the_page_shows(run, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    code, out, err = run("models")
    assert code == 0, err
    shown = re.search(r"```text\n(name +kind.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert out == shown[1]
