"""Weights of other projects under this one's names: explicit key maps, strict, nothing dropped in silence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

SPRC_KEYS: tuple[tuple[str, str | None], ...] = (
    (r"Qformer\.bert\.embeddings\.word_embeddings\.", "text_embeddings.word_embeddings."),
    (r"Qformer\.bert\.embeddings\.position_embeddings\.", "text_embeddings.position_embeddings."),
    (r"Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"Qformer\.bert\.embeddings\.position_ids$", None),
    (
        r"Qformer\.bert\.encoder\.layer\.(\d+)\.(attention|crossattention)\.self\.",
        r"qformer.encoder.layer.\1.\2.attention.",
    ),
    (r"Qformer\.bert\.encoder\.", "qformer.encoder."),
    (r"Qformer\.cls\.", None),
    (r"(query_tokens|prompt_tokens)$", r"\1"),
    (r"(vision_proj|text_proj|itm_head)\.", r"\1."),
    (r"temp$", "temperature"),
)
"""The names of SPRC, and of LAVIS's BLIP-2 behind the tower, and ours. ``None`` is dropped on purpose: positions are
counted, and the head that predicts words is unused."""


HF_KEYS: tuple[tuple[str, str | None], ...] = (
    (r"embeddings\.position_ids$", None),
    (r"embeddings\.", "text_embeddings."),
    (r"(qformer|itm_head)\.", r"\1."),
    (r"query_tokens$", "query_tokens"),
    (r"vision_projection\.", "vision_proj."),
    (r"text_projection\.", "text_proj."),
)
"""Hugging Face's names (``Blip2ForImageTextRetrieval``) and ours."""


@dataclass(frozen=True)
class Converted:
    """Weights under this project's names, and what was left out."""

    weights: dict[str, Tensor]
    dropped: tuple[str, ...]


def rename(weights: Mapping[str, Tensor], keys: tuple[tuple[str, str | None], ...]) -> Converted:
    """Return weights under this project's names by a key map; a key the map does not know raises ``KeyError``."""
    renamed, dropped = {}, []
    for key, tensor in weights.items():
        for pattern, replacement in keys:
            match = re.match(pattern, key)
            if match:
                if replacement is None:
                    dropped.append(key)
                else:
                    renamed[match.expand(replacement) + key[match.end() :]] = tensor
                break
        else:
            raise KeyError(f"no rule for {key}")
    return Converted(renamed, tuple(dropped))
