from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from composir.data import check_dataset, genecis, load_splits, read_image
from composir.data.annotations import SplitNotFoundError
from composir.data.images import Crop
from composir.data.triplets import Query
from composir.errors import ComposirError
from composir.evaluation.metrics import averages, per_query
from composir.evaluation.ranking import rank

FOCUS = "genecis/focus_attribute.json"
CHANGE = "genecis/change_object.json"


def test_a_task_of_crops(genecis_root):
    split = genecis.load(genecis_root, "val")[0]
    assert split.queries[0] == Query(
        id="0",
        reference="107:10,20,30,40",
        text="colour",
        texts=("colour",),
        targets=("2:100,50,10.5,20",),
        gallery=("2:100,50,10.5,20", "2:0,50,10,20", "107:1,1,5,5"),
    )
    assert [query.id for query in split.queries] == ["0", "1"]
    # every candidate of every query, once; what is only ever a reference would not be among them
    assert split.gallery == (
        "2:100,50,10.5,20",
        "2:0,50,10,20",
        "107:1,1,5,5",
        "107:10,20,30,40",
        "3:7,7,7,7",
    )
    assert (split.dataset, split.name, split.category) == ("GeneCIS", "val", "focus_attribute")
    assert (split.gallery_rule, split.exclude_reference, split.text_rule) == ("per query", True, "as annotated")
    assert split.file == genecis_root / FOCUS


def test_a_task_of_whole_pictures(genecis_root):
    split = genecis.load(genecis_root, "val")[2]
    assert split.category == "focus_object"
    assert split.queries[0].gallery == ("285", "632", "724")
    assert split.gallery == ("285", "632", "724", "139", "776")
    assert split.images["139"] == genecis_root / "val2017/000000000139.jpg"


def test_an_image_that_is_only_a_reference_has_a_file_but_no_place_in_the_gallery(genecis_root, change):
    change(genecis_root / CHANGE, reference={"val_image_id": 1})
    (split,) = genecis.load(genecis_root, "val", categories=["change_object"])
    assert split.images["1"] == genecis_root / "val2017/000000000001.jpg"
    assert "1" not in split.gallery


def test_the_box_is_dilated_as_published(genecis_root):
    # 0.7 of the size to the left and above, 1.7 of the size across: 100 - 7.35, 50 - 14, 92.65 + 17.85, 36 + 34
    assert genecis.dilate(100, 50, 10.5, 20) == pytest.approx((92.65, 36, 110.5, 70))
    # 7 pixels to the left would leave the picture: the box begins at its edge and still is 17 wide
    assert genecis.dilate(0, 50, 10, 20) == pytest.approx((0, 36, 17, 70))
    images = genecis.load(genecis_root, "val")[0].images
    source = images["2:0,50,10,20"]
    assert source == Crop(genecis_root / "VG_100K/2.jpg", genecis.dilate(0, 50, 10, 20))


def test_crops_of_one_picture_are_cut_out_of_it(genecis_root):
    (genecis_root / "VG_100K_2").mkdir()
    picture = Image.new("RGB", (110, 60), "white")
    picture.paste("red", (93, 36, 110, 60))
    picture.save(genecis_root / "VG_100K_2/2.png")
    source = load_splits("GeneCIS", genecis_root, "val")[0].images["2:100,50,10.5,20"]
    cut = read_image(source)
    # 92.65 to 110.5 and 36 to 70, both cut at the picture's edge: 17 x 24 pixels
    assert (cut.size, cut.getcolors()) == ((17, 24), [(17 * 24, (255, 0, 0))])


def test_visual_genome_is_found_in_either_of_its_folders_by_one_listing(genecis_root, monkeypatch, caplog):
    for folder, name in (("VG_100K", "107.jpg"), ("VG_100K_2", "2.JPG"), ("VG_100K_2", "3.txt")):
        (genecis_root / folder).mkdir(exist_ok=True)
        (genecis_root / folder / name).touch()
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(Path(folder).name) or scandir(folder))
    images = load_splits("GeneCIS", genecis_root, "val")[0].images
    assert {image.file for image in images.values()} == {
        genecis_root / "VG_100K/107.jpg",
        genecis_root / "VG_100K_2/2.JPG",
        genecis_root / "VG_100K/3.jpg",  # not there: where the first archive would have put it
    }
    assert [listed.count(folder) for folder in ("VG_100K", "VG_100K_2")] == [1, 1]
    assert not caplog.messages  # both folders are published


def test_ids_of_visual_genome_are_text_or_numbers(genecis_root, change):
    change(genecis_root / FOCUS, target={"image_id": 2, "instance_bbox": [100, 50, 10.5, 20.0]})
    assert genecis.load(genecis_root, "val")[0].queries[0].targets == ("2:100,50,10.5,20",)


