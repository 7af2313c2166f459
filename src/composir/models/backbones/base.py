"""How a backbone is described, and how a Q-Former that has never seen begins to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from composir.models.composer import Composer
from composir.models.config import ComposerConfig
from composir.models.fusion import WEIGHTS as FUSION_WEIGHTS
from composir.models.text import Tokenizer
from composir.models.vision import Tower

FRESH_QUERY_STD = 0.1
"""Of query and prompt tokens that do not start from pretrained ones."""


@dataclass(frozen=True)
class Backbone:
    """How a model of this kind is made: its sizes, its tower, its tokenizer and its starting weights."""

    config: Callable[[str], ComposerConfig]
    """Made, as all here, from the ``weights`` a user names: a folder, a file, "" for what a pip package brings."""
    tower: Callable[[str], Tower]
    tokenizer: Callable[[], Tokenizer]
    initialise: Callable[[Composer, str], None]
    """Gives a fresh model its starting weights."""
    recipes: dict[str, str]
    """The recipe file whose values hold for what is not given, by data set; "" is for any other."""
    needs_weights: bool = False
    """Whether ``weights`` has to be named; a backbone that brings its own takes none."""
    new_parts: tuple[str, ...] = FUSION_WEIGHTS
    """Pieces of the names of weights that start at random; the others start from pretrained ones."""


def wake_cross_attention(model: Composer, _: str = "") -> None:
    """Let the image be heard from the first step: with BERT's small start (std 0.02) nothing is learned for long."""
    nn.init.normal_(model.query_tokens, std=FRESH_QUERY_STD)
    nn.init.normal_(model.prompt_tokens, std=FRESH_QUERY_STD)
    for name, parameter in model.qformer.named_parameters():
        if ".crossattention." in name and parameter.dim() == 2:
            nn.init.xavier_uniform_(parameter)
