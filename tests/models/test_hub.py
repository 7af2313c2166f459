"""Checkpoints to a hub and back, over HTTP, against a hub that this file plays."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

import composir
from composir.errors import ComposirError
from composir.features import open_base, open_embedder, open_model
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained, weights_hash
from composir.models.heads.folder import HeadConfig, make_head, save_head
from composir.models.heads.head import head_hash
from composir.models.weights.sources import locate
from composir.search import Retriever, index_folder
from composir.token_cache import TokenPlace

COMMIT = "a" * 40


class FakeHub(BaseHTTPRequestHandler):
    """What ``huggingface_hub`` asks of a hub for one repository, with the files in memory."""

    files: dict[str, bytes]
    url: str
    is_locked = False

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        repository = "/api/models/me/model"
        if self.is_locked:
            self.reply(403, b'{"error": "not yours"}')
        elif path == "/api/repos/create":
            self.reply_json({"url": f"{self.url}/me/model"})
        elif path == "/api/validate-yaml":
            self.reply_json({"errors": [], "warnings": []})
        elif path == f"{repository}/preupload/main":
            asked = json.loads(body)["files"]
            modes = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in asked]
            self.reply_json({"files": modes})
        elif path == f"{repository}/commit/main":
            entries = [json.loads(line) for line in body.splitlines()]
            contents = [entry["value"] for entry in entries if entry["key"] == "file"]
            self.files.update({one["path"]: base64.b64decode(one["content"]) for one in contents})
            self.reply_json({"commitUrl": f"{self.url}/me/model/commit/{COMMIT}", "commitOid": COMMIT})
        elif path == f"{repository}/revision/main" and self.files:
            siblings = [{"rfilename": name} for name in self.files]
            self.reply_json({"id": "me/model", "sha": COMMIT, "siblings": siblings, "tags": []})
        elif path == f"{repository}/tree/{COMMIT}":
            self.reply_json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in self.files.items()
                ]
            )
        elif path.startswith(f"/me/model/resolve/{COMMIT}/"):
            content = self.files[path.rpartition("/")[2]]
            self.reply(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"')
        else:
            self.reply(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    def reply_json(self, document):
        self.reply(200, json.dumps(document).encode())

    def reply(self, status, content, **headers):
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_HEAD = answer  # noqa: N815 (the names http.server calls)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Return a running hub, empty, that huggingface_hub takes for the real one."""
    handler = type("Hub", (FakeHub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", handler.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", handler.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_pretrained(build("tiny"), tmp_path / "best", extra_files={"recipe.toml": b"seed = 0\n"})
    return tmp_path / "best"


def test_a_checkpoint_goes_to_the_hub_and_comes_back(hub, folder, monkeypatch):
    address = composir.push_to_hub(folder, "me/model", token="hf_of_a_test")
    assert COMMIT in address
    assert set(hub.files) == {file.name for file in folder.iterdir()}
    model = composir.load("me/model")
    assert weights_hash(model) == weights_hash(composir.load(folder))
    path, name = locate("me/model", "")
    assert name == "me/model"
    assert (path / "recipe.toml").read_text() == "seed = 0\n"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what was downloaded once stays
    assert weights_hash(composir.load("me/model")) == weights_hash(model)


def test_what_the_hub_refuses_is_one_clear_error(hub, folder):
    with pytest.raises(ComposirError, match="me/model: is not here, and the hub answers 404: no such repository"):
        composir.load("me/model")
    hub.is_locked = True
    with pytest.raises(ComposirError, match="me/model: is not here, and the hub answers 403"):
        composir.load("me/model")
    with pytest.raises(ComposirError, match=r"cannot be put on the hub as me/model .*403.*fix: check the name"):
        composir.push_to_hub(folder, "me/model", token="hf_of_a_test")
    with pytest.raises(ComposirError, match="cannot be put on the hub as no such name!"):
        composir.push_to_hub(folder, "no such name!", token="hf_of_a_test")


@pytest.fixture
def head(hub, folder, tmp_path):
    """Return a head on the checkpoint ``folder`` that lies on the hub as me/model, and whose folder is gone."""
    base, identity = open_embedder(folder, (), place=TokenPlace("memory"))
    dim, text_dim = base.model.config.embed_dim, base.embed_words(["red"]).shape[-1]
    config = HeadConfig(head="sum", base=str(folder), base_hash=identity, dim=dim, text_dim=text_dim)
    head = make_head(config)
    torch.nn.init.normal_(head.change.text_proj.weight)
    save_head(head, config, tmp_path / "head")
    hub.files.update({file.name: file.read_bytes() for file in (tmp_path / "head").iterdir()})
    shutil.rmtree(tmp_path / "head")
    return head_hash(head, identity)


def test_a_head_is_found_by_its_hub_id_and_in_the_cache(head, folder, shapes_root, run, monkeypatch):
    index = folder.parent / "index"
    assert open_model("me/model", "cpu").saved.weights_hash == head
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what was downloaded once stays
    index_folder(shapes_root / "dev", index, model=folder)
    asked = shapes_root / "dev/val-red-ellipse.png"
    with Retriever(index) as plain, Retriever(index, model="me/model") as taught:
        assert taught.encoder.identity == head
        assert taught.search(asked, "red") != plain.search(asked, "red")
    with pytest.raises(
        ComposirError, match=r"me/model: is a head, and a head goes on a model; fix: give its own base, /"
    ):
        open_base("me/model", "cpu")
    code, out, _ = run("models", "get", "me/model", "--json")
    assert code == 0
    assert json.loads(out)["revision"] == COMMIT
    code, out, _ = run("models", "get", "me/model")
    assert out.splitlines()[1] == "next: composir search INDEX --model me/model --image PICTURE --text SENTENCE"
    shutil.rmtree(folder)
    with pytest.raises(
        ComposirError, match=r"config.json: names the model below it, .*best, which is not there; fix: put"
    ):
        open_model("me/model", "cpu")


def test_only_what_is_of_composir_is_downloaded_by_a_hub_id(hub, run, tmp_path):
    hub.files.update({"config.json": b'{"model_type": "clip"}', "model.safetensors": b"large"})
    code, _, err = run("models", "get", "me/model")
    assert code == 2
    assert "me/model: is neither a checkpoint nor a head of composir's" in err
    assert "--model st:me/model" in " ".join(err.split())
    assert not list((tmp_path / "hub-cache").rglob("model.safetensors"))
    code, _, err = run("models", "get", "them/none")
    assert code == 2
    assert "them/none: the hub answers 404" in err


def test_a_checkpoint_is_downloaded_by_its_hub_id(hub, folder, run):
    hub.files.update({file.name: file.read_bytes() for file in folder.iterdir()})
    code, out, err = run("models", "get", "me/model")
    assert code == 0, err
    assert out.splitlines()[1] == "next: composir index PICTURES --model me/model --out PICTURES.index"


def test_a_tower_of_this_machine_alone_is_not_pushed(hub, folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    config["tower"]["weights"] = str(tmp_path / "blip2_pretrained.pth")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ComposirError, match=r"blip2_pretrained\.pth, which only this machine has; fix: save it with"):
        composir.push_to_hub(folder, "me/model")
    assert hub.files == {}


def test_what_is_no_checkpoint_is_not_pushed(hub, folder):
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ComposirError, match=r"model\.safetensors: is not a readable safetensors file"):
        composir.push_to_hub(folder, "me/model")
    assert hub.files == {}


@pytest.mark.parametrize("name", ["no/such/path", "./here", "models/run.pt", "a b/c"])
def test_a_path_is_not_asked_of_the_hub(hub, monkeypatch, name):
    monkeypatch.chdir(Path("/"))
    with pytest.raises(ComposirError, match="no such file or folder"):
        composir.load(name)


def test_without_network_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ComposirError, match="me/model: is neither here nor in the hub's cache, and the hub cannot"):
        composir.load("me/model")
