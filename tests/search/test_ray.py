"""The embedding by workers of a Ray cluster: one of a single core, started here."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from composir.errors import ComposirError
from composir.search import index_folder

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


def test_a_missing_extra_says_what_to_install(pictures, tmp_path, model_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ComposirError, match=r"the ray engine needs .* fix: pip install 'ray\[data\]>="):
        index_folder(pictures, tmp_path / "index", model=model_folder, engine="ray")


def test_an_unknown_engine_names_the_nearest(pictures, tmp_path, model_folder):
    with pytest.raises(ComposirError, match=r"engine 'rai' is not known; fix: did you mean 'ray'\?"):
        index_folder(pictures, tmp_path / "index", model=model_folder, engine="rai")


def test_several_processes_are_sent_to_ray(pictures, tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ComposirError, match=r"started as several processes, .* fix: leave out accelerate launch"):
        index_folder(pictures, tmp_path / "index", model=model_folder)
