"""The optimiser and its schedule: which weights learn at which rate, and how the rates go up and down."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from composir.models.backbones import BACKBONES
from composir.models.fusion import WEIGHTS as FUSION_WEIGHTS
from composir.training.recipe import Recipe

TEMPERATURE_RANGE = (0.01, 0.5)
"""Kept to after every step: logits are never scaled by more than 100, as in CLIP (Radford et al., 2021)."""


def make_optimizer(
    model: nn.Module, recipe: Recipe, *, num_steps: int, steps_per_epoch: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    """Return AdamW, a group of weights for each rate, and the one cycle that the rates go through.

    Rates are by kind of weight: a fusion's alpha, a fusion's other weights, pretrained ones, those that start at
    random. The cycle is as long as the run, or ``schedule_epochs``.
    """
    new_parts = BACKBONES[recipe.backbone].new_parts if recipe.backbone in BACKBONES else ("",)  # a head is all new
    parameters_by_rate: dict[float, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = recipe.learning_rate
        of_fusion = name.startswith(FUSION_WEIGHTS)
        if of_fusion and name.endswith(".alpha") and recipe.alpha_learning_rate:
            rate = recipe.alpha_learning_rate
        elif of_fusion and recipe.gate_learning_rate:
            rate = recipe.gate_learning_rate
        elif recipe.pretrained_learning_rate and not any(part in name for part in new_parts):
            rate = recipe.pretrained_learning_rate
        parameters_by_rate.setdefault(rate, []).append(parameter)
    # On MPS the fused kernel takes no notice of a gradient scaler: neither of its scale nor of an overflow
    # (pytorch/pytorch pull request 186360).
    ignores_scaler = next(model.parameters()).device.type == "mps" and recipe.mixed_precision == "fp16"
    optimizer = torch.optim.AdamW(
        [{"params": parameters, "lr": rate} for rate, parameters in parameters_by_rate.items()],
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        fused=not ignores_scaler,
    )
    total_steps = max(num_steps, recipe.schedule_epochs * steps_per_epoch, 2)  # a cycle of one step is all end
    rises_for_no_step = recipe.pct_start * total_steps == 1  # torch then divides by zero
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=list(parameters_by_rate),
        total_steps=total_steps,
        pct_start=recipe.pct_start * (1 + 1e-9 * rises_for_no_step),
        div_factor=recipe.div_factor,
    )
    return optimizer, schedule


@torch.no_grad()
def keep_temperature(temperature: Tensor, before: Tensor) -> None:
    """Keep what a step made of the temperature in ``TEMPERATURE_RANGE``; ``before`` is what it was.

    One that was outside, as pretrained weights may bring it, stays where it is or comes nearer.
    """
    lowest, highest = TEMPERATURE_RANGE
    temperature.clamp_(before.clamp(max=lowest), before.clamp(min=highest))
