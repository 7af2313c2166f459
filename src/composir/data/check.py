"""Whether a data root is whole: every annotation, every image file, all problems at once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from composir.data.annotations import MAX_TEXT_LENGTH
from composir.data.checksums import are_published
from composir.data.datasets import find_dataset, load_present, val_union
from composir.data.images import ImageSource, Inspection, file_of, inspect_files, read_image
from composir.data.images.files import EMPTY, FETCH_FIX, MISSING, READ_FIX
from composir.data.triplets import Query, Split, split_key
from composir.errors import ComposirError, Note, Problem, ProblemsError, counted
from composir.progress import Counted

SKIP_FIX = "leave out what needs them: train, evaluate and features take --skip-missing-images"
MAX_NAMED = 5
"""Names of images in one problem; the others are counted."""
MAX_PLACES = 20
"""Places in one note; the others are counted."""
PLACEHOLDER_SIDE, PLACEHOLDER_NAMES = 2, 10
"""The same file under several names stands for a picture that could not be had: one of so few pixels a side under two
names, or any under so many."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check of a data root has found."""

    problems: list[Problem]
    notes: list[Note]
    """What is odd and no problem: it is published so, or lies in another folder."""
    files: dict[Path, bool | None]
    """Every annotation file, and whether it is the published one; None where that is not known."""
    counts: dict[str, dict[str, int]]
    """``num_queries``, ``num_gallery``, ``num_images``, ``num_duplicate_images`` and ``num_placeholder_images`` of each
    split, by ``split_key``."""
    absent: list[str]
    """The ``split_key`` of what the root does not hold; no problem until it is asked for."""


@dataclass(frozen=True, slots=True)
class Left:
    """How much of a split is left without the images that are missing."""

    num_queries: int
    of_queries: int
    num_images: int
    of_images: int

    @property
    def is_less(self) -> bool:
        """Whether a query or an image is gone."""
        return (self.num_queries, self.num_images) != (self.of_queries, self.of_images)

    def __str__(self) -> str:
        queries = f"{self.num_queries:,} of {counted(self.of_queries, 'query', 'queries')}"
        return f"{queries} and {self.num_images:,} of {counted(self.of_images, 'image')} are left"


def check_images(splits: Sequence[Split], *, decode: bool = True, progress: Counted | None = None) -> list[Problem]:
    """Return what is wrong with the image files of the splits.

    That is one problem a split for all that are missing, one for all that are empty, and one for every other file that
    is cut off or no image. Each file is checked once, in the order of the splits. With ``decode=False`` files are
    looked up, not opened: missing and empty ones are found, damaged ones are not.
    """
    inspections = inspect_files(_where(splits), decode=decode, progress=progress)
    return _unreadable(inspections, splits)


def require_images(splits: Sequence[Split]) -> None:
    """Raise ``ProblemsError`` if an image file of the splits is missing or empty, before hours of work."""
    problems = check_images(splits, decode=False)
    if problems:
        raise ProblemsError(problems)


def without_missing_images(splits: Sequence[Split]) -> tuple[tuple[Split, ...], dict[str, Left]]:
    """Return the splits without what needs a missing image, and what is left of each, by ``split_key``.

    A file counts as missing where ``require_images`` would refuse it: not there, or empty. A query goes where one of
    its references, right answers and negatives, a member of its subset or one of its own candidates is missing.
    Where the categories of a split lost a query or an image, all of them say how much is left in their
    ``gallery_rule``, so that the signature differs from that of the whole set. Raises ``ComposirError`` where a split
    has nothing left.
    """
    reduced: list[Split] = []
    left_by_key: dict[str, Left] = {}
    inspections = inspect_files(_where(splits), decode=False)
    for split in splits:
        missing = {name for name, source in split.images.items() if inspections[file_of(source)].errors}
        queries = tuple(query for query in split.queries if missing.isdisjoint(_names(query)))
        key = split_key(split.name, split.category)
        if not queries:
            raise ComposirError(
                f"not one of the {len(split.queries):,} queries of {split.dataset} {key} has all its images",
                file=file_of(split.images[min(missing)]).parent,
                expected="the image files",
                fix="put them there; `composir data check` lists what is missing",
            )
        images = {name: source for name, source in split.images.items() if name not in missing}
        gallery = tuple(name for name in split.gallery if name not in missing)
        reduced.append(dataclasses.replace(split, queries=queries, gallery=gallery, images=images))
        left_by_key[key] = Left(len(queries), len(split.queries), len(images), len(split.images))
    return tuple(_with_rule(split, left_by_key) for split in reduced), left_by_key


