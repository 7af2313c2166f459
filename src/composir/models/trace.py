"""What a model looked at: attention, gate and change by patch, and what each patch is worth to the answer."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from PIL import Image
from torch import Tensor, nn

from composir.data.images import read_image
from composir.models.fusion.attention import TextGuidedAttention
from composir.models.gated_fusion import GatedFusion
from composir.models.qformer import FewQueriesAttention
from composir.scoring import similarity

if TYPE_CHECKING:
    from composir.models.composer import Composer

ROWS_PER_PASS = 32
"""Copies of a picture, each with another patch hidden, that go through the model at once."""
NUM_READINGS = 2
"""A training step reads twice: the references with their sentences, and the candidates."""


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
    gate: Float[Tensor, "batch tokens"] | None = None
    """Of gated fusion: how far the gate is open, in (0, 1), mean over the channels."""
    text_attention: Float[Tensor, "batch tokens"] | None = None
    """Of text-guided attention: where the sentence looks, the sum 1."""
    change: Float[Tensor, "batch tokens"] | None = None
    """Euclidean norm of what the fusions add to each token: ``|alpha * gate * delta|`` for gated fusion."""
    relative_change: Float[Tensor, "batch tokens"] | None = None
    """``change`` over the norm of the token before it."""


@dataclass(frozen=True)
class Trace:
    """What a model made of one picture and one sentence, by image token: float32 arrays.

    ``tokens`` run row by row from the top left, behind the class token where the tower has one (ViT);
    ``patches`` turns them into rows and columns. *Hidden* means: replaced by the mean of the picture's tokens.
    """

    box: tuple[float, float, float, float]
    """Left, top, right and bottom of the square that the patches share, in pixels of the picture: beyond its edge
    where the transform pads, within it where it crops."""
    query: Float32[np.ndarray, " dim"]
    """The query embedding."""
    cross_attention: Float32[np.ndarray, "layers heads queries tokens"]
    """See ``Reading``."""
    attention: Float32[np.ndarray, " tokens"]
    """``cross_attention``, mean over layers, heads and queries: the sum is 1."""
    influence: Float32[np.ndarray, " tokens"]
    """How far the query embedding moves when the patch is hidden from it: Euclidean distance, 0 to 2."""
    gate: Float32[np.ndarray, " tokens"] | None
    """See ``Reading``; None without gated fusion."""
    text_attention: Float32[np.ndarray, " tokens"] | None
    """See ``Reading``; None without text-guided attention."""
    change: Float32[np.ndarray, " tokens"] | None
    """See ``Reading``; None without either of the two, as the next two."""
    relative_change: Float32[np.ndarray, " tokens"] | None
    fusion_influence: Float32[np.ndarray, " tokens"] | None
    """How far the query embedding moves when the fusion leaves this one patch as it was."""
    score: float | None = None
    """The target's score, as everywhere: the largest of ``vector_scores``. None, as all below, without a target."""
    vector_scores: Float32[np.ndarray, " queries"] | None = None
    """The dot product of the query with each of the target's vectors, one a query token."""
    reference_attribution: Float32[np.ndarray, " tokens"] | None = None
    """By how much the score falls when the patch of the reference is hidden; negative where it rises."""
    target_attribution: Float32[np.ndarray, " tokens"] | None = None
    """The same for the patches of the target."""
    target_box: tuple[float, float, float, float] | None = None
    """``box`` of the target."""


def patches(values: Float32[np.ndarray, "*other tokens"]) -> Float32[np.ndarray, "*other rows columns"]:
    """Return values by token as rows and columns of patches, without the class token (257 = 1 + 16 x 16).

    A number of tokens that is neither a square nor one more raises ``ValueError``.
    """
    num_tokens = values.shape[-1]
    side = math.isqrt(num_tokens)
    if num_tokens - side * side > 1:
        raise ValueError(f"{num_tokens} tokens are no square of patches, with or without a class token")
    return values[..., num_tokens - side * side :].reshape(*values.shape[:-1], side, side)


