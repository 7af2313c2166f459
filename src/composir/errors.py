"""Errors for a user's mistakes: each names the file, the value, what was expected and the fix."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
"""The ends of a range, as pydantic calls them and in words."""


class ComposirError(Exception):
    """A mistake in the input; the command line prints it as one line and exits with 2."""

    def __init__(
        self,
        message: str,
        *,
        file: Path | str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.message = message
        self.file = file
        self.expected = expected
        self.fix = fix
        parts = [f"{file}: {message}" if file is not None else message]
        if expected:
            parts.append(f"expected {expected}")
        if fix:
            parts.append(f"fix: {fix}")
        super().__init__("; ".join(parts))


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a data root: the file, the place inside it, what is wrong, the fix."""

    file: str
    where: str
    message: str
    fix: str

    def __str__(self) -> str:
        place = f"{self.file} ({self.where})" if self.where else self.file
        return f"{place}: {self.message}; fix: {self.fix}"


@dataclass(frozen=True, slots=True)
class Note:
    """One thing in a data root that is odd and no problem: the file, the place inside it, what is odd."""

    file: str
    where: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file} ({self.where})" if self.where else self.file
        return f"{place}: {self.message}"


class ProblemsError(ComposirError):
    """Every problem of the input at once, in ``problems``; the text shows the first few."""

    NUM_SHOWN = 5

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        shown = " | ".join(str(problem) for problem in self.problems[: self.NUM_SHOWN])
        rest = len(self.problems) - self.NUM_SHOWN
        more = f" | and {rest} more (composir data check lists them all)" if rest > 0 else ""
        super().__init__(f"{counted(len(self.problems), 'problem')}: {shown}{more}")


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return ``1 picture`` or ``2,000 pictures``; ``plural`` is that of a noun that takes more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def command(*words: object) -> str:
    """Return a command of composir as it can be pasted into a shell, whatever stands in its paths."""
    return shlex.join(["composir", *map(str, words)])


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``did you mean 'X'?`` with the closest of ``names``, or all of them where none is close."""
    names = sorted(names)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(names)}"


MAX_LISTED = 20


def listed(*kinds: Sequence[str], separator: str = ", ", limit: int = MAX_LISTED) -> str:
    """Return names in one line: at most ``limit`` of all, of every kind some, and how many more there are."""
    shown = [list(kind) for kind in kinds]
    rest = max(0, sum(map(len, shown)) - limit)
    for _ in range(rest):
        max(shown, key=len).pop()
    names = [name for kind in shown for name in kind]
    return separator.join([*names, f"and {rest:,} more"] if rest else names)


def short(value: object) -> str:
    """Return how a value is shown in a message: at most 60 characters of it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def wrong_fields(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """Return a line for each field that pydantic refuses of a ``kind``: with its value and what it may be.

    Of a number with limits that is its range; of a name that is no field, the nearest one; else pydantic's own words.
    """
    return [_wrong_field(one, kind) for one in error.errors(include_url=False)]


def range_of(field: FieldInfo) -> str:
    """Return in words what a number may be, such as ``above 0 and at most 1``; empty where it has no limits."""
    return " and ".join(
        f"{words} {getattr(one, end):,}" for one in field.metadata for end, words in LIMITS.items() if hasattr(one, end)
    )


def _wrong_field(error: ErrorDetails, kind: type[BaseModel]) -> str:
    name = ".".join(map(str, error["loc"]))
    field = kind.model_fields.get(name)
    if error["type"] == "extra_forbidden":
        return f"unknown key {name!r}" + (f" ({nearest(name, kind.model_fields)})" if len(error["loc"]) == 1 else "")
    if error["type"] == "missing":
        return f"{name} is missing"
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if field and range_of(field):
        message = f"expected {'a whole number' if field.annotation is int else 'a number'}, {range_of(field)}"
    return f"{name} = {short(error['input'])}: {message}" if name else message
