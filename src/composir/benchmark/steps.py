"""Training steps on synthetic batches: as this package takes them, and as published code does, part by part."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from composir.errors import ComposirError
from composir.losses import alignment_loss, contrastive_loss
from composir.machine import default_device, keep_freed_memory, to_device
from composir.models.backbones import BACKBONES, build
from composir.models.composer import Composer
from composir.models.config import ComposerConfig
from composir.models.fusion import NONE
from composir.models.qformer import Affine, FewQueriesAttention, Heads, Layout, QFormer
from composir.progress import Progress
from composir.scoring import similarity

REAL = "real"
REAL_SIZES: dict[str, Any] = {
    "token_width": 1408,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30_523,
    "ln_vision": True,
}
"""The Q-Former that SPRC trains on EVA ViT-g's tokens, and the norm's weights between the two."""
NUM_TOKENS = 257
PADDED_WORDS = 32
"""To which published code pads every sentence."""
MEAN_LENGTH, STD_LENGTH, SHORTEST = 14, 4, 6
"""Of the synthetic sentences, [CLS] and [SEP] included: about those of CIRR, whose mean is 11.3 words."""
RTC_WEIGHT, ALIGN_WEIGHT = 0.4, 0.4
DROPOUT = 0.1
"""BERT's, and so SPRC's."""
LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY = 1e-5, (0.9, 0.98), 1e-7, 0.05


@dataclass(frozen=True, slots=True)
class Way:
    """How a step is taken: each field is a part of the published way, and off what this package does instead."""

    padded: bool = False
    """Every sentence has 32 positions. Else as many as the batch's longest."""
    library: str = ""
    """``eager`` or ``sdpa``: the library's whole pass with this attention, every position of every layer. Else this
    package's, which computes of the last layer what is read."""
    all_keys: bool = False
    """All image tokens get keys and values. Else few queries look at them without (``FewQueriesAttention``)."""
    padding_rows: bool = False
    """The padding of shorter sentences is computed like words. Else it is left out."""
    separate_passes: bool = False
    """Four passes, each embedding its sentence. Else passes 2 and 4 as one, and one embedding."""
    per_tensor_optimizer: bool = False
    """AdamW goes tensor by tensor. Else it is fused."""
    frozen_norm: bool = False
    """``ln_vision`` stays as it is. Else it is trained, as published."""
    dropout: bool = False
    """Hidden states and attention weights are dropped out, as published. Else not, so that ways can be compared."""
    bf16: bool = False
    """Autocast to bf16. Else fp32."""
    compiled: bool = False
    """The losses go through ``torch.compile``."""


PUBLISHED, OURS = "published", "no padding"


def _ladder() -> dict[str, Way]:
    changes: dict[str, dict[str, Any]] = {
        "longest sentence": {"padded": False},
        "sdpa": {"library": "sdpa"},
        "fused optimizer": {"per_tensor_optimizer": False},
        "last layer where read": {"library": ""},
        "two passes as one": {"separate_passes": False},
        "few queries": {"all_keys": False},
        OURS: {"padding_rows": False},
    }
    ways = {
        PUBLISHED: Way(
            padded=True,
            library="eager",
            all_keys=True,
            padding_rows=True,
            separate_passes=True,
            per_tensor_optimizer=True,
        )
    }
    for name, change in changes.items():
        ways[name] = replace(list(ways.values())[-1], **change)
    return ways


LADDER = _ladder()
"""From the published way to this package's, one part a rung."""


class LibraryQFormer(nn.Module):
    """Hugging Face's Q-Former with the parameters of ours, not copies, called like ours: all positions of all layers
    are computed."""

    def __init__(self, ours: QFormer, config: ComposerConfig, attention: str) -> None:
        from transformers import Blip2QFormerModel  # noqa: PLC0415 (seconds, and only this comparison needs it)

        super().__init__()
        self.num_query_tokens = config.num_query_tokens
        try:
            with torch.device("meta"):
                self.library = Blip2QFormerModel(library_config(config, attention)).train()
        except ValueError as error:
            raise ComposirError(
                f"the library's Q-Former has no {attention} in this version of transformers",
                expected="transformers 5.17 or newer, which this comparison needs alone",
                fix="pip install 'transformers>=5.17'",
            ) from error
        for name, parameter in ours.named_parameters():
            part, _, leaf = name.rpartition(".")
            setattr(self.library.get_submodule(part), leaf, parameter)
        self.layernorm = self.library.layernorm

    def forward(
        self,
        queries: Tensor,
        words: Tensor | None = None,
        mask: Tensor | None = None,
        image_tokens: Tensor | None = None,
        affine: Affine | None = None,
        *,
        at: slice,
    ) -> Tensor:
        """Return what ``QFormer`` returns."""
        if image_tokens is not None and affine is not None:
            image_tokens = affine(image_tokens)
        if words is not None and mask is not None:
            queries = torch.cat([queries.expand(len(words), -1, -1), words], dim=1)
            mask = torch.cat([mask.new_ones(len(words), queries.shape[1] - words.shape[1]), mask], dim=1)
            mask = to_device(mask, queries.device)
        return self.library(
            query_embeds=queries,
            query_length=0 if image_tokens is None else self.num_query_tokens,
            attention_mask=mask,
            encoder_hidden_states=image_tokens,
        ).last_hidden_state[:, at]


