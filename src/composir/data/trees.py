"""Where image files lie in the trees that people have: as published, or found by name under the data root."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from composir.data.images import Crop, ImageSource, file_of
from composir.data.triplets import Split, Tree, split_key
from composir.errors import Note, Problem

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""What an image file of a data set may be called, the preferred first: copies of a data set differ."""
MAX_FOLDERS = 4
"""Folders that a note names one by one; of more it names the folder above all of them."""


@dataclass(frozen=True, slots=True)
class Located:
    """Splits whose images are where the files are, and what there is to say about it."""

    splits: tuple[Split, ...]
    notes: list[Note]
    """One for each folder tree that is not the published one."""
    problems: list[Problem]
    """One for each split with names that several files have."""


def find_images(splits: Sequence[Split]) -> Located:
    """Return the splits with the file of every image: the published one, or the one found by its name.

    Only where the published folders lack files is the tree walked, once for all splits. A file counts as found whatever
    its folder, whether it is a PNG or a JPEG, and in upper or lower case. Of several the one whose folders are most
    like the published ones is taken; where that leaves more than one, nobody can tell which is right, and the split
    has a problem. What is not found stays where it is expected. No image is opened.
    """
    listed: dict[str, frozenset[str]] = {}
    absent_by_split = [_absent(split, listed) for split in splits]
    roots = dict.fromkeys(
        root
        for split, absent in zip(splits, absent_by_split, strict=True)
        if split.tree is not None and absent
        for root in split.tree.roots or (split.tree.home,)
    )
    wanted = {_key(file.name) for absent in absent_by_split for file in absent}
    candidates = _candidates(roots, wanted)
    located: list[Split] = []
    problems: list[Problem] = []
    moved_by_tree: dict[Tree, dict[Path, Path]] = {}
    for split, absent in zip(splits, absent_by_split, strict=True):
        found: dict[Path, Path] = {}
        unclear: dict[Path, list[Path]] = {}
        for file in absent:
            best = _best(file, split, candidates.get(_key(file.name), []))
            if len(best) == 1:
                found[file] = Path(best[0])
            elif best:
                unclear[file] = [Path(one) for one in best]
        if unclear:
            problems.append(_unclear(split, unclear))
        if found and split.tree is not None:
            moved_by_tree.setdefault(split.tree, {}).update(found)
            images = {name: _moved(source, found) for name, source in split.images.items()}
            located.append(replace(split, images=images))
        else:
            located.append(split)
    notes = [note for tree, moved in moved_by_tree.items() for note in _notes(tree, moved, splits)]
    return Located(tuple(located), notes, problems)


# Below, paths are text where there may be 200,000 of them: a Path takes ten times as long to make and to take apart.


def _absent(split: Split, listed: dict[str, frozenset[str]]) -> dict[Path, None]:
    """Return the files of a split that are not where they are expected; ``listed`` holds the names by folder."""
    absent: dict[Path, None] = {}
    for source in split.images.values() if split.tree is not None else ():
        file = file_of(source)
        folder, name = os.path.split(file)
        if folder not in listed:
            try:
                listed[folder] = frozenset(os.listdir(folder))  # noqa: PTH208 (names alone)
            except (OSError, ValueError):  # not there; a name that no folder can have
                listed[folder] = frozenset()
        if name not in listed[folder]:
            absent[file] = None
    return absent


def _split_name(name: str) -> tuple[str, str]:
    """Return the name of a file without the suffix of an image, and that suffix in lower case."""
    stem, dot, suffix = name.rpartition(".")
    suffix = (dot + suffix).lower()
    return (stem, suffix) if suffix in IMAGE_SUFFIXES else (name, "")


def _key(name: str) -> str:
    """Return what a file is looked up by: its name without the suffix of an image, in lower case."""
    return _split_name(name)[0].casefold()


def _candidates(roots: Iterable[Path], wanted: Collection[str]) -> dict[str, list[str]]:
    """Return the image files below the roots by what they are looked up by, those that are ``wanted`` alone.

    Hidden files and folders are left out, linked folders followed, each folder once.
    """
    found: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    waiting = [str(root) for root in roots]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    stem, suffix = _split_name(entry.name)
                    if entry.name.startswith("."):
                        continue
                    if suffix:
                        if stem.casefold() in wanted:
                            found.setdefault(stem.casefold(), []).append(entry.path)
                    elif entry.is_dir():
                        waiting.append(entry.path)
        except OSError:  # what cannot be listed holds nothing that could be read
            continue
    return found


