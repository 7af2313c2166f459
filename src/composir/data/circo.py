"""CIRCO (Baldrati et al., ICCV 2023, arXiv 2303.15247): several right answers a query, COCO images as the gallery."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from composir.data.annotations import (
    RESTORE,
    Entry,
    Findings,
    as_entries,
    check_split_name,
    check_unique,
    choose_categories,
    find_home,
    read_entries,
    read_json,
    require_some,
    require_whole,
)
from composir.data.images import ImageSource
from composir.data.prompts import IN_A_PROMPT, in_a_prompt
from composir.data.triplets import Query, Split, Tree
from composir.errors import nearest

SPLITS = ("val", "test")
SPLITS_WITHOUT_TARGETS = ("test",)
ASPECTS = (
    "cardinality",
    "addition",
    "negation",
    "direct_addressing",
    "compare_change",
    "comparative_statement",
    "statement_with_conjunction",
    "spatial_relations_background",
    "viewpoint",
)
"""What the official evaluator measures apart; a query may have several."""
RELATIVE_CAPTION, CONCEPT_AND_CAPTION = "relative caption", "concept and caption"
TEXT_RULES = (RELATIVE_CAPTION, CONCEPT_AND_CAPTION, IN_A_PROMPT)


def load(
    root: Path, split: str, *, categories: Sequence[str] | None = None, text_rule: str = RELATIVE_CAPTION
) -> tuple[Split, ...]:
    """Return the one split of CIRCO: every query of ``annotations/``, all of COCO's unlabelled images as the gallery.

    ``root`` holds ``annotations/``, or is the parent of such a ``CIRCO/``. Names are COCO's image ids as text. The
    targets are the annotated one, then the other ground truths; ``test`` hides them. The text is the relative
    caption alone, or with the shared concept before it (``join_concept``), or in a prompt (``in_a_prompt``) as the
    official repository's own models are given it. Without COCO's list the gallery holds the images that the queries
    name, and ``missing_list`` says so. Image files are not touched. Raises ``SplitNotFoundError`` for a split that is
    not there and ``AnnotationsError`` with everything wrong in it.
    """
    choose_categories("CIRCO", categories)
    check_split_name("CIRCO", split, SPLITS)
    home = find_home(root, marker="annotations", folder="CIRCO", source="the GitHub repository miccunifi/CIRCO")
    queries_file = home / "annotations" / f"{split}.json"
    require_some("CIRCO", split, (queries_file,))

    coco = home / "COCO2017_unlabeled"
    names_file = coco / "annotations" / "image_info_unlabeled2017.json"
    problems = Findings()
    missing_list = None if names_file.exists() else names_file
    images = None if missing_list else _read_images(names_file, coco / "unlabeled2017", problems)
    num_problems = len(problems)
    entries = read_entries(queries_file, problems, id_key="id")
    num_queries = len(entries) + len(problems) - num_problems  # elements that are no object count as well
    check_unique(entries, "id")
    read = [_read_query(entry, split, text_rule, num_queries, (images, names_file)) for entry in entries]
    queries = tuple(query for query in read if query is not None)
    named = dict.fromkeys(name for query in queries for name in (query.reference, *query.targets))
    found = Split(
        dataset="CIRCO",
        name=split,
        category="",
        queries=queries,
        gallery=tuple(named if missing_list else images or ()),
        images=images or {},
        gallery_rule="original",
        exclude_reference=False,
        text_rule=text_rule,
        file=queries_file,
        files=(queries_file, names_file) if images else (queries_file,),
        tree=Tree(home, ("COCO2017_unlabeled/unlabeled2017",)),
        missing_list=missing_list,
    )
    return require_whole((found,), problems)


def join_concept(concept: str, caption: str) -> str:
    """Return the sentence that BGE-VL is asked with: all 800 of MegaPairs' ``eval/data/circo_query.jsonl`` are so."""
    return f"Find a picture that also {concept}, but {caption}."


