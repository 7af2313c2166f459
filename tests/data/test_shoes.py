from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from composir.data import load_splits, shoes
from composir.data.annotations import SplitNotFoundError
from composir.data.triplets import Query
from composir.errors import ComposirError
from composir.evaluation.metrics import averages, per_query
from composir.evaluation.ranking import rank

CAPTIONS = "relative_captions_shoes.json"


def test_a_whole_root(shoes_root):
    (split,) = shoes.load(shoes_root, "val")
    assert split.queries == (
        Query(
            id="1",
            reference="img_womens_flats_2.jpg",
            text="has laces ",
            texts=("has laces ",),
            targets=("img_womens_boots_1.jpg",),
        ),
        Query(
            id="2",
            reference="img_womens_pumps_3.jpg",
            text="are red",
            texts=("are red",),
            targets=("img_womens_flats_2.jpg",),
        ),
    )
    # every image of the list in its order, whether a query uses it or not
    assert split.gallery == tuple(f"img_womens_{name}.jpg" for name in ("pumps_3", "flats_2", "boots_1", "pumps_4"))
    assert (split.dataset, split.name, split.category) == ("Shoes", "val", "")
    assert (split.gallery_rule, split.exclude_reference, split.text_rule) == ("original", True, "as annotated")
    assert split.file == shoes_root / CAPTIONS


def test_the_other_pairs_are_the_training_split(shoes_root):
    (split,) = shoes.load(shoes_root, "train")
    assert [query.id for query in split.queries] == ["0", "3"]
    assert split.gallery == ("img_womens_clogs_5.jpg", "img_womens_clogs_8.jpg")


def test_images_are_found_in_their_folders(shoes_root, caplog):
    for folder, name in (
        ("womens_pumps/0", "img_womens_pumps_3.jpg"),
        ("womens_flats/1", "img_womens_flats_2.png"),
        ("womens_flats/1", "descr_womens_flats_2.txt"),
    ):
        (shoes_root / folder).mkdir(parents=True, exist_ok=True)
        (shoes_root / folder / name).touch()
    images = load_splits("Shoes", shoes_root, "val")[0].images
    assert images["img_womens_pumps_3.jpg"] == shoes_root / "womens_pumps/0/img_womens_pumps_3.jpg"
    assert images["img_womens_flats_2.jpg"] == shoes_root / "womens_flats/1/img_womens_flats_2.png"
    assert images["img_womens_boots_1.jpg"] == shoes_root / "img_womens_boots_1.jpg"  # not there
    assert not caplog.messages


def test_lists_with_other_line_ends_and_blank_lines(shoes_root):
    plain = shoes.load(shoes_root, "val")
    names = (shoes_root / "eval_im_names.txt").read_text()
    (shoes_root / "eval_im_names.txt").write_bytes(b"\xef\xbb\xbf" + names.replace("\n", "\r\n\r\n").encode())
    assert shoes.load(shoes_root, "val") == plain


def test_the_parent_folder_will_do(shoes_root):
    assert shoes.load(shoes_root.parent, "val") == shoes.load(shoes_root, "val")


@pytest.mark.parametrize(
    ("fields", "message", "fix"),
    [
        ({"ImageName": ...}, "key 'ImageName' is missing", "add 'ImageName'"),
        (
            {"ImageName": "img_womens_boot_1.jpg"},
            "ImageName 'img_womens_boot_1.jpg' is not in train_im_names.txt or eval_im_names.txt",
            "did you mean 'img_womens_boots_1.jpg'? else add it to train_im_names.txt or eval_im_names.txt",
        ),
        (
            {"ImageName": "img_womens_clogs_5.jpg"},
            "ReferenceImageName 'img_womens_flats_2.jpg' and ImageName 'img_womens_clogs_5.jpg' are in different lists",
            "name two images of one list",
        ),
        ({"ReferenceImageName": 3}, "'ReferenceImageName' is a whole number (3), expected text", "correct"),
        (
            {"ReferenceImageName": "x.jpg"},
            "ReferenceImageName 'x.jpg' is not in train_im_names.txt or eval_im_names.txt",
            "add it to train_im_names.txt",
        ),
        ({"RelativeCaption": ...}, "key 'RelativeCaption' is missing", "add 'RelativeCaption'"),
    ],
)
def test_a_broken_field(shoes_root, problems_of, change, *, fields, message, fix):
    change(shoes_root / CAPTIONS, 1, **fields)
    (problem,) = problems_of(shoes.load, shoes_root, "val")
    assert (problem.file, problem.where, problem.message) == (str(shoes_root / CAPTIONS), "entry 1", message)
    assert fix in problem.fix


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("img_womens_pumps 3.jpg", "holds 2 fields, expected 1: name"),
    ],
)
def test_a_broken_list(shoes_root, problems_of, line, message):
    file = shoes_root / "eval_im_names.txt"
    file.write_text(file.read_text() + line)
    (problem,) = problems_of(shoes.load, shoes_root, "val")
    assert (problem.file, problem.where, problem.message) == (str(file), "line 5", message)