def test_a_candidate_listed_twice_is_one_candidate(genecis_root, change):
    twice = [{"val_image_id": number} for number in (285, 285, 632, 724, 724)]
    change(genecis_root / "genecis/focus_object.json", gallery=twice)
    (split,) = genecis.load(genecis_root, "val", categories=["focus_object"])
    assert split.queries[0].gallery == ("285", "632", "724")
    assert [(note.where, note.message) for note in split.notes] == [
        ("entry 0", "a candidate is listed twice, and counts once")
    ]


def test_the_query_s_own_picture_is_never_a_candidate(genecis_root, change):
    listed = [{"val_image_id": number} for number in (139, 632)]
    change(genecis_root / "genecis/focus_object.json", gallery=listed)
    (split,) = genecis.load(genecis_root, "val", categories=["focus_object"])
    assert split.gallery == ("285", "139", "632", "776")
    ranking = rank(torch.tensor([[0.5, 0.9, 0.1, 0.9]] * 2), split)
    # the reference 139 scores best of all, and is left out: 285 with 0.5, then 632 with 0.1
    assert [split.gallery[place] for place in ranking.top[0] if place >= 0] == ["285", "632"]


def test_recall_is_over_the_query_s_own_candidates(genecis_root):
    (split,) = genecis.load(genecis_root, "val", categories=["focus_object"])
    names = {name: place for place, name in enumerate(split.gallery)}
    similarity = torch.zeros(2, 5)
    similarity[0, names["285"]], similarity[0, names["776"]] = 0.8, 0.9  # 776 is no candidate of query 0: rank 1
    similarity[1, names["776"]], similarity[1, names["139"]] = 0.9, 0.8  # 776 is one of query 1: rank 2
    figures = averages({"focus_object": per_query(rank(similarity, split))})
    assert (figures["recall_at_1"], figures["recall_at_2"]) == (0.5, 1.0)


def test_blank_conditions_and_targets_that_are_the_reference_are_data(genecis_root, change):
    change(genecis_root / FOCUS, condition="\t", target={"image_id": "107", "instance_bbox": [10, 20.0, 30, 40]})
    (split,) = genecis.load(genecis_root, "val", categories=["focus_attribute"])
    assert (len(split.queries), split.queries[0].text) == (2, "\t")
    assert [note.message for note in split.notes] == [
        "'condition' is blank ('\\t')",
        "the target is also the reference",
    ]


def test_fewer_tasks(genecis_root):
    splits = genecis.load(genecis_root, "val", categories=["change_object", "focus_object"])
    assert [split.category for split in splits] == ["change_object", "focus_object"]


def test_the_parent_folder_will_do(genecis_root):
    assert genecis.load(genecis_root.parent, "val") == genecis.load(genecis_root, "val")


@pytest.mark.parametrize(
    ("fields", "where", "message", "fix"),
    [
        ({"condition": ...}, "entry 0", "key 'condition' is missing", "add 'condition'"),
        ({"reference": ...}, "entry 0", "key 'reference' is missing", "add 'reference'"),
        ({"reference": 5}, "entry 0", "'reference' is a whole number (5), expected an object", "correct 'reference'"),
        ({"target": None}, "entry 0", "'target' is null (None), expected an object", "correct 'target'"),
        ({"target": {}}, "entry 0, target", "key 'image_id' is missing", "add 'image_id'"),
        (
            {"target": {"image_id": 2.5, "instance_bbox": [1, 1, 1, 1]}},
            "entry 0, target",
            "'image_id' is a number (2.5), expected text",
            "correct 'image_id'",
        ),
        (
            {"target": {"image_id": "", "instance_bbox": [1, 1, 1, 1]}},
            "entry 0, target",
            "'image_id' is '', expected a number",
            "restore the published file",
        ),
        (
            {"target": {"image_id": "../x", "instance_bbox": [1, 1, 1, 1]}},
            "entry 0, target",
            "'image_id' is '../x', expected a number",
            "restore the published file",
        ),
        ({"target": {"image_id": "2"}}, "entry 0, target", "key 'instance_bbox' is missing", "add 'instance_bbox'"),
        ({"gallery": ...}, "entry 0", "key 'gallery' is missing", "add 'gallery'"),
        ({"gallery": []}, "entry 0", "'gallery' is empty", "restore the published file"),
        ({"gallery": ["2"]}, "entry 0, gallery 0", "holds text ('2'), expected an object", "restore the published"),
        (
            {"gallery": [{"image_id": "2", "instance_bbox": "x"}]},
            "entry 0, gallery 0",
            "'instance_bbox' is text ('x'), expected a list",
            "correct 'instance_bbox'",
        ),
    ],
)
def test_a_broken_field(genecis_root, problems_of, change, *, fields, where, message, fix):
    change(genecis_root / FOCUS, **fields)
    problem = problems_of(genecis.load, genecis_root, "val")[0]
    assert (problem.file, problem.where, problem.message) == (str(genecis_root / FOCUS), where, message)
    assert fix in problem.fix


