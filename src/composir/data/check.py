"""Whether a data root is whole: every annotation, every image file, all problems at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from composir.data.annotations import MAX_TEXT_LENGTH
from composir.data.datasets import load_present, val_union
from composir.data.images import (
    FETCH_FIX,
    IMAGE_SUFFIXES,
    READ_FIX,
    ImageSource,
    Inspection,
    file_of,
    inspect_files,
)
from composir.data.triplets import Query, Split, split_key
from composir.errors import ComposirError, Problem, ProblemsError

Progress = Callable[[int, int], None]
"""Called as ``progress(num_done, num_files)``."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of a data root has found."""

    problems: list[Problem]
    counts: dict[str, dict[str, int]]
    """``num_queries``, ``num_gallery``, ``num_images`` and ``num_duplicate_images`` of each split, by ``split_key``."""
    absent: list[str]
    """The ``split_key`` of what the root does not hold; no problem until it is asked for."""


def check_images(splits: Sequence[Split], *, decode: bool = True, progress: Progress | None = None) -> list[Problem]:
    """Return a problem for every image file of the splits that is missing, empty, cut off or no image.

    Each file is checked once, in the order of the splits. With ``decode=False`` files are looked up, not
    opened: missing and empty ones are found, damaged ones are not.
    """
    where = _where(splits)
    return _unreadable(inspect_files(where, decode=decode, progress=progress), where)


def require_images(splits: Sequence[Split]) -> None:
    """Raise ``ProblemsError`` if an image file of the splits is missing or empty, before hours of work."""
    problems = check_images(splits, decode=False)
    if problems:
        raise ProblemsError(problems)


def without_missing_images(splits: Sequence[Split]) -> tuple[tuple[Split, ...], dict[str, tuple[int, int]]]:
    """Return the splits without what needs a missing image, and how many queries each kept, of how many.

    The counts are ``{split_key: (num_kept, num_queries)}``. A file counts as missing where ``require_images`` would
    refuse it: not there, or empty. A query goes where its reference, one of its right answers, a member of its
    subset or one of its own candidates is missing. A split that lost a query or an image says so in its
    ``gallery_rule``, so that its signature differs. Raises ``ComposirError`` where a split has nothing left.
    """
    reduced, kept_by_key = [], {}
    inspections = inspect_files(_where(splits), decode=False)
    for split in splits:
        missing = {name for name, source in split.images.items() if inspections[file_of(source)].errors}
        queries = tuple(query for query in split.queries if missing.isdisjoint(_names(query)))
        key = split_key(split.name, split.category)
        kept_by_key[key] = (len(queries), len(split.queries))
        if not queries:
            raise ComposirError(
                f"not one of the {len(split.queries):,} queries of {split.dataset} {key} has all its images",
                file=file_of(split.images[min(missing)]).parent,
                expected="the image files",
                fix="put them there; `composir data check` lists what is missing",
            )
        whole = dataclasses.replace(
            split,
            queries=queries,
            gallery=tuple(name for name in split.gallery if name not in missing),
            images={name: source for name, source in split.images.items() if name not in missing},
            gallery_rule=f"{split.gallery_rule} less missing",
        )
        reduced.append(whole if missing else split)
    return tuple(reduced), kept_by_key


def check_dataset(
    dataset: str,
    root: str | Path,
    *,
    categories: Sequence[str] | None = None,
    allow_duplicates: bool = False,
    progress: Progress | None = None,
) -> Checked:
    """Return all problems of everything that the root holds of a data set, with counts.

    Problems of annotations come first, then those of images: files that cannot be read, then files with the same
    content as another (``allow_duplicates`` only counts these). The images of a split with broken annotations are
    checked as far as its split file can be read. Raises ``SplitNotFoundError`` where there is no split.
    """
    present = load_present(dataset, root, categories=categories)
    problems = present.problems + [problem for split in present.splits for problem in _long_texts(split)]
    where = _where(present.splits)
    inspections = inspect_files(where, progress=progress)
    problems += _unreadable(inspections, where)
    original_by_copy = _copies(inspections)
    if not allow_duplicates:
        problems += [
            Problem(
                str(copy),
                where[copy],
                f"has the same content as {original} ({where[original]})",
                "keep one of the two under one name, or accept all such pairs with --allow-duplicates",
            )
            for copy, original in original_by_copy.items()
        ]
    counts = {}
    for split in present.splits:
        files = {file_of(source) for source in split.images.values()}
        counts[split_key(split.name, split.category)] = {
            "num_queries": len(split.queries),
            "num_gallery": len(split.gallery),
            "num_images": len(set(split.images.values())),
            "num_duplicate_images": sum(file in original_by_copy for file in files),
        }
    return Checked(problems, counts, present.absent)


