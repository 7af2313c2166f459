"""Multi-turn FashionIQ (Yuan and Lam, SIGIR 2021, arXiv 2106.04128): sessions of two to four rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from composir.data.annotations import (
    RESTORE,
    Entry,
    Findings,
    check_split_name,
    choose_categories,
    find_categories,
    find_home,
    read_entries,
    read_names,
    require_whole,
)
from composir.data.fashioniq import CAPTION_EDGES, CATEGORIES, NUM_CAPTIONS, join_captions
from composir.data.triplets import Query, Split, Tree
from composir.errors import short

SPLITS = ("train", "val")


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return one split a category, dress, shirt and toptee unless ``categories`` names fewer.

    ``root`` holds ``data/`` and ``image_splits/``, or is the parent of such a ``MultiturnFashionRetrieval/``. Every
    round of a session is a query: its own reference image and its own captions, stripped, the first with a capital
    letter, joined by "and"; the right answer is the target of the session. A session is a group, called by its number
    in the file, from 0, and a query by that and its round, from 1: ``12.1``, ``12.2``. The gallery is the split file's
    list and keeps the reference. Image files are not touched, and expected in ``images/`` as JPEG. Raises
    ``SplitNotFoundError`` when no category has the split and ``AnnotationsError`` with everything wrong in all of
    them; a category that is not there is wrong, too.
    """
    categories = choose_categories("MT-FashionIQ", categories, CATEGORIES)
    check_split_name("MT-FashionIQ", split, SPLITS)
    home = find_home(
        root,
        marker="image_splits",
        folder="MultiturnFashionRetrieval",
        source="the GitHub repository yfyuan01/MultiturnFashionRetrieval",
    )
    files_by_category = {
        category: (home / "data" / f"{category}.{split}.json", home / "image_splits" / f"split.{category}.{split}.json")
        for category in categories
    }

    problems = Findings()
    splits = []
    for category in find_categories("MT-FashionIQ", split, files_by_category, problems):
        sessions_file, names_file = files_by_category[category]
        gallery = read_names(names_file, problems)
        entries = read_entries(sessions_file, problems)
        sessions = [_read_session(entry, str(number), (gallery, names_file)) for number, entry in enumerate(entries)]
        splits.append(
            Split(
                dataset="MT-FashionIQ",
                name=split,
                category=category,
                queries=tuple(query for session in sessions for query in session),
                gallery=tuple(gallery or ()),
                images={name: home / "images" / f"{name}.jpg" for name in gallery or ()},
                gallery_rule="original",
                exclude_reference=False,
                text_rule="captions of the round",
                file=sessions_file,
                files=(sessions_file, names_file),
                tree=Tree(home, ("images",)),
            )
        )
    return require_whole(tuple(splits), problems)


def _read_session(entry: Entry, number: str, listed: tuple[dict[str, None] | None, Path]) -> list[Query]:
    """Return the rounds of one session; what is wrong with it is added to the entry's problems.

    ``listed`` holds the gallery's names, None where they cannot be checked, and the file that lists them.
    """
    target = entry.get("target", list)
    if target is not None and len(target) != 2:
        entry.problem(f"'target' is {short(target)}, expected an address and a name", RESTORE)
        target = None
    name = None if target is None else entry.image_name("target", entry.typed("target[1]", target[1], str), *listed)
    rounds = entry.get("reference", list)
    if rounds == []:
        entry.problem("'reference' is empty", RESTORE)
    queries = []
    for place, item in enumerate(rounds or ()):
        found = _read_round(entry, f"reference[{place}]", item, listed)
        if found is not None and name is not None:
            reference, text = found
            entry.note_own_target(name, reference)
            query_id = f"{number}.{place + 1}"
            queries.append(
                Query(id=query_id, reference=reference, text=text, texts=(text,), targets=(name,), group=number)
            )
    return queries


def _read_round(
    entry: Entry, where: str, item: Any, listed: tuple[dict[str, None] | None, Path]
) -> tuple[str, str] | None:
    """Return the reference and the sentence of one round, or None after adding its problems."""
    if not isinstance(item, list) or len(item) != 3:
        entry.problem(f"{where} is {short(item)}, expected an address, captions and a name", RESTORE)
        return None
    _, captions, name = item
    reference = entry.image_name(where, entry.typed(f"{where}[2]", name, str), *listed)
    captions = entry.typed(f"{where}[1]", captions, list)
    if captions == []:
        entry.problem(f"{where} has no caption", RESTORE)
    if not captions:
        return None
    if len(captions) != NUM_CAPTIONS:
        entry.note(f"a round has {len(captions)} captions, where others have {NUM_CAPTIONS}")
    texts = [
        entry.caption(f"{where}[1][{place}]", entry.typed(f"{where}[1][{place}]", caption, str), CAPTION_EDGES)
        for place, caption in enumerate(captions)
    ]
    whole = [text for text in texts if text is not None]
    return (reference, join_captions(*whole)) if reference is not None and len(whole) == len(texts) else None
