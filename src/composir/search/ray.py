"""Embedding by many machines, or by many GPUs of one: a Ray Data pipeline over the files."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from composir.data.images import ID_LENGTH
from composir.errors import ComposirError
from composir.search.embedding import Embedded, Outcome, PictureEmbedder, PictureFile, Skipped, Unseen
from composir.search.encoder import open_encoder
from composir.search.table import FileRecord
from composir.version import pip_install

BATCHES_A_BLOCK = 8
"""Batches that Ray hands a worker at once."""


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
    """Yield what became of the files, in order and in batches, embedded by the workers of a cluster.

    ``known`` is (images,), ASCII and sorted: the ids that need not be embedded again. ``address`` is that of a
    cluster (``ray://...``, ``host:port``, ``auto``); without one Ray is started on this machine. There is a worker a
    GPU, or a CPU core with ``device="cpu"``. Raises ``ComposirError`` where Ray is not installed, not to be reached,
    or where a worker fails.
    """
    ray = _ray()
    with _started(ray, address):
        resource = "CPU" if work.device == "cpu" else "GPU"
        num_workers = int(ray.cluster_resources().get(resource, 0))
        if not num_workers:
            raise ComposirError(
                f"the Ray cluster has no {resource}", fix="give another --device, or add machines that have one"
            )
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells of its plan and its progress as well
        rows_a_block = BATCHES_A_BLOCK * work.batch_size
        starts = range(0, len(files), rows_a_block)
        results = ray.data.from_arrow([_table(files[start : start + rows_a_block]) for start in starts]).map_batches(
            _Worker,
            batch_size=work.batch_size,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=num_workers),
            fn_constructor_args=(work, known),
            **({"num_gpus": 1} if resource == "GPU" else {"num_cpus": 1}),
        )
        try:
            for rows in results.iter_batches(batch_size=None, batch_format="numpy"):
                yield [_result(rows, place, work.num_vectors) for place in range(len(rows["path"]))]
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise ComposirError(
                f"a Ray worker failed: {' '.join(str(cause).split())[-300:]}",
                expected=f"composir, {work.model} and {work.root} on every machine of the cluster",
                fix="mend that, then run composir index again: it goes on",
            ) from error


class _Worker:
    """The embedding code, once on each GPU or core of the cluster."""

    def __init__(self, work: Work, known: np.ndarray) -> None:
        self.num_threads = work.num_threads
        self.embedder = PictureEmbedder(
            open_encoder(work.model, work.device),
            work.root,
            num_vectors=work.num_vectors,
            is_known=lambda image_id: _is_in(known, image_id.encode()),
        )

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [field.name for field in fields(PictureFile)]
        files = [
            PictureFile(str(row[0]), *map(int, row[1:])) for row in zip(*(rows[name] for name in names), strict=True)
        ]
        (results,) = self.embedder.batches(files, num_workers=self.num_threads)
        read = [one if isinstance(one, Embedded) else None for one in results]
        columns = {
            "kind": [type(one).__name__ for one in results],
            "said": [one.note if isinstance(one, Embedded) else one.reason for one in results],
            "id": ["" if one is None else one.record.id for one in read],
            "vectors": [b"" if one is None or one.vectors is None else one.vectors.tobytes() for one in read],
            "thumbnail": [b"" if one is None else one.thumbnail or b"" for one in read],
        }
        return rows | {name: np.array(values, object) for name, values in columns.items()}


def _table(files: Sequence[PictureFile]) -> Any:
    import pyarrow  # noqa: PLC0415

    return pyarrow.Table.from_pylist([asdict(file) for file in files])


def _result(rows: dict[str, np.ndarray], place: int, num_vectors: int) -> Outcome:
    path, said, vectors = str(rows["path"][place]), str(rows["said"][place]), rows["vectors"][place]
    for kind in (Skipped, Unseen):
        if rows["kind"][place] == kind.__name__:
            return kind(path, said)
    size, mtime_ns, ctime_ns = (int(rows[name][place]) for name in ("size", "mtime_ns", "ctime_ns"))
    record = FileRecord(path, str(rows["id"][place]), size, mtime_ns, ctime_ns)
    made = np.frombuffer(vectors, np.float16).reshape(num_vectors, -1) if vectors else None
    return Embedded(record, made, said, rows["thumbnail"][place] or None)


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
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ComposirError(
            f"Ray cannot be reached ({' '.join(str(error).split())[:200]})",
            file=address,
            expected="the address of a running cluster",
            fix="ray start --head on its first machine prints it",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray  # noqa: PLC0415
        import ray.data  # noqa: PLC0415
    except ImportError:
        raise ComposirError(
            "the ray engine needs the package ray, which is not installed", fix=pip_install("ray")
        ) from None
    return ray