class LibraryAttention(nn.Module):
    """Hugging Face's attention with the projections of ours, called like ours: every state has a key and a value."""

    def __init__(self, ours: FewQueriesAttention, config: ComposerConfig) -> None:
        from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention  # noqa: PLC0415

        super().__init__()
        with torch.device("meta"):
            self.library = Blip2QFormerMultiHeadAttention(library_config(config, "sdpa")).train()
        self.library.query, self.library.key, self.library.value = ours.query, ours.key, ours.value

    def forward(
        self, queries: Tensor, states: Tensor, attend: Tensor | None = None, affine: Affine | None = None
    ) -> Tensor:
        """Return what ``FewQueriesAttention`` returns."""
        if affine is not None:
            states = affine(states)
        return self.library(queries, encoder_hidden_states=states, encoder_attention_mask=attend)[0]


def library_config(config: ComposerConfig, attention: str) -> Any:
    """Return Hugging Face's ``Blip2QFormerConfig`` of a model's sizes; ``attention`` is ``eager`` or ``sdpa``."""
    from transformers import Blip2QFormerConfig  # noqa: PLC0415

    sizes = Blip2QFormerConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        max_position_embeddings=config.max_position_embeddings,
        cross_attention_frequency=config.cross_attention_frequency,
        encoder_hidden_size=config.hidden_size if config.num_adapted_tokens else config.token_width,
        use_qformer_text_input=True,
    )
    sizes._attn_implementation = attention
    return sizes


def layout_with_padding(self: QFormer, mask: Tensor) -> Layout:
    """Return what ``QFormer._layout`` returns, but padding has rows, too; attention does not see it all the same."""
    whole, real = (Layout.of(self.num_query_tokens, one) for one in (torch.ones_like(mask), mask))
    return replace(whole, mask=real.mask, is_padded=real.is_padded)


