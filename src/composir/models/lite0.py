"""``lite0``: pictures as what an ImageNet network sees in them, and their colours; for heads, and for pictures alike.

The channel means of EfficientNet-Lite0's two feature maps (its own pooling reads the second alone), each standardised
by the network's own batch norms, beside the eleven colours and the ground of ``photos``. Neither is trained on
anything here. It reads no sentence: a query of picture and sentence is the picture's, until a head was trained on it.
Figures: docs/heads.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from composir.models.backbones.efficientnet import (
    LAST_BLOCK_AT_STRIDE_16,
    STRIDE_16_CHANNELS,
    STRIDE_32_CHANNELS,
    EfficientNetLite0,
    InvertedBottleneck,
    from_published,
)
from composir.models.backbones.mini import lite0_file, minilm_file, read_lite0
from composir.models.embedder import VectorComposer
from composir.models.identity import files_hash
from composir.models.photos.classifier import view
from composir.models.photos.colours import COLOURS
from composir.models.photos.embedder import SIDE, shrink
from composir.models.photos.ground import look_at, look_vectors
from composir.models.photos.minilm import embed, minilm_scripts
from composir.models.vision import TOWER_BATCH
from composir.models.weights.tensors import Undrawn

LITE0 = "lite0"
"""The name under which it is asked for."""
ABOUT = "compares pictures by what an ImageNet network sees and by colour; reads no sentence until a head is trained"
COLOUR_WEIGHT = 0.8
"""Of the colours and of the ground, each beside the channels' 1."""
VERSION = 1
"""Of the constants: vectors of another one are not comparable."""
DIM = STRIDE_32_CHANNELS + STRIDE_16_CHANNELS + len(COLOURS) + 2


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture as the model takes it in."""

    square: UInt8[np.ndarray, "3 224 224"]
    colours: Float[np.ndarray, " colours"]
    white: float


class Mute:
    """How a sentence is read where none can be."""

    is_usable = False

    def told(self, *, with_reference: bool) -> str:
        """Return a line for people."""
        return "lite0 reads no sentence; a head on it does (composir train --backbone lite0)"


class Lite0Embedder(VectorComposer):
    """The network on pictures and image files; a picture is one vector."""

    kind = backbone = LITE0
    about = ABOUT
    batch_size = TOWER_BATCH
    side = SIDE

    @cached_property
    def dim(self) -> int:
        """Length of its vectors."""
        return DIM

    def __init__(self, device: str | torch.device = "cpu") -> None:
        with Undrawn():
            network = EfficientNetLite0()
        network.load_state_dict(from_published(read_lite0()))
        self._network = network.eval().requires_grad_(False).to(device)
        self._network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stub lacks it
        self._mean, self._deviation = (one.to(device) for one in _statistics(network))

    def prepare(self, picture: Image.Image) -> Prepared:
        """Return an RGB picture as ``embed_prepared`` takes it in."""
        small = shrink(picture)
        ground = look_at(small)
        return Prepared(view(small), ground.colours, ground.white)

    @torch.no_grad()
    def embed_prepared(self, prepared: Sequence[Prepared]) -> Float[Tensor, "batch dim"]:
        """Return the L2-normalised vector of every picture: each passes alone, so that none depends on another."""
        means = torch.cat([self._means(one.square) for one in prepared])
        channels = normalize((means - self._mean) / self._deviation, dim=-1).cpu()
        colours, ground = look_vectors([one.colours for one in prepared], [one.white for one in prepared])
        return normalize(torch.cat([channels, COLOUR_WEIGHT * colours, COLOUR_WEIGHT * ground], dim=-1), dim=-1)

    def pairs_of_vectors(self, vectors: Float[Tensor, "batch dim"], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the vectors, whatever the sentences say."""
        return vectors

    def embed_sentences(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return zeros, which ask for nothing."""
        return torch.zeros(len(texts), DIM)

    def embed_words(self, texts: Sequence[str]) -> Float[Tensor, "batch 384"]:
        """Return MiniLM's vector of every sentence: what a head reads."""
        return torch.stack([embed(text) for text in texts])

    def read(self, text: str) -> Mute:
        """Return that no sentence is read."""
        return Mute()

    def square(self, picture: Image.Image) -> Image.Image:
        """Return the picture, small: the network sees all of it, the colours and the ground are the thing's."""
        return shrink(picture)

    @cached_property
    def scripts(self) -> frozenset[str]:
        """Those of MiniLM, by which a head reads sentences."""
        return minilm_scripts()

    def weights_hash(self) -> str:
        """Return what identifies the weights and the constants."""
        return f"{LITE0}-{files_hash(VERSION, (lite0_file(), minilm_file()))}"

    def _means(self, square: UInt8[np.ndarray, "3 224 224"]) -> Float[Tensor, "1 channels"]:
        pixels = (torch.from_numpy(square).to(self._mean.device).float() - 127) / 128  # the published preprocessing
        middle, last = self._network(pixels[None].contiguous(memory_format=torch.channels_last))
        return torch.cat([last.mean(dim=(2, 3)), middle.mean(dim=(2, 3))], dim=-1)


def _statistics(network: EfficientNetLite0) -> tuple[Float[Tensor, " channels"], Float[Tensor, " channels"]]:
    """Return mean and deviation of the channels of both maps, as the batch norms that make them have them.

    The map at stride 16 is a sum of its stage's three blocks, taken as independent.
    """
    norms = [block.project_norm for block in network.blocks if isinstance(block, InvertedBottleneck)]
    last, stage = norms[-1], norms[LAST_BLOCK_AT_STRIDE_16 - 2 : LAST_BLOCK_AT_STRIDE_16 + 1]
    mean = torch.cat([last.bias, torch.stack([norm.bias for norm in stage]).sum(dim=0)])
    variance = torch.cat([last.weight.square(), torch.stack([norm.weight for norm in stage]).square().sum(dim=0)])
    return mean.detach(), variance.sqrt().detach()
