"""All models on all data sets: each run of a model in a process of its own, one after another."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from composir.bench.cells import Cell, Cost
from composir.bench.config import Config
from composir.bench.work import Done, Event, Failed, Job, Tell, do_job
from composir.errors import ComposirError
from composir.evaluation import Saved
from composir.files import locked
from composir.token_cache import ON_DISK, TokenPlace

LOCK = ".lock"
KILLED = -9
"""The exit code of a process that was killed, as Python gives it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The runs of a model on a data set, and what they took."""

    runs: tuple[Saved, ...]
    costs: tuple[Cost, ...]
    note: str


@dataclass(frozen=True, slots=True)
class Bench:
    """What a bench has found."""

    measured: dict[str, dict[str, Measured]]
    """By data set and model, in the order of the configuration; a model that failed on a data set is not in it."""
    failures: tuple[Failed, ...]


def run_bench(config: Config, out: Path, *, place: TokenPlace = ON_DISK, tell: Tell) -> Bench:
    """Return all cells of a bench after computing those that are not in ``out``, or of another model or data.

    A run of a model has a process to itself, so that its peak memory is its own, and one that is killed (no memory
    left) costs its unfinished cells alone. ``tell`` hears each ``Step``, ``Done`` and ``Failed``. Raises
    ``ComposirError`` where another bench writes to ``out``.
    """
    refusal = ComposirError("another bench is writing here", file=out, fix="let it end, or give another --out")
    failures = []
    with locked(out / LOCK, refusal, without_locks="give an --out on a local disk"):
        for name, entry in config.models.items():
            for run in range(len(entry.model)):
                job = Job(name, entry, run, dict(config.datasets), out, place)
                for event in _in_own_process(job):
                    if isinstance(event, Failed):
                        failures.append(event)
                    tell(event)
    failed = {(failure.model, failure.dataset) for failure in failures}
    measured = {
        dataset: {name: _read(config, name, dataset, out) for name in config.models if (name, dataset) not in failed}
        for dataset in config.datasets
    }
    return Bench(measured, tuple(failures))


def _read(config: Config, name: str, dataset: str, out: Path) -> Measured:
    entry = config.models[name]
    read = [Cell(name, dataset, run).read(out, address) for run, address in enumerate(entry.model)]
    return Measured(tuple(saved for saved, _ in read), tuple(cost for _, cost in read), entry.note)


def _in_own_process(job: Job) -> Iterator[Event]:
    """Give what a job tells, done in a fresh process; what it did not come to when it died has failed."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_do_and_send, args=(job, sender), daemon=True)
    process.start()
    sender.close()
    left = dict.fromkeys(job.datasets)
    try:
        while True:
            try:
                event = receiver.recv()
            except EOFError:
                break
            if isinstance(event, Done | Failed):
                left.pop(event.dataset)
            yield event
        process.join()
    finally:
        process.kill()
        process.join()
        receiver.close()
    for dataset in left:
        why = f"its process ended with code {process.exitcode}"
        hint = ", killed, as where no memory is left" if process.exitcode == KILLED else ""
        yield Failed(job.title, job.name, dataset, why + hint)


def _do_and_send(job: Job, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this process
    with suppress(BrokenPipeError):  # nobody listens any more where the parent was killed
        do_job(job, sender.send)
