"""EfficientNet-Lite0, as far as its feature maps go.

Architecture: Tan & Le, *EfficientNet* (arXiv 1905.11946), in the Lite variant of the TensorFlow TPU repository
(no squeeze-and-excitation, ReLU6 throughout). Written out here because timm needs torchvision, whose published
wheels do not import beside a CPU build of torch (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

STEM_CHANNELS = 32
BATCH_NORM_EPS = 1e-3
STAGES = (
    # expansion, kernel, stride, output channels, blocks
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
LAST_BLOCK_AT_STRIDE_16 = 10
"""Index of the block that makes the 112-channel map at stride 16; the last block makes 320 channels at stride 32."""
STRIDE_16_CHANNELS, STRIDE_32_CHANNELS = 112, 320

PUBLISHED_NAMES = {
    "_conv_stem": "stem",
    "_bn0": "stem_norm",
    "_blocks": "blocks",
    "_expand_conv": "expand",
    "_depthwise_conv": "depthwise",
    "_bn1": "depthwise_norm",
    "_project_conv": "project",
    "_bn2": "project_norm",
}
"""Names in the published weight file and ours; inside a block ``_bn0`` is the norm after the expansion."""
DROPPED_PREFIXES = ("_conv_head", "_bn1", "_fc")
"""The classification head, dropped on purpose: only feature maps are read."""


class NormedConv2d(nn.Conv2d):
    """A convolution and, once ``fold`` has been told of it, the batch norm behind it, as one product.

    With ``scale = weight / sqrt(running_var + eps)`` of the norm, its weights are multiplied by the scale and
    ``bias - scale * running_mean`` is added (Jacob et al., arXiv 1712.05877, section 3.2). The state dict has the two
    as they were read. It is padded as TensorFlow's SAME: at stride 2 on an even size the extra row and column come
    last.
    """

    folded_weight: Tensor
    folded_bias: Tensor

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        for name in ("folded_weight", "folded_bias"):
            self.register_buffer(name, torch.empty(0), persistent=False)

    @torch.no_grad()
    def fold(self, norm: nn.BatchNorm2d) -> None:
        """Take over the norm as it is now, with its running mean and variance."""
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # (outputs,)
        self.folded_weight = self.weight * scale[:, None, None, None]
        self.folded_bias = norm.bias - scale * norm.running_mean

    def forward(self, input: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        """Return the padded input's convolution, normed, of size ``ceil(height / stride)``."""
        sides = list(zip(input.shape[-2:], self.kernel_size, self.stride, strict=True))
        height, width = (-(-size // stride) for size, _, stride in sides)
        padding = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size, kernel, stride in sides]
        # Torch pads both ends alike. For one more behind it pads a stride more at each end, which makes one output
        # before those that are wanted, and the input, often the largest map of all, is not copied.
        more = int(any(count % 2 for count in padding))
        around = [count // 2 + more * stride for count, stride in zip(padding, self.stride, strict=True)]
        y = nn.functional.conv2d(input, self.folded_weight, self.folded_bias, self.stride, around, groups=self.groups)
        return y[:, :, more : more + height, more : more + width]


class InvertedBottleneck(nn.Module):
    """Expand, convolve each channel by itself, project; the input is added where the shapes allow it."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand = NormedConv2d(inputs, width) if expansion > 1 else None
        self.expand_norm = nn.BatchNorm2d(width, eps=BATCH_NORM_EPS) if expansion > 1 else None
        self.depthwise = NormedConv2d(width, width, kernel, stride, groups=width)
        self.depthwise_norm = nn.BatchNorm2d(width, eps=BATCH_NORM_EPS)
        self.project = NormedConv2d(width, outputs)
        self.project_norm = nn.BatchNorm2d(outputs, eps=BATCH_NORM_EPS)
        self.is_residual = stride == 1 and inputs == outputs

    def fold(self) -> None:
        """Fold each norm into the convolution before it."""
        if self.expand is not None and self.expand_norm is not None:
            self.expand.fold(self.expand_norm)
        self.depthwise.fold(self.depthwise_norm)
        self.project.fold(self.project_norm)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        """Return the block's feature map."""
        y = x
        if self.expand is not None:
            y = nn.functional.relu6(self.expand(y), inplace=True)
        y = nn.functional.relu6(self.depthwise(y), inplace=True)
        y = self.project(y)
        return y.add_(x) if self.is_residual else y


class EfficientNetLite0(nn.Module):
    """The convolutional part of EfficientNet-Lite0, without the classification head, for inference alone.

    Batch norms are folded into the convolutions whenever weights are loaded; the state dict has both as they were read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = NormedConv2d(3, STEM_CHANNELS, 3, 2)
        self.stem_norm = nn.BatchNorm2d(STEM_CHANNELS, eps=BATCH_NORM_EPS)
        self.blocks = nn.ModuleList()
        channels = STEM_CHANNELS
        for expansion, kernel, stride, outputs, repeats in STAGES:
            for index in range(repeats):
                self.blocks.append(
                    InvertedBottleneck(
                        channels,
                        outputs,
                        expansion=expansion,
                        kernel=kernel,
                        stride=stride if index == 0 else 1,
                    )
                )
                channels = outputs
        _fold(self)
        self.register_load_state_dict_post_hook(_fold)

    def forward(
        self, pixels: Float[Tensor, "batch 3 height width"]
    ) -> tuple[Float[Tensor, "batch 112 h16 w16"], Float[Tensor, "batch 320 h32 w32"]]:
        """Return the feature maps at stride 16 (112 channels) and at stride 32 (320 channels)."""
        x = nn.functional.relu6(self.stem(pixels), inplace=True)
        middle = x
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index == LAST_BLOCK_AT_STRIDE_16:
                middle = x
        return middle, x


def _fold(network: EfficientNetLite0, _: object = None) -> None:
    network.stem.fold(network.stem_norm)
    for block in network.blocks:
        cast(InvertedBottleneck, block).fold()


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the published weights under this module's names, the classification head left out."""
    renamed = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[0] in DROPPED_PREFIXES:
            continue
        names = dict(PUBLISHED_NAMES, _bn0="expand_norm") if parts[0] == "_blocks" else PUBLISHED_NAMES
        renamed[".".join(names.get(part, part) for part in parts)] = tensor
    return renamed
