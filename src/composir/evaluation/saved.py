"""Rankings in a file: figures, comparisons and reports are made from it again, without the model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from composir.data.triplets import Query, Split
from composir.errors import ComposirError
from composir.evaluation.ranking import PADDING, Ranking, check_gallery, describe
from composir.evaluation.result import COMPOSED, KINDS, Result
from composir.files import replacing

FORMAT, VERSION = "composir rankings", "1"
SAVE_AGAIN = "save the rankings again: composir evaluate --model ... --save-rankings FILE"

_SPLIT_FIELDS = ("dataset", "name", "category", "gallery_rule", "exclude_reference", "text_rule")
_LISTS_OF_A_QUERY = ("texts", "targets", "subset", "gallery", "aspects")


def save_rankings(result: Result, file: Path) -> None:
    """Write the rankings of a result, the queries and the gallery's names; no image and no path is in the file.

    A safetensors file: ``splits`` is JSON in UTF-8 with every ``Split`` less its images; for each split and kind
    (``0.composed``, ``0.image_only``, ...) ``.top``, ``.scores``, ``.target_ranks`` and ``.subset`` hold a
    ``Ranking``, subset members as places in the query's own list.
    """
    tensors: dict[str, np.ndarray] = {}
    for kind, rankings in result.rankings.items():
        for number, ranking in enumerate(rankings):
            tensors[f"{number}.{kind}.top"] = ranking.top.astype(np.int32)
            tensors[f"{number}.{kind}.scores"] = ranking.scores
            tensors[f"{number}.{kind}.target_ranks"] = ranking.target_ranks.astype(np.int32)
            tensors[f"{number}.{kind}.subset"] = _subset_places(ranking)
    splits = [_split_fields(ranking.split) for ranking in result.rankings[COMPOSED]]
    document = {"weights": result.signature_fields["weights"], "splits": splits}
    tensors["splits"] = np.frombuffer(json.dumps(document, ensure_ascii=False).encode(), np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "version": VERSION})


def load_rankings(file: Path, splits: Sequence[Split] | None = None) -> tuple[dict[str, tuple[Ranking, ...]], str]:
    """Return the rankings by kind, ready for ``measure``, and the hash of the weights that made them.

    The splits in the file know no images. With ``splits``, read from a data root, theirs take their place after a
    check that queries and gallery are the same. Raises ``ComposirError`` for a file that is not one of
    ``save_rankings``, is cut off, or does not fit ``splits``.
    """
    try:
        with safe_open(file, framework="numpy") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError as error:
        raise ComposirError("no such file", file=file, fix=SAVE_AGAIN) from error
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise _broken(file, f"cannot be read ({error})") from error
    if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
        raise _broken(file, f"is {metadata.get('format', 'no rankings')!r}, version {metadata.get('version')!r}")
    try:
        document = json.loads(tensors.pop("splits").tobytes())
        saved = [_split(entry) for entry in document["splits"]]
        rankings = _read_rankings(saved, tensors)
        weights_hash = str(document["weights"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise _broken(file, f"is damaged ({type(error).__name__}: {error})") from error
    for split in saved:
        check_gallery(split)
    if splits is None:
        return rankings, weights_hash
    _check_same(file, saved, splits)
    return {
        kind: tuple(
            Ranking(split, ranking.top, ranking.scores, ranking.target_ranks, ranking.subset)
            for split, ranking in zip(splits, ranked, strict=True)
        )
        for kind, ranked in rankings.items()
    }, weights_hash


def _split_fields(split: Split) -> dict[str, Any]:
    return {
        **{name: getattr(split, name) for name in _SPLIT_FIELDS},
        "queries": [asdict(query) for query in split.queries],
        "gallery": list(split.gallery),
    }


def _split(entry: Mapping[str, Any]) -> Split:
    """Return the split of an entry; a missing or strange field raises what the caller catches."""
    queries = []
    for query in entry["queries"]:
        values = {field.name: query[field.name] for field in fields(Query)}
        values |= {name: tuple(str(item) for item in values[name]) for name in _LISTS_OF_A_QUERY}
        queries.append(Query(**values))
    return Split(
        **{name: entry[name] for name in _SPLIT_FIELDS},
        queries=tuple(queries),
        gallery=tuple(str(name) for name in entry["gallery"]),
        images={},
    )


def _read_rankings(splits: Sequence[Split], tensors: Mapping[str, np.ndarray]) -> dict[str, tuple[Ranking, ...]]:
    if not splits:
        raise ValueError("no split in it")
    kinds = [kind for kind in KINDS if f"0.{kind}.top" in tensors]
    if COMPOSED not in kinds:
        raise ValueError("no composed rankings in it")
    return {
        kind: tuple(_read_ranking(split, f"{number}.{kind}", tensors) for number, split in enumerate(splits))
        for kind in kinds
    }


def _read_ranking(split: Split, name: str, tensors: Mapping[str, np.ndarray]) -> Ranking:
    top, scores, target_ranks, subset = (
        tensors[f"{name}.{part}"] for part in ("top", "scores", "target_ranks", "subset")
    )
    num_queries = len(split.queries)
    if top.ndim != 2 or scores.shape != top.shape or len(top) != num_queries:
        raise ValueError(f"{name} has the shapes {top.shape} and {scores.shape} for {num_queries} queries")
    if target_ranks.shape != (num_queries,) or subset.ndim != 2 or len(subset) != num_queries:
        raise ValueError(f"{name} has the shapes {target_ranks.shape} and {subset.shape} for {num_queries} queries")
    if top.size and not (top.min() >= PADDING and top.max() < len(split.gallery)):
        raise ValueError(f"{name} names an image outside the gallery of {len(split.gallery)}")
    return Ranking(
        split=split,
        top=top.astype(np.int64),
        scores=scores.astype(np.float32),
        target_ranks=target_ranks.astype(np.int64),
        subset=tuple(
            tuple(query.subset[place] for place in row if place != PADDING)
            for query, row in zip(split.queries, subset.tolist(), strict=True)
        ),
    )


def _subset_places(ranking: Ranking) -> np.ndarray:
    width = max((len(order) for order in ranking.subset), default=0)
    places = np.full((len(ranking.subset), width), PADDING, np.int32)
    for row, (order, query) in enumerate(zip(ranking.subset, ranking.split.queries, strict=True)):
        places[row, : len(order)] = [query.subset.index(name) for name in order]
    return places


def _check_same(file: Path, saved: Sequence[Split], splits: Sequence[Split]) -> None:
    """Raise ``ComposirError`` naming the first thing in which the data root differs from what was ranked."""
    if len(saved) != len(splits):
        names = [", ".join(describe(split) for split in found) for found in (saved, splits)]
        raise _differs(file, f"holds rankings of {names[0]}, the data root gave {names[1]}")
    for old, new in zip(saved, splits, strict=True):
        for name in _SPLIT_FIELDS:
            if getattr(old, name) != getattr(new, name):
                raise _differs(file, f"{name} is {getattr(old, name)!r}, in the data root {getattr(new, name)!r}")
        if old.gallery != new.gallery:
            counts = f"{len(old.gallery):,} and {len(new.gallery):,} images"
            raise _differs(file, f"the gallery of {describe(old)} differs from the data root's ({counts})")
        if len(old.queries) != len(new.queries):
            raise _differs(file, f"holds {len(old.queries):,} queries, the data root {len(new.queries):,}")
        for query, other in zip(old.queries, new.queries, strict=True):
            if query != other:
                raise _differs(file, f"query {query.id} of {describe(old)} differs from the data root's")


def _differs(file: Path, message: str) -> ComposirError:
    return ComposirError(
        message,
        file=file,
        expected="the annotations and rules that the rankings were made with",
        fix="pass that --data-root, --split, --gallery and reference rule, or save the rankings again",
    )


def _broken(file: Path, message: str) -> ComposirError:
    return ComposirError(message, file=file, expected="a file written by --save-rankings", fix=SAVE_AGAIN)
