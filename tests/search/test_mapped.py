"""A second set of vectors beside an index's own, by a head's map of targets."""

from __future__ import annotations

import errno
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from composir.data import load_splits
from composir.errors import ComposirError
from composir.features import open_embedder
from composir.models.heads.folder import HeadConfig, make_head, read_head, save_head
from composir.scoring import similarity
from composir.search import Retriever, SearchQuery, index_folder
from composir.search.mapped import MappedIndex
from composir.token_cache import TokenPlace


@pytest.fixture(scope="session")
def mapping(shapes_index, tmp_path_factory):
    """Return the folder of a head with a map of targets on the index's model, all of it random."""
    base, identity = open_embedder(shapes_index.parent / "model", (), place=TokenPlace("memory"))
    dim, text_dim = base.model.config.embed_dim, base.embed_words(["red"]).shape[-1]
    config = HeadConfig(
        head="joint", base=str(shapes_index.parent / "model"), base_hash=identity, dim=dim, text_dim=text_dim,
        target_map=True,
    )  # fmt: skip
    torch.manual_seed(0)
    head = make_head(config)
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("mapping") / "head"
    save_head(head, config, folder)
    return folder


@pytest.fixture
def own_index(shapes_index, tmp_path):
    """Return a copy of the index, with a folder of its pictures beside it, to be changed."""
    shutil.copytree(shapes_index.parent / "pictures", tmp_path / "pictures")
    shutil.copytree(shapes_index, tmp_path / "index")
    index_folder(tmp_path / "pictures", tmp_path / "index", model=shapes_index.parent / "model")
    return tmp_path / "index"


def own_files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and not file.match("*mapped*")}


def sets_of(folder):
    return sorted(file.name for file in folder.iterdir() if file.match("*mapped*.f16*"))


def test_a_map_of_targets_searches_a_second_set_of_vectors_and_leaves_the_first(mapping, own_index, shapes_root):
    (split,) = load_splits("CIRR", shapes_root, "val")
    saved, before = read_head(mapping), own_files(own_index)
    assert saved.config.target_map
    embedder, _ = open_embedder(mapping, [split], place=TokenPlace("memory"))
    queries = [SearchQuery(images=(split.images[one.reference],), text=one.text, exclude=()) for one in split.queries]
    with Retriever(own_index) as plain, Retriever(own_index, model=mapping) as taught:
        snapshot = plain.index.snapshot
        for query, hits in zip(queries, taught.search_many(queries), strict=True):
            asked = embedder.embed_queries(query.images, [query.text])
            mapped = saved.head.map_targets(torch.from_numpy(snapshot.vectors).float()).detach()
            scores = similarity(asked, mapped)[0]
            assert [hit.score for hit in hits] == pytest.approx(scores.sort(descending=True).values[:10], abs=2e-3)
            by_id = dict(zip(snapshot.ids.tolist(), scores.tolist(), strict=True))
            assert [hit.score for hit in hits] == pytest.approx([by_id[hit.id.encode()] for hit in hits], abs=2e-3)
        assert taught.search_many(queries) != plain.search_many(queries)
        # One alone is asked as the base asks it, and so searched in the base's vectors.
        for alone in (
            {"images": queries[0].images},
            {"text": "red"},
            {"images": queries[0].images, "text": "red", "image_weight": 1.0},
        ):
            assert taught.search(**alone) == plain.search(**alone)
        marked = {"more": [plain.search(text="red")[-1].id]}
        assert taught.search(queries[0].images, "red", **marked)[0].score > 0.3
        mixed = taught.search_many([queries[0], SearchQuery(text="red"), queries[1]])
        assert mixed[1] == plain.search(text="red")
        assert [mixed[0], mixed[2]] == taught.search_many(queries[:2])
    assert own_files(own_index) == before


