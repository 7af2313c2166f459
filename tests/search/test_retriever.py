from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

import composir
from composir.errors import ComposirError
from composir.search import INDEXES, SearchQuery, content_id, index_folder


@pytest.fixture
def out(pictures, tmp_path, model_folder):
    index_folder(pictures, tmp_path / "index", model=model_folder)
    return tmp_path / "index"


@pytest.fixture
def retriever(out):
    with composir.Retriever(out) as retriever:
        yield retriever


@pytest.fixture
def model(model_folder):
    return composir.load(model_folder)


def ranked(model, pictures, query, *, without=()):
    """Return path and score of every picture by the short way: embed all, compare, sort."""
    files = [file for file in sorted(pictures.rglob("*.png")) if file not in without]
    scores = composir.similarity(torch.nn.functional.normalize(query, dim=-1), model.embed_target(files))[0]
    order = scores.argsort(descending=True)
    return [(files[place], float(scores[place])) for place in order]


def same(hits, expected):
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    by_path = dict(expected)
    for hit, (_, score) in zip(hits, expected, strict=False):
        assert hit.score == pytest.approx(score, abs=2e-3)  # fp16 vectors
        assert by_path[hit.path] == pytest.approx(score, abs=2e-3)
        assert hit.id == content_id(hit.path.read_bytes())


def test_a_picture_with_a_sentence_ranks_by_the_model_s_own_two_doors(retriever, model, pictures):
    file = pictures / "07.png"
    hits = retriever.search(file, "make it red", top_k=5)
    assert len(hits) == 5
    same(hits, ranked(model, pictures, model.embed_query([file], ["make it red"]), without=[file]))


def test_a_picture_alone_is_the_empty_sentence(retriever, model, pictures):
    file = pictures / "07.png"
    same(retriever.search(file), ranked(model, pictures, model.embed_query([file], [""]), without=[file]))


def test_a_sentence_alone_is_the_model_s_text_pass(retriever, model, pictures):
    query = model.encode_prompt(*model.tokenize(["a red circle"])).detach()
    same(retriever.search(text="a red circle", top_k=20), ranked(model, pictures, query))


def test_several_references_are_the_mean_of_their_queries(retriever, model, pictures):
    files = [pictures / "01.png", pictures / "sea/16.png"]
    query = model.embed_query(files, ["more blue"] * 2).mean(dim=0, keepdim=True)
    hits = retriever.search(files, "more blue", top_k=20)
    assert len(hits) == 18
    same(hits, ranked(model, pictures, query, without=files))


def test_a_negative_sentence_takes_off_the_difference_it_would_make(retriever, model, pictures):
    file = pictures / "01.png"
    positive, negative, nothing = model.embed_query([file] * 3, ["more blue", "a circle", ""]).split(1)
    expected = ranked(model, pictures, positive - (negative - nothing), without=[file])
    hits = retriever.search(file, "more blue", negative_text="a circle", top_k=20)
    same(hits, expected)
    plain = retriever.search(file, "more blue", top_k=20)
    assert [hit.score for hit in plain] != [hit.score for hit in hits]


def test_the_reference_is_left_out_by_its_content_unless_it_is_wanted(retriever, pictures, tmp_path):
    file = pictures / "07.png"
    elsewhere = tmp_path / "upload.png"
    shutil.copy(file, elsewhere)
    ids = {hit.id for hit in retriever.search(file, "x", top_k=20, exclude=())}
    assert len(ids) == 20
    left_out = content_id(file.read_bytes())
    for given in (file, str(file), elsewhere, file.read_bytes()):
        assert {hit.id for hit in retriever.search(given, "x", top_k=20)} == ids - {left_out}
    others = sorted(ids)[:3]
    assert {hit.id for hit in retriever.search(file, "x", top_k=20, exclude=others)} == ids - set(others)
    with Image.open(file) as picture:
        assert {hit.id for hit in retriever.search(picture.convert("RGB"), "x", top_k=20)} == ids


def test_a_pattern_and_top_k(retriever, pictures):
    hits = retriever.search(pictures / "sea/15.png", "x", where="sea/*")
    assert {hit.path for hit in hits} == set((pictures / "sea").iterdir()) - {pictures / "sea/15.png"}
    assert len(retriever.search(text="x", top_k=1)) == 1
    assert retriever.search(text="x", where="nothing/*") == []


