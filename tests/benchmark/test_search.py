from __future__ import annotations

from composir.benchmark.search import benchmark_search


def test_every_engine_is_built_and_searched():
    told = []
    document = benchmark_search(
        images=(300,),
        backends=("exact", "qdrant"),
        vectors_per_image=(4,),
        num_queries=5,
        batch_sizes=(3,),
        num_rounds=2,
        progress=lambda *progress: told.append(progress),
    )
    names = [f"{backend} 300x4" for backend in ("exact", "qdrant")]
    assert {"ratios", "seconds", "peak_memory_bytes", "machine"} <= set(document)
    assert list(document["latency_ms"]) == list(document["disk_bytes"]) == names
    for name in names:
        rounds = document["rounds"][name]
        assert [len(one["load"]) for one in rounds] == [2, 2]
        for size in ("1", "3"):
            first, second = (one["latency_ms"][size] for one in rounds)
            assert all(0 < one["p50"] <= one["p95"] <= one["p99"] for one in (first, second))
            assert all(one["processor"] > 0 for one in (first, second))
            assert document["latency_ms"][name][size]["p95"] == (first["p95"] + second["p95"]) / 2
    (recalled,) = set(document["recall_at_10"].values())  # at this size all compare all
    assert 0.3 < recalled < 1  # with merged vectors, against all 32
    assert all(size > 300 * 4 * 256 * 2 for size in document["disk_bytes"].values())
    assert set(document["ratios"]) == {f"exact over {name}" for name in names[1:]}
    assert told == [
        (name, done, 2)
        for name, done in (("vectors: 300x4", 0), (f"search: {names[0]}", 0), (f"search: {names[1]}", 1))
    ]


def test_the_command_prints_a_row_an_engine(run):
    code, out, err = run(
        "benchmark", "search", "--images", "50", "--backends", "exact", "--num-queries", "2", "--rounds", "2"
    )
    assert code == 0, err
    row, *rounds = (line.split() for line in out.splitlines() if "exact 50x32" in line)
    assert row[3] == "1.000"  # recall
    assert [one[2] for one in rounds] == ["1", "1", "16", "16", "64", "64"]
    assert "processor" in out
    code, _, err = run("benchmark", "search", "--images", "many")
    assert code == 2
    assert "--images is 'many'; expected whole numbers from 1 to 1,000,000,000 with commas" in err
    code, _, err = run("benchmark", "search", "--batch-sizes", "0")
    assert code == 2
    assert "--batch-sizes is '0'" in err
    code, _, err = run("benchmark", "search", "--backends", "exact2")
    assert code == 2
    assert "backend 'exact2' is not known; fix: did you mean 'exact'?" in err
