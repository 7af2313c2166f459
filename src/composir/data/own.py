"""Own triplets: a data root that ``composir data import`` has made, read like any other data set.

The root holds ``own.json`` (format and images folder), ``gallery.json`` (names) and one ``triplets.{split}.json`` a
split. An image's name is its path below the images folder, with ``/`` and its suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from composir.data.annotations import (
    AnnotationsError,
    Entry,
    SplitNotFoundError,
    check_split_name,
    choose_categories,
    read_entries,
    read_json,
    read_names,
)
from composir.data.triplets import Query, Split
from composir.errors import ComposirError, Problem

SPLITS = ("train", "val", "test")

FORMAT = 1
HOME, GALLERY, IMAGES = "own.json", "gallery.json", "images"
IMPORT_AGAIN = "import the triplets again (composir data import)"

Find = Callable[[Entry, str, str], str | None]
"""``find(entry, what, name)``: the image's name as the gallery has it, or None after adding a problem."""


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return the one split of a data root that ``import_triplets`` has made. Image files are not touched.

    The gallery is the same for every split, and the reference is taken out of its ranking. Raises ``ComposirError``
    where ``root`` is no such folder, ``SplitNotFoundError`` for a split that is not there and ``AnnotationsError``
    with everything wrong in its files.
    """
    choose_categories("own", categories)
    check_split_name("own", split, SPLITS)
    if not (root / HOME).is_file():
        raise ComposirError(
            f"no {HOME} in it" if root.is_dir() else "no such folder",
            file=root,
            expected="a data root made by composir data import",
            fix="composir data import TRIPLETS.csv --images DIR --out R, then --data-root R",
        )
    file = root / triplets_file(split)
    if not file.exists():
        fix = "choose another split, or import triplets that have it"
        if split == "train":
            fix = "import the triplets again, with a column split or with --split 80/20, which makes both of them"
        there = [name for name in SPLITS if (root / triplets_file(name)).exists()]
        raise SplitNotFoundError(
            f"the {split} split is not in this data root",
            file=file,
            expected=f"one of what is: {', '.join(there)}",
            fix=fix,
        )
    problems: list[Problem] = []
    folder = _read_home(root, problems)
    gallery = read_names(root / GALLERY, problems, restore=IMPORT_AGAIN)
    for name in gallery or ():
        if leaves_folder(name):
            message = f"the name {name!r} leads out of the images folder"
            problems.append(Problem(str(root / GALLERY), "", message, IMPORT_AGAIN))
    queries = []
    ids: set[str] = set()
    for entry in read_entries(file, problems, restore=IMPORT_AGAIN):
        query = read_query(entry, lambda entry, what, name: entry.image_name(what, name, gallery, root / GALLERY))
        if query is not None and is_new(entry, query.id, ids):
            queries.append(query)
    if not queries and not problems:
        problems.append(Problem(str(file), "", "holds no query", IMPORT_AGAIN))
    found = Split(
        dataset="own",
        name=split,
        category="",
        queries=tuple(queries),
        gallery=tuple(gallery or ()),
        images={name: folder / name for name in gallery or ()},
        gallery_rule="original",
        exclude_reference=True,
        text_rule="as annotated",
        file=file,
    )
    if problems:
        raise AnnotationsError(problems, (found,))
    return (found,)


def triplets_file(split: str) -> str:
    """Return the name of a split's file."""
    return f"triplets.{split}.json"


def _read_home(root: Path, problems: list[Problem]) -> Path:
    """Return the images folder; ``root`` after adding a problem."""
    fields = read_json(root / HOME, dict, problems, restore=IMPORT_AGAIN)
    if fields is None:
        return root
    entry = Entry(root / HOME, "", fields, problems, IMPORT_AGAIN)
    number = entry.get("format", int)
    if number not in (None, FORMAT):
        entry.problem(f"has format {number}, expected {FORMAT}", f"{IMPORT_AGAIN}, or use the composir that made it")
    return root / (entry.get("images", str) or ".")


def is_new(entry: Entry, identifier: str, ids: set[str]) -> bool:
    """Return whether no query before has the id, and take note of it; else add a problem."""
    if identifier in ids:
        entry.problem(f"the id {identifier!r} is repeated", "give every query of a split an id of its own")
        return False
    ids.add(identifier)
    return True


def read_query(entry: Entry, find: Find) -> Query | None:
    """Return the query of a row or an entry; None after adding what is wrong with it."""
    num_problems = len(entry.problems)
    identifier = entry.sentence("id", entry.get("id", str))
    text = entry.sentence("text", entry.get("text", str))
    name = entry.get("reference", str)
    reference = None if name is None else find(entry, "reference", name)
    targets = _read_images(entry, "targets", find)
    subset = _read_images(entry, "subset", find) if "subset" in entry.fields else ()
    subset = tuple(name for name in subset if name != reference)
    if len(entry.problems) > num_problems or identifier is None or text is None or reference is None:
        return None
    if reference in targets:
        entry.problem(f"the target {reference!r} is also the reference", "name the picture asked for")
    if subset and (targets[0] not in subset or len(subset) == 1):
        entry.problem(f"'subset' must hold the target {targets[0]!r} and other pictures", "add what it lacks")
    return Query(id=identifier, reference=reference, text=text, texts=(text,), targets=targets, subset=subset)


def _read_images(entry: Entry, field: str, find: Find) -> tuple[str, ...]:
    """Return the image names in a list; one that is wrong or repeated becomes a problem, and so does an empty list."""
    values = entry.get(field, list)
    if values == []:
        entry.problem(f"{field!r} is empty", f"name an image, or {entry.restore}")
    names: dict[str, None] = {}
    for number, value in enumerate(values or ()):
        what = "target" if field == "targets" and len(values or ()) == 1 else f"{field}[{number}]"
        text = entry.typed(what, value, str)
        name = None if text is None else find(entry, what, text)
        if name in names:
            entry.problem(f"{what} repeats {name!r}", "name every image once")
        elif name is not None:
            names[name] = None
    return tuple(names)


def leaves_folder(name: str) -> bool:
    """Return whether a name leads out of the folder that it is a path in."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts
