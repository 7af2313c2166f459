"""The table of published figures, what may stand beside a result, and the command that prints it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from composir.data import DATASETS, load_splits
from composir.evaluation import Result, signature_fields
from composir.evaluation.beside import SIZES, STANDS_FOR, published_beside
from composir.evaluation.published import (
    AS_ANNOTATED,
    BOTH_CAPTIONS,
    FASHIONIQ_KEYS,
    KEYS,
    NOT_STATED,
    PUBLISHED,
    TRAINED,
    ZERO_SHOT,
)
from composir.models.catalogue import MODELS

from .full_sizes import CIRR, CIRR_VAL, FASHIONIQ, FASHIONIQ_UNION, FASHIONIQ_VAL

ROUNDED = 0.0101
"""How far a mean of two or three figures with two decimals can be from that of the figures before they were rounded,
after it was rounded or cut to two decimals itself."""

each = pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: f"{row.method} on {row.rules.dataset}")


@each
def test_a_row_has_its_sources_and_rules(row):
    place = re.compile(r"(github\.com/[\w.-]+/[\w.-]+, |arXiv \d{4}\.\d{5}, table \d|PDV \(Tursun et al\.\), table \d)")
    assert re.search(r"\b20\d\d\b", row.source), "a paper has a year"
    assert place.match(row.figures_from)
    assert row.rules_from == NOT_STATED or row.rules_from.startswith("github.com/")
    assert (row.rules_from == NOT_STATED) == (row.rules.text == NOT_STATED)
    assert row.training in {TRAINED, ZERO_SHOT}
    assert row.rules.split in DATASETS[row.rules.dataset].splits
    assert row.rules.gallery in {"original", "val-union", NOT_STATED}
    assert row.rules.reference in {"kept", "excluded", NOT_STATED}


@each
def test_a_row_is_of_one_split_and_states_figures_of_its_data_set_alone(row):
    assert row.figures
    assert row.figures.keys() <= set(KEYS[row.rules.dataset])
    assert all(0 < figure < 100 for figure in row.figures.values())
    dataset = DATASETS[row.rules.dataset]
    assert row.rules.split == (dataset.submitted or dataset.evaluated)
    assert list(row.figures) == [key for key in KEYS[row.rules.dataset] if key in row.figures]


def test_no_method_has_two_rows_under_the_same_rules():
    assert set(Counter((row.method, row.rules) for row in PUBLISHED).values()) == {1}


@each
def test_means_are_those_of_the_figures_they_are_of(row):
    figures = row.figures
    parts = {"mean_r5_rs1": ("recall_at_5", "recall_subset_at_1")}
    for key in FASHIONIQ_KEYS[:2]:
        parts[key] = tuple(f"{category}.{key}" for category in DATASETS["FashionIQ"].categories)
    for mean, of in parts.items():
        if figures.keys() >= {mean, *of}:
            assert figures[mean] == pytest.approx(sum(figures[key] for key in of) / len(of), abs=ROUNDED)


@each
def test_recall_grows_with_k(row):
    for stem in ("recall_at_", "recall_subset_at_", "map_at_"):
        of_stem = [row.figures[key] for key in row.figures if key.startswith(stem)]
        assert of_stem == sorted(of_stem)


def test_sprc_has_the_mean_of_its_categories_and_not_the_misprint():
    (row,) = (row for row in PUBLISHED if row.method == "SPRC" and row.rules.dataset == "FashionIQ")
    assert row.figures["recall_at_10"] == 54.72
    assert "54.92" in row.note
    assert round((49.18 + 55.64 + 59.35) / 3, 2) == 54.72


def test_the_models_by_name_have_the_published_figures():
    methods = {
        "sprc-cirr": "SPRC",
        "sprc-fashioniq": "SPRC",
        "sprc-spn-cirr": "SPRC+SPN",
        "sprc-spn-fashioniq": "SPRC+SPN",
        "bge-vl-base": "BGE-VL-base",
        "bge-vl-large": "BGE-VL-large",
    }
    keys = {
        "cirr": ("CIRR", "recall_at_1"),
        "cirr_subset": ("CIRR", "recall_subset_at_1"),
        "circo": ("CIRCO", "map_at_5"),
        "fashioniq": ("FashionIQ", "recall_at_10"),
    }
    published = {(row.method, row.rules.dataset, key): row.figures[key] for row in PUBLISHED for key in row.figures}
    for name, model in MODELS.items():
        for field, key in keys.items():
            figure = getattr(model.figures, field)
            if figure is not None:
                assert figure == published[(methods[name], *key)]


def test_figures_are_printed_with_the_decimals_of_their_table():
    rows = {(row.method, row.rules.dataset): row for row in PUBLISHED}
    assert rows["ENCODER", "CIRR"].text("recall_at_1") == "46.10"
    assert rows["MagicLens-B (CLIP)", "CIRR"].text("recall_at_1") == "27.0"
    assert rows["MagicLens-B (CLIP)", "CIRR"].text("recall_at_5") == "-"


# -- beside a result ---------------------------------------------------------------------------------------------------


@pytest.fixture
def beside(full_size):
    """Return what may stand beside a result of these sizes and rules: the differences by method."""

    def ask(sizes, rules):
        rankings = full_size(sizes, **rules)
        fields = signature_fields([ranking.split for ranking in rankings], weights_hash="abc")
        result = Result({}, {}, {}, None, fields, {"composed": tuple(rankings)})
        return [(row, differences) for row, differences in published_beside(result)]

    return ask


@pytest.mark.parametrize(
    ("sizes", "rules"),
    [
        ({"": (550, 300)}, CIRR),  # the generated scenes are read as CIRR
        (CIRR_VAL, CIRR | {"name": "train"}),
        ({"dress": (2017, 3817)}, FASHIONIQ),  # the published means are over three
        (FASHIONIQ_VAL, FASHIONIQ | {"gallery_rule": "val-union"}),  # no such gallery
        ({"": (220, 500)}, CIRR | {"dataset": "CIRCO"}),
        ({"": (220, 500)}, CIRR | {"dataset": "GeneCIS"}),
    ],
)
def test_nothing_stands_beside_other_queries_or_images(beside, sizes, rules):
    assert beside(sizes, rules) == []


@pytest.mark.parametrize(
    ("sizes", "rules", "agree"),
    [
        (CIRR_VAL, CIRR, ("test1", "original", "excluded", AS_ANNOTATED)),
        (CIRR_VAL, CIRR | {"exclude_reference": False}, None),
        (CIRR_VAL, CIRR | {"text_rule": "in a prompt"}, ("test1", "original", "excluded", "in a prompt")),
        (FASHIONIQ_VAL, FASHIONIQ, ("val", "original", "kept", BOTH_CAPTIONS)),
        (FASHIONIQ_VAL, FASHIONIQ | {"exclude_reference": True}, None),
        (FASHIONIQ_UNION, FASHIONIQ | {"gallery_rule": "val-union"}, None),
    ],
)
def test_a_row_differs_where_one_of_its_rules_does(beside, sizes, rules, agree):
    rows = beside(sizes, rules)
    assert len(rows) == sum(row.rules.dataset == rules["dataset"] for row in PUBLISHED)
    for row, differences in rows:
        own = (row.rules.split, row.rules.gallery, row.rules.reference, row.rules.text)
        assert (not differences) == (own == agree)


def test_what_is_not_stated_agrees_with_nothing(beside):
    rows = beside(CIRR_VAL, CIRR | {"text_rule": NOT_STATED})
    assert all(differences for row, differences in rows if row.rules.text == NOT_STATED)


def test_the_readers_split_has_rules_that_published_rows_share(real_annotations):
    for dataset, categories in {"CIRR": None, "FashionIQ": ["dress"]}.items():
        split = load_splits(dataset, real_annotations, "val", categories=categories)[0]
        fields = signature_fields([split], weights_hash="abc")
        shared = [
            row
            for row in PUBLISHED
            if (row.rules.dataset, row.rules.gallery) == (dataset, fields["gallery"])
            and (row.rules.reference, row.rules.text) == (fields["reference"], fields["text"])
        ]
        assert len(shared) >= 7


@pytest.mark.parametrize("dataset", ["CIRR", "FashionIQ", "CIRCO"])
def test_text_rules_that_can_be_asked_for_are_called_as_the_published_ones(dataset):
    published = {row.rules.text for row in PUBLISHED if row.rules.dataset == dataset}
    assert len(published & set(DATASETS[dataset].text_rules)) == {"CIRR": 2, "FashionIQ": 4, "CIRCO": 2}[dataset]


def test_sizes_are_of_splits_with_public_answers():
    assert {(dataset, split) for dataset, split, _ in SIZES} >= {(d, val) for (d, _), val in STANDS_FOR.items()}
    assert SIZES["FashionIQ", "val", "original"] == tuple(map(sum, zip(*FASHIONIQ_VAL.values(), strict=True)))
    assert SIZES["FashionIQ", "val", "val-union"] == tuple(map(sum, zip(*FASHIONIQ_UNION.values(), strict=True)))


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_prints_each_row_below_its_rules_with_its_source(run):
    code, out, err = run("published")
    assert code == 0, err
    blocks = out.split("\n\n")
    for row in PUBLISHED:
        rules = row.rules
        heading = (
            f"{rules.dataset} {rules.split}, gallery {rules.gallery}, reference {rules.reference}, text {rules.text}"
        )
        (block,) = (block for block in blocks if block.splitlines()[0] == heading)
        source = f"{row.method}: {row.source}; figures from {row.figures_from}; rules from {row.rules_from}"
        assert any(line.strip().startswith(source) for line in block.splitlines())
        assert row.note in block
    assert re.search(r"^ {2}SPRC +its train split +54\.72 +74\.97$", out, re.MULTILINE)
    assert re.search(r"^ {2}LinCIR \(CLIP-L\) +zero-shot +25\.04 +53\.25 +66\.68 +- +57\.11", out, re.MULTILINE)


def test_the_command_prints_one_data_set_as_json(run):
    code, out, err = run("published", "--dataset", "circo", "--json")
    assert code == 0, err
    rows = json.loads(out)["published"]
    assert [row["method"] for row in rows] == [row.method for row in PUBLISHED if row.rules.dataset == "CIRCO"]
    assert rows[-1]["rules"]["text"] == "concept and caption"
    assert rows[-1]["figures"] == {"map_at_5": 42.2}


def test_a_data_set_without_published_figures_is_an_error(run):
    code, _, err = run("published", "--dataset", "Shoes")
    assert code == 2
    assert "--dataset 'Shoes' is not known; expected CIRR or FashionIQ or CIRCO or PinPoint" in err


def test_the_help_and_the_page_name_the_data_sets(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    _, out, _ = run("published", "--help")
    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    assert all(dataset in out and dataset in page for dataset in KEYS)
    assert "composir published" in page
