"""The commands that measure: ``evaluate``, ``submit``, ``compare``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from composir.cli.choices import SUBMITTED, one_of
from composir.cli.common import (
    ANSWER,
    ASKED,
    MODELS,
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
from composir.cli.console import Bars, err, one_line, out, print_json
from composir.cli.early import require_data_root, require_model, require_sources
from composir.errors import ComposirError, Problem, counted
from composir.paths import require_there

if TYPE_CHECKING:
    from composir.data import Split
    from composir.evaluation import Result
    from composir.token_cache import TokenPlace

RULES = "Rules of the measurement"
Gallery = Annotated[
    str, typer.Option("--gallery", help="original, or val-union: FashionIQ's smaller one.", rich_help_panel=RULES)
]
ExcludeReference = Annotated[
    bool | None,
    typer.Option(
        "--exclude-reference/--keep-reference",
        help="Whether a query's own picture is left out of its ranking.",
        show_default="the data set's own rule",
        rich_help_panel=RULES,
    ),
]
TextRule = Annotated[
    str | None,
    typer.Option(
        "--text-rule",
        help="How CIRR's, FashionIQ's and CIRCO's sentences are made, such as 'concept and caption'.",
        show_default="the data set's own rule",
        rich_help_panel=RULES,
    ),
]


@app.command(rich_help_panel=MODELS)
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
    image_only: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --predictions: what the same tool answers to the pictures alone; repeatable.",
        ),
    ] = None,
    text_only: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --predictions: what it answers to the sentences alone; with both, the audit is made.",
        ),
    ] = None,
    rankings: Annotated[
        Path | None, typer.Option(help="Instead of a model: what --save-rankings wrote; needs no data root.")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data set in its published layout, or its parent.")
    ] = None,
    dataset: Dataset = "CIRR",
    split: Annotated[
        str | None,
        typer.Option(
            help="Which split is measured; train: learned by heart?", show_default="the one whose answers are public"
        ),
    ] = None,
    categories: Categories = None,
    gallery: Gallery = "original",
    exclude_reference: ExcludeReference = None,
    text_rule: TextRule = None,
    only: Annotated[
        Path | None,
        typer.Option(
            help="A list of query ids, or one of CIRCUS's files: measure these alone; says how many.",
            show_default="all queries",
            rich_help_panel=RULES,
        ),
    ] = None,
    skip_missing_images: Annotated[
        bool,
        typer.Option(
            "--skip-missing-images",
            help="Measure the queries whose images are all there; says how many.",
            rich_help_panel=RULES,
        ),
    ] = False,
    scoring: Annotated[
        str,
        typer.Option(
            help="How a model's queries are scored: global (its embedding), local (part by part), both.",
            rich_help_panel=ASKED,
        ),
    ] = "global",
    rerank: Annotated[
        int,
        typer.Option(
            min=0,
            max=10_000,
            help="Score so many of each query's best again with the matching head; 0: none.",
            rich_help_panel=ASKED,
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
        Path | None,
        typer.Option(help="Write the rankings; --rankings and compare read them.", rich_help_panel=ANSWER),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML page into this folder.", rich_help_panel=ANSWER)
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(help="Write a PNG: queries with their top 10, the target framed.", rich_help_panel=ANSWER),
    ] = None,
    num_queries: Annotated[
        int, typer.Option(min=1, max=500, help="Rows of the contact sheet.", rich_help_panel=ANSWER)
    ] = 8,
    json_: Json = False,
) -> int:
    """Measure a model, a file of predictions or saved rankings on a split.

    A model is also asked with the picture alone and with the sentence alone.
    Example: composir evaluate --model models/RUN/best --dataset CIRR --data-root DIR
    """
    require_one({"--model": model, "--predictions": predictions, "--rankings": rankings})
    _require_predictions(predictions, {"--image-only": image_only, "--text-only": text_only})
    if data_root is None and (rankings is None or contact_sheet or only):
        raise ComposirError(
            "--data-root is missing",
            expected="with --model, --predictions, --contact-sheet and --only; --rankings goes without",
            fix="give the data set's folder, or its parent",
        )
    if rerank and model is None:
        raise ComposirError("--rerank needs a model", expected="it beside --model", fix="leave out --rerank")
    for file in (*(predictions or ()), *(image_only or ()), *(text_only or ()), *([rankings] if rankings else ())):
        require_there(file, "a file of predictions, or of --save-rankings")
    require_data_root(dataset, data_root, split)
    require_model(model)
    from composir.evaluation import audit_lines, rerank_lines, table
    from composir.evaluation import contact_sheet as write_sheet
    from composir.evaluation import save_rankings as write_rankings
    from composir.token_cache import TokenPlace

    model = model_of_flags(model, prompt=prompt, max_pixels=max_pixels, dtype=dtype)
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
    result = _measure(
        model,
        {"composed": predictions, "image_only": image_only, "text_only": text_only} if predictions else {},
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
    predictions: Mapping[str, list[Path] | None],
    rankings: Path | None,
    splits: tuple[Split, ...] | None,
    *,
    scoring: str,
    rerank: int,
    batch_size: int,
    place: TokenPlace,
) -> Result:
    """Return the figures of whichever of the three was given; only saved rankings go without ``splits``.

    ``predictions`` are files by kind of ranking, as ``measure`` calls them.
    """
    from composir.evaluation import check_scorable, load_rankings, measure, predictions_hash, read_predictions
    from composir.evaluation import evaluate as evaluate_model

    if rankings is not None:
        saved = load_rankings(rankings, splits)
        return measure(saved.rankings, signature=saved.signature_fields, rerank=saved.rerank)
    assert splits is not None
    check_scorable(splits)
    if predictions:
        ranked = {kind: read_predictions(files, splits) for kind, files in predictions.items() if files}
        return measure(ranked, weights_hash=predictions_hash(predictions["composed"] or []))
    assert model is not None
    _tell_trained_rule(model, splits[0])
    with Bars() as bars:
        embedder, weights_hash = embedder_of_flags(
            model, splits, bars, place=place, scoring=scoring, rerank=bool(rerank)
        )
        return evaluate_model(
            embedder, splits, rerank=rerank, batch_size=batch_size, weights_hash=weights_hash, progress=bars.tell
        )


def _require_predictions(predictions: list[Path] | None, baselines: dict[str, list[Path] | None]) -> None:
    """Raise ``ComposirError`` where files of a baseline are given without files of predictions."""
    for flag, given in baselines.items():
        if given and not predictions:
            raise ComposirError(
                f"{flag} goes with --predictions",
                expected="files of predictions for both",
                fix="leave it out: a model is asked with either alone anyway",
            )


def _tell_trained_rule(model: Path, split: Split) -> None:
    """Say so on stderr where a model that was trained here is asked with sentences of another text rule."""
    from composir.data.datasets import DATASETS
    from composir.evaluation.saved import RECIPE
    from composir.files import read_toml

    recipe = read_toml(model / RECIPE) if (model / RECIPE).is_file() else {}
    if recipe.get("dataset") != split.dataset:
        return
    trained = recipe.get("text_rule") or next(iter(DATASETS[split.dataset].text_rules), split.text_rule)
    if trained != split.text_rule:
        line = f"note: trained with --text-rule {trained!r}, and asked with {split.text_rule!r}"
        err.print(line, soft_wrap=True)


@app.command(rich_help_panel=MODELS)
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
        str | None,
        typer.Option(
            help="Which split is answered; val is a dry run.",
            show_default="the test server's: test1 of CIRR, test of CIRCO",
        ),
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
    require_one({"--model": model, "--validate": validate})
    if out_ is None and not validate:
        raise ComposirError("--out is missing", fix="give the folder that the files are written to")
    for file in validate or ():
        require_there(file, "a file in the form that the test server takes")
    require_data_root(dataset, data_root, split)
    require_model(model)
    from composir.data.datasets import DATASETS, find_dataset
    from composir.evaluation import check_predictions, rank_splits, require_test_server, write_submission
    from composir.token_cache import TokenPlace

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
        assert out_ is not None
        require_test_server(dataset)
        splits = splits_of_flags(dataset, data_root, split, text_rule=text_rule)
        _tell_trained_rule(model, splits[0])
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
            out.print(f"{counted(len(problems), 'problem')} in {counted(len(validate), 'file')}")
    return USER_ERROR if problems else 0


@app.command(rich_help_panel=MODELS)
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
        typer.Option(
            "--metric",
            help="Compare by this, such as recall_at_5; repeatable.",
            show_default="the data set's primary one",
        ),
    ] = None,
    all_pairs: Annotated[bool, typer.Option("--all-pairs", help="Compare each with each.")] = False,
    json_: Json = False,
) -> int:
    """Say how sure a difference between models is: over the same queries and, with several runs of each, over seeds.

    Example: composir compare plain=models/A,models/B gate=models/C,models/D
    """
    require_sources(sources)
    from composir.evaluation import compare as run_comparison
    from composir.evaluation import comparison_tables, load_groups

    comparison = run_comparison(load_groups(sources), metrics or (), all_pairs=all_pairs)
    if json_:
        print_json(comparison.to_json())
    else:
        for view in comparison_tables(comparison):
            out.print(view)
    return 0
