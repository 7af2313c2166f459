"""Rankings in a file: figures, comparisons and reports are made from it again, without the model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from composir.data.triplets import ALL_QUERIES, Query, Split
from composir.errors import ComposirError, command
from composir.evaluation.ranking import PADDING, Ranking, check_gallery, describe
from composir.evaluation.result import COMPOSED, KINDS, Rerank, Result
from composir.evaluation.signature import signature_fields
from composir.files import read_toml, replacing

RANKINGS, RECIPE = "rankings.safetensors", "recipe.toml"
"""The names of the file in a checkpoint folder, and of the recipe beside it."""
FORMAT, VERSION = "composir rankings", "1"
SAVE_AGAIN = "save the rankings again: composir evaluate --model ... --save-rankings FILE"

_DTYPES = {
    "top": np.int32,
    "scores": np.float32,
    "target_ranks": np.int32,
    "subset": np.int32,
    "right_ranks": np.int32,
}
_OPTIONAL = ("right_ranks",)
_RULES = ("dataset", "name", "category", "gallery_rule", "text_rule", "query_rule")
_SPLIT_FIELDS = (*_RULES, "exclude_reference")
_LISTS_OF_A_QUERY = ("texts", "targets", "subset", "gallery", "aspects", "negatives", "further_references")
_NUMBERS_OF_A_QUERY = ("num_listed_targets", "num_listed_negatives")
_LATER = {
    "query_rule": ALL_QUERIES,
    "group": "",
    "negatives": [],
    "further_references": [],
    **dict.fromkeys(_NUMBERS_OF_A_QUERY, 0),
}
"""What stands for fields that files of earlier versions lack."""


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """What a file of rankings holds, and where it comes from."""

    rankings: Mapping[str, tuple[Ranking, ...]]
    """By kind (``composed``, ...), one per category: ready for ``measure``."""
    signature_fields: Mapping[str, str]
    """What was measured, by field; ``ties`` and ``composir`` are of the version that ranked."""
    path: Path
    """The file, as messages name it."""
    seed: int | None = None
    """Of the training, from the ``recipe.toml`` beside the file; None where there is none."""
    rerank: Rerank | None = None
    """What re-ranking started from; None where the rankings are those of embeddings."""

    @property
    def weights_hash(self) -> str:
        """What identifies the model that ranked."""
        return self.signature_fields["weights"]


def save_rankings(result: Result, file: Path) -> None:
    """Write the rankings of a result, as ``pack_rankings`` gives them, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_bytes(pack_rankings(result))


def pack_rankings(result: Result) -> bytes:
    """Return the rankings of a result, the queries and the gallery's names; no image and no path is among them.

    A safetensors file: ``splits`` is JSON in UTF-8 with what ``signature_fields`` cannot tell from a split and every
    ``Split`` less its images; for each split and kind (``0.composed``, ``0.image_only``, ...) ``.top``, ``.scores``,
    ``.target_ranks``, ``.subset`` and perhaps ``.right_ranks`` hold a ``Ranking``, subset members as places in the
    query's own list. Galleries of queries are kept once each, as places in the gallery of the split. The metadata hold
    a digest of it all: a file that was changed is not read.
    """
    tensors: dict[str, np.ndarray] = {}
    for kind, rankings in result.rankings.items():
        for number, ranking in enumerate(rankings):
            parts = {
                "top": ranking.top,
                "scores": ranking.scores,
                "target_ranks": ranking.target_ranks,
                "subset": _subset_places(ranking),
            }
            if ranking.right_ranks is not None:
                parts["right_ranks"] = ranking.right_ranks
            for part, array in parts.items():
                tensors[f"{number}.{kind}.{part}"] = np.ascontiguousarray(array.astype(_DTYPES[part]))
    document: dict[str, Any] = {name: result.signature_fields[name] for name in ("weights", "ties", "composir")}
    if result.rerank is not None:
        document["rerank"] = asdict(result.rerank)
    splits = [_split_fields(ranking.split) for ranking in result.rankings[COMPOSED]]
    text = json.dumps({**document, "splits": splits}, ensure_ascii=False)
    tensors["splits"] = np.frombuffer(text.encode(), np.uint8)
    return save(tensors, metadata={"format": FORMAT, "version": VERSION, "digest": digest(tensors)})


