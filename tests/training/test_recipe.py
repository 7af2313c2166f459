from __future__ import annotations

from pathlib import Path

import pytest

from composir.errors import ComposirError
from composir.files import read_toml
from composir.models.backbones import BACKBONES
from composir.training import Recipe, compute_features, load_recipe, parse_value, validate
from composir.training.recipe import FEEDBACK_RECIPE, HEAD_RECIPE, LORA_RECIPE

RECIPES = Path(__file__).parents[2] / "recipes"


def test_mining_needs_look_alikes_to_mix_into():
    with pytest.raises(ComposirError, match="mined_ratio mixes into the look-alikes, and subset"):
        load_recipe({"backbone": "tiny", "mined_ratio": 0.5})


def test_every_shipped_recipe_is_valid_and_used():
    others = {"sprc-cirr.toml", "sprc-fashioniq.toml", HEAD_RECIPE, FEEDBACK_RECIPE, LORA_RECIPE}
    names = {name for backbone in BACKBONES.values() for name in backbone.recipes.values()} | others
    assert names == {file.name for file in RECIPES.glob("*.toml")}
    for name in names:
        validate(read_toml(RECIPES / name))


def test_flags_win_over_the_file_and_the_file_over_the_backbone(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('backbone = "mini"\nbatch_size = 7\nseed = 5\n')
    recipe = load_recipe({"seed": 9}, file)
    assert (recipe.seed, recipe.batch_size) == (9, 7)
    assert recipe.learning_rate == validate(read_toml(RECIPES / "mini.toml")).learning_rate


@pytest.mark.parametrize(("dataset", "div_factor"), [("CIRR", 25.0), ("FashionIQ", 100.0), ("fashioniq", 100.0)])
def test_the_recipe_of_blip2_depends_on_the_data_set(dataset, div_factor):
    recipe = load_recipe({"dataset": dataset, "backbone": "pretrain"})
    assert recipe.div_factor == div_factor
    assert (recipe.betas, recipe.eps, recipe.weight_decay) == ((0.9, 0.98), 1e-7, 0.05)
    assert recipe.fusion == "gate"
    assert recipe.dataset in ("CIRR", "FashionIQ")


def test_a_written_recipe_reads_back_the_same(tmp_path):
    recipe = load_recipe({"backbone": "mini", "seed": 3, "max_steps": 17, "gated_fusion": False})
    file = tmp_path / "recipe.toml"
    file.write_text(recipe.to_toml())
    assert validate(read_toml(file)) == recipe
    assert load_recipe({}, file) == recipe


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bach_size": 3}, ["unknown key 'bach_size' (did you mean 'batch_size'?)"]),
        ({"batch_size": "3"}, ["batch_size = '3': expected a whole number, at least 2 and at most 1,000,000,000"]),
        ({"batch_size": 1}, ["batch_size = 1: expected a whole number, at least 2 and"]),
        ({"learning_rate": -1.0}, ["learning_rate = -1.0: expected a number, above 0 and at most 1,000"]),
        ({"transform": "squarpad"}, ["transform = 'squarpad'", "'targetpad' or 'squarepad'"]),
        ({"target_ratio": 0.5}, ["target_ratio = 0.5: expected a number, at least 1 and at most 100"]),
        ({"blip_model_name": "blip2_cir"}, ["blip_model_name 'blip2_cir' is not known", "blip2_cir_align_prompt"]),
        ({"text_rule": "prompt"}, ["text_rule = 'prompt': expected one of as annotated, in a prompt, M-BEIR"]),
        (
            {"dataset": "Shoes", "text_rule": "in a prompt"},
            ["text_rule = 'in a prompt': expected one of none, as Shoes has one way to make its sentences"],
        ),
        ({"gate_pooling": "mean"}, ["gate_pooling = 'mean'", "'masked' or 'all'"]),
        ({"seeed": 1, "num_epoch": 2}, ["'seeed' (did you mean 'seed'?)", "'num_epoch' (did you mean 'num_epochs'?)"]),
    ],
)
def test_wrong_settings_are_named_with_their_value_all_at_once(settings, words):
    with pytest.raises(ComposirError) as error:
        load_recipe({"backbone": "mini", **settings})
    assert all(word in str(error.value) for word in words), str(error.value)


NUMBERS = [name for name, field in Recipe.model_fields.items() if field.annotation in (int, float)]


@pytest.mark.parametrize("name", [*NUMBERS, "betas"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1e30, 1e30, 10**30, -(10**30), 10**400])
def test_every_number_has_a_range_and_is_named_outside_it(name, value):
    given = [0.9, value] if name == "betas" else value
    with pytest.raises(ComposirError) as error:
        load_recipe({"backbone": "tiny", name: given})
    (message,) = str(error.value).split("; fix: ")[:1]
    assert message.startswith(f"{name} = ")
    assert ": expected " in message
    assert " at least " in message or " above " in message
    assert " at most " in message or " below " in message
    assert len(message) < 200


