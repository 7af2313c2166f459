"""What the processor or the GPU can do: the rate of large matrix products, which no step exceeds."""

from __future__ import annotations

import torch

SIZE_ON_CPU, SIZE_ON_GPU = 2048, 8192
"""Rows and columns: enough that a larger product is not faster."""
NUM_PRODUCTS = 5
"""One of bf16 takes some milliseconds, too little for a clock on a machine that others use."""


class Products:
    """Products of two square matrices in float32 or bf16, one after the other; called, they are computed."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        size = SIZE_ON_CPU if device.type == "cpu" else SIZE_ON_GPU
        chance = torch.Generator().manual_seed(0)
        self.factors = [torch.randn(size, size, generator=chance).to(device, dtype) for _ in range(2)]
        self.operations = NUM_PRODUCTS * 2 * size**3
        """Multiplications and additions of a call."""
        self()  # the first time libraries make themselves ready

    def __call__(self) -> None:
        """Compute the products."""
        for _ in range(NUM_PRODUCTS):
            torch.mm(*self.factors)
