from __future__ import annotations

from composir.benchmark.search import benchmark_search


def test_every_engine_is_built_and_searched():
    told = []
    document = benchmark_search(
        images=(300,),
        backends=("exact", "qdrant"),
        vectors_per_image=(4,),
        num_queries=5,
        progress=lambda *progress: told.append(progress),
    )
    names = [f"{backend} 300x4" for backend in ("exact", "qdrant")]
    assert {"ratios", "seconds", "peak_memory_bytes", "machine"} <= set(document)
    assert list(document["latency_ms"]) == list(document["disk_bytes"]) == names
    assert all(0 < latency["p50"] <= latency["p99"] for latency in document["latency_ms"].values())
    (recalled,) = set(document["recall_at_10"].values())  # at this size all compare all
    assert 0.3 < recalled < 1  # with merged vectors, against all 32
    assert all(size > 300 * 4 * 256 * 2 for size in document["disk_bytes"].values())
    assert set(document["ratios"]) == {f"exact over {name}" for name in names[1:]}
    assert told == [
        (name, done, 2)
        for name, done in (("vectors: 300x4", 0), (f"search: {names[0]}", 0), (f"search: {names[1]}", 1))
    ]


def test_the_command_prints_a_row_an_engine(run):
    code, out, err = run("benchmark", "search", "--images", "50", "--backends", "exact", "--num-queries", "2")
    assert code == 0, err
    (row,) = (line for line in out.splitlines() if "exact 50x32" in line)
    assert "1.000" in row  # recall
    assert "processor" in out
    code, _, err = run("benchmark", "search", "--images", "many")
    assert code == 2
    assert "--images is 'many'; expected whole numbers from 1 to 1,000,000,000 with commas" in err
    code, _, err = run("benchmark", "search", "--backends", "exact2")
    assert code == 2
    assert "backend 'exact2' is not known; fix: did you mean 'exact'?" in err