@contextmanager
def watch(model: Composer, *, keep: int = NUM_READINGS) -> Iterator[deque[Reading]]:
    """Give the last ``keep`` readings, filled as the model is used inside ``with``, in training as in evaluation.

    Nothing that the model computes changes, gradients and random numbers included. Every reading costs the attention
    weights and the gate once more.

        with watch(model) as seen:
            model.embed_query([picture], ["make it red"])
        seen[-1].gate  # (1, tokens)
    """
    watcher = _Watcher(deque(maxlen=keep))
    handles = watcher.register(model)
    try:
        yield watcher.readings
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_fusions(model: Composer) -> Iterator[Composer]:
    """Give the model with the same weights and its fusions left out, inside ``with``."""
    gate, fusions = model.gated_fusion, model.fusions
    model.gated_fusion, model.fusions = None, nn.ModuleDict()
    try:
        yield model
    finally:
        model.gated_fusion, model.fusions = gate, fusions


@torch.no_grad()
def trace(
    model: Composer,
    image: Image.Image | Path | str,
    text: str,
    target: Image.Image | Path | str | None = None,
) -> Trace:
    """Return what the model made of a picture with a sentence, and of its score against ``target`` where one is given.

    The influences and attributions are measured, not estimated from gradients: the model answers once for every
    patch hidden, so a trace takes one to three passes a patch.
    """
    picture = _open(image)
    tokens, (input_ids, mask) = model.tokens([picture]), model.tokenize([text])

    def ask(rows: Float[Tensor, "rows tokens width"]) -> Float[Tensor, "rows dim"]:
        return model.encode_query(rows, input_ids.expand(len(rows), -1), mask.expand(len(rows), -1))

    with _evaluating(model):
        with watch(model, keep=8) as seen:
            query = ask(tokens)
        reading = next(one for one in seen if one.with_text)
        queries_without = torch.cat([ask(rows) for rows in _hide_each(tokens)])  # (tokens, dim)
        fusion_influence = None
        if reading.change is not None:
            reverted = _ask_with_each_left_as_it_was(model, tokens, ask)
            fusion_influence = _array((reverted - query).norm(dim=-1))
        about_target = {} if target is None else _trace_target(model, query, queries_without, _open(target))
    return Trace(
        box=_box(model, picture),
        query=_array(query[0]),
        cross_attention=_array(reading.cross_attention[0]),
        attention=_array(reading.cross_attention[0].mean(dim=(0, 1, 2))),
        influence=_array((queries_without - query).norm(dim=-1)),
        gate=_first(reading.gate),
        text_attention=_first(reading.text_attention),
        change=_first(reading.change),
        relative_change=_first(reading.relative_change),
        fusion_influence=fusion_influence,
        **about_target,
    )


def _trace_target(model: Composer, query: Tensor, queries_without: Tensor, picture: Image.Image) -> dict[str, Any]:
    tokens = model.tokens([picture])
    vectors = model.encode_target(tokens)  # (1, queries, dim)
    score = similarity(query, vectors)[0, 0]
    hidden = torch.cat([similarity(query, model.encode_target(rows))[0] for rows in _hide_each(tokens)])
    return {
        "score": score.item(),
        "vector_scores": _array(vectors[0] @ query[0]),
        "reference_attribution": _array(score - similarity(queries_without, vectors)[:, 0]),
        "target_attribution": _array(score - hidden),
        "target_box": _box(model, picture),
    }


def _hide_each(tokens: Float[Tensor, "1 tokens width"]) -> Iterator[Float[Tensor, "rows tokens width"]]:
    """Give copies of a picture's tokens, in each of them another one replaced by the mean of all, in order."""
    num_tokens = tokens.shape[1]
    mean = tokens.float().mean(dim=1).to(tokens.dtype)
    for start in range(0, num_tokens, ROWS_PER_PASS):
        places = torch.arange(start, min(start + ROWS_PER_PASS, num_tokens))
        rows = tokens.repeat(len(places), 1, 1)
        rows[torch.arange(len(places)), places] = mean
        yield rows


