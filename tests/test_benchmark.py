from __future__ import annotations

import json

import pytest
from torch.nn.functional import normalize

from composir.benchmark import _embeddings, _split, benchmark_evaluate, benchmark_search, figures, published_figures


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
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in document["seconds"].values())
    assert set(document["seconds"]) == set(document["peak_memory_bytes"]) == set(document["sizes"])
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
    monkeypatch.setattr("composir.benchmark.benchmark_evaluate", lambda **sizes: document | {"sizes": sizes})
    code, out, _ = run("benchmark", "evaluate", "--num-queries", 5, "--json")
    assert code == 0
    assert json.loads(out)["sizes"] == {"num_queries": 5, "num_gallery": 123403, "repeats": 3}
    code, out, _ = run("benchmark", "evaluate")
    assert code == 0
    assert "a_over_b: 2.00" in out
    assert "2.000 4.000 3.000" in out


def test_every_engine_is_built_and_searched():
    told = []
    document = benchmark_search(
        images=(300,), vectors_per_image=(4,), num_queries=5, progress=lambda *progress: told.append(progress)
    )
    names = [f"{backend} 300x4" for backend in ("exact", "faiss", "qdrant")]
    assert {"ratios", "seconds", "peak_memory_bytes", "machine"} <= set(document)
    assert list(document["latency_ms"]) == list(document["disk_bytes"]) == names
    assert all(0 < latency["p50"] <= latency["p99"] for latency in document["latency_ms"].values())
    (recalled,) = set(document["recall_at_10"].values())  # at this size all compare all
    assert 0.3 < recalled < 1  # with merged vectors, against all 32
    assert all(size > 300 * 4 * 256 * 2 for size in document["disk_bytes"].values())
    assert set(document["ratios"]) == {f"exact over {name}" for name in names[1:]}
    assert [done for _, done, _ in told] == [0, 1, 2]


def test_the_command_prints_a_row_an_engine(run):
    code, out, err = run("benchmark", "search", "--images", "50", "--backends", "exact", "--num-queries", "2")
    assert code == 0, err
    (row,) = (line for line in out.splitlines() if "exact 50x32" in line)
    assert "1.000" in row  # recall
    assert "processor" in out
    code, _, err = run("benchmark", "search", "--images", "many")
    assert code == 2
    assert "--images is 'many'; expected whole numbers from 1 with commas" in err
    code, _, err = run("benchmark", "search", "--backends", "exact2")
    assert code == 2
    assert "backend 'exact2' is not known; fix: did you mean 'exact'?" in err
