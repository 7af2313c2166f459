"""The Python interface that is relied on from outside: names, parameters, and what comes back."""

from __future__ import annotations

import importlib
import importlib.resources
import inspect
import subprocess
import sys

import pytest
import torch

import composir
import composir.models
from composir.models.composer import Composer

EXPORTS = (
    "composir",
    "composir.models",
    "composir.data",
    "composir.evaluation",
    "composir.search",
    "composir.training",
)


@pytest.mark.parametrize("module", EXPORTS)
def test_every_exported_name_is_there_and_is_completed(module):
    found = importlib.import_module(module)
    assert [name for name in found.__all__ if not hasattr(found, name)] == []
    assert set(found.__all__) <= set(dir(found))
    with pytest.raises(AttributeError, match=r"has no attribute 'nothing'"):
        _ = found.nothing


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (composir, "load", ["source"]),
        (composir, "save_pretrained", ["model", "folder"]),
        (composir, "push_to_hub", ["folder", "repo_id"]),
        (composir, "similarity", ["query", "target"]),
        (composir, "Retriever", ["index"]),
        (composir.Retriever, "search", ["self", "images", "text"]),
        (composir.models, "GatedFusion", ["hidden_size", "text_size", "alpha_init"]),
        (composir.models.GatedFusion, "forward", ["self", "image_tokens", "text_tokens", "text_mask"]),
        (Composer, "embed_query", ["self", "images", "texts"]),
        (Composer, "embed_target", ["self", "images"]),
        (Composer, "encode_query", ["self", "image_tokens", "input_ids", "attention_mask"]),
        (Composer, "encode_target", ["self", "image_tokens"]),
        (
            Composer,
            "training_losses",
            ["self", "reference_tokens", "target_tokens", "input_ids", "attention_mask"],
        ),
    ],
    ids=lambda value: getattr(value, "__name__", value) if not isinstance(value, list) else "",
)
def test_documented_names_take_the_documented_parameters(owner, name, parameters):
    taken = inspect.signature(getattr(owner, name)).parameters
    assert list(taken)[: len(parameters)] == parameters
    assert all(taken[one].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for one in parameters)


def test_the_number_of_answers_of_a_search_is_ten():
    assert inspect.signature(composir.Retriever.search).parameters["top_k"].default == 10


def test_the_gate_is_made_and_called_as_documented():
    fusion = composir.models.GatedFusion(8)
    assert fusion.alpha.item() == 0.5
    assert fusion(torch.ones(2, 5, 8), torch.ones(2, 3, 8)).shape == (2, 5, 8)
    wider = composir.models.GatedFusion(hidden_size=8, text_size=6, alpha_init=0.0)
    tokens = torch.rand(1, 5, 8)
    mask = torch.tensor([[1, 1, 0]])
    assert torch.equal(wider(image_tokens=tokens, text_tokens=torch.ones(1, 3, 6), text_mask=mask), tokens)


def test_the_version_is_that_of_the_package(monkeypatch):
    monkeypatch.setattr("composir.version.version", lambda name: {"composir": "1.2.3"}[name])
    assert composir.__version__ == "1.2.3"


def test_looking_at_what_there_is_imports_no_torch():
    code = (
        "import sys, composir.models, composir.cli; dir(composir); dir(composir.models); composir.__version__;"
        "print([name for name in ('torch', 'transformers', 'numpy', 'PIL', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_package_says_that_it_has_types():
    files = importlib.resources.files("composir")
    assert files.joinpath("py.typed").is_file()
