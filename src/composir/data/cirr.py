"""CIRR (Liu et al., ICCV 2021, arXiv 2108.04024) and data sets in its layout, as the generated scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from composir.data.annotations import (
    RESTORE,
    Entry,
    Findings,
    check_split_name,
    check_unique,
    choose_categories,
    find_home,
    read_entries,
    read_json,
    require_some,
    require_whole,
)
from composir.data.prompts import CIRR_PROMPTS
from composir.data.triplets import Query, Split, Tree
from composir.errors import Problem

SPLITS = ("train", "val", "test1")
SPLITS_WITHOUT_TARGETS = ("test1",)
IMAGE_FOLDERS = ("train", "dev", "test1")
PLACES = ("train/*", "dev", "test1")
TEXT_RULES = tuple(CIRR_PROMPTS)


def load(
    root: Path, split: str, *, categories: Sequence[str] | None = None, text_rule: str = TEXT_RULES[0]
) -> tuple[Split, ...]:
    """Return the one split of CIRR: every query of ``cap.rc2``, every image of ``split.rc2`` as the gallery.

    ``root`` holds ``cirr/captions``, or is the parent of such a ``cirr_dataset/``, or is the clone of the
    annotations itself, with ``captions/`` and the image folders in it or beside it. Image files are not touched, and
    expected where the split file says (``find_images`` looks for them elsewhere). The target is ``target_hard`` alone:
    the soft targets are no right answers of the metric. ``text_rule``, a key of ``CIRR_PROMPTS``, says what stands
    around the caption. Raises ``SplitNotFoundError`` for a split that is not there and ``AnnotationsError`` with
    everything wrong in it.
    """
    choose_categories("CIRR", categories)
    check_split_name("CIRR", split, SPLITS)
    annotations, tree = _find_folders(Path(root))
    captions_file = annotations / "captions" / f"cap.rc2.{split}.json"
    names_file = annotations / "image_splits" / f"split.rc2.{split}.json"
    require_some("CIRR", split, (captions_file, names_file))

    problems = Findings()
    images = _read_images(names_file, tree.home, problems)
    entries = read_entries(captions_file, problems, id_key="pairid")
    check_unique(entries, "pairid")
    queries = [_read_query(entry, split, text_rule, (images, names_file)) for entry in entries]
    found = Split(
        dataset="CIRR",
        name=split,
        category="",
        queries=tuple(query for query in queries if query is not None),
        gallery=tuple(images or ()),
        images=images or {},
        gallery_rule="original",
        exclude_reference=True,
        text_rule=text_rule,
        file=captions_file,
        files=(captions_file, names_file),
        tree=tree,
    )
    return require_whole((found,), problems)


def _find_folders(root: Path) -> tuple[Path, Tree]:
    """Return the folder of the annotations and where the images may lie."""
    if not any(root.glob("captions/cap.rc2.*.json")):
        home = find_home(
            root, marker="cirr/captions", folder="cirr_dataset", source="the GitHub repository Cuberick-Orion/CIRR"
        )
        return home / "cirr", Tree(home, PLACES)
    beside = root.absolute().parent
    with_images = (home for home in (root, beside) if any((home / folder).is_dir() for folder in IMAGE_FOLDERS))
    home = next(with_images, root)
    return root, Tree(home, PLACES, (root, *(beside / folder for folder in IMAGE_FOLDERS)))


def _read_images(names_file: Path, home: Path, problems: list[Problem]) -> dict[str, Path] | None:
    """Return each image's file by name in the order of the split file; None where that file is unreadable."""
    content = read_json(names_file, dict, problems)
    if content is None:
        return None
    for name, path in content.items():
        if not isinstance(path, str) or not path:
            message = f"the path is {path!r}, expected text such as './dev/{name}.png'"
            problems.append(Problem(str(names_file), f"key {name!r}", message, "write the image's path"))
    return {name: home / path for name, path in content.items() if isinstance(path, str)}


def _read_query(entry: Entry, split: str, text_rule: str, listed: tuple[dict[str, Path] | None, Path]) -> Query | None:
    """Return the query of one entry; what is wrong with it is added to the entry's problems.

    ``listed`` holds the images by name, None where they cannot be checked, and the file that lists them.
    """
    images, names_file = listed
    pairid = entry.get("pairid", int)
    reference = entry.image_name("reference", entry.get("reference", str), images, names_file)
    caption = entry.caption("caption", entry.get("caption", str))
    target = None
    if split not in SPLITS_WITHOUT_TARGETS or "target_hard" in entry.fields:
        target = entry.image_name("target_hard", entry.get("target_hard", str), images, names_file)
        entry.note_own_target(target, reference)
    members = _read_members(entry, images, names_file)
    if pairid is None or reference is None or caption is None:
        return None
    for role, name in (("reference", reference), ("target_hard", target)):
        if name is not None and members and name not in members:
            entry.problem(f"{role} {name!r} is not a member of its img_set", f"add it to the members, or {RESTORE}")
    text = CIRR_PROMPTS[text_rule](caption)
    return Query(
        id=str(pairid),
        reference=reference,
        text=text,
        texts=(text,),
        targets=() if target is None else (target,),
        subset=tuple(member for member in members if member != reference),
    )


def _read_members(entry: Entry, images: dict[str, Path] | None, names_file: Path) -> list[str]:
    """Return the names in the entry's image set; empty after adding a problem."""
    image_set = entry.get("img_set", dict)
    if image_set is None:
        return []
    members = Entry(entry.file, entry.where, image_set, entry.problems).get("members", list)
    return entry.image_names("img_set.members", members or [], str, images, names_file) or []
