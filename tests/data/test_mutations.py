"""Whatever happens to a file of annotations or predictions: clear problems, or every query. Nothing in between."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composir.data import DATASETS, load_splits, stats
from composir.data.annotations import AnnotationsError
from composir.data.fashion200k import NAME_BY_MARK
from composir.data.triplets import Query, Split
from composir.errors import ComposirError, ProblemsError
from composir.evaluation import PROTOCOLS, measure, read_predictions
from composir.evaluation.ranking import check_gallery

from .conftest import serialise

SPLITS = [
    ("CIRR", "val"),
    ("FashionIQ", "val"),
    ("CIRCO", "val"),
    ("CIRCO", "test"),
    ("GeneCIS", "val"),
    ("Fashion200k", "train"),
    ("Fashion200k", "test"),
    ("Shoes", "train"),
    ("Shoes", "val"),
    ("LaSCo", "train"),
    ("LaSCo", "val"),
    ("i-CIR", "test"),
    ("PinPoint", "test"),
    ("EDIR", "test"),
    ("MT-FashionIQ", "val"),
    ("CIRCLED", "val"),
    ("OACIRR", "val"),
    ("own", "val"),
]
SEVERAL_AN_ENTRY = {"PinPoint": "instructions", "MT-FashionIQ": "reference", "CIRCLED": "turns"}
"""The key of the list that has an element for each query."""
ODD_TEXTS = (
    "",
    " ",
    "\0",
    "\u200b",
    "\u2028",
    "\x85",
    "\ufeff",
    "\ud83d",
    "😀",
    "é",
    "\t",
    "\n",
    "/",
    "..",
    "ﷺ",
    "'\"",
)
ODD_VALUES = (None, True, 0, -1, 10**30, 1.5, float("nan"), float("inf"), [], {}, [1], {"a": 1}, *ODD_TEXTS)
ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\n",
    b"\t",
    b"\r",
    b" ",
    b"{",
    b"]",
    b",",
    b'"',
    b"9" * 5000,
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
)


def test_every_data_set_is_mutated():
    assert {dataset for dataset, _ in SPLITS} == set(DATASETS)


@pytest.mark.parametrize(("dataset", "split"), SPLITS)
@given(data=st.data())
def test_a_mutated_file_gives_clear_problems_or_every_query(trees, dataset, split, data):
    tree = {path: serialise(path, content) for path, content in trees[dataset].items()}
    for path in data.draw(st.lists(st.sampled_from(sorted(tree)), min_size=1, max_size=3), label="files"):
        tree[path] = mutate(tree[path], data)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, tree)
        try:
            splits = load_splits(dataset, root, split)
        except AnnotationsError as error:
            assert error.problems
            for problem in error.problems:
                assert Path(problem.file).is_relative_to(root)
                assert problem.message
                assert problem.fix
            str(error).encode()  # can be printed
        except ComposirError as error:
            assert error.fix
            str(error).encode()
        else:
            for one in splits:
                assert len(one.queries) == num_queries(one, root)
                assert len({query.id for query in one.queries}) == len(one.queries)
                assert all(query.reference in one.images for query in one.queries)
                str([query.texts for query in one.queries]).encode()
                assert one.dataset != "own" or all(query.text.strip() for query in one.queries)
                check_gallery(one)
            assert stats(splits)


@pytest.fixture(scope="module")
def whole_splits(trees, tmp_path_factory) -> dict[str, tuple[Split, ...]]:
    """The split that is evaluated of every data set, as read from files that nothing happened to."""
    splits = {}
    for name, dataset in DATASETS.items():
        root = tmp_path_factory.mktemp(name)
        write(root, {path: serialise(path, content) for path, content in trees[name].items()})
        splits[name] = load_splits(name, root, dataset.evaluated)
    return splits


@pytest.mark.parametrize("dataset", DATASETS)
@given(data=st.data())
def test_a_mutated_file_of_predictions_gives_clear_problems_or_every_query(whole_splits, dataset, data):
    splits = whole_splits[dataset]
    files = {name: serialise(name, content) for name, content in predictions(splits).items()}
    for name in data.draw(st.lists(st.sampled_from(sorted(files)), max_size=2), label="files"):
        files[name] = mutate(files[name], data)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, files)
        try:
            rankings = read_predictions([root / name for name in files], splits)
        except ProblemsError as error:
            for problem in error.problems:
                assert folder in problem.file
                assert problem.message
                assert problem.fix
            str(error).encode()
            return
    result = measure({"composed": rankings}, num_resamples=2)
    assert result.num_queries == sum(len(split.queries) for split in splits)
    contents = {name: json.loads(content.decode("utf-8-sig")) for name, content in files.items()}
    for k in PROTOCOLS[dataset].recall_ks:
        expected = [
            sum(
                any(name in right(query, dataset) for name in map(str, predicted(contents, split, number)[:k]))
                for number, query in enumerate(split.queries)
            )
            / len(split.queries)
            for split in splits
        ]
        assert result.metrics[f"recall_at_{k}"] == pytest.approx(sum(expected) / len(splits))


def right(query: Query, dataset: str) -> tuple[str, ...]:
    """Return the answers that recall counts."""
    return query.targets if PROTOCOLS[dataset].any_target else query.targets[:1]


def predictions(splits: tuple[Split, ...]) -> dict[str, Any]:
    """Return files of predictions in each data set's own form, by name; every list is the whole gallery in order."""
    dataset = splits[0].dataset
    lists = [
        {
            query.id: [
                name
                for name in query.gallery or split.gallery
                if not (split.exclude_reference and name in query.references)
            ]
            for query in split.queries
        }
        for split in splits
    ]
    if dataset == "CIRR":
        subsets = {query.id: list(query.subset[:3]) for query in splits[0].queries}
        return {
            "recall.json": {"version": "rc2", "metric": "recall", **lists[0]},
            "recall_subset.json": {"version": "rc2", "metric": "recall_subset", **subsets},
        }
    if dataset == "CIRCO":
        return {"circo.json": {query_id: list(map(int, names)) for query_id, names in lists[0].items()}}
    if dataset == "FashionIQ":
        return {
            f"{split.category}.val.json": [
                {"candidate": query.reference, "captions": ["a", "b"], "ranking": found[query.id]}
                for query in split.queries
            ]
            for split, found in zip(splits, lists, strict=True)
        }
    if dataset == "PinPoint":
        lists_by_key = {query_id.removeprefix("query_"): names for query_id, names in lists[0].items()}
        return {"all.json": {key: {"retrieved_items": names} for key, names in lists_by_key.items()}}
    if splits[0].category:
        return {"all.json": {split.category: found for split, found in zip(splits, lists, strict=True)}}
    return {"all.json": lists[0]}


