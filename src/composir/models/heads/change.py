"""What a head adds to the composed query."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

HIDDEN = 512
"""Width between the two layers of a change: a wider one learns the examples by heart, and takes longer."""

DROPOUT = 0.3
"""Of what goes into a change."""


class Change(nn.Module):
    """A change of the composed query by the reference and the sentence, zero before the first step.

    A subclass is made of the base's widths, ``(dim, text_dim)``.
    """

    @property
    def alpha(self) -> Tensor | None:
        """The one number by which the change is scaled, where it has one."""
        return None

    def forward(
        self, reference: Float[Tensor, "batch dim"], sentence: Float[Tensor, "batch text_dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return what is added to the query."""
        raise NotImplementedError

    def opened(
        self, reference: Float[Tensor, "batch dim"], sentence: Float[Tensor, "batch text_dim"]
    ) -> Float[Tensor, "batch dim"] | None:
        """Return how far a gate is open for each channel, in (0, 1); None where there is no gate."""
        return None


def two_layers(width_in: int, width_out: int, *, hidden: int = HIDDEN) -> nn.Sequential:
    """Return dropout, linear, ReLU, linear, ``hidden`` wide in between."""
    return nn.Sequential(nn.Dropout(DROPOUT), nn.Linear(width_in, hidden), nn.ReLU(), nn.Linear(hidden, width_out))


def zeroed(linear: nn.Module) -> nn.Linear:
    """Return the linear layer with weights and bias zero."""
    assert isinstance(linear, nn.Linear)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
