"""What people meant is kept: only that, only whole, only where it is asked for."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from composir.data import load_splits
from composir.data.importing import import_triplets
from composir.errors import ComposirError
from composir.web.app import create_app
from composir.web.feedback import Feedback
from composir.web.limits import Limits

LOCAL = "http://localhost:8000"
NOWHERE = 32 * "0"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "choices.jsonl"


@pytest.fixture
def recording(retriever, file):
    with TestClient(create_app(retriever, feedback=Feedback(file)), base_url=LOCAL) as opened:
        yield opened


@pytest.fixture
def search(recording, id_by_name):
    """Return the choice of the third answer to a search, as the page sends it."""
    asked = {"image_id": id_by_name["val-red-ellipse.png"], "text": "make it blue"}
    shown = [one["id"] for one in recording.post("/api/search", json={**asked, "top_k": 4}).json()["results"]]
    return {**asked, "target": shown[2], "shown": shown}


def lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]


def test_a_choice_is_one_line_and_nothing_else(recording, search, file):
    assert recording.get("/api/health").json()["records"] is True
    assert file.read_bytes() == b""
    assert recording.post("/api/meant", json=search).json() == {"new": True}
    target, shown = search["target"], search["shown"]
    subset = [target, shown[0], shown[1], shown[3]]
    line = {"reference": search["image_id"], "text": "make it blue", "target": target, "subset": subset}
    assert lines(file) == [line]
    assert recording.post("/api/meant", json=search).json() == {"new": False}  # once is enough
    odd = {**search, "text": 'und "grün"\n\u2028换成红色', "target": shown[0], "shown": []}
    assert recording.post("/api/meant", json=odd).json() == {"new": True}
    del line["subset"]
    assert lines(file)[1:] == [{**line, "text": odd["text"], "target": shown[0]}]


def test_the_file_is_own_triplets_as_it_stands(recording, search, file, retriever, tmp_path):
    recording.post("/api/meant", json=search)
    recording.post("/api/meant", json={**search, "target": search["shown"][0], "shown": search["shown"][:1]})
    counts = import_triplets(file, retriever.images.root, tmp_path / "own").counts
    assert counts == {"val": {"num_queries": 2, "num_gallery": 12}}
    (split,) = load_splits("own", tmp_path / "own", "val")
    first, second = split.queries
    names = [retriever.images[one].name for one in search["shown"]]
    assert (first.reference, first.text, first.targets) == ("val-red-ellipse.png", "make it blue", (names[2],))
    assert first.subset == (names[2], names[0], names[1], names[3])
    assert (second.targets, second.subset) == ((names[0],), ())


def test_a_later_server_goes_on_with_the_file(retriever, search, file):
    given = search["image_id"], search["text"], search["target"]
    assert Feedback(file).add(*given, [])
    file.write_bytes(file.read_bytes().removesuffix(b"\n"))  # as an editor may leave it
    later = Feedback(file)
    assert not later.add(*given, [])
    assert later.add(given[0], "another", given[2], [])
    assert [one["text"] for one in lines(file)] == ["make it blue", "another"]


def test_choices_of_many_at_once_are_whole_lines(file, id_by_name):
    feedback, (reference, target, *_) = Feedback(file), id_by_name.values()
    with ThreadPoolExecutor(8) as pool:
        new = list(
            pool.map(lambda number: feedback.add(reference, f"{number % 50} {'x' * 900}", target, []), range(100))
        )
    assert sum(new) == 50
    assert sorted(int(one["text"].split()[0]) for one in lines(file)) == list(range(50))


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"image_id": NOWHERE}, "404 no-such-image"),  # of an upload, say
        ({"target": NOWHERE}, "404 no-such-image"),
        ({"shown": [NOWHERE]}, "404 no-such-image"),
        ({"text": ""}, "422 invalid-request"),
        ({"text": " \n\x1c"}, "422 invalid-request"),
        ({"text": "x" * 1001}, "422 invalid-request"),
        ({"image_id": "../../etc/passwd"}, "422 invalid-request"),
        ({"image_id": None}, "422 invalid-request"),
        ({"shown": [NOWHERE] * 101}, "422 invalid-request"),
        ({"client": "me"}, "422 invalid-request"),
        ({"target": "reference"}, "422 same-picture"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_not_kept(recording, search, file, changed, problem):
    changed = {"target": search["image_id"]} if "target" in changed and changed["target"] == "reference" else changed
    answer = recording.post("/api/meant", json={**search, **changed})
    status, name = problem.split()
    assert (answer.status_code, answer.json()["type"]) == (int(status), f"urn:composir:problem:{name}")
    assert file.read_bytes() == b""


def test_a_body_that_is_no_json_is_an_invalid_request(recording, file):
    for body in (b"\xff\xfe", b"{", b""):
        answer = recording.post("/api/meant", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:composir:problem:invalid-request")
        assert answer.json()["errors"]
    assert file.read_bytes() == b""


def test_an_upload_is_refused(recording, search, file):
    form = {name: value for name, value in search.items() if name != "image_id"}
    assert recording.post("/api/meant", data=form, files={"image": b"x"}).status_code == 422
    assert recording.post("/api/meant", content=b'{"text": "\\ud800"}').status_code == 422
    assert recording.post("/api/meant?target=x", json=search).status_code == 422
    assert file.read_bytes() == b""


def test_a_disk_that_is_full_leaves_no_half_line(recording, search, file, monkeypatch):
    recording.post("/api/meant", json=search)
    before = file.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = recording.post("/api/meant", json={**search, "text": "another"})
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:composir:problem:not-recorded")
    assert file.read_bytes() == before
    monkeypatch.undo()
    assert recording.post("/api/meant", json={**search, "text": "another"}).json() == {"new": True}


def test_nothing_is_kept_unless_it_is_asked_for(client, search):
    assert client.post("/api/meant", json=search).status_code in (404, 405)


def test_it_is_guarded_as_all_else(retriever, search, file, key):
    guarded = create_app(retriever, feedback=Feedback(file), api_key=key, limits=Limits(max_upload_bytes=2**10))
    with TestClient(guarded, base_url="https://pictures.example") as client:
        assert client.post("/api/meant", json=search).status_code == 401
        headers = {"Authorization": f"Bearer {key}"}
        elsewhere = {**headers, "Sec-Fetch-Site": "cross-site"}
        assert client.post("/api/meant", json=search, headers=elsewhere).status_code == 403
        assert client.post("/api/meant", json={**search, "text": "x" * 2000}, headers=headers).status_code == 413
        assert file.read_bytes() == b""
        assert client.post("/api/meant", json=search, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("choices.csv", None), "the name ends in '.csv'; expected a name that ends in .jsonl"),
        (("no/such/choices.jsonl", None), "cannot be written (No such file or directory); fix: give another file"),
        (("choices.jsonl", b"a photograph\n"), "(line 1 column 1): not valid JSON: Expecting value"),
        (("choices.jsonl", b"\x89PNG\r\n\x1a\n\0"), "not UTF-8 text (byte 0x89)"),
        (("choices.jsonl", b'{"level": "info"}\n'), "the column 'reference' is missing, there are 'level'"),
        (("choices.jsonl", b'{"reference": "a", "text": "b", "target": "c"}\n{"refer'), "(line 2 column 2)"),
    ],
)
def test_a_file_that_is_not_for_choices_keeps_the_server_from_starting(run, shapes_index, tmp_path, given, words):
    name, content = given
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    code, out, err = run("serve", shapes_index, "--port", 0, "--record", file)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert words in err
    assert content is None or file.read_bytes() == content


def test_an_unwritable_file_is_refused(tmp_path):
    (tmp_path / "choices.jsonl").mkdir()
    with pytest.raises(ComposirError, match="cannot be written"):
        Feedback(tmp_path / "choices.jsonl")
