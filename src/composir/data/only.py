"""Some of a benchmark's queries: those that a list names."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

from composir.data.annotations import WORD_BY_TYPE, parse_json, read_text
from composir.data.circus import find_listed, is_circus
from composir.data.parquet import is_parquet
from composir.data.triplets import ALL_QUERIES, Split
from composir.errors import ComposirError, Problem, ProblemsError, short

WRITE_AGAIN = "write the list again (docs/data.md says in which form)"
HASH_DIGITS = 8


def only(splits: Sequence[Split], file: Path, *, annotated: Sequence[Split] | None = None) -> tuple[Split, ...]:
    """Return the splits with the queries that ``file`` lists, in their own order; galleries stay as they are.

    The file is a JSON list of query ids as text or whole numbers, ``{"<category>": [...]}`` where there are categories,
    text with one id a line where there are none, or one of CIRCUS's lists (``composir.data.circus``). Those name
    queries by their sentences: ``annotated`` are the splits with the sentences as annotated, where ``splits`` have
    others. ``Split.query_rule``, and so the signature, says how many queries
    are left over all categories and which, by the first digits of a SHA-256 over the sorted ids: a copy of the list has
    the same. Raises ``ProblemsError`` with every query that the benchmark has not, with those that are listed twice,
    and what else is wrong with the file.
    """
    problems: list[Problem] = []
    ids_by_category = _read(file, annotated or splits, problems)
    for split in splits:
        ids = ids_by_category.get(split.category, [])
        known = {query.id for query in split.queries}
        unknown = [query_id for query_id in dict.fromkeys(ids) if query_id not in known]
        repeated = [query_id for query_id in dict.fromkeys(ids) if ids.count(query_id) > 1]
        if unknown:
            message = f"{split.dataset} {split.name} has no such queries ({len(unknown):,}): {_named(unknown)}"
            problems.append(Problem(str(file), split.category, message, f"name queries of {split.file or split.name}"))
        if repeated:
            message = f"named more than once: {_named(repeated)}"
            problems.append(Problem(str(file), split.category, message, "name every query once"))
        if not ids and not problems:
            problems.append(Problem(str(file), split.category, "names no query", "leave the category or the list out"))
    if problems:
        raise ProblemsError(problems)
    rule = _rule(splits, ids_by_category)
    return tuple(_restricted(split, set(ids_by_category[split.category]), rule) for split in splits)


def _named(ids: Sequence[str]) -> str:
    return ", ".join(map(repr, ids))


def _restricted(split: Split, ids: set[str], rule: str) -> Split:
    queries = tuple(query for query in split.queries if query.id in ids)
    return dataclasses.replace(split, queries=queries, query_rule=rule)


def _rule(splits: Sequence[Split], ids_by_category: dict[str, list[str]]) -> str:
    total = sum(len(split.queries) for split in splits)
    names = sorted(f"{category} {query_id}" for category, ids in ids_by_category.items() for query_id in ids)
    if len(names) == total:
        return ALL_QUERIES
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogatepass")).hexdigest()[:HASH_DIGITS]
    return f"{len(names)} of {total}, list {digest}"


def _read(file: Path, splits: Sequence[Split], problems: list[Problem]) -> dict[str, list[str]]:
    """Return the ids of the file by category, ``""`` where there are none."""
    if is_parquet(file):
        return find_listed(None, splits, file, problems)
    text = read_text(file, problems, WRITE_AGAIN)
    if text is None:
        raise ProblemsError(problems)
    if is_circus(text):
        return find_listed(text, splits, file, problems)
    categories = [split.category for split in splits if split.category]
    if not categories and not text.lstrip().startswith(("[", "{")):
        return {"": [line.strip() for line in text.split("\n") if line.strip()]}
    if categories:
        lists = parse_json(text, dict, file, problems, restore=WRITE_AGAIN)
    else:
        ids = parse_json(text, list, file, problems, restore=WRITE_AGAIN)
        lists = None if ids is None else {"": ids}
    if lists is None:
        raise ProblemsError(problems)
    for category in lists:
        if categories and category not in categories:
            raise ComposirError(
                f"names the category {category!r}, which is not measured",
                file=file,
                expected=", ".join(categories),
                fix="choose the same categories in both",
            )
    return {category: _read_ids(file, category, ids, problems) for category, ids in lists.items()}


def _read_ids(file: Path, category: str, items: object, problems: list[Problem]) -> list[str]:
    if not isinstance(items, list):
        message = f"holds {WORD_BY_TYPE[type(items)]} ({short(items)}), expected a list of query ids"
        problems.append(Problem(str(file), category, message, WRITE_AGAIN))
        return []
    ids = []
    for number, item in enumerate(items):
        if type(item) in (str, int):
            ids.append(str(item))
        else:
            message = f"is {WORD_BY_TYPE[type(item)]} ({short(item)}), expected a query's id as text or a whole number"
            problems.append(Problem(str(file), f"{category} item {number}".strip(), message, WRITE_AGAIN))
    return ids