def _best(file: Path, split: Split, candidates: list[str]) -> list[str]:
    """Return the candidates for a file that are as like it as any: one a folder, the preferred suffix of each."""
    assert split.tree is not None
    if candidates and _key(file.name).isdecimal():  # a bare number may well be another picture's name, too
        called = {place.rpartition("/")[2].casefold() for place in split.tree.places}
        folders = [os.path.basename(os.path.dirname(one)) for one in candidates]  # noqa: PTH119, PTH120
        candidates = [one for one, folder in zip(candidates, folders, strict=True) if folder.casefold() in called]
    if len(candidates) < 2:
        return candidates
    best: dict[str, str] = {}
    likeness = (False, -1, False)
    for candidate in sorted(candidates, key=lambda one: (IMAGE_SUFFIXES.index(_split_name(one)[1]), one)):
        own = _likeness(Path(candidate), file, split)
        if own > likeness:
            best, likeness = {}, own
        if own == likeness:
            best.setdefault(os.path.dirname(candidate), candidate)  # noqa: PTH120
    return list(best.values())


def _likeness(candidate: Path, file: Path, split: Split) -> tuple[bool, int, bool]:
    """Return how like a file is to the one expected: its name as written, its last folders, the category's folder."""
    folders, expected = ([part.casefold() for part in reversed(one.parent.parts)] for one in (candidate, file))
    same = 0
    while same < min(len(folders), len(expected)) and folders[same] == expected[same]:
        same += 1
    as_written = _split_name(candidate.name)[0] == _split_name(file.name)[0]
    category = split.category.rpartition("_")[2]  # dress of fashioniq_dress
    return as_written, same, bool(category) and category in folders


def _moved(source: ImageSource, found: dict[Path, Path]) -> ImageSource:
    file = found.get(file_of(source), file_of(source))
    return Crop(file, source.box) if isinstance(source, Crop) else file


def _unclear(split: Split, unclear: dict[Path, list[Path]]) -> Problem:
    assert split.tree is not None
    first, second, *_ = next(iter(unclear.values()))
    number = f"{len(unclear):,} images have" if len(unclear) > 1 else "an image has"
    return Problem(
        str(split.tree.home),
        f"{split.dataset} {split_key(split.name, split.category)}",
        f"{number} more than one file of the same name, such as {first} and {second}",
        "keep one of them below this folder, or put the right one where docs/data.md shows it",
    )


def _notes(tree: Tree, moved: dict[Path, Path], splits: Sequence[Split]) -> list[Note]:
    """Return a note on where the files were found, if that is not a published folder."""
    expected_by_found: dict[str, set[str]] = {}
    num_by_found: Counter[str] = Counter()
    for expected, file in moved.items():
        folder = os.path.dirname(file)  # noqa: PTH120
        expected_by_found.setdefault(folder, set()).add(os.path.dirname(expected))  # noqa: PTH120
        num_by_found[folder] += 1
    elsewhere = [folder for folder in num_by_found if not _places(folder, tree)]
    if not elsewhere:
        return []
    num_files = len({file_of(source) for split in splits if split.tree == tree for source in split.images.values()})
    folders = sorted(elsewhere) if len(elsewhere) <= MAX_FOLDERS else [os.path.commonpath(elsewhere)]
    found = ", ".join(f"{os.path.relpath(folder, tree.home)}/" for folder in folders)
    expected_folders = sorted(set().union(*(expected_by_found[folder] for folder in elsewhere)))
    published = dict.fromkeys(place for folder in expected_folders for place in _places(folder, tree)) or tree.places
    message = (
        f"{sum(num_by_found[folder] for folder in elsewhere):,} of {num_files:,} images were found in {found}, "
        f"not in {' or '.join(f'{place}/' for place in published)} as published"
    )
    return [Note(str(tree.home), "", message)]


def _places(folder: str, tree: Tree) -> list[str]:
    """Return the published folders that a folder is one of."""
    below_home = Path(os.path.relpath(folder, tree.home)).as_posix()
    return [
        place for place in tree.places if fnmatchcase(below_home, place) and below_home.count("/") == place.count("/")
    ]
