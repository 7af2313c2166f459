from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil

import pytest
from PIL import Image

from composir.data import (
    Left,
    check_dataset,
    check_images,
    load_splits,
    require_images,
    stats,
    without_missing_images,
)
from composir.data.annotations import SplitNotFoundError
from composir.data.check import SKIP_FIX
from composir.data.images import Crop
from composir.errors import ComposirError, Note, ProblemsError
from composir.evaluation.metrics import check_scorable

NUM_FILES = 2
"""Annotation files of the tiny root; each is noted as not the published one."""
CAPTIONS = "cirr/captions/cap.rc2.val.json"


@pytest.fixture
def broken_root(cirr_root):
    """The tiny CIRR root with two missing, an empty, a cut off and a float image."""
    dev = cirr_root / "dev"
    (dev / "a.png").unlink()
    (dev / "b.png").write_bytes(b"")
    (dev / "c.png").write_bytes((dev / "c.png").read_bytes()[:45])
    (dev / "d.png").unlink()
    Image.new("F", (2, 2)).save(dev / "e.tif")
    (dev / "e.tif").rename(dev / "e.png")
    return cirr_root


def test_a_whole_root_has_no_problems(cirr_root):
    checked = check_dataset("cirr", cirr_root)
    assert checked.problems == []
    assert checked.counts == {
        "val": {
            "num_queries": 2,
            "num_gallery": 7,
            "num_images": 7,
            "num_duplicate_images": 0,
            "num_placeholder_images": 0,
        }
    }
    assert checked.absent == ["train", "test1"]


def test_every_broken_image_is_listed_with_its_fix(broken_root):
    problems = check_dataset("CIRR", broken_root).problems
    dev = broken_root / "dev"
    assert [(problem.file, problem.where, problem.message.split(" (")[0], problem.fix) for problem in problems] == [
        (
            str(dev),
            "CIRR val",
            f"5 of 7 images are there; looked there and, by name, below {broken_root}; missing: 'a', 'd'",
            f"put them there (docs/data.md), or {SKIP_FIX}",
        ),
        (str(dev), "CIRR val", "1 of 7 images are empty files", f"fetch them again, or {SKIP_FIX}"),
        (
            str(dev / "c.png"),
            "image 'c' of CIRR val",
            "the image data is cut off or damaged",
            "fetch or export the file again",
        ),
        (
            str(dev / "e.png"),
            "image 'e' of CIRR val",
            "holds 32-bit float pixels, whose range is unknown, expected 8 or 16 bits a channel",
            "save it as an 8-bit PNG or JPEG",
        ),
    ]
    assert problems[1].message == "1 of 7 images are empty files (0 bytes): 'b'"


def test_without_decoding_missing_and_empty_files_are_found(broken_root):
    problems = check_images(load_splits("CIRR", broken_root, "val"), decode=False)
    assert [problem.message.rpartition(": ")[2] for problem in problems] == ["'a', 'd'", "'b'"]


def test_require_images_names_the_files(broken_root):
    with pytest.raises(ProblemsError) as caught:
        require_images(load_splits("CIRR", broken_root, "val"))
    assert str(caught.value).startswith(
        f"2 problems: {broken_root / 'dev'} (CIRR val): 5 of 7 images are there; looked there and, by name, below "
        f"{broken_root}; missing: 'a', 'd'; fix: put them there (docs/data.md), or leave out what needs them: train, "
        "evaluate and features take --skip-missing-images | "
    )


def test_require_images_is_silent_on_a_whole_root(cirr_root):
    require_images(load_splits("CIRR", cirr_root, "val"))


def test_progress_counts_every_file_once(cirr_root):
    splits = load_splits("CIRR", cirr_root, "val")
    calls: list[tuple[int, int]] = []
    check_images((*splits, *splits), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(number, 7) for number in range(1, 8)]


def test_images_are_checked_although_annotations_are_broken(broken_root, break_captions):
    break_captions(caption=7, reference="zz")
    checked = check_dataset("CIRR", broken_root)
    assert [problem.file for problem in checked.problems[:2]] == [str(broken_root / CAPTIONS)] * 2
    assert len(checked.problems) == 2 + 4
    assert checked.counts["val"]["num_queries"] == 1
    assert checked.counts["val"]["num_images"] == 7


