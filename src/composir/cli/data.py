"""The commands under ``data``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from composir.cli.common import (
    USER_ERROR,
    Categories,
    DataRoot,
    Dataset,
    Json,
    Seed,
    data_app,
    embedder_of_flags,
    key_and_value,
)
from composir.cli.console import Bars, one_line, out, print_json, printable
from composir.cli.early import require_model
from composir.errors import Problem, ProblemsError, command, counted
from composir.limits import MAX_SEED

if TYPE_CHECKING:
    from composir.data import Split


@data_app.command("scenes")
def data_scenes(
    out_: Annotated[Path, typer.Option("--out", help="Folder to make, in CIRR's layout.")],
    images: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Pictures, shared 4 : 1 : 1 by train, val and test1.")
    ] = 3000,
    seed: Seed = 0,
    json_: Json = False,
) -> int:
    """Make the generated set: scenes of coloured shapes and sentences that edit them, free of any licence."""
    from composir.data.scenes import generate

    counts = generate(out_, num_images=images, seed=seed)
    if json_:
        print_json({"counts": counts})
    else:
        for name, count in counts.items():
            out.print(f"{name}: {_queries(count)}, {counted(count['num_gallery'], 'picture')}")
        words = ("train", "--dataset", "CIRR", "--data-root", out_, "--backbone", "mini")
        out.print(f"next: {command(*words)}", soft_wrap=True)
    return 0


@data_app.command("import")
def data_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Triplets: CSV with a header, or JSONL.")],
    images: Annotated[Path, typer.Option(help="The folder that the paths in FILE start from.")],
    out_: Annotated[Path, typer.Option("--out", help="Folder to make: the data root of --dataset own.")],
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", help="What FILE calls a column, as reference=ref_img; repeatable."),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Where FILE has no column split: train, val or test; or 80/20, which shares the rows out at random, "
            "80 % to train and 20 % to val, no reference in both.",
            show_default="val",
        ),
    ] = None,
    gallery: Annotated[
        str, typer.Option(help="folder: every picture of the folder; named: those in FILE alone.")
    ] = "folder",
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Of --split 80/20: which rows go where.")] = 0,
    copy_images: Annotated[
        bool, typer.Option("--copy-images", help="Copy the pictures into the data root instead of pointing to them.")
    ] = False,
    json_: Json = False,
) -> int:
    """Make a checked data root of your own triplets, for --dataset own.

    FILE has the columns (or keys) reference, text and target, and may have split, subset and id; paths start from the
    images folder. Every row and every picture is checked; exit code 2, and nothing is written, when there is a problem.

    Example: composir data import triplets.csv --images photos --out mydata
    """
    from composir.data.importing import import_triplets

    problems: Sequence[Problem] = ()
    imported = None
    try:
        with Bars() as bars:
            imported = import_triplets(
                file,
                images,
                out_,
                columns=dict(key_and_value("--column", pair) for pair in columns or []),
                split=split,
                gallery=gallery,
                copy_images=copy_images,
                seed=seed,
                progress=lambda *told: bars.tell("images", *told),
            )
    except ProblemsError as error:
        if not json_:
            raise
        problems = error.problems
    if json_:
        print_json(
            {
                "counts": imported.counts if imported else {},
                "problems": [asdict(one) for one in problems],
                "notes": imported.notes if imported else [],
            }
        )
    elif imported:
        for name, count in imported.counts.items():
            out.print(f"{name}: {_queries(count)}, {counted(count['num_gallery'], 'image')} in the gallery")
        for note in imported.notes:
            out.print(f"note: {note}", soft_wrap=True)
        words = ("data", "check", "--dataset", "own", "--data-root", out_)
        out.print(f"next: {command(*words)}", soft_wrap=True)
    return USER_ERROR if problems else 0


@data_app.command("check")
def data_check(
    data_root: DataRoot,
    dataset: Dataset = "CIRR",
    categories: Categories = None,
    allow_duplicates: Annotated[
        bool, typer.Option("--allow-duplicates", help="Count files with the same content, but do not list them.")
    ] = False,
    json_: Json = False,
) -> int:
    """Read every annotation and decode every image that is there; all problems at once, each with its fix.

    Exit code 2 when there is a problem. Notes tell what is odd and published so, and which annotation files are the
    published ones. Splits and categories that are not there are named, and no problem.

    Example: composir data check --dataset FashionIQ --data-root DIR --categories dress
    """
    from composir.data.check import check_dataset

    with Bars() as bars:
        checked = check_dataset(
            dataset,
            data_root,
            categories=categories,
            allow_duplicates=allow_duplicates,
            progress=lambda *told: bars.tell("images", *told),
        )
    if json_:
        print_json(
            {
                "problems": [asdict(one) for one in checked.problems],
                "notes": [asdict(one) for one in checked.notes],
                "files": [{"file": str(file), "published": answer} for file, answer in checked.files.items()],
                "counts": checked.counts,
                "absent": checked.absent,
            }
        )
    else:
        for problem in checked.problems:
            out.print(one_line(problem), soft_wrap=True)
        for note in checked.notes:
            out.print(f"note: {one_line(note)}", soft_wrap=True)
        for file, is_published in checked.files.items():
            if is_published is not False:  # a note says so
                answer = "as published" if is_published else "no hash is known to compare it with"
                out.print(f"{printable(file)}: {answer}", soft_wrap=True)
        for name, count in checked.counts.items():
            copies = count["num_duplicate_images"]
            out.print(
                f"{name}: {_queries(count)}, {counted(count['num_images'], 'image')}"
                + (f", {copies:,} of them with the content of another" if copies else "")
            )
        _print_absent(checked.absent)
        out.print(counted(len(checked.problems), "problem"))
    return USER_ERROR if checked.problems else 0


@data_app.command("stats")
def data_stats(
    data_root: DataRoot,
    dataset: Dataset = "CIRR",
    split: Annotated[str | None, typer.Option(help="One split.", show_default="all that are there")] = None,
    categories: Categories = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A checkpoint folder: also count the queries that it solves by one modality alone."),
    ] = None,
    json_: Json = False,
) -> int:
    """Count queries, gallery images, words and duplicate targets of every split.

    The images need not be there, unless a model is asked.

    Example: composir data stats --dataset CIRR --data-root DIR --json
    """
    require_model(model)
    from composir.data.check import stats
    from composir.data.datasets import load_present

    present = load_present(dataset, data_root, split=split, categories=categories, annotations_only=model is None)
    if present.problems:
        raise ProblemsError(present.problems)
    counts = stats(present.splits)
    lines = [] if model is None else _count_solved(model, present.splits, counts)
    if json_:
        print_json({"counts": counts, "absent": present.absent})
        return 0
    table = Table(box=None)
    table.add_column("", no_wrap=True)
    for heading in STATS_COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for name, count in counts.items():
        cells = [count.get(key) for key in STATS_COLUMNS]
        table.add_row(name, *("–" if cell is None else f"{round(cell, 1):,}" for cell in cells))
    out.print(table)
    for line in lines:
        out.print(line, soft_wrap=True)
    _print_absent(present.absent)
    return 0


def _queries(count: Mapping[str, int]) -> str:
    return counted(count["num_queries"], "query", "queries")


SOLVED_COUNTS = ("num_shortcut_solvable", "num_image_solves", "num_text_solves")
STATS_COLUMNS = {
    "num_queries": "queries",
    "gallery_original": "gallery",
    "gallery_val_union": "val-union",
    "num_pairs": "pairs",
    "num_duplicate_targets": "repeats",
    "words_mean": "words",
    "words_max": "most",
}


def _count_solved(model: Path, splits: Sequence[Split], counts: dict[str, dict[str, int | float]]) -> list[str]:
    """Add to the ``counts`` of every split with public answers what one modality alone solves; return it in words."""
    from composir.data.triplets import split_key
    from composir.evaluation import audit_lines
    from composir.evaluation import evaluate as evaluate_model
    from composir.token_cache import ON_DISK

    lines = []
    for split in splits:
        if all(query.targets for query in split.queries):
            with Bars() as bars:
                embedder, _ = embedder_of_flags(model, (split,), bars, place=ON_DISK)
                result = evaluate_model(embedder, [split], progress=bars.tell)
            assert result.audit is not None
            key = split_key(split.name, split.category)
            counts[key] |= {name: getattr(result.audit, name) for name in SOLVED_COUNTS}
            lines.append(f"{key}: {audit_lines(result)[0]}")
    return lines


def _print_absent(absent: list[str]) -> None:
    if absent:
        out.print(f"not there: {', '.join(absent)}", soft_wrap=True)