def digest(tensors: Mapping[str, np.ndarray]) -> str:
    """Return 64 hex digits that identify the names, shapes and values of ``tensors``."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tensors[name].shape}\n".encode())
        found.update(tensors[name].tobytes())
    return found.hexdigest()


def load_rankings(file: Path, splits: Sequence[Split] | None = None) -> Saved:
    """Return what ``save_rankings`` wrote, and the training's seed where a ``recipe.toml`` beside the file has one.

    The splits in the file know no images. With ``splits``, read from a data root, theirs take their place after a
    check that queries and gallery are the same. Raises ``ComposirError`` for a file that is not one of
    ``save_rankings``, is cut off or changed, or does not fit ``splits``.
    """
    tensors = _read(file)
    try:
        document = json.loads(tensors.pop("splits").tobytes())
        saved = [_split(entry) for entry in _of_type(list, document["splits"])]
        rankings = _read_rankings(saved, tensors)
        weights_hash, ties, version = (_of_type(str, document[name]) for name in ("weights", "ties", "composir"))
        rerank = _rerank(document.get("rerank"))
        for split in saved:
            check_gallery(split)
    except (LookupError, TypeError, ValueError, ComposirError) as error:
        kind = "" if isinstance(error, ComposirError) else f"{type(error).__name__}: "
        raise _broken(file, f"is damaged ({kind}{error})") from error
    if splits is not None:
        difference = split_difference(saved, splits)
        if difference:
            raise ComposirError(
                f"{difference} in the file and the data root",
                file=file,
                expected="the annotations and rules that the rankings were made with",
                fix="pass that --data-root, --split, --gallery and reference rule, or save the rankings again",
            )
        rankings = {kind: _with_splits(ranked, splits) for kind, ranked in rankings.items()}
    return Saved(
        rankings,
        {
            **signature_fields(saved, weights_hash=weights_hash, num_reranked=rerank.num_candidates if rerank else 0),
            "ties": ties,
            "composir": version,
        },
        path=file,
        rerank=rerank,
        seed=seed_of(file.parent),
    )


def load_groups(sources: Sequence[str]) -> dict[str, list[Saved]]:
    """Return the results that ``sources`` name, by group, in their order.

    A source is a path (a group of its own, named by it), ``NAME=PATH`` or ``NAME=PATH,PATH``; a name that comes
    again gets more runs. A path is a file of rankings, a checkpoint folder or a run folder, whose best checkpoint
    counts. Raises ``ComposirError`` where there are no rankings, or a path without a name comes twice.
    """
    paths_by_name: dict[str, list[str]] = {}
    for source in sources:
        name, paths = _parse_source(source)
        if not name:
            (name,) = paths
            if name in paths_by_name:
                raise ComposirError(
                    f"{source} is given twice",
                    expected="each result once",
                    fix=f"to compare it with itself, name both: a={source} b={source}",
                )
        paths_by_name.setdefault(name, []).extend(paths)
    return {name: [load_rankings(find_rankings(Path(path))) for path in paths] for name, paths in paths_by_name.items()}


def find_rankings(path: Path) -> Path:
    """Return the file of rankings that ``path`` is, or that its checkpoint or run folder holds."""
    if not path.exists():
        raise ComposirError(
            "no such file or folder",
            file=path,
            expected="a file of --save-rankings, a checkpoint folder, a run folder, or NAME=PATH[,PATH...]",
            fix="composir evaluate --model DIR --data-root DIR --save-rankings FILE writes such a file",
        )
    if path.is_file():
        return path
    folders = (path, path / "best")
    for folder in folders:
        if (folder / RANKINGS).is_file():
            return folder / RANKINGS
    checkpoint = next(folder for folder in reversed(folders) if folder.is_dir())
    raise ComposirError(
        f"holds no {RANKINGS}",
        file=path,
        expected=f"a checkpoint folder with {RANKINGS}, or a run folder whose best/ has it",
        fix=command("evaluate", "--model", checkpoint, "--data-root", "DIR", "--save-rankings", checkpoint / RANKINGS),
    )


def _parse_source(source: str) -> tuple[str, list[str]]:
    """Return the name, empty where there is none, and the paths; a path that exists is never taken apart."""
    if "=" not in source or Path(source).exists():
        return "", [str(Path(source))]
    name, _, rest = source.partition("=")
    paths = [rest] if Path(rest).exists() else rest.split(",")
    if not name or not all(paths):
        raise ComposirError(
            f"{source!r} has no {'path' if name else 'name'} where one must be",
            expected="PATH, NAME=PATH or NAME=PATH,PATH",
        )
    return name, paths


def split_difference(splits: Sequence[Split], others: Sequence[Split]) -> str:
    """Return the first thing in which splits differ from others, in words; empty where queries and gallery agree."""
    if len(splits) != len(others):
        names = [", ".join(describe(split) for split in found) or "nothing" for found in (splits, others)]
        return f"the splits are {names[0]} and {names[1]}"
    for split, other in zip(splits, others, strict=True):
        for name in _SPLIT_FIELDS:
            if getattr(split, name) != getattr(other, name):
                return f"{name} is {getattr(split, name)!r} and {getattr(other, name)!r}"
        where = describe(split)
        if split.gallery != other.gallery:
            return f"the gallery of {where} differs ({len(split.gallery):,} and {len(other.gallery):,} images)"
        if len(split.queries) != len(other.queries):
            return f"{where} has {len(split.queries):,} and {len(other.queries):,} queries"
        differing = [one.id for one, two in zip(split.queries, other.queries, strict=True) if one != two]
        if differing:
            count = f"{len(differing):,} of {len(split.queries):,} queries of {where}"
            return f"{count} are not the same (first {differing[0]})"
    return ""


def _read(file: Path) -> dict[str, np.ndarray]:
    """Return the file's arrays by name after a check of its format and digest."""
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
    if metadata.get("digest") != digest(tensors):
        raise _broken(file, "was changed after it was written (its digest does not fit)")
    return tensors


