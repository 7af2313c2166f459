"""The commands under ``benchmark``."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.table import Table

from composir.cli.choices import INDEXES
from composir.cli.common import Json, benchmark_app
from composir.cli.console import Bars, out, print_json
from composir.errors import ComposirError, short
from composir.limits import MAX_COUNT, MAX_WORKERS

TEMPORARY = "a temporary folder"
Repeats = Annotated[int, typer.Option(min=1, max=1000, help="Repetitions of each part; the median counts.")]


@benchmark_app.command("evaluate")
def benchmark_evaluate(
    num_queries: Annotated[int, typer.Option(min=1, max=1_000_000, help="Queries of the large part.")] = 1000,
    num_gallery: Annotated[
        int, typer.Option(min=60, max=100_000_000, help="Gallery images of the large part; CIRCO's number.")
    ] = 123403,
    repeats: Repeats = 3,
    json_: Json = False,
) -> int:
    """Score synthetic embeddings: a gallery of CIRCO's size, CIRR's size beside the published way, the bootstrap."""
    from composir.benchmark.evaluate import benchmark_evaluate as run

    _print_benchmark(run(num_queries=num_queries, num_gallery=num_gallery, repeats=repeats), json_=json_)
    return 0


BenchmarkBackbone = Annotated[
    str, typer.Option(help="real (BLIP-2's sizes, random weights), or a backbone that needs no weights.")
]
Triplets = Annotated[int, typer.Option(min=2, max=100_000, help="Triplets a step.")]
ProcessorTime = Annotated[
    bool, typer.Option(help="Seconds that this process had of all cores, for a machine that others use.")
]


@benchmark_app.command("train")
def benchmark_train(
    backbone: BenchmarkBackbone = "real",
    batch_size: Triplets = 8,
    repeats: Repeats = 3,
    processor_time: ProcessorTime = False,
    compiled: Annotated[bool, typer.Option(help="Measure torch.compile as well; needs a C++ compiler.")] = False,
    curve_steps: Annotated[
        int, typer.Option(min=1, max=100_000, help="Steps of the loss curves in fp32 and bf16.")
    ] = 20,
    json_: Json = False,
) -> int:
    """Take training steps the published way and this package's, part by part, with equal losses and gradients.

    Example: composir benchmark train --backbone mini --batch-size 32
    """
    from composir.benchmark.train import benchmark_train as run

    _require_free_backbone(backbone)
    with Bars() as bars:
        document = run(
            backbone=backbone,
            batch_size=batch_size,
            repeats=repeats,
            processor_time=processor_time,
            compiled=compiled,
            curve_steps=curve_steps,
            progress=bars.tell,
        )
    _print_benchmark(document, json_=json_)
    return 0


@benchmark_app.command("gate")
def benchmark_gate(
    backbone: BenchmarkBackbone = "real",
    token_width: Annotated[
        int | None, typer.Option(min=1, max=16_384, help="real: width of the image tokens.", show_default="1408")
    ] = None,
    batch_size: Triplets = 8,
    repeats: Repeats = 3,
    processor_time: ProcessorTime = False,
    json_: Json = False,
) -> int:
    """Take training steps with gated fusion and without, beside what its products alone must cost."""
    from composir.benchmark.gate import benchmark_gate as run

    _require_free_backbone(backbone)
    if token_width is not None and backbone != "real":
        raise ComposirError(f"the width of {backbone}'s tokens is fixed", fix="leave out --token-width")
    with Bars() as bars:
        document = run(
            backbone=backbone,
            token_width=token_width,
            batch_size=batch_size,
            repeats=repeats,
            processor_time=processor_time,
            progress=bars.tell,
        )
    _print_benchmark(document, json_=json_)
    return 0


@benchmark_app.command("methods")
def benchmark_methods(
    backbone: BenchmarkBackbone = "mini",
    batch_size: Triplets = 32,
    repeats: Repeats = 5,
    processor_time: ProcessorTime = False,
    json_: Json = False,
) -> int:
    """Take training steps with each fusion, loss and kind of negatives, beside those of SPRC."""
    from composir.benchmark.methods import benchmark_methods as run

    _require_free_backbone(backbone)
    with Bars() as bars:
        document = run(
            backbone=backbone,
            batch_size=batch_size,
            repeats=repeats,
            processor_time=processor_time,
            progress=bars.tell,
        )
    _print_benchmark(document, json_=json_)
    return 0


@benchmark_app.command("features")
def benchmark_features(
    backbone: BenchmarkBackbone = "real",
    num_images: Annotated[
        int, typer.Option(min=1, max=100_000_000, help="Images in the made-up token cache; CIRR's train set.")
    ] = 16939,
    num_reads: Annotated[int, typer.Option(min=1, max=100_000_000, help="Images read from it at random.")] = 2048,
    num_tower_images: Annotated[int, typer.Option(min=1, max=100_000, help="Images that go through the tower.")] = 8,
    repeats: Repeats = 3,
    num_workers: Annotated[int, typer.Option(min=1, max=MAX_WORKERS, help="Threads that decode.")] = 4,
    directory: Annotated[
        Path | None, typer.Option(help="Where the cache lies meanwhile: 12.3 GB for real.", show_default=TEMPORARY)
    ] = None,
    json_: Json = False,
) -> int:
    """Read a token cache at random, decode and prepare pictures, run the tower, index: images a second of each."""
    from composir.benchmark.features import benchmark_features as run

    _require_free_backbone(backbone)
    document = run(
        backbone=backbone,
        num_images=num_images,
        num_reads=num_reads,
        num_tower_images=num_tower_images,
        repeats=repeats,
        num_workers=num_workers,
        directory=directory,
    )
    _print_benchmark(document, json_=json_)
    return 0


@benchmark_app.command("feed")
def benchmark_feed(
    num_images: Annotated[int, typer.Option(min=2, max=100_000_000, help="Images in the made-up token cache.")] = 4096,
    batch_size: Triplets = 128,
    num_steps: Annotated[int, typer.Option(min=2, max=100_000, help="Steps that are fed.")] = 20,
    step_seconds: Annotated[
        float, typer.Option(min=0.0, max=3600.0, help="Seconds of a step where there is no GPU to take a real one.")
    ] = 0.6,
    cold: Annotated[bool, typer.Option(help="Have the system forget the cache's file before it is read.")] = True,
    repeats: Repeats = 1,
    directory: Annotated[
        Path | None, typer.Option(help="Where the cache lies meanwhile: 0.7 MB an image.", show_default=TEMPORARY)
    ] = None,
    json_: Json = False,
) -> int:
    """Feed training steps from a token cache: the share of its time that the device waits for batches."""
    from composir.benchmark.feed import benchmark_feed as run

    document = run(
        num_images=num_images,
        batch_size=batch_size,
        num_steps=num_steps,
        step_seconds=step_seconds,
        cold=cold,
        repeats=repeats,
        directory=directory,
    )
    _print_benchmark(document, json_=json_)
    return 0


@benchmark_app.command("device")
def benchmark_device(
    batch_sizes: Annotated[str, typer.Option(help="Triplets a step, smallest first.")] = "64,128,256",
    tower_batches: Annotated[str, typer.Option(help="Pictures a pass of the tower.")] = "8,16,32,64,128,256",
    num_steps: Annotated[int, typer.Option(min=1, max=1000, help="Repetitions of each part.")] = 10,
    compiled: Annotated[bool, typer.Option(help="On a GPU measure torch.compile as well.")] = True,
    json_: Json = False,
) -> int:
    """Take steps of BLIP-2's size in every precision, run its tower by batch: seconds and memory. For GPUs."""
    from composir.benchmark.device import benchmark_device as run

    with Bars() as bars:
        document = run(
            batch_sizes=tuple(_numbers("--batch-sizes", batch_sizes)),
            tower_batches=tuple(_numbers("--tower-batches", tower_batches)),
            num_steps=num_steps,
            compiled=compiled,
            progress=bars.tell,
        )
    _print_benchmark(document, json_=json_)
    return 0


