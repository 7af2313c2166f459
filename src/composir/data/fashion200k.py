"""Fashion200k (Han et al., ICCV 2017, arXiv 1708.01311) with the queries of TIRG (Vo et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from composir.data.annotations import (
    RESTORE,
    Findings,
    check_split_name,
    choose_categories,
    find_home,
    read_table,
    require_some,
    require_whole,
)
from composir.data.triplets import Query, Split, Tree

SPLITS = ("train", "test")
LABELS = ("dress", "jacket", "pants", "skirt", "top")
"""The label files of each split, one a kind of clothing; together they are one gallery."""

NAME_BY_MARK = str.maketrans({".": "dotmark", "?": "questionmark", "&": "andmark", "*": "starmark"})
"""How the published loader spells marks in captions, and so in the sentences made of them."""


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return the one split of Fashion200k, every image of its label files as the gallery.

    ``root`` holds ``labels/``, or is the parent of such a ``Fashion200k/``. Names are the images' paths in it. The
    sentence is made of the captions of reference and target (see ``replacement``), and every image with the target's
    caption is a right answer, the annotated one first. The queries of ``test`` are TIRG's ``test_queries.txt``, those
    of ``train`` the pairs of ``training_pairs``; a query's id is its number, from 0. Image files are not touched.
    Raises ``SplitNotFoundError`` for a split that is not there and ``AnnotationsError`` with everything wrong in it.
    """
    choose_categories("Fashion200k", categories)
    check_split_name("Fashion200k", split, SPLITS)
    home = find_home(root, marker="labels", folder="Fashion200k", source="the GitHub repository xthan/fashion-200k")
    labels_files = [home / "labels" / f"{label}_{split}_detect_all.txt" for label in LABELS]
    require_some("Fashion200k", split, labels_files)

    problems = Findings()
    captions = _read_captions(labels_files, problems)
    names_by_caption: dict[str, list[str]] = {}
    for name, caption in captions.items():
        names_by_caption.setdefault(caption, []).append(name)
    if split == "test":
        file = home / "test_queries.txt"
        pairs = _read_pairs(file, captions, problems)
    else:
        file = home / "labels"
        pairs = training_pairs(names_by_caption)
    queries = []
    for number, (reference, target) in enumerate(pairs):
        text = replacement(captions[reference], captions[target])
        alike = (name for name in names_by_caption[captions[target]] if name not in (reference, target))
        queries.append(Query(id=str(number), reference=reference, text=text, texts=(text,), targets=(target, *alike)))
    found = Split(
        dataset="Fashion200k",
        name=split,
        category="",
        queries=tuple(queries),
        gallery=tuple(captions),
        images={name: home / name for name in captions},
        gallery_rule="original",
        exclude_reference=True,
        text_rule="replace A with B",
        file=file,
        files=(*labels_files, file) if split == "test" else tuple(labels_files),
        tree=Tree(home, ("women/*/*/*",)),
    )
    return require_whole((found,), problems)


def replacement(source: str, target: str) -> str:
    """Return ``replace A with B``: A is the first word of ``source`` that ``target`` lacks, B the other way round.

    Where there is no such word the last one is taken, as TIRG's loader does. Neither may be empty.
    """
    source_words, target_words = source.split(), target.split()
    removed = next((word for word in source_words if word not in target_words), source_words[-1])
    added = next((word for word in target_words if word not in source_words), target_words[-1])
    return f"replace {removed} with {added}"


def training_pairs(names_by_caption: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Yield reference and target of every training query: images whose captions differ in one word.

    TIRG draws such pairs at random for as long as it trains; here every image that can be a reference is one, once,
    and always with the same target. Captions that are equal but for one word, wherever it stands, form a ring in the
    order of the files. The first image of a caption takes its target from the next caption of its first ring, the
    second from the next of its second ring, and so on round all its rings and then further along them.
    """
    rings_by_rest: dict[tuple[str, ...], list[str]] = {}
    for caption in names_by_caption:
        for rest in _rests(caption):
            rings_by_rest.setdefault(rest, []).append(caption)
    for caption, names in names_by_caption.items():
        rings = [ring for rest in _rests(caption) if len(ring := rings_by_rest[rest]) > 1]
        places = [ring.index(caption) for ring in rings]
        for number, name in enumerate(names if rings else ()):
            lap, choice = divmod(number, len(rings))
            ring = rings[choice]
            step = 1 + lap % (len(ring) - 1)
            targets = names_by_caption[ring[(places[choice] + step) % len(ring)]]
            yield name, targets[number % len(targets)]


def _rests(caption: str) -> list[tuple[str, ...]]:
    """Return what is left of a caption without each of its words, every rest once."""
    words = caption.split()
    return list(dict.fromkeys((*words[:place], *words[place + 1 :]) for place in range(len(words))))


def _read_captions(labels_files: Sequence[Path], problems: Findings) -> dict[str, str]:
    """Return the caption of every image by name, in the order of the files."""
    captions: dict[str, str] = {}
    for file in labels_files:
        for entry in read_table(file, ("file", "score", "caption"), problems, separator="\t"):
            name, caption = entry.fields["file"], entry.fields["caption"].strip().translate(NAME_BY_MARK)
            if not name.strip():
                entry.problem("the image's path is empty", RESTORE)
            elif captions.get(name) == caption:
                entry.note(f"the name {name!r} is repeated")
            elif name in captions:
                entry.problem(f"the name {name!r} is repeated with another caption", RESTORE)
            else:
                captions[name] = caption
    return captions


def _read_pairs(file: Path, captions: Mapping[str, str], problems: Findings) -> Iterator[tuple[str, str]]:
    """Yield reference and target of every test query; what is wrong with one is added to ``problems``."""
    labels = file.parent / "labels"
    known = None if problems else captions  # a label file that cannot be read in full may hold any name
    for entry in read_table(file, ("reference", "target"), problems):
        reference, target = entry.fields["reference"], entry.fields["target"]
        entry.note_own_target(target, reference)
        for role, name in entry.fields.items():
            entry.image_name(role, name, known, labels)
            if captions.get(name) == "":
                entry.problem(f"{role} {name!r} has an empty caption in {labels.name}", f"write it there, or {RESTORE}")
        if captions.get(reference) and captions.get(target):
            yield reference, target
