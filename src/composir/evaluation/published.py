"""Published results, to stand beside one's own where they were measured by the same rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from composir.evaluation.result import Result


@dataclass(frozen=True, slots=True)
class Published:
    """The figures of one method, as its authors printed them."""

    method: str
    source: str
    figures: tuple[float, ...]
    """In percent, in the order of ``PublishedTable.keys``."""


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """Published figures of one split under one set of rules."""

    rules: Mapping[str, str]
    """The fields of the signature that a result must share."""
    split: str
    """The split that the figures are of."""
    beside: Mapping[str, tuple[int, int]]
    """The splits whose results the figures may stand beside, with their numbers of queries and gallery images:
    a part of a split, or another data set in the same layout, is not what was published."""
    keys: tuple[str, ...]
    """The metrics of the figures."""
    rows: tuple[Published, ...]


_CLIP4CIR = "Baldrati et al., CVPR Workshops 2022"
_CASE = "Levy et al., AAAI 2024, arXiv 2303.09429"
_SPRC = "Bai et al., ICLR 2024, arXiv 2310.05473"
_SPN = "Feng et al., ACM Multimedia 2024, arXiv 2404.11317"

PUBLISHED: tuple[PublishedTable, ...] = (
    PublishedTable(
        rules={"dataset": "CIRR", "gallery": "original", "reference": "excluded", "text": "as annotated"},
        split="test1",
        beside={"val": (4181, 2297)},
        keys=(
            "recall_at_1",
            "recall_at_5",
            "recall_at_10",
            "recall_at_50",
            "recall_subset_at_1",
            "recall_subset_at_2",
            "recall_subset_at_3",
            "mean_r5_rs1",
        ),
        rows=(
            Published("CLIP4CIR", _CLIP4CIR, (38.53, 69.98, 81.86, 95.93, 68.19, 85.64, 94.17, 69.09)),
            Published(
                "BLIP4CIR+Bi",
                "Liu et al., WACV 2024, arXiv 2303.16604",
                (40.15, 73.08, 83.88, 96.27, 72.10, 88.27, 95.93, 72.59),
            ),
            Published("CASE", _CASE, (48.00, 79.11, 87.25, 97.57, 75.88, 90.58, 96.00, 77.50)),
            Published("SPRC", _SPRC, (51.96, 82.12, 89.74, 97.69, 80.65, 92.31, 96.60, 81.39)),
            Published("TME", "Li et al., CVPR 2025", (53.42, 82.99, 90.24, 98.15, 81.04, 92.58, 96.94, 82.01)),
            Published("SPRC+SPN", _SPN, (55.06, 83.83, 90.87, 98.29, 81.54, 92.65, 97.04, 82.69)),
        ),
    ),
    PublishedTable(
        rules={"dataset": "FashionIQ", "gallery": "original", "reference": "kept", "text": "both captions"},
        split="val",
        # 2,017 + 2,038 + 1,961 queries and 3,817 + 6,346 + 5,373 images: the means are over all three categories.
        beside={"val": (6016, 15536)},
        keys=("recall_at_10", "recall_at_50"),
        rows=(
            # The papers of CLIP4CIR print other figures; these are what later tables over this gallery quote.
            Published("CLIP4CIR", "Baldrati et al., as later papers quote it", (42.52, 65.60)),
            Published("CASE", _CASE, (48.79, 70.68)),
            Published("SPRC", _SPRC, (54.92, 74.97)),
            Published("SPRC+SPN", _SPN, (56.37, 76.45)),
        ),
    ),
)


def published_beside(result: Result) -> PublishedTable | None:
    """Return the published figures that ``result`` may be read against, None where there are none.

    Data set, gallery, reference and text rule must be the same, and the numbers of queries and images those of the
    published split. ``PublishedTable.split`` can still be another split of the data set: the answers of CIRR's test1
    are hidden, so its figures stand beside val, and whoever shows them must say so.
    """
    size = (result.num_queries, result.num_gallery)
    for table in PUBLISHED:
        same_rules = all(result.signature_fields.get(field) == value for field, value in table.rules.items())
        if same_rules and table.beside.get(result.signature_fields["split"]) == size:
            return table
    return None
