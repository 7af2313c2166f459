"""Tiny data roots, whole until a test breaks them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from composir.data.annotations import AnnotationsError
from composir.errors import Problem


def write_json(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def cirr_entry(pairid: int, reference: str, target: str, members: list[str], **changed) -> dict:
    return {
        "pairid": pairid,
        "reference": reference,
        "target_hard": target,
        "target_soft": {target: 1.0, "e": 0.5},
        "caption": f"show {target}",
        "img_set": {"id": 1, "members": members, "reference_rank": 0, "target_rank": 1},
        **changed,
    }


CIRR_ENTRIES = [
    cirr_entry(17, "a", "b", ["b", "a", "c", "d", "e", "f"]),
    cirr_entry(4, "b", "c", ["c", "b", "a", "d", "e", "f"]),
]
CIRR_IMAGES = {name: f"./dev/{name}.png" for name in "abcdef"} | {"g": "./dev/g.jpg"}

FASHIONIQ_FILES = {}
for _category in ("dress", "shirt", "toptee"):
    _names = [f"{_category}{number}" for number in range(4)]
    FASHIONIQ_FILES[f"image_splits/split.{_category}.val.json"] = _names
    FASHIONIQ_FILES[f"captions/cap.{_category}.val.json"] = [
        {"target": _names[1], "candidate": _names[0], "captions": ["is Red.", " has a Bow?"]},
        {"target": _names[2], "candidate": _names[3], "captions": ["longer", "blue, "]},
    ]


def circo_entry(query_id: int, reference: int, right: list[int], aspects: list[str]) -> dict:
    return {
        "reference_img_id": reference,
        "target_img_id": right[0],
        "relative_caption": f"shows {right[0]} instead",
        "shared_concept": "a number",
        "gt_img_ids": right,
        "id": query_id,
        "semantic_aspects": aspects,
    }


CIRCO_FILES = {
    "annotations/val.json": [
        circo_entry(0, 4, [20, 4000, 7], ["cardinality", "negation"]),
        circo_entry(1, 4000, [4], []),
        circo_entry(2, 20, [7, 20], ["negation"]),
    ],
    "annotations/test.json": [
        {"reference_img_id": 7, "relative_caption": "has a hat", "shared_concept": "a dog", "id": 0},
        {"reference_img_id": 20, "relative_caption": "is red", "shared_concept": "a car", "id": 1},
    ],
    "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json": {
        "info": {"year": 2017},
        "images": [
            {"license": 4, "file_name": f"{number:012d}.jpg", "height": 480, "width": 640, "id": number}
            for number in (7, 4, 4000, 20, 5)
        ],
        "categories": [],
    },
}


def vg(image_id: int | str, *box: float) -> dict:
    return {"image_id": image_id, "instance_bbox": list(box)}


def coco(image_id: int) -> dict:
    return {"val_image_id": image_id}


GENECIS_FILES = {
    f"genecis/{task}_attribute.json": [
        {
            "reference": vg("107", 10, 20, 30, 40),
            "target": vg("2", 100, 50, 10.5, 20),
            "gallery": [vg("2", 0, 50, 10, 20), vg("107", 1, 1, 5, 5)],
            "condition": "colour",
        },
        {
            "reference": vg("2", 0, 50, 10, 20),
            "target": vg("107", 10, 20, 30, 40),
            "gallery": [vg("2", 100, 50, 10.5, 20), vg("3", 7, 7, 7, 7)],
            "condition": "is wet",
        },
    ]
    for task in ("focus", "change")
} | {
    f"genecis/{task}_object.json": [
        {"reference": coco(139), "target": coco(285), "gallery": [coco(632), coco(724)], "condition": "bench"},
        {"reference": coco(632), "target": coco(139), "gallery": [coco(285), coco(776)], "condition": "with a bear"},
    ]
    for task in ("focus", "change")
}


def labels(*captions: str, kind: str, split: str) -> str:
    lines = (f"women/{kind}/{split}/{n}/{n}_0.jpeg\t0.9{n}\t{caption}\n" for n, caption in enumerate(captions))
    return "".join(lines)


FASHION200K_FILES = {
    "labels/dress_test_detect_all.txt": labels(
        "black lace dress", "red lace dress", "black lace dress ", kind="dress", split="test"
    ),
    "labels/jacket_test_detect_all.txt": labels("blue jacket w. hood", kind="jacket", split="test"),
    "labels/pants_test_detect_all.txt": labels("blue & white pants", "red & white pants", kind="pants", split="test"),
    "labels/skirt_test_detect_all.txt": "",
    "labels/top_test_detect_all.txt": labels("black lace dress", kind="top", split="test"),
    "test_queries.txt": (
        "women/dress/test/1/1_0.jpeg women/dress/test/2/2_0.jpeg\n"
        "women/pants/test/0/0_0.jpeg women/pants/test/1/1_0.jpeg\n"
        "women/dress/test/1/1_0.jpeg women/jacket/test/0/0_0.jpeg\n"
    ),
    "labels/dress_train_detect_all.txt": labels("red dress", "blue dress", "red dress", kind="dress", split="train"),
    "labels/jacket_train_detect_all.txt": labels("red jacket", kind="jacket", split="train"),
    "labels/pants_train_detect_all.txt": labels("wide grey pants", kind="pants", split="train"),
    "labels/skirt_train_detect_all.txt": labels("green dress", kind="skirt", split="train"),
    "labels/top_train_detect_all.txt": "",
}

SHOES_FILES = {
    "relative_captions_shoes.json": [
        {"ImageName": f"img_womens_{a}.jpg", "ReferenceImageName": f"img_womens_{b}.jpg", "RelativeCaption": text}
        for a, b, text in (
            ("clogs_8", "clogs_5", "is of cork"),
            ("boots_1", "flats_2", "has laces "),
            ("flats_2", "pumps_3", "are red"),
            ("clogs_5", "clogs_8", "is less shiny"),
        )
    ],
    "train_im_names.txt": "img_womens_clogs_5.jpg\nimg_womens_clogs_8.jpg\n",
    "eval_im_names.txt": (
        "img_womens_pumps_3.jpg\nimg_womens_flats_2.jpg\nimg_womens_boots_1.jpg\nimg_womens_pumps_4.jpg\n"
    ),
}


def lasco_entry(qid: int, reference: int, target: int, split: str) -> dict:
    reference_path, target_path = (f"{split}2014/COCO_{split}2014_{n:012d}.jpg" for n in (reference, target))
    return {
        "qid": qid,
        "query-image": [reference, reference_path],
        "query-text": f"picture {target}",
        "target-image": [target, target_path],
    }


LASCO_FILES = {
    "lasco_train.json": [lasco_entry(9001, 9, 25, "train"), lasco_entry(25001, 25, 30, "train")],
    "lasco_train_corpus.json": {str(n): f"train2014/COCO_train2014_{n:012d}.jpg" for n in (9, 25, 30)},
    "lasco_val.json": [lasco_entry(42001, 42, 73, "val"), lasco_entry(42000, 42, 74, "val")],
    "lasco_val_corpus.json": [{"id": n, "path": f"val/val2014/COCO_val2014_{n:012d}.jpg"} for n in (42, 73, 74, 133)],
}

ICIR_FILES = {
    "database_files.csv": (
        "icir/database/bell/pos/1.jpg,at night,bell\n"
        "icir/database/bell/pos/2.jpg,as a drawing,bell\n"
        "icir/database/bell/pos/3.jpg,at night,bell\n"
        "icir/database/bell/hn/4.jpg,,bell\n"
        "icir/database/cup/pos/1.jpg,on a table,cup\n"
        "icir/database/cup/hn/2.jpg,,cup\n"
    ),
    "query_files.csv": (
        "icir/query/bell/1.jpg,at night,bell\n"
        "icir/query/bell/1.jpg,as a drawing,bell\n"
        "icir/query/cup/7.jpg,on a table,cup\n"
    ),
}


def pinpoint_row(number: int, references: tuple[str, str], text: str, right: str, wrong: str, **changed) -> dict:
    """Return a row of PinPoint; images are called by eight equal letters, ``-`` in ``wrong`` is a null."""
    first, second = references
    return {
        "query_id": f"query_{number:05}",
        "query_image_signature": 8 * first,
        "query_image_signature2": 8 * second if second else "None",
        "instruction": text,
        "positive_candidates": [8 * letter for letter in right],
        "negative_candidates": [None if letter == "-" else 8 * letter for letter in wrong],
        "token_count": len(text.split()),
        "query_category": "Swap",
        **changed,
    }


PINPOINT_FILES = {
    "index_signatures.txt": "\n".join(8 * letter for letter in "abcdefghr"),  # the published file ends so, too
    "pinpoint_licensed.parquet": [
        pinpoint_row(12, ("r", "a"), "in red", "bc", "de-"),
        pinpoint_row(13, ("r", "a"), "make it red", "bcb", "dde", query_category="Context Fit"),
        pinpoint_row(14, ("r", "a"), "the same, but red", "b", "ab"),
        pinpoint_row(3, ("h", ""), "larger", "gh", "hf"),
        pinpoint_row(4, ("h", ""), "bigger", "g", ""),
        pinpoint_row(5, ("r", ""), "smaller", "g", "f"),
    ],
}
PINPOINT_SCHEMA = pyarrow.schema(
    {
        **dict.fromkeys(("query_id", "query_image_signature", "query_image_signature2"), pyarrow.large_string()),
        "instruction": pyarrow.large_string(),
        **dict.fromkeys(("positive_candidates", "negative_candidates"), pyarrow.list_(pyarrow.string())),
        "token_count": pyarrow.int64(),
        "query_category": pyarrow.large_string(),
    }
)
"""The published columns that are read, and one that is not."""


def lines(*rows: dict) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


EDIR_FILES = {
    "corpus.jsonl": lines(*({"id": f"{number}.png", "image": f"{number}.png"} for number in range(1, 7))),
    "queries.jsonl": lines(
        {"id": "q1", "image": "s1.png", "text": "make it red", "metadata": {"subcategory": "color"}},
        {"id": "q2", "image": "s1.png", "text": "remove the hat", "metadata": {"subcategory": "remove"}},
        {"id": "q3", "image": "s2.png", "text": "at night", "metadata": {"subcategory": "time"}},
    ),
    "instances.jsonl": lines(
        {"qid": "q2", "pos": ["2.png"], "neg": ["1.png"]},
        {"qid": "q1", "pos": ["1.png"], "neg": ["2.png", "3.png"]},
        {"qid": "q3", "pos": ["5.png"], "neg": []},
    ),
}


def mt_round(name: str, *captions: str) -> list:
    return [f"http://pictures/{name}.jpg", list(captions), name]


MT_FASHIONIQ_FILES = {}
for _category in ("dress", "shirt", "toptee"):
    _names = [f"{_category}{number}" for number in range(5)]
    MT_FASHIONIQ_FILES[f"image_splits/split.{_category}.val.json"] = _names
    MT_FASHIONIQ_FILES[f"data/{_category}.val.json"] = [
        {
            "target": [f"http://pictures/{_names[4]}.jpg", _names[4]],
            "reference": [mt_round(_names[0], "is Red.", " has a bow?"), mt_round(_names[1], "longer", "blue, ")],
        },
        {
            "target": [f"http://pictures/{_names[2]}.jpg", _names[2]],
            "reference": [mt_round(_names[number], "is darker", "short") for number in (3, 0, 1)],
        },
    ]


def circled_session(subset: str, number: int, targets: list[str], *rounds: tuple[str, str]) -> dict:
    return {
        "session_id": f"{subset}_{number:04d}",
        "subset": subset,
        "ground_truth_ids": targets,
        "num_turns": len(rounds),
        "turns": [
            {"turn": place, "reference_image_id": name, "relative_caption": caption}
            for place, (name, caption) in enumerate(rounds, 1)
        ],
    }


CIRCLED_FILES = {
    **{f"fashion-iq/{path}": content for path, content in FASHIONIQ_FILES.items()},
    "cirr/captions/cap.rc2.val.json": CIRR_ENTRIES,
    "cirr/image_splits/split.rc2.val.json": CIRR_IMAGES,
    **{f"CIRCO/{path}": content for path, content in CIRCO_FILES.items() if path != "annotations/test.json"},
    "data/cirr_val.json": [
        circled_session("cirr_val", 0, ["c"], ("a", "Two dogs. "), ("b", "Add a hat.")),
        circled_session("cirr_val", 1, ["d"], ("e", "In water."), ("a", "Make it red."), ("f", "Remove the hat.")),
    ],
    "data/circo_val.json": [
        circled_session(
            "circo_val",
            0,
            ["000000000020", "000000004000"],
            ("000000000004", "has a hat"),
            ("000000000007", "Change the hat to red."),
        ),
    ],
    **{
        f"data/fashioniq_{category}_val.json": [
            circled_session(
                f"fashioniq_{category}_val",
                0,
                [f"{category}3"],
                (f"{category}0", "is red"),
                (f"{category}1", "Add lace."),
            )
        ]
        for category in ("dress", "shirt", "toptee")
    },
}

OACIRR_FILES = {}
for _domain in ("fashion", "car", "product", "landmark"):
    _annotations = f"OACIRR-Subset/OACIRR-{_domain.capitalize()}/oacirr-{_domain}"
    _images = {f"{_domain}-{name}": f"./val/{name[0]}/{_domain}-{name}.jpg" for name in ("a1", "a2", "a3", "b1", "b2")}
    OACIRR_FILES[f"{_annotations}/image_splits/split.val.json"] = _images
    OACIRR_FILES[f"{_annotations}/quadruple_captions/caption_full.val.json"] = [
        {
            "reference": f"{_domain}-{reference}",
            "target": f"{_domain}-{target}",
            "reference_bounding_box": [10, 5.5, 60, 80],
            "object_category": "thing",
            "modification_text_mllm": f"at {target}",
        }
        for reference, target in (("a1", "a3"), ("b1", "b2"))
    ]

OWN_FILES = {
    "own.json": {"format": 1, "images": "images"},
    "gallery.json": ["a.jpg", "b/c.png", "d.jpg"],
    "triplets.val.json": [
        {"id": "1", "reference": "a.jpg", "text": "in red", "targets": ["b/c.png"], "subset": ["b/c.png", "d.jpg"]},
        {"id": "x", "reference": "d.jpg", "text": "larger", "targets": ["a.jpg", "b/c.png"]},
    ],
}

TREES = {
    "CIRR": {
        "cirr/captions/cap.rc2.val.json": CIRR_ENTRIES,
        "cirr/image_splits/split.rc2.val.json": CIRR_IMAGES,
    },
    "FashionIQ": FASHIONIQ_FILES,
    "CIRCO": CIRCO_FILES,
    "GeneCIS": GENECIS_FILES,
    "Fashion200k": FASHION200K_FILES,
    "Shoes": SHOES_FILES,
    "LaSCo": LASCO_FILES,
    "i-CIR": ICIR_FILES,
    "PinPoint": PINPOINT_FILES,
    "EDIR": EDIR_FILES,
    "MT-FashionIQ": MT_FASHIONIQ_FILES,
    "CIRCLED": CIRCLED_FILES,
    "OACIRR": OACIRR_FILES,
    "own": OWN_FILES,
}
"""The annotation files of a whole little data root, by data set and path: JSON, text, or rows of a Parquet file."""


def serialise(path: str, content: object) -> bytes:
    """Return the bytes of an annotation file."""
    if path.endswith(".parquet"):
        file = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content, schema=PINPOINT_SCHEMA), file)
        return file.getvalue().to_pybytes()
    return (content if isinstance(content, str) else json.dumps(content)).encode()


@pytest.fixture(scope="session")
def trees() -> dict[str, dict]:
    return TREES


def write_tree(dataset: str, root: Path) -> Path:
    for path, content in TREES[dataset].items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(serialise(path, content))
    return root


@pytest.fixture
def make_root() -> Callable[[str, Path], Path]:
    """Writes the annotation files of a data set into a folder and returns it."""
    return write_tree


@pytest.fixture
def cirr_root(tmp_path) -> Path:
    """Two val queries over seven images, `g.jpg` among them; the images are there."""
    root = write_tree("CIRR", tmp_path / "cirr_dataset")
    (root / "dev").mkdir()
    for number, path in enumerate(CIRR_IMAGES.values()):
        Image.new("RGB", (4, 4), (30 * number, 0, 0)).save(root / path)
    return root


@pytest.fixture
def fashioniq_root(tmp_path) -> Path:
    """Two val queries a category over four images each; no images."""
    return write_tree("FashionIQ", tmp_path / "fashionIQ_dataset")


@pytest.fixture
def circo_root(tmp_path) -> Path:
    """Three val and two test queries over five images; no images."""
    return write_tree("CIRCO", tmp_path / "CIRCO")


@pytest.fixture
def genecis_root(tmp_path) -> Path:
    """Two queries a task, three candidates each; no images."""
    return write_tree("GeneCIS", tmp_path / "GeneCIS")


@pytest.fixture
def fashion200k_root(tmp_path) -> Path:
    """Three test queries over seven images, six training images; no images."""
    return write_tree("Fashion200k", tmp_path / "Fashion200k")


@pytest.fixture
def shoes_root(tmp_path) -> Path:
    """Two val queries over four images, two training queries over two; no images."""
    return write_tree("Shoes", tmp_path / "Shoes")


@pytest.fixture
def lasco_root(tmp_path) -> Path:
    """Two queries a split, over four images (val) and three (train); no images."""
    return write_tree("LaSCo", tmp_path / "LaSCo")


@pytest.fixture
def change() -> Callable[..., None]:
    """Change fields of one entry of a JSON list; `...` removes the field."""

    def change(file: Path, number: int = 0, **fields) -> None:
        entries = json.loads(file.read_text())
        entry = {**entries[number], **{key.replace("__", "-"): value for key, value in fields.items()}}
        entries[number] = {key: value for key, value in entry.items() if value is not ...}
        file.write_text(json.dumps(entries))

    return change


@pytest.fixture
def break_captions(cirr_root) -> Callable[..., None]:
    """Change fields of the first entry of CIRR's val captions; `...` removes the field."""

    def change(**fields) -> None:
        entry = {**CIRR_ENTRIES[0], **fields}
        entry = {key: value for key, value in entry.items() if value is not ...}
        write_json(cirr_root / "cirr/captions/cap.rc2.val.json", [entry, CIRR_ENTRIES[1]])

    return change


@pytest.fixture
def problems_of() -> Callable[..., list[Problem]]:
    """The problems with which a call fails."""

    def call(function, *args, **kwargs) -> list[Problem]:
        with pytest.raises(AnnotationsError) as caught:
            function(*args, **kwargs)
        return list(caught.value.problems)

    return call
