"""What a model looks at while it is used: attention, gate and change by patch, told by hooks that change nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from composir.models.qformer import FewQueriesAttention
from composir.models.sprc import Sprc
from composir.models.token_fusion import TokenFusion

Model = TypeVar("Model", bound=Sprc)

NUM_READINGS = 3
"""Of a training step: references with their sentences, candidates, and with a fusion of the query references alone."""


@dataclass(frozen=True)
class Reading:
    """What the query tokens read of a batch of pictures: float32 on the CPU, without gradients.

    What belongs to a fusion is None for a model without it, and for pictures that are read without a sentence.
    """

    with_text: bool
    """Whether a sentence was read as well (references), or the pictures alone (targets)."""
    cross_attention: Float[Tensor, "batch layers heads queries tokens"]
    """Weights of the query tokens over the image tokens, their sum 1; layers are those that read the picture. In
    training they are those before dropout."""
    maps: Mapping[str, Float[Tensor, "batch tokens"]] = field(default_factory=dict)
    """What each fusion of tokens shows by patch (``TokenFusion.maps``): ``gate`` how far gated fusion is open, in
    (0, 1), mean over the channels; ``text_attention`` where text-guided attention looks, the sum 1."""
    change: Float[Tensor, "batch tokens"] | None = None
    """Euclidean norm of what the fusions add to each token: ``|alpha * gate * delta|`` for gated fusion."""
    relative_change: Float[Tensor, "batch tokens"] | None = None
    """``change`` over the norm of the token before it."""

    @property
    def gate(self) -> Float[Tensor, "batch tokens"] | None:
        """``maps["gate"]``; None without gated fusion."""
        return self.maps.get("gate")

    @property
    def text_attention(self) -> Float[Tensor, "batch tokens"] | None:
        """``maps["text_attention"]``; None without text-guided attention."""
        return self.maps.get("text_attention")


@contextmanager
def watch(model: Sprc, *, keep: int = NUM_READINGS) -> Iterator[deque[Reading]]:
    """Give the last ``keep`` readings, filled as the model is used inside ``with``, in training as in evaluation.

    Nothing that the model computes changes, gradients and random numbers included. Every reading costs the attention
    weights and the gate once more.

        with watch(model) as seen:
            model.embed_query([picture], ["make it red"])
        next(one for one in seen if one.with_text).gate  # (1, tokens)
    """
    watcher = _Watcher(deque(maxlen=keep))
    handles = watcher.register(model)
    try:
        yield watcher.readings
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_fusions(model: Model) -> Iterator[Model]:
    """Give the model with the same weights and its fusions left out, inside ``with``."""
    gate, fusions = model.gated_fusion, model.fusions
    model.gated_fusion, model.fusions = None, nn.ModuleDict()
    try:
        yield model
    finally:
        model.gated_fusion, model.fusions = gate, fusions


def token_fusions(model: Sprc) -> list[TokenFusion]:
    """Return the model's fusions that act on image tokens, the gate first."""
    modules = (model.gated_fusion, *model.fusions.values())
    return [module for module in modules if isinstance(module, TokenFusion)]


@dataclass
class _Watcher:
    """Puts a ``Reading`` together from what the hooks of one pass tell; the last layer that looks completes it."""

    readings: deque[Reading]
    with_text: bool = False
    tokens: tuple[Tensor, Tensor] | None = None
    """The image tokens before the fusions and after them."""
    maps: dict[str, Tensor] = field(default_factory=dict)
    attentions: list[Tensor] = field(default_factory=list)

    def register(self, model: Sprc) -> list[torch.utils.hooks.RemovableHandle]:
        looking = [layer.crossattention.attention for layer in model.qformer.layers if layer.has_cross_attention]
        handles = [module.register_forward_hook(self.on_fusion) for module in token_fusions(model)]
        handles.append(model.qformer.register_forward_pre_hook(self.on_start))
        handles += [module.register_forward_hook(self.on_look) for module in looking]
        handles.append(looking[-1].register_forward_hook(self.on_end))
        return handles

    @torch.no_grad()
    def on_fusion(self, module: TokenFusion, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.tokens:
            before = self.tokens[0]
        else:
            image_tokens, affine = inputs[0], next(iter(inputs[3:]), None)  # which the gate applies itself
            before = image_tokens.detach() if affine is None else affine(image_tokens)
        self.tokens = (before, output.detach())
        with torch.autocast(output.device.type, enabled=False):
            self.maps |= module.maps(*inputs)

    def on_start(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A pass begins; behind the queries come the words, where there are any."""
        self.with_text = len(inputs) > 1 and inputs[1] is not None
        self.attentions = []

    @torch.no_grad()
    def on_look(self, module: FewQueriesAttention, inputs: tuple[Any, ...], output: object) -> None:
        """A layer has looked at the picture: its weights are not kept, so they are computed here."""
        self.attentions.append(module.weights(*inputs).cpu())

    def on_end(self, *_: object) -> None:
        maps, change, relative_change = {}, None, None
        if self.with_text and self.tokens is not None:
            before, after = (tokens.float() for tokens in self.tokens)
            difference = (after - before).norm(dim=-1)
            maps = {name: values.float().cpu() for name, values in self.maps.items()}
            change, relative_change = difference.cpu(), (difference / before.norm(dim=-1).clamp(min=1e-12)).cpu()
            self.tokens, self.maps = None, {}
        attention = torch.stack(self.attentions, dim=1)
        self.readings.append(Reading(self.with_text, attention, maps, change, relative_change))
