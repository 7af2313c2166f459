"""FashionIQ (Wu et al., CVPR 2021, arXiv 1905.12794): three categories, two captions a pair."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping, Sequence
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
    read_json,
    read_names,
    require_whole,
)
from composir.data.triplets import Query, Split, Tree
from composir.errors import Problem, short

SPLITS = ("train", "val", "test")
SPLITS_WITHOUT_TARGETS = ("test",)
CATEGORIES = ("dress", "shirt", "toptee")
NUM_CAPTIONS = 2
RESTORE_CORRECTIONS = (
    "put that of the GitHub repository haokunwen/TG-CIR, correction_dict/, there, or choose another text rule"
)

CAPTION_EDGES = ".?, "
"""Characters that CLIP4Cir and SPRC strip from both ends of a caption."""
BOTH_CAPTIONS, CORRECTED = "both captions", "both captions, spelling corrected"
_PUNCTUATION_TO_SPACE = str.maketrans(dict.fromkeys(string.punctuation, " "))


def join_captions(first: str, *others: str) -> str:
    """Return captions as one sentence, as CLIP4Cir and SPRC evaluate two: a blank one is joined like any other."""
    return " and ".join([first.strip(CAPTION_EDGES).capitalize(), *(one.strip(CAPTION_EDGES) for one in others)])


def correct_spelling(caption: str, right_by_wrong: Mapping[str, str]) -> str:
    """Return the caption in lower case, a space for each of ASCII's punctuation marks, wrong words replaced.

    As ``datasets.py`` of haokunwen/TG-CIR, Lee-zixu/ENCODER and ZivChen-Ty/INTENT does.
    """
    words = caption.lower().translate(_PUNCTUATION_TO_SPACE).split()
    return " ".join(right_by_wrong.get(word, word) for word in words)


JOINS: dict[str, Callable[[str, str], str]] = {
    BOTH_CAPTIONS: join_captions,
    "both captions, not stripped": "{} and {}".format,  # MagicLens: google-deepmind/magiclens, data_utils.py
    "both captions, comma between": "{}, and {}".format,  # BGE-VL: MegaPairs' eval/data/fashioniq_dress_query_val.jsonl
}
"""What makes the evaluated sentence of the two captions alone, by text rule."""
TEXT_RULES = (*JOINS, CORRECTED)


def load(
    root: Path, split: str, *, categories: Sequence[str] | None = None, text_rule: str = BOTH_CAPTIONS
) -> tuple[Split, ...]:
    """Return one split a category, dress, shirt and toptee unless ``categories`` names fewer.

    ``root`` holds ``captions/``, or is the parent of such a ``fashionIQ_dataset/``. The gallery is the split
    file's list (the *original* one) and keeps the reference. A query's id is its number in the caption file,
    from 0. ``text_rule``, one of ``TEXT_RULES``, makes the sentence: by the first training draws from four
    (``training_texts``), by the others from that which is evaluated alone. ``CORRECTED`` reads
    ``captions/correction_dict_CATEGORY.json``, which TG-CIR publishes. Image files are not touched, and expected in
    ``images/`` as PNG (``find_images`` looks for them elsewhere and under other suffixes). Raises
    ``SplitNotFoundError`` when no category has the split and ``AnnotationsError`` with everything wrong in all of them;
    a category that is not there is wrong, too.
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
        corrections = home / "captions" / f"correction_dict_{category}.json"
        files = (captions_file, names_file, *([corrections] if text_rule == CORRECTED else []))
        join = _read_join(corrections, problems) if text_rule == CORRECTED else JOINS[text_rule]
        queries = _read_queries(captions_file, split, join, (gallery, names_file), problems)
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
                files=files,
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


def _read_join(file: Path, problems: Findings) -> Callable[[str, str], str]:
    """Return what joins two captions with the words of a correction list replaced; it may have added problems."""
    content = read_json(file, dict, problems, restore=RESTORE_CORRECTIONS) or {}
    for wrong, right in content.items():
        if not isinstance(right, str):
            message = f"the correction is {short(right)}, expected text"
            problems.append(Problem(str(file), f"key {wrong!r}", message, RESTORE_CORRECTIONS))
    right_by_wrong = {wrong: right for wrong, right in content.items() if isinstance(right, str)}

    def join(first: str, second: str) -> str:
        return f"{correct_spelling(first, right_by_wrong)} and {correct_spelling(second, right_by_wrong)}"

    return join


def _read_queries(
    captions_file: Path,
    split: str,
    join: Callable[[str, str], str],
    listed: tuple[dict[str, None] | None, Path],
    problems: Findings,
) -> tuple[Query, ...]:
    """Return the queries of one caption file, ``join`` making a sentence of two captions; problems are added.

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
        text = join(*captions)
        queries.append(
            Query(
                id=str(number),
                reference=reference,
                text=text,
                texts=training_texts(*captions) if join is join_captions else (text,),
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
