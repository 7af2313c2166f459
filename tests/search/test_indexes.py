"""One suite for all engines."""

from __future__ import annotations

import fnmatch
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch

import composir.search.faiss as faiss_engine
from composir.benchmark.synthetic import queries_near, synthetic_blocks
from composir.cache import Cache
from composir.errors import ComposirError
from composir.scoring import similarity
from composir.search import INDEXES, Table, content_id
from composir.search.faiss import CANDIDATE_VECTORS, SCAN_BELOW, recall
from composir.search.qdrant import QdrantIndex
from composir.search.table import FileRecord, writing

DIM, VECTORS = 16, 4
OPTIONS = {"collection": "test"}


@contextmanager
def opened(backend, folder, *, vectors=VECTORS, dim=DIM):
    table = Table(folder, num_vectors=vectors, dim=dim)
    table.recover()
    index = INDEXES[backend](table, OPTIONS)
    try:
        yield index
    finally:
        index.close()
        table.close()


def ids_of(count, start=0):
    return [content_id(str(number).encode()) for number in range(start, start + count)]


def fill(index, vectors, *, start=0, folder="a"):
    ids = ids_of(len(vectors), start)
    index.add(ids, vectors)
    index.table.put_files(
        FileRecord(f"{folder}/{number}.png", image_id, 1, 1, 1) for number, image_id in enumerate(ids, start)
    )
    return ids