def predicted(contents: dict[str, Any], split: Split, number: int) -> list[Any]:
    """Return what the files say of a query, read without the readers."""
    query_id = split.queries[number].id
    if split.dataset == "FashionIQ":
        return contents[f"{split.category}.val.json"][number]["ranking"]
    content = next(iter(contents.values()))
    if split.dataset == "PinPoint":
        return content[query_id.removeprefix("query_")]["retrieved_items"]
    return content[split.category][query_id] if split.category else content[query_id]


def write(root: Path, files: dict[str, bytes]) -> None:
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def mutate(content: bytes, data: st.DataObject) -> bytes:
    """Return the file with one thing changed: of its JSON where it is JSON, else of its bytes."""
    try:
        tree = json.loads(content)
    except ValueError:
        tree = None
    if isinstance(tree, (list, dict)) and tree and data.draw(st.booleans(), label="as JSON"):
        return json.dumps(mutate_json(tree, data)).encode()
    start = data.draw(st.integers(0, len(content)), label="start")
    end = data.draw(st.integers(start, min(len(content), start + 80)), label="end")
    kind = data.draw(st.sampled_from(["truncate", "delete", "repeat", "insert", "repeat line", "swap lines"]))
    if kind == "truncate":
        return content[:start]
    if kind == "delete":
        return content[:start] + content[end:]
    if kind == "repeat":
        return content[:end] + content[start:end] + content[end:]
    if kind == "insert":
        return content[:start] + data.draw(st.sampled_from(ODD_BYTES)) + content[start:]
    lines = content.splitlines(keepends=True) or [b""]
    first, second = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    if kind == "repeat line":
        lines.insert(second, lines[first])
    else:
        lines[first], lines[second] = lines[second], lines[first]
    return b"".join(lines)


