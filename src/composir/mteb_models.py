"""Models between composir and mteb: one of composir's for ``mteb.evaluate``, and one of mteb's for ``evaluate``.

mteb is the package of the Massive Text Embedding Benchmark (Muennighoff et al., EACL 2023, arXiv 2210.07316), and has
the tasks of the image one, MIEB (Xiao et al., ICCV 2025, arXiv 2504.10471).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from composir.data.images import ImageSource, read_image
from composir.data.images.colours import to_rgb
from composir.errors import ComposirError
from composir.machine import default_device
from composir.scoring import similarity
from composir.search.encoder import NO_PICTURE, HeadEncoder, open_encoder
from composir.version import pip_install

QUERY, DOCUMENT = "query", "document"
"""What mteb calls the two kinds of input (``mteb.types.PromptType``)."""


class MtebModel:
    """A model of composir as mteb asks one (``mteb.models.EncoderProtocol``), for tasks whose documents are pictures.

    ``model`` is what ``--model`` of ``composir index`` takes. A picture with a sentence, a picture and a sentence are
    the queries that a search asks. A task's instruction is not read: a model that knows instructions has its own, or
    one in its address (``st:NAME?prompt=...``).
    """

    def __init__(self, model: str | Path, *, device: str | None = None) -> None:
        self.encoder = open_encoder(model, device or str(default_device()))
        known = {
            "name": f"composir/{Path(model).name}",
            "revision": self.encoder.identity,
            "modalities": ["image", "text"],
            "framework": ["PyTorch"],
            "use_instructions": False,
        }
        self.mteb_model_meta = _package("mteb.models").ModelMeta.create_empty(known)

    @torch.inference_mode()
    def encode(
        self, inputs: Iterable[Mapping[str, Any]], *, prompt_type: str | None = None, **_: Any
    ) -> Float[Tensor, "inputs dim"] | Float[Tensor, "inputs vectors dim"]:
        """Return L2-normalised embeddings, on the CPU: of documents a target's vectors, of all else a query's one.

        ``inputs`` are batches: ``image``, pictures, and ``text``, sentences, are lists of one length, or one of them
        is not there. Raises ``ComposirError`` for documents with a text.
        """
        embed = self._documents if prompt_type == DOCUMENT else self._queries
        return torch.cat([embed(batch).float().cpu() for batch in inputs])

    def similarity(
        self, queries: Float[Tensor, "queries dim"], targets: Float[Tensor, "targets *vectors dim"]
    ) -> Float[Tensor, "queries targets"]:
        """Return the score of every query with every target (``composir.similarity``)."""
        return similarity(queries, targets if targets.ndim == 3 else targets.unsqueeze(1))

    def similarity_pairwise(
        self, queries: Float[Tensor, "pairs dim"], targets: Float[Tensor, "pairs *vectors dim"]
    ) -> Float[Tensor, " pairs"]:
        """Return the score of every query with the target in its own row."""
        rows = range(len(queries))
        return torch.cat([self.similarity(queries[row : row + 1], targets[row : row + 1])[0] for row in rows])

    def _queries(self, batch: Mapping[str, Any]) -> Float[Tensor, "batch dim"]:
        pictures = [to_rgb(picture) for picture in batch.get("image", ())]
        texts = batch.get("text") or [""] * len(pictures)
        places = range(len(pictures)) if pictures else [NO_PICTURE] * len(texts)
        return self.encoder.embed_asked(pictures, list(zip(places, texts, strict=True)))

    def _documents(self, batch: Mapping[str, Any]) -> Float[Tensor, "batch vectors dim"]:
        if "image" not in batch or any(batch.get("text", ())):
            raise ComposirError(
                "the documents of this task are not pictures alone",
                expected="a task of mteb's whose category ends in 2i, such as it2i",
            )
        encoder, parts = self.encoder, []
        for start in range(0, len(batch["image"]), encoder.batch_size):
            pictures = batch["image"][start : start + encoder.batch_size]
            parts.append(encoder.embed_pictures([encoder.prepare(to_rgb(picture)) for picture in pictures]))
        vectors = torch.cat(parts)
        return (
            encoder.head.map_targets(vectors.to(encoder.head.device)) if isinstance(encoder, HeadEncoder) else vectors
        )


class MtebEmbedder:
    """A model that mteb has opened, as evaluation asks one (``composir.evaluation.Embedder``).

    It is asked as in ``task``, whose instruction a model that reads one is given. Whether a model's code is run that
    comes from elsewhere was decided by whoever opened it.
    """

    def __init__(self, model: Any, *, task: str = "CIRRIT2IRetrieval", batch_size: int = 32) -> None:
        self.model, self.batch_size = model, batch_size
        self.metadata = _package("mteb").get_task(task).metadata

    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch vectors dim"]:
        """Return the embedding of every image as a document."""
        vectors = self._encode(DOCUMENT, image=[read_image(path) for path in paths])
        return vectors if vectors.ndim == 3 else vectors.unsqueeze(1)

    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every picture with its sentence as a query; "" is the picture alone."""
        pictures = [read_image(path) for path in paths]
        spoken = [row for row, text in enumerate(texts) if text]
        silent = [row for row, text in enumerate(texts) if not text]
        parts = []
        if spoken:
            pairs = {"image": [pictures[row] for row in spoken], "text": [texts[row] for row in spoken]}
            parts.append(self._encode(QUERY, **pairs))
        if silent:
            parts.append(self._encode(QUERY, image=[pictures[row] for row in silent]))
        return torch.cat(parts)[torch.tensor([*spoken, *silent]).argsort()]

    def embed_text_only(self, texts: Sequence[str], gallery: Sequence[ImageSource]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every sentence as a query; the gallery says nothing here."""
        return self._encode(QUERY, text=list(texts))

    def weights_hash(self) -> str:
        """Return what identifies the model, by what mteb says of it, and the task that it is asked as."""
        meta = self.model.mteb_model_meta
        words = f"{meta.name} {meta.revision} {self.metadata.name}"
        return f"mteb-{hashlib.sha256(words.encode()).hexdigest()[:16]}"

    def _encode(self, kind: str, **columns: list[Image.Image] | list[str]) -> Float[Tensor, "batch *vectors dim"]:
        inputs = DataLoader(
            _package("datasets").Dataset.from_dict(columns),  # models look into its features
            batch_size=self.batch_size,
            collate_fn=lambda rows: {name: [row[name] for row in rows] for name in columns},
        )
        found = self.model.encode(
            inputs,
            task_metadata=self.metadata,
            hf_split="test",
            hf_subset="default",
            prompt_type=_package("mteb.types").PromptType(kind),
            batch_size=self.batch_size,
        )
        return nn.functional.normalize(torch.as_tensor(found).float().cpu(), dim=-1)


def _package(name: str) -> Any:
    """Return a module of mteb's or of what mteb brings; raise ``ComposirError`` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ComposirError(
            f"mteb cannot be imported ({' '.join(str(error).split())})", fix=pip_install("mteb")
        ) from error
