"""What a head makes of a picture with each sentence: what its gate opens, and what it changes of what is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import nn

from composir.data import Split
from composir.data.check import require_images
from composir.errors import ComposirError
from composir.evaluation import rank_embeddings
from composir.features import OpenedHead, embedder_of_head
from composir.models.heads.embedder import HeadEmbedder
from composir.models.heads.head import mean_vector
from composir.progress import Progress
from composir.token_cache import ON_DISK, TokenPlace
from composir.visualize.answers import IMAGES_PER_BATCH, NUM_SHOWN, Hit, best_hits, with_questions

OPEN = 0.5
"""Above it a channel counts as open."""
GATE_TITLE = "channels by how far the gate is open for them"
NUM_BINS = 20
"""Of the histogram of a gate, from 0 to 1."""


@dataclass(frozen=True)
class HeadAnswer:
    """What a head made of the picture with one sentence."""

    text: str
    gate: Float32[np.ndarray, " dim"] | None
    """How far each channel is open, 0 to 1; None of a head without a gate."""
    change: float
    """Length of what the head adds, without the balance of picture and query; the query's own length is 1."""
    cosine: float
    """Of the head's query with the base's."""
    rankings: Mapping[str, tuple[Hit, ...]]
    """The best pictures without the head and with it; empty without a gallery."""

    @property
    def channels(self) -> Int64[np.ndarray, " bins"] | None:
        """How many channels are how far open, from 0 to 1 in ``NUM_BINS`` steps; None of a head without a gate."""
        return None if self.gate is None else np.histogram(self.gate, NUM_BINS, (0.0, 1.0))[0]

    def figures(self) -> dict[str, str]:
        """Return what is told in numbers, by what it is."""
        gate = {}
        if self.gate is not None:
            share = (self.gate > OPEN).mean()
            gate = {"gate, mean over channels": f"{self.gate.mean():.3f}", "channels that are open": f"{share:.1%}"}
        return gate | {
            "length of the change; the query's own is 1": f"{self.change:.3f}",
            "cosine with the query without the head; 1: the same": f"{self.cosine:.3f}",
        }


@torch.no_grad()
def answer_head(
    opened: OpenedHead,
    image: Path,
    texts: Sequence[str],
    *,
    gallery: Split | None = None,
    place: TokenPlace = ON_DISK,
    num_shown: int = NUM_SHOWN,
    progress: Progress | None = None,
) -> list[HeadAnswer]:
    """Return what a head makes of the picture with each sentence, and the best of the gallery without it and with it.

    Without it the base's own query is compared with the base's own vectors. Where the gallery's split asks the very
    same question (picture and sentence), its targets are known and marked. Raises ``ComposirError`` for an empty
    sentence, which a head leaves to its base.
    """
    if not all(texts):
        raise ComposirError("a picture without a sentence is asked as the base asks it", fix="give a sentence")
    splits = [] if gallery is None else [with_questions(gallery, image, texts)]
    require_images(splits)
    embedder = embedder_of_head(
        opened, splits, place=place, progress=progress and (lambda *told: progress("image tokens", *told))
    )
    head, base = embedder.head, embedder.base
    images = [image] * len(texts)
    own, changed = base.embed_queries(images, texts).to(head.device), embedder.embed_queries(images, texts)
    read = mean_vector(base.embed_gallery(images).to(head.device)), base.embed_words(texts).to(head.device)
    gates, change = head.change.opened(*read), head.change(*read).norm(dim=-1)
    cosine = nn.functional.cosine_similarity(changed, own, dim=-1)
    rankings: list[dict[str, tuple[Hit, ...]]] = [{} for _ in texts]
    for split in splits:
        targets = _embed_targets(embedder, split, progress)
        for way, queries, vectors in (
            ("without the head", own, targets),
            ("with the head", changed, head.map_targets(targets)),
        ):
            ranking = rank_embeddings(queries, vectors, split)
            for row, hits in zip(rankings, best_hits(ranking, num_shown), strict=True):
                row[way] = hits
    return [
        HeadAnswer(
            text,
            None if gates is None else gates[row].cpu().numpy(),
            change[row].item(),
            cosine[row].item(),
            rankings[row],
        )
        for row, text in enumerate(texts)
    ]


def _embed_targets(embedder: HeadEmbedder, split: Split, progress: Progress | None) -> torch.Tensor:
    """Return the base's own vectors of the gallery."""
    paths, found = split.gallery_sources, []
    for start in range(0, len(paths), IMAGES_PER_BATCH):
        some = paths[start : start + IMAGES_PER_BATCH]
        found.append(embedder.base.embed_gallery(some).to(embedder.head.device))
        if progress is not None:
            progress("pictures", start + len(some), len(paths))
    return torch.cat(found)
