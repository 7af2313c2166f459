"""What a model makes of a picture with each sentence: its trace, and its ranking of a gallery."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composir.data import Query, Split
from composir.data.check import require_images
from composir.data.images import ImageSource, file_of, read_image
from composir.data.images.folder import find_pictures
from composir.errors import ComposirError
from composir.evaluation import PADDING, Ranking, rank_embeddings
from composir.features import CachedEmbedder
from composir.models.composer import Composer
from composir.models.trace import Trace, without_fusions
from composir.progress import Counted
from composir.token_cache import ON_DISK, TokenPlace, fill_splits, make_cache

NUM_SHOWN = 8
"""Retrieved pictures in a row."""
IMAGES_PER_BATCH = 64


@dataclass(frozen=True)
class Hit:
    """One retrieved picture."""

    name: str
    source: ImageSource
    score: float
    is_target: bool


@dataclass(frozen=True)
class Answer:
    """What a model made of the picture with one sentence."""

    text: str
    trace: Trace
    target: ImageSource | None
    """The picture whose score is attributed: the one given, else the known answer, else the first retrieved."""
    rankings: Mapping[str, tuple[Hit, ...]]
    """The best pictures by name of the row; empty without a gallery."""


def gallery_of_folder(folder: Path) -> Split:
    """Return a split without queries whose gallery is every picture below the folder; one without any is an error."""
    if not folder.is_dir():
        raise ComposirError("is not a folder", file=folder, fix="give a folder of pictures with --gallery")
    names = find_pictures(folder).names
    if not names:
        raise ComposirError("holds no picture", file=folder, fix="give a folder with .jpg, .png or other pictures")
    images = {name: folder / name for name in names}
    return Split("", "gallery", "", (), tuple(names), images, "folder", True, "as given", file=folder)


def gallery_of_splits(splits: Sequence[Split], image: Path) -> Split:
    """Return the split that the picture is from, else the only one; several and none of them fits is an error."""
    holding = [split for split in splits if _name_in(split, image)]
    if len(splits) > 1 and not holding:
        raise ComposirError(
            "is in none of the categories " + ", ".join(split.category for split in splits),
            file=image,
            fix="say which gallery is meant with --categories",
        )
    return (holding or splits)[0]


def answer(
    model: Composer,
    image: Path,
    texts: Sequence[str],
    *,
    gallery: Split | None = None,
    target: Path | None = None,
    place: TokenPlace = ON_DISK,
    num_shown: int = NUM_SHOWN,
    progress: Counted | None = None,
) -> list[Answer]:
    """Return what the model makes of the picture with each sentence: its trace, and its ranking of the gallery.

    A model with a fusion ranks twice, as it is and with the fusion left out (the same weights). Where the gallery's
    split asks the very same question (picture and sentence), its targets are known and marked.
    """
    rankings: list[dict[str, tuple[Hit, ...]]] = [{} for _ in texts]
    known: list[tuple[str, ...]] = [() for _ in texts]
    if gallery is not None:
        split = with_questions(gallery, image, texts)
        known = [query.targets for query in split.queries]
        rankings = _rank(model, image, split, place, num_shown=num_shown, progress=progress)
    answers = []
    for text, ranked, targets in zip(texts, rankings, known, strict=True):
        source: ImageSource | None = target
        if source is None and gallery is not None:
            source = gallery.images[targets[0]] if targets else next(iter(ranked.values()))[0].source
        seen = model.trace(image, text, None if source is None else read_image(source))
        answers.append(Answer(text, seen, source, ranked))
    return answers


def in_words(rankings: Mapping[str, Sequence[Hit]], num_shown: int) -> str:
    """Return what two rankings of one question say beside each other, in a sentence or two; of one what it is.

    The ways are called ``with …`` and ``without …``; of each the first ``num_shown`` are compared.
    """
    targets = {
        way: next((place for place, hit in enumerate(hits, 1) if hit.is_target), None) for way, hits in rankings.items()
    }
    places = [f"number {place} {way}" for way, place in targets.items() if place]
    right = f"The right answer, framed in green, is {' and '.join(places)}." if places else ""
    if len(rankings) < 2:
        return right or "The best first, with their scores."
    new, old = (
        next(hits for way, hits in rankings.items() if way.startswith(start)) for start in ("with ", "without ")
    )
    new_way = next(way for way in rankings if way.startswith("with "))
    known = {hit.name for hit in old[:num_shown]}
    num_new = sum(hit.name not in known for hit in new[:num_shown])
    found = f"{num_new} of the best {len(new[:num_shown])} {'is' if num_new == 1 else 'are'} there only {new_way}."
    return f"{found if num_new else 'Both ways find the same pictures.'} {right}".strip()


def _name_in(split: Split, image: Path) -> str:
    """Return the picture's name in the split, "" where it is none of its files."""
    path = image.resolve()
    return next((name for name, source in split.images.items() if file_of(source).resolve() == path), "")


def with_questions(gallery: Split, image: Path, texts: Sequence[str]) -> Split:
    """Return the gallery's split with a query for each sentence, its targets those of the very same question there."""
    name = _name_in(gallery, image)
    targets = {query.text: query.targets for query in gallery.queries if query.reference == name}
    questions = tuple(
        Query(str(number), name, text, (text,), targets=targets.get(text, ())) for number, text in enumerate(texts)
    )
    return replace(gallery, queries=questions)


def _rank(
    model: Composer, image: Path, split: Split, place: TokenPlace, *, num_shown: int, progress: Counted | None
) -> list[dict[str, tuple[Hit, ...]]]:
    """Return the best pictures for each sentence by how they were ranked."""
    assert model.tower is not None  # the caller traces pictures with it
    require_images([split])
    tokens = make_cache(model.tower, place)
    fill_splits(tokens, [split], progress)
    embedder = CachedEmbedder(model, tokens)
    paths = split.gallery_sources
    targets = torch.cat(
        [embedder.embed_gallery(paths[i : i + IMAGES_PER_BATCH]) for i in range(0, len(paths), IMAGES_PER_BATCH)]
    )
    texts = [query.text for query in split.queries]
    ways: dict[str, Callable[[Composer], Any]] = {"as trained": nullcontext}
    if model.config.fusion != "none":
        ways = {"with the fusion": nullcontext, "without the fusion": without_fusions}
    rankings: list[dict[str, tuple[Hit, ...]]] = [{} for _ in texts]
    for way, entering in ways.items():
        with entering(model), torch.inference_mode():
            queries: Tensor = model.embed_query([image] * len(texts), texts)
        for row, hits in zip(rankings, best_hits(rank_embeddings(queries, targets, split), num_shown), strict=True):
            row[way] = hits
    return rankings


def best_hits(ranking: Ranking, num_shown: int) -> list[tuple[Hit, ...]]:
    """Return the best pictures of every query of a ranking."""
    split, found = ranking.split, []
    for query, top, scores in zip(split.queries, ranking.top, ranking.scores, strict=True):
        best = zip(top[:num_shown], scores[:num_shown], strict=True)
        named = [(split.gallery[place], float(score)) for place, score in best if place != PADDING]
        found.append(tuple(Hit(name, split.images[name], score, name in query.targets) for name, score in named))
    return found