def stats(splits: Sequence[Split]) -> dict[str, dict[str, int | float]]:
    """Return sizes, text lengths in words and repetitions of each split, by ``split_key``; no image is needed.

    ``gallery_original`` is the gallery of the split file, ``gallery_val_union`` that of the references and targets
    alone, left out where the answers are hidden and where every query has a gallery of its own. ``num_pairs`` counts
    different (reference, target); ``num_duplicate_targets`` counts the queries whose target an earlier query has
    already; both are 0 where the split has no targets.
    """
    stats_by_key = {}
    for split in splits:
        lengths = [len(query.text.split()) for query in split.queries]
        pairs = [(query.reference, query.targets[0]) for query in split.queries if query.targets]
        has_union = all(query.targets and not query.gallery for query in split.queries)
        stats_by_key[split_key(split.name, split.category)] = {
            "num_queries": len(split.queries),
            "num_gallery": len(split.gallery),
            "gallery_original": len(split.gallery),
            **({"gallery_val_union": len(val_union(split).gallery)} if has_union else {}),
            "num_references": len({query.reference for query in split.queries}),
            "num_pairs": len(set(pairs)),
            "num_duplicate_targets": len(pairs) - len({target for _, target in pairs}),
            "words_min": min(lengths),
            "words_mean": sum(lengths) / len(lengths),
            "words_max": max(lengths),
        }
    return stats_by_key


def _where(splits: Sequence[Split]) -> dict[ImageSource, str]:
    """Return what each image, and each file of images, is called in problems: by the first split that has it."""
    where: dict[ImageSource, str] = {}
    for split in splits:
        for name, source in split.images.items():
            place = f"image {name!r} of {split.dataset} {split_key(split.name, split.category)}"
            where.setdefault(source, place)
            where.setdefault(file_of(source), place)
    return where


def _unreadable(inspections: Mapping[Path, Inspection], where: Mapping[ImageSource, str]) -> list[Problem]:
    problems = []
    for file, inspection in inspections.items():
        for source, error in inspection.errors.items():
            message = error.message + (f", expected {error.expected}" if error.expected else "")
            fix = error.fix if error.fix not in (None, READ_FIX) else FETCH_FIX
            problems.append(Problem(str(source), where[source], message, _other_suffix(file) or fix))
    return problems


def _copies(inspections: Mapping[Path, Inspection]) -> dict[Path, Path]:
    """Return the first file with the same bytes, for every file that is not the first."""
    first_by_digest: dict[bytes, Path] = {}
    copies = {}
    for file, inspection in inspections.items():
        if inspection.digest is not None:
            first = first_by_digest.setdefault(inspection.digest, file)
            if first != file:
                copies[file] = first
    return copies


def _long_texts(split: Split) -> list[Problem]:
    return [
        Problem(
            str(split.file or split.dataset),
            f"query {query.id}",
            f"the text has {len(text):,} characters, expected at most {MAX_TEXT_LENGTH:,} ({text[:40]!r}...)",
            "shorten it; where a quote is not closed, rows may have run together",
        )
        for query in split.queries
        if len(text := max((query.text, *query.texts), key=len)) > MAX_TEXT_LENGTH
    ]


def _names(query: Query) -> tuple[str, ...]:
    return (query.reference, *query.targets, *query.subset, *query.gallery)


def _other_suffix(file: Path) -> str | None:
    """Return the fix for a missing file that is there under another suffix, else None."""
    if file.exists():
        return None
    for suffix in IMAGE_SUFFIXES:
        other = file.with_suffix(suffix)
        if other.exists():
            return f"{other.name} is there: correct the path in the split file, or convert the image"
    return None
