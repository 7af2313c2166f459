"""What people meant, kept in a file: one choice a line, as own triplets are."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from composir.data.annotations import Entry
from composir.data.importing import read_triplets
from composir.data.rows import JSONL_SUFFIXES
from composir.errors import ComposirError


class Feedback:
    """A file of choices in JSONL, as ``composir data import`` and ``composir train --from-feedback`` read it.

    A line holds ``reference``, ``text``, ``target`` and ``subset``, all that was shown, where there was more than the
    target; pictures are named by their ids. Raises ``ComposirError`` where the file cannot be written, or holds
    anything else.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = Lock()
        if file.suffix.lower() not in JSONL_SUFFIXES:
            raise ComposirError(
                f"the name ends in {file.suffix!r}", file=file, expected=f"a name that ends in {JSONL_SUFFIXES[0]}"
            )
        try:
            with file.open("ab+") as opened:
                num_bytes = opened.tell()
                opened.seek(max(0, num_bytes - 1))
                self._is_whole = opened.read() in (b"", b"\n")
        except OSError as error:
            raise ComposirError(
                f"cannot be written ({error.strerror})", file=file, fix="give another file with --record"
            ) from None
        queries = read_triplets(file, _as_named, split="train") if num_bytes else {}
        self._known = {(one.reference, one.text, one.targets[0]) for rows in queries.values() for one in rows}

    def add(self, reference: str, text: str, target: str, shown: Sequence[str]) -> bool:
        """Return whether the choice is new, and was written: the whole line, or ``OSError`` and nothing of it."""
        others = [one for one in dict.fromkeys(shown) if one not in (reference, target)]
        fields: dict[str, object] = {"reference": reference, "text": text, "target": target}
        if others:
            fields["subset"] = [target, *others]
        line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            if (reference, text, target) in self._known:
                return False
            with self.file.open("ab", buffering=0) as opened:
                num_bytes = opened.tell()
                line = line if self._is_whole or not num_bytes else b"\n" + line
                try:
                    if opened.write(line) != len(line):
                        raise OSError("only a part of the line was written")
                    os.fsync(opened.fileno())
                except OSError:
                    opened.truncate(num_bytes)
                    raise
            self._is_whole = True
            self._known.add((reference, text, target))
        return True


def _as_named(row: Entry, what: str, name: str) -> str | None:
    return name
