"""CIRCUS's lists in the forms in which they are published; the lines of real queries are its own."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping

import pyarrow.parquet
import pytest

from composir.data import load_splits
from composir.data.fashioniq import CORRECTED, TEXT_RULES
from composir.errors import ComposirError, ProblemsError

VALIDATED = (
    "dataset,hidden_category,validated,query_idx,query_text,full_text,query_image_ref,target_image_ref,aggregate_label"
)


def csv_text(dataset: str, *asked: tuple[str, str]) -> str:
    """Return a ``*_validated.csv`` with as many of its columns as a reader could trip over: a line break is in one."""
    told = io.StringIO(newline="")
    writer = csv.writer(told, lineterminator="\n")
    writer.writerow(VALIDATED.split(","))
    for number, (picture, text) in enumerate(asked):
        whole = f"Find a picture.\n{text}"
        writer.writerow([dataset, "unresolved", "true", number, text, whole, picture, "target.jpg", "unresolved"])
    return told.getvalue()


def lines(*rows: Mapping[str, object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(dataset, root, file, text, **rules):
    file.write_text(text)
    return load_splits(dataset, root, "val", only=file, annotations_only=True, **rules)


def ids(splits) -> list[list[str]]:
    return [[query.id for query in split.queries] for split in splits]


def test_lines_of_m_beir_find_a_query_by_its_picture_and_words(make_root, tmp_path):
    root = make_root("CIRR", tmp_path / "cirr_dataset")
    (split,) = load_splits("CIRR", root, "val", annotations_only=True)
    query = split.queries[1]
    row = {"qid": "8:5", "query_txt": f"{query.text.upper()}!", "query_img_path": f"mbeir/dev/{query.reference}.jpg"}
    for rules in ({}, {"text_rule": "M-BEIR instruction"}):
        found = read("CIRR", root, tmp_path / "list.jsonl", lines(row | {"pos_cand_list": ["8:1"]}), **rules)
        assert ids(found) == [[query.id]]
        assert found[0].query_rule.startswith("1 of 2, list ")
    assert found[0].queries[0].text != query.text
    listed = tmp_path / "ids.txt"
    assert read("CIRR", root, listed, query.id)[0].query_rule == found[0].query_rule


@pytest.mark.parametrize("text_rule", [None, *TEXT_RULES])
def test_fashioniq_s_categories_are_found_whatever_the_text_rule(make_root, tmp_path, caplog, text_rule):
    root = make_root("FashionIQ", tmp_path / "fashionIQ_dataset")
    if text_rule == CORRECTED:
        for category in ("dress", "shirt", "toptee"):
            (root / "captions" / f"correction_dict_{category}.json").write_text('{"bow": "ribbon"}')
    asked = [
        ("mbeir_images/fashioniq_images/dress0.jpg", "Is red and has a bow."),
        ("mbeir_images/fashioniq_images/shirt3.jpg", "Longer and blue."),
        ("mbeir_images/fashioniq_images/toptee3.jpg", "Longer and blue."),
    ]
    rules = {} if text_rule is None else {"text_rule": text_rule}
    found = read("FashionIQ", root, tmp_path / "list.csv", csv_text("fashioniq", *asked), **rules)
    assert ids(found) == [["0"], ["1"], ["1"]]
    (dress,) = read("FashionIQ", root, tmp_path / "list.csv", csv_text("fashioniq", *asked), categories=["dress"])
    assert [query.id for query in dress.queries] == ["0"]
    assert "list.csv: 2 of its 3 queries are not of dress and are left out" in caplog.text


def test_coco_s_pictures_and_only_the_lines_of_the_data_set_that_is_measured(make_root, tmp_path):
    root = make_root("CIRCO", tmp_path / "CIRCO")
    rows = [
        {"dataset": "cirr", "query_text": "Add needles.", "query_image_path": "dev/dev-1047-2-img1.jpg"},
        {
            "dataset": "circo",
            "query_text": "shows 4 instead",
            "query_image_path": "<path_to_user_home>/CIRCO/COCO2017_unlabeled/unlabeled2017/000000004000.jpg",
        },
    ]
    assert ids(read("CIRCO", root, tmp_path / "all_validated_queries.jsonl", lines(*rows))) == [["1"]]
    root = make_root("LaSCo", tmp_path / "LaSCo")
    (split,) = load_splits("LaSCo", root, "val", annotations_only=True)
    query = split.queries[1]
    row = {
        "query_id": f"lasco_q_test_{query.id}",
        "query_text": query.text,
        "query_img_path": f"<path_to_user_home>/LASCO/val2014/COCO_val2014_{int(query.reference):012d}.jpg",
    }
    assert ids(read("LaSCo", root, tmp_path / "list.jsonl", lines(row))) == [[query.id]]


def test_all_queries_of_one_picture_and_one_sentence_are_taken(make_root, tmp_path, caplog):
    root = make_root("CIRCO", tmp_path / "CIRCO")
    file = root / "annotations/val.json"
    entries = json.loads(file.read_text())
    entries[2] |= {"reference_img_id": 4000, "relative_caption": "Shows 4, instead."}
    file.write_text(json.dumps(entries))
    with caplog.at_level(logging.WARNING):
        found = read("CIRCO", root, tmp_path / "list.csv", csv_text("circo", ("000000004000.jpg", "shows 4 instead")))
    assert ids(found) == [["1", "2"]]
    assert "queries of one picture and one sentence are all taken (1 of the list's)" in caplog.text


def test_a_table_of_parquet_is_read_as_its_csv_is(make_root, tmp_path):
    root = make_root("CIRCO", tmp_path / "CIRCO")
    file = tmp_path / "circo_validated.parquet"
    rows = [
        {"dataset": "circo", "query_idx": 1, "query_text": "shows 4 instead", "query_image_ref": "000000004000.jpg"},
        {"dataset": "cirr", "query_idx": 4, "query_text": "Add needles.", "query_image_ref": "dev-1047-2-img1.jpg"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert ids(load_splits("CIRCO", root, "val", only=file, annotations_only=True)) == [["1"]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"query": "shows 4 instead"}]), file)
    with pytest.raises(ProblemsError) as error:
        load_splits("CIRCO", root, "val", only=file, annotations_only=True)
    assert [(one.where, one.message) for one in error.value.problems] == [
        ("", "has no column query_image_ref or query_image_path or query_img_path, but query"),
        ("", "has no column query_text or query_txt, but query"),
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([rows[0] | {"query_text": None}]), file)
    with pytest.raises(ProblemsError, match=r"\(row 1\): has the picture '.*' and the sentence None"):
        load_splits("CIRCO", root, "val", only=file, annotations_only=True)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ProblemsError, match="cannot be read as Parquet"):
        load_splits("CIRCO", root, "val", only=file, annotations_only=True)


def test_what_is_wrong_is_told_at_once(make_root, tmp_path):
    root = make_root("CIRCO", tmp_path / "CIRCO")
    rows = [
        {"query_text": "shows 4 instead", "query_img_path": "000000004000.jpg"},
        {"query_text": "shows 5 instead", "query_img_path": "000000004000.jpg"},
        {"query_text": 7, "query_img_path": "000000004000.jpg"},
    ]
    with pytest.raises(ProblemsError) as error:
        read("CIRCO", root, tmp_path / "list.jsonl", lines(*rows) + "[]\n{\n")
    assert [(problem.where, problem.message) for problem in error.value.problems] == [
        ("line 3", "has the picture '000000004000.jpg' and the sentence 7, expected text"),
        ("line 4", "holds a list, expected an object"),
        ("line 5 column 2", "not valid JSON: Expecting property name enclosed in double quotes"),
        ("", "CIRCO val has no such queries (1): 4000, 'shows 5 instead'"),
    ]
    with pytest.raises(ProblemsError, match="not valid CSV"):
        read("CIRCO", root, tmp_path / "list.csv", csv_text("circo") + 'circo,unresolved,true,1,"shows')
    with pytest.raises(ProblemsError, match="names no query"):
        read("CIRCO", root, tmp_path / "list.csv", csv_text("cirr", ("dev/a.jpg", "red")))


def test_numbers_of_m_beir_s_own_are_refused(make_root, tmp_path):
    root = make_root("CIRCO", tmp_path / "CIRCO")
    content = {"dataset": "circo", "hidden_category": "unresolved", "query_indices": [134, 157]}
    with pytest.raises(ComposirError, match="numbers queries as M-BEIR does") as error:
        read("CIRCO", root, tmp_path / "circo_validated_unsolved_query_indices.json", json.dumps(content))
    assert "query_jsonl/" in str(error.value.fix)


@pytest.mark.parametrize("text", ['{"query_text"', "\0", 100_000 * '{"a":', '"' + 200_000 * "x"])
def test_what_cannot_be_told_is_no_list_of_circus_s(make_root, tmp_path, text):
    root = make_root("CIRCO", tmp_path / "CIRCO")
    with pytest.raises(ProblemsError):
        read("CIRCO", root, tmp_path / "list", text)
