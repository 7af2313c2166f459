from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from composir import data
from composir.data import DATASETS, cirr, fashioniq, find_dataset, load_splits, own, stats
from composir.data.annotations import SplitNotFoundError
from composir.data.datasets import load_present
from composir.data.triplets import split_key
from composir.errors import ComposirError


def test_the_table():
    assert {name: dataset.load for name, dataset in DATASETS.items()} == {
        "CIRR": cirr.load,
        "FashionIQ": fashioniq.load,
        "own": own.load,
    }


def test_the_exported_names():
    assert data.__all__ == [
        "DATASETS",
        "TRANSFORMS",
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
    ("name", "fix"), [("FashionIQ2", "did you mean 'FashionIQ'?"), ("mnist", "one of: CIRR, FashionIQ, own")]
)
def test_an_unknown_name(cirr_root, name, fix):
    with pytest.raises(ComposirError) as caught:
        load_splits(name, cirr_root, "val")
    assert str(caught.value) == f"unknown data set {name!r}; expected CIRR, FashionIQ, own; fix: {fix}"


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


ANNOTATIONS = Path(__file__).parents[1] / "golden" / "annotations"
FILES = {
    "CIRR": ("cirr_dataset/cirr/captions/cap.rc2.val.json", "cirr_dataset/cirr/image_splits/split.rc2.val.json"),
    "FashionIQ": (
        "fashionIQ_dataset/captions/cap.dress.val.json",
        "fashionIQ_dataset/image_splits/split.dress.val.json",
    ),
}


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    return Path(shutil.copytree(ANNOTATIONS, tmp_path_factory.mktemp("annotations") / "copy"))


BYTES = st.sampled_from([b"", b"null", b"[]", b"{}", b'""', b"1", b"true", b",", b'"x": 1,'])


@pytest.mark.parametrize("dataset", ["CIRR", "FashionIQ"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 1), cut=st.slices(3000), new=st.binary(max_size=6) | BYTES)
def test_an_annotation_file_with_any_bytes_replaced(annotations, dataset, place, cut, new):
    # A clear error, or as many queries as the file has entries.
    file = annotations / FILES[dataset][place]
    content = file.read_bytes()
    changed = bytearray(content)
    start, stop, _ = cut.indices(3000)
    changed[start : min(stop, start + 60)] = new
    file.write_bytes(changed)
    categories = ["dress"] if dataset == "FashionIQ" else None
    try:
        splits = load_splits(dataset, annotations, "val", categories=categories)
    except ComposirError as error:
        assert str(annotations) in str(error)
    else:
        entries = json.loads((annotations / FILES[dataset][0]).read_text("utf-8-sig"))
        assert [len(split.queries) for split in splits] == [len(entries)]
        assert stats(splits)
    finally:
        file.write_bytes(content)
