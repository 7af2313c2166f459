"""A served index is asked by a head, and by the next one as soon as it takes the first one's place."""

from __future__ import annotations

import json
import shutil

import httpx2
import pytest
import torch
from fastapi.testclient import TestClient

from composir.models.heads.folder import HeadConfig, make_head, save_head
from composir.search import Retriever
from composir.web.app import create_app

LOCAL = "http://localhost:8000"


@pytest.fixture
def write_head(retriever):
    """Return the writer of a head on the index's model with random weights: another seed, another head."""
    base = retriever.encoder

    def write(folder, seed, **changed):
        config = {"head": "sum", "base": str(retriever.manifest.model.path), "base_hash": base.identity}
        text_dim = base.model.encode_prompt(*base.model.tokenize(["a"])).shape[-1]
        config = HeadConfig(**{**config, "dim": base.dim, "text_dim": text_dim, **changed})
        head = make_head(config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in head.change.parameters():
                weight.normal_()
        save_head(head, config, folder)

    return write


@pytest.fixture
def ask(id_by_name):
    asked = {"image_id": id_by_name["val-red-ellipse.png"], "text": "make it blue"}

    def found(client):
        results = client.post("/api/search", json=asked).json()["results"]
        return [(one["id"], one["score"]) for one in results]

    return found


@pytest.fixture
def wanted(shapes_index):
    """Return the reader of what a freshly opened retriever answers, by a head or without."""

    def found(head=None):
        with Retriever(shapes_index, model=head) as retriever:
            hits = retriever.search(retriever.images.root / "val-red-ellipse.png", "make it blue")
        return [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]

    return found


@pytest.fixture
def head(tmp_path):
    """Return the folder of a head, or where one will be."""
    return tmp_path / "head"


def test_serve_asks_by_a_head(running, shapes_index, write_head, ask, wanted, head):  # noqa: PLR0917
    write_head(head, 0)
    with running(shapes_index, model=head) as server, httpx2.Client(base_url=server.address) as client:
        assert ask(client) == wanted(head)
        assert ask(client) != wanted()
        health = client.get("/api/health").json()
        assert health["model"].startswith("a head (sum) on ")
        assert health["heat"] is False
        image_id = client.get("/api/images").json()["images"][0]["id"]
        answer = client.post("/api/heat", json={"image_id": image_id, "text": "x"})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:composir:problem:no-heat")


@pytest.fixture
def served(shapes_index, head):
    """Return a retriever and a client of a server that looks for a head."""
    with Retriever(shapes_index) as retriever, TestClient(create_app(retriever, head=head), base_url=LOCAL) as client:
        yield retriever, client


def test_the_next_request_is_answered_by_the_head_that_took_the_place(served, head, write_head, ask, wanted):
    retriever, client = served
    model = retriever.model
    assert ask(client) == wanted()  # none is there yet
    for seed in (1, 2):
        before = ask(client)
        write_head(head, seed)
        assert ask(client) == wanted(head)
        assert ask(client) != before
        assert retriever.encoder.base.model is model  # the base is not opened again


def test_a_head_that_cannot_be_taken_is_said_once_and_the_old_one_answers(served, head, write_head, ask, caplog):
    client = served[1]
    write_head(head, 1)
    before = ask(client)
    caplog.clear()
    weights = head / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert [ask(client), ask(client)] == [before, before]
    write_head(head, 3, base_hash="another")
    assert [ask(client), ask(client)] == [before, before]
    damaged, foreign = (one.getMessage() for one in caplog.records if one.name == "composir.web.service")
    assert damaged.startswith(f"the new head cannot be taken: {weights}: ")
    assert "than the one below the head" in foreign
    shutil.rmtree(head)
    assert ask(client) == before
    write_head(head, 4)
    assert ask(client) != before


def test_a_head_that_is_written_again_is_no_new_one(shapes_index, write_head, head):
    write_head(head, 1)
    with Retriever(shapes_index) as retriever:
        assert retriever.take_head(head)
        encoder = retriever.encoder
        write_head(head, 1)
        assert not retriever.take_head(head)
        assert retriever.encoder is encoder


def test_a_head_is_waited_for_only_where_choices_are_kept(run, running, shapes_index, write_head, head):
    choices = head.parent / "choices.jsonl"
    code, out, err = run("serve", shapes_index, "--port", 0, "--model", head)
    assert (code, out) == (2, "")
    assert str(head) in err
    with running(shapes_index, model=head, record=choices) as server:
        assert server.awaits_head
        assert not server.retriever.model_line.startswith("a head")
        write_head(head, 0)
        httpx2.post(f"{server.address}/api/search", json={"text": "x"})
        assert server.retriever.model_line.startswith("a head (sum) on ")
    assert json.loads((head / "config.json").read_text())["head"] == "sum"
    assert choices.read_bytes() == b""
