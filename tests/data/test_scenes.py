from __future__ import annotations

import hashlib
from pathlib import Path
from random import Random

import numpy as np
import pytest

from composir.data import check_dataset, cirr, read_image, scenes
from composir.data.scenes import (
    HELD_OUT_PAIRS,
    MIN_NUM_IMAGES,
    RGB_BY_BACKGROUND,
    RGB_BY_COLOUR,
    Edit,
    Mention,
    Object,
    Scene,
    SceneQuery,
    SceneSplit,
    draw,
    generate,
    plan,
)
from composir.errors import ComposirError

NUM_CANDIDATES = 5


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "root"
    generate(out, num_images=MIN_NUM_IMAGES)
    return out


@pytest.fixture(scope="module")
def splits() -> dict[str, SceneSplit]:
    """The default data set, not drawn."""
    return {split.name: split for split in plan()}


def digests(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }


def pairs_of(split: SceneSplit) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for scene in split.scenes for thing in scene.cells if thing is not None}


def num_differences(first: Scene, second: Scene) -> int:
    """How many of the nine cells and the background differ."""
    cells = sum(one != other for one, other in zip(first.cells, second.cells, strict=True))
    return cells + (first.background != second.background)


def fits(query: SceneQuery, scene: Scene) -> bool:
    """Whether what the sentence says of its target is true of the scene."""
    return bool(query.sentence.about.find(scene)) is query.sentence.present


def hit_rate(query: SceneQuery, chosen: list[int]) -> float:
    """The chance of naming the target first when all one knows is that it is among the chosen."""
    return (query.target in chosen) / len(chosen)


# The oracles


def nearest(split: SceneSplit, query: SceneQuery, candidates: list[int]) -> list[int]:
    """The candidates that differ from the reference as little as an edit can: all that the picture tells."""
    reference = split.scenes[query.reference]
    differences = {number: num_differences(reference, split.scenes[number]) for number in candidates}
    most = max(2, min(differences.values()))  # a move changes two cells, every other edit one
    return [number for number, difference in differences.items() if difference <= most]


def test_the_picture_alone_finds_one_target_in_eleven(splits):
    split = splits["val"]
    rates = []
    for query in split.queries[::7]:
        others = [number for number in range(len(split.scenes)) if number != query.reference]
        rates.append(hit_rate(query, nearest(split, query, others)))
    assert set(rates) == {1 / 11}


def test_the_sentence_alone_finds_few_targets(splits):
    split = splits["val"]
    rates = []
    for query in split.queries[::3]:
        candidates = [number for number in range(len(split.scenes)) if number != query.reference]
        rates.append(hit_rate(query, [number for number in candidates if fits(query, split.scenes[number])]))
    assert min(rates) > 0  # the target always fits
    assert np.mean(rates) < 0.11


@pytest.mark.parametrize("name", ["train", "val", "test1"])
def test_neither_modality_alone_solves_the_subset(splits, name):
    split = splits[name]
    by_picture, by_sentence = [], []
    for query in split.queries[::2]:
        candidates = [number for number in query.members if number != query.reference]
        assert len(candidates) == NUM_CANDIDATES
        by_picture.append(hit_rate(query, nearest(split, query, candidates)))
        by_sentence.append(hit_rate(query, [one for one in candidates if fits(query, split.scenes[one])]))
    # Chance is 0.20. Two or three of the other four are edits of the same base: (1/3 + 1/4) / 2 = 0.29.
    assert np.mean(by_picture) == pytest.approx((1 / 3 + 1 / 4) / 2, abs=0.01)
    assert np.mean(by_sentence) < 0.37
    assert max(by_picture) <= 1 / 3


def test_picture_and_sentence_together_leave_exactly_one_scene(splits):
    for split in splits.values():
        gallery = set(split.scenes)
        for query in split.queries:
            reference = split.scenes[query.reference]
            results = {meaning.apply(reference) for meaning in query.sentence.meanings}
            assert results & gallery == {split.scenes[query.target]}


# The plan


def test_sizes(splits):
    assert {name: (len(split.scenes), len(split.queries)) for name, split in splits.items()} == {
        "train": (2000, 3652),  # 166 clusters of 12 and 8 lone scenes; 166 x 11 edits x 2 wordings
        "val": (500, 902),
        "test1": (500, 902),
    }


def test_no_scene_occurs_twice(splits):
    everything = [scene for split in splits.values() for scene in split.scenes]
    assert len(set(everything)) == len(everything) == 3000


