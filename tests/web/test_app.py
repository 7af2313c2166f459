"""The interface: what is asked and answered, and that it is what the retriever says."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
import shutil
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from composir.data.images.folder import PICTURE_SUFFIXES
from composir.files import write_text
from composir.models.heads.folder import HeadConfig, make_head, save_head
from composir.models.trace import Reading
from composir.search import Retriever, Sentence, content_id, index_folder
from composir.search.table import Snapshot
from composir.web.pictures import draw_heat, heat_of


def expected(hits, root):
    return [
        {
            "rank": one.rank,
            "id": one.id,
            "path": one.path.relative_to(root).as_posix(),
            "score": pytest.approx(one.score, abs=1e-5),
            "seen": None,
        }
        for one in hits
    ]


def test_an_upload_finds_what_the_retriever_finds(client, retriever):
    reference = retriever.images.root / "val-red-ellipse.png"
    answer = client.post(
        "/api/search", data={"text": "make it blue", "top_k": 5}, files={"image": reference.read_bytes()}
    ).json()
    hits = retriever.search(reference, "make it blue", top_k=5)
    assert answer["results"] == expected(hits, retriever.images.root)
    assert answer["reference"] == content_id(reference.read_bytes())
    assert answer["milliseconds"] > 0


def test_an_id_or_a_sentence_or_both_are_enough(client, retriever, id_by_name):
    root = retriever.images.root
    red = id_by_name["val-red-ellipse.png"]
    by_id = client.post("/api/search", data={"image_id": red}).json()
    assert by_id["results"] == expected(retriever.search(root / "val-red-ellipse.png"), root)
    assert by_id["reference"] == red
    alone = client.post("/api/search", data={"text": "a blue circle"}).json()
    assert alone["results"] == expected(retriever.search(text="a blue circle"), root)
    assert alone["reference"] is None
    assert len(alone["results"]) == 10


def test_more_can_be_asked_for(client, retriever, id_by_name):
    root, red = retriever.images.root, id_by_name["val-red-ellipse.png"]
    asked = {"image_id": red, "text": "bigger", "top_k": 12}
    kept = client.post("/api/search", data={**asked, "keep_reference": "true"}).json()["results"]
    left_out = client.post("/api/search", data=asked).json()["results"]
    assert (len(kept), len(left_out)) == (12, 11)
    assert red in {one["id"] for one in kept} - {one["id"] for one in left_out}
    less = client.post("/api/search", data={**asked, "negative_text": "red"}).json()["results"]
    assert less == expected(
        retriever.search(root / "val-red-ellipse.png", "bigger", negative_text="red", top_k=12), root
    )
    only = client.post("/api/search", data={**asked, "where": "*rectangle*"}).json()["results"]
    assert len(only) == 6
    assert all("rectangle" in one["path"] for one in only)


def test_json_asks_what_a_form_asks(client, id_by_name):
    red = id_by_name["val-red-ellipse.png"]
    asked = {"image_id": red, "text": "bigger", "negative_text": "red", "top_k": 3, "where": "*e*"}
    asked["keep_reference"] = True
    by_form, by_json = client.post("/api/search", data=asked), client.post("/api/search", json=asked)
    assert by_json.json()["results"] == by_form.json()["results"]
    assert len(by_json.json()["results"]) == 3
    few = client.post("/api/search", json={"image_id": None, "text": "x", "where": None})
    assert len(few.json()["results"]) == 10
    typed = client.post(
        "/api/search", content=b'{"text": "x"}', headers={"Content-Type": "Application/JSON; charset=utf-8"}
    )
    assert typed.json()["results"] == few.json()["results"]
    heat = {"image_id": red, "text": "make it blue"}
    assert client.post("/api/heat", json=heat).json() == client.post("/api/heat", data=heat).json()


@pytest.mark.parametrize("encoding", ["data", "json"])
def test_a_query_is_moved_as_the_retriever_moves_it(client, retriever, id_by_name, encoding):
    root = retriever.images.root
    red, blue, green = (f"val-{colour}-ellipse.png" for colour in ("red", "blue", "green"))

    def answer(**fields):
        answer = client.post("/api/search", **{encoding: fields})
        assert answer.status_code == 200, answer.text
        return answer.json()["results"]

    asked = {"image_id": id_by_name[red], "text": "bigger"}
    plain = answer(**asked)
    for weight in (0.0, 0.3, 1.0):
        moved = answer(**asked, image_weight=weight)
        assert moved == expected(retriever.search(root / red, "bigger", image_weight=weight), root)
        assert [one["score"] for one in moved] != [one["score"] for one in plain]
    more, less = [id_by_name[blue], id_by_name[green]], [plain[0]["id"]]
    marked = answer(**asked, more=more, less=less)
    assert marked == expected(retriever.search(root / red, "bigger", more=more, less=less), root)
    assert [one["score"] for one in marked] != [one["score"] for one in plain]
    least = plain[3]["score"]
    assert answer(**asked, min_score=least - 1e-6) == plain[:4]
    assert answer(**asked, min_score=least + 2) == []
    weighted = answer(image_id=id_by_name[red], texts=["blue:2", "bigger"], without=["a circle:0.5"])
    sentences = {"texts": [Sentence("blue", 2), Sentence("bigger")], "without": [Sentence("a circle", 0.5)]}
    assert weighted == expected(retriever.search(root / red, **sentences), root)
    each = answer(image_id=id_by_name[red], image_ids=[id_by_name[blue]], text="bigger", texts=["smaller"])
    own = retriever.search([root / red, root / blue], "bigger", texts=[Sentence("smaller")])
    assert each == expected(own, root)
    assert {id_by_name[red], id_by_name[blue]}.isdisjoint(one["id"] for one in each)


def test_what_a_browser_leaves_empty_is_not_given(client):
    empty = {"image_id": "", "text": "x", "negative_text": "", "top_k": "", "where": "", "keep_reference": ""}
    for files in ({}, {"image": ("", b"", "application/octet-stream")}):
        assert len(client.post("/api/search", data=empty, files=files).json()["results"]) == 10
    assert len(client.post("/api/search", data={**empty, "image": ""}).json()["results"]) == 10


@pytest.mark.parametrize("path", ["/", "/page.js", "/docs", "/docs/swagger-ui.css", "/openapi.json", "/api/health",
                                  "/api/images?count=3", "/api/images/{id}?size=thumbnail", "/metrics", "/no",
                                  "/api/images?count=0", "/api/search", "/docs/"])  # fmt: skip
def test_head_is_answered_as_get_is_without_the_body(client, id_by_name, path):
    path = path.format(id=id_by_name["val-red-ellipse.png"])
    get, head = (client.request(method, path, follow_redirects=False) for method in ("GET", "HEAD"))
    assert head.content == b""
    assert head.status_code == get.status_code
    changing = {"x-request-id"} | ({"content-length"} if path == "/metrics" or get.status_code >= 400 else set())
    headers = [{name: value for name, value in one.headers.items() if name not in changing} for one in (get, head)]
    assert headers[0] == headers[1]
    assert "content-length" in head.headers


def test_other_methods_are_told_which_there_are(client):
    assert client.delete("/api/health").headers["allow"] == "GET, HEAD"
    assert client.get("/api/search").headers["allow"] == "POST"
    assert client.head("/api/search").status_code == 405


@pytest.mark.parametrize("size", [(640, 200), (90, 300), (224, 224), (300, 301)])
def test_a_prepared_picture_gives_the_same_query(retriever, size):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    prepared = retriever.prepare(picture)
    assert max(prepared.size) <= 224
    assert retriever.search(prepared, "x") == retriever.search(picture, "x")


def test_a_model_that_reads_a_picture_whole_is_asked_by_the_whole(client, retriever, monkeypatch):
    monkeypatch.setattr(retriever.encoder, "square", lambda picture: picture)
    noise = np.random.default_rng(0).integers(0, 2, (700, 900, 3), np.uint8) * 255
    content = io.BytesIO()
    Image.fromarray(noise).save(content, "PNG")
    found = client.post("/api/search", data={"text": "x"}, files={"image": content.getvalue()}).json()["results"]
    assert found == expected(retriever.search(Image.fromarray(noise), "x"), retriever.images.root)


def test_heat_is_the_gate_of_the_model_over_the_picture(client, retriever, id_by_name):
    heat = client.post("/api/heat", data={"image_id": id_by_name["val-red-ellipse.png"], "text": "make it blue"}).json()
    trace = retriever.model.trace(retriever.images.root / "val-red-ellipse.png", "make it blue")
    assert heat["map"] == "gate"
    assert np.array(heat["values"]) == pytest.approx(trace.gate.reshape(np.array(heat["values"]).shape), abs=1e-5)
    assert (heat["low"], heat["high"]) == (0, 1)  # one scale for all pictures: an even gate looks even
    assert heat["box"] == pytest.approx([side / (60, 52)[at % 2] for at, side in enumerate(trace.box)])
    kind, _, content = heat["picture"].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert kind == "data:image/jpeg;base64"
    assert picture.width / picture.height == pytest.approx(60 / 52, rel=0.01)


def test_a_model_without_a_gate_has_another_map():
    attention = torch.rand(2, 3, 4, 5, 10)  # (batch, layers, heads, queries, tokens): a class token and 3 x 3 patches
    name, values = heat_of(Reading(True, attention), 1)
    assert name == "attention"
    np.testing.assert_allclose(values, attention[1].mean(dim=(0, 1, 2))[1:].reshape(3, 3), rtol=1e-6)
    name, values = heat_of(Reading(True, attention, maps={"text_attention": torch.rand(2, 10)}), 0)
    assert (name, values.shape) == ("text_attention", (3, 3))


def test_a_heat_map_leaves_what_the_model_does_not_see_grey():
    content = draw_heat(Image.new("RGB", (80, 40), "white"), np.ones((2, 2), np.float32), (0.25, 0, 0.75, 1), (0, 1))
    drawn = np.asarray(Image.open(io.BytesIO(content)).convert("HSV"))
    assert drawn.shape == (336, 672, 3)
    assert drawn[:, :150, 1].max() == drawn[:, 522:, 1].max() == 0  # no colour
    assert drawn[:, 186:486, 1].min() > 100


def test_pictures_come_small_and_whole_and_are_kept_by_the_browser(client, id_by_name):
    url = f"/api/images/{id_by_name['val-red-ellipse.png']}"
    whole = client.get(url)
    assert whole.headers["content-type"] == "image/jpeg"
    assert "immutable" in whole.headers["cache-control"]
    assert Image.open(io.BytesIO(whole.content)).size == (60, 52)
    again = client.get(url, headers={"If-None-Match": whole.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    small = client.get(url, params={"size": "thumbnail"})
    assert client.get(url, headers={"If-None-Match": small.headers["etag"]}).status_code == 200
    assert small.headers["etag"] != whole.headers["etag"]
    assert client.get(url, params={"size": "huge"}).status_code == 422


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ([b"{tag}"], 304),
        ([b"W/{tag}"], 304),
        ([b'"another", W/{tag}'], 304),
        ([b'W/"a, b",{tag} , "c"'], 304),
        ([b'"another"', b"{tag}"], 304),  # a header may come in several lines
        ([b"*"], 304),
        ([b" * "], 304),
        ([b'"another"'], 200),
        ([b'W/"another", "one more"'], 200),
        ([b'"*"'], 200),
        ([b"bare"], 200),
        ([b""], 200),
    ],
)
@pytest.mark.parametrize("path", ["/", "/docs/swagger-ui.css", "/api/images/{id}"])
def test_what_is_there_already_is_not_sent_again(client, id_by_name, path, given, status):
    path = path.format(id=id_by_name["val-red-ellipse.png"])
    tag = client.get(path).headers["etag"]
    headers = [
        (b"If-None-Match", one.replace(b"{tag}", tag.encode()).replace(b"bare", tag.strip('"').encode()))
        for one in given
    ]
    answer = client.get(path, headers=headers)
    assert (answer.status_code, answer.headers["etag"]) == (status, tag)
    assert (answer.content == b"") == (status == 304)
    if path.startswith("/api"):
        assert client.get(f"/api/images/{'0' * 32}", headers={"If-None-Match": "*"}).status_code == 404


def test_the_listing_comes_in_pages_of_all_images(client, retriever):
    first = client.get("/api/images", params={"count": 7}).json()
    second = client.get("/api/images", params={"start": 7, "count": 7}).json()
    assert (first["total"], len(first["images"]), len(second["images"])) == (12, 7, 5)
    listed = first["images"] + second["images"]
    assert [one["id"] for one in listed] == list(retriever.images)
    assert [one["path"] for one in listed] == sorted(path.name for path in retriever.images.values())


def test_health_metrics_documentation_and_page(client):
    health = client.get("/api/health").json()
    assert health.pop("model").endswith("/model (tiny backbone; it does not say what it was trained on)")
    assert health == {
        "status": "ok",
        "num_images": 12,
        "heat": True,
        "records": False,
        "suffixes": list(PICTURE_SUFFIXES),
    }
    client.post("/api/search", data={"text": "x"})
    metrics = client.get("/metrics").text
    assert re.search(r'composir_requests_total\{method="POST",route="/api/search",status="200"\} \d', metrics)
    assert "composir_images 12.0" in metrics
    assert "composir_batch_size_count" in metrics
    docs = client.get("/docs").text
    assert "http" not in re.sub(r"<!doctype html>", "", docs, flags=re.I)
    for asset in re.findall(r'(?:href|src)="([^"]+)"', docs):
        assert client.get(f"/{asset}").status_code == 200
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert client.get("/", headers={"If-None-Match": page.headers["etag"]}).status_code == 304
    for asset in re.findall(r'(?:href|src)="(page\.[a-z]+)"', page.text):
        assert client.get(f"/{asset}").status_code == 200


def test_questions_asked_at_once_are_answered_together_and_each_its_own(retriever, serving, until):
    """The model is held until all are waiting, so they make one batch."""
    texts = [f"number {number}" for number in range(6)]
    answers = {}
    with serving(retriever, max_batch=8) as client:

        def ask(text: str) -> None:
            answers[text] = client.post("/api/search", data={"text": text}).json()["results"]

        with retriever._lock:
            threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
            for thread in threads:
                thread.start()
            until(lambda: "composir_waiting 6.0" in client.get("/metrics").text)
        for thread in threads:
            thread.join()
        metrics = client.get("/metrics").text
    assert float(re.search(r"composir_batch_size_count (\S+)", metrics)[1]) <= 2  # the first may have gone alone
    for text in texts:
        assert answers[text] == expected(retriever.search(text=text), retriever.images.root)


def test_who_finds_the_queue_full_is_told_when_to_come_back(retriever, serving, until):
    with serving(retriever, max_waiting=1) as client:
        first = []
        with retriever._lock:
            thread = threading.Thread(target=lambda: first.append(client.post("/api/search", data={"text": "x"})))
            thread.start()
            until(lambda: "composir_waiting 1.0" in client.get("/metrics").text)
            refused = client.post("/api/search", data={"text": "y"})
        thread.join()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert refused.json()["type"] == "urn:composir:problem:busy"
        assert first[0].status_code == 200
        assert client.post("/api/search", data={"text": "y"}).status_code == 200


def test_who_waits_too_long_is_told_when_to_come_back(retriever, serving):
    with serving(retriever, max_seconds=0.05) as client:
        with retriever._lock:
            answer = client.post("/api/search", data={"text": "x"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        assert "composir_waiting 0.0" in client.get("/metrics").text


def test_a_grown_index_is_seen_without_a_restart(shapes_index, tmp_path, serving, until):
    shutil.copytree(shapes_index.parent, tmp_path / "all")
    with (
        Retriever(tmp_path / "all/index") as retriever,
        serving(retriever, reload_seconds=0.02) as client,
    ):
        until(lambda: retriever.index._kept is not None)  # ready before anybody asked
        Image.new("RGB", (50, 50), "red").save(tmp_path / "all/pictures/new.png")
        index_folder(tmp_path / "all/pictures", tmp_path / "all/index")
        until(lambda: client.get("/api/health").json()["num_images"] == 13)
        until(lambda: retriever.index._kept is not None and len(retriever.index._kept) == 13)
        found = client.post("/api/search", data={"text": "x", "top_k": 20}).json()["results"]
        assert "new.png" in {one["path"] for one in found}
        assert "new.png" in {one["path"] for one in client.get("/api/images").json()["images"]}


def test_an_index_that_cannot_be_read_again_is_said_once_and_the_old_one_answers(
    shapes_index, tmp_path, serving, caplog, until
):
    shutil.copytree(shapes_index.parent, tmp_path / "all")
    manifest = tmp_path / "all/index/index.json"
    with Retriever(tmp_path / "all/index") as retriever, serving(retriever, reload_seconds=0.01) as client:
        good = manifest.read_text()
        write_text(manifest, "{")
        until(lambda: len(caplog.records) > 0)
        time.sleep(0.1)
        assert len(client.post("/api/search", data={"text": "x"}).json()["results"]) == 10
        write_text(manifest, good.replace("\n", " "))
        assert len(client.post("/api/search", data={"text": "x"}).json()["results"]) == 10
    (record,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert "is not JSON" in record.getMessage()


def test_a_failure_shows_nothing_of_the_inside_and_the_log_says_all(retriever, monkeypatch, caplog, serving):
    def fail(queries):
        raise ZeroDivisionError("secret detail")

    with serving(retriever) as client:
        monkeypatch.setattr(retriever.index, "search", lambda *_, **__: fail(_))
        answer = client.post("/api/search", data={"text": "x"})
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    (record,) = [one for one in caplog.records if one.name == "composir.web.problems"]
    assert record.exc_info[1].args == ("secret detail",)
    assert answer.json()["instance"] in record.getMessage()


def test_every_request_is_one_line_of_json_without_what_was_asked(guarded, key, caplog):
    caplog.set_level(logging.INFO, "composir.web.access")
    headers = {"Authorization": f"Bearer {key}"}
    guarded.post("/api/search", data={"text": "a private sentence"}, headers=headers)
    guarded.get("/no%0Awhere", params={"q": "secret"}, headers=headers)
    guarded.head("/api/health")
    lines = [record.getMessage() for record in caplog.records if record.name == "composir.web.access"]
    assert [json.loads(line)["status"] for line in lines] == [200, 404, 200]
    assert [json.loads(line)["method"] for line in lines] == ["POST", "GET", "HEAD"]
    assert json.loads(lines[2])["bytes"] == 0
    assert set(json.loads(lines[0])) == {"client", "method", "path", "status", "bytes", "milliseconds", "request"}
    assert not [word for word in ("private", "secret", key, "\n") if word in "".join(lines)]


def test_an_index_of_photos_tells_how_a_sentence_was_read_and_what_is_seen(tmp_path, serving):
    root = tmp_path / "pictures"
    root.mkdir()
    for colour in ("red", "green"):
        Image.new("RGB", (60, 40), colour).save(root / f"{colour}.png")
    index_folder(root, tmp_path / "index")
    with Retriever(tmp_path / "index") as retriever, serving(retriever) as client:
        health = client.get("/api/health").json()
        assert health["model"].startswith("photos (knows things in photographs")
        assert health["heat"] is False
        found = client.post("/api/search", data={"text": "but green"}).json()
        assert found["reading"] == "colours: green"
        assert found["results"][0]["path"] == "green.png"
        assert found["results"][0]["seen"].endswith("; green")
        by_id = {"image_id": found["results"][0]["id"], "text": "红色的"}
        found = client.post("/api/search", data=by_id).json()
        assert found["reading"].startswith("nothing in it can be used")
        answer = client.post("/api/search", data={"text": "the same"})
        assert answer.status_code == 422
        assert answer.json()["type"] == "urn:composir:problem:nothing-asked"
        line = "there is nothing to search for in 'the same': nothing in it can be used: photos reads English names of"
        assert answer.json()["detail"].startswith(line)


def test_a_model_that_reads_no_sentence_says_so_itself_with_a_head_on_it_or_without(tmp_path, serving):
    root, out, head = tmp_path / "pictures", tmp_path / "index", tmp_path / "head"
    root.mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (60, 40), colour).save(root / f"{colour}.png")
    index_folder(root, out, model="lite0")
    with Retriever(out) as retriever:
        identity, dim = retriever.encoder.identity, retriever.encoder.dim
    config = HeadConfig(head="sum", base="lite0", base_hash=identity, dim=dim, text_dim=384)
    save_head(make_head(config), config, head)
    for model in (None, head):
        with Retriever(out, model=model) as retriever, serving(retriever) as client:
            refused = client.post("/api/search", data={"text": "red"})
            assert (refused.status_code, refused.json()["type"]) == (422, "urn:composir:problem:nothing-asked")
            assert "in 'red': lite0 reads no sentence; a head on it does (composir" in refused.json()["detail"]
            beside = {"image_id": content_id((root / "red.png").read_bytes()), "text": "blue"}
            found = client.post("/api/search", data=beside).json()
            assert {one["path"] for one in found["results"]} == {"green.png", "blue.png"}
            assert (found["reading"] is None) == (model is not None)
            refused = client.post("/api/search", data={**beside, "image_weight": 0.4})
            assert refused.json()["type"] == "urn:composir:problem:nothing-asked"


def test_words_for_what_is_found_are_one_look_up_off_the_event_loop(tmp_path, serving, client, monkeypatch):
    looked_up = []
    rows_of = Snapshot.rows_of
    monkeypatch.setattr(Snapshot, "rows_of", lambda snapshot, ids: looked_up.append(len(ids)) or rows_of(snapshot, ids))

    explain = Retriever.explain

    def away(retriever, hits):
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return explain(retriever, hits)

    monkeypatch.setattr(Retriever, "explain", away)
    assert client.post("/api/search", data={"text": "x"}).status_code == 200
    assert looked_up == []  # this model has no words
    root = tmp_path / "pictures"
    root.mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (60, 40), colour).save(root / f"{colour}.png")
    index_folder(root, tmp_path / "index")
    with Retriever(tmp_path / "index") as retriever, serving(retriever) as other:
        found = other.post("/api/search", data={"text": "green"}).json()["results"]
        assert looked_up == [3]
        assert all(one["path"].removesuffix(".png") in one["seen"].rpartition("; ")[2] for one in found)
        hits = retriever.search(text="green")
        retriever.index.snapshot = replace(retriever.index.snapshot, ids=np.zeros(3, "S32"))  # removed meanwhile
        assert explain(retriever, hits) == [None] * 3


def test_a_sentence_in_an_unread_script_is_answered_with_a_warning(client, id_by_name):
    image_id = id_by_name["val-red-ellipse.png"]
    for asked, number in (
        ({"text": "红色的狗"}, 1),
        ({"text": "make it blue"}, 0),
        ({"image_id": image_id, "text": "..."}, 1),
    ):
        found = client.post("/api/search", json=asked).json()
        assert found["results"]
        assert len(found["warnings"]) == number
        assert all("is hardly read: it holds no word that the model knows" in line for line in found["warnings"])
