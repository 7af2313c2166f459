from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from composir.errors import ComposirError, ProblemsError
from composir.evaluation import (
    check_predictions,
    measure,
    predictions_hash,
    rank,
    read_predictions,
    write_submission,
)

NUM_IMAGES = 60
NUM_QUERIES = 4


@pytest.fixture
def cirr(make_split, make_query):
    """Four queries over sixty images: reference g(k), target g(k + 10), the subset being the five after g(k + 9)."""
    queries = [
        make_query(100 + number, f"g{number}", [f"g{number + 10}"], [f"g{number + 10 + place}" for place in range(5)])
        for number in range(NUM_QUERIES)
    ]
    return make_split(queries, NUM_IMAGES)


@pytest.fixture
def circo(make_split, make_query):
    """Two queries over sixty images called 0 to 59; the first has three right answers."""
    split = make_split(
        [make_query(0, "g5", ["g1", "g2", "g3"]), make_query(1, "g6", ["g4"])],
        NUM_IMAGES,
        dataset="CIRCO",
        exclude_reference=False,
    )

    def number(names):
        return tuple(name[1:] for name in names)

    return dataclasses.replace(
        split,
        gallery=number(split.gallery),
        images={name[1:]: file for name, file in split.images.items()},
        queries=tuple(
            dataclasses.replace(query, reference=query.reference[1:], targets=number(query.targets))
            for query in split.queries
        ),
    )


@pytest.fixture
def fashioniq(make_split, make_query):
    return tuple(
        make_split(
            [make_query(0, "g0", ["g1"]), make_query(1, "g2", ["g40"])],
            NUM_IMAGES,
            dataset="FashionIQ",
            category=category,
            exclude_reference=False,
        )
        for category in ("dress", "shirt")
    )


@pytest.fixture
def random_rankings():
    def make(*splits):
        generator = torch.Generator().manual_seed(3)
        return tuple(
            rank(torch.rand(len(split.queries), len(split.gallery), generator=generator), split) for split in splits
        )

    return make


@pytest.fixture
def written(cirr, random_rankings, tmp_path):
    """CIRR's two files as ``write_submission`` makes them, and how to change one."""
    recall, subset = write_submission(random_rankings(cirr), tmp_path)

    def change(file, change_content):
        content = json.loads(file.read_text())
        change_content(content)
        file.write_text(json.dumps(content))
        return file

    return recall, subset, change


def messages(file, *splits):
    return [str(problem) for problem in check_predictions(file, splits)]


def test_cirr_files_are_what_the_server_documents(cirr, random_rankings, tmp_path):
    (ranking,) = random_rankings(cirr)
    recall, subset = write_submission([ranking], tmp_path / "out")
    assert (recall.name, subset.name) == ("cirr_val_recall.json", "cirr_val_recall_subset.json")
    content = json.loads(recall.read_text())
    assert (content.pop("version"), content.pop("metric")) == ("rc2", "recall")
    assert list(content) == ["100", "101", "102", "103"]
    assert content["100"] == [cirr.gallery[place] for place in ranking.top[0]]
    assert all(len(names) == 50 for names in content.values())
    assert "g0" not in content["100"]
    content = json.loads(subset.read_text())
    assert (content.pop("version"), content.pop("metric")) == ("rc2", "recall_subset")
    assert content["103"] == list(ranking.subset[3][:3])


def test_circo_file_is_what_the_server_documents(circo, random_rankings, tmp_path):
    (ranking,) = random_rankings(circo)
    (file,) = write_submission([ranking], tmp_path)
    content = json.loads(file.read_text())
    assert list(content) == ["0", "1"]
    assert content["1"] == ranking.top[1].tolist()  # the image of place n is called n


def test_a_dry_run_of_cirr_scores_what_the_ranking_does(cirr, random_rankings, tmp_path):
    rankings = random_rankings(cirr)
    read = read_predictions(write_submission(rankings, tmp_path), [cirr])
    assert measure({"composed": read}).metrics == measure({"composed": rankings}).metrics
    assert read[0].scores.shape == (4, 50)
    assert np.isnan(read[0].scores).all()
    known = rankings[0].target_ranks <= 50
    assert read[0].target_ranks.tolist() == np.where(known, rankings[0].target_ranks, 0).tolist()


def test_a_dry_run_of_circo_scores_what_the_ranking_does(circo, random_rankings, tmp_path):
    rankings = random_rankings(circo)
    read = read_predictions(write_submission(rankings, tmp_path), [circo])
    assert measure({"composed": read}).metrics == measure({"composed": rankings}).metrics


def test_hidden_answers_can_be_written_but_not_scored(cirr, random_rankings, tmp_path):
    hidden = dataclasses.replace(
        cirr, name="test1", queries=tuple(dataclasses.replace(query, targets=()) for query in cirr.queries)
    )
    files = write_submission(random_rankings(hidden), tmp_path)
    read = read_predictions(files, [hidden])
    with pytest.raises(ComposirError, match="4 of 4 queries have no target: their answers are hidden"):
        measure({"composed": read})


