"""What scores mean is measured on the gallery, and told for what was measured alone."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from composir.models.photos.vocabulary import read_classes
from composir.search import Retriever, SearchQuery, Sentence, index_folder
from composir.web.examples import pick_examples
from composir.web.scale import NUM_REFERENCES, NUM_THINGS, Scales, has_much_changed, measure
from composir.web.schemas import Scale


def test_it_is_what_the_best_pictures_of_sixty_four_things_score(retriever):
    scales = measure(retriever)
    things = [one.name for one in read_classes()][::15][:NUM_THINGS]
    references = [retriever.images[one] for one in retriever.sample(NUM_REFERENCES)]
    alone = [retriever.search(text=thing, top_k=1)[0].score for thing in things]
    composed = [
        retriever.search(references[place % NUM_REFERENCES], f"but a {thing}", top_k=1)[0].score
        for place, thing in enumerate(things)
    ]
    for scale, best in ((scales.sentence, alone), (scales.composed, composed)):
        assert scale is not None
        assert [scale.may_fit, scale.fits_well] == pytest.approx(np.quantile(best, (0.75, 0.95)), abs=1e-5)
    assert measure(retriever) == scales
    assert measure(retriever, is_wanted=lambda: False) == Scales()


def test_it_is_told_of_one_sentence_with_a_picture_or_without(retriever, id_by_name):
    scales = Scales(Scale(may_fit=0.1, fits_well=0.2), Scale(may_fit=0.3, fits_well=0.4))
    picture = retriever.images[id_by_name["val-red-ellipse.png"]]
    assert scales.of(SearchQuery(text="x", top_k=24, min_score=0.1)) == scales.sentence
    assert scales.of(SearchQuery(images=(picture,), text="x", exclude=())) == scales.composed
    other = [
        SearchQuery(images=(picture,)),
        SearchQuery(images=(picture, picture), text="x"),
        SearchQuery(images=(picture,), text="x", image_weight=0.4),
        SearchQuery(text="x", negative_text="y"),
        SearchQuery(text="x", texts=(Sentence("y"),)),
        SearchQuery(text="x", without=(Sentence("y"),)),
        SearchQuery(text="x", where="a/*"),
        SearchQuery(text="x", more=tuple(id_by_name.values())[:1]),
    ]
    assert [scales.of(query) for query in other] == [None] * len(other)


def test_a_server_tells_it_once_it_is_measured(client, retriever, until):
    def told() -> dict | None:
        return client.post("/api/search", json={"text": "teapot"}).json()["scale"]

    until(lambda: told() is not None)
    measured = measure(retriever).sentence
    assert measured is not None
    assert told() == measured.model_dump()
    assert client.post("/api/search", json={"text": "teapot", "where": "*"}).json()["scale"] is None


@pytest.mark.parametrize(
    ("came", "went", "expected"),
    [(0, 0, False), (2, 0, False), (0, 2, False), (1, 1, False), (2, 1, True), (0, 3, True)],
)
def test_more_than_a_tenth_of_images_that_came_or_went_is_much(came, went, expected):
    def ids(numbers):
        return np.array([f"{number:032x}" for number in numbers], "S32")

    assert has_much_changed(ids(range(20)), ids(range(went, 20 + came))) is expected


def test_of_an_empty_gallery_every_image_is_much():
    none, one = np.array([], "S32"), np.array(["0" * 32], "S32")
    assert not has_much_changed(none, none)
    assert has_much_changed(none, one)
    assert has_much_changed(one, none)


def test_an_index_is_measured_anew_once_it_has_much_changed(shapes_index, tmp_path, serving, until, monkeypatch):
    sizes = []

    def measuring(retriever, is_wanted):
        sizes.append(len(retriever))
        score = float(len(sizes))
        return Scales(Scale(may_fit=score, fits_well=score))

    def told():
        return client.post("/api/search", json={"text": "teapot"}).json()["scale"]

    def add(count):
        for number in range(count):
            Image.new("RGB", (50, 50), (number, count, 0)).save(pictures / f"new-{number}-of-{count}.png")
        index_folder(pictures, tmp_path / "all/index")
        until(lambda: client.get("/api/health").json()["num_images"] == len(list(pictures.glob("*.png"))))

    monkeypatch.setattr("composir.web.scale.measure", measuring)
    shutil.copytree(shapes_index.parent, tmp_path / "all")
    pictures = tmp_path / "all/pictures"
    with Retriever(tmp_path / "all/index") as retriever, serving(retriever, reload_seconds=0.02) as client:
        until(lambda: told() is not None)
        first = told()
        add(1)  # of 12
        assert told() == first
        add(2)  # together three, a quarter
        until(lambda: told() not in (None, first))
    assert sizes == [12, 15]


def test_examples_of_a_model_without_words_are_pictures_alone(client, retriever):
    found = client.get("/api/examples").json()["examples"]
    assert found == [one.model_dump() for one in pick_examples(retriever)]
    assert len({one["image_id"] for one in found}) == 10
    assert {one["text"] for one in found} == {""}
    assert all(one["image_id"] in retriever.images for one in found)


def test_examples_of_a_model_with_words_ask_for_what_it_sees_elsewhere(retriever, monkeypatch):
    ids = retriever.sample(12)
    assert len(set(ids)) == 12
    seen = [("ox", "brown"), ("teapot", "red"), ("teapot", "blue"), ("teapot", "red"), ("owl", "white")]
    monkeypatch.setattr(retriever, "named", lambda asked: dict(zip(ids[:5], seen, strict=True)))
    assert [(one.image_id, one.text) for one in pick_examples(retriever)] == [
        (ids[0], "but a teapot"),
        (ids[1], "but an owl"),
        (ids[1], "but blue"),
    ]
