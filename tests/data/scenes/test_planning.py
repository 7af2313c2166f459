from __future__ import annotations

import numpy as np
import pytest

from composir.data.scenes import plan
from composir.data.scenes.planning import MIN_NUM_IMAGES
from composir.data.scenes.world import HELD_OUT_PAIRS, Scene, SceneQuery, SceneSplit
from composir.errors import ComposirError

NUM_CANDIDATES = 5


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


def test_every_kind_of_edit_is_asked_for(splits):
    kinds = [query.sentence.meanings[0].kind for query in splits["train"].queries]
    share = {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}
    assert set(share) == {"recolour", "reshape", "resize", "move", "remove", "add"}
    assert min(share.values()) > 0.09


def test_members_are_six_different_scenes_of_two_clusters_at_least(splits):
    for split in splits.values():
        for query in split.queries:
            assert len(set(query.members)) == 6
            assert {query.reference, query.target} <= set(query.members)


def test_another_seed_gives_other_scenes():
    assert plan(MIN_NUM_IMAGES, seed=1) != plan(MIN_NUM_IMAGES, seed=0)


def test_too_few_images():
    with pytest.raises(ComposirError) as caught:
        plan(MIN_NUM_IMAGES - 1)
    assert str(caught.value) == ("143 images are too few for the scenes; expected 144 or more; fix: --images 144")
