from __future__ import annotations

import csv
import io
import json
import os
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from composir.data import check_dataset, load_splits
from composir.data.importing import import_triplets
from composir.data.rows import FIELDS
from composir.data.triplets import Query
from composir.errors import ComposirError, ProblemsError

NAMES = ("a.jpg", "b.jpg", "c.png", "d.PNG", "shoes/e.webp")


def make_photos(folder: Path) -> Path:
    (folder / "shoes").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.new("RGB", (4, 4), (50 * number, 0, 0)).save(folder / name)
    (folder / "list.txt").write_text("no picture")
    (folder / "._a.jpg").write_bytes(b"what macOS leaves on foreign disks")
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture
def import_(tmp_path, photos):
    """Import a file of the given text; the data root is tmp_path / "root"."""

    def call(text: str | bytes, name: str = "t.csv", **options):
        file = tmp_path / name
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return import_triplets(file, photos, tmp_path / "root", **options)

    return call


@pytest.fixture
def problems_of(import_, tmp_path):
    """The problems of an import as text, without the folder of the test; nothing may be written."""

    def call(*args, **options) -> list[str]:
        with pytest.raises(ProblemsError) as caught:
            import_(*args, **options)
        assert not (tmp_path / "root").exists()
        assert not list(tmp_path.glob(".root*"))
        return [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]

    return call


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


# -- what is imported --------------------------------------------------------------------------------------------------


def test_a_csv_file_becomes_a_data_root(import_, tmp_path, photos):
    calls: list[tuple[int, int]] = []
    imported = import_(
        'reference,text,target\na.jpg,"the same, in red",b.jpg\nshoes/e.webp,with a bow,./c.png\n',
        progress=lambda *told: calls.append(told),
    )
    assert imported.counts == {"val": {"num_queries": 2, "num_gallery": 5}}
    assert imported.notes == [
        "there is no column 'split', so all rows are in val; --split 80/20 makes train and val of them"
    ]
    assert calls == [(number, 5) for number in range(1, 6)]
    (split,) = load_splits("own", tmp_path / "root", "val")
    text = "the same, in red"
    assert split.queries == (
        Query(id="1", reference="a.jpg", text=text, texts=(text,), targets=("b.jpg",)),
        Query(id="2", reference="shoes/e.webp", text="with a bow", texts=("with a bow",), targets=("c.png",)),
    )
    assert split.gallery == NAMES
    assert split.images == {name: photos / name for name in NAMES}
    assert (split.dataset, split.name, split.category) == ("own", "val", "")
    assert (split.gallery_rule, split.exclude_reference, split.text_rule) == ("original", True, "as annotated")
    assert check_dataset("own", tmp_path / "root").problems == []


def test_jsonl_with_every_field(import_, tmp_path):
    rows = [
        {"id": 7, "reference": "a.jpg", "text": "größer 🐶", "targets": ["b.jpg", "c.png"], "split": "train"},
        {"id": "x", "reference": "a.jpg", "text": "two\nlines", "target": "b.jpg", "split": "val", "subset": None},
        {"id": 7, "reference": "b.jpg", "text": "z", "target": "c.png", "split": "val",
         "subset": ["c.png", "b.jpg", "d.PNG"]},
    ]  # fmt: skip
    imported = import_("\ufeff" + jsonl(*rows) + "\n \n", "t.jsonl")
    assert imported.counts == {
        "train": {"num_queries": 1, "num_gallery": 5},
        "val": {"num_queries": 2, "num_gallery": 5},
    }
    assert imported.notes == ["1 of 2 queries of val have no subset: R_s@K is not measured"]
    (train,) = load_splits("own", tmp_path / "root", "train")
    (val,) = load_splits("own", tmp_path / "root", "val")
    assert (train.queries[0].id, train.queries[0].text) == ("7", "größer 🐶")
    assert train.queries[0].targets == ("b.jpg", "c.png")
    assert [query.id for query in val.queries] == ["x", "7"]
    assert val.queries[0].text == "two\nlines"
    assert [query.subset for query in val.queries] == [(), ("c.png", "d.PNG")]  # less the reference


PLAIN_ROW = "a.jpg,red,b.jpg"


