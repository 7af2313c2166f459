"""What a run trains on and is validated on, written down so that ``--resume`` knows whether it is still the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from composir.data import Split
from composir.data.triplets import split_key
from composir.errors import ComposirError, Problem, ProblemsError, command
from composir.files import write_text

DATA = "data.json"
"""File of a run folder: the annotation files by split, each with counts and hashes of what was read from it."""
FORMAT = 1
WORDS_BY_HASH = {
    "ids": "ids",
    "references": "references",
    "texts": "sentences",
    "targets": "targets",
    "subsets": "subsets",
    "gallery": "gallery images",
}
"""What is hashed, each list in its order, and what a message calls it."""


def write_fingerprint(run: Path, splits: Sequence[Split]) -> None:
    """Write down what a run begins with."""
    document = {"format": FORMAT, "splits": [_describe(split) for split in splits]}
    write_text(run / DATA, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def require_same_data(run: Path, splits: Sequence[Split]) -> bool:
    """Return whether the run folder knows what it began with; raise ``ProblemsError`` where that is not ``splits``.

    Runs of before there was such a file know nothing. A damaged file is a ``ComposirError``.
    """
    file = run / DATA
    if not file.exists():
        return False
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, not {FORMAT}")
        before = {split_key(one["split"], one["category"]): one for one in document["splits"]}
        now = {split_key(split.name, split.category): _describe(split) for split in splits}
        changes = [
            (str((now.get(key) or before[key])["file"]), key, change)
            for key in dict.fromkeys([*before, *now])
            for change in _changes(before.get(key), now.get(key))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ComposirError(
            f"is damaged ({error})", file=file, fix="remove it to go on without knowing whether the data are the same"
        ) from None
    if changes:
        fix = f"put it back as it was, or start a new run: {command('train', '--config', run / 'recipe.toml')}"
        raise ProblemsError([Problem(name, key, change, fix) for name, key, change in changes])
    return True


def _describe(split: Split) -> dict[str, Any]:
    queries = split.queries
    values = {
        "ids": [query.id for query in queries],
        "references": [query.reference for query in queries],
        "texts": [[query.text, *query.texts] for query in queries],
        "targets": [query.targets for query in queries],
        "subsets": [[query.subset, query.gallery, query.aspects] for query in queries],
        "gallery": split.gallery,
    }
    return {
        "file": str(split.file),
        "split": split.name,
        "category": split.category,
        "text_rule": split.text_rule,
        "num_queries": len(queries),
        "num_gallery": len(split.gallery),
        "sorted_ids": _hash(sorted(values["ids"])),
        "hashes": {name: _hash(value) for name, value in values.items()},
    }


def _hash(values: Iterable[object]) -> str:
    return hashlib.sha256(json.dumps(list(values)).encode()).hexdigest()


def _changes(before: dict[str, Any] | None, now: dict[str, Any] | None) -> list[str]:
    """Return how the annotations of a split have changed since the run began, in words."""
    if before is None or now is None:
        return ["is new: the run began without it" if before is None else "is gone: the run began with it"]
    begun_with = before.get("text_rule", now["text_rule"])  # runs of before there was a choice do not say it
    if begun_with != now["text_rule"]:
        return [f"makes its sentences by the text rule {now['text_rule']!r}, the run began with {begun_with!r}"]
    different = [name for name in WORDS_BY_HASH if now["hashes"][name] != before["hashes"][name]]
    if not different:
        return []
    counts = [
        f"holds {now[count]:,} {noun}, the run began with {before[count]:,}"
        for count, noun in (("num_queries", "queries"), ("num_gallery", "gallery images"))
        if now[count] != before[count]
    ]
    if counts:
        return [" and ".join(counts)]
    if "ids" in different and now["sorted_ids"] == before["sorted_ids"]:
        return ["holds its queries in another order than when the run began"]
    return [f"holds other {' and '.join(WORDS_BY_HASH[name] for name in different)} than when the run began"]
