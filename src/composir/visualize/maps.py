"""The kinds of heat map: where their values are in a trace, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from matplotlib import colormaps

from composir.heat import DIVERGING, SEQUENTIAL, sequential
from composir.models.trace import Trace, patches

MIN_SPAN = 1e-6
"""Of a map that nothing is known of: from its lowest value to its highest."""


@dataclass(frozen=True)
class Map:
    """One kind of heat map: where its values are in a trace and how they are shown."""

    key: str
    title: str
    meaning: str
    """What bright or coloured says, as a sentence."""
    unit: str
    scale: float = 1.0
    """Values are multiplied by it, to be numbers a person can read."""
    digits: int = 2
    diverging: bool = False
    """Whether zero is the middle of the colours."""
    of_target: bool = False
    main: bool = False
    """Whether it is drawn where not every map is asked for."""
    min_span: float = 0.0
    """The colours span at least this much: what hardly differs looks even. 0: they start at zero."""

    def values(self, trace: Trace) -> Float32[np.ndarray, "rows columns"] | None:
        """Return the map's values by patch, scaled; None where the trace has none."""
        values = trace.maps.get(self.key, getattr(trace, self.key, None))
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

    def told(self, value: float) -> str:
        """Return a value as it stands at the end of a bar: never 0 where it is not."""
        return f"{value:.{self.digits}f}" if abs(value) >= 10**-self.digits or not value else f"{value:.1g}"

    @property
    def colours(self) -> str:
        """The colour map, readable with any colour vision: from dark to light, or between two hues."""
        return DIVERGING if self.diverging else SEQUENTIAL

    @property
    def table(self) -> Float64[np.ndarray, "256 3"]:
        """Its colours from low to high: RGB in [0, 1]."""
        return sequential() if not self.diverging else colormaps[DIVERGING](np.arange(256))[:, :3]


MAPS = (
    Map(
        "influence",
        "where the picture matters",
        "Bright: hiding this patch moves the query far.",
        "distance × 100",
        100,
        1,
        main=True,
    ),
    Map(
        "fusion_influence",
        "what the sentence changed",
        "Bright: undoing the sentence's change of this patch moves the query far.",
        "distance × 100",
        100,
        main=True,
    ),
    Map("attention", "where the query tokens look", "Bright: much of their attention is here.", "percent", 100, 1),
    Map(
        "gate",
        "how far the gate is open",
        "Bright: the sentence may change much here.",
        "mean of the channels",
        min_span=0.1,
    ),
    Map("text_attention", "where the sentence looks", "Bright: much of its attention is here.", "percent", 100, 1),
    Map(
        "relative_change",
        "size of the change",
        "Bright: what the fusion adds to this patch is large beside the patch.",
        "percent of the patch",
        100,
        1,
    ),
    Map(
        "reference_attribution",
        "worth to the score",
        "Orange: hiding this patch lowers the score of the target; purple: raises it.",
        "score × 100",
        100,
        1,
        True,
    ),
    Map(
        "target_attribution",
        "worth in the target",
        "The same for the target: the right answer, or what was found first.",
        "score × 100",
        100,
        1,
        True,
        of_target=True,
    ),
)
"""What can be drawn, in this order, where the trace has it; the first two are drawn unless all are asked for."""


def limits_by_map(traces: Sequence[Trace]) -> dict[Map, tuple[float, float]]:
    """Return the maps that any of the traces has, in their order, each with the limits that all traces share.

    Behind ``MAPS`` come those that a fusion of somebody else's shows, by its own names for them.
    """
    named = {one.key for one in MAPS}
    own = dict.fromkeys(name for trace in traces for name in trace.maps if name not in named)
    maps = (*MAPS, *(Map(name, name, f"What the fusion calls {name}.", "its own", min_span=MIN_SPAN) for name in own))
    values = {one: [values for trace in traces if (values := one.values(trace)) is not None] for one in maps}
    return {one: one.limits(held) for one, held in values.items() if held}