@pytest.mark.parametrize(
    "text",
    [
        f"reference,text,target,,\n{PLAIN_ROW},,\n,,,,\n  ,,,,\n\n,,,,\n",
        f",,\nreference,text,target\n{PLAIN_ROW},,,\n,\n",
        "reference,text,target\n" + PLAIN_ROW + "\n,,\n" + '"","",""\n',
        "sep=;\r\nreference;text;target\r\na.jpg;red;b.jpg\r\n",
        '"SEP=\t"\nreference\ttext\ttarget\na.jpg\tred\tb.jpg',
        "sep=,,,\n" + f"reference,text,target\n{PLAIN_ROW}\n",
    ],
)
def test_what_spreadsheets_leave_in_a_file_is_passed_over(import_, tmp_path, text):
    assert import_(text).counts == {"val": {"num_queries": 1, "num_gallery": 5}}
    (query,) = load_splits("own", tmp_path / "root", "val")[0].queries
    assert (query.reference, query.text, query.targets) == ("a.jpg", "red", ("b.jpg",))


def test_a_cell_beyond_the_header_is_a_problem(problems_of):
    assert problems_of("reference,text,target,,\na.jpg,red,b.jpg,,stray\n\n\na.jpg,in red,b.jpg\n,,,,x\n") == [
        "t.csv (line 2): the row has 5 cells, the header 3; "
        "fix: write every cell, and put quotes around a text that holds ','",
        "t.csv (line 6): the row has 5 cells, the header 3; "
        "fix: write every cell, and put quotes around a text that holds ','",
    ]


def test_lines_are_counted_after_the_one_that_names_the_delimiter(problems_of):
    assert problems_of("sep=;\nreference;text;target\na.jpg;red\n") == [
        "t.csv (line 3): the row has 2 cells, the header 3; "
        "fix: write every cell, and put quotes around a text that holds ';'"
    ]


def test_a_line_of_jsonl_is_blank_by_json_s_own_rule(import_, problems_of):
    """``str.strip`` takes control characters for white space, too; a line that holds one is damaged, not empty."""
    row = jsonl({"reference": "a.jpg", "text": "red", "target": "b.jpg"})
    (problem,) = problems_of(row + "\x1c\n", "t.jsonl")
    assert problem.startswith("t.jsonl (line 2 column 1): not valid JSON: Expecting value")
    assert import_(row + " \t\r\n\n", "t.jsonl").counts["val"]["num_queries"] == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "sep=:\nreference:text:target\na.jpg:red:b.jpg\n",
            "t.csv (line 1): the delimiter is to be ':', expected a comma, a semicolon, a tab or a bar (|); "
            "fix: save it with one of them",
        ),
        (
            "reference:text:target\na.jpg:red:b.jpg\n",
            "t.csv: the header is one column, 'reference:text:target', expected a comma, a semicolon, a tab or a bar "
            "(|) between columns; fix: save it with one of them",
        ),
    ],
)
def test_a_delimiter_that_is_not_taken(problems_of, text, problem):
    assert problems_of(text) == [problem]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_an_accent_is_found_in_either_form(import_, tmp_path, photos, forms, suffix):
    there, named = (unicodedata.normalize(form, "café/é1.png") for form in forms)
    assert there != named
    (photos / there).parent.mkdir()
    Image.new("RGB", (4, 4), "white").save(photos / there)
    row = {"reference": "a.jpg", "text": "redder", "target": named}
    import_(jsonl(row) if suffix == ".jsonl" else f"reference,text,target\n{','.join(row.values())}\n", f"t{suffix}")
    (split,) = load_splits("own", tmp_path / "root", "val")
    assert split.queries[0].targets == (there,)
    assert split.images[there] == photos / there


def test_an_accent_that_is_there_in_both_forms_is_taken_as_written(import_, problems_of, photos, tmp_path):
    forms = [unicodedata.normalize(form, "é1.png") for form in ("NFC", "NFD")]
    for number, name in enumerate(forms):
        Image.new("RGB", (4, 4), (9 + number, 0, 0)).save(photos / name)
    import_("".join(["reference,text,target\n", *(f"a.jpg,red {name!a},{name}\n" for name in forms)]))
    (split,) = load_splits("own", tmp_path / "root", "val")
    assert [query.targets for query in split.queries] == [(forms[0],), (forms[1],)]
    shutil.rmtree(tmp_path / "root")
    for name in (unicodedata.normalize(form, "ế2.png") for form in ("NFC", "NFD")):
        Image.new("RGB", (4, 4), "white").save(photos / name)
    half = "\u00ea\u03012.png"  # a third form of the same name
    assert problems_of(f"reference,text,target\na.jpg,red,{half}\n") == [
        "t.csv (line 2): target 'ê\u03012.png' could be 'e\\u0302\\u03012.png' or '\\u1ebf2.png', which look alike; "
        "fix: rename one of the two pictures, or write its name as it is on disk"
    ]


