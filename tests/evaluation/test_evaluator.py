from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.nn.functional import one_hot

from composir.errors import ComposirError
from composir.evaluation import PROTOCOLS, Embedder, evaluate

NUM_IMAGES = 60


def unit(places):
    return one_hot(torch.tensor(places), NUM_IMAGES).float()


class Oracle:
    """Knows the answers: "show 7" leads to image g7, the empty sentence to the reference itself.

    Without the picture it understands even numbers only, and for odd ones is the same to all images.
    """

    def __init__(self):
        self.embedded = []
        self.batch_sizes = []

    def embed_gallery(self, paths):
        self.embedded += [path.stem for path in paths]
        self.batch_sizes.append(len(paths))
        vectors = unit([int(path.stem[1:]) for path in paths])
        return torch.stack([torch.zeros_like(vectors), vectors], dim=1)  # (batch, 2, dim)

    def embed_queries(self, paths, texts):
        self.batch_sizes.append(len(paths))
        pairs = zip(paths, texts, strict=True)
        return unit([int(text.split()[1]) if text else int(path.stem[1:]) for path, text in pairs])

    def embed_text_only(self, texts, gallery):
        numbers = [int(text.split()[1]) for text in texts]
        return unit(numbers) * torch.tensor([[float(number % 2 == 0)] for number in numbers])


@pytest.fixture
def make_known_split(make_split, make_query):
    """A split of three queries, targets g2, g3 and g4, with references g1, g1 and g5."""

    def make(**rules):
        queries = [
            make_query(number, f"g{reference}", [f"g{target}"], ["g2", "g3", "g4", "g6", "g7"], f"show {target}")
            for number, (reference, target) in enumerate([(1, 2), (1, 3), (5, 4)])
        ]
        return make_split(queries, NUM_IMAGES, **rules)

    return make


def test_an_oracle_is_right_and_its_halves_are_not(make_known_split):
    result = evaluate(Oracle(), [make_known_split()], batch_size=7)
    assert result.metrics == dict.fromkeys(PROTOCOLS["CIRR"].keys, 1.0)
    assert result.intervals == dict.fromkeys(PROTOCOLS["CIRR"].keys, (1.0, 1.0))
    # The picture alone finds the reference, which is left out; all others tie and the target comes last.
    assert result.baselines["image_only"] == dict.fromkeys(PROTOCOLS["CIRR"].keys, 0.0)
    # The sentence alone is right for g2 and g4, and ties for g3.
    assert result.baselines["text_only"] == pytest.approx(dict.fromkeys(PROTOCOLS["CIRR"].keys, 2 / 3))
    assert (result.num_queries, result.num_gallery) == (3, NUM_IMAGES)
    assert result.primary == "mean_r5_rs1"
    assert [ranking.top[:, 0].tolist() for ranking in result.rankings["composed"]] == [[2, 3, 4]]


def test_every_gallery_image_is_embedded_once_and_no_batch_is_larger(make_known_split):
    oracle = Oracle()
    evaluate(oracle, [make_known_split()], batch_size=59)
    assert oracle.embedded == [f"g{place}" for place in range(NUM_IMAGES)]
    assert oracle.batch_sizes == [59, 1, 3, 2]  # the gallery, the queries, their two references alone


@pytest.mark.parametrize("batch_size", [1, 2, 1000])
def test_the_batch_size_changes_nothing(make_known_split, batch_size):
    split = make_known_split()
    assert (
        evaluate(Oracle(), [split], batch_size=batch_size).to_json()
        == evaluate(Oracle(), [split], batch_size=4).to_json()
    )


def test_similarity_comes_in_blocks_of_queries(monkeypatch, make_known_split):
    monkeypatch.setattr("composir.evaluation.evaluator.SCORES_PER_BLOCK", NUM_IMAGES)  # one query a block
    assert evaluate(Oracle(), [make_known_split()]).metrics["recall_at_1"] == 1.0


def test_categories_are_scored_apart_and_averaged(make_known_split):
    rules = {"dataset": "FashionIQ", "exclude_reference": False}
    dress = make_known_split(category="dress", **rules)
    shirt = make_known_split(category="shirt", **rules)
    shirt = dataclasses.replace(shirt, queries=(dataclasses.replace(shirt.queries[0], text="show 40"),))
    result = evaluate(Oracle(), [dress, shirt])
    assert result.metrics["dress.recall_at_10"] == 1.0
    assert result.metrics["shirt.recall_at_10"] == 0.0
    assert result.metrics["recall_at_10"] == 0.5
    assert result.baselines["text_only"]["dress.recall_at_10"] == pytest.approx(2 / 3)
    assert (result.num_queries, result.num_gallery) == (4, 2 * NUM_IMAGES)
    assert len(result.rankings["composed"]) == 2
    assert result.signature_fields["categories"] == "dress,shirt"


def test_baselines_are_left_out_on_request(make_known_split):
    oracle = Oracle()
    result = evaluate(oracle, [make_known_split()], baselines=False)
    assert result.baselines == {}
    assert oracle.batch_sizes == [NUM_IMAGES, 3]


def test_the_document_is_plain_json(make_known_split):
    document = evaluate(Oracle(), [make_known_split()], weights_hash="abc123").to_json()
    assert json.loads(json.dumps(document)) == document
    assert set(document) == {
        "metrics",
        "intervals",
        "baselines",
        "audit",
        "num_queries",
        "num_gallery",
        "primary_metric",
        "signature",
        "signature_fields",
    }
    assert set(document["baselines"]) == {"image_only", "text_only"}
    assert document["intervals"]["recall_at_1"] == [1.0, 1.0]
    assert "|weights:abc123|" in document["signature"]


def test_progress_tells_every_batch(make_known_split):
    seen = []
    evaluate(Oracle(), [make_known_split()], batch_size=50, progress=lambda *step: seen.append(step))
    assert seen == [
        ("CIRR val: gallery images", 50, 60),
        ("CIRR val: gallery images", 60, 60),
        ("CIRR val: queries", 3, 3),
        ("CIRR val: references alone", 2, 2),
        ("CIRR val: sentences alone", 3, 3),
    ]


def test_no_gradients_are_kept(make_known_split):
    class Learning(Oracle):
        def embed_queries(self, paths, texts):
            assert not torch.is_grad_enabled()
            return super().embed_queries(paths, texts)

    evaluate(Learning(), [make_known_split()])


def test_hidden_answers_are_told_before_anything_is_embedded(make_known_split):
    split = make_known_split(name="test1")
    hidden = dataclasses.replace(
        split, queries=tuple(dataclasses.replace(query, targets=()) for query in split.queries)
    )
    oracle = Oracle()
    with pytest.raises(ComposirError, match="3 of 3 queries have no target: their answers are hidden"):
        evaluate(oracle, [hidden])
    assert oracle.embedded == []


def test_only_a_model_that_scores_pairs_can_rerank(make_known_split):
    with pytest.raises(ComposirError, match="this model scores no pairs, and cannot re-rank; fix: leave out --rerank"):
        evaluate(Oracle(), [make_known_split()], rerank=5)


def test_a_dropped_image_is_an_error(make_known_split):
    class Dropping(Oracle):
        def embed_gallery(self, paths):
            return super().embed_gallery(paths[:-1])

    with pytest.raises(ComposirError) as error:
        evaluate(Dropping(), [make_known_split()], batch_size=20)
    assert str(error.value) == (
        "CIRR val: the model gave 19 embeddings for 20 gallery images; "
        "expected one each: no image and no query may be dropped"
    )


def test_the_oracle_is_an_embedder():
    assert isinstance(Oracle(), Embedder)
