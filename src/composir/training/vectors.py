"""Vectors of a model that stays as it is: of pictures, of pairs and of sentences, each computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from composir.data import Split
from composir.data.images import ImageSource, file_of
from composir.features import BaseEmbedder
from composir.models.embedder import VectorComposer
from composir.progress import Counted
from composir.token_cache import DISK, TokenPlace, default_cache_dir, image_id
from composir.token_store import TokenStore

BATCH_SIZE = 64
ROWS_A_WRITE = 512
"""Vectors computed between two writes: what a kill costs."""

Key = TypeVar("Key", bound=Hashable)
Pair = tuple[ImageSource, str]


@dataclass
class Vectors:
    """A base's embeddings, as evaluation asks them, out of a cache in ``place`` that ``fill`` makes complete.

    On disk they are float32, to the bit, in a ``TokenStore`` each for pictures, pairs and sentences, under the content
    of the picture and the hash of the sentence; ``identity`` is that of the base's weights.
    """

    base: BaseEmbedder
    identity: str
    place: TokenPlace
    _pictures: dict[ImageSource, Tensor] = field(default_factory=dict)
    _pairs: dict[Pair, Tensor] = field(default_factory=dict)
    _words: dict[str, Tensor] = field(default_factory=dict)

    def fill(
        self, splits: Sequence[Split], progress: Counted | None = None, *, share: tuple[int, int] = (0, 1)
    ) -> None:
        """Have the vectors of all pictures, queries and sentences of the splits; with a ``share``, of a part of them.

        ``progress`` counts the pictures that were not there.
        """
        sources = list(dict.fromkeys(source for split in splits for source in split.images.values()))
        pairs = list(
            dict.fromkeys(
                (split.images[query.reference], text)
                for split in splits
                for query in split.queries
                for text in dict.fromkeys((query.text, *query.texts))
            )
        )
        image_by_source = self.images_of(sources)
        first, step = share
        sources, pairs = sources[first::step], pairs[first::step]
        self.fill_pictures({source: image_by_source[source] for source in sources}, progress)
        if step == 1:  # the pairs of a share may need pictures of another one
            self._fill(
                "pairs",
                self._pairs,
                {(source, text): f"{image_by_source[source]} {_hash(text)}" for source, text in pairs},
                self._compose,
            )
            texts = dict.fromkeys(text for _, text in pairs)
            self._fill("sentences", self._words, {text: _hash(text) for text in texts}, self.base.embed_words)

    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch vectors dim"]:
        """Return the vectors of every picture."""
        return torch.stack([self._pictures[path] for path in paths])

    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the base's own query of every pair; one that was not filled is computed."""
        pairs = list(zip(paths, texts, strict=True))
        lacking = [pair for pair in dict.fromkeys(pairs) if pair not in self._pairs]
        if lacking:
            self._pairs.update(zip(lacking, self._compose(lacking), strict=True))
        return torch.stack([self._pairs[pair] for pair in pairs])

    def embed_text_only(self, texts: Sequence[str], gallery: Sequence[ImageSource]) -> Float[Tensor, "batch dim"]:
        """Return the base's own query of every sentence; these are not kept."""
        return self.base.embed_text_only(texts, gallery)

    def embed_words(self, texts: Sequence[str]) -> Float[Tensor, "batch text_dim"]:
        """Return the vector of every sentence; one that was not filled is computed."""
        lacking = [text for text in dict.fromkeys(texts) if text not in self._words]
        if lacking:
            self._words.update(zip(lacking, self.base.embed_words(lacking), strict=True))
        return torch.stack([self._words[text] for text in texts])

    def dim(self, example: ImageSource) -> int:
        """Return the width of a vector, told by that of an example."""
        return self.base.embed_gallery([example]).shape[-1]

    def fill_pictures(self, image_by_source: Mapping[ImageSource, str], progress: Counted | None) -> None:
        """Have the vectors of pictures, each under what identifies it."""
        self._fill("pictures", self._pictures, image_by_source, self.base.embed_gallery, progress)

    def images_of(self, sources: Sequence[ImageSource]) -> dict[ImageSource, str]:
        """Return what identifies the content of every picture, where it is needed."""
        if self.place.kind != DISK:
            return dict.fromkeys(sources, "")
        with closing(self._store("pictures", _rows(self.base.embed_gallery(sources[:1])[0]))) as store:
            contents = store.contents(dict.fromkeys(map(file_of, sources)), num_workers=max(1, self.place.num_workers))
        return {source: image_id(source, contents[file_of(source)]) for source in sources}

    def _compose(self, pairs: Sequence[Pair]) -> Float[Tensor, "batch dim"]:
        paths, texts = [path for path, _ in pairs], [text for _, text in pairs]
        if isinstance(self.base, VectorComposer):
            return self.base.pairs_of_vectors(self.embed_gallery(paths)[:, 0], texts)
        return self.base.embed_queries(paths, texts)

    def _fill(
        self,
        kind: str,
        found: dict[Key, Tensor],
        name_by_key: Mapping[Key, str],
        compute: Callable[[Sequence[Key]], Tensor],
        progress: Counted | None = None,
    ) -> None:
        """Put the vectors of all keys into ``found``: those on disk under their name, the others computed."""
        missing = [key for key in name_by_key if key not in found]
        if not missing:
            return
        if self.place.kind != DISK:
            self._compute(found, missing, compute, progress)
            return
        example = compute(missing[:1])[0]
        rows = _rows(example)
        with closing(self._store(kind, rows)) as store:
            there, block = store.rows(), store.map()
            known = [key for key in missing if name_by_key[key] in there]
            for key in known:
                row = np.array(block[there[name_by_key[key]]])
                found[key] = torch.from_numpy(row.view(np.float32)).reshape(example.shape)
            missing = [key for key in missing if key not in found]
            store.require_space(len(missing))

            def keep(keys: Sequence[Key]) -> None:
                values = torch.stack([found[key] for key in keys]).numpy()
                store.add([name_by_key[key] for key in keys], values.reshape(len(keys), rows[0], -1).view(np.float16))

            self._compute(found, missing, compute, progress, keep)

    def _compute(
        self,
        found: dict[Key, Tensor],
        missing: Sequence[Key],
        compute: Callable[[Sequence[Key]], Tensor],
        progress: Counted | None,
        keep: Callable[[Sequence[Key]], None] | None = None,
    ) -> None:
        for start in range(0, len(missing), ROWS_A_WRITE):
            some = missing[start : start + ROWS_A_WRITE]
            for first in range(0, len(some), BATCH_SIZE):
                keys = some[first : first + BATCH_SIZE]
                found.update(zip(keys, compute(keys).float().cpu(), strict=True))
                if progress is not None:
                    progress(start + first + len(keys), len(missing))
            if keep is not None:
                keep(some)

    def _store(self, kind: str, rows: tuple[int, int]) -> TokenStore:
        folder = self.place.folder or default_cache_dir()
        return TokenStore(folder / f"{kind}-{hashlib.sha256(self.identity.encode()).hexdigest()[:16]}", rows)


def _rows(vectors: Tensor) -> tuple[int, int]:
    """Return the shape of float32 vectors as a store of 16 bits a number holds them, twice as wide."""
    return vectors.shape[:-1].numel(), 2 * vectors.shape[-1]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
