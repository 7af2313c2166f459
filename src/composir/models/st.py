"""Any sentence-transformers model that embeds pictures and sentences, as evaluation asks a model."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from composir.errors import ComposirError
from composir.models.address import Options
from composir.models.dual import DUAL_TYPES, WEIGHTED_SUM
from composir.models.embedder import VectorEmbedder
from composir.models.hub import snapshot_here
from composir.models.identity import folder_hash
from composir.models.loading import quiet_transformers, reason
from composir.models.scripts import pieces_of, scripts_of
from composir.models.vision import TORCH_DTYPES, TOWER_BATCH, hash_weights
from composir.models.weights.sources import read_json
from composir.version import pip_install

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

MAX_PIXELS = 1800 * 32 * 32
"""Of a picture, unless told otherwise: what Qwen3-VL-Embedding takes at most, 1,800 of its tokens (QwenLM/
Qwen3-VL-Embedding, src/models/qwen3_vl_embedding.py). Models that cut pictures into patches of their own size would
make thousands of tokens of a photograph."""
NO_OPTIONS = Options()


class SentenceEmbedder(VectorEmbedder):
    """A sentence-transformers model on pictures and sentences.

    One that takes a picture and a sentence in one input composes them itself. Of one that does not (CLIP, say) the
    query is ``WEIGHTED_SUM``. A query without a sentence is the picture alone, one without a picture the sentence
    alone; a candidate is one vector. ``prompt`` stands before queries (as the system's message of a chat template,
    where the model has one) instead of the model's own; pictures of more than ``max_pixels`` are made smaller;
    ``identity`` is the hash of the files that the model was read from, without it its weights are hashed.
    """

    kind = "a sentence-transformers model"
    backbone = "sentence-transformers"

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        identity: str = "",
        prompt: str | None = None,
        max_pixels: int = MAX_PIXELS,
        batch_size: int | None = None,
    ) -> None:
        self.model = model
        self.composes = model.supports(("image", "text"))
        self.prompt = prompt
        self.max_pixels = max_pixels
        self.batch_size = batch_size or TOWER_BATCH
        self._identity = identity

    def prepare(self, picture: Image.Image) -> Image.Image:
        """Return the picture, of at most ``max_pixels``: the model's own processor does the rest."""
        num_pixels = picture.width * picture.height
        if num_pixels <= self.max_pixels:
            return picture
        scale = math.sqrt(self.max_pixels / num_pixels)
        size = max(1, int(picture.width * scale)), max(1, int(picture.height * scale))
        return picture.resize(size, Image.Resampling.BICUBIC)

    def embed_prepared(self, prepared: Sequence[Image.Image]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every picture, as a document."""
        return self._encode(self.model.encode_document, list(prepared))

    def embed_pairs(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every picture with its sentence, as a query."""
        images = [self.prepare(picture) for picture in pictures]
        spoken = [row for row, text in enumerate(texts) if text]
        silent = [row for row, text in enumerate(texts) if not text]
        parts = []
        if spoken and self.composes:
            pairs = [{"image": images[row], "text": texts[row]} for row in spoken]
            parts.append(self._encode_queries(pairs))
        elif spoken:
            alone = self._encode_queries([images[row] for row in spoken])
            parts.append(WEIGHTED_SUM(alone, self.embed_sentences([texts[row] for row in spoken])))
        if silent:
            parts.append(self._encode_queries([images[row] for row in silent]))
        order = torch.tensor([*spoken, *silent]).argsort().to(parts[0].device)
        return torch.cat(parts)[order]

    def embed_sentences(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every sentence, as a query."""
        return self._encode_queries(list(texts))

    @cached_property
    def scripts(self) -> frozenset[str] | None:
        """The scripts in which its tokenizer has words; None where the model has no tokenizer that is known here."""
        processor = getattr(self.model, "tokenizer", None)
        tokenizer = getattr(processor, "tokenizer", processor)
        return scripts_of(pieces_of(tokenizer)) if hasattr(tokenizer, "batch_decode") else None

    def weights_hash(self) -> str:
        """Return what identifies the model and the way it is asked and composes."""
        weights = self._identity or hash_weights(self.model.state_dict())
        way = {
            "prompt": torch.tensor(list((self.prompt or "").encode()), dtype=torch.uint8),
            "max_pixels": torch.tensor(self.max_pixels),
            "image_weight": torch.tensor(-1.0 if self.composes else WEIGHTED_SUM.image_weight),
        }
        return f"st-{weights}-{hash_weights(way)[:8]}"

    def _encode_queries(self, inputs: list[Any]) -> Float[Tensor, "batch dim"]:
        return self._encode(self.model.encode_query, inputs, prompt=self.prompt)

    def _encode(self, encode: Any, inputs: list[Any], **options: Any) -> Float[Tensor, "batch dim"]:
        options |= {"convert_to_tensor": True, "show_progress_bar": False, "batch_size": self.batch_size}
        found = encode(inputs, **options)
        return nn.functional.normalize(found.float(), dim=-1)


def load_sentence_embedder(
    name: str, *, device: str | torch.device | None = None, options: Options = NO_OPTIONS
) -> SentenceEmbedder:
    """Return the embedder of a folder or hub id; on a GPU where there is one, unless told.

    Without ``options.dtype`` the weights are in the precision that they are stored in. Raises ``ComposirError`` where
    a package is missing, nothing of that name can be loaded, the model needs code of its own, or does not embed both
    pictures and sentences.
    """
    options.require_only(SentenceEmbedder.kind, "prompt", "max_pixels", "dtype", "batch_size")
    try:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise _missing(name, error) from error
    folder = _folder(name)
    if folder is not None:
        _require_no_own_code(folder, name)
    try:
        with quiet_transformers():
            loaded = SentenceTransformer(
                str(folder or name),
                device=None if device is None else str(device),
                trust_remote_code=False,
                model_kwargs={"dtype": TORCH_DTYPES[options.dtype]} if options.dtype else None,
            )
    except ImportError as error:
        raise _missing(name, error) from error
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        if "trust_remote_code" in str(error):
            raise _own_code(name) from error
        raise ComposirError(
            f"cannot be loaded by sentence-transformers ({reason(error)})",
            file=name,
            expected="a folder or hub id of such a model",
            fix="check the name; without network: give a folder on this machine",
        ) from error
    lacking = [modality for modality in ("image", "text") if not loaded.supports(modality)]
    if lacking:
        raise ComposirError(
            f"embeds no {' and no '.join(lacking)}",
            file=name,
            expected="a model of pictures and sentences, such as sentence-transformers/clip-ViT-B-32",
        )
    folder = folder or _folder(name)
    return SentenceEmbedder(
        loaded,
        identity=folder_hash(folder) if folder else "",
        prompt=options.prompt,
        max_pixels=options.max_pixels or MAX_PIXELS,
        batch_size=options.batch_size,
    )


def _folder(name: str) -> Path | None:
    """Return where a model's files are on this machine, None where they are not."""
    if Path(name).is_dir():
        return Path(name)
    return snapshot_here(name) or (snapshot_here(f"sentence-transformers/{name}") if "/" not in name else None)


def _require_no_own_code(folder: Path, name: str) -> None:
    """Raise ``ComposirError`` for a dual encoder that comes with code: without it, it would compose otherwise."""
    file = folder / "config.json"
    config = read_json(file) if file.is_file() else {}
    if config.get("auto_map") and config.get("model_type") in DUAL_TYPES:
        raise _own_code(name)


def _own_code(name: str) -> ComposirError:
    return ComposirError(
        "comes with code of its own, which is never run",
        file=name,
        expected="a model that transformers and sentence-transformers know themselves",
        fix="a name that composir models lists, with its folder where you have one, such as bge-vl-base:FOLDER",
    )


def _missing(name: str, error: ImportError) -> ComposirError:
    """Return the error for a package that is not installed, or that cannot be imported, told apart."""
    said = " ".join(str(error).split())
    package = (error.name or "").partition(".")[0].replace("_", "-")
    lacking = re.search(r"requires the (\S+) library", said)  # as transformers says it
    package = package if isinstance(error, ModuleNotFoundError) else lacking[1] if lacking else ""
    if package or "install" in said:
        what = f"needs the package {package}, which is not installed" if package else f"lacks a package ({said[:200]})"
        return ComposirError(f"st:{name} {what}", fix=pip_install("sentence-transformers"))
    return ComposirError(
        f"st:{name}: a package is installed and cannot be imported ({said[:200]})",
        fix="install versions that fit each other: torch and torchvision are of one release and one kind (CPU, CUDA)",
    )
