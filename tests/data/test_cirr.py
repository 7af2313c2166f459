from __future__ import annotations

import json
from pathlib import Path

import pytest

from composir.data import cirr
from composir.data.annotations import SplitNotFoundError
from composir.data.prompts import as_sentence
from composir.data.triplets import Query
from composir.errors import ComposirError, ProblemsError

CAPTIONS = "cirr/captions/cap.rc2.val.json"
NAMES = "cirr/image_splits/split.rc2.val.json"


def one_problem(problems) -> tuple[str, str, str]:
    (problem,) = problems
    return problem.where, problem.message, problem.fix


def test_a_whole_root(cirr_root):
    (split,) = cirr.load(cirr_root, "val")
    assert split.queries[0] == Query(
        id="17",
        reference="a",
        text="show b",
        texts=("show b",),
        targets=("b",),
        subset=("b", "c", "d", "e", "f"),
    )
    assert [query.id for query in split.queries] == ["17", "4"]
    assert split.gallery == tuple("abcdefg")  # every image of the split file, in its order
    assert split.images["a"] == cirr_root / "dev/a.png"
    assert split.images["g"] == cirr_root / "dev/g.jpg"
    assert (split.dataset, split.name, split.category) == ("CIRR", "val", "")
    assert (split.gallery_rule, split.exclude_reference, split.text_rule) == (
        "original",
        True,
        "as annotated",
    )


@pytest.mark.parametrize(
    ("text_rule", "text"),
    [
        ("as annotated", "show b"),
        ("in a prompt", "a photo of $ that show b"),
        (
            "M-BEIR instruction",
            "Retrieve a day-to-day image that aligns with the modification instructions of the provided image. Show b.",
        ),
        ("MMEB instruction", "Given an image, find a similar everyday image with the described changes: Show b."),
    ],
)
def test_a_text_rule_says_what_stands_around_the_caption(cirr_root, text_rule, text):
    (split,) = cirr.load(cirr_root, "val", text_rule=text_rule)
    (plain,) = cirr.load(cirr_root, "val")
    assert (split.text_rule, split.queries[0].text, split.queries[0].texts) == (text_rule, text, (text,))
    assert [query.targets for query in split.queries] == [query.targets for query in plain.queries]


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        ("show three bottles of soft drink", "Show three bottles of soft drink."),
        (' "Is it a dog?" ', "Is it a dog?"),
        ("Two dogs!", "Two dogs!"),
        ("x", "X."),
        (" ", ""),
    ],
)
def test_a_caption_as_a_sentence(caption, sentence):
    assert as_sentence(caption) == sentence


def test_the_parent_folder_will_do(cirr_root):
    assert cirr.load(cirr_root.parent, "val") == cirr.load(cirr_root, "val")


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_the_clone_of_the_annotations_will_do(cirr_root, place):
    if place == "inside":
        (cirr_root / "dev").rename(cirr_root / "cirr/dev")
    (split,) = cirr.load(cirr_root / "cirr", "val")
    assert len(split.queries) == 2
    assert all(file.is_file() for file in split.images.values())


def test_the_clone_alone_is_read_without_images(cirr_root):
    clone = (cirr_root / "cirr").rename(cirr_root.parent / "annotations")
    (split,) = cirr.load(clone, "val")
    assert len(split.queries) == 2
    assert split.images["a"] == clone / "dev/a.png"


def test_images_are_not_touched(cirr_root):
    for file in (cirr_root / "dev").iterdir():
        file.unlink()
    assert len(cirr.load(cirr_root, "val")[0].gallery) == 7


def test_real_annotations_in_full(real_annotations):
    (split,) = cirr.load(real_annotations, "val")
    assert (len(split.queries), len(split.gallery)) == (4181, 2297)
    first = split.queries[0]
    assert (first.id, first.reference, first.targets) == ("12060", "dev-244-0-img0", ("dev-1028-1-img1",))
    assert first.text == "show three bottles of soft drink"
    assert first.subset == (
        "dev-430-3-img0",
        "dev-63-0-img1",
        "dev-1028-1-img1",
        "dev-1028-2-img1",
        "dev-1028-2-img0",
    )
    assert split.images["dev-244-0-img0"] == real_annotations / "cirr_dataset/dev/dev-244-0-img0.png"


