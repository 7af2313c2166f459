from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from composir.data import own
from composir.data.annotations import AnnotationsError, SplitNotFoundError
from composir.data.importing import import_triplets
from composir.errors import ComposirError


def make_root(folder: Path) -> Path:
    """Return a data root of four pictures: two triplets, both of val."""
    (folder / "photos").mkdir()
    for number, name in enumerate(("a.jpg", "b.jpg", "c.png", "d.PNG")):
        Image.new("RGB", (4, 4), (50 * number, 0, 0)).save(folder / "photos" / name)
    triplets = "a.jpg,red,b.jpg,val\nb.jpg,blue,c.png,val\n"
    (folder / "t.csv").write_text(f"reference,text,target,split\n{triplets}")
    import_triplets(folder / "t.csv", folder / "photos", folder / "root")
    return folder / "root"


@pytest.fixture
def root(tmp_path) -> Path:
    return make_root(tmp_path)


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory) -> Path:
    return make_root(tmp_path_factory.mktemp("own"))


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "own.json",
            '"format": 1',
            '"format": 2',
            "own.json: has format 2, expected 1; fix: import the triplets again",
        ),
        (
            "own.json",
            '"images"',
            '"image"',
            "own.json: key 'images' is missing; fix: add 'images' to the entry, or imp",
        ),
        ("own.json", "{", "[", "own.json (line 1 column 10): not valid JSON: Expecting ',' delimiter; fix: import the"),
        ("gallery.json", '"a.jpg"', "7", "gallery.json (entry 0): the name is 7, expected text; fix: import the trip"),
        ("gallery.json", '"d.PNG"', '"a.jpg"', "gallery.json (entry 3): the name 'a.jpg' is repeated; fix: keep it"),
        ("gallery.json", '"d.PNG"', '"../d"', "gallery.json: the name '../d' leads out of the images folder; fix: imp"),
        ("triplets.val.json", '"a.jpg"', '"z.jpg"', "triplets.val.json (entry 0): reference 'z.jpg' is not in gallery"),
        ("triplets.val.json", '"red"', '""', "triplets.val.json (entry 0): 'text' is empty (''); fix: write the sent"),
        ("triplets.val.json", '["b.jpg"]', "[]", "triplets.val.json (entry 0): 'targets' is empty; fix: name an image"),
        ("triplets.val.json", '["b.jpg"]', '["a.jpg"]', "triplets.val.json (entry 0): the target 'a.jpg' is also the"),
        ("triplets.val.json", '"2"', '"1"', "triplets.val.json (entry 1): the id '1' is repeated; fix: give every"),
        (
            "triplets.val.json",
            None,
            "[]",
            "triplets.val.json: holds no query; fix: import the triplets again (composir",
        ),
        ("triplets.val.json", None, "[7]", "triplets.val.json (entry 0): holds a whole number (7), expected an object"),
    ],
)
def test_a_broken_data_root(root, file, old, new, message):
    text = (root / file).read_text()
    (root / file).write_text(new if old is None else text.replace(old, new, 1))
    with pytest.raises(AnnotationsError) as caught:
        own.load(root, "val")
    assert str(caught.value.problems[0]).replace(f"{root}/", "").startswith(message)


def test_a_split_or_a_root_that_is_not_there(root, tmp_path):
    with pytest.raises(SplitNotFoundError) as caught:
        own.load(root, "train")
    assert str(caught.value) == (
        f"{root / 'triplets.train.json'}: the train split is not in this data root; expected one of what is: val; "
        "fix: import the triplets again, with a column split or with --split 80/20, which makes both of them"
    )
    with pytest.raises(SplitNotFoundError, match="own has no split 'test1'; expected train, val, test; fix: did you"):
        own.load(root, "test1")
    with pytest.raises(ComposirError, match="own has no categories, got dress; fix: leave the categories out"):
        own.load(root, "val", categories=["dress"])
    for folder, found in ((tmp_path, "no own.json in it"), (tmp_path / "gone", "no such folder")):
        with pytest.raises(ComposirError) as caught:
            own.load(folder, "val")
        assert str(caught.value) == (
            f"{folder}: {found}; expected a data root made by composir data import; "
            "fix: composir data import TRIPLETS.csv --images DIR --out R, then --data-root R"
        )


@given(
    name=st.sampled_from(["own.json", "gallery.json", "triplets.val.json"]),
    start=st.integers(0, 200),
    length=st.integers(0, 30),
    new=st.binary(max_size=8) | st.sampled_from([b"a.jpg", b'"', b",", b"\n", b"../a.jpg", "ü".encode(), b"1"]),
)
def test_a_data_root_with_any_bytes_replaced(shared_root, name, start, length, new):
    content = (shared_root / name).read_bytes()
    (shared_root / name).write_bytes(content[:start] + new + content[start + length :])
    try:
        (split,) = own.load(shared_root, "val")
    except ComposirError as error:
        assert name in str(error)
    else:
        assert len(split.queries) == 2
    finally:
        (shared_root / name).write_bytes(content)
