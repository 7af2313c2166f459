"""Heads on frozen embeddings, by name. A new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Callable

from composir.models.fusion.combiner import Combiner
from composir.models.fusion.tirg import TirgGating
from composir.models.heads.change import Change
from composir.models.heads.gate import Gate
from composir.models.heads.gate_joint import GateJoint
from composir.models.heads.joined import Joined
from composir.models.heads.joint import Joint
from composir.models.heads.sum import Sum
from composir.tables import Table

__all__ = ["HEADS"]

HEADS: Table[Callable[[int, int], Change]] = Table(
    "heads",
    {
        "gate": Gate,
        "joint": Joint,
        "gate-joint": GateJoint,
        "combiner": lambda dim, text_dim: Joined(Combiner(dim), dim, text_dim),
        "sum": Sum,
        "tirg": lambda dim, text_dim: Joined(TirgGating(dim), dim, text_dim),
    },
)
"""What makes a change of the widths ``(dim, text_dim)`` of a base: of its pictures' vectors and of its sentences'."""