def test_soft_targets_are_no_right_answers(real_annotations):
    entries = json.loads((real_annotations / "cirr_dataset" / CAPTIONS).read_text())
    (split,) = cirr.load(real_annotations, "val")
    assert sum(len(entry["target_soft"]) > 1 for entry in entries) == 645
    assert [query.targets for query in split.queries] == [(entry["target_hard"],) for entry in entries]


def test_test1_has_no_targets(cirr_root):
    entries = json.loads((cirr_root / CAPTIONS).read_text())
    for entry in entries:
        del entry["target_hard"], entry["target_soft"], entry["img_set"]["target_rank"]
    (cirr_root / CAPTIONS.replace("val", "test1")).write_text(json.dumps(entries))
    (cirr_root / NAMES).rename(cirr_root / NAMES.replace("val", "test1"))
    (split,) = cirr.load(cirr_root, "test1")
    assert [query.targets for query in split.queries] == [(), ()]
    assert split.queries[0].subset == ("b", "c", "d", "e", "f")


def test_utf_8_with_and_without_a_mark(cirr_root, break_captions):
    break_captions(caption="schöner 🐶")
    file = cirr_root / CAPTIONS
    plain = cirr.load(cirr_root, "val")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert cirr.load(cirr_root, "val") == plain
    assert plain[0].queries[0].text == "schöner 🐶"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"pairid": ...}, ("entry 0", "key 'pairid' is missing", "add 'pairid' to the entry")),
        (
            {"pairid": "17"},
            ("entry 0", "'pairid' is text ('17'), expected a whole number", "correct 'pairid'"),
        ),
        (
            {"pairid": True},
            ("entry 0", "'pairid' is true or false (True), expected a whole number", "correct"),
        ),
        ({"pairid": 4}, ("pairid 4", "the pairid is repeated", "give every query its own pairid")),
        ({"reference": ...}, ("pairid 17", "key 'reference' is missing", "or restore the published file")),
        (
            {"reference": None},
            ("pairid 17", "'reference' is null (None), expected text", "correct 'reference'"),
        ),
        (
            {"reference": "zz"},
            ("pairid 17", "reference 'zz' is not in split.rc2.val.json", "add it to split.rc2"),
        ),
        (
            {"target_hard": ...},
            ("pairid 17", "key 'target_hard' is missing", "add 'target_hard' to the entry"),
        ),
        ({"target_hard": 3}, ("pairid 17", "'target_hard' is a whole number (3), expected text", "correct")),
        ({"target_hard": "zz"}, ("pairid 17", "target_hard 'zz' is not in split.rc2.val.json", "add it to")),
        (
            {"target_hard": "g"},
            ("pairid 17", "target_hard 'g' is not a member of its img_set", "add it to the members"),
        ),
        ({"caption": ...}, ("pairid 17", "key 'caption' is missing", "add 'caption' to the entry")),
        (
            {"caption": ["x"]},
            ("pairid 17", "'caption' is a list (['x']), expected text", "correct 'caption'"),
        ),
        ({"caption": 1.5}, ("pairid 17", "'caption' is a number (1.5), expected text", "correct 'caption'")),
        (
            {"caption": "a\ud83d"},
            ("pairid 17", "'caption' holds half a surrogate pair ('a\\ud83d')", "whole"),
        ),
        ({"img_set": ...}, ("pairid 17", "key 'img_set' is missing", "add 'img_set' to the entry")),
        ({"img_set": []}, ("pairid 17", "'img_set' is a list ([]), expected an object", "correct 'img_set'")),
        ({"img_set": {}}, ("pairid 17", "key 'members' is missing", "add 'members' to the entry")),
        (
            {"img_set": {"members": ["a", "b", 7]}},
            ("pairid 17", "'img_set.members[2]' is a whole number (7), expected text", "correct"),
        ),
        (
            {"img_set": {"members": ["a", "b", "zz"]}},
            (
                "pairid 17",
                "img_set.members[2] 'zz' is not in split.rc2.val.json",
                "add it to split.rc2.val.json",
            ),
        ),
        (
            {"img_set": {"members": ["a", "b", "a"]}},
            ("pairid 17", "img_set.members[2] repeats 'a'", "name every image once"),
        ),
        (
            {"img_set": {"members": ["b", "c"]}},
            ("pairid 17", "reference 'a' is not a member of its img_set", "add it to the members"),
        ),
    ],
)
def test_a_broken_field(cirr_root, break_captions, problems_of, fields, expected):
    where, message, fix = expected
    break_captions(**fields)
    (problem,) = problems_of(cirr.load, cirr_root, "val")
    assert problem.file == str(cirr_root / CAPTIONS)
    assert (problem.where, problem.message) == (where, message)
    assert fix in problem.fix