def _split_fields(split: Split) -> dict[str, Any]:
    return {
        **{name: getattr(split, name) for name in _SPLIT_FIELDS},
        **_queries_fields(split),
        "gallery": list(split.gallery),
        **({"missing_list": split.missing_list.name} if split.missing_list else {}),
    }


def _queries_fields(split: Split) -> dict[str, Any]:
    """Return the queries, of which each names its own gallery, if it has one, by its number in ``galleries``."""
    place_by_name = {name: place for place, name in enumerate(split.gallery)}
    number_by_gallery: dict[tuple[str, ...], int] = {}
    queries = []
    for query in split.queries:
        fields_ = asdict(replace(query, gallery=()))
        if query.gallery:
            fields_["gallery"] = number_by_gallery.setdefault(query.gallery, len(number_by_gallery))
        queries.append(fields_)
    galleries = [[place_by_name[name] for name in own] for own in number_by_gallery]
    return {"queries": queries, **({"galleries": galleries} if galleries else {})}


def _split(entry: Mapping[str, Any]) -> Split:
    """Return the split of an entry; a missing or strange field raises what the caller catches."""
    entry = {**_LATER, **entry}
    gallery = _strings(entry["gallery"])
    galleries = [tuple(gallery[_of_type(int, place)] for place in own) for own in entry.get("galleries", ())]
    if len(set(gallery)) < len(gallery):
        raise ValueError("the gallery names an image twice")
    return Split(
        **{name: _of_type(str, entry[name]) for name in _RULES},
        exclude_reference=_of_type(bool, entry["exclude_reference"]),
        queries=tuple(_query({**_LATER, **query}, galleries) for query in _of_type(list, entry["queries"])),
        gallery=gallery,
        images={},
        missing_list=Path(_of_type(str, entry["missing_list"])) if "missing_list" in entry else None,
    )


def _query(entry: Mapping[str, Any], galleries: Sequence[tuple[str, ...]]) -> Query:
    values: dict[str, Any] = {field.name: entry[field.name] for field in fields(Query)}
    if isinstance(values["gallery"], int):
        return replace(_query({**entry, "gallery": []}, ()), gallery=galleries[values["gallery"]])
    for name, value in values.items():
        if name in _LISTS_OF_A_QUERY:
            values[name] = _strings(value)
        else:
            values[name] = _of_type(int if name in _NUMBERS_OF_A_QUERY else str, value)
    return Query(**values)