def test_all_splits_of_the_root_are_checked(cirr_root):
    for kind, prefix in (("captions", "cap"), ("image_splits", "split")):
        folder = cirr_root / "cirr" / kind
        (folder / f"{prefix}.rc2.train.json").write_text((folder / f"{prefix}.rc2.val.json").read_text())
    (cirr_root / "cirr/captions/cap.rc2.test1.json").write_text("[]")
    checked = check_dataset("CIRR", cirr_root)
    assert list(checked.counts) == ["train", "val", "test1"]
    assert [problem.message for problem in checked.problems] == ["the file is missing"]
    assert checked.absent == []


def test_categories_are_counted_apart(fashioniq_root):
    checked = check_dataset("FashionIQ", fashioniq_root)
    assert list(checked.counts) == ["dress.val", "shirt.val", "toptee.val"]
    assert [str(problem) for problem in checked.problems] == [  # no images: one problem a split, not one an image
        f"{fashioniq_root / 'images'} (FashionIQ {name}.val): 0 of 4 images are there; looked there and, by name, "
        f"below {fashioniq_root}; missing: '{name}0', '{name}1', '{name}2', '{name}3'; "
        f"fix: put them there (docs/data.md), or {SKIP_FIX}"
        for name in ("dress", "shirt", "toptee")
    ]
    assert checked.absent[:3] == ["dress.train", "dress.test", "shirt.train"]
    assert list(check_dataset("FashionIQ", fashioniq_root, categories=["shirt"]).counts) == ["shirt.val"]


def test_what_is_there_is_checked_and_what_is_not_is_named(fashioniq_root):
    for category in ("shirt", "toptee"):
        (fashioniq_root / f"captions/cap.{category}.val.json").unlink()
    (fashioniq_root / "image_splits/split.shirt.val.json").unlink()
    checked = check_dataset("FashionIQ", fashioniq_root)
    assert list(checked.counts) == ["dress.val", "toptee.val"]
    assert [problem.message for problem in checked.problems if "captions" in problem.file] == ["the file is missing"]
    assert "shirt.val" in checked.absent
    with pytest.raises(SplitNotFoundError) as caught:
        check_dataset("FashionIQ", fashioniq_root, categories=["dress", "shirt"])
    assert str(caught.value) == (
        f"{fashioniq_root}: holds no annotation file of FashionIQ shirt; "
        "expected at least one of the splits train, val, test; fix: put the published annotation files there"
    )


def test_files_with_one_content_are_a_problem_that_names_both(cirr_root):
    dev = cirr_root / "dev"
    for copy in ("c.png", "e.png"):
        (dev / copy).write_bytes((dev / "b.png").read_bytes())
    checked = check_dataset("CIRR", cirr_root)
    assert [str(problem) for problem in checked.problems] == [
        f"{dev / f'{copy}.png'} (image '{copy}' of CIRR val): "
        f"has the same content as {dev / 'b.png'} (image 'b' of CIRR val); "
        "fix: keep one of the two under one name, or accept all such pairs with --allow-duplicates"
        for copy in "ce"
    ]
    assert checked.counts["val"]["num_duplicate_images"] == 2
    allowed = check_dataset("CIRR", cirr_root, allow_duplicates=True)
    assert allowed.problems == []
    assert allowed.counts == checked.counts


def test_one_file_under_two_names_is_no_duplicate(cirr_root):
    # Two splits may share images, as FashionIQ's categories do.
    for kind, prefix in (("captions", "cap"), ("image_splits", "split")):
        folder = cirr_root / "cirr" / kind
        (folder / f"{prefix}.rc2.train.json").write_text((folder / f"{prefix}.rc2.val.json").read_text())
    checked = check_dataset("CIRR", cirr_root)
    assert checked.problems == []
    assert list(checked.counts) == ["train", "val"]


def test_a_text_of_more_than_1000_characters_is_noted(cirr_root, break_captions):
    break_captions(caption="x" * 1000)
    assert len(check_dataset("CIRR", cirr_root).notes) == NUM_FILES
    break_captions(caption="x" * 1001)
    checked = check_dataset("CIRR", cirr_root)
    assert checked.problems == []
    assert str(checked.notes[-1]) == (
        f"{cirr_root / CAPTIONS} (query 17): the text has 1,001 characters, more than 1,000 ('{'x' * 40}'...)"
    )


def test_notes_that_say_the_same_of_a_file_are_one(fashioniq_root):
    file = fashioniq_root / "captions/cap.dress.val.json"
    entry = {"target": "dress1", "candidate": "dress0", "captions": ["red", ""]}
    file.write_text(json.dumps([entry] * 24 + [{**entry, "captions": [".", "red"]}]))
    checked = check_dataset("FashionIQ", fashioniq_root, categories=["dress"])
    assert [note for note in checked.notes if "published" not in note.message] == [
        Note(
            str(file),
            ", ".join(f"entry {n}" for n in range(20)) + " and 4 more",
            "'captions[1]' is blank ('') (24 times)",
        ),
        Note(str(file), "entry 24", "'captions[0]' is blank ('.')"),
    ]


