"""Rows of one's own triplets shared out at random."""

from __future__ import annotations

import json
import random

import pytest

from composir.data import load_splits
from composir.data.importing import import_triplets
from composir.data.sharing import read_shares, share_out
from composir.data.triplets import Query
from composir.errors import ComposirError


def queries(*numbers: int) -> list[Query]:
    """Return so many queries of each of several references, mixed."""
    rows = [f"reference-{place}" for place, number in enumerate(numbers) for _ in range(number)]
    random.Random(0).shuffle(rows)
    return [Query(str(number), name, "red", ("red",), ("t",), ()) for number, name in enumerate(rows)]


@pytest.mark.parametrize("shares", ["80/20", "50/50", "80/10/10"])
@pytest.mark.parametrize("numbers", [[1] * 100, [5] * 20, [1, 2, 3, 40, 5, 6, 7]])
def test_no_reference_is_in_two_splits_and_every_row_is_in_one(numbers, shares):
    rows = queries(*numbers)
    found = share_out(rows, read_shares(shares), seed=3)
    assert sorted(one.id for part in found.values() for one in part) == sorted(one.id for one in rows)
    references = [{one.reference for one in part} for part in found.values()]
    assert all(references)
    assert sum(map(len, references)) == len(set().union(*references))
    for part in found.values():  # in the order of the rows
        assert [int(one.id) for one in part] == sorted(int(one.id) for one in part)


def test_shares_are_met_and_the_seed_chooses():
    rows = queries(*[1] * 100)
    one, again, other = (share_out(rows, read_shares("80/20"), seed=seed) for seed in (0, 0, 1))
    assert {name: len(part) for name, part in one.items()} == {"train": 80, "val": 20}
    assert one == again
    assert one != other


def test_which_words_are_shares():
    assert read_shares("80/20") == {"train": 80, "val": 20}
    assert read_shares("70/20/10") == {"train": 70, "val": 20, "test": 10}
    assert [read_shares(one) for one in ("", "val", "80", "80/20/0/0")] == [{}] * 4
    for wrong in ("80/30", "100/0"):
        with pytest.raises(ComposirError, match=f"the shares {wrong} are not 100 % together, or one is nothing"):
            read_shares(wrong)


def test_one_reference_cannot_be_shared():
    with pytest.raises(ComposirError, match=r"the rows have 1 reference picture, .* expected 2 or more for train and"):
        share_out(queries(9), read_shares("80/20"), seed=0)


def test_an_import_is_shared_out_and_can_be_trained_on(shapes_root, tmp_path):
    names = sorted(file.name for file in (shapes_root / "dev").iterdir())
    file = tmp_path / "t.jsonl"
    rows = [{"reference": one, "text": "red", "target": other} for one in names for other in names if one != other]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    imported = import_triplets(file, shapes_root / "dev", tmp_path / "root", split="75/25", seed=5)
    assert {name: one["num_queries"] for name, one in imported.counts.items()} == {"train": 99, "val": 33}
    assert imported.notes == ["shared out by --split 75/25 with seed 5; all rows of a reference are in the same split"]
    (train,), (val,) = (load_splits("own", tmp_path / "root", name) for name in ("train", "val"))
    assert len(train.queries) == 99
    assert not {one.reference for one in train.queries} & {one.reference for one in val.queries}
