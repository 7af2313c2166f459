"""What ``last/`` holds: everything that a run needs to go on as if unbroken."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator

from composir.errors import ComposirError
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.training import load_recipe
from composir.training.optimizer import make_optimizer
from composir.training.state import State, load_last, save_last


@pytest.fixture
def make_parts():
    """Return the maker of what a run keeps, under a scaler of gradients as fp16 has one on a GPU."""

    def make(seed: int):
        torch.manual_seed(seed)
        recipe = load_recipe({"backbone": "tiny", "data_root": ".", "num_epochs": 3, "batch_size": 2})
        model = build("tiny")
        optimizer, schedule = make_optimizer(model, recipe, num_steps=20, steps_per_epoch=2)
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3)
        parts = {"model": model, "accelerator": accelerator, "optimizer": optimizer, "schedule": schedule}
        return recipe, parts

    return make


def save(run, state, recipe, parts):
    model, rest = parts["model"], {name: part for name, part in parts.items() if name != "model"}
    files = {"recipe.toml": recipe.to_toml().encode()}
    save_last(run, state, save_model=lambda folder: save_pretrained(model, folder, extra_files=files), **rest)


def take_step(parts, *, breaks=False):
    """Take a step on a loss of all weights; ``breaks`` makes its gradients infinite."""
    scaler = parts["accelerator"].scaler
    loss = sum(weight.square().sum() for weight in parts["model"].parameters() if weight.requires_grad)
    scaler.scale(loss * (float("inf") if breaks else 1.0)).backward()
    scaler.step(parts["optimizer"])
    scaler.update()
    parts["optimizer"].zero_grad()
    parts["schedule"].step()


def test_a_resumed_run_has_the_scaler_the_optimiser_the_schedule_and_the_chance_of_then(make_parts, tmp_path):
    recipe, unbroken = make_parts(0)
    for breaks in (False, False, False, True, True, False):  # 256 grows after three good steps, and is halved twice
        take_step(unbroken, breaks=breaks)
    assert unbroken["accelerator"].scaler.get_scale() == 128.0
    state = State(epoch=1, batch=1, step=3, sums={"total": 1.5}, best=0.25, best_metrics={"r": 0.25}, rows=[{"a": "b"}])
    save(tmp_path, state, recipe, unbroken)
    then = torch.rand(3)

    _, resumed = make_parts(1)
    assert load_last(tmp_path, num_triplets=4, **resumed) == state
    assert torch.equal(torch.rand(3), then)
    assert resumed["accelerator"].scaler.get_scale() == 128.0
    for parts in (unbroken, resumed):
        take_step(parts)
        take_step(parts)  # the third good one in a row
        assert parts["accelerator"].scaler.get_scale() == 256.0
    assert resumed["accelerator"].scaler.state_dict() == unbroken["accelerator"].scaler.state_dict()
    assert resumed["schedule"].get_last_lr() == unbroken["schedule"].get_last_lr()
    weights = resumed["model"].own_weights()
    assert all(torch.equal(weights[name], weight) for name, weight in unbroken["model"].own_weights().items())


@pytest.mark.parametrize(("longer", "goes_on"), [(0, True), (1, True), (2, False)])
def test_a_run_goes_on_with_its_own_schedule_which_was_a_step_longer_once(make_parts, tmp_path, longer, goes_on):
    recipe, parts = make_parts(0)
    parts["schedule"].total_steps += longer
    save(tmp_path, State(), recipe, parts)
    _, resumed = make_parts(1)
    if goes_on:
        load_last(tmp_path, num_triplets=4, **resumed)
        assert resumed["schedule"].total_steps == 20 + longer
        return
    with pytest.raises(ComposirError, match="was planned for 22 steps, and by its recipe 4 triplets are 20"):
        load_last(tmp_path, num_triplets=4, **resumed)