def test_whole_paths_into_the_folder_are_taken(import_, tmp_path, photos, monkeypatch):
    (tmp_path / "link").symlink_to(photos, target_is_directory=True)
    import_(
        "reference,text,target\n"
        f"{photos}/a.jpg,red,{photos}/shoes/../b.jpg\n{tmp_path}/link/shoes/e.webp,blue,{photos}/shoes/../c.png\n"
    )
    (split,) = load_splits("own", tmp_path / "root", "val")
    found = [(query.reference, query.targets) for query in split.queries]
    assert found == [("a.jpg", ("b.jpg",)), ("shoes/e.webp", ("c.png",))]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_kinds_of_csv(import_, tmp_path, delimiter, end, encoding):
    rows = [
        ["reference", "text", "targets", "subset"],
        ["a.jpg", f'"say ""hé""{delimiter} two{end}lines"', "b.jpg | c.png", "b.jpg|d.PNG"],
        [],
        ["b.jpg", " plain", "c.png", ""],
    ]
    text = end.join(delimiter.join(row) for row in rows)
    import_(text.encode(encoding))
    first, second = load_splits("own", tmp_path / "root", "val")[0].queries
    assert first.text == f'say "hé"{delimiter} two{end}lines'
    assert (first.targets, first.subset) == (("b.jpg", "c.png"), ("b.jpg", "d.PNG"))
    assert (second.text, second.targets, second.subset) == ("plain", ("c.png",), ())


def test_columns_can_have_other_names(import_, tmp_path):
    imported = import_(
        "ref_img;text;caption;target_img;set\na.jpg;not this;this;b.jpg;train\n",
        columns={"reference": "ref_img", "text": "caption", "target": "target_img", "split": "set"},
    )
    assert list(imported.counts) == ["train"]
    assert imported.notes == ["columns not used: text"]
    assert load_splits("own", tmp_path / "root", "train")[0].queries[0].text == "this"


def test_a_file_without_a_split_column_goes_where_it_is_told(import_):
    imported = import_("reference,text,target\na.jpg,red,b.jpg\n", split="test")
    assert list(imported.counts) == ["test"]
    assert imported.notes == [
        "there is no column 'split', so all rows are in test; --split 80/20 makes train and val of them"
    ]


def test_the_gallery_can_be_the_named_pictures_alone(import_, tmp_path, photos):
    (photos / "d.PNG").write_bytes(b"broken, and of no interest")
    text = "reference,text,target,subset\na.jpg,red,c.png,c.png|b.jpg\n"
    assert import_(text, gallery="named").counts == {"val": {"num_queries": 1, "num_gallery": 3}}
    assert load_splits("own", tmp_path / "root", "val")[0].gallery == ("a.jpg", "b.jpg", "c.png")


def test_pictures_with_the_content_of_another_are_noted(import_, tmp_path, photos):
    shutil.copyfile(photos / "a.jpg", photos / "copy.jpg")
    imported = import_("reference,text,target\na.jpg,red,b.jpg\n")
    assert imported.notes[-1] == "pictures with the content of another: 1 (composir data check names them)"
    (problem,) = check_dataset("own", tmp_path / "root").problems
    assert "copy.jpg" in problem.file
    assert "has the same content as" in problem.message


# -- where the pictures are --------------------------------------------------------------------------------------------


