"""The published gate on one vector."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from composir.models.gated_fusion import GatedFusion
from composir.models.heads.change import Change


class Gate(Change):
    """``GatedFusion`` on the reference's vector as its one token: the change is ``alpha * gate(x, t) * delta(t)``.

    Its direction starts at zero (``start_as_identity``). Parameters at width D: ``5 D^2 + 4 D + 1``, and ``D T + D``
    where the sentence is T wide.
    """

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.fusion = GatedFusion(dim, text_dim)
        self.fusion.start_as_identity()

    @property
    def alpha(self) -> Tensor:
        """The gate's own."""
        return self.fusion.alpha

    def forward(
        self, reference: Float[Tensor, "batch dim"], sentence: Float[Tensor, "batch text_dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the change."""
        gate, delta = self.fusion.gate_and_delta(reference.unsqueeze(1), sentence.unsqueeze(1))
        return self.fusion.alpha * gate[:, 0] * delta

    def opened(
        self, reference: Float[Tensor, "batch dim"], sentence: Float[Tensor, "batch text_dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the gate in (0, 1) for every channel."""
        return self.fusion.gate_and_delta(reference.unsqueeze(1), sentence.unsqueeze(1))[0][:, 0]