def _require_free_backbone(backbone: str) -> None:
    free = ("real", "mini", "tiny")
    if backbone not in free:
        raise ComposirError(f"backbone {backbone!r} cannot be measured", expected=", ".join(free))


@benchmark_app.command("search")
def benchmark_search(
    images: Annotated[str, typer.Option(help="Sizes of the gallery, such as 10000,100000.")] = "10000",
    backends: Annotated[str, typer.Option(help="Engines, such as exact,faiss.")] = ",".join(INDEXES),
    vectors_per_image: Annotated[str, typer.Option(help="Merge 32 vectors a picture to so many.")] = "32",
    url: Annotated[
        str | None, typer.Option(help="qdrant: address of a server.", show_default="inside this process")
    ] = None,
    num_queries: Annotated[int, typer.Option(min=1, max=1_000_000, help="Queries, alone and in batches.")] = 100,
    batch_sizes: Annotated[str, typer.Option(help="Queries asked at once, beside one after the other.")] = "16,64",
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="How often all queries are asked; all are told.")] = 3,
    json_: Json = False,
) -> int:
    """Build and search synthetic galleries: time on the wall, memory, disk and recall of every engine.

    Example: composir benchmark search --images 10000 --vectors-per-image 32,16,8,4
    """
    from composir.benchmark.search import benchmark_search as run
    from composir.search import check_backend

    names = backends.split(",")
    for name in names:
        check_backend(name)
    with Bars() as bars:
        document = run(
            images=_numbers("--images", images),
            backends=names,
            vectors_per_image=_numbers("--vectors-per-image", vectors_per_image),
            url=url,
            num_queries=num_queries,
            batch_sizes=_numbers("--batch-sizes", batch_sizes),
            num_rounds=rounds,
            progress=bars.tell,
        )
    if json_:
        print_json(document)
        return 0
    view = Table(box=None)
    view.add_column("engine", no_wrap=True)
    for name in ("build s", "recall@10", "peak memory MiB", "disk MiB"):
        view.add_column(name, justify="right")
    for name, recall in document["recall_at_10"].items():
        memory, disk = document["peak_memory_bytes"][f"{name} search"], document["disk_bytes"][name]
        seconds = document["seconds"][f"{name} build"][0]
        view.add_row(name, f"{seconds:.1f}", f"{recall:.3f}", f"{memory / 2**20:,.0f}", f"{disk / 2**20:,.0f}")
    out.print(view)
    view = Table(box=None, title="a query's milliseconds on the wall, by round", title_justify="left")
    view.add_column("engine", no_wrap=True)
    for name in ("asked at once", "p50", "p95", "p99", "processor, median", "load"):
        view.add_column(name, justify="right")
    for name, all_rounds in document["rounds"].items():
        for size in document["latency_ms"][name]:
            for one in all_rounds:
                figures = (f"{figure:.2f}" for figure in one["latency_ms"][size].values())
                view.add_row(name, size, *figures, "–".join(f"{load:.1f}" for load in one["load"]))
    out.print(view)
    _print_ratios_and_machine(document)
    return 0