def test_a_folder_given_by_a_relative_path_moves_with_the_data_root(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("reference,text,target\na.jpg,red,b.jpg\n")
    import_triplets("t.csv", "photos", "made/here/root")
    assert json.loads(Path("made/here/root/own.json").read_text()) == {"format": 1, "images": "../../../photos"}
    (tmp_path / "moved").mkdir()
    for name in ("made", "photos"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    assert check_dataset("own", tmp_path / "moved/made/here/root").problems == []


def test_a_folder_given_by_an_absolute_path_stays(import_, tmp_path, photos):
    import_("reference,text,target\na.jpg,red,b.jpg\n")
    assert json.loads((tmp_path / "root/own.json").read_text())["images"] == str(photos)
    (tmp_path / "root").rename(tmp_path / "moved")
    assert check_dataset("own", tmp_path / "moved").problems == []


def test_pictures_can_be_copied(import_, tmp_path, photos):
    import_("reference,text,target\na.jpg,red,shoes/e.webp\n", copy_images=True)
    content = (photos / "shoes/e.webp").read_bytes()
    shutil.rmtree(photos)
    (tmp_path / "root").rename(tmp_path / "moved")
    assert check_dataset("own", tmp_path / "moved").problems == []
    assert (tmp_path / "moved/images/shoes/e.webp").read_bytes() == content


def test_links_inside_the_folder_are_pictures(import_, photos):
    (photos / "link.jpg").symlink_to("a.jpg")
    (photos / "again").symlink_to("shoes")
    assert import_("reference,text,target\nlink.jpg,red,b.jpg\n").counts["val"]["num_gallery"] == 6


def test_links_out_of_the_folder_are_no_part_of_it(problems_of, import_, tmp_path, photos):
    (tmp_path / "private").mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "private/secret.png")
    (photos / "out.png").symlink_to(tmp_path / "private/secret.png")
    (photos / "folder").symlink_to(tmp_path / "private")
    text = "reference,text,target\nout.png,red,b.jpg\nfolder/secret.png,red,b.jpg\n"
    taken = "is there but not taken: hidden, behind a link, or no picture by its name"
    rows = [
        f"t.csv (line 2): reference 'out.png' {taken}",
        f"t.csv (line 3): reference 'folder/secret.png' {taken}",
    ]
    assert [problem.split("; fix: ")[0] for problem in problems_of(text, gallery="named")] == rows
    found = problems_of(text)
    assert [problem.split("; fix: ")[0] for problem in found[:2]] == rows
    fix = "put the pictures themselves there, readable, or leave it out with --gallery named"
    assert found[2:] == [
        f"photos ({name}): a link that leads out of the folder; fix: {fix}" for name in ("folder", "out.png")
    ]
    assert import_("reference,text,target\na.jpg,red,b.jpg\n", gallery="named").counts


# -- what is wrong -----------------------------------------------------------------------------------------------------

HEAD = "reference,text,target\n"
GOOD = "a.jpg,red,b.jpg\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["t.csv: holds no triplet; fix: write one row for each"]),
        (HEAD, ["t.csv: holds no triplet; fix: write one row for each"]),
        (
            "ref_img,caption,target\na.jpg,red,b.jpg\n",
            [
                "t.csv: the column 'reference' is missing, there are 'ref_img', 'caption', 'target'; "
                "fix: did you mean 'ref_img'? then --column reference=ref_img",
                "t.csv: the column 'text' is missing, there are 'ref_img', 'caption', 'target'; "
                "fix: did you mean 'caption'? then --column text=caption",
            ],
        ),
        (
            "reference,text\na.jpg,red\n",
            ["t.csv: the column 'target' is missing, there are 'reference', 'text'; fix: add it"],
        ),
        (
            "reference,text,target,text\na.jpg,red,b.jpg,blue\n",
            ["t.csv (line 1): the column 'text' is there 2 times; fix: rename all but one"],
        ),
        (
            HEAD + GOOD + "\na.jpg,red, or blue,b.jpg\nb.jpg,x\n",
            [
                f"t.csv (line {line}): the row has {cells} cells, the header 3; "
                "fix: write every cell, and put quotes around a text that holds ','"
                for line, cells in ((4, 4), (5, 2))
            ],
        ),
        (
            HEAD + GOOD + 'a.jpg,"two\nlines" more,b.jpg\n',
            [
                "t.csv (line 3): not valid CSV: ',' expected after '\"'; fix: close the quotes, "
                'and double those within a text (""); what comes after was not read'
            ],
        ),
        (
            HEAD + 'a.jpg,"red,b.jpg\n' + GOOD,
            [
                "t.csv (line 2): not valid CSV: unexpected end of data; fix: close the quotes, "
                'and double those within a text (""); what comes after was not read'
            ],
        ),
        (
            HEAD + 'a.jpg,"two\nlines",b.jpg\n,x,b.jpg\na.jpg, ,b.jpg\na.jpg,x,\n',
            [
                "t.csv (line 4): 'reference' is empty; "
                "fix: write the picture's path below the images folder, or remove the row",
                "t.csv (line 5): 'text' is empty (''); fix: write the sentence, or remove the entry",
                "t.csv (line 6): key 'targets' is missing; fix: add 'targets' to the entry, or remove the row",
            ],
        ),
        (
            HEAD + "a.jpeg,x,../b.jpg\n/a.jpg,y,shoes\\e.webp\nlist.txt,z,._a.jpg\n",
            [
                "t.csv (line 2): reference 'a.jpeg' is not in photos; fix: did you mean 'a.jpg'? else add it to photos",
                *(
                    f"t.csv (line {line}): {name} leads out of photos; fix: write the picture's path below that folder"
                    for line, name in ((2, "target '../b.jpg'"), (3, "reference '/a.jpg'"))
                ),
                "t.csv (line 3): target 'shoes\\\\e.webp' is not in photos; "
                "fix: did you mean 'shoes/e.webp'? else add it to photos",
                *(
                    f"t.csv (line 4): {role} {name!r} is there but not taken: hidden, behind a link, or no picture by "
                    "its name; fix: put a copy into photos that ends in .jpg, .jpeg, .jpe, .jfif, .png, .webp, .gif, "
                    ".tif, .tiff, .bmp, .heic, .heif, .avif"
                    for role, name in (("reference", "list.txt"), ("target", "._a.jpg"))
                ),
            ],
        ),
        (
            HEAD + GOOD + GOOD + "a.jpg,blue,a.jpg\n",
            [
                "t.csv (line 3): the reference, the text and the target are those of line 2; "
                "fix: keep one of the two rows",
                "t.csv (line 4): the target 'a.jpg' is also the reference; fix: name the picture asked for",
            ],
        ),
        (
            "id,reference,text,target\n7,a.jpg,red,b.jpg\n7,a.jpg,blue,b.jpg\n,a.jpg,green,b.jpg\n",
            [
                "t.csv (line 3): the id '7' is repeated; fix: give every query of a split an id of its own",
                "t.csv (line 4): key 'id' is missing; fix: add 'id' to the entry, or remove the row",
            ],
        ),
        (
            "reference,text,target,split\na.jpg,red,b.jpg,trian\na.jpg,blue,b.jpg,\n",
            [
                "t.csv (line 2): 'split' is 'trian', expected train, val, test; fix: did you mean 'train'?",
                "t.csv (line 3): key 'split' is missing; fix: add 'split' to the entry, or remove the row",
            ],
        ),
        (
            "reference,text,targets,target,subset\n"
            "a.jpg,red,b.jpg|b.jpg,,\n"
            "a.jpg,dark,b.jpg,c.png,\n"
            "a.jpg,bright,b.jpg,,c.png|d.PNG\n"
            "a.jpg,blue,b.jpg,,b.jpg|a.jpg\n"
            "a.jpg,green,b.jpg,,b.jpg|missing\n",
            [
                "t.csv (line 2): targets[1] repeats 'b.jpg'; fix: name every image once",
                "t.csv (line 3): both 'target' and 'targets' are given; fix: keep one of the two",
                "t.csv (line 4): 'subset' must hold the target 'b.jpg' and other pictures; fix: add what it lacks",
                "t.csv (line 5): 'subset' must hold the target 'b.jpg' and other pictures; fix: add what it lacks",
                "t.csv (line 6): subset[1] 'missing' is not in photos; fix: add it to photos",
            ],
        ),
        (
            HEAD + f"a.jpg,{'x' * 1001},b.jpg\n",
            [
                "t.csv (line 2): the text has 1,001 characters, expected at most 1,000; "
                "fix: shorten it; where a quote is not closed, rows have run together"
            ],
        ),
        (
            HEAD.encode() + "a.jpg,größer,b.jpg\n".encode("latin-1"),
            ["t.csv (line 2): not UTF-8 text (byte 0xf6); fix: save it as UTF-8 (in a spreadsheet: CSV UTF-8)"],
        ),
        (
            (HEAD + GOOD).encode("utf-16-le"),
            [
                "t.csv (line 1): not UTF-8 text (it holds NUL characters); "
                "fix: save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
            ],
        ),
    ],
)
def test_a_broken_csv_file(problems_of, text, expected):
    assert problems_of(text) == expected