def test_annotation_files_are_told_from_published_ones(real_annotations, tmp_path):
    for folder, prefix in (("captions", "cap"), ("image_splits", "split")):
        (tmp_path / "cirr" / folder).mkdir(parents=True)
        name = f"cirr/{folder}/{prefix}.rc2.val.json"
        shutil.copyfile(real_annotations / "cirr_dataset" / name, tmp_path / name)
    captions, names = (
        tmp_path / "cirr" / name for name in ("captions/cap.rc2.val.json", "image_splits/split.rc2.val.json")
    )
    assert check_dataset("CIRR", tmp_path).files == {captions: True, names: True}
    captions.write_text(captions.read_text().replace("soft drink", "soft drinks", 1))
    checked = check_dataset("CIRR", tmp_path)
    assert checked.files == {captions: False, names: True}
    assert [str(note) for note in checked.notes] == [
        f"{captions}: is not the published file: another set in this layout, or a changed copy"
    ]


def test_a_file_of_which_no_hash_is_known(lasco_root):
    files = check_dataset("LaSCo", lasco_root).files
    assert files[lasco_root / "lasco_val.json"] is None
    assert files[lasco_root / "lasco_val_corpus.json"] is False
    assert check_dataset("LaSCo", lasco_root).notes == [
        Note(
            str(lasco_root / "lasco_val_corpus.json"),
            "",
            "is not the published file: another set in this layout, or a changed copy",
        )
    ]


def test_placeholders_are_one_finding(cirr_root):
    gif = io.BytesIO()
    Image.new("L", (1, 1)).save(gif, "GIF")
    for name in "bce":
        (cirr_root / f"dev/{name}.png").write_bytes(gif.getvalue())
    for allow_duplicates in (False, True):
        checked = check_dataset("CIRR", cirr_root, allow_duplicates=allow_duplicates)
        assert [str(problem) for problem in checked.problems] == [
            f"{cirr_root / 'dev'} (image 'b' of CIRR val and others): the same picture of 1 x 1 pixels stands under 3 "
            "names, in place of pictures that could not be had: 'b.png', 'c.png', 'e.png'; "
            f"fix: fetch the pictures, or delete these files and {SKIP_FIX}"
        ]
        assert checked.counts["val"]["num_placeholder_images"] == 3


def test_a_picture_of_any_size_under_ten_names_is_a_placeholder(fashioniq_root):
    (fashioniq_root / "images").mkdir()
    names = [f"{category}{number}" for category in ("dress", "shirt", "toptee") for number in range(4)]
    for number, name in enumerate(names):
        shade = max(0, number - 9)  # the first ten are alike
        Image.new("RGB", (30, 20), (shade, 0, 0)).save(fashioniq_root / f"images/{name}.png")
    (problem,) = check_dataset("FashionIQ", fashioniq_root).problems
    assert "the same picture of 30 x 20 pixels stands under 10 names" in problem.message
    assert problem.message.endswith("'shirt0.png' and 5 more")
    Image.new("RGB", (30, 20), (9, 0, 0)).save(fashioniq_root / "images/dress0.png")
    problems = check_dataset("FashionIQ", fashioniq_root).problems
    assert len(problems) == 8  # nine are alike: each of the others has the content of the first
    assert {problem.message.split(" as ")[0] for problem in problems} == {"has the same content"}


def test_a_part_outside_its_picture_is_named_by_the_part(cirr_root):
    (split,) = load_splits("CIRR", cirr_root, "val")
    file = cirr_root / "dev/a.png"
    inside, outside = Crop(file, (0, 0, 2, 2)), Crop(file, (9, 9, 12, 12))
    parts = dataclasses.replace(split, images={"in": inside, "out": outside})
    (problem,) = check_images([parts])
    assert problem.file == f"{file} (box 9, 9, 12, 12)"
    assert problem.where == "image 'out' of CIRR val"
    assert problem.message.startswith("the box (9, 9, 12, 12) holds no pixel of it, expected left, top")
    file.unlink()
    (problem,) = check_images([parts])
    assert (problem.file, problem.where) == (str(file.parent), "CIRR val")
    assert "0 of 2 images are there" in problem.message


