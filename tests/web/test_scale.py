"""What scores mean is measured on the gallery, and told for what was measured alone."""

from __future__ import annotations

import numpy as np
import pytest

from composir.models.photos.vocabulary import read_classes
from composir.search import SearchQuery, Sentence
from composir.web.examples import pick_examples
from composir.web.scale import NUM_REFERENCES, NUM_THINGS, Scales, measure
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