ROW = {"reference": "a.jpg", "text": "red", "target": "b.jpg"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            jsonl(ROW) + "{]\n[1]\n" + '{"text": "x", "text": "y", "reference": "a.jpg", "target": "b.jpg"}\n',
            [
                "t.jsonl (line 2 column 2): not valid JSON: Expecting property name enclosed in double quotes; "
                "fix: write one JSON object a line",
                "t.jsonl (line 3): holds a list, expected an object; fix: write one JSON object a line",
                "t.jsonl (line 4 key 'text'): the name is repeated in one object; fix: keep it once",
            ],
        ),
        (
            jsonl(ROW, {"reference": "a.jpg", "text": "blue"}, {"reference": 3, "text": None, "targets": "b.jpg"}),
            [
                "t.jsonl (line 2): key 'targets' is missing; fix: add 'targets' to the entry, or remove the row",
                "t.jsonl (line 3): 'text' is null (None), expected text; fix: correct 'text', or remove the row",
                "t.jsonl (line 3): 'reference' is a whole number (3), expected text; "
                "fix: correct 'reference', or remove the row",
                "t.jsonl (line 3): 'targets' is text ('b.jpg'), expected a list; "
                "fix: correct 'targets', or remove the row",
            ],
        ),
        (
            jsonl({**ROW, "targets": []}, {**ROW, "target": None, "targets": []}, {**ROW, "subset": [1, ""]}),
            [
                "t.jsonl (line 1): both 'target' and 'targets' are given; fix: keep one of the two",
                "t.jsonl (line 1): 'targets' is empty; fix: name an image, or remove the row",
                "t.jsonl (line 2): 'targets' is empty; fix: name an image, or remove the row",
                "t.jsonl (line 3): 'subset[0]' is a whole number (1), expected text; "
                "fix: correct 'subset[0]', or remove the row",
                "t.jsonl (line 3): 'subset[1]' is empty; "
                "fix: write the picture's path below the images folder, or remove the row",
            ],
        ),
        (
            jsonl({**ROW, "text": "\ud800"}, {**ROW, "reference": "x" * 5000 + "\ud800"}, {**ROW, "target": "a\0.jpg"})
            + jsonl({**ROW, "id": True}),
            [
                "t.jsonl (line 1): key 'id' is missing; fix: add 'id' to the entry, or remove the row",
                "t.jsonl (line 1): 'text' holds half a surrogate pair ('\\ud800'); fix: write the character whole",
                "t.jsonl (line 2): key 'id' is missing; fix: add 'id' to the entry, or remove the row",
                f"t.jsonl (line 2): reference '{'x' * 5000}\\ud800' is not in photos; fix: add it to photos",
                "t.jsonl (line 3): key 'id' is missing; fix: add 'id' to the entry, or remove the row",
                "t.jsonl (line 3): target 'a\\x00.jpg' is not in photos; "
                "fix: did you mean 'a.jpg'? else add it to photos",
                "t.jsonl (line 4): 'id' is true or false (True), expected text; fix: correct 'id', or remove the row",
            ],
        ),
        (
            jsonl({"ref": "a.jpg", "text": "red", "targets": ["b.jpg"]}),
            [
                "t.jsonl: the column 'reference' is missing, there are 'ref', 'text', 'targets'; "
                "fix: did you mean 'ref'? then --column reference=ref"
            ],
        ),
        (
            '{"reference": ' + "9" * 5000 + "}",
            ["t.jsonl (line 1): holds a number too long to be read; fix: write one JSON object a line"],
        ),
        (
            "[" * 100_000,
            ["t.jsonl (line 1): nested too deeply to be an annotation file; fix: write one JSON object a line"],
        ),
    ],
)
def test_a_broken_jsonl_file(problems_of, text, expected):
    found = problems_of(text, "t.jsonl")
    assert len(found) == len(expected)
    assert all(problem.startswith(start) for problem, start in zip(found, expected, strict=True)), found


