"""Tables of what can be chosen by name: this package's own, and what installed packages add."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import TypeVar

from composir.errors import ComposirError

T = TypeVar("T")


class Table(MutableMapping[str, T]):
    """Things of one kind by name. A package adds one by an entry point of the group ``composir.KIND``.

    Entry points are looked at only for a name that is not here, or where all names are asked for: finding them takes a
    tenth of a second, and loading one imports its package.
    """

    def __init__(self, kind: str, entries: Mapping[str, T]) -> None:
        self.kind = kind
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            points = _points(self.kind).select(name=name)
            if not points:
                raise KeyError(name)
            point = next(iter(points))
            try:
                self._entries[name] = point.load()
            except Exception as error:  # whatever the package's import runs into
                raise ComposirError(
                    f"{self.kind} {name!r} of the package {point.dist.name if point.dist else '?'} cannot be loaded "
                    f"({type(error).__name__}: {error})",
                    fix=f"update or remove that package; it says {point.value}",
                ) from error
        return self._entries[name]

    def __setitem__(self, name: str, value: T) -> None:
        self._entries[name] = value

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in _points(self.kind).names

    def __iter__(self) -> Iterator[str]:
        others = sorted(_points(self.kind).names)
        return iter([*self._entries, *(name for name in others if name not in self._entries)])

    def __len__(self) -> int:
        return len(list(iter(self)))


@cache
def _points(kind: str) -> EntryPoints:
    return entry_points(group=f"composir.{kind}")
