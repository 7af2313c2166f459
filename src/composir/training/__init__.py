"""From a recipe to a run folder."""

from composir.files import read_toml
from composir.training.features import Features, compute_features
from composir.training.loop import TrainResult
from composir.training.observer import Observer
from composir.training.recipe import FUSION_SWITCH, Recipe, load_recipe, parse_value, validate
from composir.training.runs import train
from composir.training.state import resume_recipe

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
