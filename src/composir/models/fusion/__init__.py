"""Ways to join the sentence with the reference beside the Q-Former, by name. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import nn

from composir.models.fusion.attention import TextGuidedAttention
from composir.models.fusion.combiner import Combiner
from composir.models.fusion.late import LateGate
from composir.models.fusion.plain_sum import PlainSum
from composir.models.fusion.tirg import TirgGating
from composir.models.gated_fusion import GatedFusion
from composir.tables import Table

GATE, NONE = "gate", "none"
WEIGHTS = ("gated_fusion.", "fusions.")
"""How the names of a model's weights begin that belong to a fusion."""


class Sizes(Protocol):
    """What a fusion is made from; ``ComposerConfig`` says what each is."""

    @property
    def token_width(self) -> int: ...  # noqa: D102
    @property
    def hidden_size(self) -> int: ...  # noqa: D102
    @property
    def embed_dim(self) -> int: ...  # noqa: D102
    @property
    def alpha_init(self) -> float: ...  # noqa: D102
    @property
    def gate_layer_norm(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class Fusion:
    """One way to join sentence and reference: how its module is made, and where in the model it acts."""

    make: Callable[[Sizes], nn.Module]
    place: Literal["tokens", "query"]
    """``tokens``: ``(image tokens, words, mask)`` to image tokens, before the Q-Former reads them.
    ``query``: ``(composed query's, reference's, sentence's embedding)`` to what is normalised to be the query's."""


FUSIONS: Table[Fusion] = Table(
    "fusions",
    {
        GATE: Fusion(
            lambda sizes: GatedFusion(
                sizes.token_width, sizes.hidden_size, sizes.alpha_init, layer_norm=sizes.gate_layer_norm
            ),
            "tokens",
        ),
        "attention": Fusion(
            lambda sizes: TextGuidedAttention(sizes.token_width, sizes.hidden_size, sizes.alpha_init), "tokens"
        ),
        "late": Fusion(lambda sizes: LateGate(sizes.embed_dim), "query"),
        "tirg": Fusion(lambda sizes: TirgGating(sizes.embed_dim), "query"),
        "combiner": Fusion(lambda sizes: Combiner(sizes.embed_dim), "query"),
        "sum": Fusion(lambda sizes: PlainSum(), "query"),
    },
)


def fusion_names(fusion: str) -> tuple[str, ...]:
    """Return the keys of ``FUSIONS`` that a setting such as ``gate+attention`` names, ``none`` being none of them.

    An unknown or repeated name raises ``ValueError``.
    """
    if fusion == NONE:
        return ()
    names = tuple(fusion.split("+"))
    if set(names) - set(FUSIONS) or len(set(names)) < len(names):
        raise ValueError(f"expected none, or one or more of {', '.join(FUSIONS)}, with + between them, each once")
    return names