def _with_rule(split: Split, left_by_key: Mapping[str, Left]) -> Split:
    """Return the split with what is left of it, over all its categories, in its ``gallery_rule``."""
    parts = [left for key, left in left_by_key.items() if key.rpartition(".")[2] == split.name]
    queries, of_queries = sum(part.num_queries for part in parts), sum(part.of_queries for part in parts)
    images, of_images = sum(part.num_images for part in parts), sum(part.of_images for part in parts)
    if (queries, images) == (of_queries, of_images):
        return split
    rule = f"{split.gallery_rule} less missing, {queries} of {of_queries} queries, {images} of {of_images} images"
    return dataclasses.replace(split, gallery_rule=rule)


def check_dataset(
    dataset: str,
    root: str | Path,
    *,
    categories: Sequence[str] | None = None,
    allow_duplicates: bool = False,
    progress: Counted | None = None,
) -> Checked:
    """Return all problems of everything that the root holds of a data set, with notes and counts.

    Problems of annotations come first, then those of images: files that cannot be read, files that stand for pictures
    that could not be had, then files with the same content as another (``allow_duplicates`` only counts these). The
    images of a split with broken annotations are checked as far as its split file can be read. Raises
    ``SplitNotFoundError`` where there is no split.
    """
    present = load_present(dataset, root, categories=categories)
    files = are_published(find_dataset(dataset), (file for split in present.splits for file in split.files))
    notes = [
        Note(str(file), "", "is not the published file: another set in this layout, or a changed copy")
        for file, is_published in files.items()
        if is_published is False
    ]
    notes += _grouped([*present.notes, *(note for split in present.splits for note in _long_texts(split))])
    where = _where(present.splits)
    inspections = inspect_files(where, progress=progress)
    problems = present.problems + _unreadable(inspections, present.splits)
    original_by_copy = _copies(inspections, present.splits)
    placeholders = _placeholders(original_by_copy)
    problems += [_placeholder_problem(copies, where) for copies in placeholders]
    standing_in = {file for copies in placeholders for file in copies}
    if not allow_duplicates:
        problems += [
            Problem(
                str(copy),
                where[copy],
                f"has the same content as {original} ({where[original]})",
                "keep one of the two under one name, or accept all such pairs with --allow-duplicates",
            )
            for copy, original in original_by_copy.items()
            if copy not in standing_in
        ]
    counts = {}
    for split in present.splits:
        own_files = {file_of(source) for source in split.images.values()}
        counts[split_key(split.name, split.category)] = {
            "num_queries": len(split.queries),
            "num_gallery": len(split.gallery),
            "num_images": len(set(split.images.values())),
            "num_duplicate_images": sum(file in original_by_copy for file in own_files),
            "num_placeholder_images": len(own_files & standing_in),
        }
    return Checked(problems, notes, files, counts, present.absent)