@pytest.mark.parametrize("blank", ["", " ", " \n"])
def test_a_blank_caption_is_data(cirr_root, break_captions, blank):
    # CIRR test1 has one, " ", and its server wants an answer to it
    break_captions(caption=blank)
    (split,) = cirr.load(cirr_root, "val")
    assert (len(split.queries), split.queries[0].text) == (2, blank)
    assert [str(note) for note in split.notes] == [
        f"{cirr_root / CAPTIONS} (pairid 17): 'caption' is blank ({blank!r})"
    ]


def test_a_target_that_is_the_reference_is_noted(cirr_root, break_captions):
    break_captions(target_hard="a")
    (split,) = cirr.load(cirr_root, "val")
    assert split.queries[0].targets == (split.queries[0].reference,)
    assert [note.message for note in split.notes] == ["the target is also the reference"]


def test_a_misspelt_name_is_suggested(cirr_root, break_captions, problems_of):
    names = json.loads((cirr_root / NAMES).read_text()) | {"dev-12-0-img1": "./dev/a.png"}
    (cirr_root / NAMES).write_text(json.dumps(names))
    break_captions(reference="dev-12-0-img")
    (problem,) = problems_of(cirr.load, cirr_root, "val")
    assert problem.fix == "did you mean 'dev-12-0-img1'? else add it to split.rc2.val.json"


def test_names_are_not_suggested_for_a_file_of_another_split(cirr_root, problems_of):
    entries = [
        {
            "pairid": number,
            "reference": f"b{number}",
            "target_hard": "a",
            "caption": "x",
            "img_set": {"members": []},
        }
        for number in range(40)
    ]
    (cirr_root / NAMES).write_text(json.dumps({f"b{number}x": "./b.png" for number in range(40)} | {"a": "./a.png"}))
    (cirr_root / CAPTIONS).write_text(json.dumps(entries))
    problems = problems_of(cirr.load, cirr_root, "val")
    assert len(problems) == 40
    assert sum("did you mean" in problem.fix for problem in problems) == 20


def test_every_problem_of_both_files_is_reported_at_once(cirr_root, break_captions, problems_of):
    break_captions(reference="zz", caption=7)
    (cirr_root / NAMES).write_text(json.dumps({name: f"./dev/{name}.png" for name in "abcdef"} | {"g": 1}))
    problems = problems_of(cirr.load, cirr_root, "val")
    assert [(problem.where, problem.message) for problem in problems] == [
        ("key 'g'", "the path is 1, expected text such as './dev/g.png'"),
        ("pairid 17", "reference 'zz' is not in split.rc2.val.json"),
        ("pairid 17", "'caption' is a whole number (7), expected text"),
    ]


def test_the_text_of_the_error_names_file_place_and_fix(cirr_root, break_captions):
    break_captions(caption=7)
    with pytest.raises(ProblemsError) as caught:
        cirr.load(cirr_root, "val")
    assert str(caught.value) == (
        f"1 problem: {cirr_root / CAPTIONS} (pairid 17): 'caption' is a whole number (7), expected text; "
        "fix: correct 'caption', or restore the published file"
    )