@pytest.mark.parametrize(("name", "lowest", "highest"), [("seed", 0, 2**63 - 1), ("batch_size", 2, 10**9)])
def test_the_ends_of_a_range_belong_to_it(name, lowest, highest):
    for value in (lowest, highest):
        assert getattr(load_recipe({"backbone": "tiny", name: value}), name) == value
    for value in (lowest - 1, highest + 1):
        with pytest.raises(ComposirError):
            load_recipe({"backbone": "tiny", name: value})


def test_unknown_backbone_and_data_set_suggest_the_nearest():
    with pytest.raises(ComposirError, match=r"backbone 'minni' is not known; fix: did you mean 'mini'\?"):
        load_recipe({"backbone": "minni"})
    with pytest.raises(ComposirError, match=r"unknown data set 'CIR'.*did you mean 'CIRR'\?"):
        load_recipe({"dataset": "CIR"})


def test_weights_of_a_backbone_that_takes_none_are_refused_with_their_file(tmp_path):
    (tmp_path / "r.toml").write_text('backbone = "mini"\nweights = "blip2.pth"\n')
    with pytest.raises(ComposirError, match=r"r\.toml: the backbone 'mini' takes no weights, and blip2\.pth was given"):
        load_recipe({}, tmp_path / "r.toml")
    assert load_recipe({"backbone": "pretrain", "weights": "blip2.pth"}).weights == "blip2.pth"
    with pytest.raises(ComposirError, match="takes no weights"):
        compute_features(Recipe(backbone="tiny", weights="blip2.pth"))


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path):
    with pytest.raises(ComposirError, match=r"nowhere\.toml: recipe file not found"):
        load_recipe({}, tmp_path / "nowhere.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(ComposirError, match=r"bad\.toml: is not TOML"):
        load_recipe({}, tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("1e-2", 0.01), ("true", True), ("squarepad", "squarepad"), ("[1, 2]", [1, 2])]
)
def test_values_of_set_are_toml_else_words(text, value):
    assert parse_value(text) == value


def test_every_setting_has_a_default():
    assert Recipe() == Recipe.model_validate({})


def test_the_gate_s_own_flag_is_read_as_the_fusion_it_stands_for(tmp_path):
    assert load_recipe({"backbone": "tiny"}).fusion == "gate"
    assert load_recipe({"backbone": "mini"}).fusion == "gate+late"  # its own recipe says so
    assert load_recipe({"backbone": "mini", "gated_fusion": True}).fusion == "gate"
    assert load_recipe({"backbone": "mini", "gated_fusion": False}).fusion == "none"
    assert (
        load_recipe({"backbone": "mini", "gated_fusion": True, "fusion": "gate+attention"}).fusion == "gate+attention"
    )
    assert load_recipe({"backbone": "mini", "gated_fusion": False, "fusion": "tirg"}).fusion == "tirg"
    file = tmp_path / "recipe.toml"
    file.write_text('backbone = "mini"\ngated_fusion = true\n')  # as recipes were written before
    assert load_recipe({}, file).fusion == "gate"
    assert load_recipe({"fusion": "none"}, file).fusion == "none"
    file.write_text('backbone = "mini"\nfusion = "gate"\n')
    assert load_recipe({"gated_fusion": False}, file).fusion == "none"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"fusion": "gaet"}, ["fusion = 'gaet'", "expected none, or one or more of gate, attention, "]),
        ({"gated_fusion": "off"}, ["gated_fusion = 'off': input should be a valid boolean"]),
        ({"gated_fusion": False, "fusion": "gate"}, ["gated_fusion = false contradicts fusion = 'gate'"]),
        (
            {"gated_fusion": True, "fusion": "none", "seed": -1},
            ["gated_fusion = true contradicts fusion = 'none'", "seed"],
        ),
    ],
)
def test_fusions_that_do_not_exist_or_contradict_each_other_are_named(settings, words):
    with pytest.raises(ComposirError) as error:
        load_recipe({"backbone": "mini", **settings})
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_setting_that_is_given_beside_a_file_is_not_called_the_file_s(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text('backbone = "tiny"\n')
    with pytest.raises(ComposirError, match=r"recipe\.toml, with what is given beside it: unknown key 'sead'"):
        load_recipe({"sead": 1}, file)
    file.write_text('backbone = "tiny"\nsead = 1\n')
    with pytest.raises(ComposirError, match=r"recipe\.toml: unknown key 'sead'"):
        load_recipe({}, file)
