"""What fusions of image tokens share: how they read the sentence, and how they start without an effect."""

from __future__ import annotations

from typing import Literal, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from composir.machine import to_device

ALPHA_INIT = 0.5
MASKED = "masked"
Pooling = Literal["masked", "all"]
"""Whether the mean of a sentence is over its words, or over padding as well."""


class TokenFusion(nn.Module):
    """A fusion that changes a reference's image tokens by the sentence, before the Q-Former reads them.

    A subclass makes ``text_proj``, ``delta`` and what else it needs, is called with (image tokens, words, mask) and
    returns image tokens of the same shape.
    """

    text_proj: nn.Linear | None
    """From the sentence's width to the image tokens'; None where they are as wide."""
    delta: nn.Sequential
    """In which direction the sentence changes the tokens: linear, ReLU, linear, tanh."""

    def start_as_identity(self) -> None:
        """Zero the last layer of the direction: nothing is changed until training moves it."""
        last = cast(nn.Linear, self.delta[2])
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def summarise(
        self,
        text_tokens: Float[Tensor, "batch words text_width"],
        text_mask: Int[Tensor, "batch words"] | None = None,
    ) -> Float[Tensor, "batch width"]:
        """Return t: the mean over the real words (mask 1), or over all words without a mask."""
        if text_mask is None:
            mean = text_tokens.mean(dim=1)
        else:
            weight = to_device(text_mask, text_tokens.device).to(text_tokens.dtype).unsqueeze(-1)  # (batch, words, 1)
            mean = (text_tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
        return mean if self.text_proj is None else self.text_proj(mean)

    def maps(
        self,
        image_tokens: Float[Tensor, "batch tokens width"],
        text_tokens: Float[Tensor, "batch words text_width"],
        text_mask: Int[Tensor, "batch words"] | None = None,
    ) -> dict[str, Float[Tensor, "batch tokens"]]:
        """Return what can be shown of the fusion for each patch, by name; nothing unless a subclass has something."""
        return {}


def feed_forward(width: int, last: nn.Module, width_in: int | None = None) -> nn.Sequential:
    """Return linear, ReLU, linear and ``last``, all ``width`` wide but for what goes in."""
    return nn.Sequential(nn.Linear(width_in or width, width), nn.ReLU(), nn.Linear(width, width), last)


def alpha(start: float) -> nn.Parameter:
    """Return the learnable number by which a fusion's change is scaled."""
    return nn.Parameter(torch.tensor([float(start)]))