def test_half_of_cirrs_files_gives_half_of_the_figures(cirr, random_rankings, tmp_path):
    rankings = random_rankings(cirr)
    recall, subset = write_submission(rankings, tmp_path)
    whole = measure({"composed": rankings}).metrics
    from_recall = measure({"composed": read_predictions([recall], [cirr])}).metrics
    assert from_recall == {key: whole[key] for key in ("recall_at_1", "recall_at_5", "recall_at_10", "recall_at_50")}
    from_subset = measure({"composed": read_predictions([subset], [cirr])}).metrics
    assert from_subset == {key: whole[key] for key in whole if key.startswith("recall_subset")}


def test_fashioniq_files_are_the_challenges(fashioniq, tmp_path):
    def write(split, rankings):
        entries = [
            {"candidate": query.reference, "captions": ["a", "b"], "ranking": names}
            for query, names in zip(split.queries, rankings, strict=True)
        ]
        file = tmp_path / f"{split.category}.val.pred.json"
        file.write_text(json.dumps(entries))
        return file

    names = list(fashioniq[0].gallery)  # g1 has rank 2, g40 rank 41
    files = [write(fashioniq[0], [names, names]), write(fashioniq[1], [names, names[40:] + names[:40]])]
    figures = measure({"composed": read_predictions(files, fashioniq)}).metrics
    assert figures["dress.recall_at_10"] == 1 / 2
    assert figures["dress.recall_at_50"] == 1
    assert figures["shirt.recall_at_10"] == 1  # g40 comes first there
    assert figures["mean_r10_r50"] == pytest.approx(((1 / 2 + 1) / 2 + 1) / 2)
    with pytest.raises(ProblemsError, match="no predictions of FashionIQ val shirt; fix: give its file as well"):
        read_predictions(files[:1], fashioniq)
    with pytest.raises(ProblemsError, match="predictions of FashionIQ val dress come twice"):
        read_predictions([files[0], files[0], files[1]], fashioniq)
    renamed = files[0].rename(tmp_path / "dres.json")
    assert "the name begins with 'dres', expected the category and a point" in messages(renamed, *fashioniq)[0]
    assert "did you mean 'dress'?" in messages(renamed, *fashioniq)[0]
    entries = json.loads(files[1].read_text())
    files[1].write_text(json.dumps(entries[:1]))
    assert "holds 1 entries, the caption file 2" in messages(files[1], *fashioniq)[0]
    files[1].write_text(json.dumps([{**entries[0], "candidate": "g9"}, {"candidate": "g2"}]))
    first, second = messages(files[1], *fashioniq)
    assert "(entry 0): candidate is 'g9', in the caption file 'g0'" in first
    assert "(entry 1): key 'ranking' is missing" in second


def test_other_data_sets_take_names_by_query(make_split, make_query, tmp_path):
    split = make_split([make_query(7, "g0", ["g1"])], NUM_IMAGES, dataset="LaSCo")
    file = tmp_path / "predictions.json"
    file.write_text(json.dumps({"7": list(split.gallery[1:])}))
    assert measure({"composed": read_predictions([file], [split])}).metrics["recall_at_1"] == 1


@pytest.fixture
def pinpoint(make_split, make_query):
    queries = [dataclasses.replace(make_query(1, "g0", ["g1"], negatives=["g2"]), id="query_00001")]
    queries.append(dataclasses.replace(make_query(2, "g0", ["g3"], negatives=["g4"]), id="query_00002"))
    return make_split(queries, NUM_IMAGES, dataset="PinPoint", name="test", exclude_reference=False)


def test_pinpoint_takes_the_files_of_its_own_evaluator(pinpoint, tmp_path):
    """The keys are the numbers alone; lists may be short or empty, and what they lack is not found."""
    content = {"00002": {"retrieved_items": []}, "00001": {"retrieved_items": ["g2", "g0", "g1"], "note": "x"}}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(content))
    (ranking,) = read_predictions([file], [pinpoint])
    assert ranking.top[:, :4].tolist() == [[2, 0, 1, -1], [-1, -1, -1, -1]]
    assert ranking.target_ranks.tolist() == [3, 0]
    assert measure({"composed": [ranking]}).metrics["map_at_10"] == pytest.approx((1 / 3 + 0) / 2)


@pytest.mark.parametrize(
    ("content", "where", "message"),
    [
        ({"00001": ["g1"]}, "query 00001", "'00001' is a list (['g1']), expected an object"),
        ({"00001": {"items": []}}, "query 00001", "key 'retrieved_items' is missing"),
        ({"00001": {"retrieved_items": ["z"]}}, "query query_00001", "not in the gallery: 'z'"),
        ({"00001": {"retrieved_items": ["g1", "g1"]}}, "query query_00001", "named more than once: 'g1'"),
        ({"00003": {"retrieved_items": []}}, "", "queries that are not in PinPoint test (1): '00003'"),
        ({"00001": ...}, "", "missing queries (1): 'query_00001'"),
    ],
)
def test_what_is_wrong_with_pinpoints_file_is_said(pinpoint, tmp_path, content, where, message):
    whole = {key: {"retrieved_items": ["g5"]} for key in ("00001", "00002")}
    file = tmp_path / "results.json"
    file.write_text(json.dumps({key: value for key, value in {**whole, **content}.items() if value is not ...}))
    (problem,) = check_predictions(file, [pinpoint])
    assert (problem.where, problem.message) == (where, message)


