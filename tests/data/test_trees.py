"""Trees as people have them: every image is found by its name, or the split says what is wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from composir.data import check_dataset, load_splits
from composir.data.datasets import load_present
from composir.data.images import file_of
from composir.errors import ProblemsError


def files(dataset: str, root: Path, split: str = "val") -> dict[str, str]:
    """Return every image's file below the root, by name; those that are not there are left out."""
    images = {name: file_of(source) for one in load_splits(dataset, root, split) for name, source in one.images.items()}
    return {name: file.relative_to(root).as_posix() for name, file in images.items() if file.is_file()}


def place(root: Path, *paths: str) -> None:
    """Put an image of its own colour at every path."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 7, 7)).save(root / path, "PNG")


@pytest.fixture
def train_root(cirr_root):
    """The tiny CIRR root as its train split, in numbered folders as NLVR2 has them; no images."""
    for kind, prefix in (("captions", "cap"), ("image_splits", "split")):
        file = cirr_root / "cirr" / kind / f"{prefix}.rc2.val.json"
        text = file.read_text()
        for number, name in enumerate("abcdefg"):
            text = text.replace(f"./dev/{name}.", f"./train/{number}/{name}.")
        file.with_name(f"{prefix}.rc2.train.json").write_text(text)
        file.unlink()
    shutil.rmtree(cirr_root / "dev")
    return cirr_root


@pytest.mark.parametrize("parent", ["cirr/img_raw", "img_raw", "images/nlvr2"])
def test_cirr_in_the_tree_of_its_own_instructions(cirr_root, parent):
    (cirr_root / parent).mkdir(parents=True)
    (cirr_root / "dev").rename(cirr_root / parent / "dev")
    assert files("CIRR", cirr_root) == {name: f"{parent}/dev/{name}.png" for name in "abcdef"} | {
        "g": f"{parent}/dev/g.jpg"
    }
    checked = check_dataset("CIRR", cirr_root)
    assert checked.problems == []
    assert [str(note) for note in checked.notes if "found" in note.message] == [
        f"{cirr_root}: 7 of 7 images were found in {parent}/dev/, not in dev/ as published"
    ]


def test_the_clone_of_the_annotations_with_img_raw_in_it(cirr_root):
    (cirr_root / "cirr/img_raw").mkdir()
    (cirr_root / "dev").rename(cirr_root / "cirr/img_raw/dev")
    assert len(files("CIRR", cirr_root / "cirr")) == 7


def test_beside_the_clone_only_the_image_folders_are_looked_through(cirr_root):
    (cirr_root / "dev").rename(cirr_root / "other")
    (cirr_root / "dev").mkdir()
    (cirr_root / "dev/more").mkdir()
    (cirr_root / "other/a.png").rename(cirr_root / "dev/more/a.png")
    (split,) = load_splits("CIRR", cirr_root / "cirr", "val")
    assert [name for name, file in split.images.items() if file.is_file()] == ["a"]
    (problem,) = check_dataset("CIRR", cirr_root / "cirr").problems
    assert f"by name, below {cirr_root / 'cirr'} and {cirr_root / 'dev'}; missing: " in problem.message


def test_cirr_train_without_its_numbered_folders(train_root):
    place(train_root, *(f"train/{name}.png" for name in "abcdefg"))
    assert files("CIRR", train_root, "train") == {name: f"train/{name}.png" for name in "abcdefg"}
    (note,) = [note for note in check_dataset("CIRR", train_root).notes if "found" in note.message]
    assert note.message == "7 of 7 images were found in train/, not in train/*/ as published"


def test_of_many_folders_the_one_above_them_is_named(train_root):
    place(train_root, *(f"img_raw/train/{number}/{name}.png" for number, name in enumerate("abcdefg")))
    (note,) = load_present("CIRR", train_root).notes
    assert note.message == "7 of 7 images were found in img_raw/train/, not in train/*/ as published"


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("images/{category}/{name}.png", "images/dress/, images/shirt/, images/toptee/"),
        ("{category}/{name}.jpg", "dress/, shirt/, toptee/"),
        ("{name}.JPG", "./"),
        ("Resized/{name}.jpeg", "Resized/"),
    ],
)
def test_fashioniq_by_category_and_flat(fashioniq_root, pattern, found):
    names = [(category, f"{category}{number}") for category in ("dress", "shirt", "toptee") for number in range(4)]
    place(fashioniq_root, *(pattern.format(category=category, name=name) for category, name in names))
    assert files("FashionIQ", fashioniq_root) == {
        name: pattern.format(category=category, name=name) for category, name in names
    }
    (note,) = load_present("FashionIQ", fashioniq_root).notes
    assert note.message == f"12 of 12 images were found in {found}, not in images/ as published"


@pytest.mark.parametrize("suffix", [".PNG", ".jpg", ".JPG", ".jpeg", ".JpEg"])
def test_another_suffix_in_the_published_folder_needs_no_word(cirr_root, suffix, caplog):
    for file in list((cirr_root / "dev").iterdir()):
        file.rename(file.with_suffix(suffix))
    assert files("CIRR", cirr_root) == {name: f"dev/{name}{suffix}" for name in "abcdefg"}
    assert not caplog.messages


def test_names_and_folders_in_upper_case(cirr_root):
    (cirr_root / "dev").rename(cirr_root / "DEV")
    for file in list((cirr_root / "DEV").iterdir()):
        file.rename(file.with_name(file.name.upper()))
    assert files("CIRR", cirr_root)["a"] == "DEV/A.PNG"


def test_where_it_lies_as_published_no_tree_is_walked(cirr_root, monkeypatch):
    monkeypatch.setattr(os, "scandir", None)
    assert len(load_splits("CIRR", cirr_root, "val")[0].images) == 7


def test_the_published_file_is_taken_before_every_other(cirr_root):
    place(cirr_root, "dev/a.jpg", "other/dev/a.png", "a.png")
    assert files("CIRR", cirr_root)["a"] == "dev/a.png"
    (cirr_root / "dev/a.png").unlink()
    assert files("CIRR", cirr_root)["a"] == "dev/a.jpg"
    (cirr_root / "dev/a.jpg").unlink()
    assert files("CIRR", cirr_root)["a"] == "other/dev/a.png"  # in a folder called as published
    (cirr_root / "other/dev/a.png").unlink()
    assert files("CIRR", cirr_root)["a"] == "a.png"


def test_the_folder_of_the_category_is_taken(fashioniq_root):
    place(fashioniq_root, "images/dress/dress0.png", "images/toptee/dress0.png")
    assert files("FashionIQ", fashioniq_root) == {"dress0": "images/dress/dress0.png"}


def test_an_image_of_two_categories_with_a_folder_each_is_no_duplicate(fashioniq_root):
    for name in ("captions/cap.toptee.val.json", "image_splits/split.toptee.val.json"):
        (fashioniq_root / name).write_text((fashioniq_root / name.replace("toptee", "dress")).read_text())
    for category, name in (("dress", "dress"), ("toptee", "dress"), ("shirt", "shirt")):
        for number in range(4):
            (fashioniq_root / f"images/{category}").mkdir(parents=True, exist_ok=True)
            picture = Image.new("RGB", (8, 8), (number, len(name), ord(name[0])))
            picture.save(fashioniq_root / f"images/{category}/{name}{number}.png")
    checked = check_dataset("FashionIQ", fashioniq_root)
    assert checked.problems == []
    assert checked.counts["toptee.val"]["num_duplicate_images"] == 0


def test_two_files_of_one_name_are_a_problem_that_names_both(cirr_root):
    for name in "ab":
        (cirr_root / f"dev/{name}.png").unlink()
        place(cirr_root, f"old/{name}.png", f"new/{name}.jpg", f"new/{name}.png")
    with pytest.raises(ProblemsError) as caught:
        load_splits("CIRR", cirr_root, "val")
    expected = (
        f"{cirr_root} (CIRR val): 2 images have more than one file of the same name, such as "
        f"{cirr_root / 'new/a.png'} and {cirr_root / 'old/a.png'}; "
        "fix: keep one of them below this folder, or put the right one where docs/data.md shows it"
    )
    assert [str(problem) for problem in caught.value.problems] == [expected]
    assert expected in map(str, check_dataset("CIRR", cirr_root).problems)
    assert len(load_splits("CIRR", cirr_root, "val", annotations_only=True)[0].images) == 7
    shutil.rmtree(cirr_root / "old")
    assert files("CIRR", cirr_root)["b"] == "new/b.png"


def test_a_bare_number_is_found_in_a_folder_of_the_published_name_alone(lasco_root, genecis_root):
    place(genecis_root, "thumbs/2.jpg", "visual_genome/VG_100K/107.jpg", "coco/VAL2017/000000000139.jpg")
    assert set(files("GeneCIS", genecis_root).values()) == {
        "visual_genome/VG_100K/107.jpg",
        "coco/VAL2017/000000000139.jpg",
    }


def test_links_are_followed_once_and_hidden_files_left_out(cirr_root, tmp_path):
    (cirr_root / "dev").rename(tmp_path / "elsewhere")
    (cirr_root / "img_raw").mkdir()
    (cirr_root / "img_raw/dev").symlink_to(tmp_path / "elsewhere")
    (cirr_root / "img_raw/again").symlink_to(tmp_path / "elsewhere")
    (cirr_root / "img_raw/loop").symlink_to(cirr_root)
    place(cirr_root, "__MACOSX/._a.png", ".cache/b.png")
    found = load_splits("CIRR", cirr_root, "val")[0].images
    assert {Path(file).resolve() for file in found.values()} == set((tmp_path / "elsewhere").iterdir())


def test_a_folder_that_cannot_be_listed_is_passed_over(cirr_root, monkeypatch):
    (cirr_root / "dev").rename(cirr_root / "moved")
    (cirr_root / "closed").mkdir()
    scandir = os.scandir

    def refuse(folder):
        if Path(folder).name == "closed":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert len(files("CIRR", cirr_root)) == 7
