"""Data sets of groups, several references and known wrong answers, through the commands a person types."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image

from composir.data import DATASETS, load_splits
from composir.data.images import file_of
from composir.evaluation import PADDING, PROTOCOLS, load_rankings, rank_splits
from composir.evaluation.metrics import metric_label
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained

NEW = ("i-CIR", "PinPoint", "EDIR", "MT-FashionIQ", "CIRCLED", "OACIRR")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(build("tiny").eval(), folder)
    return folder


@pytest.fixture
def root_with_pictures(make_root, tmp_path):
    """Writes the annotation files of a data set and a picture of its own for every image."""

    def make(dataset):
        root = make_root(dataset, tmp_path / "root")
        splits = load_splits(dataset, root, DATASETS[dataset].evaluated, annotations_only=True)
        for number, file in enumerate(sorted({file_of(one) for split in splits for one in split.images.values()})):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (7 * number, 250 - 7 * number, 40)).save(file)
        return root

    return make


def predictions_of(rankings) -> dict:
    """Return what a file of predictions holds, in PinPoint's own form or that of data sets without one."""
    lists = {
        ranking.split.category: {
            query.id: [ranking.split.gallery[place] for place in places if place != PADDING]
            for query, places in zip(ranking.split.queries, ranking.top.tolist(), strict=True)
        }
        for ranking in rankings
    }
    if rankings[0].split.dataset == "PinPoint":
        return {key.removeprefix("query_"): {"retrieved_items": names} for key, names in lists[""].items()}
    return lists.get("", lists)


@pytest.mark.parametrize("dataset", NEW)
def test_every_command_takes_it(run, model, root_with_pictures, tmp_path, dataset):
    root = root_with_pictures(dataset)
    where = ("--dataset", dataset, "--data-root", root)
    code, out, err = run("data", "check", *where)
    assert code == 0, out + err

    file, sheet = tmp_path / "rankings.safetensors", tmp_path / "sheet.png"
    code, out, err = run(
        "evaluate", "--model", model, *where, "--save-rankings", file, "--report", tmp_path, "--contact-sheet", sheet,
        "--cache", "off", "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    keys = {key for key in PROTOCOLS[dataset].keys if not key.endswith("_at_50")}
    assert keys <= set(document["metrics"])
    assert all(0 <= value <= 1 for value in document["metrics"].values())
    assert all(math.isfinite(end) for interval in document["intervals"].values() for end in interval)
    assert set(document["audit"]["gain"]) == set(document["metrics"])
    assert f"dataset:{dataset}|" in document["signature"]
    assert "Hardest misses" in (tmp_path / "index.html").read_text()
    assert Image.open(sheet).width > 500

    code, out, _ = run("evaluate", "--rankings", file, "--json")
    assert (code, json.loads(out)) == (0, document)
    code, out, _ = run("evaluate", "--rankings", file, *where)
    assert code == 0
    assert metric_label(PROTOCOLS[dataset].primary) in " ".join(out.split())
    code, out, err = run("compare", f"a={file}", f"b={file}", "--json")
    assert code == 0, err
    assert [one["p_value"] for one in json.loads(out)["differences"]] == [1]

    predicted = tmp_path / "predictions.json"
    predicted.write_text(json.dumps(predictions_of(load_rankings(file).rankings["composed"])))
    code, out, err = run("evaluate", "--predictions", predicted, *where, "--json")
    assert code == 0, err
    assert json.loads(out)["metrics"] == document["metrics"]
    code, out, err = run("submit", "--validate", predicted, *where, "--split", DATASETS[dataset].evaluated)
    assert (code, "0 problems" in out) == (0, True), out + err


def test_a_query_of_several_references_is_asked_with_the_mean(model, root_with_pictures):
    """The scores of a query of two references are the mean of those with either, where targets are one vector."""

    class Halves:
        """Embeds a picture as its file's number and a query as its reference."""

        def embed_gallery(self, paths):
            return torch.stack([vector(path) for path in paths])[:, None]

        def embed_queries(self, paths, texts):
            return torch.stack([vector(path) for path in paths])

        def embed_text_only(self, texts, gallery):
            return torch.ones(len(texts), 2)

    def vector(path):
        angle = sum(map(ord, path.name)) / 7
        return torch.tensor([math.cos(angle), math.sin(angle)])

    root = root_with_pictures("PinPoint")
    splits = load_splits("PinPoint", root, "test")
    rankings = rank_splits(Halves(), splits, kinds=("composed", "image_only"))
    (split,) = splits
    query = (vector(split.images["rrrrrrrr"]) + vector(split.images["aaaaaaaa"])) / 2
    for kind in ("composed", "image_only"):
        top, scores = rankings[kind][0].top[0], rankings[kind][0].scores[0]
        for place, score in zip(top, scores, strict=True):
            if place != PADDING:
                assert score == pytest.approx(float(query @ vector(split.images[split.gallery[place]])), abs=1e-6)


def test_only_measures_the_queries_of_a_list(run, model, root_with_pictures, tmp_path):
    root = root_with_pictures("EDIR")
    listed, file = tmp_path / "list.txt", tmp_path / "few.safetensors"
    listed.write_text("q1\nq3\n")
    where = ("--model", model, "--dataset", "EDIR", "--data-root", root, "--cache", "off")
    code, out, err = run("evaluate", *where, "--only", listed, "--save-rankings", file, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert (document["num_queries"], document["num_gallery"]) == (2, 6)
    assert document["signature_fields"]["queries"].startswith("2 of 3, list ")
    code, out, _ = run("evaluate", "--rankings", file, "--json")
    assert (code, json.loads(out)) == (0, document)
    code, _, err = run("evaluate", "--rankings", file, "--only", listed)
    assert code == 2
    assert "--data-root is missing" in err
    run("evaluate", *where, "--save-rankings", tmp_path / "all.safetensors")
    code, _, err = run("compare", file, tmp_path / "all.safetensors")
    assert code == 2
    assert "queries is" in err
    listed.write_text("q1\nq7\n")
    code, _, err = run("evaluate", *where, "--only", listed)
    assert code == 2
    assert "EDIR test has no such queries (1): 'q7'" in err