@pytest.mark.parametrize(
    "box",
    [
        [1, 2, 3],
        [1, 2, 3, 0],
        [1, 2, -3, 4],
        [1, 2, True, 4],
        [1, 2, "3", 4],
        [float("nan"), 2, 3, 4],
        [1, float("inf"), 3, 4],
        [1, 2, 10**400, 4],
    ],
)
def test_a_broken_box(genecis_root, problems_of, change, box):
    change(genecis_root / FOCUS, target={"image_id": "2", "instance_bbox": box})
    (problem,) = problems_of(genecis.load, genecis_root, "val")
    assert problem.where == "entry 0, target"
    assert problem.message.startswith("'instance_bbox' is [")
    assert problem.message.endswith(", expected left, top, width and height in pixels")
    assert problem.fix == "correct the box, or restore the published file"


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"image_id": "139"}, "key 'val_image_id' is missing"),
        ({"val_image_id": "139"}, "'val_image_id' is text ('139'), expected a whole number"),
    ],
)
def test_a_broken_image_of_an_object_task(genecis_root, problems_of, change, image, message):
    change(genecis_root / CHANGE, gallery=[image])
    (problem,) = problems_of(genecis.load, genecis_root, "val")
    assert (problem.where, problem.message) == ("entry 0, gallery 0", message)


def test_problems_of_all_tasks_come_together(genecis_root, problems_of):
    for category in genecis.CATEGORIES:
        (genecis_root / f"genecis/{category}.json").write_text("{}")
    assert [problem.message for problem in problems_of(genecis.load, genecis_root, "val")] == [
        "holds an object, expected a list"
    ] * 4


def test_an_absent_task_is_named(genecis_root, problems_of):
    (genecis_root / CHANGE).unlink()
    (problem,) = problems_of(genecis.load, genecis_root, "val")
    assert str(problem) == (
        f"{genecis_root / CHANGE}: the change_object category of the val split is not in this data root; "
        "fix: put it there, or choose what is: "
        "--categories focus_attribute --categories change_attribute --categories focus_object"
    )
    with pytest.raises(SplitNotFoundError, match="the val split of GeneCIS is not in this data root"):
        genecis.load(genecis_root, "val", categories=["change_object"])


def test_data_check_reads_every_picture_once(genecis_root):
    for category in genecis.CATEGORIES[:2]:
        (genecis_root / f"genecis/{category}.json").unlink()
    (genecis_root / "val2017").mkdir()
    for shade, number in enumerate((139, 285, 632, 724)):
        Image.new("RGB", (4, 4), (60 * shade, 0, 0)).save(genecis_root / f"val2017/{number:012d}.jpg")
    seen = []
    checked = check_dataset("GeneCIS", genecis_root, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)
    assert [(problem.file, problem.where, problem.message) for problem in checked.problems] == [
        (
            str(genecis_root / "val2017"),
            f"GeneCIS {task}.val",
            f"4 of 5 images are there; looked there and, by name, below {genecis_root}; missing: '776'",
        )
        for task in ("focus_object", "change_object")
    ]
    assert checked.counts["focus_object.val"]["num_queries"] == 2


def test_an_unknown_category_and_an_unknown_split(genecis_root):
    with pytest.raises(ComposirError, match=r"GeneCIS has no category 'focus'; expected focus_attribute, .*; fix: "):
        genecis.load(genecis_root, "val", categories=["focus"])
    with pytest.raises(SplitNotFoundError, match="GeneCIS has no split 'test'; expected val; fix: one of: val"):
        genecis.load(genecis_root, "test")


def test_a_root_of_something_else(tmp_path):
    with pytest.raises(ComposirError) as caught:
        genecis.load(tmp_path, "val")
    assert "no genecis/*_*.json file in it; expected the data set's own folder, or its parent with GeneCIS/" in str(
        caught.value
    )


def test_a_task_without_queries(genecis_root, problems_of):
    (genecis_root / CHANGE).write_text(json.dumps([]))
    (problem,) = problems_of(genecis.load, genecis_root, "val")
    assert (problem.file, problem.message) == (str(genecis_root / CHANGE), "holds no query")
