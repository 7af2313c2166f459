from __future__ import annotations

import json

import pytest
from torch.nn.functional import normalize

from composir.benchmark.evaluate import _embeddings, _split, benchmark_evaluate, figures, published_figures


def test_the_published_way_finds_the_same_figures():
    queries, targets = _embeddings(100, 70)
    split = _split(100, 70)
    places = [split.gallery.index(query.targets[0]) for query in split.queries]
    queries = normalize(queries + 0.2 * targets[places, 0].float(), dim=-1)  # some find their target, some do not
    published = published_figures(queries, targets.float(), split)
    ours = figures(queries, targets, split)
    assert published == pytest.approx({key: ours[key] for key in published})
    assert 0 < ours["recall_at_1"] < 1


def test_every_part_is_measured_in_a_process_of_its_own():
    document = benchmark_evaluate(num_queries=3, num_gallery=60, repeats=1, scale=0.01)
    assert set(document) == {"ratios", "seconds", "peak_memory_bytes", "sizes", "machine"}
    assert document["seconds"].pop("idle") == [0.0]
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in document["seconds"].values())
    assert set(document["peak_memory_bytes"]) == set(document["sizes"]) == set(document["seconds"]) | {"idle"}
    assert document["peak_memory_bytes"]["cirr"] > document["peak_memory_bytes"]["idle"]
    assert all(peak > 2**20 for peak in document["peak_memory_bytes"].values())
    assert document["machine"]["cores"] >= 1


def test_the_command_prints_the_document(run, monkeypatch):
    document = {
        "ratios": {"a_over_b": 2.0},
        "seconds": {"a": [2.0, 4.0, 3.0], "b": [1.0, 2.0, 1.5]},
        "peak_memory_bytes": {"a": 2**21, "b": 2**20},
        "sizes": {},
        "machine": {"cores": 2},
    }
    monkeypatch.setattr("composir.benchmark.evaluate.benchmark_evaluate", lambda **sizes: document | {"sizes": sizes})
    code, out, _ = run("benchmark", "evaluate", "--num-queries", 5, "--json")
    assert code == 0
    assert json.loads(out)["sizes"] == {"num_queries": 5, "num_gallery": 123403, "repeats": 3}
    code, out, _ = run("benchmark", "evaluate")
    assert code == 0
    assert "a_over_b: 2.00" in out
    assert "2.000 4.000 3.000" in out
