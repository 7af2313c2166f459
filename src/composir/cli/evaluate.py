"""The commands that measure: ``evaluate``, ``submit``, ``compare``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from composir.cli.choices import SUBMITTED, one_of
from composir.cli.common import (
    USER_ERROR,
    BatchSize,
    Cache,
    CacheDir,
    Categories,
    DataRoot,
    Dataset,
    Dtype,
    Json,
    MaxPixels,
    NumWorkers,
    Prompt,
    app,
    embedder_of_flags,
    model_of_flags,
    require_one,
    splits_of_flags,
)
from composir.cli.console import Bars, one_line, out, print_json
from composir.errors import ComposirError, Problem

if TYPE_CHECKING:
    from composir.data import Split
    from composir.evaluation import Result
    from composir.token_cache import TokenPlace

Gallery = Annotated[str, typer.Option("--gallery", help="original, or val-union: FashionIQ's smaller one.")]
ExcludeReference = Annotated[
    bool | None,
    typer.Option("--exclude-reference/--keep-reference", help="Instead of the data set's own rule."),
]
TextRule = Annotated[
    str | None,
    typer.Option("--text-rule", help="How FashionIQ's and CIRCO's sentences are made, such as 'concept and caption'."),
]


@app.command(rich_help_panel="Models")
def evaluate(
    model: Annotated[
        Path | None,
        typer.Option(
            help="photos (built in), a checkpoint folder, such as models/RUN/best, a hub id, a name of composir "
            "models, or st:NAME."
        ),
    ] = None,
    predictions: Annotated[
        list[Path] | None,
        typer.Option(help="Instead of a model: a file in the data set's submission form; repeatable."),
    ] = None,
    rankings: Annotated[
        Path | None, typer.Option(help="Instead of a model: what --save-rankings wrote; needs no data root.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data set in its published layout, or its parent.")
    ] = None,
    dataset: Dataset = "CIRR",
    split: Annotated[
        str | None, typer.Option(help="The split whose answers are public unless given; train: learned by heart?")
    ] = None,
    categories: Categories = None,
    gallery: Gallery = "original",
    exclude_reference: ExcludeReference = None,
    text_rule: TextRule = None,
    only: Annotated[
        Path | None, typer.Option(help="A list of query ids, such as CIRCUS's: measure these alone; says how many.")
    ] = None,
    skip_missing_images: Annotated[
        bool,
        typer.Option("--skip-missing-images", help="Measure the queries whose images are all there; says how many."),
    ] = False,
    scoring: Annotated[
        str, typer.Option(help="How a model's queries are scored: global (its embedding), local (part by part), both.")
    ] = "global",
    rerank: Annotated[
        int,
        typer.Option(
            min=0, max=10_000, help="Score so many of each query's best again with the matching head; 0: none."
        ),
    ] = 0,
    prompt: Prompt = None,
    max_pixels: MaxPixels = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = 4,
    cache: Cache = "disk",
    cache_dir: CacheDir = None,
    save_rankings: Annotated[
        Path | None, typer.Option(help="Write the rankings; --rankings and compare read them.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write an HTML page into this folder.")] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option(help="Write a PNG: queries with their top 10, the target framed.")
    ] = None,
    num_queries: Annotated[int, typer.Option(min=1, max=500, help="Rows of the contact sheet.")] = 8,
    json_: Json = False,
) -> int:
    """Measure a model, a file of predictions or saved rankings on a split.

    A model is also asked with the picture alone and with the sentence alone.
    Example: composir evaluate --model models/RUN/best --dataset CIRR --data-root DIR
    """
    from composir.evaluation import audit_lines, rerank_lines, table
    from composir.evaluation import contact_sheet as write_sheet
    from composir.evaluation import save_rankings as write_rankings
    from composir.token_cache import TokenPlace

    require_one({"--model": model, "--predictions": predictions, "--rankings": rankings})
    model = model_of_flags(model, prompt=prompt, max_pixels=max_pixels, dtype=dtype)
    if data_root is None and (rankings is None or contact_sheet or only):
        raise ComposirError(
            "--data-root is missing",
            expected="with --model, --predictions, --contact-sheet and --only; --rankings goes without",
            fix="give the data set's folder, or its parent",
        )
    splits = None
    if data_root is not None:
        splits = splits_of_flags(
            dataset,
            data_root,
            split,
            categories,
            gallery,
            exclude_reference,
            text_rule=text_rule,
            only=only,
            skip_missing=skip_missing_images,
            annotations_only=bool(predictions) and not (contact_sheet or report or skip_missing_images),
        )
    if rerank and model is None:
        raise ComposirError("--rerank needs a model", expected="it beside --model", fix="leave out --rerank")
    result = _measure(
        model,
        predictions,
        rankings,
        splits,
        scoring=scoring,
        rerank=rerank,
        batch_size=batch_size,
        place=TokenPlace(cache, cache_dir, num_workers),
    )
    files = {}
    if save_rankings:
        write_rankings(result, save_rankings)
        files["rankings"] = save_rankings
    if contact_sheet:
        write_sheet(result.rankings["composed"], contact_sheet, num_queries=num_queries)
        files["contact sheet"] = contact_sheet
    if report:
        from composir.evaluation.page import write_page

        files["report"] = write_page(result, report)
    if json_:
        print_json(result.to_json())
    else:
        out.print(table(result))
        for line in (*rerank_lines(result), *audit_lines(result)):
            out.print(line, soft_wrap=True)
        for name, file in files.items():
            out.print(f"{name}: {file}", soft_wrap=True)
    return 0


def _measure(
    model: Path | None,
    predictions: list[Path] | None,
    rankings: Path | None,
    splits: tuple[Split, ...] | None,
    *,
    scoring: str,
    rerank: int,
    batch_size: int,
    place: TokenPlace,
) -> Result:
    """Return the figures of whichever of the three was given; only saved rankings go without ``splits``."""
    from composir.evaluation import check_scorable, load_rankings, measure, predictions_hash, read_predictions
    from composir.evaluation import evaluate as evaluate_model

    if rankings is not None:
        saved = load_rankings(rankings, splits)
        return measure(saved.rankings, signature=saved.signature_fields, rerank=saved.rerank)
    assert splits is not None
    check_scorable(splits)
    if predictions:
        ranked = read_predictions(predictions, splits)
        return measure({"composed": ranked}, weights_hash=predictions_hash(predictions))
    assert model is not None
    with Bars() as bars:
        embedder, weights_hash = embedder_of_flags(
            model, splits, bars, place=place, scoring=scoring, rerank=bool(rerank)
        )
        return evaluate_model(
            embedder, splits, rerank=rerank, batch_size=batch_size, weights_hash=weights_hash, progress=bars.tell
        )


@app.command(rich_help_panel="Models")
def submit(
    data_root: DataRoot,
    dataset: Annotated[str, typer.Option(help=f"{one_of(SUBMITTED)}; with --validate any other, too.")] = "CIRR",
    model: Annotated[
        Path | None, typer.Option(help="A checkpoint folder, a hub id, a name of composir models, or st:NAME.")
    ] = None,
    validate: Annotated[
        list[Path] | None, typer.Option(help="Instead of a model: only check this file; repeatable.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The test server's (test1, test) unless given; val is a dry run.")
    ] = None,
    text_rule: TextRule = None,
    out_: Annotated[Path | None, typer.Option("--out", help="Folder of the files.")] = None,
    prompt: Prompt = None,
    max_pixels: MaxPixels = None,
    dtype: Dtype = None,
    batch_size: BatchSize = 64,
    num_workers: NumWorkers = 4,
    json_: Json = False,
) -> int:
    """Write the files that the test server of CIRR or CIRCO takes, and check them; or check files that are there.

    Example: composir submit --model models/RUN/best --dataset CIRR --data-root DIR --out submission
    """
    from composir.data.datasets import DATASETS, find_dataset
    from composir.evaluation import check_predictions, rank_splits, require_test_server, write_submission
    from composir.token_cache import TokenPlace

    require_one({"--model": model, "--validate": validate})
    model = model_of_flags(model, prompt=prompt, max_pixels=max_pixels, dtype=dtype)
    dataset = find_dataset(dataset)
    split = split or DATASETS[dataset].submitted
    files: list[Path] = []
    problems: list[Problem] = []
    if validate:
        splits = splits_of_flags(dataset, data_root, split, text_rule=text_rule, annotations_only=True)
        for file in validate:
            problems += check_predictions(file, splits)
    else:
        assert model is not None
        require_test_server(dataset)
        if out_ is None:
            raise ComposirError("--out is missing", fix="give the folder that the files are written to")
        splits = splits_of_flags(dataset, data_root, split, text_rule=text_rule)
        with Bars() as bars:
            embedder, _ = embedder_of_flags(model, splits, bars, place=TokenPlace(num_workers=num_workers))
            rankings = rank_splits(embedder, splits, batch_size=batch_size, progress=bars.tell)
        files = list(write_submission(rankings["composed"], out_))
    if json_:
        print_json({"files": [str(file) for file in files], "problems": [asdict(one) for one in problems]})
    else:
        for file in files:
            out.print(f"{file}: {file.stat().st_size:,} bytes, valid", soft_wrap=True)
        for problem in problems:
            out.print(one_line(problem), soft_wrap=True)
        if validate:
            out.print(f"{len(problems)} problems in {len(validate)} {'file' if len(validate) == 1 else 'files'}")
    return USER_ERROR if problems else 0


@app.command(rich_help_panel="Models")
def compare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Run folders, checkpoint folders or files of --save-rankings; the others are compared with the first. "
            "NAME=PATH[,PATH...] names one, or is a group of runs that differ in the seed.",
        ),
    ],
    metrics: Annotated[
        list[str] | None,
        typer.Option("--metric", help="Compare by this, such as recall_at_5, not the primary one; repeatable."),
    ] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Compare each with each.")] = False,
    json_: Json = False,
) -> int:
    """Say how sure a difference between models is: over the same queries and, with several runs of each, over seeds.

    Example: composir compare plain=models/A,models/B gate=models/C,models/D
    """
    from composir.evaluation import compare as run_comparison
    from composir.evaluation import comparison_tables, load_groups

    comparison = run_comparison(load_groups(sources), metrics or (), all_pairs=all_pairs)
    if json_:
        print_json(comparison.to_json())
    else:
        for view in comparison_tables(comparison):
            out.print(view)
    return 0