@dataclass(frozen=True)
class Batch:
    """A synthetic batch: the tower's tokens in fp16, sentences padded to 32."""

    reference: Tensor
    target: Tensor
    input_ids: Tensor
    attention_mask: Tensor

    def inputs(self, *, padded: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what a model takes in, padded to 32 words or to the longest sentence."""
        length = PADDED_WORDS if padded else int(self.attention_mask.sum(dim=1).max())
        return self.reference, self.target, self.input_ids[:, :length], self.attention_mask[:, :length]


def make_model(backbone: str, *, fusion: str = NONE, token_width: int | None = None, dropout: float = 0.0) -> Composer:
    """Return this package's model without a tower, in training; the same weights every time.

    ``backbone`` is a key of ``BACKBONES`` or ``real``: BLIP-2's sizes with random weights. ``token_width`` replaces the
    width of real's image tokens.
    """
    torch.manual_seed(0)
    if backbone == REAL:
        sizes: dict[str, Any] = {**REAL_SIZES, "token_width": token_width or REAL_SIZES["token_width"]}
        model = Composer(ComposerConfig(**sizes, fusion=fusion, dropout=dropout))
        keep_freed_memory()  # as build does
    else:
        model = build(backbone, fusion=fusion, dropout=dropout)
        model.tower = None
    return model.train()


def in_way(model: Composer, way: Way) -> Composer:
    """Return a model that holds the same parameters, not copies, and computes as ``way`` says."""
    other = copy.deepcopy(model, memo={id(parameter): parameter for parameter in model.parameters()})
    ours = other.qformer
    if way.frozen_norm and other.ln_vision is not None:
        for name, parameter in list(other.ln_vision.named_parameters()):
            delattr(other.ln_vision, name)
            other.ln_vision.register_buffer(name, parameter.detach())
    if way.dropout:
        other.config = other.config.model_copy(update={"dropout": DROPOUT})
        for module in ours.modules():
            if isinstance(module, nn.Dropout):
                module.p = DROPOUT
            elif isinstance(module, Heads):
                module.dropout = DROPOUT
    if way.all_keys:
        for name, few in list(ours.named_modules()):
            if isinstance(few, FewQueriesAttention):
                ours.set_submodule(name, LibraryAttention(few, other.config))
    if way.padding_rows:
        vars(ours)["_layout"] = MethodType(layout_with_padding, ours)
    if way.library:
        vars(other)["_modules"]["qformer"] = LibraryQFormer(model.qformer, other.config, way.library)
    return other


def make_batch(backbone: str, size: int, *, seed: int = 0, token_width: int | None = None) -> Batch:
    """Return a random batch of as many triplets, its sentences about as long as CIRR's."""
    config = ComposerConfig(**REAL_SIZES, fusion=NONE) if backbone == REAL else BACKBONES[backbone].config("")
    num_tokens = {REAL: NUM_TOKENS, "tiny": 9}.get(backbone, config.num_adapted_tokens)
    chance = torch.Generator().manual_seed(seed)
    shape = (size, num_tokens, token_width or config.token_width)
    reference, target = (torch.randn(shape, generator=chance).half() for _ in range(2))
    lengths = (MEAN_LENGTH + STD_LENGTH * torch.randn(size, generator=chance)).round().clamp(SHORTEST, PADDED_WORDS)
    mask = (torch.arange(PADDED_WORDS) < lengths[:, None]).long()
    ids = torch.randint(4, config.vocab_size, mask.shape, generator=chance) * mask
    return Batch(reference, target, ids, mask)


def losses_of(
    model: Composer, inputs: tuple[Tensor, Tensor, Tensor, Tensor], way: Way, **settings: Any
) -> dict[str, Tensor]:
    """Return SPRC's three losses; pass by pass where ``way`` says so, else with ``training_losses``' settings."""
    if not way.separate_passes:
        return model.training_losses(*inputs, **settings)
    reference, target, input_ids, mask = inputs
    fused = model.fuse(reference, input_ids, mask)
    query = model.compose(fused, input_ids, mask)
    targets = model.encode_target(target)
    prompt = model.encode_prompt(input_ids, mask)
    return {
        "loss_itc": contrastive_loss(similarity(query, targets) / model.temperature),
        "loss_rtc": contrastive_loss(similarity(prompt, targets) / model.temperature),
        "loss_align": alignment_loss(fused, model.prompt_tokens),
    }


def make_optimizer(model: Composer, *, per_tensor: bool) -> torch.optim.Optimizer:
    """Return AdamW with SPRC's settings over what is trained: tensor by tensor, or fused."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    speed = {"fused": False, "foreach": False} if per_tensor else {"fused": True}
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, **speed)


class Step:
    """A model's training step: called with a batch it takes one and returns the total loss before it.

    Settings go to ``training_losses``; with ``local`` its loss counts as much as the contrastive one.
    """

    def __init__(
        self, model: Composer, way: Way, optimizer: torch.optim.Optimizer | None = None, **settings: Any
    ) -> None:
        self.model, self.way, self.settings = in_way(model, way), way, settings
        self.parameters = dict(model.named_parameters())  # by this package's names, in whatever way they are used
        self.losses_of = torch.compile(losses_of) if way.compiled else losses_of
        self.optimizer = optimizer or make_optimizer(model, per_tensor=way.per_tensor_optimizer)

    def __call__(self, batch: Batch) -> float:
        """Take a step."""
        total = self.backward(batch)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return total.item()

    def backward(self, batch: Batch) -> Tensor:
        """Return the total loss and leave the gradients."""
        device = self.model.device
        *tensors, mask = batch.inputs(padded=self.way.padded)  # the mask stays on the CPU, as in training
        reference, target, input_ids = (tensor.to(device) for tensor in tensors)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.way.bf16):
            losses = self.losses_of(self.model, (reference, target, input_ids, mask), self.way, **self.settings)
            total = losses["loss_itc"] + RTC_WEIGHT * losses["loss_rtc"] + ALIGN_WEIGHT * losses["loss_align"]
            total = total + losses.get("loss_local", 0.0)
        total.backward()
        return total.detach()

    def gradients(self, batch: Batch) -> tuple[float, dict[str, Tensor], int]:
        """Return the total loss, the gradients by name and the operations of the matrix products; nothing is learned.

        Without a gradient means zero: of the keys' biases, which no softmax sees.
        """
        with FlopCounterMode(display=False) as counter:
            total = self.backward(batch).item()
        gradients = {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in self.parameters.items()
            if parameter.requires_grad
        }
        self.optimizer.zero_grad()
        return total, gradients, counter.get_total_flops()


def time_of(work: Callable[[], object], device: torch.device, *, processor_time: bool) -> float:
    """Return the seconds of a piece of work: on the wall, or those that this process had of all cores."""
    clock = time.process_time if processor_time else time.perf_counter
    synchronize = torch.get_device_module(device).synchronize
    synchronize()
    start = clock()
    work()
    synchronize()
    return clock() - start


def in_turns(
    steps: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    repeats: int,
    processor_time: bool,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of every step, ``repeats`` times one after the other, so that all meet the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats):
        for place, (name, step) in enumerate(steps.items()):
            if progress is not None:
                progress(f"step: {name}", number * len(steps) + place, repeats * len(steps))
            seconds[name].append(time_of(step, device, processor_time=processor_time))
    return seconds


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the ratios of seconds that were measured side by side."""
    return median(one / other for one, other in zip(over, under, strict=True))


def gpu_memory_of_steps(
    backbone: str, batch_size: int, way: Way, fusion: str = NONE, token_width: int | None = None
) -> int:
    """Return the most memory of the GPU that two steps take, or 0 without one; the second has the optimiser's state."""
    device = default_device()
    step = Step(make_model(backbone, fusion=fusion, token_width=token_width).to(device), way)
    batch = make_batch(backbone, batch_size, token_width=token_width)
    for _ in range(2):
        step(batch)
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