@pytest.mark.parametrize("text", ["a.jpg,red,b.jpg\n", "list,red,gone.png\nlist,blue,gone.png\n"])
def test_a_file_without_a_header_is_told_so(problems_of, text):
    (problem,) = problems_of(text)
    assert problem.startswith("t.csv (line 1): the first line looks like data, '")
    assert problem.endswith(": the header is missing; fix: write reference,text,target above it, in its columns' order")


def test_a_name_in_another_case_is_suggested_before_one_that_is_spelt_alike(problems_of):
    rows = (("C.PNG", "b.jpg", "reference 'C.PNG'", "c.png"), ("d.png", "b.jpg", "reference 'd.png'", "d.PNG"))
    rows += (("a.jpg", "SHOES/E.webp", "target 'SHOES/E.webp'", "shoes/e.webp"),)
    problems = problems_of(HEAD + "".join(f"{reference},red,{target}\n" for reference, target, _, _ in rows))
    assert problems == [
        f"t.csv (line {line}): {what} is not in photos; "
        f"fix: did you mean {near!r}? names differ by upper and lower case"
        for line, (_, _, what, near) in enumerate(rows, start=2)
    ]


@pytest.mark.parametrize("start", ["", "sep=|\n"])
def test_columns_may_be_parted_by_bars(import_, tmp_path, start):
    assert import_(f"{start}reference|text|target\na.jpg|red, or blue|b.jpg\n").counts["val"]["num_queries"] == 1
    (split,) = load_splits("own", tmp_path / "root", "val")
    assert split.queries[0].text == "red, or blue"