def test_a_name_given_twice_and_blank_captions_are_noted(shoes_root, change):
    file = shoes_root / "eval_im_names.txt"
    file.write_text(file.read_text() + "img_womens_pumps_3.jpg")
    change(shoes_root / CAPTIONS, 2, RelativeCaption="")
    (split,) = shoes.load(shoes_root, "val")
    assert (len(split.gallery), [query.text for query in split.queries]) == (4, ["has laces ", ""])
    assert [(note.where, note.message) for note in split.notes] == [
        ("line 5", "the name 'img_womens_pumps_3.jpg' is repeated"),
        ("entry 2", "'RelativeCaption' is blank ('')"),
    ]


def test_a_pair_of_one_picture_counts_and_is_never_found_where_the_reference_is_taken_out(shoes_root, change):
    """26 pairs of train and one of val are so; TIRG's and ARTEMIS's evaluators put the reference last."""
    change(shoes_root / CAPTIONS, 1, ImageName="img_womens_flats_2.jpg")
    (split,) = shoes.load(shoes_root, "val")
    assert [query.id for query in split.queries] == ["1", "2"]
    assert [(note.where, note.message) for note in split.notes] == [("entry 1", "the target is also the reference")]
    # flats_2, the reference and target of query 1, has its best score; query 2 finds its target first
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.3], [0.1, 0.9, 0.2, 0.3]])
    for exclude, ranks, recall in ((True, [0, 1], 0.5), (False, [1, 1], 1.0)):
        ranking = rank(scores, dataclasses.replace(split, exclude_reference=exclude))
        assert ranking.target_ranks.tolist() == ranks
        assert averages({"": per_query(ranking)})["recall_at_50"] == recall


def test_pairs_are_not_blamed_for_a_list_that_cannot_be_read(shoes_root, problems_of):
    (shoes_root / "train_im_names.txt").write_bytes(b"img_womens_\xff.jpg")
    (problem,) = problems_of(shoes.load, shoes_root, "val")
    assert (problem.where, problem.message) == ("byte 11", "not UTF-8 text")


def test_both_lists_are_needed(shoes_root, problems_of):
    (shoes_root / "train_im_names.txt").unlink()
    (problem,) = problems_of(shoes.load, shoes_root, "val")
    assert problem.message == "the file is missing"
    with pytest.raises(
        SplitNotFoundError, match=r"train_im_names\.txt: the train split of Shoes is not in this data root"
    ):
        shoes.load(shoes_root, "train")


def test_a_split_without_a_pair(shoes_root, problems_of):
    entries = json.loads((shoes_root / CAPTIONS).read_text())
    (shoes_root / CAPTIONS).write_text(json.dumps([entries[0], entries[3]]))
    (problem,) = problems_of(shoes.load, shoes_root, "val")
    assert (problem.file, problem.message) == (str(shoes_root / CAPTIONS), "holds no query")


def test_a_root_of_something_else(tmp_path):
    with pytest.raises(ComposirError) as caught:
        shoes.load(tmp_path, "val")
    assert str(caught.value).startswith(
        f"{tmp_path}: no relative_captions_shoes.json file in it; expected the data set's own folder, or its parent "
        "with Shoes/; fix: pass the folder that holds relative_captions_shoes.json as --data-root; it comes from "
        "the GitHub repository XiaoxiaoGuo/fashion-retrieval (docs/data.md)"
    )


def test_an_unknown_split_and_categories(shoes_root):
    with pytest.raises(
        SplitNotFoundError, match="Shoes has no split 'eval'; expected train, val; fix: did you mean 'val'"
    ):
        shoes.load(shoes_root, "eval")
    with pytest.raises(ComposirError, match="Shoes has no categories, got boots"):
        shoes.load(shoes_root, "val", categories=["boots"])
