"""Triplets of one's own shared out at random into train and val, by their reference pictures."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from composir.data.own import SPLITS
from composir.data.triplets import Query
from composir.errors import ComposirError, counted

SHARES = re.compile(r"\d+(/\d+){1,2}")
WHOLE = 100


def read_shares(split: str) -> dict[str, int]:
    """Return the percentages of ``80/20`` (train, val) or ``80/10/10`` (and test) by split; empty for a split's name.

    Raises ``ComposirError`` for shares that are not all of it.
    """
    if not SHARES.fullmatch(split):
        return {}
    shares = [int(part) for part in split.split("/")]
    if sum(shares) != WHOLE or 0 in shares:
        raise ComposirError(
            f"the shares {split} are not {WHOLE} % together, or one is nothing",
            expected="train/val or train/val/test, such as 80/20 or 80/10/10",
        )
    return dict(zip(SPLITS, shares, strict=False))


def share_out(queries: Sequence[Query], shares: dict[str, int], seed: int) -> dict[str, list[Query]]:
    """Return the queries by split, in their order, all queries of a reference in the same split.

    The references come in an order by ``seed``, and each goes where most is still lacking of the split's share of all
    queries. Raises ``ComposirError`` where there are fewer references than splits.
    """
    number_by_reference: dict[str, int] = {}
    for query in queries:
        number_by_reference[query.reference] = number_by_reference.get(query.reference, 0) + 1
    if len(number_by_reference) < len(shares):
        raise ComposirError(
            f"the rows have {counted(len(number_by_reference), 'reference picture')}, which no split may share",
            expected=f"{len(shares)} or more for {' and '.join(shares)}",
            fix="give more triplets, or put them all into one split, as --split val does",
        )
    references = sorted(number_by_reference)
    random.Random(seed).shuffle(references)
    lacking = {name: share * len(queries) / WHOLE for name, share in shares.items()}
    split_by_reference: dict[str, str] = dict(zip(references, shares, strict=False))  # each split has one at least
    for reference in references:
        name = split_by_reference.setdefault(reference, max(lacking, key=lambda one: lacking[one]))
        lacking[name] -= number_by_reference[reference]
    return {name: [one for one in queries if split_by_reference[one.reference] == name] for name in shares}