@pytest.mark.parametrize("backend", INDEXES)
def test_many_queries_at_once_are_answered_as_each_alone(pictures, out, backend):
    index_folder(pictures, out, backend=backend)
    queries = [
        SearchQuery((pictures / "01.png",), "red", top_k=3),
        SearchQuery(text="blue"),
        SearchQuery((pictures / "02.png", pictures / "03.png"), "green", negative_text="red", where="sea/*"),
        SearchQuery((pictures / "sea/15.png",), where="sea/*", exclude=(), top_k=4),
        *(SearchQuery((pictures / f"{number:02}.png",), "a longer sentence") for number in range(12)),
    ]
    with composir.Retriever(out) as retriever:
        together = retriever.search_many(queries)
        alone = [retriever.search_many([query])[0] for query in queries]
        assert retriever.search_many([]) == []
    assert [len(hits) for hits in together[:4]] == [3, 10, 5, 4]
    for ours, theirs in zip(together, alone, strict=True):
        assert [hit.id for hit in ours] == [hit.id for hit in theirs]
        np.testing.assert_allclose([h.score for h in ours], [h.score for h in theirs], atol=1e-5)


def test_threads_may_ask_at_once(retriever, pictures):
    files = sorted(pictures.rglob("*.png"))
    alone = [retriever.search(file, "red") for file in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda file: retriever.search(file, "red"), files))
    assert [[hit.id for hit in hits] for hits in together] == [[hit.id for hit in hits] for hits in alone]


def test_a_warm_retriever_answers_as_before(retriever, pictures):
    asked = [SearchQuery((pictures / "01.png",), "red"), SearchQuery(text="blue", where="sea/*")]
    cold = retriever.search_many(asked)
    retriever.warm()
    assert retriever.index._kept is not None
    assert retriever.search_many(asked) == cold


def test_images_are_listed_by_path_and_found_by_id(retriever, pictures):
    files = sorted(pictures.rglob("*.png"), key=lambda file: file.relative_to(pictures).as_posix())
    assert len(retriever) == len(retriever.images) == 20
    assert list(retriever.images.values()) == files
    assert retriever.images.page(18, 5) == [(content_id(file.read_bytes()), file) for file in files[18:]]
    assert retriever.images[content_id(files[3].read_bytes())] == files[3]
    for unknown in ("../../etc/passwd", "0" * 32, ""):
        assert unknown not in retriever.images
        with pytest.raises(KeyError):
            retriever.images[unknown]


def test_a_grown_index_is_seen_after_reloading(retriever, pictures, out):
    assert not retriever.reload_if_changed()
    Image.new("RGB", (50, 50), "red").save(pictures / "new.png")
    (pictures / "00.png").unlink()
    index_folder(pictures, out)
    before = {hit.path.name for hit in retriever.search(text="x", top_k=30)}
    assert "new.png" not in before
    assert "00.png" not in before  # its file is known to be gone
    model = retriever.model
    assert retriever.reload_if_changed()
    assert retriever.model is model
    assert not retriever.reload_if_changed()
    assert {hit.path.name for hit in retriever.search(text="x", top_k=30)} == before | {"new.png"}


def test_a_rebuilt_index_brings_its_model(retriever, pictures, out, other_model_folder):
    before = retriever.search(text="x", top_k=20)
    index_folder(pictures, out, model=other_model_folder, rebuild=True)
    assert retriever.reload_if_changed()
    assert [hit.score for hit in retriever.search(text="x", top_k=20)] != [hit.score for hit in before]


