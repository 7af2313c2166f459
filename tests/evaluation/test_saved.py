"""Rankings in a file: what goes in comes out to the bit, and a file that is not whole is never read."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as load_bytes
from safetensors.numpy import load_file, save_file

from composir.data.triplets import Query
from composir.errors import ComposirError
from composir.evaluation import Saved, find_rankings, load_groups, load_rankings, measure, rank, save_rankings
from composir.evaluation.saved import digest

NUM_IMAGES = 60
SUBSET = ("g3", "g7", "g1", "g5", "g2")
ENDING = (
    "expected a file written by --save-rankings; "
    "fix: save the rankings again: composir evaluate --model ... --save-rankings FILE"
)


def ranked(splits, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        rank(torch.rand(len(split.queries), len(split.gallery), generator=generator), split) for split in splits
    )


@pytest.fixture
def cirr(make_split, make_query):
    """A split of three queries, each with two right answers and a subset."""
    queries = [make_query(number, "g0", [f"g{number + 1}", "g9"], SUBSET, "é 红") for number in range(3)]
    return make_split(queries, NUM_IMAGES)


@pytest.fixture
def result(cirr):
    kinds = ("composed", "image_only", "text_only")
    return measure({kind: ranked([cirr], seed) for seed, kind in enumerate(kinds)}, weights_hash="abc123")


@pytest.fixture
def file(result, tmp_path):
    save_rankings(result, tmp_path / "new" / "rankings.safetensors")
    return tmp_path / "new" / "rankings.safetensors"


@pytest.fixture
def rewrite(file):
    """Write the file again with changed arrays, document or metadata, its digest fitting."""

    whole = file.read_bytes()

    def write(change_tensors=None, change_document=None, metadata=None):
        tensors = load_bytes(whole)
        document = json.loads(tensors["splits"].tobytes())
        if change_document:
            change_document(document)
        tensors["splits"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
        if change_tensors:
            change_tensors(tensors)
        fitting = {"format": "composir rankings", "version": "1", "digest": digest(tensors)}
        save_file(tensors, file, metadata={**fitting, **(metadata or {})})
        return file

    return write


def assert_equal(one, other):
    """Compare two results field by field, rankings to the bit."""
    assert one.to_json() == other.to_json()
    assert one.rankings.keys() == other.rankings.keys()
    for kind, rankings in one.rankings.items():
        for first, second in zip(rankings, other.rankings[kind], strict=True):
            assert dataclasses.replace(first.split, images={}) == dataclasses.replace(second.split, images={})
            for name in ("top", "scores", "target_ranks"):
                assert getattr(first, name).dtype == getattr(second, name).dtype
                np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
            assert first.subset == second.subset


def assert_says(file, message):
    with pytest.raises(ComposirError) as error:
        load_rankings(file)
    assert str(error.value) == f"{file}: {message}; {ENDING}"


def measured(saved: Saved):
    return measure(saved.rankings, signature=saved.signature_fields)


def test_a_result_comes_back_to_the_bit(result, file):
    saved = load_rankings(file)
    assert_equal(measured(saved), result)
    assert (saved.weights_hash, saved.path, saved.seed) == ("abc123", file, None)
    assert saved.signature_fields == result.signature_fields
    assert saved.rankings["composed"][0].split.images == {}
    assert [path.name for path in file.parent.iterdir()] == ["rankings.safetensors"]


def test_the_splits_of_a_data_root_bring_their_images(cirr, file):
    saved = load_rankings(file, [cirr])
    assert all(ranking.split is cirr for rankings in saved.rankings.values() for ranking in rankings)


def test_categories_aspects_and_galleries_of_queries_come_back(make_split, make_query, tmp_path):
    rules = {"dataset": "FashionIQ", "exclude_reference": False}
    splits = [make_split([make_query(0, "g0", ["g1"])], 60, category=name, **rules) for name in ("dress", "shirt")]
    circo = make_split([make_query(0, "g0", ["g1", "g2"], aspects=["addition"])], 60, dataset="CIRCO")
    genecis = make_split([make_query(0, "g0", ["g1"], gallery=["g1", "g4", "g5", "g6"])], 60, dataset="GeneCIS")
    for chosen in (splits, [circo], [genecis]):
        result = measure({"composed": ranked(chosen)})
        save_rankings(result, tmp_path / "file")
        assert_equal(measured(load_rankings(tmp_path / "file", chosen)), result)


def test_a_ranking_without_subsets_or_scores_comes_back(cirr, tmp_path):
    (ranking,) = ranked([cirr])
    unknown = np.full_like(ranking.scores, np.nan)
    half = dataclasses.replace(ranking, scores=unknown, subset=((),) * 3, target_ranks=np.zeros(3, np.int64))
    result = measure({"composed": [half]})
    save_rankings(result, tmp_path / "file")
    assert_equal(measured(load_rankings(tmp_path / "file")), result)


def test_a_ranking_cut_to_fewer_places_comes_back(cirr, tmp_path):
    (ranking,) = ranked([cirr])
    cut = {"top": ranking.top[:, :7], "scores": ranking.scores[:, :7], "target_ranks": ranking.target_ranks[::-1]}
    result = measure({"composed": [dataclasses.replace(ranking, **cut)]})
    save_rankings(result, tmp_path / "file")
    assert_equal(measured(load_rankings(tmp_path / "file")), result)


def test_the_seed_is_that_of_the_recipe_beside(file):
    recipe = file.with_name("recipe.toml")
    recipe.write_text("seed = 7\n")
    assert load_rankings(file).seed == 7
    recipe.write_text("seed = 'seven'\n")
    assert load_rankings(file).seed is None
    recipe.write_text("seed = \n")
    with pytest.raises(ComposirError, match=r"recipe\.toml: is not TOML"):
        load_rankings(file)


def test_the_version_is_that_of_the_file_and_not_of_the_reader(rewrite):
    saved = load_rankings(rewrite(change_document=lambda document: document.update(composir="0.0.1", ties="lucky")))
    assert saved.signature_fields["composir"] == "0.0.1"
    assert saved.signature_fields["ties"] == "lucky"
    assert measured(saved).signature.endswith("|ties:lucky|metrics:1|weights:abc123|composir:0.0.1")


# -- files that are not whole ------------------------------------------------------------------------------------------


def test_no_file(tmp_path):
    with pytest.raises(ComposirError) as error:
        load_rankings(tmp_path / "none")
    assert str(error.value) == (
        f"{tmp_path}/none: no such file; "
        "fix: save the rankings again: composir evaluate --model ... --save-rankings FILE"
    )


@pytest.mark.parametrize("content", [b"", b"{}", b"not rankings at all", b"\x08\0\0\0\0\0\0\0{}      "])
def test_another_file(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ComposirError) as error:
        load_rankings(tmp_path / "file")
    assert str(error.value).startswith(f"{tmp_path}/file: ")
    assert str(error.value).endswith(ENDING)


def test_a_folder(tmp_path):
    with pytest.raises(ComposirError, match=r"cannot be read \(.*\); expected a file written by --save-rankings"):
        load_rankings(tmp_path)


def test_other_tensors(tmp_path):
    save_file({"a": np.zeros(3)}, tmp_path / "file")
    assert_says(tmp_path / "file", "is 'no rankings', version None")


def test_a_later_version(rewrite):
    assert_says(rewrite(metadata={"version": "2"}), "is 'composir rankings', version '2'")


def test_a_file_that_was_changed(file, rewrite):
    message = "was changed after it was written (its digest does not fit)"
    assert_says(rewrite(metadata={"digest": "0" * 64}), message)
    content = bytearray(rewrite().read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert_says(file, message)


def drop(name):
    return lambda tensors: tensors.pop(name)


def put(name, make):
    def change(tensors):
        tensors[name] = np.ascontiguousarray(make(tensors[name].copy()))

    return change


def with_first(value):
    def change(array):
        array[0, 0] = value
        return array

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("splits"), "KeyError: 'splits'"),
        (put("splits", lambda array: array[:-1]), "JSONDecodeError: Expecting ',' delimiter: "),
        (drop("0.composed.top"), "ValueError: no composed rankings in it"),
        (drop("0.image_only.subset"), "KeyError: '0.image_only.subset'"),
        (put("0.composed.top", lambda array: array[:2]), "the shapes (2, 50) and (3, 50) for 3 queries"),
        (put("0.composed.scores", lambda array: array[:, :9]), "the shapes (3, 50) and (3, 9) for 3 queries"),
        (put("0.composed.target_ranks", lambda array: array[:2]), "the shapes (2,) and (3, 5) for 3 queries"),
        (put("0.composed.subset", lambda array: array[:1]), "the shapes (3,) and (1, 5) for 3 queries"),
        (put("0.composed.top", lambda array: array.astype(float)), "TypeError: 0.composed.top is float64"),
        (put("0.composed.top", with_first(60)), "ValueError: 0.composed.top has a place that is not in the list"),
        (put("0.composed.top", with_first(-2)), "ValueError: 0.composed.top has a place that is not in the list"),
        (put("0.text_only.subset", with_first(5)), "0.text_only.subset has a place that is not in the list"),
        (put("0.composed.subset", lambda array: 0 * array), "ValueError: 0.composed.subset has a place twice in a row"),
        (put("0.composed.target_ranks", lambda array: array + 60), "has a rank outside the gallery of 60"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_ranking(rewrite, change, message):
    file = rewrite(change)
    with pytest.raises(ComposirError) as error:
        load_rankings(file)
    assert str(error.value).startswith(f"{file}: is damaged (")
    assert message in str(error.value)
    assert str(error.value).endswith(ENDING)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda document: document.update(splits=[]), "is damaged (ValueError: no split in it)"),
        (lambda document: document.update(splits=3), "is damaged (TypeError: 3 is no list)"),
        (lambda document: document.pop("weights"), "is damaged (KeyError: 'weights')"),
        (lambda document: document.update(ties=None), "is damaged (TypeError: None is no str)"),
        (lambda document: document["splits"][0].pop("text_rule"), "is damaged (KeyError: 'text_rule')"),
        (lambda document: document["splits"][0].update(dataset=["CIRR"]), "is damaged (TypeError: ['CIRR'] is no str)"),
        (lambda document: document["splits"][0].update(exclude_reference=1), "is damaged (TypeError: 1 is no bool)"),
        (
            lambda document: document["splits"][0]["gallery"].append("g0"),
            "is damaged (ValueError: the gallery names an image twice)",
        ),
        (
            lambda document: document["splits"][0]["queries"][0].update(texts="red"),
            "is damaged (TypeError: 'red' is no list)",
        ),
        (
            lambda document: document["splits"][0]["queries"][0].update(targets=["g99"]),
            "is damaged (1 problem: CIRR val (query 0): target 'g99' is not among the 60 images of the gallery; "
            "fix: run `composir data check --dataset CIRR` and complete the split file)",
        ),
        (
            lambda document: document["splits"][0]["queries"].clear(),
            "is damaged (ValueError: 0.composed has the shapes (3, 50) and (3, 50) for 0 queries)",
        ),
    ],
)
def test_a_document_that_is_no_split(rewrite, change, message):
    assert_says(rewrite(change_document=change), message)


@given(data=st.data())
def test_whatever_happens_to_its_bytes_a_file_is_refused_or_the_same(result, file, data):
    whole = file.read_bytes()
    content = bytearray(whole)
    if data.draw(st.booleans(), "cut off"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3), "changed bytes")):
        if content:
            # Half of the places are in the header, where a byte means more.
            last = len(content) - 1
            place = data.draw(st.one_of(st.integers(0, min(1500, last)), st.integers(0, last)))
            content[place] = data.draw(st.integers(0, 255))
    changed = file.with_name("changed")
    changed.write_bytes(content)
    try:
        saved = load_rankings(changed)
    except ComposirError as error:
        assert bytes(content) != whole
        assert str(error).startswith(f"{changed}: ")
        assert "fix: " in str(error)
    else:
        assert_equal(measured(saved), result)


ODD_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 99), st.floats(), st.text(max_size=3), st.lists(st.text(max_size=3))
)


@given(data=st.data())
def test_whatever_a_file_holds_it_is_refused_or_measured(rewrite, data):
    """A file whose digest fits but that another program wrote: never a traceback, never fewer queries."""

    def change_document(document):
        split = document["splits"][0]
        part = data.draw(st.sampled_from([document, split, *split["queries"]]))
        key = data.draw(st.sampled_from(sorted(part)))
        part[key] = data.draw(ODD_VALUES)

    def change_tensors(tensors):
        name = data.draw(st.sampled_from(sorted(set(tensors) - {"splits"})))
        array = tensors[name].copy()
        kind = data.draw(st.sampled_from(["value", "dtype", "shape", "fewer"]))
        if kind == "value":
            array.flat[data.draw(st.integers(0, array.size - 1))] = data.draw(st.integers(-3, 70))
        elif kind == "dtype":
            array = array.astype(data.draw(st.sampled_from([np.int64, np.float64, np.uint8, np.bool_, np.float16])))
        elif kind == "shape":
            array = array.reshape(-1, *data.draw(st.sampled_from([(), (1,), (3, 1)])))
        else:
            array = array[: data.draw(st.integers(0, 2))]
        tensors[name] = array

    which = data.draw(st.sampled_from(["document", "tensors"]))
    file = rewrite(
        **({"change_document": change_document} if which == "document" else {"change_tensors": change_tensors})
    )
    try:
        found = measured(load_rankings(file))
    except ComposirError as error:
        assert str(error)
    else:
        assert found.num_queries == 3
        assert all(0 <= value <= 1 for value in found.metrics.values())


# -- files that do not fit the data root -------------------------------------------------------------------------------


def with_query(split, number, **changes):
    queries = list(split.queries)
    queries[number] = dataclasses.replace(queries[number], **changes)
    return dataclasses.replace(split, queries=tuple(queries))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split: [], "the splits are CIRR val and nothing"),
        (lambda split: [split, split], "the splits are CIRR val and CIRR val, CIRR val"),
        (lambda split: [dataclasses.replace(split, dataset="own")], "dataset is 'CIRR' and 'own'"),
        (lambda split: [dataclasses.replace(split, name="train")], "name is 'val' and 'train'"),
        (lambda split: [dataclasses.replace(split, category="dress")], "category is '' and 'dress'"),
        (lambda split: [dataclasses.replace(split, gallery_rule="x")], "gallery_rule is 'original' and 'x'"),
        (lambda split: [dataclasses.replace(split, exclude_reference=False)], "exclude_reference is True and False"),
        (lambda split: [dataclasses.replace(split, text_rule="first")], "text_rule is 'as annotated' and 'first'"),
        (
            lambda split: [dataclasses.replace(split, gallery=split.gallery[:-1])],
            "the gallery of CIRR val differs (60 and 59 images)",
        ),
        (
            lambda split: [dataclasses.replace(split, gallery=split.gallery[::-1])],
            "the gallery of CIRR val differs (60 and 60 images)",
        ),
        (lambda split: [dataclasses.replace(split, queries=split.queries[:2])], "CIRR val has 3 and 2 queries"),
        (
            lambda split: [with_query(with_query(split, 1, text="is blue"), 2, text="is blue")],
            "2 of 3 queries of CIRR val are not the same (first 1)",
        ),
        (
            lambda split: [with_query(split, 2, targets=("g4",))],
            "1 of 3 queries of CIRR val are not the same (first 2)",
        ),
    ],
)  # fmt: skip
def test_another_split_than_the_one_that_was_ranked(cirr, file, change, message):
    with pytest.raises(ComposirError) as error:
        load_rankings(file, change(cirr))
    assert str(error.value) == (
        f"{file}: {message} in the file and the data root; "
        "expected the annotations and rules that the rankings were made with; "
        "fix: pass that --data-root, --split, --gallery and reference rule, or save the rankings again"
    )


def test_every_field_of_a_query_is_in_the_file(file):
    document = json.loads(load_file(file)["splits"].tobytes())
    assert set(document["splits"][0]["queries"][0]) == {field.name for field in dataclasses.fields(Query)}


# -- sources -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(cirr, tmp_path, monkeypatch):
    """A folder with runs r0 and r1 (rankings in best/), a checkpoint c, a file f and a run o of an older version."""
    monkeypatch.chdir(tmp_path)
    for name, place, seed in (("r0", "r0/best", 0), ("r1", "r1/best", 1), ("c", "c", 2), ("x=1,y", "x=1,y/best", 3)):
        Path(place).mkdir(parents=True)
        Path(place, "recipe.toml").write_text(f"seed = {seed}\n")
        result = measure({"composed": ranked([cirr], seed)}, weights_hash=name)
        save_rankings(result, Path(place, "rankings.safetensors"))
    save_rankings(measure({"composed": ranked([cirr])}, weights_hash="f"), Path("f"))
    Path("o/best").mkdir(parents=True)
    Path("empty").mkdir()
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_sources_are_paths_or_names_of_groups():
    groups = load_groups(["r0", "g=r1,c", "f", "g=f", "x=1,y", "n=x=1,y", "./r1/best/"])
    assert {name: [str(one.path) for one in group] for name, group in groups.items()} == {
        "r0": ["r0/best/rankings.safetensors"],
        "g": ["r1/best/rankings.safetensors", "c/rankings.safetensors", "f"],
        "f": ["f"],
        "x=1,y": ["x=1,y/best/rankings.safetensors"],
        "n": ["x=1,y/best/rankings.safetensors"],
        "r1/best": ["r1/best/rankings.safetensors"],
    }
    assert [one.seed for one in groups["g"]] == [1, 2, None]
    assert [one.weights_hash for one in groups["g"]] == ["r1", "c", "f"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (
            ["r0", "./r0"],
            "./r0 is given twice; expected each result once; "
            "fix: to compare it with itself, name both: a=./r0 b=./r0",
        ),
        (["=r0"], "'=r0' has no name where one must be; expected PATH, NAME=PATH or NAME=PATH,PATH"),
        (["g="], "'g=' has no path where one must be; expected PATH, NAME=PATH or NAME=PATH,PATH"),
        (["g=r0,,r1"], "'g=r0,,r1' has no path where one must be; expected PATH, NAME=PATH or NAME=PATH,PATH"),
        (
            ["r0", "r7"],
            "r7: no such file or folder; "
            "expected a file of --save-rankings, a checkpoint folder, a run folder, or NAME=PATH[,PATH...]; "
            "fix: composir evaluate --model DIR --data-root DIR --save-rankings FILE writes such a file",
        ),
        (
            ["o"],
            "o: holds no rankings.safetensors; "
            "expected a checkpoint folder with rankings.safetensors, or a run folder whose best/ has it; "
            "fix: composir evaluate --model o/best --data-root DIR --save-rankings o/best/rankings.safetensors",
        ),
        (
            ["empty"],
            "empty: holds no rankings.safetensors; "
            "expected a checkpoint folder with rankings.safetensors, or a run folder whose best/ has it; "
            "fix: composir evaluate --model empty --data-root DIR --save-rankings empty/rankings.safetensors",
        ),
    ],
)  # fmt: skip
def test_sources_that_are_none(sources, message):
    with pytest.raises(ComposirError) as error:
        load_groups(sources)
    assert str(error.value) == message


@pytest.mark.usefixtures("folder")
def test_the_rankings_of_a_folder():
    assert find_rankings(Path("c")) == Path("c/rankings.safetensors")
    assert find_rankings(Path("f")) == Path("f")


# -- what belongs together, and galleries of queries -------------------------------------------------------------------


def test_a_file_of_before_there_were_groups(rewrite, result):
    def make_old(document):
        for split in document["splits"]:
            split.pop("query_rule")
            for query in split["queries"]:
                for name in ("group", "negatives", "further_references", "num_listed_targets", "num_listed_negatives"):
                    query.pop(name)

    saved = load_rankings(rewrite(change_document=make_old))
    assert saved.rankings["composed"][0].split.queries == result.rankings["composed"][0].split.queries
    assert measured(saved).to_json() == result.to_json()


@pytest.fixture
def instances(make_split, make_query):
    """A split of three queries, of which two share a gallery of their own."""
    bell, cup = [f"g{place}" for place in range(9)], [f"g{place}" for place in range(20, 60)]
    queries = [
        make_query(
            0,
            "g10",
            ["g1", "g2"],
            gallery=bell,
            group="bell",
            negatives=["g3"],
            further_references=["g11"],
            num_listed=(3, 4),
        ),
        make_query(1, "g10", ["g4"], gallery=bell, group="bell"),
        make_query(2, "g12", ["g30"], gallery=cup, group="cup"),
    ]
    split = make_split(queries, NUM_IMAGES, dataset="i-CIR")
    return dataclasses.replace(split, query_rule="3 of 9, list 0a1b2c3d")


def test_a_gallery_of_queries_is_kept_once(instances, tmp_path):
    result = measure({"composed": ranked([instances])}, weights_hash="x")
    save_rankings(result, tmp_path / "file")
    document = json.loads(load_bytes((tmp_path / "file").read_bytes())["splits"].tobytes())
    assert [len(own) for own in document["splits"][0]["galleries"]] == [9, 40]
    assert [query["gallery"] for query in document["splits"][0]["queries"]] == [0, 0, 1]
    saved = load_rankings(tmp_path / "file")
    (loaded,) = saved.rankings["composed"]
    assert loaded.split.queries == instances.queries
    assert loaded.right_ranks.tolist() == result.rankings["composed"][0].right_ranks.tolist()
    assert saved.signature_fields["queries"] == "3 of 9, list 0a1b2c3d"
    assert measured(saved).metrics == result.metrics


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split, ranks: split["queries"][0].update(gallery=7), "IndexError"),
        (lambda split, ranks: split["galleries"][0].append(99), "IndexError"),
        (lambda split, ranks: split["queries"][0].update(group=3), "TypeError: 3 is no str"),
        (lambda split, ranks: ranks.__setitem__((0, 0), 61), "has a rank outside the gallery of 60"),
        (lambda split, ranks: ranks.resize((3, 1), refcheck=False), "has the shape (3, 1) for 3 queries, 2 answers"),
    ],
)
def test_groups_and_galleries_that_are_none(instances, tmp_path, change, message):
    file = tmp_path / "file"
    save_rankings(measure({"composed": ranked([instances])}, weights_hash="x"), file)
    tensors = load_bytes(file.read_bytes())
    document = json.loads(tensors["splits"].tobytes())
    tensors["0.composed.right_ranks"] = tensors["0.composed.right_ranks"].copy()
    change(document["splits"][0], tensors["0.composed.right_ranks"])
    tensors["splits"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    save_file(tensors, file, metadata={"format": "composir rankings", "version": "1", "digest": digest(tensors)})
    with pytest.raises(ComposirError) as error:
        load_rankings(file)
    assert "is damaged" in str(error.value)
    assert message in str(error.value)
