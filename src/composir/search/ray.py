"""Embedding by many machines, or by many GPUs of one: blocks of the files, by the workers of a Ray cluster."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from composir.data.images.files import ID_LENGTH
from composir.errors import ComposirError
from composir.search.embedding import Outcome, PictureEmbedder, PictureFile
from composir.search.encoder import open_encoder
from composir.version import pip_install

BATCHES_A_BLOCK, BLOCKS_A_WORKER = 8, 16
"""Batches that a worker is handed at once, fewer where a worker would not get so many blocks: what is done again when
a machine is lost, and what one worker still does when the others are done."""
BLOCKS_IN_FLIGHT = 2
"""That a worker has been given: while it embeds one, the next is on its way."""
BLOCKS_AHEAD = 8
"""A worker, that may be done before the first that is not: what waits for its turn takes memory."""
MOST_LOSSES = 3
"""Of one block, with workers that died of it or beside it, or of openings of the model with none between that did."""
SECONDS_A_LOOK = 10
"""After which, if no worker has answered, the cluster is looked at."""


@dataclass(frozen=True, slots=True)
class Work:
    """What every worker needs to know; both folders are to be found under these paths on every machine."""

    model: Path | str
    root: Path
    num_vectors: int
    batch_size: int
    device: str
    num_threads: int
    """That read files."""


def embed_by_ray(
    work: Work, files: Sequence[PictureFile], known: np.ndarray, *, address: str | None
) -> Iterator[list[Outcome]]:
    """Yield what became of the files, in order and in blocks, embedded by the workers of a cluster.

    ``known`` is (images,), ASCII and sorted: the ids that need not be embedded again. ``address`` is that of a
    cluster (``ray://...``, ``host:port``, ``auto``); without one Ray is started on this machine. There is a worker a
    GPU, or a CPU core with ``device="cpu"``. What a lost worker or machine was given is given to the others. Raises
    ``ComposirError`` where Ray is not installed or not to be reached, where a worker fails, where one block was lost
    three times, and where no machine with such a resource is left.
    """
    ray = _ray()
    with _started(ray, address):
        resource = "CPU" if work.device == "cpu" else "GPU"
        num_workers = int(ray.cluster_resources().get(resource, 0))
        if not num_workers:
            raise ComposirError(
                f"the Ray cluster has no {resource}", fix="give another --device, or add machines that have one"
            )
        batches = len(files) // (work.batch_size * num_workers * BLOCKS_A_WORKER)
        size = work.batch_size * min(max(batches, 1), BATCHES_A_BLOCK)
        blocks = [files[start : start + size] for start in range(0, len(files), size)]
        pool = _Pool(ray, work, known, resource=resource)
        try:
            yield from pool.embed(blocks, min(num_workers, len(blocks)))
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise ComposirError(
                f"a Ray worker failed: {' '.join(str(cause).split())[-300:]}",
                expected=f"composir, {work.model} and {work.root} on every machine of the cluster",
                fix="mend that, then run composir index again: it goes on",
            ) from error


class _Pool:
    """Workers and the blocks that each was given; Ray tells which are done and which are lost.

    Not Ray Data: when a machine is lost, it waits for room to start the lost worker again, without an end where every
    core has one.
    """

    def __init__(self, ray: Any, work: Work, known: np.ndarray, *, resource: str) -> None:
        self.ray = ray
        self.resource = resource
        self._worker = ray.remote(_Worker).options(**{f"num_{resource.lower()}s": 1})
        self._arguments = work, ray.put(known)
        self._workers: list[Any] = []
        self._free: list[Any] = []
        """Workers, each as often as it may be given another block."""
        self._running: dict[Any, tuple[Any, int | None]] = {}
        """What is waited for: of which worker, and which block; None while it opens the model."""

    def embed(self, blocks: Sequence[Sequence[PictureFile]], num_workers: int) -> Iterator[list[Outcome]]:
        """Yield what became of each block, in order."""
        waiting = list(range(len(blocks)))  # a heap: what is lost goes first
        done: dict[int, list[Outcome]] = {}
        losses: Counter[int | None] = Counter()
        for _ in range(num_workers):
            self._start()
        for number in range(len(blocks)):
            while number not in done:
                while self._free and waiting and waiting[0] < number + BLOCKS_AHEAD * num_workers:
                    block, worker = heapq.heappop(waiting), self._free.pop()
                    self._running[worker.embed.remote(blocks[block])] = worker, block
                for block, outcomes in self._next():
                    if outcomes is None:
                        losses[block] += 1
                        if losses[block] == MOST_LOSSES:
                            raise _lost_again(None if block is None else blocks[block])
                        if block is not None:
                            heapq.heappush(waiting, block)
                    elif block is None:
                        losses[None] = 0
                    else:
                        done[block] = outcomes
            yield done.pop(number)

    def _next(self) -> Iterator[tuple[int | None, list[Outcome] | None]]:
        """Wait, then yield each block that is done, with what became of its files, or lost, with None.

        A block of None is the opening of a model.
        """
        ready, _ = self.ray.wait(list(self._running), timeout=SECONDS_A_LOOK)
        if not ready and self.ray.cluster_resources().get(self.resource, 0) < 1:
            raise ComposirError(
                f"no machine of the Ray cluster is left that has a {self.resource}",
                fix="start its machines again, then run composir index again: it goes on",
            )
        errors = self.ray.exceptions
        for reference in ready:
            worker, block = self._running.pop(reference)
            try:
                outcomes = self.ray.get(reference)
            except (errors.RayActorError, errors.ObjectLostError, errors.OutOfMemoryError):
                outcomes = None
                self._replace(worker)
            else:
                self._free += [worker] * (BLOCKS_IN_FLIGHT if block is None else 1)
            yield block, outcomes

    def _start(self) -> None:
        worker = self._worker.remote(*self._arguments)
        self._workers.append(worker)
        self._running[worker.open.remote()] = worker, None

    def _replace(self, worker: Any) -> None:
        """Start another worker for a lost one, where and when there is room; once, whatever it had been given."""
        if worker in self._workers:
            self._workers.remove(worker)
            self._free = [one for one in self._free if one != worker]
            self.ray.kill(worker)  # it may only be out of reach
            self._start()


def _lost_again(files: Sequence[PictureFile] | None) -> ComposirError:
    """Return the error for files, or for the opening of a model, of which workers die."""
    if files is None:
        what, path = "while they opened the model", None
    else:
        what, path = f"with the same {len(files):,} files, from this one on", files[0].path
    return ComposirError(
        f"{MOST_LOSSES} Ray workers were lost, one after the other, {what}",
        file=path,
        fix="look at the memory of the machines, then run composir index again: it goes on",
    )


class _Worker:
    """The embedding code, once on each GPU or core of the cluster."""

    def __init__(self, work: Work, known: np.ndarray) -> None:
        self.work = work
        self.known = known

    def open(self) -> list[Outcome]:
        """Open the model; nothing became of any file."""
        self.embedder = PictureEmbedder(
            open_encoder(self.work.model, self.work.device),
            self.work.root,
            num_vectors=self.work.num_vectors,
            is_known=lambda image_id: _is_in(self.known, image_id.encode()),
        )
        return []

    def embed(self, files: Sequence[PictureFile]) -> list[Outcome]:
        """Return what became of the files."""
        batches = self.embedder.batches(files, num_workers=self.work.num_threads)
        return [one for batch in batches for one in batch]


def _is_in(known: np.ndarray, image_id: bytes) -> bool:
    place = np.searchsorted(known, np.array(image_id, f"S{ID_LENGTH}"))
    return bool(place < len(known) and known[place] == image_id)


@contextmanager
def _started(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start Ray here; what was started already is used and left as it is."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of one's own pictures is reported anywhere
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ComposirError(
            f"Ray cannot be reached ({' '.join(str(error).split())[:200]})",
            file=address,
            expected="the address of a running cluster",
            fix="ray start --head on its first machine prints it; if that has a token, export RAY_AUTH_MODE=token",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray  # noqa: PLC0415
    except ImportError:
        raise ComposirError(
            "the ray engine needs the package ray, which is not installed", fix=pip_install("ray")
        ) from None
    return ray
