"""The generated set as it lies on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from composir.data import check_dataset, cirr, load_splits, scenes
from composir.data.scenes import generate, plan
from composir.data.scenes.planning import MIN_NUM_IMAGES
from composir.errors import ComposirError


def digests(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def test_the_layout_is_cirrs(root):
    files = set(digests(root))
    expected = {
        f"cirr/{kind}/{prefix}.rc2.{split}.json"
        for kind, prefix in (("captions", "cap"), ("image_splits", "split"))
        for split in ("train", "val", "test1")
    }
    expected |= {f"train/0/train-{number:05d}.png" for number in range(96)}
    expected |= {f"{name}/{name}-{number:05d}.png" for name in ("dev", "test1") for number in range(24)}
    assert files == expected


def test_the_reader_and_the_checker_accept_it(root):
    checked = check_dataset("CIRR", root)
    assert checked.problems == []
    # 8, 2 and 2 clusters of 11 edits in 2 wordings
    assert {name: (one["num_queries"], one["num_gallery"]) for name, one in checked.counts.items()} == {
        "train": (176, 96),
        "val": (44, 24),
        "test1": (44, 24),
    }


def test_what_is_read_is_what_was_planned(root):
    planned = {split.name: split for split in plan(MIN_NUM_IMAGES)}
    ids: list[str] = []
    for name, plan_of_split in planned.items():
        (split,) = cirr.load(root, name)
        ids += [query.id for query in split.queries]
        for query, expected in zip(split.queries, plan_of_split.queries, strict=True):
            assert query.text == expected.sentence.text
            assert query.reference == split.gallery[expected.reference]
            assert query.targets == (() if name == "test1" else (split.gallery[expected.target],))
            others = [split.gallery[member] for member in expected.members if member != expected.reference]
            assert list(query.subset) == others
    assert ids == [str(number) for number in range(len(ids))]


def test_counts_and_exact_number_of_images(tmp_path):
    # 150 = 100 + 25 + 25: eight clusters and four lone scenes, two clusters and one lone scene
    assert generate(tmp_path / "new", num_images=150, seed=3) == {
        "train": {"num_queries": 176, "num_gallery": 100},
        "val": {"num_queries": 44, "num_gallery": 25},
        "test1": {"num_queries": 44, "num_gallery": 25},
    }


def test_the_same_seed_gives_the_same_bytes(root, tmp_path):
    (tmp_path / "again").mkdir()  # an empty folder is filled
    generate(tmp_path / "again", num_images=MIN_NUM_IMAGES, seed=0)
    assert digests(tmp_path / "again") == digests(root)


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch])
def test_a_folder_in_use_is_not_overwritten(tmp_path, make):
    out = tmp_path / "out"
    make(out)
    if out.is_dir():
        (out / "mine.txt").touch()
    with pytest.raises(ComposirError) as caught:
        generate(out, num_images=MIN_NUM_IMAGES)
    assert str(caught.value) == f"{out}: already exists and is not empty; fix: choose a new folder"


def test_nothing_is_left_when_drawing_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scenes, "draw", fail)
    with pytest.raises(KeyboardInterrupt):
        generate(tmp_path / "out", num_images=MIN_NUM_IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_the_generated_set_is_known_by_its_pictures(root, shapes_root):
    assert all(scenes.is_generated(split) for name in ("train", "val") for split in load_splits("CIRR", root, name))
    assert not any(scenes.is_generated(split) for split in load_splits("CIRR", shapes_root, "val"))
