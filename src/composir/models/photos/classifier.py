"""EfficientNet-Lite0 with its head: how likely each of ImageNet's classes is in a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from composir.data.transforms import IMAGE_SIZE, targetpad, to_array
from composir.models.backbones.efficientnet import (
    BATCH_NORM_EPS,
    STRIDE_32_CHANNELS,
    EfficientNetLite0,
    NormedConv2d,
    from_published,
)
from composir.models.backbones.mini import read_lite0
from composir.models.photos.vocabulary import NUM_CLASSES
from composir.models.weights.tensors import Undrawn

WIDTH = 1280
VIEWS_AT_ONCE = 2
"""Squares that the network sees together: always as many, so that none depends on what stands beside it, and few, so
that one picture does not cost as much as eight."""


class Classifier(nn.Module):
    """The whole of EfficientNet-Lite0 as it was published, with ImageNet's weights."""

    def __init__(self) -> None:
        super().__init__()
        weights = read_lite0()
        with Undrawn():
            self.body = EfficientNetLite0()
            self.head = NormedConv2d(STRIDE_32_CHANNELS, WIDTH)
            self.norm = nn.BatchNorm2d(WIDTH, eps=BATCH_NORM_EPS)
            self.classes = nn.Linear(WIDTH, NUM_CLASSES)
        self.body.load_state_dict(from_published(weights))
        for part, name in ((self.head, "_conv_head"), (self.norm, "_bn1"), (self.classes, "_fc")):
            own = {key.removeprefix(f"{name}."): one for key, one in weights.items() if key.startswith(f"{name}.")}
            part.load_state_dict(own)
        self.head.fold(self.norm)
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # torch's stub lacks it
        self.requires_grad_(False).eval()

    def forward(self, pixels: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Return the classes' logits."""
        scaled = (pixels.to(self.head.weight.device).float() - 127) / 128  # the published preprocessing
        last = self.body(scaled.contiguous(memory_format=torch.channels_last))[1]
        return self.classes(nn.functional.relu6(self.head(last), inplace=True).mean(dim=(2, 3)))

    def logits(self, pictures: Sequence[Sequence[np.ndarray]]) -> Float[Tensor, "pictures classes"]:
        """Return the logits of pictures, each given as one or more views: the mean over its views."""
        views = np.stack([view for picture in pictures for view in picture])
        rows = torch.cat([self._fixed_batch(views[i : i + VIEWS_AT_ONCE]) for i in range(0, len(views), VIEWS_AT_ONCE)])
        return torch.stack([own.mean(dim=0) for own in rows.split([len(picture) for picture in pictures])])

    def _fixed_batch(self, views: UInt8[np.ndarray, "views 3 height width"]) -> Float[Tensor, "views classes"]:
        pixels = np.zeros((VIEWS_AT_ONCE, *views.shape[1:]), np.uint8)
        pixels[: len(views)] = views
        return self(torch.from_numpy(pixels))[: len(views)]


def view(picture: Image.Image) -> UInt8[np.ndarray, "3 224 224"]:
    """Return an RGB picture as the network sees it: targetpad, as of ``mini``."""
    return to_array(targetpad(picture, size=IMAGE_SIZE))
