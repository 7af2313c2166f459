"""The kinds of heat map: where their values are in a trace, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from composir.heat import DIVERGING, SEQUENTIAL
from composir.models.trace import Trace, patches


@dataclass(frozen=True)
class Map:
    """One kind of heat map: where its values are in a trace and how they are shown."""

    key: str
    title: str
    meaning: str
    scale: float = 1.0
    """Values are multiplied by it, to be numbers a person can read."""
    digits: int = 2
    diverging: bool = False
    """Whether zero is the middle of the colours."""
    of_target: bool = False
    min_span: float = 0.0
    """The colours span at least this much: what hardly differs looks even. 0: they start at zero."""

    def values(self, trace: Trace) -> Float32[np.ndarray, "rows columns"] | None:
        """Return the map's values by patch, scaled; None where the trace has none."""
        values = getattr(trace, self.key)
        return None if values is None else patches(values) * self.scale

    def limits(self, maps: Sequence[np.ndarray]) -> tuple[float, float]:
        """Return the values of the first and the last colour, the same for all of these maps."""
        low, high = (float(values) for values in (min(m.min() for m in maps), max(m.max() for m in maps)))
        if self.diverging:
            bound = max(abs(low), abs(high), 1e-9)
            return -bound, bound
        if not self.min_span:
            return 0.0, max(high, 1e-9)
        missing = max(self.min_span - (high - low), 0.0) / 2
        return low - missing, high + missing

    @property
    def colours(self) -> str:
        """The colour map, readable with any colour vision: from dark to light, or between two hues."""
        return DIVERGING if self.diverging else SEQUENTIAL


MAPS = (
    Map("influence", "influence", "how far the query moves when the patch is hidden, distance x 100", 100, 1),
    Map("attention", "attention", "share of the query tokens' attention, %", 100, 1),
    Map("gate", "gate", "how far the gate is open, 0 to 1, mean over channels", min_span=0.1),
    Map("text_attention", "sentence's attention", "where the sentence looks, %", 100, 1),
    Map("relative_change", "change", "size of what the fusion adds, % of the token", 100, 1),
    Map("fusion_influence", "influence of the change", "how far the query moves without it here, distance x 100", 100),
    Map(
        "reference_attribution",
        "worth to the score",
        "target's score falls when the patch is hidden, x 100",
        100,
        1,
        True,
    ),
    Map("target_attribution", "worth of the target's patches", "the same, in the target", 100, 1, True, of_target=True),
)
"""What is drawn, in this order, where the trace has it."""


def limits_by_map(traces: Sequence[Trace]) -> dict[Map, tuple[float, float]]:
    """Return the maps that any of the traces has, in their order, each with the limits that all traces share."""
    values = {one: [values for trace in traces if (values := one.values(trace)) is not None] for one in MAPS}
    return {one: one.limits(held) for one, held in values.items() if held}
