"""From a recipe to a run folder."""

from composir.files import read_toml
from composir.training.loop import Features, Observer, TrainResult, compute_features, resume_recipe, train
from composir.training.recipe import FUSION_SWITCH, Recipe, load_recipe, parse_value, validate

__all__ = [
    "FUSION_SWITCH",
    "Features",
    "Observer",
    "Recipe",
    "TrainResult",
    "compute_features",
    "load_recipe",
    "parse_value",
    "read_toml",
    "resume_recipe",
    "train",
    "validate",
]