def test_a_name_given_twice_in_the_split_file(cirr_root, problems_of):
    text = (cirr_root / NAMES).read_text()
    (cirr_root / NAMES).write_text(text.replace("{", '{"a": "./dev/other.png", ', 1))
    assert one_problem(problems_of(cirr.load, cirr_root, "val")) == (
        "key 'a'",
        "the name is repeated in one object",
        "keep it once",
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ("line 1 column 1", "not valid JSON: Expecting value", "restore the published file")),
        (b"[\n{]", ("line 2 column 2", "not valid JSON: Expecting property name enclosed in", "restore the")),
        (b'["\xff"]', ("byte 2", "not UTF-8 text", "save it as UTF-8, or restore the published file")),
        (b"{}", ("", "holds an object, expected a list", "restore the published file")),
        (b"null", ("", "holds null, expected a list", "restore the published file")),
        (b"[" * 100_000, ("", "nested too deeply to be an annotation file", "restore the published file")),
        (b"[]", ("", "holds no query", "restore the published file")),
    ],
)
def test_a_broken_caption_file(cirr_root, problems_of, content, expected):
    where, message, fix = expected
    (cirr_root / CAPTIONS).write_bytes(content)
    (problem,) = problems_of(cirr.load, cirr_root, "val")
    assert (problem.file, problem.where) == (str(cirr_root / CAPTIONS), where)
    assert problem.message.startswith(message)
    assert problem.fix.startswith(fix)


def test_an_entry_that_is_no_object(cirr_root, problems_of):
    (cirr_root / CAPTIONS).write_text(json.dumps(["x" * 100]))
    where, message, _ = one_problem(problems_of(cirr.load, cirr_root, "val"))
    assert where == "entry 0"
    assert message == f"holds text ('{'x' * 56}...), expected an object"


@pytest.mark.parametrize("missing", [CAPTIONS, NAMES])
def test_one_file_of_the_two_is_missing(cirr_root, problems_of, missing):
    (cirr_root / missing).unlink()
    (problem,) = problems_of(cirr.load, cirr_root, "val")
    assert str(problem) == (
        f"{cirr_root / missing}: the file is missing; fix: put the published {Path(missing).name} there"
    )


def test_a_folder_in_place_of_a_file(cirr_root, problems_of):
    (cirr_root / NAMES).unlink()
    (cirr_root / NAMES).mkdir()
    assert one_problem(problems_of(cirr.load, cirr_root, "val")) == (
        "",
        "cannot be opened (Is a directory)",
        "make it a readable regular file",
    )


def test_an_absent_split(cirr_root):
    with pytest.raises(SplitNotFoundError) as caught:
        cirr.load(cirr_root, "train")
    assert "cap.rc2.train.json: the train split of CIRR is not in this data root; expected" in str(caught.value)
    assert "split.rc2.train.json beside it; fix: put the published annotation files there" in str(caught.value)


def test_an_unknown_split_suggests_the_nearest(cirr_root):
    with pytest.raises(SplitNotFoundError) as caught:
        cirr.load(cirr_root, "test")
    assert str(caught.value) == "CIRR has no split 'test'; expected train, val, test1; fix: did you mean 'test1'?"


def test_categories_are_refused(cirr_root):
    with pytest.raises(ComposirError, match="CIRR has no categories, got dress; fix: leave the categories out"):
        cirr.load(cirr_root, "val", categories=["dress"])


@pytest.mark.parametrize(("folder", "found"), [("", "no cirr/captions/ folder in it"), ("gone", "no such folder")])
def test_a_root_of_something_else(tmp_path, folder, found):
    root = tmp_path / folder
    with pytest.raises(ComposirError) as caught:
        cirr.load(root, "val")
    assert str(caught.value) == (
        f"{root}: {found}; expected the data set's own folder, or its parent with cirr_dataset/; "
        "fix: pass the folder that holds cirr/captions/ as --data-root; it comes from "
        "the GitHub repository Cuberick-Orion/CIRR (docs/data.md); without it: `composir data scenes --out scenes`, "
        "then --dataset CIRR --data-root scenes"
    )
