from __future__ import annotations

import pytest

from composir.data import icir
from composir.data.annotations import SplitNotFoundError
from composir.data.triplets import Query
from composir.errors import ComposirError

BELL = tuple(f"database/bell/{name}.jpg" for name in ("pos/1", "pos/2", "pos/3", "hn/4"))
CUP = ("database/cup/pos/1.jpg", "database/cup/hn/2.jpg")


@pytest.fixture
def root(make_root, tmp_path):
    return make_root("i-CIR", tmp_path / "icir")


def query(number, reference, text, targets, **own):
    return Query(str(number), reference, text, (text,), targets, **own)


def test_a_whole_root(root):
    (split,) = icir.load(root, "test")
    assert split.queries == (
        query(0, "query/bell/1.jpg", "at night", (BELL[0], BELL[2]), gallery=BELL, group="bell"),
        query(1, "query/bell/1.jpg", "as a drawing", (BELL[1],), gallery=BELL, group="bell"),
        query(2, "query/cup/7.jpg", "on a table", (CUP[0],), gallery=CUP, group="cup"),
    )
    assert split.gallery == (*BELL, *CUP)
    assert split.images["query/cup/7.jpg"] == root / "query/cup/7.jpg"
    assert split.images[BELL[3]] == root / "database/bell/hn/4.jpg"
    assert (split.gallery_rule, split.exclude_reference, split.notes) == ("per instance", False, ())
    assert icir.load(root.parent, "test") == (split,)


@pytest.mark.parametrize("start", ["", "data/icir/", "/home/me/icir/", "icir\\"])
def test_paths_count_from_the_published_folders_on(root, start):
    file = root / "query_files.csv"
    file.write_text(file.read_text().replace("icir/", start.replace("\\", "/")))
    assert icir.load(root, "test")[0].queries[2].reference == "query/cup/7.jpg"


def test_line_ends_and_blank_lines_do_not_count(root):
    for name in ("query_files.csv", "database_files.csv"):
        (root / name).write_bytes((root / name).read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert [query.text for query in icir.load(root, "test")[0].queries] == ["at night", "as a drawing", "on a table"]


def test_an_image_may_show_two_texts_and_a_repeated_line_is_noted(root):
    with (root / "database_files.csv").open("a") as file:
        file.write("icir/database/cup/hn/2.jpg,on a table,cup\nicir/database/cup/hn/2.jpg,on a table,cup\n")
    (split,) = icir.load(root, "test")
    assert split.queries[2].targets == CUP
    assert split.queries[2].gallery == CUP
    assert [(note.where, note.message) for note in split.notes] == [
        ("line 8", "the name 'database/cup/hn/2.jpg' is repeated")
    ]


def test_what_follows_three_fields_is_left_out_as_in_the_published_loader(root):
    file = root / "query_files.csv"
    expected = icir.load(root, "test")[0].queries
    file.write_text(file.read_text().replace("\n", ",more,fields\n", 1))
    (split,) = icir.load(root, "test")
    assert split.queries == expected
    assert [(note.where, note.message) for note in split.notes] == [
        ("line 1", "holds 5 fields, expected 3: path, text, instance")
    ]


def test_all_problems_at_once(root, problems_of):
    (root / "query_files.csv").write_text(
        "icir/query/bell/1.jpg,at night\n,at night,bell\nicir/query/bell/1.jpg,at noon,bell\nicir/query/x.jpg,a,\n"
    )
    found = [(problem.where, problem.message) for problem in problems_of(icir.load, root, "test")]
    assert found == [
        ("line 1", "holds 2 fields, expected 3: path, text, instance"),
        ("line 2", "'path' is empty ('')"),
        ("line 3", "no image of database_files.csv has the instance 'bell' and the text 'at noon'"),
        ("line 4", "'instance' is empty ('')"),
    ]


def test_what_is_not_there(root, tmp_path, problems_of):
    with pytest.raises(SplitNotFoundError, match="i-CIR has no split 'val'"):
        icir.load(root, "val")
    with pytest.raises(ComposirError, match="no such folder"):
        icir.load(tmp_path / "query", "test")
    (root / "database_files.csv").unlink()
    assert problems_of(icir.load, root, "test")[0].message == "the file is missing"
