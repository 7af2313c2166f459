"""The Python interface that is relied on from outside: names, parameters, and what comes back."""

from __future__ import annotations

import importlib
import importlib.resources
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import composir
import composir.models
from composir.errors import ComposirError, counted
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


def test_one_picture_or_sentence_for_a_list_is_told_in_one_line(shapes_index, shapes_root):
    model = composir.load(shapes_index.parent / "model")
    picture = shapes_root / "dev/val-red-ellipse.png"
    for given, words in (
        (
            (str(picture), "red"),
            "one picture is given, and a list is wanted; fix: pass lists: embed_query([picture",
        ),
        ((picture, ["red"]), "one picture is given"),
        (([picture], "red"), "one sentence is given"),
        (([picture], ["red", "blue"]), "there are 1 picture and 2 sentences; expected a sentence for each picture"),
    ):
        with pytest.raises(ComposirError) as caught:
            model.embed_query(*given)
        assert str(caught.value).startswith(words)
    with pytest.raises(ComposirError, match="one picture is given"):
        model.embed_target(picture)
    assert model.embed_query((picture,), ("red",)).shape == model.embed_query([picture], ["red"]).shape


def test_no_docstring_says_that_nothing_comes_back():
    sources = Path(composir.__file__).parent.rglob("*.py")
    assert [str(file) for file in sources if re.search('"""Return nothing', file.read_text(encoding="utf-8"))] == []


def test_one_is_singular_and_all_else_plural():
    assert [counted(number, "query", "queries") for number in (0, 1, 2, 1000)] == [
        "0 queries", "1 query", "2 queries", "1,000 queries",
    ]  # fmt: skip
    assert counted(1, "file") == "1 file"
    assert counted(2, "file") == "2 files"
