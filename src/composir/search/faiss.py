"""Large galleries on one machine: FAISS finds candidates, the memory map ranks them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from composir.errors import ComposirError
from composir.files import replacing
from composir.progress import Progress
from composir.search.index import Hits, Index, float32, scan
from composir.search.merging import merge_vectors
from composir.version import pip_install

SCAN_BELOW = 2_000
"""Images that are looked at one by one about as fast as through an inverted file."""
CANDIDATE_VECTORS = 2
"""Vectors an image by which candidates are found, merged from all; they are scored by all."""
ELEMENTS_PER_CODE = 2
"""A product quantiser's code of 4 bits stands for so many elements of a vector."""
VECTORS_PER_LIST = 64
"""Of the training sample; FAISS warns below 39."""
TRAINING_PASSES = 10
CANDIDATES_PER_RESULT = 16
"""Images scored exactly for each that is asked for."""
CALIBRATION_QUERIES, CALIBRATION_ROWS = 128, 100_000
CALIBRATION_TOP_K = 10
CALIBRATION_RECALL = 0.995
CALIBRATION_HALVINGS = 3
"""Of the last doubling's step: to within a sixteenth of the lists that are read."""
AS_IT_CHOOSES, BY_LISTS = 0, 14
"""``IndexIVFFastScan.implem`` of FAISS: threads share the queries, or the lists of one query, which is answered sooner.
Codes of equal distance then come in another order, so that the last candidates may be others."""
VECTORS_AT_ONCE = 2**16
SEED = 0
FILES = "faiss-*.index"
"""The inverted files of an index folder, one a state of its vectors."""


