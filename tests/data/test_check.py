from __future__ import annotations

import json

import pytest
from PIL import Image

from composir.data import check_dataset, check_images, load_splits, require_images, stats
from composir.data.annotations import SplitNotFoundError
from composir.errors import ProblemsError

CAPTIONS = "cirr/captions/cap.rc2.val.json"


@pytest.fixture
def broken_root(cirr_root):
    """The tiny CIRR root with a missing, an empty, a cut off, a renamed and a float image."""
    dev = cirr_root / "dev"
    (dev / "a.png").unlink()
    (dev / "b.png").write_bytes(b"")
    (dev / "c.png").write_bytes((dev / "c.png").read_bytes()[:45])
    (dev / "d.png").rename(dev / "d.jpeg")
    Image.new("F", (2, 2)).save(dev / "e.tif")
    (dev / "e.tif").rename(dev / "e.png")
    return cirr_root


def test_a_whole_root_has_no_problems(cirr_root):
    problems, counts = check_dataset("cirr", cirr_root)
    assert problems == []
    assert counts == {"val": {"num_queries": 2, "num_gallery": 7, "num_images": 7}}


def test_every_broken_image_is_listed_with_its_fix(broken_root):
    problems, _ = check_dataset("CIRR", broken_root)
    dev = broken_root / "dev"
    found = {problem.file: (problem.message.split(" (")[0], problem.fix) for problem in problems}
    assert found == {
        str(dev / "a.png"): ("no such image file", "fetch or export the file again"),
        str(dev / "b.png"): ("the image file is empty", "fetch or export the file again"),
        str(dev / "c.png"): ("the image data is cut off or damaged", "fetch or export the file again"),
        str(dev / "d.png"): (
            "no such image file",
            "d.jpeg is there: correct the path in the split file, or convert the image",
        ),
        str(dev / "e.png"): (
            "holds 32-bit float pixels, whose range is unknown, expected 8 or 16 bits a channel",
            "save it as an 8-bit PNG or JPEG",
        ),
    }
    assert [problem.where for problem in problems] == [f"image {name!r} of CIRR val" for name in "abcde"]


def test_without_decoding_missing_and_empty_files_are_found(broken_root):
    problems = check_images(load_splits("CIRR", broken_root, "val"), decode=False)
    assert [problem.where for problem in problems] == [f"image {name!r} of CIRR val" for name in ("a", "b", "d")]


def test_require_images_names_the_files(broken_root):
    with pytest.raises(ProblemsError) as caught:
        require_images(load_splits("CIRR", broken_root, "val"))
    assert str(caught.value).startswith(
        f"3 problems: {broken_root / 'dev' / 'a.png'} (image 'a' of CIRR val): no such image file; fix: fetch"
    )


def test_require_images_is_silent_on_a_whole_root(cirr_root):
    require_images(load_splits("CIRR", cirr_root, "val"))


def test_progress_counts_every_file_once(cirr_root):
    splits = load_splits("CIRR", cirr_root, "val")
    calls: list[tuple[int, int]] = []
    check_images((*splits, *splits), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(number, 7) for number in range(1, 8)]


def test_images_are_checked_although_annotations_are_broken(broken_root, break_captions):
    break_captions(caption="", reference="zz")
    problems, counts = check_dataset("CIRR", broken_root)
    assert [problem.file for problem in problems[:2]] == [str(broken_root / CAPTIONS)] * 2
    assert len(problems) == 2 + 5
    assert counts == {"val": {"num_queries": 1, "num_gallery": 7, "num_images": 7}}


def test_all_splits_of_the_root_are_checked(cirr_root):
    for kind, prefix in (("captions", "cap"), ("image_splits", "split")):
        folder = cirr_root / "cirr" / kind
        (folder / f"{prefix}.rc2.train.json").write_text((folder / f"{prefix}.rc2.val.json").read_text())
    (cirr_root / "cirr/captions/cap.rc2.test1.json").write_text("[]")
    problems, counts = check_dataset("CIRR", cirr_root)
    assert list(counts) == ["train", "val", "test1"]
    assert [problem.message for problem in problems] == ["the file is missing"]


def test_categories_are_counted_apart(fashioniq_root):
    problems, counts = check_dataset("FashionIQ", fashioniq_root)
    assert list(counts) == ["dress.val", "shirt.val", "toptee.val"]
    assert len(problems) == 12  # no images
    assert problems[0].where == "image 'dress0' of FashionIQ dress.val"
    _, counts = check_dataset("FashionIQ", fashioniq_root, categories=["shirt"], decode=False)
    assert list(counts) == ["shirt.val"]


def test_a_root_without_any_split(cirr_root):
    for file in (cirr_root / "cirr").rglob("*.json"):
        file.unlink()
    with pytest.raises(SplitNotFoundError) as caught:
        check_dataset("CIRR", cirr_root)
    assert str(caught.value) == (
        f"{cirr_root}: holds no annotation file of CIRR; "
        "expected at least one of the splits train, val, test1; "
        "fix: put the published annotation files there"
    )


def test_stats_by_hand(cirr_root, break_captions):
    # captions "a longer sentence" (3 words) and "show c" (2 words); both queries ask for c.
    break_captions(caption="a longer  sentence", target_hard="c")
    assert stats(load_splits("CIRR", cirr_root, "val")) == {
        "val": {
            "num_queries": 2,
            "num_gallery": 7,
            "num_references": 2,
            "num_pairs": 2,
            "num_duplicate_targets": 1,
            "words_min": 2,
            "words_mean": 2.5,
            "words_max": 3,
        }
    }


def test_stats_count_two_sentences_for_one_pair_once(fashioniq_root):
    file = fashioniq_root / "captions/cap.dress.val.json"
    entries = json.loads(file.read_text())
    file.write_text(json.dumps([*entries, {**entries[0], "captions": ["x", "y"]}]))
    dress = stats(load_splits("FashionIQ", fashioniq_root, "val"))["dress.val"]
    assert (dress["num_queries"], dress["num_pairs"], dress["num_duplicate_targets"]) == (3, 2, 1)
