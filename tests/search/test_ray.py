"""The embedding by workers of a Ray cluster: one of a single core, started here."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

import composir.search.ray as ray_engine
from composir.errors import ComposirError
from composir.search import index_folder
from composir.search.embedding import PictureEmbedder, PictureFile
from composir.search.encoder import open_encoder
from composir.search.ray import MOST_LOSSES, Work, _Pool, embed_by_ray

from .conftest import draw, same_state, state


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray  # noqa: PLC0415

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


def test_a_cluster_makes_the_index_that_this_process_makes(cluster, pictures, tmp_path, model_folder):
    here, there, told = tmp_path / "here", tmp_path / "there", []
    index_folder(pictures, here, model=model_folder)
    shutil.copytree(here, there)
    (pictures / "00.png").rename(pictures / "renamed.png")
    (pictures / "cut.png").write_bytes((pictures / "01.png").read_bytes()[:60])
    for number in range(30, 40):
        draw(number).save(pictures / f"{number}.png")
    shutil.copy(pictures / "30.png", pictures / "31a.png")
    shutil.copy(pictures / "30.png", pictures / "sea" / "copy.png")
    expected = index_folder(pictures, here)
    assert (expected.num_images, expected.num_added, len(expected.skipped)) == (30, 10, 1)
    report = index_folder(pictures, there, engine="ray", progress=lambda *progress: told.append(progress))
    assert report == expected
    assert told[-1] == ("pictures", 14, 14)
    same_state(state(there), state(here))


def test_what_a_killed_worker_had_is_done_by_the_next(cluster, pictures, tmp_path, model_folder, monkeypatch):
    died = tmp_path / "died"

    class Mortal(ray_engine._Worker):
        def embed(self, files):
            if files[0].path == "08.png" and not died.exists():
                died.touch()
                os._exit(1)
            return super().embed(files)

    monkeypatch.setattr(ray_engine, "_Worker", Mortal)
    names = sorted(str(file.relative_to(pictures)) for file in pictures.rglob("*.png"))
    files = [PictureFile(name, 1, 2, 3) for name in names]
    work = Work(model_folder, pictures, num_vectors=2, batch_size=4, device="cpu", num_threads=1)
    embedder = PictureEmbedder(open_encoder(model_folder, "cpu"), pictures, num_vectors=2, is_known=lambda _: False)
    expected = itertools.chain(*embedder.batches(files, num_workers=1))
    blocks = list(embed_by_ray(work, files, np.empty(0, "S32"), address=None))
    assert died.exists()
    assert list(map(len, blocks)) == [4] * 5
    for one, other in zip(itertools.chain(*blocks), expected, strict=True):
        assert (one.record, one.note) == (other.record, other.note)
        assert np.array_equal(one.vectors, other.vectors)


class Ray:
    """As much of Ray as the pool asks for: calls are answered in any order, and ``is_lost`` says which are not."""

    def __init__(self, is_lost):
        import ray  # noqa: PLC0415

        self.exceptions = ray.exceptions
        self.is_lost, self.num_cpus, self.dead, self.chance = is_lost, 1, [], random.Random(0)
        self.losses = itertools.cycle(
            [ray.exceptions.ActorDiedError(), ray.exceptions.ActorUnavailableError("away", None)]
        )
        self.put = lambda known: known

    def remote(self, _):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: Worker()))

    def wait(self, calls, timeout):
        return ([self.chance.choice(calls)], []) if self.num_cpus else ([], calls)

    def get(self, call):
        worker, files = call
        if worker in self.dead or self.is_lost(files):
            self.dead.append(worker)
            raise next(self.losses)
        return [f"{file} is done" for file in files or ()]

    def kill(self, worker):
        self.dead.append(worker)

    def cluster_resources(self):
        return {"CPU": float(self.num_cpus)}


class Worker:
    def __init__(self):
        self.open = SimpleNamespace(remote=lambda: (self, None))
        self.embed = SimpleNamespace(remote=lambda files: (self, tuple(files)))


def pool_of(ray):
    return _Pool(ray, None, np.empty(0, "S32"), resource="CPU")


def test_blocks_come_whole_and_in_order_whatever_is_lost():
    asked = Counter()

    def is_lost(files):
        asked[files] += 1
        return files is not None and files[0] % 5 == 0 and asked[files] == 1

    blocks = [(number, number + 1000) for number in range(60)]
    found = list(pool_of(Ray(is_lost)).embed(blocks, 3))
    assert found == [[f"{number} is done", f"{number + 1000} is done"] for number in range(60)]
    assert all(asked[block] == 2 for block in blocks[::5])


def test_files_that_workers_die_of_are_named():
    blocks = [[PictureFile(f"{number}.png", 1, 2, 3)] for number in range(4)]
    found = pool_of(Ray(lambda files: files is not None and files[0].path == "2.png")).embed(blocks, 1)
    assert len(list(itertools.islice(found, 2))) == 2
    with pytest.raises(ComposirError, match=rf"2\.png: {MOST_LOSSES} Ray workers were lost, .* the same 1 files, from"):
        next(found)


def test_workers_that_die_while_they_open_the_model_end_the_run():
    ray = Ray(lambda files: files is None)
    with pytest.raises(
        ComposirError, match=rf"{MOST_LOSSES} Ray workers were lost, .* while they opened the model; fix: "
    ):
        list(pool_of(ray).embed([[1], [2]], 1))


def test_a_cluster_that_is_lost_is_one_line():
    ray = Ray(lambda _: False)
    found = pool_of(ray).embed([[1], [2], [3], [4]], 1)
    assert next(found) == ["1 is done"]
    ray.num_cpus = 0
    with pytest.raises(
        ComposirError, match=r"no machine of the Ray cluster is left that has a CPU; fix: .* it goes on"
    ):
        list(found)


def test_a_missing_extra_says_what_to_install(pictures, tmp_path, model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ComposirError, match=r"the ray engine needs .* fix: pip install 'ray>="):
        index_folder(pictures, tmp_path / "index", model=model_folder, engine="ray")


def test_an_unknown_engine_names_the_nearest(pictures, tmp_path, model_folder):
    with pytest.raises(ComposirError, match=r"engine 'rai' is not known; fix: did you mean 'ray'\?"):
        index_folder(pictures, tmp_path / "index", model=model_folder, engine="rai")


def test_several_processes_are_sent_to_ray(pictures, tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ComposirError, match=r"started as several processes, .* fix: leave out accelerate launch"):
        index_folder(pictures, tmp_path / "index", model=model_folder)