def mutate_json(tree: Any, data: st.DataObject) -> Any:
    """Return the tree with one node dropped, replaced, repeated, swapped with another, or with odd text in it."""
    tree = copy.deepcopy(tree)
    places = list(nodes(tree))
    outermost = [place for place in places if place[0] is tree]
    container, key = data.draw(st.sampled_from(outermost) | st.sampled_from(places), label="node")
    value = container[key]
    kind = data.draw(st.sampled_from(["drop", "replace", "repeat", "swap", "odd text"]), label="kind")
    if kind == "drop":
        del container[key]
    elif kind == "replace":
        container[key] = data.draw(st.sampled_from(ODD_VALUES), label="value")
    elif kind == "repeat" and isinstance(container, list):
        container.insert(data.draw(st.integers(0, len(container))), copy.deepcopy(value))
    elif kind == "odd text" and isinstance(value, str):
        place = data.draw(st.integers(0, len(value)))
        container[key] = value[:place] + data.draw(st.sampled_from(ODD_TEXTS)) + value[place:]
    else:
        other, other_key = data.draw(st.sampled_from(places), label="other node")
        container[key], other[other_key] = copy.deepcopy(other[other_key]), copy.deepcopy(value)
    return tree


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every place of the tree as its container and the key or index there."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield tree, key
        if isinstance(value, (list, dict)):
            yield from nodes(value)


def num_queries(split: Split, root: Path) -> int:
    """Return how many queries the annotation files hold, counted without the readers."""
    if split.dataset == "Fashion200k":
        return num_fashion200k(split.name, root)
    assert split.file is not None
    if split.dataset == "PinPoint":
        return pyarrow.parquet.read_metadata(split.file).num_rows
    text = split.file.read_text(encoding="utf-8-sig")
    if split.dataset in ("i-CIR", "EDIR"):
        return sum(bool(line.strip()) for line in text.split("\n"))
    entries = json.loads(text)
    if split.dataset in SEVERAL_AN_ENTRY:
        return sum(len(entry[SEVERAL_AN_ENTRY[split.dataset]]) for entry in entries)
    if split.dataset == "Shoes":
        train = (root / "train_im_names.txt").read_text(encoding="utf-8-sig").split()
        of_train = [entry["ImageName"] in train and entry["ReferenceImageName"] in train for entry in entries]
        return sum(of_train) if split.name == "train" else len(entries) - sum(of_train)
    return len(entries)


def num_fashion200k(split: str, root: Path) -> int:
    if split == "test":
        lines = (root / "test_queries.txt").read_text(encoding="utf-8-sig").split("\n")
        return sum(bool(line.strip()) for line in lines)
    lines = [
        line
        for file in root.glob("labels/*_train_detect_all.txt")
        for line in file.read_text(encoding="utf-8-sig").split("\n")
        if line.strip()
    ]
    captions = {line.split("\t")[0]: line.split("\t")[2].strip().translate(NAME_BY_MARK) for line in lines}.values()
    return sum(any(one_word_apart(caption, other) for other in captions) for caption in captions)


def one_word_apart(caption: str, other: str) -> bool:
    first, second = caption.split(), other.split()
    return caption != other and any(
        first[:here] + first[here + 1 :] == second[:there] + second[there + 1 :]
        for here in range(len(first))
        for there in range(len(second))
    )
