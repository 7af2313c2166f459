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
"""SPRC's names and ours; ``None`` is dropped on purpose (positions are counted, the word head is unused)."""


@dataclass(frozen=True)
class Converted:
    """Weights under this project's names, and what was left out."""

    weights: dict[str, Tensor]
    dropped: tuple[str, ...]


def convert_sprc(weights: Mapping[str, Tensor]) -> Converted:
    """Return SPRC's weights under this project's names; a key the map does not know raises ``KeyError``."""
    renamed, dropped = {}, []
    for key, tensor in weights.items():
        for pattern, replacement in SPRC_KEYS:
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
