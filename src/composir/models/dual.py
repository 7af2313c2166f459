"""Dual encoders, such as CLIP: a network for pictures and one for sentences into one space, by ``transformers`` alone.

No code out of a repository is run, and neither sentence-transformers nor torchvision is needed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from composir.data.images import ImageSource, read_image
from composir.data.transforms import scale_pixels, to_array
from composir.errors import ComposirError
from composir.models.embedder import VectorEmbedder, distinct
from composir.models.identity import folder_hash
from composir.models.loading import OURS_ALONE, load_network, telling_what_fails
from composir.models.scripts import pieces_of, scripts_of
from composir.models.vision import TOWER_BATCH
from composir.models.weights.sources import read_json

BATCH_ON_GPU = 256
"""Pictures a pass on a GPU, as in BGE-VL's evaluation; on a CPU it is ``TOWER_BATCH``."""
DUAL_TYPES = ("clip", "siglip")
"""By ``model_type`` of ``config.json``."""
PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class Composition:
    """How the features of picture and sentence become a query: the L2-normalised weighted sum of both."""

    image_weight: float = 0.5
    """In [0, 1]; the sentence's is the rest."""
    is_normalised: bool = True
    """Whether both are L2-normalised before the sum; where they are not, the longer vector counts for more."""

    def __call__(
        self, image: Float[Tensor, "batch dim"], text: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        """Return the query of each row's features, as they come out of the networks."""
        if self.is_normalised:
            image, text = nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)
        return nn.functional.normalize(self.image_weight * image + (1 - self.image_weight) * text, dim=-1)