@pytest.mark.parametrize("decode", [True, False])
def test_what_is_no_regular_file_is_not_waited_for(cirr_root, decode):
    file = cirr_root / "dev/a.png"
    file.unlink()
    os.mkfifo(file)
    (problem,) = check_images(load_splits("CIRR", cirr_root, "val"), decode=decode)
    assert str(problem) == (
        f"{file} (image 'a' of CIRR val): cannot be opened (not a regular file); fix: make it a readable regular file"
    )


def test_a_name_that_no_file_can_have(cirr_root):
    names = cirr_root / "cirr/image_splits/split.rc2.val.json"
    names.write_text(names.read_text().replace("./dev/a.png", "./dev/a\\u0000.png"))
    (problem,) = check_dataset("CIRR", cirr_root).problems
    assert problem.message == "cannot be opened (embedded null byte)"


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
            "gallery_original": 7,
            "gallery_val_union": 3,  # a, b and c
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


def test_stats_of_hidden_answers(cirr_root):
    for file in ("captions/cap", "image_splits/split"):
        old = cirr_root / f"cirr/{file}.rc2.val.json"
        old.with_name(old.name.replace("val", "test1")).write_text(old.read_text().replace("target_hard", "x"))
    counts = stats(load_splits("CIRR", cirr_root, "test1"))["test1"]
    assert "gallery_val_union" not in counts
    assert (counts["num_pairs"], counts["num_duplicate_targets"]) == (0, 0)


def test_queries_that_need_a_missing_image_are_taken_out_and_counted(fashioniq_root):
    (fashioniq_root / "images").mkdir()
    for category in ("dress", "shirt", "toptee"):
        for number in range(4):
            (fashioniq_root / f"images/{category}{number}.png").write_bytes(b"looked up, not opened")
    (fashioniq_root / "images/dress1.png").unlink()  # target of query 0
    (fashioniq_root / "images/shirt3.png").write_bytes(b"")  # reference of query 1
    whole = load_splits("FashionIQ", fashioniq_root, "val")
    (dress, shirt, toptee), left = without_missing_images(whole)
    assert left == {"dress.val": Left(1, 2, 3, 4), "shirt.val": Left(1, 2, 3, 4), "toptee.val": Left(2, 2, 4, 4)}
    assert str(left["dress.val"]) == "1 of 2 queries and 3 of 4 images are left"
    assert [one.is_less for one in left.values()] == [True, True, False]
    assert [query.id for query in dress.queries] == ["1"]
    assert [query.id for query in shirt.queries] == ["0"]
    assert dress.gallery == tuple(dress.images) == ("dress0", "dress2", "dress3")
    rule = "original less missing, 4 of 6 queries, 10 of 12 images"
    assert toptee == dataclasses.replace(whole[2], gallery_rule=rule)  # categories are measured by one rule
    assert (dress.gallery_rule, shirt.gallery_rule) == (rule, rule)
    check_scorable([dress, shirt, toptee])
    require_images((dress, shirt, toptee))


def test_an_image_of_the_gallery_alone_changes_the_rule_too(cirr_root):
    (cirr_root / "dev/g.jpg").unlink()
    (split,), left = without_missing_images(load_splits("CIRR", cirr_root, "val"))
    assert left == {"val": Left(2, 2, 6, 7)}
    assert len(split.queries) == 2
    assert split.gallery == tuple("abcdef")
    assert split.gallery_rule == "original less missing, 2 of 2 queries, 6 of 7 images"


def test_a_whole_split_stays_as_it_is(cirr_root):
    splits = load_splits("CIRR", cirr_root, "val")
    assert without_missing_images(splits) == (splits, {"val": Left(2, 2, 7, 7)})


def test_subset_members_and_candidates_are_needed_too(cirr_root):
    (cirr_root / "dev/f.png").unlink()  # a member of both subsets
    with pytest.raises(ComposirError) as caught:
        without_missing_images(load_splits("CIRR", cirr_root, "val"))
    assert str(caught.value) == (
        f"{cirr_root / 'dev'}: not one of the 2 queries of CIRR val has all its images; expected the image files; "
        "fix: put them there; `composir data check` lists what is missing"
    )
    (split,) = load_splits("CIRR", cirr_root, "val")
    first, second = split.queries
    queries = (
        dataclasses.replace(first, subset=(), gallery=("b", "f")),
        dataclasses.replace(second, subset=(), gallery=("c", "d")),
    )
    (reduced,), _ = without_missing_images([dataclasses.replace(split, queries=queries)])
    assert reduced.queries == queries[1:]
