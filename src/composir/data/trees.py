"""Where image files lie in the trees that people have: as published, or found by name under the data root."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from composir.data.images import IMAGE_SUFFIXES, Crop, ImageSource, file_of
from composir.data.triplets import Split, Tree, split_key
from composir.errors import Note, Problem

MAX_FOLDERS = 4
"""Folders that a note names one by one; of more it names the folder above all of them."""


@dataclass(frozen=True, slots=True)
class Found:
    """Splits whose images are where the files are, and what there is to say about it."""

    splits: tuple[Split, ...]
    notes: list[Note]
    """One for each folder tree that is not the published one."""
    problems: list[Problem]
    """One for each split with names that several files have."""


def find_images(splits: Sequence[Split]) -> Found:
    """Return the splits with the file of every image: the published one, or the one found by its name.

    Only where the published folders lack files is the tree walked, once for all splits. A file counts as found whatever
    its folder, whether it is a PNG or a JPEG, and in upper or lower case. Of several the one whose folders are most
    like the published ones is taken; where that leaves more than one, nobody can tell which is right, and the split
    has a problem. What is not found stays where it is expected. No image is opened.
    """
    listed = _Listed()
    absent = {
        file: split.tree
        for split in splits
        if split.tree is not None
        for file in map(file_of, split.images.values())
        if file.name not in listed.names(file.parent)
    }
    candidates = _candidates(absent)
    located: list[Split] = []
    problems: list[Problem] = []
    moved_by_tree: dict[Tree, dict[Path, Path]] = {}
    for split in splits:
        found: dict[Path, Path] = {}
        unclear: dict[Path, list[Path]] = {}
        for file in dict.fromkeys(map(file_of, split.images.values())):
            best = _best(file, split, candidates.get(_key(file), ())) if file in absent else []
            if len(best) == 1:
                found[file] = best[0]
            elif best:
                unclear[file] = best
        if unclear:
            problems.append(_unclear(split, unclear))
        if split.tree is not None:
            moved_by_tree.setdefault(split.tree, {}).update(found)
        images = {name: _moved(source, found) for name, source in split.images.items()} if found else split.images
        located.append(replace(split, images=images))
    notes = [note for tree, moved in moved_by_tree.items() for note in _notes(tree, moved, splits)]
    return Found(tuple(located), notes, problems)


class _Listed:
    """The names in folders, each listed once."""

    def __init__(self) -> None:
        self.names_by_folder: dict[Path, frozenset[str]] = {}

    def names(self, folder: Path) -> frozenset[str]:
        if folder not in self.names_by_folder:
            try:
                self.names_by_folder[folder] = frozenset(os.listdir(folder))  # noqa: PTH208 (names alone)
            except (OSError, ValueError):  # not there; a name that no folder can have
                self.names_by_folder[folder] = frozenset()
        return self.names_by_folder[folder]


def _key(file: Path) -> str:
    """Return what a file is looked up by: its name without the suffix of an image, in lower case."""
    return (file.stem if file.suffix.lower() in IMAGE_SUFFIXES else file.name).casefold()


def _candidates(absent: dict[Path, Tree]) -> dict[str, list[Path]]:
    """Return the image files below the roots by what they are looked up by, those that are looked for alone."""
    wanted = {_key(file) for file in absent}
    found: dict[str, list[Path]] = {}
    roots = dict.fromkeys(root for tree in absent.values() for root in tree.roots or (tree.home,))
    for file in _walk(roots):
        key = _key(file)
        if key in wanted:
            found.setdefault(key, []).append(file)
    return found


def _walk(roots: Iterable[Path]) -> Iterator[Path]:
    """Yield the image files below folders; hidden ones are left out, linked folders followed, each folder once."""
    seen: set[tuple[int, int]] = set()
    waiting = [str(root) for root in roots]
    while waiting:
        folder = waiting.pop()
        try:
            status = os.stat(folder)  # noqa: PTH116 (a Path for each of 200,000 files takes seconds)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.name.lower().endswith(IMAGE_SUFFIXES):
                        yield Path(entry.path)
                    elif entry.is_dir():
                        waiting.append(entry.path)
        except OSError:  # what cannot be listed holds nothing that could be read
            continue


def _best(file: Path, split: Split, candidates: Iterable[Path]) -> list[Path]:
    """Return the candidates for a file that are as like it as any: one a folder, the preferred suffix of each."""
    assert split.tree is not None
    if _key(file).isdecimal():  # a bare number may well be another picture's name, too
        called = {place.rpartition("/")[2].casefold() for place in split.tree.places}
        candidates = [one for one in candidates if one.parent.name.casefold() in called]
    best: dict[Path, Path] = {}
    likeness = (False, -1, False)
    for candidate in sorted(candidates, key=lambda one: (IMAGE_SUFFIXES.index(one.suffix.lower()), one)):
        own = _likeness(candidate, file, split)
        if own > likeness:
            best, likeness = {}, own
        if own == likeness:
            best.setdefault(candidate.parent, candidate)
    return list(best.values())


def _likeness(candidate: Path, file: Path, split: Split) -> tuple[bool, int, bool]:
    """Return how like a file is to the one expected: its name as written, its last folders, the category's folder."""
    folders, expected = ([part.casefold() for part in reversed(one.parent.parts)] for one in (candidate, file))
    same = 0
    while same < min(len(folders), len(expected)) and folders[same] == expected[same]:
        same += 1
    return candidate.stem == file.stem, same, bool(split.category) and split.category in folders


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
    elsewhere = {expected: file for expected, file in moved.items() if not _places(file, tree)}
    if not elsewhere:
        return []
    files = {file_of(source) for split in splits if split.tree == tree for source in split.images.values()}
    folders = sorted({file.parent for file in elsewhere.values()})
    if len(folders) > MAX_FOLDERS:
        folders = [Path(os.path.commonpath(folders))]
    found = ", ".join(f"{os.path.relpath(folder, tree.home)}/" for folder in folders)
    places = dict.fromkeys(place for expected in elsewhere for place in _places(expected, tree)) or tree.places
    published = " or ".join(f"{place}/" for place in places)
    message = f"{len(elsewhere):,} of {len(files):,} images were found in {found}, not in {published} as published"
    return [Note(str(tree.home), "", message)]


def _places(file: Path, tree: Tree) -> list[str]:
    """Return the published folders that hold a file."""
    folder = Path(os.path.relpath(file.parent, tree.home)).as_posix()
    return [place for place in tree.places if fnmatchcase(folder, place) and folder.count("/") == place.count("/")]