def test_a_run_that_is_not_complete_is_not_looked_at(retriever, pictures, out):
    Image.new("RGB", (50, 50), "red").save(pictures / "new.png")

    def stop(name, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_folder(pictures, out, progress=stop)
    assert not retriever.reload_if_changed()
    assert not retriever.complete
    assert len(retriever.search(text="x", top_k=30)) == 20
    index_folder(pictures, out)
    assert retriever.reload_if_changed()
    assert retriever.complete


def test_a_model_that_moved_is_asked_for_and_another_refused(out, pictures, tmp_path, model_folder, other_model_folder):
    fields = json.loads((out / "index.json").read_text())
    fields["model"] = {"path": "/no/where", "from_index": "no"}
    (out / "index.json").write_text(json.dumps(fields))
    words = r"its model is no longer at /no/where; fix: give --model, the folder it has moved to"
    with pytest.raises(ComposirError, match=words):
        composir.Retriever(out)
    with composir.Retriever(out, model=model_folder) as retriever:
        assert len(retriever.search(text="x")) == 10
    with pytest.raises(ComposirError, match="is the index of another model") as error:
        composir.Retriever(out, model=other_model_folder)
    assert error.value.fix == f"composir index {pictures} --model {other_model_folder} --out {out} --rebuild"


def test_what_cannot_be_searched_for(retriever, pictures, tmp_path):
    for nothing in ({}, {"text": "  "}, {"images": []}):
        with pytest.raises(ComposirError, match="there is nothing to search for; expected a picture, a sentence, or"):
            retriever.search(**nothing)
    with pytest.raises(ComposirError, match="top_k is 0; expected 1 or more"):
        retriever.search(text="x", top_k=0)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ComposirError, match=r"broken.png: not an image of a format that is read"):
        retriever.search(tmp_path / "broken.png", "x")
    with pytest.raises(ComposirError, match="not an image of a format that is read"):
        retriever.search(b"no picture", "x")


def test_what_is_no_index(tmp_path):
    words = r"is not an index: it has no index.json; fix: composir index PICTURES --out"
    with pytest.raises(ComposirError, match=words):
        composir.Retriever(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_where_shows_the_copy_that_fits_and_the_first_that_is_there_is_shown(pictures, tmp_path, model_folder):
    (pictures / "again").mkdir()
    for place in ("again/03.png", "sea/03.png"):
        shutil.copy(pictures / "03.png", pictures / place)
    for backend in ("exact", "qdrant"):
        index_folder(pictures, tmp_path / "index", model=model_folder, backend=backend)
        with composir.Retriever(tmp_path / "index") as retriever:

            def paths(where, retriever=retriever):
                hits = retriever.search(None, "x", where=where, top_k=30)
                return [hit.path.relative_to(pictures).as_posix() for hit in hits]

            assert paths("again/*") == ["again/03.png"]
            assert "sea/03.png" in paths("sea/*")
            assert "03.png" in paths(None)
            assert [
                file.name for file in retriever.images.files(retriever.search(None, "x", where="again/*")[0].id)
            ] == ["03.png"] * 3
    with composir.Retriever(tmp_path / "index") as retriever:
        image_id = retriever.search(None, "x", where="again/*")[0].id
        (pictures / "03.png").unlink()
        assert retriever.images[image_id] == pictures / "again/03.png"
        (pictures / "again/03.png").unlink()
        assert retriever.images[image_id] == pictures / "sea/03.png"
        (pictures / "sea/03.png").unlink()
        assert retriever.images[image_id] == pictures / "03.png"


@pytest.mark.parametrize("backend", ["exact", "qdrant"])
def test_patterns_match_names_however_they_are_spelt(pictures, tmp_path, model_folder, backend):
    for number, name in enumerate(("Gr\xfcn", "Gru\u0308n 2", "[x]")):
        (pictures / name).mkdir()
        Image.new("RGB", (9, 9), (number, 0, 0)).save(pictures / name / f"{number}.png")
    index_folder(pictures, tmp_path / "index", model=model_folder, backend=backend)
    with composir.Retriever(tmp_path / "index") as retriever:

        def found(where):
            return sorted(hit.path.name for hit in retriever.search(None, "x", where=where))

        assert found("Gr\xfcn/*") == found("Gru\u0308n/*") == ["0.png"]
        assert found("Gr\xfcn 2/*") == found("Gru\u0308n 2/*") == found("Gr?n 2*") == ["1.png"]
        assert found("Gr[\xfcu]n*") == ["0.png", "1.png"]
        assert found("[[]x]/*") == ["2.png"]
        assert found("[x]/*") == []
