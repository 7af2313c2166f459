"""Whether a data root is whole: every annotation, every image file, all problems at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from composir.data.annotations import AnnotationsError, SplitNotFoundError
from composir.data.datasets import DATASETS, find_dataset
from composir.data.images import FETCH_FIX, IMAGE_SUFFIXES, READ_FIX, ImageSource, file_of, read_image
from composir.data.triplets import Split
from composir.errors import ComposirError, Problem, ProblemsError

MAX_THREADS = 8

Progress = Callable[[int, int], None]
"""Called as ``progress(num_done, num_images)``."""


def split_key(split: Split) -> str:
    """Return what a split is called in counts: ``val``, or ``dress.val`` where there are categories."""
    return f"{split.category}.{split.name}" if split.category else split.name


def check_images(splits: Sequence[Split], *, decode: bool = True, progress: Progress | None = None) -> list[Problem]:
    """Return a problem for every image file of the splits that is missing, empty, cut off or no image.

    Each file is checked once, in the order of the splits. With ``decode=False`` files are looked up, not
    opened: missing and empty ones are found, damaged ones are not.
    """
    where_by_file: dict[ImageSource, str] = {}
    for split in splits:
        for name, file in split.images.items():
            where_by_file.setdefault(file, f"image {name!r} of {split.dataset} {split_key(split)}")
    check = _check_by_reading if decode else _check_by_size
    problems = []
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        errors = threads.map(check, where_by_file)
        for num_done, ((file, where), error) in enumerate(zip(where_by_file.items(), errors, strict=True), 1):
            if error is not None:
                message = error.message + (f", expected {error.expected}" if error.expected else "")
                fix = error.fix if error.fix not in (None, READ_FIX) else FETCH_FIX
                problems.append(Problem(str(file), where, message, _other_suffix(file_of(file)) or fix))
            if progress is not None:
                progress(num_done, len(where_by_file))
    return problems


def require_images(splits: Sequence[Split]) -> None:
    """Raise ``ProblemsError`` if an image file of the splits is missing or empty, before hours of work."""
    problems = check_images(splits, decode=False)
    if problems:
        raise ProblemsError(problems)


def check_dataset(
    dataset: str,
    root: str | Path,
    *,
    decode: bool = True,
    categories: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> tuple[list[Problem], dict[str, dict[str, int]]]:
    """Return all problems of the splits that the root holds, and ``{split: {"num_queries", ...}}``.

    Annotation problems come first, then image problems; the images of a split with annotation problems are
    checked as far as its split file can be read. Raises ``SplitNotFoundError`` where there is no split.
    """
    dataset = find_dataset(dataset)
    load, names = DATASETS[dataset].load, DATASETS[dataset].splits
    problems: list[Problem] = []
    splits: list[Split] = []
    num_found = 0
    for name in names:
        try:
            splits += load(Path(root), name, categories=categories)
        except SplitNotFoundError:
            continue
        except AnnotationsError as error:
            problems += error.problems
            splits += error.splits
        num_found += 1
    if not num_found:
        raise SplitNotFoundError(
            f"holds no annotation file of {dataset}",
            file=root,
            expected=f"at least one of the splits {', '.join(names)}",
            fix="put the published annotation files there",
        )
    problems += check_images(splits, decode=decode, progress=progress)
    counts = {
        split_key(split): {
            "num_queries": len(split.queries),
            "num_gallery": len(split.gallery),
            "num_images": len(set(split.images.values())),
        }
        for split in splits
    }
    return problems, counts


def stats(splits: Sequence[Split]) -> dict[str, dict[str, int | float]]:
    """Return sizes, text lengths in words and repetitions of each split, by ``split_key``.

    ``num_pairs`` counts different (reference, target); ``num_duplicate_targets`` counts the queries whose
    target an earlier query has already; both are 0 where the split has no targets.
    """
    stats_by_key = {}
    for split in splits:
        lengths = [len(query.text.split()) for query in split.queries]
        pairs = [(query.reference, query.targets[0]) for query in split.queries if query.targets]
        stats_by_key[split_key(split)] = {
            "num_queries": len(split.queries),
            "num_gallery": len(split.gallery),
            "num_references": len({query.reference for query in split.queries}),
            "num_pairs": len(set(pairs)),
            "num_duplicate_targets": len(pairs) - len({target for _, target in pairs}),
            "words_min": min(lengths),
            "words_mean": sum(lengths) / len(lengths),
            "words_max": max(lengths),
        }
    return stats_by_key


def _check_by_reading(file: ImageSource) -> ComposirError | None:
    try:
        read_image(file)
    except ComposirError as error:
        return error
    return None


def _check_by_size(source: ImageSource) -> ComposirError | None:
    file = file_of(source)
    if not file.is_file():
        return ComposirError("no such image file")
    return ComposirError("the image file is empty (0 bytes)") if file.stat().st_size == 0 else None


def _other_suffix(file: Path) -> str | None:
    """Return the fix for a missing file that is there under another suffix, else None."""
    if file.exists():
        return None
    for suffix in IMAGE_SUFFIXES:
        other = file.with_suffix(suffix)
        if other.exists():
            return f"{other.name} is there: correct the path in the split file, or convert the image"
    return None
