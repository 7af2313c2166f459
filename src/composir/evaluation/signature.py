"""What was measured, in one line: two results compare only where their signatures agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from composir.data.triplets import ALL_QUERIES, Split
from composir.evaluation.metrics import protocol_of
from composir.version import own_version

TIE_RULE = "pessimistic"


def signature_fields(splits: Sequence[Split], *, weights_hash: str, num_reranked: int = 0) -> dict[str, str]:
    """Return what identifies a result on ``splits`` (one, or categories under the same rules), by field.

    ``num_reranked`` is how many candidates of each query were re-ranked; figures without and with do not compare.
    """
    split = splits[0]
    categories = ",".join(sorted(part.category for part in splits if part.category))
    return {
        "dataset": split.dataset,
        "split": split.name,
        **({"categories": categories} if categories else {}),
        "gallery": split.gallery_rule,
        "reference": "excluded" if split.exclude_reference else "kept",
        "text": split.text_rule,
        **({"queries": split.query_rule} if split.query_rule != ALL_QUERIES else {}),
        "ties": TIE_RULE,
        **({"rerank": f"matching head, best {num_reranked}"} if num_reranked else {}),
        "metrics": protocol_of(split.dataset).version,
        "weights": weights_hash,
        "composir": own_version(),
    }


def signature_text(fields: Mapping[str, str]) -> str:
    """Return the fields as one string without spaces: ``dataset:CIRR|split:val|gallery:original|...``."""
    return "|".join(f"{name}:{'-'.join(value.split())}" for name, value in fields.items())
