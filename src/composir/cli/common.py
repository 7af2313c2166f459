"""What commands share: the applications they belong to, options, and how splits and models are opened by flags."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from composir.cli.choices import DATASETS, one_of
from composir.cli.console import Bars, err, printable, tell_left
from composir.errors import ComposirError, command, nearest
from composir.limits import MAX_SEED, MAX_WORKERS

if TYPE_CHECKING:
    from composir.data import Split
    from composir.evaluation import Embedder
    from composir.search import Retriever
    from composir.token_cache import TokenPlace

USER_ERROR, INTERRUPTED = 2, 130

START, OWN_PICTURES, MODELS, DATA = "Start here", "Your own pictures", "Models", "Data sets and measurements"
"""Panels of ``composir --help``, in their order."""
ASKED, SPEED, ANSWER = "How the model is asked", "Speed and memory", "What is written and printed"
"""Panels of a command's options, after those that everybody needs."""
GPU_IF_ANY = "a GPU where there is one"

app = typer.Typer(
    help="Composed image retrieval: a picture and a sentence that says what should differ, answered by a ranking.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help=f"Check, describe and make data sets: {one_of(DATASETS)}.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel=DATA)
models_app = typer.Typer(help="List the field's public models, and download them.", invoke_without_command=True)
app.add_typer(models_app, name="models", rich_help_panel=MODELS)
benchmark_app = typer.Typer(
    help="Measure speed and memory, as ratios within one run; every repetition and the machine are printed. How well "
    "models answer is for composir bench.",
    no_args_is_help=True,
)
app.add_typer(benchmark_app, name="benchmark", rich_help_panel=DATA)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else there.")]
DataRoot = Annotated[
    Path, typer.Option("--data-root", help="Folder of the data set in its published layout, or its parent.")
]
Dataset = Annotated[
    str,
    typer.Option("--dataset", help=f"{one_of(DATASETS)} (docs/data.md)."),
]
Cache = Annotated[
    str,
    typer.Option(
        "--cache",
        help="Where image tokens are kept: disk, memory, or off: computed at every use.",
        rich_help_panel=SPEED,
    ),
]
CacheDir = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        help="Folder of the tokens on disk.",
        show_default="$COMPOSIR_CACHE, else ~/.cache/composir",
        rich_help_panel=SPEED,
    ),
]
Categories = Annotated[
    list[str] | None,
    typer.Option("--categories", help="Only these, such as dress of FashionIQ; repeatable.", show_default="all"),
]

Prompt = Annotated[
    str | None,
    typer.Option(
        help="For st:NAME and models by name: the instruction before queries.",
        show_default="the model's own",
        rich_help_panel=ASKED,
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=10**9,
        help="For the same: pictures of more pixels are made smaller.",
        show_default="the model's own",
        rich_help_panel=ASKED,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(help="For the same: fp32, bf16 or fp16.", show_default="the model's own", rich_help_panel=ASKED),
]
BatchSize = Annotated[
    int, typer.Option(min=1, max=1_000_000, help="Images or queries embedded at once.", rich_help_panel=SPEED)
]
NumWorkers = Annotated[
    int, typer.Option(min=0, max=MAX_WORKERS, help="Threads that decode images.", rich_help_panel=SPEED)
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default=GPU_IF_ANY, rich_help_panel=SPEED)]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="The same seed makes the same choices.")]


def key_and_value(flag: str, pair: str) -> tuple[str, str]:
    """Return what stands on either side of the first equals sign; raise ``ComposirError`` without one."""
    key, equals, value = pair.partition("=")
    if not equals:
        raise ComposirError(f"{flag} {pair!r} has no value", expected="key=value", fix=f"{flag} {key}=...")
    return key.strip(), value.strip()


def require_choice(flag: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ``ComposirError`` naming the choices where the value is none of them."""
    if value not in choices:
        raise ComposirError(
            f"{flag} {value!r} is not known", expected=" or ".join(choices), fix=nearest(value, choices)
        )


def model_of_flags(
    model: Path | None,
    *,
    prompt: str | None = None,
    max_pixels: int | None = None,
    dtype: str | None = None,
    batch_size: int | None = None,
) -> Path | None:
    """Return the model with these flags as options of its address, which an index then remembers.

    Raises ``ComposirError`` where a flag is given to a model that is a path or a hub id.
    """
    given = {"prompt": prompt, "max_pixels": max_pixels, "dtype": dtype, "batch_size": batch_size}
    given = {name: str(value) for name, value in given.items() if value is not None}
    if not given:
        return model
    from composir.models.address import Options
    from composir.models.named import find_address

    address = None if model is None else find_address(str(model))
    if address is None:
        flag = f"--{next(iter(given)).replace('_', '-')}"
        raise ComposirError(
            f"{flag} is for st:NAME and models by name{f', not for {model}' if model else ''}",
            fix="leave it out, or give such a --model",
        )
    return Path(str(address.with_options(Options.read(given))))


def embedder_of_flags(
    model: Path,
    splits: tuple[Split, ...],
    bars: Bars,
    *,
    place: TokenPlace,
    scoring: str = "global",
    rerank: bool = False,
) -> tuple[Embedder, str]:
    """Return a model's embedder of these splits, its image tokens there, and the hash of its weights."""
    from composir.features import open_embedder

    return open_embedder(
        model,
        splits,
        scoring=scoring,
        rerank=rerank,
        place=place,
        progress=lambda done, total: bars.tell("image tokens", done, total),
    )


def require_one(value_by_flag: dict[str, Any]) -> None:
    """Raise ``ComposirError`` unless exactly one of the flags was given."""
    given = [flag for flag, value in value_by_flag.items() if value]
    if len(given) != 1:
        raise ComposirError(
            f"{' and '.join(given)} were given" if given else "nothing to do was given",
            expected=f"exactly one of {', '.join(value_by_flag)}",
        )


def splits_of_flags(
    dataset: str,
    data_root: Path,
    split: str | None,
    categories: list[str] | None = None,
    gallery: str = "original",
    exclude_reference: bool | None = None,
    *,
    text_rule: str | None = None,
    only: Path | None = None,
    skip_missing: bool = False,
    annotations_only: bool = False,
) -> tuple[Split, ...]:
    """Return the splits that the flags name; with ``skip_missing`` say on stderr how many queries are left.

    With ``annotations_only`` say what cannot be checked where a list of the gallery is not there.
    """
    from composir.data import load_splits
    from composir.data.datasets import DATASETS, find_dataset

    splits = load_splits(
        dataset,
        data_root,
        split or DATASETS[find_dataset(dataset)].evaluated,
        categories=categories or None,
        gallery=gallery,
        exclude_reference=exclude_reference,
        text_rule=text_rule,
        only=only,
        annotations_only=annotations_only,
    )
    for file in dict.fromkeys(one.missing_list for one in splits if one.missing_list):
        line = f"note: {printable(file)} is not there: whether the images named are in the gallery was not checked"
        err.print(line, soft_wrap=True)
    if skip_missing:
        from composir.data.check import without_missing_images

        splits, left_by_key = without_missing_images(splits)
        tell_left(left_by_key)
    return splits


def note_if_incomplete(retriever: Retriever) -> None:
    """Say on stderr where the last run of ``composir index`` has not come to its end."""
    if not retriever.complete:
        goes_on = command("index", retriever.images.root, "--out", retriever.folder)
        err.print(f"note: {retriever.folder} is not complete; {goes_on} goes on", soft_wrap=True)
