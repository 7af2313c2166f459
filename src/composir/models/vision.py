"""Vision towers: frozen networks that turn a picture into image tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from composir.data.transforms import IMAGE_SIZE, TARGET_RATIO, TRANSFORMS, scale_pixels, square_box, to_array

TOWER_BATCH, GPU_BATCH = 8, 64
"""Pictures a pass of a tower, on a CPU unless the tower says otherwise; more fills its caches with feature maps."""

TORCH_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Tower(nn.Module):
    """A frozen network with its own pixel range; ``transform`` says how a picture becomes square.

    ``weights`` is where its weights were read from, "" for a pip package; ``details`` is what they do not show and
    takes to build the network again; ``cpu_batch`` is how many pictures a pass takes on a CPU, ``TOWER_BATCH`` unless
    given. On CUDA the network computes in fp16 where ``half_on_gpu`` says so; on MPS in fp32 as on a CPU, as no one has
    compared the two there.
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
        cpu_batch: int | None = None,
        details: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.weights = weights
        self.half_on_gpu = half_on_gpu
        self.cpu_batch = cpu_batch
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
            products = (nn.Linear, nn.Conv2d)
            for module in self.network.modules():
                if isinstance(module, products):
                    module.to(self.dtype_on(self.mean.device))
        self._hashed = (self._state(), fingerprint)
        return self

    def _autocast(self, device: torch.device) -> torch.autocast:
        """Let products be in the precision for the device, and norms and sums in float32, as LAVIS's towers do."""
        dtype = self.dtype_on(device)
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """Return the precision of products on a device: fp16 on CUDA where the tower was made for it, else fp32."""
        return torch.float16 if self.half_on_gpu and device.type == "cuda" else torch.float32

    @property
    def batch_size(self) -> int:
        """Pictures that one pass should take where the tower is."""
        return self.cpu_batch or TOWER_BATCH if self.mean.device.type == "cpu" else GPU_BATCH

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
        with self._autocast(scaled.device):
            tokens = self.network(scaled).half()
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
