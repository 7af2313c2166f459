"""CIRCUS: lists of queries that neither the picture nor the sentence answers alone.

Attimonelli et al., arXiv 2605.14787; the form of the lists is that of the GitHub repository matteoattimonelli/CIRCUS.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from composir.data.annotations import parse_json_lines
from composir.data.fashioniq import CATEGORIES
from composir.data.parquet import read_rows
from composir.data.triplets import Split
from composir.errors import ComposirError, Problem, short

PICTURE_COLUMNS = ("query_image_ref", "query_image_path", "query_img_path")
TEXT_COLUMNS = ("query_text", "query_txt")
TAKE_ANOTHER = "take the list as CIRCUS publishes it (docs/data.md says which files)"

log = logging.getLogger(__name__)

Key = tuple[str, str]
"""What a query is known by in the lists: the name of its picture and the words of its sentence."""


def is_circus(text: str) -> bool:
    """Return whether a file's text is one of CIRCUS's lists: CSV, or JSON objects by lines."""
    first = text.split("\n", 1)[0]
    if '"query_indices"' in text:
        return True
    try:
        if not first.lstrip().startswith("{"):
            return {*next(csv.reader([first]), [])} >= {PICTURE_COLUMNS[0], TEXT_COLUMNS[0]}
        return any(column in json.loads(first) for column in TEXT_COLUMNS)
    except (ValueError, RecursionError, csv.Error):
        return False


def find_listed(text: str | None, splits: Sequence[Split], file: Path, problems: list[Problem]) -> dict[str, list[str]]:
    """Return the ids of the queries that a list means, by category (``""`` where there are none).

    The lists number the queries as M-BEIR does, which leaves some out and merges those of one picture and one sentence;
    they are found by that picture and sentence, and all are taken where they are several. ``splits`` hold the sentences
    as annotated; punctuation and capitals do not count. What is wrong with the file, and what the benchmark has not, is
    added to ``problems``. ``text`` is the file's, None for Parquet. Where only some of FashionIQ's categories are
    measured, the others' queries are left out.
    """
    if text is not None and '"query_indices"' in text:
        raise ComposirError(
            "numbers queries as M-BEIR does, which is not the data set's own numbering",
            file=file,
            fix="take the .jsonl under query_jsonl/ or the .csv under croissant/exports/ of the same name",
        )
    ids_by_key: dict[Key, list[tuple[str, str]]] = defaultdict(list)
    for split in splits:
        for query in split.queries:
            ids_by_key[_key(query.reference, query.text)].append((split.category, query.id))
    keys = dict.fromkeys(_read_keys(text, splits[0].dataset, file, problems))
    unknown = [key for key in keys if key not in ids_by_key]
    is_partial = {split.category for split in splits} not in ({""}, {*CATEGORIES})
    if unknown and is_partial:
        categories = ", ".join(split.category for split in splits)
        log.warning(
            "%s: %d of its %d queries are not of %s and are left out", file, len(unknown), len(keys), categories
        )
    elif unknown:
        names = "; ".join(f"{picture}, {sentence!r}" for picture, sentence in unknown)
        message = f"{splits[0].dataset} {splits[0].name} has no such queries ({len(unknown):,}): {names}"
        problems.append(Problem(str(file), "", message, f"measure the split that the list is of, or {TAKE_ANOTHER}"))
    found: dict[str, list[str]] = {split.category: [] for split in splits}
    several = [key for key in keys if len(ids_by_key.get(key, ())) > 1]
    for key in keys:
        for category, query_id in ids_by_key.get(key, ()):
            found[category].append(query_id)
    if several:
        log.warning("%s: queries of one picture and one sentence are all taken (%d of the list's)", file, len(several))
    return found


def _read_keys(text: str | None, dataset: str, file: Path, problems: list[Problem]) -> list[Key]:
    """Return what the file's lines ask, without those of other data sets."""
    keys = []
    if text is None:
        rows = enumerate(read_rows(file, problems, wrong=lambda schema: _wrong_columns(schema.names, file)), 1)
    else:
        rows = _read_lines(text, file, problems)
    for number, row in rows:
        if str(row.get("dataset", dataset)).casefold() != dataset.casefold():
            continue
        picture, sentence = (
            next((row[one] for one in columns if one in row), None) for columns in (PICTURE_COLUMNS, TEXT_COLUMNS)
        )
        if isinstance(picture, str) and isinstance(sentence, str):
            keys.append(_key(PurePosixPath(picture).stem, sentence))
        else:
            message = f"has the picture {short(picture)} and the sentence {short(sentence)}, expected text"
            problems.append(Problem(str(file), f"{'row' if text is None else 'line'} {number}", message, TAKE_ANOTHER))
    return keys


def _wrong_columns(names: Sequence[str], file: Path) -> list[Problem]:
    missing = [columns for columns in (PICTURE_COLUMNS, TEXT_COLUMNS) if not {*columns} & {*names}]
    messages = [f"has no column {' or '.join(columns)}, but {', '.join(names)}" for columns in missing]
    return [Problem(str(file), "", message, TAKE_ANOTHER) for message in messages]


def _read_lines(text: str, file: Path, problems: list[Problem]) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Yield the fields of each line with its number from 1."""
    if text.lstrip().startswith("{"):
        yield from parse_json_lines(text, file, problems, restore=TAKE_ANOTHER)
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        problems.append(Problem(str(file), f"line {reader.line_num}", f"not valid CSV: {error}", TAKE_ANOTHER))


def _key(picture: str, sentence: str) -> Key:
    """Return a query's key; COCO's numbers are the same with and without the name of the file around them."""
    number = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", PurePosixPath(picture).stem)
    name = number[1] if number else PurePosixPath(picture).stem
    return name, " ".join(re.findall(r"\w+", sentence.casefold()))
