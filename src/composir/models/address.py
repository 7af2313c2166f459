"""How a model that is no checkpoint folder is named where one is asked for: ``NAME``, ``NAME:PLACE``, ``?options``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from composir.errors import ComposirError, nearest

ST = "st"
"""The name before the folder or hub id of a sentence-transformers model."""
DTYPES = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is asked; what is None is as its authors have it."""

    prompt: str | None = None
    """The instruction that stands before queries."""
    max_pixels: int | None = None
    """Of a picture; larger ones are made smaller."""
    dtype: str | None = None
    """One of ``DTYPES``."""
    batch_size: int | None = None
    """Inputs that one pass takes."""
    dim: int | None = None
    """So many of an embedding's first values are kept, of models trained for that (Matryoshka)."""

    @classmethod
    def read(cls, value_by_name: Mapping[str, str]) -> Options:
        """Return the options of a query string's pairs; raise ``ComposirError`` for a name or value that is none."""
        known = [field.name for field in fields(cls)]
        read: dict[str, str | int] = {}
        for name, value in value_by_name.items():
            if name not in known:
                raise ComposirError(
                    f"a model has no option {name!r}", expected=", ".join(known), fix=nearest(name, known)
                )
            if name in {"prompt", "dtype"}:
                read[name] = value
            elif value.isdecimal() and int(value) > 0:
                read[name] = int(value)
            else:
                raise ComposirError(f"{name} {value!r} is no number", expected="a whole number above 0")
        if read.get("dtype", DTYPES[0]) not in DTYPES:
            raise ComposirError(f"dtype {read['dtype']!r} is not known", expected=" or ".join(DTYPES))
        return cls(**read)  # type: ignore[arg-type]

    def given(self) -> dict[str, str | int]:
        """Return what is not None, by name."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) is not None}

    def require_only(self, kind: str, *names: str) -> None:
        """Raise ``ComposirError`` where an option other than ``names`` is given to a model of that kind."""
        for name in self.given():
            if name not in names:
                only = f"only {', '.join(names)}" if names else "no options"
                raise ComposirError(f"{kind} takes no {name}", expected=only, fix="leave it out")


@dataclass(frozen=True, slots=True)
class Address:
    """A name, a folder or hub id where one is given, and options: ``st:FOLDER?max_pixels=200000``."""

    name: str
    place: str = ""
    options: Options = Options()

    @classmethod
    def read(cls, text: str, is_name: Callable[[str], bool]) -> Address | None:
        """Return the address in ``text`` where it begins with a name, else None: it is a path or a hub id."""
        given, question, query = text.rpartition("?")
        if not question or "=" not in query:
            given, query = text, ""
        name, _, place = given.partition(":")
        if "/" in name or not is_name(name) or (name == ST and not place):
            return None
        return cls(name, place, Options.read(dict(parse_qsl(query, keep_blank_values=True))))

    def resolved(self) -> Address:
        """Return the address with the absolute path of a folder that is there."""
        there = self.place and Path(self.place).exists()
        return replace(self, place=str(Path(self.place).resolve())) if there else self

    def with_options(self, options: Options) -> Address:
        """Return the address with these options beside its own, which they take the place of."""
        return replace(self, options=replace(self.options, **options.given()))

    def __str__(self) -> str:
        place = f":{self.place}" if self.place else ""
        given = self.options.given()
        return f"{self.name}{place}{f'?{urlencode(given)}' if given else ''}"