class FaissIndex(Index):
    """An inverted file over merged vectors of all images, 2 bits an element; the best candidates are scored exactly.

    The file covers the rows up to the number in its name. Later rows are looked at one by one until ``save`` adds
    them, so no image is missed meanwhile.
    """

    _ivf: Any = None
    _num_covered = 0

    @classmethod
    def clear(cls, folder: Path) -> None:
        """Remove the inverted files."""
        for file in folder.glob(FILES):
            file.unlink()

    def load(self) -> None:
        """See what was saved last, by whichever process."""
        while True:
            super().load()
            file = self._file()
            if file is None:
                self._ivf, self._num_covered = None, 0
                return
            try:
                self._ivf, self._num_covered = _faiss().read_index(str(file)), _num_rows(file)
            except RuntimeError as error:
                if file.exists():
                    raise ComposirError(
                        f"cannot be read ({error})", file=file, fix="delete it; composir index makes it again"
                    ) from None
                continue  # a writer put a newer one in its place
            if self._num_covered <= len(self.snapshot.vectors):
                return

    def _search(self, queries: Tensor, top_k: int, where: str | None) -> Hits:
        rows = self._rows_at(where)
        if self._ivf is None or len(rows) < SCAN_BELOW:
            return scan(self.snapshot, queries, rows, top_k)
        allowed = None
        if where is not None and len(rows) < len(self):
            allowed = self._once("bits", where, lambda: self._bits_of(rows), lambda bits: bits.nbytes)
        return self._search_rows(queries, top_k, rows, allowed)

    def _bits_of(self, rows: np.ndarray) -> np.ndarray:
        """Return a bit for each vector of the inverted file: whether it is of one of the rows."""
        allowed = np.zeros((self._num_covered, self._ivf.ntotal // self._num_covered), bool)
        allowed[rows[rows < self._num_covered]] = True
        return np.packbits(allowed, bitorder="little")

    def _search_rows(self, queries: Tensor, top_k: int, rows: np.ndarray, allowed: np.ndarray | None) -> Hits:
        """Return the ``top_k`` of ``rows``: candidates by the inverted file, and every row it does not cover.

        ``allowed`` are the bits of ``rows``, None where these are all.
        """
        num_vectors = self._ivf.ntotal // self._num_covered
        num_candidates = top_k * CANDIDATES_PER_RESULT
        parameters = _faiss().SearchParametersIVF(nprobe=self._ivf.nprobe)
        if allowed is not None:
            parameters.sel = _faiss().IDSelectorBitmap(allowed)
        count = min(self._ivf.ntotal, num_candidates * num_vectors)
        self._ivf.implem = BY_LISTS if len(queries) == 1 else AS_IT_CHOOSES
        _, nearest = self._ivf.search(queries.numpy(), count, params=parameters)  # (queries, count), best first
        tail = rows[rows >= self._num_covered]
        candidates = [self._images_of(vectors // num_vectors)[:num_candidates] for vectors in nearest]
        self.snapshot.read_ahead(np.concatenate(candidates))
        found: Hits = []
        for query, images in zip(queries, candidates, strict=True):
            found += scan(self.snapshot, query[None], np.sort(np.concatenate([images, tail])), top_k)
        return found

    def _images_of(self, rows: np.ndarray) -> np.ndarray:
        """Return each row once, in the order in which it comes first, without those that hold no image."""
        rows = rows[rows >= 0]
        rows = rows[self.snapshot.ids[rows] != b""]
        return rows[np.sort(np.unique(rows, return_index=True)[1])]

    def _update(self, progress: Progress | None) -> None:
        self.load()
        num_rows = len(self.snapshot.vectors)
        if len(self) < SCAN_BELOW or self._num_covered == num_rows:
            return
        num_vectors = min(CANDIDATE_VECTORS, self.snapshot.vectors.shape[1])
        num_lists = _num_lists(num_rows * num_vectors)
        ivf = self._ivf
        if ivf is None or ivf.nlist < num_lists / 2 or ivf.ntotal != self._num_covered * num_vectors:
            ivf, self._num_covered = _train(self.snapshot.vectors, num_vectors, num_lists, progress), 0
        first_new = self._num_covered
        for start in range(self._num_covered, num_rows, self._rows_at_once):
            vectors = self.snapshot.vectors[start : start + self._rows_at_once]
            ivf.add(_merged(vectors, num_vectors))
            if progress is not None:
                progress("inverted file", min(start + self._rows_at_once, num_rows), num_rows)
        self._ivf, self._num_covered = ivf, num_rows
        self._calibrate(first_new)
        file = self.table.folder / f"faiss-{self._generation}-{num_rows}.index"
        with replacing(file) as temporary:
            _faiss().write_index(ivf, str(temporary))
        for old in self.table.folder.glob(FILES):
            if old != file:
                old.unlink()

    def _calibrate(self, first_new: int) -> None:
        """Read as many lists a query as recall@10 against a scan needs, by doubling, then by halving the last step.

        It is measured on a sample of the images, by queries around all of them and by as many around those from row
        ``first_new`` on, for which the lists may not have been made. A query lies between vectors of two pictures, as
        a composed query lies between its reference and what its sentence asks for, and as far again off to a random
        side: real ones are not among the targets either.
        """
        rng = np.random.default_rng(SEED)
        rows = self.snapshot.rows
        new = rows[rows >= first_new]
        sample = np.sort(rng.choice(rows, min(len(rows), CALIBRATION_ROWS), replace=False))
        around = [rng.choice(some, (2, CALIBRATION_QUERIES)) for some in (rows, new) if len(some)]
        queries = [self._queries_between(ends, rng) for ends in around]
        truths = [scan(self.snapshot, asked, sample, CALIBRATION_TOP_K) for asked in queries]
        allowed = None if len(sample) == len(rows) else self._bits_of(sample)

        def is_enough(num_lists: int) -> bool:
            self._ivf.nprobe = num_lists
            found = [self._search_rows(asked, CALIBRATION_TOP_K, sample, allowed) for asked in queries]
            return min(map(recall, found, truths)) >= CALIBRATION_RECALL

        too_few, enough = 0, self._ivf.nprobe
        while enough < self._ivf.nlist and not is_enough(enough):
            too_few, enough = enough, min(self._ivf.nlist, 2 * enough)
        for _ in range(CALIBRATION_HALVINGS if too_few else 0):
            middle = (too_few + enough) // 2
            if is_enough(middle):
                enough = middle
            else:
                too_few = middle
        self._ivf.nprobe = enough

    def _queries_between(self, ends: np.ndarray, rng: np.random.Generator) -> Tensor:
        places = rng.integers(self.snapshot.vectors.shape[1], size=ends.shape)
        between = nn.functional.normalize(float32(self.snapshot.vectors[ends, places]).sum(dim=0), dim=-1)
        aside = nn.functional.normalize(torch.from_numpy(rng.standard_normal(between.shape, np.float32)), dim=-1)
        return nn.functional.normalize(between + aside, dim=-1)

    @property
    def _rows_at_once(self) -> int:
        return max(1, VECTORS_AT_ONCE // self.snapshot.vectors.shape[1])

    @property
    def _generation(self) -> str:
        return Path(self.snapshot.file).stem

    def _file(self) -> Path | None:
        """Return the inverted file that covers most rows of the present vector file."""
        return max(self.table.folder.glob(f"faiss-{self._generation}-*.index"), key=_num_rows, default=None)


def recall(found: Hits, truth: Hits) -> float:
    """Return the share of the true ids that were found."""
    hits = sum(len({i for i, _ in ours} & {i for i, _ in theirs}) for ours, theirs in zip(found, truth, strict=True))
    return hits / sum(len(theirs) for theirs in truth)


def _num_rows(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _num_lists(num_vectors: int) -> int:
    """Return a power of two near twice the square root of the number of vectors."""
    return 2 ** round(math.log2(2 * math.sqrt(num_vectors)))


def _merged(vectors: np.ndarray, num_vectors: int) -> np.ndarray:
    """Return the vectors by which these images are found, float32 (images * num_vectors, dim)."""
    return merge_vectors(torch.from_numpy(vectors), num_vectors).flatten(0, 1).numpy()


def _train(vectors: np.ndarray, num_vectors: int, num_lists: int, progress: Progress | None) -> Any:
    """Return an empty inverted file whose lists and value ranges are learned from a sample of the vectors."""
    faiss = _faiss()
    rng = np.random.default_rng(SEED)
    num_rows, _, dim = vectors.shape
    num_sampled = min(num_rows, math.ceil(num_lists * VECTORS_PER_LIST / num_vectors))
    rows = np.sort(rng.choice(num_rows, num_sampled, replace=False))
    part = math.gcd(dim, ELEMENTS_PER_CODE)
    ivf = faiss.index_factory(dim, f"IVF{num_lists},PQ{dim // part}x4fs", faiss.METRIC_INNER_PRODUCT)
    ivf.cp.niter, ivf.cp.seed = TRAINING_PASSES, SEED
    if progress is not None:
        progress("inverted file", 0, num_rows)
    ivf.train(_merged(vectors[rows], num_vectors))
    return ivf


def _faiss() -> Any:
    try:
        import faiss  # noqa: PLC0415
    except ImportError:
        raise ComposirError(
            "the faiss engine needs the package faiss-cpu, which is not installed", fix=pip_install("faiss")
        ) from None
    return faiss
