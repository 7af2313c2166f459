from __future__ import annotations

import pytest

from composir.data.annotations import (
    Findings,
    choose_categories,
    find_categories,
    find_home,
    read_entries,
    read_json,
    read_table,
    require_whole,
)
from composir.errors import ComposirError


def read_names(file, known, names):
    """The fixes proposed for names that are not among the known ones."""
    problems = []
    file.write_text("\n".join(names))
    for entry in read_table(file, ("name",), problems):
        assert entry.image_name("name", entry.fields["name"], known, file) is None
    return [problem.fix for problem in problems]


def test_lines_become_entries_with_columns(tmp_path):
    file = tmp_path / "table.txt"
    file.write_bytes("\ufeffa\tb c\r\n \t\r\n\nd\té\n".encode())
    problems = []
    entries = read_table(file, ("first", "second"), problems, separator="\t")
    assert [(entry.where, entry.fields) for entry in entries] == [
        ("line 1", {"first": "a", "second": "b c"}),
        ("line 4", {"first": "d", "second": "é"}),  # lines count from 1, blank ones among them
    ]
    assert problems == []


def test_lines_with_other_fields_are_problems(tmp_path):
    file = tmp_path / "table.txt"
    file.write_text("a b\na\na b c\n")
    problems = []
    assert len(read_table(file, ("first", "second"), problems)) == 1
    assert [(problem.where, problem.message) for problem in problems] == [
        ("line 2", "holds 1 field, expected 2: first, second"),
        ("line 3", "holds 3 fields, expected 2: first, second"),
    ]
    assert {problem.fix for problem in problems} == {"restore the published file"}


def test_a_table_that_is_not_there(tmp_path):
    problems = []
    assert read_table(tmp_path / "gone.txt", ("name",), problems) == []
    assert [str(problem) for problem in problems] == [
        f"{tmp_path}/gone.txt: the file is missing; fix: put the published gone.txt there"
    ]


def test_a_number_of_thousands_of_digits(tmp_path):
    file = tmp_path / "file.json"
    file.write_text(f"[{'9' * 5000}]")
    problems = []
    assert read_json(file, list, problems) is None
    assert [problem.message for problem in problems] == ["holds a number too long to be read"]


def test_keys_given_twice_are_found_among_many(tmp_path):
    file = tmp_path / "file.json"
    file.write_text("{" + ",".join(f'"{number}": 0' for number in [*range(200_000), 7, 9]) + "}")
    problems = []
    assert len(read_json(file, dict, problems) or ()) == 200_000
    assert [problem.where for problem in problems] == ["key '7'", "key '9'"]


def test_a_slip_in_either_half_of_a_name_is_found(tmp_path):
    known = [f"women/dresses/{number:06}/{number:06}_0.jpeg" for number in range(100_000)]
    fixes = read_names(
        tmp_path / "names.txt",
        known,
        ["woman/dresses/000123/000123_0.jpeg", "women/dresses/000124/000124_0.jpg", "trousers"],
    )
    assert fixes == [
        "did you mean 'women/dresses/000123/000123_0.jpeg'? else add it to names.txt",
        "did you mean 'women/dresses/000124/000124_0.jpeg'? else add it to names.txt",
        "add it to names.txt",
    ]


def test_no_number_is_suggested_for_another(tmp_path):
    assert read_names(tmp_path / "names.txt", ["123456", "x123457"], ["123457"]) == ["add it to names.txt"]


def test_a_home_is_found_by_a_folder_or_by_files(tmp_path):
    (tmp_path / "Set" / "labels").mkdir(parents=True)
    (tmp_path / "Set" / "set_val.json").touch()
    for marker in ("labels", "set_*.json", "set_val.json"):
        assert find_home(tmp_path, marker=marker, folder="Set", source="nowhere") == tmp_path / "Set"
        assert find_home(tmp_path / "Set", marker=marker, folder="Set", source="nowhere") == tmp_path / "Set"


@pytest.mark.parametrize(
    ("marker", "found", "fix"),
    [
        ("labels", "no labels/ folder in it", "pass the folder that holds labels/ as --data-root"),
        ("set_*.json", "no set_*.json file in it", "pass the folder that holds set_*.json as --data-root"),
    ],
)
def test_no_home(tmp_path, marker, found, fix):
    with pytest.raises(ComposirError) as caught:
        find_home(tmp_path, marker=marker, folder="Set", source="the shop")
    assert str(caught.value) == (
        f"{tmp_path}: {found}; expected the data set's own folder, or its parent with Set/; fix: {fix}; "
        "it comes from the shop (docs/data.md); without it: `composir data scenes --out scenes`, "
        "then --dataset CIRR --data-root scenes"
    )


def test_categories():
    assert choose_categories("Set", None, ("a", "b")) == ("a", "b")
    assert choose_categories("Set", ["b"], ("a", "b")) == ("b",)
    assert choose_categories("Set", None) == ()
    with pytest.raises(ComposirError) as caught:
        choose_categories("Set", ["a", "cc"], ("a", "c"))
    assert str(caught.value) == "Set has no category 'cc'; expected a, c; fix: did you mean 'c'?"
    with pytest.raises(ComposirError) as caught:
        choose_categories("Set", ["a", "b"])
    assert str(caught.value) == "Set has no categories, got a, b; fix: leave the categories out"


def test_categories_that_are_not_there(tmp_path):
    files = {name: (tmp_path / f"{name}.json", tmp_path / f"{name}.txt") for name in "abc"}
    files["b"][1].touch()
    files["c"][0].touch()
    problems = []
    assert find_categories("Set", "val", files, problems) == ["b", "c"]
    assert [str(problem) for problem in problems] == [
        f"{tmp_path}/a.json: the a category of the val split is not in this data root; "
        "fix: put it and a.txt there, or choose what is: --categories b --categories c"
    ]


def test_what_is_whole_comes_back(tmp_path):
    assert require_whole((), Findings()) == ()


def test_elements_that_are_no_objects(tmp_path):
    file = tmp_path / "file.json"
    file.write_text('[{"id": 5}, 3, {"id": true}]')
    problems = []
    assert [entry.where for entry in read_entries(file, problems, id_key="id")] == ["id 5", "entry 2"]
    assert [(problem.where, problem.message) for problem in problems] == [
        ("entry 1", "holds a whole number (3), expected an object")
    ]
