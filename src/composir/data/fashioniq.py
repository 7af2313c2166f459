"""FashionIQ (Wu et al., CVPR 2021, arXiv 1905.12794): three categories, two captions a pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

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
from composir.data.triplets import Query, Split, Tree

SPLITS = ("train", "val", "test")
SPLITS_WITHOUT_TARGETS = ("test",)
CATEGORIES = ("dress", "shirt", "toptee")
NUM_CAPTIONS = 2

CAPTION_EDGES = ".?, "
"""Characters that CLIP4Cir and SPRC strip from both ends of a caption."""
BOTH_CAPTIONS = "both captions"


def join_captions(first: str, second: str) -> str:
    """Return both captions as one sentence, as CLIP4Cir and SPRC evaluate it: a blank one is joined like any other."""
    return f"{first.strip(CAPTION_EDGES).capitalize()} and {second.strip(CAPTION_EDGES)}"


JOINS = {
    BOTH_CAPTIONS: join_captions,
    "both captions, not stripped": "{} and {}".format,  # MagicLens: google-deepmind/magiclens, data_utils.py
    "both captions, comma between": "{}, and {}".format,  # BGE-VL: MegaPairs' eval/data/fashioniq_dress_query_val.jsonl
}
"""What makes the evaluated sentence of the two captions, by text rule."""
TEXT_RULES = tuple(JOINS)


def load(
    root: Path, split: str, *, categories: Sequence[str] | None = None, text_rule: str = BOTH_CAPTIONS
) -> tuple[Split, ...]:
    """Return one split a category, dress, shirt and toptee unless ``categories`` names fewer.

    ``root`` holds ``captions/``, or is the parent of such a ``fashionIQ_dataset/``. The gallery is the split
    file's list (the *original* one) and keeps the reference. A query's id is its number in the caption file,
    from 0. ``text_rule``, a key of ``JOINS``, makes the sentence that is evaluated, not those that training draws from.
    Image files are not touched, and expected in ``images/`` as PNG (``find_images`` looks for them elsewhere
    and under other suffixes). Raises ``SplitNotFoundError``
    when no category has the split and ``AnnotationsError`` with everything wrong in all of them; a category that is
    not there is wrong, too.
    """
    categories = choose_categories("FashionIQ", categories, CATEGORIES)
    check_split_name("FashionIQ", split, SPLITS)
    home = find_home(
        root, marker="captions", folder="fashionIQ_dataset", source="the GitHub repository XiaoxiaoGuo/fashion-iq"
    )
    files_by_category = {
        category: (
            home / "captions" / f"cap.{category}.{split}.json",
            home / "image_splits" / f"split.{category}.{split}.json",
        )
        for category in categories
    }

    problems = Findings()
    splits = []
    for category in find_categories("FashionIQ", split, files_by_category, problems):
        captions_file, names_file = files_by_category[category]
        gallery = read_names(names_file, problems)
        queries = _read_queries(captions_file, split, text_rule, (gallery, names_file), problems)
        splits.append(
            Split(
                dataset="FashionIQ",
                name=split,
                category=category,
                queries=queries,
                gallery=tuple(gallery or ()),
                images={name: home / "images" / f"{name}.png" for name in gallery or ()},
                gallery_rule="original",
                exclude_reference=False,
                text_rule=text_rule,
                file=captions_file,
                files=(captions_file, names_file),
                tree=Tree(home, ("images",)),
            )
        )
    return require_whole(tuple(splits), problems)


def training_texts(first: str, second: str) -> tuple[str, str, str, str]:
    """Return the four sentences training draws from with equal chance: both orders, either caption alone."""
    return (
        join_captions(first, second),
        join_captions(second, first),
        first.strip(CAPTION_EDGES).capitalize(),
        second.strip(CAPTION_EDGES).capitalize(),
    )


def _read_queries(
    captions_file: Path,
    split: str,
    text_rule: str,
    listed: tuple[dict[str, None] | None, Path],
    problems: Findings,
) -> tuple[Query, ...]:
    """Return the queries of one caption file; what is wrong with it is added to ``problems``.

    ``listed`` holds the gallery's names, None where they cannot be checked, and the file that lists them.
    """
    queries = []
    for number, entry in enumerate(read_entries(captions_file, problems)):
        reference = entry.image_name("candidate", entry.get("candidate", str), *listed)
        target = None
        if split not in SPLITS_WITHOUT_TARGETS or "target" in entry.fields:
            target = entry.image_name("target", entry.get("target", str), *listed)
            entry.note_own_target(target, reference)
        captions = _read_captions(entry)
        if reference is None or captions is None:
            continue
        queries.append(
            Query(
                id=str(number),
                reference=reference,
                text=JOINS[text_rule](*captions),
                texts=training_texts(*captions),
                targets=() if target is None else (target,),
            )
        )
    return tuple(queries)


def _read_captions(entry: Entry) -> tuple[str, str] | None:
    """Return the entry's two captions, or None after adding its problems."""
    captions = entry.get("captions", list)
    if captions is None:
        return None
    if len(captions) != NUM_CAPTIONS:
        entry.problem(f"'captions' holds {len(captions)} captions, expected {NUM_CAPTIONS}", RESTORE)
        return None
    texts = []
    for number, caption in enumerate(captions):
        what = f"captions[{number}]"
        texts.append(entry.caption(what, entry.typed(what, caption, str), CAPTION_EDGES))
    first, second = texts
    return None if first is None or second is None else (first, second)
