"""Which published results may stand beside one's own, and what keeps the others from it."""

from __future__ import annotations

from dataclasses import fields

from composir.evaluation.published import NOT_STATED, PUBLISHED, Published, Rules
from composir.evaluation.result import Result

STANDS_FOR = {("CIRR", "test1"): "val", ("CIRCO", "test"): "val"}
"""The split with public answers that may stand beside one whose answers only a test server knows."""

SIZES = {
    ("CIRR", "val", "original"): (4181, 2297),
    ("FashionIQ", "val", "original"): (6016, 15536),  # 2,017 + 2,038 + 1,961 queries, 3,817 + 6,346 + 5,373 images
    ("FashionIQ", "val", "val-union"): (6016, 8619),  # 2,628 + 3,089 + 2,902 images
    ("CIRCO", "val", "original"): (220, 123403),
    ("PinPoint", "test", "original"): (7635, 109600),
}
"""The queries and gallery images of a data set's split and gallery: a part of a split, or another data set in the same
layout, is not what was published."""


def differences(rules: Rules, result: Result) -> tuple[str, ...]:
    """Return by what rules ``result`` was measured otherwise than a published figure, one sentence part a rule.

    A split whose answers are hidden does not differ from the one that stands for it: who shows them must say so.
    """
    own = result.signature_fields
    found = []
    for rule in (field.name for field in fields(Rules)):
        theirs, ours = getattr(rules, rule), own[rule]
        if theirs == NOT_STATED:
            found.append(f"{rule} {NOT_STATED}")
        elif theirs != ours and not (rule == "split" and STANDS_FOR.get((rules.dataset, theirs)) == ours):
            found.append(f"{rule} {theirs!r}, here {ours!r}")
    return tuple(found)


def published_beside(result: Result) -> list[tuple[Published, tuple[str, ...]]]:
    """Return the published rows of the result's data set, each with its ``differences``; those without come first.

    None where the result is of other queries or images than the data set's own split.
    """
    own = result.signature_fields
    size = SIZES.get((own["dataset"], own["split"], own["gallery"]))
    if size != (result.num_queries, result.num_gallery):
        return []
    rows = [(row, differences(row.rules, result)) for row in PUBLISHED if row.rules.dataset == own["dataset"]]
    return sorted(rows, key=lambda pair: bool(pair[1]))