def _rerank(entry: Any) -> Rerank | None:
    if entry is None:
        return None
    figures = {str(key): _of_type(float, value) for key, value in _of_type(dict, entry["first_stage"]).items()}
    return Rerank(_of_type(int, entry["num_candidates"]), _of_type(float, entry["ceiling"]), figures)


def _of_type(kind: type, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.40} is no {kind.__name__}")
    return value


def _strings(values: Any) -> tuple[str, ...]:
    return tuple(_of_type(str, value) for value in _of_type(list, values))


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
    names = {part: f"{name}.{part}" for part in _DTYPES}
    parts = {part: tensors[key] for part, key in names.items() if part not in _OPTIONAL or key in tensors}
    top, scores, target_ranks, subset = (parts[part] for part in ("top", "scores", "target_ranks", "subset"))
    right_ranks = parts.get("right_ranks")
    for part, array in parts.items():
        if array.dtype != _DTYPES[part]:
            raise TypeError(f"{name}.{part} is {array.dtype}")
    num_queries = len(split.queries)
    if top.ndim != 2 or scores.shape != top.shape or len(top) != num_queries:
        raise ValueError(f"{name} has the shapes {top.shape} and {scores.shape} for {num_queries} queries")
    if target_ranks.shape != (num_queries,) or subset.ndim != 2 or len(subset) != num_queries:
        raise ValueError(f"{name} has the shapes {target_ranks.shape} and {subset.shape} for {num_queries} queries")
    _check_places(f"{name}.top", top, np.full(num_queries, len(split.gallery)))
    _check_places(f"{name}.subset", subset, np.array([len(query.subset) for query in split.queries]))
    for part, ranks in (("target_ranks", target_ranks), ("right_ranks", right_ranks)):
        if ranks is not None and (ranks.min(initial=0) < 0 or ranks.max(initial=0) > len(split.gallery)):
            raise ValueError(f"{name}.{part} has a rank outside the gallery of {len(split.gallery)}")
    num_right = max(len(query.targets) for query in split.queries)
    if right_ranks is not None and right_ranks.shape != (num_queries, num_right):
        raise ValueError(f"{name} has the shape {right_ranks.shape} for {num_queries} queries, {num_right} answers")
    return Ranking(
        split=split,
        top=top.astype(np.int64),
        scores=scores,
        target_ranks=target_ranks.astype(np.int64),
        subset=tuple(
            tuple(query.subset[place] for place in row if place != PADDING)
            for query, row in zip(split.queries, subset.tolist(), strict=True)
        ),
        right_ranks=None if right_ranks is None else right_ranks.astype(np.int64),
    )


def _check_places(name: str, places: np.ndarray, counts: np.ndarray) -> None:
    """Raise ``ValueError`` unless every row of ``places`` holds numbers below its count, each once, or padding."""
    if ((places < PADDING) | (places >= counts[:, None])).any():
        raise ValueError(f"{name} has a place that is not in the list")
    ordered = np.sort(places, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PADDING)).any():
        raise ValueError(f"{name} has a place twice in a row")


def _subset_places(ranking: Ranking) -> np.ndarray:
    width = max((len(order) for order in ranking.subset), default=0)
    places = np.full((len(ranking.subset), width), PADDING)
    for row, (order, query) in enumerate(zip(ranking.subset, ranking.split.queries, strict=True)):
        places[row, : len(order)] = [query.subset.index(name) for name in order]
    return places


def _with_splits(rankings: Sequence[Ranking], splits: Sequence[Split]) -> tuple[Ranking, ...]:
    return tuple(replace(ranking, split=split) for ranking, split in zip(rankings, splits, strict=True))


def seed_of(checkpoint: Path) -> int | None:
    """Return the seed of the training that made a checkpoint folder; None where no ``recipe.toml`` in it says so."""
    recipe = checkpoint / RECIPE
    seed = read_toml(recipe).get("seed") if recipe.is_file() else None
    return seed if isinstance(seed, int) else None


def _broken(file: Path, message: str) -> ComposirError:
    return ComposirError(message, file=file, expected="a file written by --save-rankings", fix=SAVE_AGAIN)
