"""What one run of a model has to do: open it once, and rank every data set of which its cell is not there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from composir.bench.cells import Cell, Cost, Origin
from composir.bench.config import DataEntry, ModelEntry
from composir.data import Split
from composir.errors import ComposirError
from composir.evaluation import KINDS, Embedder, measure, rank_splits
from composir.features import Opened, OpenedHead, embedder_of, hash_of, identity_of, open_model
from composir.machine import default_device, describe_machine, peak_memory
from composir.models.embedder import VectorEmbedder
from composir.models.heads.embedder import HeadEmbedder
from composir.token_cache import TokenPlace
from composir.training.vectors import Vectors


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a model, and the data sets it is asked on."""

    name: str
    entry: ModelEntry
    run: int
    datasets: dict[str, DataEntry]
    out: Path
    place: TokenPlace

    @property
    def address(self) -> str:
        """What the run is opened by."""
        return self.entry.model[self.run]

    @property
    def title(self) -> str:
        """Return the run as messages name it."""
        return self.name if len(self.entry.model) == 1 else f"{self.name}, run {self.run + 1}"


@dataclass(frozen=True, slots=True)
class Step:
    """How far something is within a cell."""

    name: str
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Done:
    """A cell is there."""

    title: str
    dataset: str
    reason: str
    """Why it was computed; empty where it was there."""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A cell, or every cell of a run that cannot be opened, will not be there."""

    title: str
    model: str
    dataset: str
    message: str


Event = Step | Done | Failed
Tell = Callable[[Event], None]


def do_job(job: Job, tell: Tell) -> None:
    """Compute the cells of a job that lack, and tell of each; what fails is told, and the others are computed.

    A model may fail by any exception of its own code or of a library's, so all are told and none is raised.
    """
    try:
        opened = open_model(job.address, default_device())
        splits_by_name = {name: entry.load() for name, entry in job.datasets.items()}
        asked = _Asked(job, opened, hash_of(opened, scoring=job.entry.scoring), tell)
    except Exception as error:
        for dataset in job.datasets:
            tell(Failed(job.title, job.name, dataset, describe_error(error)))
        return
    for name, splits in splits_by_name.items():
        try:
            tell(asked.on(name, splits))
        except Exception as error:
            tell(Failed(job.title, job.name, name, describe_error(error)))


@dataclass
class _Asked:
    """An open model that is asked on one data set after another."""

    job: Job
    opened: Opened | OpenedHead
    weights_hash: str
    tell: Tell

    @cached_property
    def vectors(self) -> Vectors | None:
        """What embeds each picture once for all data sets: a model of one vector a picture, or what is below a head."""
        base = self.opened.base if isinstance(self.opened, OpenedHead) else self.opened
        return Vectors(base, identity_of(base), self.job.place) if isinstance(base, VectorEmbedder) else None

    def embedder(self, splits: Sequence[Split]) -> Embedder:
        """Return what ranks the splits, all that takes long done once a picture."""
        embedder = embedder_of(
            self.opened,
            splits,
            scoring=self.job.entry.scoring,
            place=self.job.place,
            progress=lambda done, total: self.tell(Step("image tokens", done, total)),
        )
        if self.vectors is None:
            return embedder
        sources = list(dict.fromkeys(source for split in splits for source in split.images.values()))
        image_by_source = self.vectors.images_of(sources)
        self.vectors.fill_pictures(image_by_source, lambda done, total: self.tell(Step("vectors", done, total)))
        return HeadEmbedder(embedder.head, self.vectors) if isinstance(embedder, HeadEmbedder) else self.vectors

    def on(self, dataset: str, splits: Sequence[Split]) -> Done:
        """Return what was done for the cell of a data set, which is there then."""
        cell, origin = Cell(self.job.name, dataset, self.job.run), Origin.of(self.weights_hash, splits)
        reason = cell.reason_to_compute(self.job.out, origin)
        if not reason:
            return Done(self.job.title, dataset, "")
        start, processor_start = time.perf_counter(), time.process_time()
        rankings = rank_splits(
            self.embedder(splits),
            splits,
            kinds=KINDS,
            batch_size=self.job.entry.batch_size,
            progress=lambda what, done, total: self.tell(Step(what, done, total)),
        )
        seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
        gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
        cost = Cost(seconds, processor_seconds, peak_memory(), gpu, describe_machine())
        cell.write(self.job.out, measure(rankings, weights_hash=self.weights_hash), origin, cost)
        return Done(self.job.title, dataset, reason, seconds)


def describe_error(error: BaseException) -> str:
    """Return an error in one line; one that is not composir's with its kind."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ComposirError) else f"{type(error).__name__}: {text}"
