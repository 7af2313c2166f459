"""How far the gradient of a step under autocast is from float32's, by what is left out of autocast.

A small Q-Former learns made-up triplets in float32 until it tells their targets apart; then, on batches that it has not
seen and at the temperatures of a training, the gradient of the whole loss is computed in bf16 and in fp16:

- ``all in half``: heads, similarity and logits in half precision, as it was once;
- ``scores in float32``: only the similarity, the division by the temperature and the cross entropy outside autocast;
- ``heads, too``: the two projections as well, which is what the model does.

It prints, as JSON, the distance of each gradient to float32's over its length, on every batch. Minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from composir.losses import total_loss
from composir.models import sprc
from composir.models.config import ComposerConfig
from composir.training.recipe import Recipe

SIZES: dict[str, Any] = {
    "token_width": 256,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 768,
    "vocab_size": 1000,
}
BATCH, TOKENS, WORDS = 32, 50, 6
TEMPERATURES = (0.015, 0.042, 0.07)
LOSS_SCALE = 8192.0
"""Of fp16; at a larger one the first of the ways overflows."""

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def main() -> None:
    """Train, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of the training in float32")
    parser.add_argument("--batches", type=int, default=5, help="on which gradients are compared")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    model, batches = make_model(), make_batches(torch.Generator().manual_seed(1))
    loss = train(model, batches, arguments.steps)
    errors: dict[str, list[float]] = {}
    for _ in range(arguments.batches):
        batch = next(batches)
        for temperature in TEMPERATURES:
            model.temperature.data.fill_(temperature)
            exact = gradient(model, batch, None)
            for dtype in (torch.bfloat16, torch.float16):
                for name, way in WAYS.items():
                    with way(model):
                        error = (gradient(model, batch, dtype) - exact).norm() / exact.norm()
                    key = f"{str(dtype).removeprefix('torch.')} at {temperature}: {name}"
                    errors.setdefault(key, []).append(round(error.item(), 4))
    json.dump({"loss_itc": loss, "gradient_error": errors}, sys.stdout, indent=2)
    sys.stdout.write("\n")


def make_model() -> sprc.Sprc:
    """Return a small model whose Q-Former hears the picture from the first step."""
    model = sprc.Sprc(ComposerConfig(**SIZES, dropout=0.0))
    for parameter in model.qformer.parameters():
        if parameter.dim() == 2:
            nn.init.xavier_uniform_(parameter)
    nn.init.normal_(model.query_tokens, std=0.3)
    nn.init.normal_(model.prompt_tokens, std=0.3)
    return model


def make_batches(chance: torch.Generator) -> Iterator[Batch]:
    """Yield triplets whose target is the reference moved by its words, and some noise."""
    meaning = 0.6 * torch.randn(SIZES["vocab_size"], SIZES["token_width"], generator=chance)
    while True:
        reference, noise = torch.randn(2, BATCH, TOKENS, SIZES["token_width"], generator=chance)
        words = torch.randint(5, SIZES["vocab_size"], (BATCH, WORDS), generator=chance)
        target = reference + meaning[words].mean(dim=1, keepdim=True) + 0.3 * noise
        yield reference.half(), target.half(), words, torch.ones_like(words)


def train(model: sprc.Sprc, batches: Iterator[Batch], num_steps: int) -> float:
    """Return the last contrastive loss of a training at one temperature."""
    model.center(*next(batches))
    optimizer = torch.optim.AdamW([one for name, one in model.named_parameters() if name != "temperature"], lr=3e-4)
    loss = 0.0
    for _ in range(num_steps):
        losses = model.training_losses(*next(batches))
        total_loss(losses, Recipe().loss_weights).backward()
        optimizer.step()
        optimizer.zero_grad()
        loss = losses["loss_itc"].item()
    return loss


def gradient(model: sprc.Sprc, batch: Batch, dtype: torch.dtype | None) -> Tensor:
    """Return the gradient of the whole loss, all weights in one vector."""
    model.zero_grad()
    scale = LOSS_SCALE if dtype == torch.float16 else 1.0
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        total = total_loss(model.training_losses(*batch), Recipe().loss_weights)
    (total * scale).backward()
    return torch.cat([one.grad.flatten() / scale for one in model.parameters() if one.grad is not None])


@contextmanager
def as_it_is(_: sprc.Sprc) -> Iterator[None]:
    """Change nothing."""
    yield


@contextmanager
def heads_in_half(_: sprc.Sprc) -> Iterator[None]:
    """Compute the embeddings inside autocast."""
    before = sprc._embed
    sprc._embed = lambda head, hidden: nn.functional.normalize(head(hidden), dim=-1)
    try:
        yield
    finally:
        sprc._embed = before


@contextmanager
def all_in_half(model: sprc.Sprc) -> Iterator[None]:
    """Compute embeddings and scores inside autocast."""

    def score(query: Tensor, target: Tensor) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu")  # the losses are computed outside autocast, which does not change this
        products = query.to(dtype) @ target.flatten(0, 1).T.to(dtype)
        return products.unflatten(-1, target.shape[:2]).amax(dim=-1)

    before = sprc.similarity
    sprc.similarity = score
    try:
        with heads_in_half(model):
            yield
    finally:
        sprc.similarity = before


WAYS: dict[str, Callable[[sprc.Sprc], AbstractContextManager[None]]] = {
    "all in half": all_in_half,
    "scores in float32": heads_in_half,
    "heads, too": as_it_is,
}

if __name__ == "__main__":
    main()