FEATURE_SUM = Composition(is_normalised=False)
"""BGE-VL's: the sum of the features as they are, normalised after it (``encode_mm_it`` in FlagOpen/FlagEmbedding,
research/BGE_VL/eval/flag_mmret.py; half of the sum is the same direction)."""
WEIGHTED_SUM = Composition()
"""For models whose authors compose nothing: a weighted mean of normalised features, as in WeiMoCIR (Wu et al., arXiv
2409.04918), here with equal weights. (mteb's wrappers of CLIP and SigLIP add features that are not normalised.)"""


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """A picture into the pixels of a network, as ``transformers``' image processors do it with Pillow."""

    size: tuple[int, int]
    """Height and width of what the network reads."""
    short_side: int
    """Of the picture before the centre crop; 0: it is stretched to ``size`` and nothing is cropped."""
    resample: Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of RGB in [0, 1]."""

    def __call__(self, picture: Image.Image) -> UInt8[np.ndarray, "3 height width"]:
        """Return the pixels of an RGB picture, in [0, 255]."""
        height, width = self.size
        if not self.short_side:
            return to_array(picture.resize((width, height), self.resample))
        resized = self._resized(picture.size)
        left, top = (resized[0] - width) // 2, (resized[1] - height) // 2
        return to_array(picture.resize(resized, self.resample).crop((left, top, left + width, top + height)))

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom of what is read, in pixels of a picture of this width and height."""
        if not self.short_side:
            return 0, 0, *size
        scale = [side / resized for side, resized in zip(size, self._resized(size), strict=True)]
        height, width = self.size
        left, top = ((resized - side) // 2 for resized, side in zip(self._resized(size), (width, height), strict=True))
        return left * scale[0], top * scale[1], (left + width) * scale[0], (top + height) * scale[1]

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        short = min(size)
        width, height = (int(self.short_side * side / short) for side in size)
        return width, height


def read_preprocessing(folder: Path) -> Preprocessing:
    """Return what ``preprocessor_config.json`` asks for; ``ComposirError`` where that is none of what is known here.

    Known are a resize of the short side with a centre crop (CLIP) and a resize to height and width (SigLIP).
    """
    file = folder / PREPROCESSOR
    found = read_json(file)
    with suppress(KeyError, TypeError, ValueError):
        # Older configurations say a number: of the short side, and of a square crop.
        size, crop = found["size"], found["crop_size"] if found.get("do_center_crop") else {}
        size = {"shortest_edge": size} if isinstance(size, int) else size
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        short = 0 if "height" in size else size["shortest_edge"]
        height, width = ((crop if short else size)[side] for side in ("height", "width"))
        mean, std = (tuple(map(float, found[key])) for key in ("image_mean", "image_std"))
        resample = Image.Resampling(found.get("resample", Image.Resampling.BICUBIC))
        if (
            found.get("do_resize", True)
            and found.get("do_normalize", True)
            and abs(found.get("rescale_factor", 1 / 255) * 255 - 1) < 1e-6
            and len(mean) == len(std) == 3
            and (max(height, width) <= short if short else not crop)
        ):
            return Preprocessing((height, width), short, resample, mean, std)
    raise ComposirError(
        f"asks for a preprocessing that is not known here ({json.dumps(found)[:300]})",
        file=file,
        expected="a resize of the short side and a centre crop within it, or a resize to height and width",
    )


class DualEncoder(VectorEmbedder):
    """A CLIP or SigLIP of ``transformers`` on pictures and sentences.

    A query is what ``composition`` makes of both features, a picture or a sentence alone its own, normalised; a
    candidate is the picture's. On CUDA the networks compute in fp16, elsewhere in fp32; features are composed in fp32.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        composition: Composition,
        device: str | torch.device,
        dtype: str | None = None,
        batch_size: int | None = None,
        identity: str = "",
    ) -> None:
        """Read the network of a folder in the hub's layout; without an ``identity`` its files are hashed."""
        self.kind = f"the dual encoder {name}"
        self.backbone = name
        self.folder = folder
        self.composition = composition
        self.device = torch.device(device)
        self.preprocessing = read_preprocessing(folder)
        self.network, self.tokenizer = _load(
            folder, self.device, dtype or ("fp16" if self.device.type == "cuda" else "fp32")
        )
        self.batch_size = batch_size or (TOWER_BATCH if self.device.type == "cpu" else BATCH_ON_GPU)
        self._identity = identity or folder_hash(folder)
        self._known: dict[ImageSource, Tensor] = {}
        self._mean, self._std = (
            torch.tensor(values).view(3, 1, 1).to(self.device)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )

    def prepare(self, picture: Image.Image) -> UInt8[np.ndarray, "3 height width"]:
        """Return the pixels that the network for pictures reads."""
        return self.preprocessing(picture)

    def embed_prepared(self, prepared: Sequence[np.ndarray]) -> Float[Tensor, "batch dim"]:
        """Return the picture's own features, normalised."""
        return nn.functional.normalize(self.image_features(prepared), dim=-1)

    def embed_pairs(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return what ``composition`` makes of both; without a sentence the picture's own."""
        different, places = distinct(pictures)
        return self.embed_pairs_and_pictures(different, list(zip(places, texts, strict=True)))[0]

    def embed_pairs_and_pictures(
        self, pictures: Sequence[Image.Image], asked: Sequence[tuple[int, str]]
    ) -> tuple[Float[Tensor, "asked dim"], Float[Tensor, "pictures dim"]]:
        """Return what ``composition`` makes of both, and the pictures' own."""
        features = self.image_features([self.prepare(picture) for picture in pictures])
        queries = self._compose(features[[place for place, _ in asked]], [text for _, text in asked])
        return queries, nn.functional.normalize(features, dim=-1)

    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch 1 dim"]:
        """Return the embedding of every image as a candidate."""
        return nn.functional.normalize(self._features_of(paths), dim=-1).unsqueeze(1)

    def embed_queries(self, paths: Sequence[ImageSource], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return what ``embed_pairs`` does, of image files."""
        return self._compose(self._features_of(paths), texts)

    def _features_of(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch dim"]:
        """Return the features of files, each computed once: evaluation asks for a reference again and again."""
        new = [path for path in dict.fromkeys(paths) if path not in self._known]
        for start in range(0, len(new), self.batch_size):
            batch = new[start : start + self.batch_size]
            features = self.image_features([self.prepare(read_image(path)) for path in batch])
            self._known.update(zip(batch, features.cpu(), strict=True))
        return torch.stack([self._known[path] for path in paths]).to(self.device)

    def _compose(self, image: Float[Tensor, "batch dim"], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        queries = nn.functional.normalize(image, dim=-1)
        spoken = [row for row, text in enumerate(texts) if text]
        if spoken:
            queries[spoken] = self.composition(image[spoken], self.text_features([texts[row] for row in spoken]))
        return queries

    def embed_sentences(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the sentence's own features, normalised."""
        return nn.functional.normalize(self.text_features(texts), dim=-1)

    @torch.inference_mode()
    def image_features(self, prepared: Sequence[np.ndarray]) -> Float[Tensor, "batch dim"]:
        """Return the projected features of what ``prepare`` returned, as they are, float32."""
        parts = [prepared[start : start + self.batch_size] for start in range(0, len(prepared), self.batch_size)]
        features = [self._image_batch(part) for part in parts]
        return torch.cat(features)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the projected features of sentences, as they are, float32; what is too long is cut off."""
        tokens = self.tokenize(texts)
        return self.features_of_tokens({name: ids.to(self.device) for name, ids in tokens.items()})

    def features_of_pixels(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim"]:
        """Return the projected features of prepared pictures on the network's device, with gradients where wanted."""
        scaled = scale_pixels(pixels.float(), self._mean, self._std).to(self.network.dtype)
        return _features(self.network.get_image_features(pixel_values=scaled))

    def features_of_tokens(self, tokens: Mapping[str, Int[Tensor, "batch words"]]) -> Float[Tensor, "batch dim"]:
        """Return the projected features of what ``tokenize`` returned, the same way."""
        return _features(self.network.get_text_features(**tokens))

    def tokenize(self, texts: Sequence[str]) -> dict[str, Int[Tensor, "batch words"]]:
        """Return the inputs of the network for sentences, by name.

        SigLIP was trained on lower case, padded to the full length and without a mask (``transformers``'
        convert_siglip_to_hf.py); CLIP reads up to the end of the sentence.
        """
        config = self.network.config
        is_siglip = config.model_type == "siglip"
        tokens = self.tokenizer(
            [text.lower() for text in texts] if is_siglip else list(texts),
            padding="max_length" if is_siglip else True,
            truncation=True,
            max_length=config.text_config.max_position_embeddings,
            return_attention_mask=not is_siglip,
            return_tensors="pt",
        )
        return dict(tokens)

    def with_network(self, network: Any) -> DualEncoder:
        """Return the encoder with another network of its kind, of which it has seen no picture yet."""
        other = copy.copy(self)
        other.network, other._known = network.to(self.device).eval(), {}
        return other

    @cached_property
    def scripts(self) -> frozenset[str]:
        """The scripts in which its tokenizer has words."""
        return scripts_of(pieces_of(self.tokenizer))

    def weights_hash(self) -> str:
        """Return a hash of the folder's files, and of how both features are composed."""
        return self.hash_of(self._identity)

    def hash_of(self, identity: str) -> str:
        """Return ``weights_hash`` with what identifies other weights."""
        return f"dual-{identity}-{self.composition.image_weight:g}{'n' * self.composition.is_normalised}"

    def square(self, picture: Image.Image) -> Image.Image:
        """Return the picture as the network reads it."""
        return Image.fromarray(np.ascontiguousarray(self.prepare(picture).transpose(1, 2, 0)))

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return where that lies."""
        return self.preprocessing.box(size)

    def _image_batch(self, prepared: Sequence[np.ndarray]) -> Float[Tensor, "batch dim"]:
        return self.features_of_pixels(torch.from_numpy(np.stack(prepared)).to(self.device))


def _features(found: Any) -> Float[Tensor, "batch dim"]:
    """Return the features in what ``transformers`` gives, which by its version is a tensor or an output that has it."""
    return getattr(found, "pooler_output", found).float()


def _load(folder: Path, device: torch.device, dtype: str) -> tuple[Any, Any]:
    """Return the network and its tokenizer; raise ``ComposirError`` for what is none known here."""
    from transformers import AutoTokenizer, CLIPModel, SiglipModel  # noqa: PLC0415 (takes seconds)

    kind = read_json(folder / "config.json").get("model_type")
    classes = dict(zip(DUAL_TYPES, (CLIPModel, SiglipModel), strict=True))
    if kind not in classes:
        raise ComposirError(
            f"is a model of the type {kind!r}", file=folder, expected=f"one of {', '.join(classes)}, a dual encoder"
        )
    network = load_network(classes[kind], folder, dtype=dtype, device=device)
    with telling_what_fails(folder):
        return network, AutoTokenizer.from_pretrained(folder, **OURS_ALONE)