def test_the_second_set_is_made_once_and_anew_when_the_index_or_the_head_has_changed(
    mapping, own_index, shapes_root, monkeypatch
):
    made = []
    write = MappedIndex._write
    monkeypatch.setattr(MappedIndex, "_write", lambda self, *given: (made.append(1), write(self, *given)))
    for _ in range(2):
        Retriever(own_index, model=mapping).close()
    assert len(made) == 1
    (first,) = sets_of(own_index)
    extra = shapes_root / "train/0/train-red-ellipse.png"
    with Retriever(own_index, model=mapping) as taught:
        shutil.copy(extra, own_index.parent / "pictures")
        index_folder(own_index.parent / "pictures", own_index)
        assert taught.reload_if_changed()
        hits = taught.search(extra, "red", exclude=(), top_k=20)
        assert "train-red-ellipse.png" in [hit.path.name for hit in hits]
    (second,) = sets_of(own_index)  # the first has gone
    assert second != first
    assert len(made) == 2
    (own_index / second).write_bytes(b"cut off")
    Retriever(own_index, model=mapping).close()
    assert len(made) == 3
    index_folder(own_index.parent / "pictures", own_index, rebuild=True)
    assert sets_of(own_index) == []


def test_a_second_set_is_whole_or_not_there(mapping, own_index, monkeypatch):
    before = own_files(own_index)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("composir.search.mapped.float32", stop)
        with pytest.raises(KeyboardInterrupt):
            Retriever(own_index, model=mapping)
        assert sets_of(own_index) == []
        broken.setattr("composir.files.shutil.disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(ComposirError, match=r"the vectors that the head maps the index's to need .* kB, the disk"):
            Retriever(own_index, model=mapping)
        broken.undo()
        monkeypatch.setattr("composir.search.mapped.float32", full_disk)
        with pytest.raises(
            ComposirError, match=r"index: cannot be written \(No space left on device\); fix: make room"
        ):
            Retriever(own_index, model=mapping)
    monkeypatch.undo()
    (own_index / ".mapped-0123.f16.99.part").write_bytes(b"what a killed process has left")
    Retriever(own_index, model=mapping).close()
    assert len(sets_of(own_index)) == 1
    assert own_files(own_index) == before


def test_a_set_that_several_ask_for_at_once_is_made_once(mapping, own_index, monkeypatch):
    made, write = [], MappedIndex._write

    def write_slowly(*given):
        made.append(1)
        time.sleep(0.2)  # meanwhile the others have seen that it is not there
        write(*given)

    monkeypatch.setattr(MappedIndex, "_write", write_slowly)
    with ThreadPoolExecutor(3) as pool:
        for retriever in list(pool.map(lambda _: Retriever(own_index, model=mapping), range(3))):
            assert len(retriever.search(text="red", top_k=3)) == 3
            retriever.close()
    assert len(made) == 1


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_open_index_answers_as_before_where_its_new_state_cannot_be_mapped(
    mapping, own_index, shapes_root, monkeypatch
):
    asked = own_index.parent / "pictures/val-blue-ellipse.png"
    with Retriever(own_index, model=mapping) as taught:
        found = taught.search(asked, "red")
        shutil.copy(shapes_root / "train/0/train-red-ellipse.png", own_index.parent / "pictures")
        index_folder(own_index.parent / "pictures", own_index)
        with monkeypatch.context() as broken:
            broken.setattr("composir.search.mapped.float32", full_disk)
            for _ in range(2):
                with pytest.raises(ComposirError, match="cannot be written"):
                    taught.reload_if_changed()
                assert taught.search(asked, "red") == found
        assert taught.reload_if_changed()
        assert len(taught) == 13


def test_an_index_of_another_engine_is_one_line(mapping, own_index):
    index_folder(own_index.parent / "pictures", own_index, backend="faiss")
    with pytest.raises(ComposirError, match=r"is searched by faiss, .*--backend exact \(it embeds nothing again\)"):
        Retriever(own_index, model=mapping)