def test_categories_come_by_name(make_split, make_query, tmp_path):
    splits = [
        make_split(
            [make_query(0, "g0", ["g1"], gallery=[f"g{place}" for place in range(1, 15)])],
            NUM_IMAGES,
            dataset="GeneCIS",
            category=category,
        )
        for category in ("focus_object", "change_object")
    ]
    file = tmp_path / "predictions.json"
    lists = {"0": ["g2", "g1", "g3"]}
    file.write_text(json.dumps({"focus_object": lists, "change_object": lists}))
    figures = measure({"composed": read_predictions([file], splits)}).metrics
    assert (figures["recall_at_1"], figures["recall_at_2"]) == (0, 1)
    file.write_text(json.dumps({"focus_objct": lists, "change_object": []}))
    first, second = messages(file, *splits)
    assert "there is no category 'focus_objct'; fix: did you mean 'focus_object'?" in first
    assert "(change_object): holds no lists by query id" in second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("101"), "missing queries (1): '101'"),
        (lambda content: content.update({"9": content["100"]}), "queries that are not in CIRR val (1): '9'"),
        (lambda content: content["100"].append("g55"), "(query 100): holds 51 names, expected 50"),
        (lambda content: content["100"].pop(), "(query 100): holds 49 names, expected 50"),
        (
            lambda content: content["102"].__setitem__(4, content["102"][9]),
            "(query 102): named more than once",
        ),
        (lambda content: content["102"].__setitem__(4, "g2"), "(query 102): holds the reference 'g2'"),
        (lambda content: content["102"].__setitem__(4, "dev-1"), "(query 102): not in the gallery: 'dev-1'"),
        (lambda content: content["102"].__setitem__(4, 17), "'item 5' is a whole number (17), expected text"),
        (
            lambda content: content.update({"100": "g1"}),
            "'list' is text ('g1'), expected a list; fix: correct 'list', or write the file again",
        ),
        (lambda content: content.update(version="rc1"), "(version): is 'rc1', expected 'rc2'"),
        (lambda content: content.pop("version"), "(version): is None, expected 'rc2'"),
        (lambda content: content.update(metric="Recall"), "(metric): is 'Recall', expected 'recall' or"),
        (lambda content: content.update(metric=["recall"]), "(metric): is ['recall'], expected 'recall' or"),
        (lambda content: content.update(note="x" * 5_000_000), "the server takes 5,000,000"),
    ],
)
def test_what_is_wrong_with_cirrs_file_is_said(written, cirr, change, message):
    file = written[2](written[0], change)
    found = messages(file, cirr)
    assert any(message in one for one in found), found
    assert all(one.startswith(str(file)) for one in found)


def test_members_of_the_image_set_alone_are_taken(written, cirr):
    _, subset, change = written
    change(subset, lambda content: content["100"].__setitem__(0, "g40"))
    assert "(query 100): not in the query's image set: 'g40'" in messages(subset, cirr)[0]


def test_circo_takes_whole_numbers_alone(circo, random_rankings, tmp_path):
    (file,) = write_submission(random_rankings(circo), tmp_path)
    content = json.loads(file.read_text())
    content["0"][3] = str(content["0"][3])
    file.write_text(json.dumps(content))
    assert "'item 4' is text" in messages(file, circo)[0]
    assert "expected a whole number" in messages(file, circo)[0]


def test_all_problems_come_at_once(written, cirr):
    def spoil(content):
        del content["101"]
        content["100"][0] = "nowhere"
        content["103"].pop()

    file = written[2](written[0], spoil)
    assert len(messages(file, cirr)) == 3
    with pytest.raises(ProblemsError) as caught:
        read_predictions([file], [cirr])
    assert len(caught.value.problems) == 3


def test_a_list_is_no_file_of_predictions(written, cirr):
    written[0].write_text("[]")
    assert "holds a list, expected an object" in messages(written[0], cirr)[0]


def test_a_file_that_is_not_there(cirr, tmp_path):
    assert messages(tmp_path / "none.json", cirr) == [
        f"{tmp_path / 'none.json'}: the file is missing; "
        "fix: correct the path, or write the file again (docs/evaluation.md says in which form)"
    ]


def test_other_data_sets_have_no_server(fashioniq, random_rankings, tmp_path):
    with pytest.raises(ComposirError, match="FashionIQ has no test server; expected CIRR or CIRCO"):
        write_submission(random_rankings(*fashioniq), tmp_path)


def test_the_hash_is_of_the_contents_in_any_order(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("1")
    second.write_text("2")
    assert predictions_hash([first, second]) == predictions_hash([second, first])
    assert predictions_hash([first]) != predictions_hash([second])