def stats(splits: Sequence[Split]) -> dict[str, dict[str, int | float]]:
    """Return sizes, text lengths in words and repetitions of each split, by ``split_key``; no image is needed.

    ``gallery_original`` is the gallery of the split file, ``gallery_val_union`` that of the references and targets
    alone, left out where the answers are hidden and where every query has a gallery of its own. ``num_pairs`` counts
    different (reference, target); ``num_duplicate_targets`` counts the queries whose target an earlier query has
    already; both are 0 where the split has no targets. What the gallery holds is left out where its list is not there.
    """
    stats_by_key = {}
    for split in splits:
        lengths = [len(query.text.split()) for query in split.queries]
        pairs = [(query.reference, query.targets[0]) for query in split.queries if query.targets]
        has_union = all(query.targets and not query.gallery for query in split.queries)
        stats_by_key[split_key(split.name, split.category)] = {
            "num_queries": len(split.queries),
            **({} if split.missing_list else {"num_gallery": len(split.gallery)}),
            **({} if split.missing_list else {"gallery_original": len(split.gallery)}),
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


def _unreadable(inspections: Mapping[Path, Inspection], splits: Sequence[Split]) -> list[Problem]:
    """Return the problems of the files: those that are missing or empty by split, every other on its own."""
    problems = []
    for kind, describe in ((MISSING, _missing), (EMPTY, _empty)):
        of_kind = {
            file
            for file, inspection in inspections.items()
            if any(error.message == kind for error in inspection.errors.values())
        }
        for split in splits:
            names = {name: file_of(source) for name, source in split.images.items() if file_of(source) in of_kind}
            if names:
                problems.append(describe(split, names))
    where = _where(splits)
    for inspection in inspections.values():
        for source, error in inspection.errors.items():
            if error.message not in (MISSING, EMPTY):
                message = error.message + (f", expected {error.expected}" if error.expected else "")
                fix = error.fix if error.fix not in (None, READ_FIX) else FETCH_FIX
                problems.append(Problem(str(source), where[source], message, fix))
    return problems


def _missing(split: Split, names: Mapping[str, Path]) -> Problem:
    """Return the one problem of a split whose image files are not all there: where was looked, how many there are."""
    folders = ""
    if split.tree is not None:
        roots = [root for root in split.tree.roots if root.is_dir()] or [split.tree.home]
        folders = f"; looked there and, by name, below {' and '.join(map(str, roots))}"
    total = len(split.images)
    message = f"{total - len(names):,} of {total:,} images are there{folders}; missing: {_some(names)}"
    return Problem(_common(names.values()), _place(split), message, f"put them there (docs/data.md), or {SKIP_FIX}")


def _empty(split: Split, names: Mapping[str, Path]) -> Problem:
    total = len(split.images)
    message = f"{len(names):,} of {total:,} images are empty files (0 bytes): {_some(names)}"
    return Problem(_common(names.values()), _place(split), message, f"fetch them again, or {SKIP_FIX}")


def _common(files: Collection[Path]) -> str:
    """Return the folder that holds all the files, as far down as there is one."""
    return os.path.commonpath([file.parent for file in files])


def _place(split: Split) -> str:
    return f"{split.dataset} {split_key(split.name, split.category)}"


def _some(names: Collection[str], most: int = MAX_NAMED) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(repr, list(names)[:most])) + more


def _placeholders(original_by_copy: Mapping[Path, Path]) -> list[list[Path]]:
    """Return the files, by content, that stand in for pictures."""
    copies_by_original: dict[Path, list[Path]] = {}
    for copy, original in original_by_copy.items():
        copies_by_original.setdefault(original, [original]).append(copy)
    return [
        files
        for original, files in copies_by_original.items()
        if len(files) >= PLACEHOLDER_NAMES or max(read_image(original).size) <= PLACEHOLDER_SIDE
    ]


def _placeholder_problem(files: Sequence[Path], where: Mapping[ImageSource, str]) -> Problem:
    width, height = read_image(files[0]).size
    names = [file.name for file in files]
    return Problem(
        _common(files),
        f"{where[files[0]]} and others",
        f"the same picture of {width} x {height} pixels stands under {len(files):,} names, in place of pictures that "
        f"could not be had: {_some(names)}",
        f"fetch the pictures, or delete these files and {SKIP_FIX}",
    )


def _grouped(notes: Sequence[Note]) -> list[Note]:
    """Return the notes with those that say the same of one file made one."""
    places: dict[tuple[str, str], list[str]] = {}
    for note in notes:
        places.setdefault((note.file, note.message), []).append(note.where)
    grouped = []
    for (file, message), where in places.items():
        more = f" and {len(where) - MAX_PLACES:,} more" if len(where) > MAX_PLACES else ""
        times = f" ({len(where):,} times)" if len(where) > 1 else ""
        grouped.append(Note(file, ", ".join(where[:MAX_PLACES]) + more, message + times))
    return grouped


def _copies(inspections: Mapping[Path, Inspection], splits: Sequence[Split]) -> dict[Path, Path]:
    """Return the first file with the same bytes, for every file that is not the first and stands for another image.

    FashionIQ's categories share images, and where each category has a folder both have the file.
    """
    name_by_file = {file_of(source): name for split in splits for name, source in split.images.items()}
    first_by_digest: dict[bytes, Path] = {}
    copies = {}
    for file, inspection in inspections.items():
        if inspection.digest is not None:
            first = first_by_digest.setdefault(inspection.digest, file)
            if name_by_file[first] != name_by_file[file]:
                copies[file] = first
    return copies


def _long_texts(split: Split) -> list[Note]:
    return [
        Note(
            str(split.file or split.dataset),
            f"query {query.id}",
            f"the text has {len(text):,} characters, more than {MAX_TEXT_LENGTH:,} ({text[:40]!r}...)",
        )
        for query in split.queries
        if len(text := max((query.text, *query.texts), key=len)) > MAX_TEXT_LENGTH
    ]


def _names(query: Query) -> tuple[str, ...]:
    return (*query.references, *query.targets, *query.negatives, *query.subset, *query.gallery)
