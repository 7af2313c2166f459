"""OACIRR (Yang et al., CVPR 2026, arXiv 2604.05393): the very object of the reference, elsewhere; four domains."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from composir.data.annotations import (
    RESTORE,
    Entry,
    Findings,
    check_split_name,
    choose_categories,
    find_categories,
    find_home,
    read_entries,
    read_json,
    require_whole,
)
from composir.data.triplets import Query, Split, Tree

SPLITS = ("train", "val")
CATEGORIES = ("fashion", "car", "product", "landmark")

Listed = tuple[dict[str, str] | None, Path]
"""The instance of every image by name, None where the split file is unreadable, and that file."""


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return one split a domain, fashion, car, product and landmark unless ``categories`` names fewer.

    ``root`` holds ``OACIRR-Subset/``, or is the parent of such an ``OACIRR/``. The gallery is the split file's list,
    and an image shows the instance that its folder is named after. A query's targets are the annotated image, then all
    others of its instance but the reference: these are right for R_ID@K alone. The box of the object in the reference
    is not read: the reference is the whole picture. A query's id is its number in the file, from 0. Image files are not
    touched. Raises ``SplitNotFoundError`` when no domain has the split and ``AnnotationsError`` with
    everything wrong in all of them; a domain that is not there is wrong, too.
    """
    categories = choose_categories("OACIRR", categories, CATEGORIES)
    check_split_name("OACIRR", split, SPLITS)
    home = find_home(root, marker="OACIRR-Subset", folder="OACIRR", source="the dataset HaHaJun1101/OACIRR of the hub")
    folders = {category: home / "OACIRR-Subset" / f"OACIRR-{category.capitalize()}" for category in categories}
    files_by_category = {
        category: (
            folder / f"oacirr-{category}" / "quadruple_captions" / f"caption_full.{split}.json",
            folder / f"oacirr-{category}" / "image_splits" / f"split.{split}.json",
        )
        for category, folder in folders.items()
    }

    problems = Findings()
    splits = []
    for category in find_categories("OACIRR", split, files_by_category, problems):
        captions_file, names_file = files_by_category[category]
        images = _read_images(names_file, folders[category], problems)
        instances = None if images is None else {name: path.parent.name for name, path in images.items()}
        names_by_instance: dict[str, list[str]] = {}
        for name, instance in (instances or {}).items():
            names_by_instance.setdefault(instance, []).append(name)
        queries = [
            _read_query(entry, str(number), names_by_instance, (instances, names_file))
            for number, entry in enumerate(read_entries(captions_file, problems))
        ]
        splits.append(
            Split(
                dataset="OACIRR",
                name=split,
                category=category,
                queries=tuple(query for query in queries if query is not None),
                gallery=tuple(images or ()),
                images=images or {},
                gallery_rule="original",
                exclude_reference=True,
                text_rule="as annotated",
                file=captions_file,
                files=(captions_file, names_file),
                tree=Tree(home, ("OACIRR-Subset/*/*/*",)),
            )
        )
    return require_whole(tuple(splits), problems)


def _read_images(names_file: Path, folder: Path, problems: Findings) -> dict[str, Path] | None:
    """Return each image's file by name in the order of the split file; None where that file is unreadable."""
    content = read_json(names_file, dict, problems)
    if content is None:
        return None
    images: dict[str, Path] = {}
    for name, value in content.items():
        entry = Entry(names_file, f"key {name!r}", content, problems)
        path = entry.sentence("path", entry.typed("path", value, str))
        if path is not None and len(PurePosixPath(path).parts) < 2:
            entry.problem(f"the path {path!r} has no folder, which names the instance", RESTORE)
        elif path is not None:
            images[name] = folder / path
    return images


def _read_query(entry: Entry, query_id: str, names_by_instance: dict[str, list[str]], listed: Listed) -> Query | None:
    """Return the query of one entry; what is wrong with it is added to the entry's problems."""
    instances, names_file = listed
    reference = entry.image_name("reference", entry.get("reference", str), instances, names_file)
    target = entry.image_name("target", entry.get("target", str), instances, names_file)
    text = entry.caption("modification_text_mllm", entry.get("modification_text_mllm", str))
    entry.note_own_target(target, reference)
    if reference is None or target is None or text is None or instances is None:
        return None
    instance = instances[target]
    if instances[reference] != instance:
        entry.note(f"the reference shows {instances[reference]!r}, the target {instance!r}")
    others = (name for name in names_by_instance[instance] if name not in (target, reference))
    return Query(id=query_id, reference=reference, text=text, texts=(text,), targets=(target, *others), group=instance)