def test_a_renamed_column_that_is_not_there(problems_of):
    assert problems_of(HEAD + GOOD, columns={"subset": "group"}) == [
        "t.csv: the column 'group' for 'subset' is missing, there are 'reference', 'text', 'target'; fix: add it"
    ]


def test_a_split_for_a_file_that_has_one(problems_of):
    assert problems_of("reference,text,target,split\na.jpg,red,b.jpg,val\n", split="train") == [
        "t.csv: has a column 'split', and --split train is given; fix: leave --split out"
    ]


def test_broken_rows_and_broken_pictures_are_reported_together(problems_of, photos):
    (photos / "c.png").write_bytes((photos / "c.png").read_bytes()[:50])
    (photos / "d.PNG").write_bytes(b"")
    (photos / os.fsdecode(b"x\xe9.jpg")).write_bytes(b"")
    found = problems_of(HEAD + "a.jpg,,b.jpg\n")
    assert found[0].startswith("t.csv (line 2): 'text' is empty ('')")
    assert found[1] == (
        "photos (x\\xe9.jpg): its name is not UTF-8; "
        "fix: put the pictures themselves there, readable, or leave it out with --gallery named"
    )
    assert found[2].startswith("photos/c.png (image 'c.png'): the image data is cut off or damaged (")
    assert found[2].endswith("; fix: fetch or export the file again, or take it out of the folder")
    assert found[3].startswith("photos/d.PNG (image 'd.PNG'): the image file is empty (0 bytes); fix: fetch")
    assert len(found) == 4


def test_every_bad_row_is_listed(problems_of):
    found = problems_of(HEAD + "".join(f"gone{number}.jpg,x,b.jpg\n" for number in range(150)))
    assert [problem.split(":")[0] for problem in found] == [f"t.csv (line {line})" for line in range(2, 152)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "t.json"}, "t.json: the name ends in '.json'; expected CSV (.csv, .tsv) or JSONL (.jsonl, an object"),
        ({"columns": {"ref": "x"}}, "'ref' is not a field; expected reference, text, target, targets, split"),
        (
            {"columns": {"text": "target"}},
            "the column 'target' is to be both text and target; expected a column for each; "
            "fix: name the column of target, too",
        ),
        ({"split": "dev"}, "'dev' is not a split; expected train, val, test; fix: one of: test, train, val"),
        ({"gallery": "all"}, "'all' is not a gallery; expected folder, named; fix: one of: folder, named"),
    ],
)
def test_arguments_that_cannot_be(import_, tmp_path, options, message):
    with pytest.raises(ComposirError) as caught:
        import_(HEAD + GOOD, **options)
    assert str(caught.value).replace(f"{tmp_path}/", "").startswith(message)
    assert not (tmp_path / "root").exists()


