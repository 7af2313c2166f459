from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from composir.evaluation import signature_fields, signature_text


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr("composir.version.version", lambda name: {"composir": "1.2.3"}[name])


@pytest.mark.usefixtures("installed")
def test_the_signature_of_cirr(make_split):
    fields = signature_fields([make_split([], 3)], weights_hash="abc123")
    assert signature_text(fields) == (
        "dataset:CIRR|split:val|gallery:original|reference:excluded|text:as-annotated"
        "|ties:pessimistic|metrics:1|weights:abc123|composir:1.2.3"
    )


@pytest.mark.usefixtures("installed")
def test_the_signature_of_fashioniq_names_its_categories(make_split):
    rules = {"dataset": "FashionIQ", "exclude_reference": False}
    splits = [make_split([], 3, category=category, **rules) for category in ("shirt", "dress")]
    assert signature_text(signature_fields(splits, weights_hash="abc123")) == (
        "dataset:FashionIQ|split:val|categories:dress,shirt|gallery:original|reference:kept|text:as-annotated"
        "|ties:pessimistic|metrics:1|weights:abc123|composir:1.2.3"
    )


def test_a_data_set_has_its_own_version_of_the_metrics(make_split):
    """PinPoint's figures changed with its published evaluator; those of CIRR did not, and go on to compare."""
    versions = {
        dataset: signature_fields([make_split([], 3, dataset=dataset)], weights_hash="abc")["metrics"]
        for dataset in ("CIRR", "PinPoint", "EDIR")
    }
    assert versions == {"CIRR": "1", "PinPoint": "2", "EDIR": "2"}


def test_a_checkout_that_is_not_installed_says_so(monkeypatch, make_split):
    def not_installed(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("composir.version.version", not_installed)
    assert signature_fields([make_split([], 3)], weights_hash="abc123")["composir"] == "uninstalled"
