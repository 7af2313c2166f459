"""From a recipe to a run folder."""

from composir.files import read_toml
from composir.training.loop import Observer, TrainResult, resume_recipe, train
from composir.training.recipe import FUSION_SWITCH, Recipe, load_recipe, parse_value, validate

__all__ = [
    "FUSION_SWITCH",
    "Observer",
    "Recipe",
    "TrainResult",
    "load_recipe",
    "parse_value",
    "read_toml",
    "resume_recipe",
    "train",
    "validate",
]
