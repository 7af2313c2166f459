from __future__ import annotations

import pytest

from composir import data
from composir.data import DATASETS, cirr, find_dataset, load_splits, stats
from composir.data.annotations import SplitNotFoundError
from composir.data.datasets import load_present
from composir.data.triplets import split_key
from composir.errors import ComposirError
from composir.evaluation.metrics import PROTOCOLS


def test_the_table(trees):
    assert list(DATASETS) == list(trees)
    assert set(DATASETS) <= set(PROTOCOLS)


@pytest.mark.parametrize("dataset", DATASETS)
def test_every_data_set_is_read_and_described(tmp_path, make_root, dataset):
    root = make_root(dataset, tmp_path)
    splits = load_splits(dataset, root, DATASETS[dataset].evaluated)
    assert all(split.queries and all(query.targets for query in split.queries) for split in splits)
    assert {(split.dataset, split.name) for split in splits} == {(dataset, DATASETS[dataset].evaluated)}
    assert [split.category for split in splits] == list(DATASETS[dataset].categories or [""])
    for split in splits:
        assert split.gallery_rule
        assert split.text_rule
        assert split.file is not None
        assert split.file.exists()
        assert set(split.images) >= {*split.gallery, *(query.reference for query in split.queries)}
    described = stats(load_present(dataset, root).splits)
    assert ("gallery_val_union" in next(iter(described.values()))) == (dataset not in ("GeneCIS", "i-CIR"))


@pytest.mark.parametrize(
    ("dataset", "split"), [(dataset, entry.submitted) for dataset, entry in DATASETS.items() if entry.submitted]
)
def test_what_is_submitted_is_a_split(dataset, split):
    assert split in DATASETS[dataset].splits


def test_splits_that_share_a_file_share_its_problems(circo_root):
    (circo_root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json").write_text("[]")
    present = load_present("CIRCO", circo_root)
    assert [problem.message for problem in present.problems] == ["holds a list, expected an object"]
    assert [split.name for split in present.splits] == ["val", "test"]


def test_there_is_no_val_union_of_galleries_per_query(genecis_root):
    with pytest.raises(ComposirError) as caught:
        load_splits("GeneCIS", genecis_root, "val", gallery="val-union")
    assert str(caught.value) == (
        "every query of GeneCIS has a gallery of its own: there is no val-union; fix: use gallery original"
    )


def test_the_exported_names():
    assert data.__all__ == [
        "DATASETS",
        "TRANSFORMS",
        "Left",
        "Query",
        "Split",
        "check_dataset",
        "check_images",
        "find_dataset",
        "load_splits",
        "normalise",
        "read_image",
        "require_images",
        "squarepad",
        "stats",
        "targetpad",
        "to_array",
        "to_rgb",
        "without_missing_images",
    ]
    assert all(hasattr(data, name) for name in data.__all__)


@pytest.mark.parametrize("name", ["CIRR", "cirr", "Cirr"])
def test_names_in_any_case(cirr_root, name):
    assert find_dataset(name) == "CIRR"
    assert load_splits(name, str(cirr_root), "val") == cirr.load(cirr_root, "val")


@pytest.mark.parametrize(
    ("name", "fix"),
    [("FashionIQ2", "did you mean 'FashionIQ'?"), ("mnist", f"one of: {', '.join(sorted(DATASETS))}")],
)
def test_an_unknown_name(cirr_root, name, fix):
    with pytest.raises(ComposirError) as caught:
        load_splits(name, cirr_root, "val")
    assert str(caught.value) == f"unknown data set {name!r}; expected {', '.join(DATASETS)}; fix: {fix}"


def test_what_is_there_is_read_by_split_and_category(fashioniq_root):
    for folder, prefix in (("captions", "cap"), ("image_splits", "split")):
        file = fashioniq_root / f"{folder}/{prefix}.dress.val.json"
        file.with_name(f"{prefix}.dress.train.json").write_text(file.read_text())
    (fashioniq_root / "captions/cap.shirt.val.json").write_text("[]")
    present = load_present("fashioniq", fashioniq_root)
    keys = [split_key(split.name, split.category) for split in present.splits]
    assert keys == ["dress.train", "dress.val", "shirt.val", "toptee.val"]
    assert [problem.message for problem in present.problems] == ["holds no query"]
    assert present.absent == ["dress.test", "shirt.train", "shirt.test", "toptee.train", "toptee.test"]
    train = load_present("FashionIQ", fashioniq_root, split="train", categories=["dress"])
    assert (len(train.splits), train.absent) == (1, [])


def test_what_is_there_of_a_split_that_is_not(cirr_root):
    with pytest.raises(SplitNotFoundError) as caught:
        load_present("CIRR", cirr_root, split="train")
    assert str(caught.value) == (
        f"{cirr_root}: holds no annotation file of CIRR; expected the split train; "
        "fix: put the published annotation files there"
    )
    with pytest.raises(SplitNotFoundError, match=r"CIRR has no split 'trian'.*did you mean 'train'"):
        load_present("CIRR", cirr_root, split="trian")


def test_val_union_keeps_references_and_targets_in_order(fashioniq_root):
    names = fashioniq_root / "image_splits/split.dress.val.json"
    names.write_text('["other", "dress3", "dress2", "dress1", "dress0", "more"]')
    (split,) = load_splits("fashioniq", fashioniq_root, "val", categories=["dress"], gallery="val-union")
    assert split.gallery == tuple(split.images) == ("dress3", "dress2", "dress1", "dress0")
    assert split.gallery_rule == "val-union"
    assert split.exclude_reference is False


def test_the_reference_rule_can_be_replaced(cirr_root, fashioniq_root):
    assert load_splits("CIRR", cirr_root, "val", exclude_reference=False)[0].exclude_reference is False
    splits = load_splits("FashionIQ", fashioniq_root, "val", exclude_reference=True)
    assert [split.exclude_reference for split in splits] == [True] * 3


def test_val_union_needs_targets(cirr_root):
    for file in ("captions/cap", "image_splits/split"):
        old = cirr_root / f"cirr/{file}.rc2.val.json"
        old.with_name(old.name.replace("val", "test1")).write_text(old.read_text().replace("target_hard", "x"))
    with pytest.raises(ComposirError, match="the test1 split has no targets to choose a val-union gallery by; fix"):
        load_splits("CIRR", cirr_root, "test1", gallery="val-union")


def test_an_unknown_gallery(cirr_root):
    with pytest.raises(ComposirError) as caught:
        load_splits("CIRR", cirr_root, "val", gallery="val_union")
    assert str(caught.value) == (
        "unknown gallery 'val_union'; expected original or val-union; fix: did you mean 'val-union'?"
    )
