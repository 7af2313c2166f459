"""What a score means: how well the best picture fits things that are most likely not there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from composir.errors import ComposirError
from composir.models.photos.vocabulary import read_classes
from composir.search import Retriever, SearchQuery
from composir.web.schemas import Scale

NUM_THINGS, NUM_REFERENCES = 64, 8
MAY_FIT, FITS_WELL = 0.75, 0.95
"""Shares of the things whose best picture scores less."""
AT_ONCE = 8
"""Queries between which others have their turn."""
MUCH = 0.1
"""Images that came or went, as a share of those that were measured, above which a scale is measured anew.

With a tenth more images like the others, the best of them all scores less than a bound with the 1.1th power of the
probability: 0.75 becomes 0.73 and 0.95 becomes 0.945, by 1.4 and 0.3 of the 64 things. Which 64 things were asked for
moves these places by 3.5 and 1.7 (standard deviations of a binomial), so that less of a change is nothing to measure.
"""


@dataclass(frozen=True, slots=True)
class Scales:
    """One for each kind of query; None where it was not measured."""

    sentence: Scale | None = None
    composed: Scale | None = None

    def of(self, query: SearchQuery) -> Scale | None:
        """Return the one for a query; None for what was not measured: a path, weights, marks, several of anything."""
        measured = SearchQuery(
            images=query.images, text=query.text, top_k=query.top_k, exclude=query.exclude, min_score=query.min_score
        )
        if query != measured or not query.text.strip() or len(query.images) > 1:
            return None
        return self.composed if query.images else self.sentence


def measure(retriever: Retriever, is_wanted: Callable[[], bool] = lambda: True) -> Scales:
    """Return what the best picture scores for 64 of ImageNet's thousand things: few of them are in any one gallery.

    Each is asked for alone ("teapot") and beside one of eight pictures of the index ("but a teapot"); the scores of
    the best pictures are what answers to no purpose score, by this model, over this gallery. Nothing is random. Empty
    where the gallery is, and where it is no longer wanted.
    """
    classes = read_classes()
    things = [one.name for one in classes[:: len(classes) // NUM_THINGS]][:NUM_THINGS]
    references = [retriever.images[image_id] for image_id in retriever.sample(NUM_REFERENCES)]
    if not references:
        return Scales()
    alone = [SearchQuery(text=thing, top_k=1) for thing in things]
    composed = [
        SearchQuery(images=(references[place % len(references)],), text=f"but a {thing}", top_k=1)
        for place, thing in enumerate(things)
    ]
    return Scales(*(_scale(retriever, queries, is_wanted) for queries in (alone, composed)))


def has_much_changed(measured: Shaped[np.ndarray, " before"], ids: Shaped[np.ndarray, " now"]) -> bool:
    """Return whether a gallery of these ids is another one than that which was measured: by more than ``MUCH``."""
    return len(np.setxor1d(measured, ids, assume_unique=True)) > MUCH * len(measured)


def _scale(retriever: Retriever, queries: list[SearchQuery], is_wanted: Callable[[], bool]) -> Scale | None:
    best: list[float] = []
    for start in range(0, len(queries), AT_ONCE):
        if not is_wanted():
            return None
        try:
            answers = retriever.search_many(queries[start : start + AT_ONCE])
        except ComposirError:  # the model reads no sentence alone, or a picture is gone
            return None
        best += [hits[0].score for hits in answers if hits]
    if not best:
        return None
    may_fit, fits_well = np.quantile(best, (MAY_FIT, FITS_WELL)).tolist()
    return Scale(may_fit=may_fit, fits_well=fits_well)
