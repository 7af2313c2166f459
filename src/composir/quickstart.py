"""The first run of a newcomer: data, training, figures and pictures, each step kept and not done twice."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composir.data import load_splits
from composir.data.images import file_of
from composir.data.scenes import generate
from composir.evaluation import Cell, Result, Row, contact_sheet, evaluate, grid
from composir.features import open_embedder
from composir.progress import Progress
from composir.samples import SAMPLES
from composir.search import MANIFEST, Hit, Retriever, index_folder, read_manifest
from composir.token_cache import TokenPlace
from composir.training import Observer, load_recipe, resume_recipe, train

DATA, MODELS, CACHE, SHEET, INDEX = "scenes", "models", "cache", "contact_sheet.png", "index"
PHOTOS, PHOTO_SHEET = "photos.index", "photos.png"
PHOTO, SENTENCE = "brown-bear.jpg", "but a red panda"
"""What is asked of the photographs."""
GALLERY = "dev"
"""The folder of the pictures of val."""
NUM_IMAGES = 1800
STEPS_PER_MINUTE = 58
"""Steps of batch 32 that two cores take in a minute, roughly; only the length of the training depends on it."""
NUM_EXAMPLES = 3
NUM_FOUND = 5


@dataclass(frozen=True)
class Quickstart:
    """What the first run made."""

    result: Result
    data: Path
    run: Path
    index: Path
    example: tuple[Path, str]
    """A reference and its sentence, to search by."""
    contact_sheet: Path
    curves: Path
    photos: Path
    """The index of the sample photographs, by the built-in model."""
    asked: tuple[Path, str]
    """What they were asked by."""
    found: list[Hit]
    photo_sheet: Path
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``composir quickstart --json``."""
        return {
            **self.result.to_json(),
            "data": str(self.data),
            "run": str(self.run),
            "index": str(self.index),
            "contact_sheet": str(self.contact_sheet),
            "curves": str(self.curves),
            "photos": str(self.photos),
            "photo_sheet": str(self.photo_sheet),
            "seconds": round(self.seconds, 1),
        }


def quickstart(out: Path, *, minutes: float, observer: Observer, tell: Progress) -> Quickstart:
    """Return what is under ``out`` after generating, training, evaluating and indexing; called again it goes on.

    Last, the sample photographs are indexed and asked by the model that needs no training.

    ``minutes`` is about how long training takes on two cores; the number of steps it stands for is fixed by it, so
    that two machines make the same model.
    """
    start = time.perf_counter()
    data = out / DATA
    if not data.exists():
        generate(data, num_images=NUM_IMAGES)
    run = _train(out, minutes, observer)
    splits = load_splits("CIRR", data, "val")
    embedder, weights_hash = open_embedder(run / "best", splits, place=TokenPlace(folder=out / CACHE))
    result = evaluate(embedder, splits, weights_hash=weights_hash, progress=tell)
    examples = random.Random(0).sample([query.id for query in splits[0].queries], NUM_EXAMPLES)
    contact_sheet(result.rankings["composed"], out / SHEET, query_ids=examples)
    _index(data / GALLERY, out / INDEX, run / "best", weights_hash, tell)
    shown = next(query for query in splits[0].queries if query.id == examples[0])
    index_folder(SAMPLES, out / PHOTOS, progress=tell)
    with Retriever(out / PHOTOS) as retriever:
        found = retriever.search(SAMPLES / PHOTO, SENTENCE, top_k=NUM_FOUND)
    cells = tuple(Cell(hit.path, f"{hit.rank}  ·  {hit.score:.3f}") for hit in found)
    grid([Row(SAMPLES / PHOTO, SENTENCE, cells, "")], out / PHOTO_SHEET)
    return Quickstart(
        result=result,
        data=data,
        run=run,
        index=out / INDEX,
        example=(data / GALLERY / file_of(splits[0].images[shown.reference]).name, shown.text),
        contact_sheet=out / SHEET,
        curves=run / "curves.png",
        photos=out / PHOTOS,
        asked=(SAMPLES / PHOTO, SENTENCE),
        found=found,
        photo_sheet=out / PHOTO_SHEET,
        seconds=time.perf_counter() - start,
    )


def _index(pictures: Path, out: Path, model: Path, weights_hash: str, tell: Progress) -> None:
    """Bring the index of the gallery up to date; one of a model of before is made anew."""
    is_stale = (out / MANIFEST).exists() and read_manifest(out).weights_hash != weights_hash
    index_folder(pictures, out, model=model, rebuild=is_stale, progress=tell)


def _train(out: Path, minutes: float, observer: Observer) -> Path:
    """Return the run folder, trained to its end: a finished run as it is, a stopped one resumed, else a new one."""
    recipe = load_recipe(
        {
            "dataset": "CIRR",
            "backbone": "mini",
            "data_root": str(out / DATA),
            "output_dir": str(out / MODELS),
            "num_epochs": 100,
            "max_steps": math.ceil(minutes * STEPS_PER_MINUTE),
            "validation_frequency": 100,
        }
    )
    runs = [state.parent for state in sorted((out / MODELS).glob("*/last"))]
    begun = next((run for run in runs if resume_recipe(run) == recipe), None)
    done = train(recipe, resume=begun, observer=observer, place=TokenPlace(folder=out / CACHE))
    if done.interrupted:
        raise KeyboardInterrupt
    return done.run