def answers(vectors, ids, queries, top_k):
    """Return what the short slow search finds."""
    scores = similarity(queries, torch.from_numpy(vectors).float())
    best = scores.topk(min(top_k, len(ids)))
    return [
        [(ids[row], score) for row, score in zip(rows, values, strict=True)]
        for rows, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def same(found, expected):
    assert [[i for i, _ in row] for row in found] == [[i for i, _ in row] for row in expected]
    np.testing.assert_allclose(
        [[s for _, s in row] for row in found], [[s for _, s in row] for row in expected], atol=1e-6
    )


@pytest.fixture(params=INDEXES)
def backend(request):
    return request.param


def synthetic_targets(num_images, num_vectors, dim, seed=0):
    return np.concatenate(list(synthetic_blocks(num_images, num_vectors, dim, seed=seed)))


@pytest.fixture
def vectors():
    return synthetic_targets(60, VECTORS, DIM)


@pytest.mark.parametrize("num_queries", [1, 7])
def test_search_equals_the_product_with_everything(backend, tmp_path, vectors, num_queries):
    queries = queries_near(vectors, num_queries)
    with opened(backend, tmp_path) as index:
        ids = fill(index, vectors)
        index.save()
        assert len(index) == 60
        same(index.search(queries, 10), answers(vectors, ids, queries, 10))


def test_an_index_says_the_same_when_it_is_loaded_again(backend, tmp_path, vectors):
    queries = queries_near(vectors, 3)
    with opened(backend, tmp_path) as index:
        fill(index, vectors)
        index.save()
        before = index.search(queries, 5)
    with opened(backend, tmp_path) as index:
        assert len(index) == 60
        same(index.search(queries, 5), before)


def test_what_was_not_saved_is_not_there(backend, tmp_path, vectors):
    with opened(backend, tmp_path) as index:
        fill(index, vectors[:30])
        index.save()
        fill(index, vectors[30:], start=30)
    with opened(backend, tmp_path) as index:
        assert len(index) == 30
        ids = fill(index, vectors[40:], start=40)
        index.save()
        kept = np.concatenate([vectors[:30], vectors[40:]])
        queries = queries_near(vectors, 3)
        same(index.search(queries, 50), answers(kept, ids_of(30) + ids, queries, 50))


def test_removed_images_are_not_found_and_may_come_back(backend, tmp_path, vectors):
    queries = queries_near(vectors, 3)
    with opened(backend, tmp_path) as index:
        ids = fill(index, vectors)
        index.save()
        index.remove([*ids[::2], content_id(b"never there")])
        index.save()
        assert len(index) == 30
        same(index.search(queries, 60), answers(vectors[1::2], ids[1::2], queries, 60))
        index.add(ids[:1], vectors[:1])
        index.save()
        assert len(index) == 31
        found = index.search(torch.from_numpy(vectors[:1, 0]).float(), 1)
        assert found[0][0][0] == ids[0]


def test_many_removed_images_give_their_room_back(backend, tmp_path, vectors):
    with opened(backend, tmp_path) as index:
        ids = fill(index, vectors)
        index.save()
        index.remove(ids[:10])  # 10 of 60 rows are a sixth: less than a fifth, so they stay
        index.save()
        assert len(index.snapshot.vectors) == 60
        index.remove(ids[10:20])
        index.save()
        assert len(index.snapshot.vectors) == 40
        assert [file.name for file in tmp_path.glob("vectors-*")] == ["vectors-2.f16"]
        queries = queries_near(vectors, 3)
        same(index.search(queries, 10), answers(vectors[20:], ids[20:], queries, 10))


@pytest.mark.parametrize("pattern", ["sea/*", "*/1?.png", "sea/2[0-9].png", "nothing/*", "*"])
def test_a_pattern_leaves_only_the_images_whose_path_fits(backend, tmp_path, vectors, pattern):
    with opened(backend, tmp_path) as index:
        ids = fill(index, vectors[:20], folder="hills") + fill(index, vectors[20:], start=20, folder="sea")
        index.save()
        paths = [f"{'hills' if number < 20 else 'sea'}/{number}.png" for number in range(60)]
        rows = [row for row, path in enumerate(paths) if fnmatch.fnmatchcase(path, pattern)]
        queries = queries_near(vectors, 3)
        expected = answers(vectors[rows], [ids[row] for row in rows], queries, 8) if rows else [[], [], []]
        same(index.search(queries, 8, where=pattern), expected)


def test_an_image_is_found_under_each_of_its_paths_and_no_longer_under_a_dropped_one(backend, tmp_path, vectors):
    with opened(backend, tmp_path) as index:
        ids = fill(index, vectors[:5], folder="here")
        index.table.put_files([FileRecord("there/copy.png", ids[2], 1, 1, 1)])
        index.save()
        query = queries_near(vectors, 1)
        assert [[i for i, _ in row] for row in index.search(query, 5, where="there/*")] == [[ids[2]]]
        index.table.drop_files(["there/copy.png"])
        index.save()
        assert index.search(query, 5, where="there/*") == [[]]
        assert len(index.search(query, 5, where="here/*")[0]) == 5


def test_a_pattern_is_looked_up_once_a_state_of_the_index_and_finds_the_same(backend, tmp_path, vectors, monkeypatch):
    looked_up = []
    ids_at = Table.ids_at
    monkeypatch.setattr(Table, "ids_at", lambda table, pattern: looked_up.append(pattern) or ids_at(table, pattern))
    with opened(backend, tmp_path) as index:
        ids = fill(index, vectors[:20], folder="hills") + fill(index, vectors[20:], start=20, folder="sea")
        index.save()
        queries = queries_near(vectors, 3)
        for pattern in ("*/1?.png", "sea/2*", "*/1?.png"):  # no whole folder, which Qdrant looks up itself
            first, again = (index.search(queries, 8, where=pattern) for _ in range(2))
            assert again == first
        assert looked_up == ["*/1?.png", "sea/2*"]
        assert first == fresh_answer(backend, tmp_path, index, queries, "*/1?.png")

        index.table.put_files([FileRecord("sea/1a.png", ids[59], 1, 1, 1)])
        index.table.commit(complete=True)  # a new path of an image, by whichever process, before it is loaded
        assert ids[59] in {i for i, _ in index.search(queries, 60, where="*/1?.png")[0]}
        index.remove(ids[10:12])
        index.save()
        found = {i for i, _ in index.search(queries, 60, where="*/1?.png")[0]}
        assert found == {*ids[12:20], ids[59]}


def fresh_answer(backend, folder, index, queries, pattern):
    """Return what an engine that has kept nothing says; Qdrant's folder is held by the one that is open."""
    if backend == "qdrant":
        index._patterns = Cache(0)
        return index.search(queries, 8, where=pattern)
    with opened(backend, folder) as other:
        return other.search(queries, 8, where=pattern)


def test_of_the_patterns_only_so_many_bytes_are_kept(tmp_path, vectors, monkeypatch):
    monkeypatch.setattr("composir.search.index.PATTERN_BYTES", 2 * 60 * 8)  # of two patterns that leave 60 rows
    looked_up = []
    ids_at = Table.ids_at
    monkeypatch.setattr(Table, "ids_at", lambda table, pattern: looked_up.append(pattern) or ids_at(table, pattern))
    with opened("exact", tmp_path) as index:
        fill(index, vectors)
        index.save()
        for pattern in ("*", "**", "*", "***", "*", "**"):
            assert len(index.search(queries_near(vectors, 1), 60, where=pattern)[0]) == 60
    assert looked_up == ["*", "**", "***", "**"]


def test_an_empty_index_and_no_queries(backend, tmp_path, vectors):
    with opened(backend, tmp_path) as index:
        index.save()
        assert len(index) == 0
        assert index.search(torch.ones(2, DIM), 3) == [[], []]
        fill(index, vectors[:1])
        index.save()
        assert index.search(torch.ones(0, DIM), 3) == []
        assert len(index.search(torch.ones(1, DIM), 3)[0]) == 1


def test_equal_scores_come_in_the_order_of_adding(tmp_path):
    twins = np.repeat(synthetic_targets(1, VECTORS, DIM), 30, axis=0)
    with opened("exact", tmp_path) as index:
        ids = fill(index, twins)
        index.save()
        assert [i for i, _ in index.search(torch.ones(1, DIM), 7)[0]] == ids[:7]


def test_a_warm_index_finds_the_same_bit_for_bit_and_is_cold_again_once_it_is_loaded(backend, tmp_path, vectors):
    with opened(backend, tmp_path) as index:
        ids = fill(index, vectors[:40], folder="hills") + fill(index, vectors[40:], start=40, folder="sea")
        index.remove(ids[3:6])
        index.save()
        queries = queries_near(vectors, 3)
        patterns = None, "*", "sea/*", "nothing/*"
        cold = [index.search(queries, 12, where=pattern) for pattern in patterns]
        index.warm()
        assert [index.search(queries, 12, where=pattern) for pattern in patterns] == cold
        index.remove(ids[40:50])
        index.save()
        assert len(index.search(queries, 60, where="sea/*")[0]) == 10


def test_vectors_are_kept_as_float32_only_where_they_take_a_quarter_of_the_free_memory(tmp_path, vectors, monkeypatch):
    size = vectors.size * 4
    with opened("exact", tmp_path) as index:
        index.warm()  # nothing to keep
        fill(index, vectors)
        index.save()
        for available, is_kept in ((4 * size, True), (4 * size - 1, False), (None, False)):
            monkeypatch.setattr("composir.search.exact.available_memory", lambda available=available: available)
            index.warm()
            assert (index._kept is not None) == is_kept
        monkeypatch.undo()
        index.warm()
        assert index._kept.vectors.dtype == np.float32
        index.load()
        assert index._kept is None


def test_only_vectors_that_fit_are_added(backend, tmp_path, vectors):
    with opened(backend, tmp_path) as index:
        with pytest.raises(ValueError, match=r"shape \(2, 4, 8\) for 2 images"):
            index.add(ids_of(2), vectors[:2, :, :8])
        broken = vectors[:2].copy()
        broken[1, 2, 3] = np.nan
        with pytest.raises(ValueError, match="not finite"):
            index.add(ids_of(2), broken)
        index.save()
        assert len(index) == 0


def test_two_writers_exclude_each_other(tmp_path):
    with ExitStack() as stack:
        stack.enter_context(writing(tmp_path))
        with pytest.raises(ComposirError, match="another process is changing this index; fix: let it end"):
            stack.enter_context(writing(tmp_path))
    with writing(tmp_path):
        pass


def test_a_vector_file_that_was_cut_off_is_refused(tmp_path, vectors):
    with opened("exact", tmp_path) as index:
        fill(index, vectors)
        index.save()
    file = tmp_path / "vectors-1.f16"
    with file.open("r+b") as opened_file:
        opened_file.truncate(100)
    # 60 images of 4 vectors of 16 numbers of 2 bytes are 7680 bytes
    words = r"holds 100 bytes; expected at least 7,680, for 60 images; fix: copy the whole index folder again"
    table = Table(tmp_path, num_vectors=VECTORS, dim=DIM)
    with pytest.raises(ComposirError, match=words):
        table.snapshot()
    with pytest.raises(ComposirError, match=words):
        table.recover()


# -- FAISS -------------------------------------------------------------------------------------------------------------

NUM_LARGE = SCAN_BELOW + 1_000


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Return a FAISS index folder above the size from which it has an inverted file, and what is in it."""
    folder = tmp_path_factory.mktemp("large")
    vectors = synthetic_targets(NUM_LARGE, 8, 64)
    with opened("faiss", folder, vectors=8, dim=64) as index:
        fill(index, vectors)
        index.save()
    return folder, vectors


def test_faiss_finds_what_the_scan_finds(large):
    folder, vectors = large
    queries = queries_near(vectors, 200, seed=1)
    truth = answers(vectors, ids_of(NUM_LARGE), queries, 10)
    with opened("faiss", folder, vectors=8, dim=64) as index:
        assert index._ivf.ntotal == NUM_LARGE * CANDIDATE_VECTORS
        found = index.search(queries, 10)
        assert recall(found, truth) >= 0.99
        score_by_id = dict(truth[0])
        for image_id, score in found[0]:
            assert score == pytest.approx(score_by_id.get(image_id, score), abs=1e-6)  # scored exactly


@pytest.mark.parametrize(("needed", "read"), [(1, 1), (9, 9), (11, 11), (16, 16), (17, 18), (33, 36), (120, 120)])
def test_faiss_reads_as_many_lists_as_it_needs_to_within_a_sixteenth(large, monkeypatch, needed, read):
    with opened("faiss", large[0], vectors=8, dim=64) as index:
        index._ivf.nprobe = 1
        monkeypatch.setattr(faiss_engine, "recall", lambda *_: float(index._ivf.nprobe >= needed))
        index._calibrate(0)
        assert index._ivf.nlist == 128
        assert index._ivf.nprobe == read


def test_faiss_with_a_pattern_that_leaves_many(large):
    folder, vectors = large
    queries = queries_near(vectors, 50, seed=2)
    rows = [row for row in range(NUM_LARGE) if str(row)[-1] not in "01"]
    assert len(rows) > SCAN_BELOW
    truth = answers(vectors[rows], [ids_of(NUM_LARGE)[row] for row in rows], queries, 10)
    with opened("faiss", folder, vectors=8, dim=64) as index:
        assert recall(index.search(queries, 10, where="a/*[2-9].png"), truth) >= 0.99


def test_faiss_takes_in_what_is_added_and_finds_it_even_before(large, tmp_path):
    folder, vectors = large
    more = synthetic_targets(50, 8, 64, seed=3)
    queries = queries_near(more, 50, seed=4)
    every = np.concatenate([vectors, more])
    truth = answers(every, ids_of(len(every)), queries, 10)
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with opened("faiss", tmp_path, vectors=8, dim=64) as index:
        fill(index, more, start=NUM_LARGE)
        index.table.commit(complete=False)
        index.load()
        assert index._num_covered == NUM_LARGE
        assert [row[0][0] for row in index.search(queries, 10)] == [row[0][0] for row in truth]  # one of the 50
        told = []
        index.save(lambda *progress: told.append(progress))
        assert index._num_covered == NUM_LARGE + 50
        assert told == [("inverted file", NUM_LARGE + 50, NUM_LARGE + 50)]  # added to, not made again
        assert [file.name for file in tmp_path.glob("faiss-*")] == [f"faiss-vectors-1-{NUM_LARGE + 50}.index"]
        assert recall(index.search(queries, 10), truth) >= 0.99


def test_faiss_does_not_find_removed_images(large, tmp_path):
    folder, vectors = large
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    ids = ids_of(NUM_LARGE)
    queries = queries_near(vectors, 20, seed=5)
    with opened("faiss", tmp_path, vectors=8, dim=64) as index:
        gone = {i for row in index.search(queries, 3) for i, _ in row}
        index.remove(gone)
        index.save()
        kept = [row for row in range(NUM_LARGE) if ids[row] not in gone]
        truth = answers(vectors[kept], [ids[row] for row in kept], queries, 10)
        found = index.search(queries, 10)
        assert not gone & {i for row in found for i, _ in row}
        assert recall(found, truth) >= 0.99


def test_a_damaged_inverted_file_is_named(large, tmp_path):
    folder, _ = large
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (file,) = tmp_path.glob("faiss-*")
    file.write_bytes(file.read_bytes()[:1000])
    with (
        pytest.raises(ComposirError, match=r"faiss-vectors-1-3000.index: cannot be read .* fix: delete it"),
        opened("faiss", tmp_path, vectors=8, dim=64),
    ):
        pass


# -- Qdrant ------------------------------------------------------------------------------------------------------------


def test_a_lost_collection_is_filled_again(tmp_path, vectors):
    with opened("qdrant", tmp_path) as index:
        ids = fill(index, vectors)
        index.save()
        index.client.delete_collection("test")
        index.save()
        queries = queries_near(vectors, 3)
        same(index.search(queries, 5), answers(vectors, ids, queries, 5))
        assert index.client.count("test").count == 60


def test_a_collection_of_an_index_that_was_rebuilt_is_made_anew(tmp_path, vectors):
    with opened("qdrant", tmp_path) as index:
        ids = fill(index, vectors)
        index.save()
        index.table.delete(ids)
        fill(index, vectors[:20], start=60)
        index.table.tell_nothing_pushed()
        index.save()
        assert index.client.count("test").count == 20


def test_a_list_of_collections_that_a_kill_cut_off_is_made_again(tmp_path, vectors):
    with opened("qdrant", tmp_path) as index:
        fill(index, vectors)
        index.save()
    (tmp_path / "qdrant/meta.json").write_text('{"collec')
    with opened("qdrant", tmp_path) as index:
        index.save()
        assert index.client.count("test").count == 60


def test_points_carry_paths_and_folders(tmp_path, vectors):
    with opened("qdrant", tmp_path) as index:
        ids = fill(index, vectors[:1], folder="sea/north")
        index.save()
        (point,) = index.client.retrieve("test", [ids[0]])
        assert point.payload == {"paths": ["sea/north/0.png"], "folders": ["sea", "sea/north"]}


def test_one_process_at_a_time_may_hold_the_engine_in_a_folder(tmp_path):
    words = "is held by another process; fix: let it end, or run a Qdrant server"
    with opened("qdrant", tmp_path) as index, pytest.raises(ComposirError, match=words):
        QdrantIndex(index.table, OPTIONS)


class Unreliable:
    """Stands for a client of a server: fails so often with a status, then does what a real one does."""

    def __init__(self, client, status, times):
        self.client = client
        self.status = status
        self.times = times
        self.asked = []

    def __getattr__(self, name):
        def ask(*arguments, **options):
            from qdrant_client.http.exceptions import UnexpectedResponse  # noqa: PLC0415

            self.asked.append((name, options))
            if self.times:
                self.times -= 1
                raise UnexpectedResponse(self.status, "no", b"not now", None)
            return getattr(self.client, name)(*arguments, **options)

        return ask


@pytest.fixture
def waits(monkeypatch):
    waits = []
    monkeypatch.setattr("composir.search.qdrant.time.sleep", waits.append)
    return waits


@pytest.mark.parametrize("status", [429, 503])
def test_a_fault_that_passes_is_waited_for(tmp_path, vectors, waits, status):
    with opened("qdrant", tmp_path) as index:
        index.client = Unreliable(index.client, status, 4)
        fill(index, vectors)
        index.save()
        assert waits == [0.5, 1, 2, 4]
        assert len(index.search(queries_near(vectors, 1), 60)[0]) == 60


@pytest.mark.parametrize(("status", "num_waits"), [(503, 4), (403, 0)])
def test_a_fault_that_stays_is_an_error_and_the_next_run_completes(tmp_path, vectors, waits, status, num_waits):
    with opened("qdrant", tmp_path) as index:
        real = index.client
        fill(index, vectors)
        index.client = Unreliable(real, status, 100)
        with pytest.raises(ComposirError, match=r"Qdrant does not do what it is asked for .*not now.*QDRANT_API_KEY"):
            index.save()
        assert len(waits) == num_waits
        index.client = real
        index.save()
        assert real.count("test").count == 60


def test_a_new_collection_is_sharded_and_replicated_as_asked(tmp_path, monkeypatch):
    made = {}

    def connect(url, table):
        from qdrant_client import QdrantClient  # noqa: PLC0415

        made["url"] = url
        made["client"] = Unreliable(QdrantClient(":memory:"), 0, 0)
        return made["client"]

    monkeypatch.setattr("composir.search.qdrant._connect", connect)
    table = Table(tmp_path, num_vectors=VECTORS, dim=DIM)
    index = QdrantIndex(table, {"url": "http://there", "collection": "test", "shards": 6, "replicas": 2})
    index.save()
    assert made["url"] == "http://there"
    options = dict(made["client"].asked)["create_collection"]
    assert (options["shard_number"], options["replication_factor"]) == (6, 2)
    assert "create_payload_index" in dict(made["client"].asked)


@pytest.mark.parametrize("name", INDEXES)
def test_an_engine_clears_what_it_keeps_and_nothing_else(tmp_path, name):
    kept = {"exact": "table.sqlite", "faiss": "faiss-vectors-0-9.index", "qdrant": "qdrant/meta.json"}
    for file in kept.values():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    INDEXES[name].clear(tmp_path)
    assert {engine for engine, file in kept.items() if not (tmp_path / file).exists()} == {name} - {"exact"}


def test_a_new_collection_has_a_name_of_its_own_and_keeps_it():
    options = INDEXES["qdrant"].defaults({"url": "http://localhost"})
    assert options["url"] == "http://localhost"
    assert options["collection"] != INDEXES["qdrant"].defaults({})["collection"]
    assert INDEXES["qdrant"].defaults(options) == options
    assert INDEXES["exact"].defaults({}) == INDEXES["faiss"].defaults({}) == {}