def _numbers(flag: str, text: str) -> list[int]:
    """Return the numbers of a list such as ``10000,100000``."""
    try:
        numbers = [int(word) for word in text.split(",")]
        if min(numbers) < 1 or max(numbers) > MAX_COUNT:
            raise ValueError
    except ValueError:
        expected = f"whole numbers from 1 to {MAX_COUNT:,} with commas, such as 10000,100000"
        raise ComposirError(f"{flag} is {short(text)}", expected=expected) from None
    return numbers


def _print_benchmark(document: dict[str, Any], *, json_: bool) -> None:
    if json_:
        print_json(document)
        return
    floors = document.get("floor_seconds", {})  # train knows them alone
    view = Table()
    for name in ("part", "median seconds", "all seconds", "peak memory", *(("floor", "over floor") if floors else ())):
        view.add_column(name, justify="left" if name == "part" else "right")
    for name, seconds in document["seconds"].items():
        peak = document.get("peak_memory_bytes", {}).get(name)  # methods measures seconds alone
        memory = "" if peak is None else f"{peak / 2**20:,.0f} MiB"
        floor = [f"{floors[name]:.3f}", f"{document['over_floor'][name]:.2f}"] if name in floors else []
        view.add_row(name, f"{median(seconds):.3f}", " ".join(f"{one:.3f}" for one in seconds), memory, *floor)
    out.print(view)
    for name, rates in document.get("peak_gflops", {}).items():
        out.print(f"{name}: {median(rates):,.0f} GFLOP/s")
    _print_ratios_and_machine(document)


def _print_ratios_and_machine(document: dict[str, Any]) -> None:
    for name, ratio in document["ratios"].items():
        out.print(f"{name}: {ratio:.2f}")
    out.print(", ".join(f"{name} {value}" for name, value in document["machine"].items()), soft_wrap=True)