def _read_images(names_file: Path, folder: Path, problems: Findings) -> dict[str, ImageSource] | None:
    """Return each image's file by id in COCO's order; None where COCO's file is unreadable."""
    content = read_json(names_file, dict, problems)
    if content is None:
        return None
    listed = Entry(names_file, "", content, problems).get("images", list)
    if listed is None:
        return None
    images: dict[str, ImageSource] = {}
    for entry in as_entries(names_file, listed, problems, where="image"):
        image_id = entry.get("id", int)
        file_name = entry.sentence("file_name", entry.get("file_name", str))
        if image_id is not None and file_name is not None:
            entry.add_image(str(image_id), folder / file_name, images)
    return images


def _read_query(
    entry: Entry, split: str, text_rule: str, num_queries: int, listed: tuple[dict[str, ImageSource] | None, Path]
) -> Query | None:
    """Return the query of one entry; what is wrong with it is added to the entry's problems.

    ``listed`` holds the images by id, None where they cannot be checked, and the file that lists them.
    """
    query_id = entry.get("id", int)
    if query_id is not None and not 0 <= query_id < num_queries:
        entry.problem(f"the id is not in 0 to {num_queries - 1}", f"count the queries from 0, or {RESTORE}")
    reference = _read_image(entry, "reference_img_id", *listed)
    text = _read_text(entry, text_rule)
    targets: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()
    if split not in SPLITS_WITHOUT_TARGETS:
        targets = _read_targets(entry, reference, *listed)
        aspects = _read_aspects(entry)
    if query_id is None or reference is None or text is None:
        return None
    return Query(id=str(query_id), reference=reference, text=text, texts=(text,), targets=targets, aspects=aspects)


def _read_text(entry: Entry, text_rule: str) -> str | None:
    caption = entry.caption("relative_caption", entry.get("relative_caption", str))
    if text_rule == CONCEPT_AND_CAPTION:
        concept = entry.caption("shared_concept", entry.get("shared_concept", str))
        return None if concept is None or caption is None else join_concept(concept, caption)
    return caption if caption is None or text_rule == RELATIVE_CAPTION else in_a_prompt(caption)


def _read_image(entry: Entry, key: str, images: dict[str, ImageSource] | None, names_file: Path) -> str | None:
    image_id = entry.get(key, int)
    return entry.image_name(key, None if image_id is None else str(image_id), images, names_file)


def _read_targets(
    entry: Entry, reference: str | None, images: dict[str, ImageSource] | None, names_file: Path
) -> tuple[str, ...]:
    """Return the annotated target, then the other ground truths; empty after adding a problem."""
    target = _read_image(entry, "target_img_id", images, names_file)
    entry.note_own_target(target, reference)
    image_ids = entry.get("gt_img_ids", list)
    right = None if image_ids is None else entry.image_names("gt_img_ids", image_ids, int, images, names_file)
    if target is None or right is None:
        return ()
    if target not in right:
        entry.problem(f"target_img_id {target!r} is not among gt_img_ids", f"add it to them, or {RESTORE}")
    return (target, *(name for name in right if name != target))


def _read_aspects(entry: Entry) -> tuple[str, ...]:
    """Return the kinds of change that the sentence asks for; those that are not known become problems."""
    aspects: dict[str, None] = {}
    for number, item in enumerate(entry.get("semantic_aspects", list) or ()):
        aspect = entry.typed(f"semantic_aspects[{number}]", item, str)
        if aspect in aspects:
            entry.problem(f"semantic_aspects[{number}] repeats {aspect!r}", f"name every aspect once, or {RESTORE}")
        elif aspect in ASPECTS:
            aspects[aspect] = None
        elif aspect is not None:
            entry.problem(f"semantic_aspects[{number}] {aspect!r} is not known", nearest(aspect, ASPECTS))
    return tuple(aspects)