def test_validation_shows_pairs_that_training_never_does(splits):
    held_out = set(HELD_OUT_PAIRS)
    assert len(held_out) == 5
    assert not pairs_of(splits["train"]) & held_out
    assert pairs_of(splits["val"]) > held_out
    assert pairs_of(splits["test1"]) > held_out


def test_validation_uses_no_word_that_training_does_not(splits):
    words = {
        name: {word for query in split.queries for word in query.sentence.text.split()}
        for name, split in splits.items()
    }
    assert words["val"] <= words["train"]
    assert words["test1"] <= words["train"]
    assert len(words["train"]) > 50


def test_every_kind_of_edit_is_asked_for(splits):
    kinds = [query.sentence.meanings[0].kind for query in splits["train"].queries]
    share = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert set(share) == {"recolour", "reshape", "resize", "move", "remove", "add"}
    assert min(share.values()) > 0.09


def test_two_wordings_a_pair(splits):
    texts_by_pair: dict[tuple[int, int], list[str]] = {}
    for query in splits["val"].queries:
        texts_by_pair.setdefault((query.reference, query.target), []).append(query.sentence.text)
    assert {len(texts) for texts in texts_by_pair.values()} == {2}
    assert all(first != second for first, second in texts_by_pair.values())


def test_members_are_six_different_scenes_of_two_clusters_at_least(splits):
    for split in splits.values():
        for query in split.queries:
            assert len(set(query.members)) == 6
            assert {query.reference, query.target} <= set(query.members)


def test_every_edit_can_be_said_without_ambiguity():
    # Two equal shapes: only the place tells them apart, so the place is said.
    star = Object("red", "star", "large")
    base = Scene("white", (star, None, None, None, star, None, None, None, None))
    edit = Edit("recolour", 0, 0, Object("blue", "star", "large"))
    gallery = {base: 0, edit.apply(base): 1, base.put(4, edit.thing): 2}
    sentences = scenes._word(base, edit, gallery, Random(0))
    assert all("at the top left" in sentence.text and "blue" in sentence.text for sentence in sentences)


def test_mentions_find_what_they_name():
    scene = Scene("white", (Object("red", "star", "large"), Object("red", "cross", "small"), *[None] * 7))
    assert Mention(colour="red").find(scene) == [0, 1]
    assert Mention(colour="red", size="small").find(scene) == [1]
    assert Mention(shape="star", cells=(1, 2)).find(scene) == []
    assert Mention().find(scene) == [0, 1]


def test_edits_move_and_remove():
    star = Object("red", "star", "large")
    scene = Scene("white", (star, *[None] * 8))
    assert Edit("move", 0, 8, star).apply(scene) == Scene("white", (*[None] * 8, star))
    assert Edit("remove", 0, 0, None).apply(scene) == Scene("white", (None,) * 9)


# The files


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


def test_another_seed_gives_other_scenes():
    assert plan(MIN_NUM_IMAGES, seed=1) != plan(MIN_NUM_IMAGES, seed=0)


def test_pictures_show_the_scene(root):
    (planned,) = [split for split in plan(MIN_NUM_IMAGES) if split.name == "val"]
    (split,) = cirr.load(root, "val")
    for name, scene in zip(split.gallery, planned.scenes, strict=True):
        pixels = np.asarray(read_image(split.images[name]))
        assert pixels.shape == (144, 144, 3)
        for cell, thing in enumerate(scene.cells):
            middle = pixels[cell // 3 * 48 + 24, cell % 3 * 48 + 24].tolist()
            colour = RGB_BY_BACKGROUND[scene.background] if thing is None else RGB_BY_COLOUR[thing.colour]
            assert middle == list(colour)


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_shapes_stay_in_their_cell_and_sizes_differ(shape):
    areas = {}
    for size in scenes.RADIUS_BY_SIZE:
        scene = Scene("white", (None,) * 4 + (Object("black", shape, size),) + (None,) * 4)
        for seed in range(10):
            drawn = np.asarray(draw(scene, Random(seed))).min(axis=2) < 255
            areas[size] = drawn.sum()
            drawn[48:96, 48:96] = False
            assert not drawn.any()
    assert areas["large"] > 2.5 * areas["small"]


def test_edges_are_soft():
    scene = Scene("white", (None,) * 4 + (Object("black", "circle", "large"),) + (None,) * 4)
    assert len(np.unique(np.asarray(draw(scene, Random(0))))) > 10


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


def test_too_few_images():
    with pytest.raises(ComposirError) as caught:
        plan(MIN_NUM_IMAGES - 1)
    assert str(caught.value) == ("143 images are too few for the scenes; expected 144 or more; fix: --images 144")
