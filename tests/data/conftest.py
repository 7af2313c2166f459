"""Tiny data roots, whole until a test breaks them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

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


@pytest.fixture
def cirr_root(tmp_path) -> Path:
    """Two val queries over seven images, `g.jpg` among them; the images are there."""
    root = tmp_path / "cirr_dataset"
    write_json(root / "cirr/captions/cap.rc2.val.json", CIRR_ENTRIES)
    write_json(root / "cirr/image_splits/split.rc2.val.json", CIRR_IMAGES)
    (root / "dev").mkdir()
    for number, path in enumerate(CIRR_IMAGES.values()):
        Image.new("RGB", (4, 4), (30 * number, 0, 0)).save(root / path)
    return root


@pytest.fixture
def break_captions(cirr_root) -> Callable[..., None]:
    """Change fields of the first entry of CIRR's val captions; `...` removes the field."""

    def change(**fields) -> None:
        entry = {**CIRR_ENTRIES[0], **fields}
        entry = {key: value for key, value in entry.items() if value is not ...}
        write_json(cirr_root / "cirr/captions/cap.rc2.val.json", [entry, CIRR_ENTRIES[1]])

    return change


@pytest.fixture
def fashioniq_root(tmp_path) -> Path:
    """Two val queries a category over four images each; no images."""
    root = tmp_path / "fashionIQ_dataset"
    for category in ("dress", "shirt", "toptee"):
        names = [f"{category}{number}" for number in range(4)]
        write_json(root / f"image_splits/split.{category}.val.json", names)
        write_json(
            root / f"captions/cap.{category}.val.json",
            [
                {"target": names[1], "candidate": names[0], "captions": ["is Red.", " has a Bow?"]},
                {"target": names[2], "candidate": names[3], "captions": ["longer", "blue, "]},
            ],
        )
    return root


@pytest.fixture
def problems_of() -> Callable[..., list[Problem]]:
    """The problems with which a call fails."""

    def call(function, *args, **kwargs) -> list[Problem]:
        with pytest.raises(AnnotationsError) as caught:
            function(*args, **kwargs)
        return list(caught.value.problems)

    return call
