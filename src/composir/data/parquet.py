"""Parquet files, by pyarrow (the extra ``parquet``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from composir.data.annotations import RESTORE
from composir.errors import ComposirError, Problem
from composir.version import pip_install

MAGIC = b"PAR1"
"""What a Parquet file begins with."""


def is_parquet(file: Path) -> bool:
    """Return whether a file is there and begins as Parquet does."""
    if not file.is_file():
        return False
    with file.open("rb") as content:
        return content.read(len(MAGIC)) == MAGIC


def read_rows(
    file: Path,
    problems: list[Problem],
    *,
    columns: Sequence[str] | None = None,
    wrong: Callable[[Any], list[Problem]] = lambda schema: [],
    restore: str = RESTORE,
) -> list[dict[str, Any]]:
    """Return the rows, each by column; none after adding to ``problems`` what keeps them from being read.

    Only ``columns`` are read where they are given. ``wrong`` tells what is wrong with the file's Arrow schema. Raises
    ``ComposirError`` where pyarrow is not installed.
    """
    arrow = pyarrow(file)
    try:
        with arrow.parquet.ParquetFile(file) as content:
            found = wrong(content.schema_arrow)
            problems += found
            return [] if found else content.read(columns=None if columns is None else list(columns)).to_pylist()
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = f"cannot be read as Parquet ({' '.join(str(error).split())})"
        problems.append(Problem(str(file), "", message, restore))
        return []


def pyarrow(file: Path) -> Any:
    """Return the package, with its reader; raises ``ComposirError`` where it is not installed."""
    try:
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise ComposirError(
            "Parquet needs the package pyarrow, which is not installed", file=file, fix=pip_install("parquet")
        ) from None
    return pyarrow