def _ask_with_each_left_as_it_was(
    model: Composer, tokens: Float[Tensor, "1 tokens width"], ask: Callable[[Tensor], Tensor]
) -> Float[Tensor, "tokens dim"]:
    """Return the query embeddings where the fusions change all patches but one, for each patch in order."""
    num_tokens = tokens.shape[1]
    places = torch.arange(0)

    def put_back(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        rows = torch.arange(len(places))
        output[rows, places] = inputs[0][rows, places]
        return output

    handles = [module.register_forward_hook(put_back) for module in _token_fusions(model)]
    try:
        queries = []
        for start in range(0, num_tokens, ROWS_PER_PASS):
            places = torch.arange(start, min(start + ROWS_PER_PASS, num_tokens))
            queries.append(ask(tokens.expand(len(places), -1, -1)))
        return torch.cat(queries)
    finally:
        for handle in handles:
            handle.remove()


def _token_fusions(model: Composer) -> list[GatedFusion | TextGuidedAttention]:
    modules = (model.gated_fusion, *model.fusions.values())
    return [module for module in modules if isinstance(module, (GatedFusion, TextGuidedAttention))]


@contextmanager
def _evaluating(model: Composer) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _open(image: Image.Image | Path | str) -> Image.Image:
    return image if isinstance(image, Image.Image) else read_image(Path(image))


def _box(model: Composer, picture: Image.Image) -> tuple[float, float, float, float]:
    assert model.tower is not None  # its tokens were just made
    return model.tower.box(picture.size)


def _array(values: Tensor) -> Float32[np.ndarray, ...]:
    return values.detach().float().cpu().numpy()


def _first(values: Tensor | None) -> Float32[np.ndarray, " tokens"] | None:
    return None if values is None else _array(values[0])


# -- the hooks ---------------------------------------------------------------------------------------------------------


@dataclass
class _Watcher:
    """Puts a ``Reading`` together from what the hooks of one pass tell; the last layer that looks completes it."""

    readings: deque[Reading]
    with_text: bool = False
    tokens: tuple[Tensor, Tensor] | None = None
    """The image tokens before the fusions and after them."""
    of_fusions: dict[str, Tensor] = field(default_factory=dict)
    attentions: list[Tensor] = field(default_factory=list)

    def register(self, model: Composer) -> list[torch.utils.hooks.RemovableHandle]:
        looking = [layer.crossattention.attention for layer in model.qformer.layers if layer.has_cross_attention]
        handles = [module.register_forward_hook(self.on_fusion) for module in _token_fusions(model)]
        handles.append(model.qformer.register_forward_pre_hook(self.on_start))
        handles += [module.register_forward_hook(self.on_look) for module in looking]
        handles.append(looking[-1].register_forward_hook(self.on_end))
        return handles

    @torch.no_grad()
    def on_fusion(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        before = self.tokens[0] if self.tokens else inputs[0].detach()
        self.tokens = (before, output.detach())
        with torch.autocast(output.device.type, enabled=False):
            if isinstance(module, GatedFusion):
                self.of_fusions["gate"] = module.gate_and_delta(*inputs)[0].mean(dim=-1)
            elif isinstance(module, TextGuidedAttention):
                self.of_fusions["text_attention"] = module.attention(inputs[0], module.summarise(*inputs[1:]))

    def on_start(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A pass begins; behind the queries come the words, where there are any."""
        self.with_text = len(inputs) > 1 and inputs[1] is not None
        self.attentions = []

    @torch.no_grad()
    def on_look(self, module: FewQueriesAttention, inputs: tuple[Tensor, ...], output: object) -> None:
        """A layer has looked at the picture: its weights are not kept, so they are computed here."""
        queries, states, *_ = inputs
        self.attentions.append(module.weights(queries.detach(), states.detach()).cpu())

    def on_end(self, *_: object) -> None:
        of_fusions: dict[str, Tensor] = {}
        if self.with_text and self.tokens is not None:
            before, after = (tokens.float() for tokens in self.tokens)
            change = (after - before).norm(dim=-1)
            of_fusions = {"change": change, "relative_change": change / before.norm(dim=-1).clamp(min=1e-12)}
            of_fusions = {name: values.float().cpu() for name, values in (of_fusions | self.of_fusions).items()}
            self.tokens, self.of_fusions = None, {}
        self.readings.append(Reading(self.with_text, torch.stack(self.attentions, dim=1), **of_fusions))
