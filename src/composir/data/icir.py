"""i-CIR (Psomas et al., NeurIPS 2025, arXiv 2510.25387): instances, each with a gallery of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from composir.data.annotations import (
    Entry,
    Findings,
    check_split_name,
    choose_categories,
    find_home,
    read_table,
    require_some,
    require_whole,
)
from composir.data.images import ImageSource
from composir.data.triplets import Query, Split, Tree

SPLITS = ("test",)
FOLDERS = ("database", "query")
QUERIES_FILE, DATABASE_FILE = "query_files.csv", "database_files.csv"
COLUMNS = ("path", "text", "instance")

Database = dict[str, dict[str, set[str]]]
"""The texts that every image shows, by its name, by instance."""


def load(root: Path, split: str, *, categories: Sequence[str] | None = None) -> tuple[Split, ...]:
    """Return the one split of i-CIR: every line of ``query_files.csv``, ranked against the images of its instance.

    ``root`` holds both CSV files, or is the parent of such an ``icir/``. A line is an image's path, a text and an
    instance; there is no header and no quoting, and what follows them is left out, as in the published loader. An image
    of the database is a right answer where instance and text are the query's. A query's id is the number of its line,
    from 0; an image's name its path from ``database/`` or ``query/`` on. Image files are not touched. Raises
    ``SplitNotFoundError`` for a split that is not there and ``AnnotationsError`` with everything wrong in it.
    """
    choose_categories("i-CIR", categories)
    check_split_name("i-CIR", split, SPLITS)
    home = find_home(root, marker="*_files.csv", folder="icir", source="the GitHub repository billpsomas/icir")
    queries_file, database_file = home / QUERIES_FILE, home / DATABASE_FILE
    require_some("i-CIR", split, (queries_file, database_file))

    problems = Findings()
    images: dict[str, ImageSource] = {}
    database = _read_database(database_file, home, images, problems)
    gallery = tuple(images)
    candidates = {instance: tuple(own) for instance, own in database.items()}
    entries = read_table(queries_file, COLUMNS, problems, separator=",", may_have_more=True)
    queries = [
        _read_query(entry, str(number), database, candidates, (home, images)) for number, entry in enumerate(entries)
    ]
    found = Split(
        dataset="i-CIR",
        name=split,
        category="",
        queries=tuple(query for query in queries if query is not None),
        gallery=gallery,
        images=images,
        gallery_rule="per instance",
        exclude_reference=False,
        text_rule="as annotated",
        file=queries_file,
        files=(queries_file, database_file),
        tree=Tree(home, ("database/*", "query/*")),
    )
    return require_whole((found,), problems)


def _read_database(file: Path, home: Path, images: dict[str, ImageSource], problems: Findings) -> Database:
    """Return what every image of every instance shows, and add the images in the order of the file."""
    database: Database = {}
    for entry in read_table(file, COLUMNS, problems, separator=",", may_have_more=True):
        name, text, instance = _read_line(entry)
        if name is not None and instance is not None:
            own = database.setdefault(instance, {})
            if text in own.get(name, ()):
                entry.note(f"the name {name!r} is repeated")
            own.setdefault(name, set()).add(text)
            images[name] = home / name
    return database


def _read_line(entry: Entry) -> tuple[str | None, str, str | None]:
    """Return the image's name, the text and the instance; for the first and the last None after adding a problem."""
    path = entry.sentence("path", entry.fields["path"].strip())
    instance = entry.sentence("instance", entry.fields["instance"].strip())
    return None if path is None else _name(path), entry.fields["text"].strip(), instance


def _name(path: str) -> str:
    """Return the path from ``database/`` or ``query/`` on; the published ones begin with the folder of the data set."""
    parts = PurePosixPath(path).parts
    start = next((number for number, part in enumerate(parts) if part in FOLDERS), 0)
    return str(PurePosixPath(*parts[start:]))


def _read_query(
    entry: Entry,
    query_id: str,
    database: Database,
    candidates: dict[str, tuple[str, ...]],
    place: tuple[Path, dict[str, ImageSource]],
) -> Query | None:
    """Return the query of one line and add its image; what is wrong with it is added to the entry's problems."""
    reference, _, instance = _read_line(entry)
    text = entry.caption("text", entry.fields["text"].strip())
    if reference is None or instance is None or text is None:
        return None
    targets = tuple(name for name, texts in database.get(instance, {}).items() if text in texts)
    if not targets:
        message = f"no image of {DATABASE_FILE} has the instance {instance!r} and the text {text!r}"
        entry.problem(message, "add a right answer to it, or restore the published file")
        return None
    home, images = place
    images[reference] = home / reference
    return Query(
        id=query_id,
        reference=reference,
        text=text,
        texts=(text,),
        targets=targets,
        gallery=candidates[instance],
        group=instance,
    )