def test_files_and_folders_that_cannot_be(import_, tmp_path, photos):
    with pytest.raises(ComposirError) as caught:
        import_triplets(tmp_path / "gone.csv", photos, tmp_path / "root")
    assert str(caught.value) == (
        f"{tmp_path / 'gone.csv'}: cannot be read (No such file or directory); fix: check the path"
    )
    (tmp_path / "t.csv").write_text(HEAD + GOOD)
    with pytest.raises(ComposirError) as caught:
        import_triplets(tmp_path / "t.csv", tmp_path / "gone", tmp_path / "root")
    assert str(caught.value) == (
        f"{tmp_path / 'gone'}: no such folder of images; fix: give the folder that the paths start from"
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(ComposirError, match="file/root: cannot be written"):
        import_triplets(tmp_path / "t.csv", photos, tmp_path / "file/root")
    import_(HEAD + GOOD)
    with pytest.raises(ComposirError) as caught:
        import_(HEAD + GOOD)
    assert str(caught.value) == (
        f"{tmp_path / 'root'}: already exists and is not empty; fix: choose a new folder with --out"
    )


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "t.csv").write_text(HEAD + GOOD)
    (tmp_path / "none").mkdir()
    with pytest.raises(ComposirError) as caught:
        import_triplets(tmp_path / "t.csv", tmp_path / "none", tmp_path / "root")
    assert str(caught.value).startswith(
        f"{tmp_path / 'none'}: holds no picture; expected files that end in .jpg, .jpeg"
    )
    (tmp_path / "none/folder").symlink_to("/")
    with pytest.raises(ComposirError, match=r"holds no picture \(folder: a link that leads out of the folder\); exp"):
        import_triplets(tmp_path / "t.csv", tmp_path / "none", tmp_path / "root")


# -- any file ----------------------------------------------------------------------------------------------------------

CELLS = st.sampled_from(
    [*NAMES, "", " ", "red", '"', '""', ",", "a.jpg,b.jpg", "\n", "../a.jpg", "ü", "train", "|", "1"]
)
CSV_TEXT = (
    'id,reference,text,target,split,subset\n1,a.jpg,"red, ""not"" blue",b.jpg,train,\n'
    '2,b.jpg,"two\nlines",c.png,val,c.png|d.PNG\n3,c.png,plain,d.PNG,val,d.PNG|a.jpg\n'
)
JSONL_ROWS = [
    {"id": 1, "reference": "a.jpg", "text": "red", "targets": ["b.jpg", "c.png"], "split": "train"},
    {
        "id": 2,
        "reference": "b.jpg",
        "text": "two\nlines",
        "target": "c.png",
        "split": "val",
        "subset": ["c.png", "a.jpg"],
    },
]


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def shared_photos(tmp_path_factory) -> Path:
    return make_photos(tmp_path_factory.mktemp("own") / "photos")


def import_or_error(content: bytes, suffix: str, photos: Path) -> int | None:
    """Return how many rows were imported, all of which can be loaded; None after a ComposirError."""
    folder = photos.parent / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file = folder / f"t{suffix}"
    file.write_bytes(content)
    try:
        imported = import_triplets(file, photos, folder / "root")
    except ComposirError as error:
        assert str(file) in str(error)
        assert [path.name for path in folder.iterdir()] == [file.name]
        return None
    loaded = sum(len(load_splits("own", folder / "root", name)[0].queries) for name in imported.counts)
    assert loaded == sum(count["num_queries"] for count in imported.counts.values())
    return loaded


@given(start=st.integers(0, 200), length=st.integers(0, 30), new=st.binary(max_size=8) | CELLS.map(str.encode))
def test_a_csv_file_with_any_bytes_replaced(shared_photos, start, length, new):
    content = CSV_TEXT.encode()
    content = content[:start] + new + content[start + length :]
    num_imported = import_or_error(content, ".csv", shared_photos)
    if num_imported is not None:
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), skipinitialspace=True)
        assert num_imported == sum(any(row) for row in reader) - 1


@given(rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=4))
def test_a_csv_file_of_any_cells(shared_photos, rows):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["reference", "text", "target"], *rows])
    num_imported = import_or_error(text.getvalue().encode(), ".csv", shared_photos)
    assert num_imported in (None, sum(any(cell.strip(" ") for cell in row) for row in rows))


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELLS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=2),
    max_leaves=5,
)


@given(row=st.integers(0, 1), key=st.sampled_from(FIELDS), value=ANY_JSON)
def test_a_jsonl_file_with_any_value(shared_photos, row, key, value):
    rows = [dict(one) for one in JSONL_ROWS]
    rows[row][key] = value
    num_imported = import_or_error(jsonl(*rows).encode(), ".jsonl", shared_photos)
    assert num_imported in (None, len(rows))


@given(start=st.integers(0, 300), length=st.integers(0, 30), new=st.binary(max_size=8))
def test_a_jsonl_file_with_any_bytes_replaced(shared_photos, start, length, new):
    content = jsonl(*JSONL_ROWS).encode()
    content = content[:start] + new + content[start + length :]
    num_imported = import_or_error(content, ".jsonl", shared_photos)
    assert num_imported in (None, sum(bool(line.strip(b" \t\r")) for line in content.split(b"\n")))
