"""The model and its parts: towers, gated fusion, Q-Former, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from composir.models.gated_fusion import GatedFusion

__all__ = ["GatedFusion"]


def __getattr__(name: str) -> object:
    """Import torch only when a name is used: the command line lists what there is without it."""
    if name == "GatedFusion":
        from composir.models.gated_fusion import GatedFusion

        return GatedFusion
    raise AttributeError(f"module 'composir.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return what there is, the names that are not imported yet among it: TAB completes them."""
    return sorted({*globals(), *__all__})
