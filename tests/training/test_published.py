"""The published runs of SPRC: rates, betas, losses, batches and choice of the best, as its training script has them.

Numbers are worked by hand from its settings (github.com/chunmeifeng/SPRC, ``src/blip_fine_tune_2.py`` and README).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from composir.data import load_splits
from composir.errors import ComposirError
from composir.losses import total_loss
from composir.models.backbones import BACKBONES, build
from composir.training import load_recipe, loop, train
from composir.training.batches import Batches
from composir.training.observer import Silent
from composir.training.optimizer import keep_temperature, make_optimizer

ROOT = Path(__file__).parents[2]
CIRR, FASHION_IQ = ROOT / "recipes/sprc-cirr.toml", ROOT / "recipes/sprc-fashioniq.toml"
GOLDEN = ROOT / "tests/golden"


@pytest.fixture
def any_precision():
    """Let a run have another precision than the ones before it: accelerate keeps to the first of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("file", [CIRR, FASHION_IQ], ids=["CIRR", "FashionIQ"])
def test_a_published_run_takes_nothing_from_the_backbone_s_own_recipe(file, backbone):
    assert load_recipe({"backbone": backbone}, file) == load_recipe({}, file).model_copy(update={"backbone": backbone})


@pytest.mark.parametrize(
    ("file", "published"),
    [
        (CIRR, {"dataset": "CIRR", "num_epochs": 50, "learning_rate": 1e-5, "select_by": "mean_of_seven"}),
        (FASHION_IQ, {"dataset": "FashionIQ", "num_epochs": 30, "learning_rate": 2e-5, "select_by": "mean_r10_r50"}),
    ],
)
def test_a_published_run_has_the_settings_of_the_readme_and_the_script(file, published):
    both = {
        "backbone": "pretrain", "fusion": "none", "batch_size": 128, "drop_last": True, "mixed_precision": "fp16",
        "transform": "targetpad", "target_ratio": 1.25, "validation_frequency": 1, "max_grad_norm": 0.0,
    }  # fmt: skip
    recipe = load_recipe({}, file)
    assert recipe.model_dump(include={*both, *published}) == {**both, **published}


@pytest.mark.parametrize("dataset", ["CIRR", "FashionIQ"])
def test_the_gated_fusion_commands_keep_their_flags_and_the_gate(dataset):
    flags = {"num_epochs": 10, "batch_size": 64, "learning_rate": 1e-5, "loss_align": 0.4, "loss_rtc": 0.4}
    composirs = {"fusion": "gate", "drop_last": False, "schedule_epochs": 0, "mixed_precision": "auto", "select_by": ""}
    recipe = load_recipe({"dataset": dataset, "backbone": "pretrain", **flags})
    assert recipe.model_dump(include={*flags, *composirs}) == {**flags, **composirs}


# -- the schedule ------------------------------------------------------------------------------------------------------

CIRR_STEPS, FASHION_IQ_STEPS = 28_225 // 128, (5_985 + 5_988 + 6_027) // 128  # 220 and 140: the rest is left out

# OneCycle between two rates, or betas, a and b: b + (a - b) (1 + cos(pi p)) / 2 at the share p of the way.
RATES_AND_BETAS = {
    # 80 x 220 = 17,600 steps planned, 50 x 220 = 11,000 taken. Up over 0.02 x 17,600 - 1 = 351, down over 17,248.
    "CIRR": (
        CIRR,
        CIRR_STEPS,
        {
            0: (4e-7, 0.95),  # 1e-5 / 25
            117: (2.8e-6, 0.925),  # a third of the way up: 1e-5 - 0.75 x 9.6e-6
            234: (7.6e-6, 0.875),  # two thirds: 1e-5 - 0.25 x 9.6e-6
            351: (1e-5, 0.85),
            8_975: (5.00002e-6, 0.9),  # half of the way down to 4e-7 / 10,000
            10_999: (3.19821e-6, 0.918018),  # the last: p = 121 / 196, (1 + cos 111.122 degrees) / 2 = 0.319818
        },
    ),
    # 30 x 140 = 4,200 steps planned and taken. Up over 0.05 x 4,200 - 1 = 209, down over 3,990.
    "FashionIQ": (
        FASHION_IQ,
        FASHION_IQ_STEPS,
        {
            0: (2e-7, 0.95),  # 2e-5 / 100
            209: (2e-5, 0.85),
            1_539: (1.5000005e-5, 0.875),  # a third of the way down to 2e-7 / 10,000
            2_204: (1.000001e-5, 0.9),
            2_869: (5.000015e-6, 0.925),
            4_199: (2e-11, 0.95),
        },
    ),
}


@pytest.mark.parametrize(("file", "steps_per_epoch", "by_hand"), RATES_AND_BETAS.values(), ids=RATES_AND_BETAS)
def test_rates_and_betas_of_a_whole_run_are_those_worked_by_hand(file, steps_per_epoch, by_hand):
    recipe = load_recipe({"backbone": "tiny"}, file)
    model = build("tiny", fusion=recipe.fusion)
    num_steps = recipe.num_epochs * steps_per_epoch
    optimizer, schedule = make_optimizer(model, recipe, num_steps=num_steps, steps_per_epoch=steps_per_epoch)
    (group,) = optimizer.param_groups
    assert {id(weight) for weight in group["params"]} == {id(w) for w in model.parameters() if w.requires_grad}
    assert (group["weight_decay"], group["eps"]) == (0.05, 1e-7)
    seen = {}
    for step in range(num_steps):
        if step in by_hand:
            seen[step] = (group["lr"], group["betas"][0])
        assert group["betas"][1] == 0.98
        optimizer.step()  # no weight has a gradient
        schedule.step()
    for step, (rate, beta) in by_hand.items():
        assert seen[step] == (pytest.approx(rate, rel=2e-6), pytest.approx(beta, abs=1e-6)), step


@pytest.mark.parametrize(("num_triplets", "batches"), [(28_225, 220), (18_000, 140), (256, 2), (100, 1)])
def test_an_epoch_s_last_batch_is_left_out_where_it_is_smaller(monkeypatch, num_triplets, batches):
    monkeypatch.setattr(Batches, "_read", lambda *_: None)
    recipe = load_recipe({"backbone": "tiny"}, CIRR)
    made = Batches(recipe, [], build("tiny"), None)
    made.triplets = list(range(num_triplets))
    sizes = [len(batch) for batch, _ in made.of_epoch(0, 0)]
    assert sizes == [min(128, num_triplets)] * batches
    assert made.num_batches == batches
    made.recipe = recipe.model_copy(update={"drop_last": False})
    assert made.num_batches == len(list(made.of_epoch(0, 0))) == math.ceil(num_triplets / 128)


# -- the best checkpoint -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("select_by", "best"), [("mean_of_seven", [True, False]), ("", [True, True])])
def test_the_best_checkpoint_is_the_best_by_the_figure_that_is_named(
    shapes_root, tmp_path, monkeypatch, select_by, best
):
    """The second validation is better by the primary figure, and worse by the mean of all seven."""
    figures = iter([{"mean_r5_rs1": 0.5, "mean_of_seven": 0.6}, {"mean_r5_rs1": 0.6, "mean_of_seven": 0.5}])
    real = loop.evaluate

    def evaluate(*given, **named):
        result = real(*given, **named)
        return dataclasses.replace(result, metrics={**result.metrics, **next(figures)})

    class Listener(Silent):
        def on_validation(self, epoch, result, is_best):
            told.append(is_best)

    told = []
    monkeypatch.setattr(loop, "evaluate", evaluate)
    settings = {"backbone": "tiny", "data_root": str(shapes_root), "output_dir": str(tmp_path), "save_training": False}
    result = train(load_recipe({**settings, "select_by": select_by}), observer=Listener())
    assert told == best
    assert result.metrics["mean_r5_rs1"] == (0.6 if best[1] else 0.5)


@pytest.mark.parametrize(
    ("dataset", "select_by", "words"),
    [
        ("CIRR", "arithmetic_mean", "select_by = 'arithmetic_mean': expected one of recall_at_1, "),
        ("FashionIQ", "mean_of_seven", "expected one of recall_at_10, recall_at_50, mean_r10_r50"),
        ("own", "recall_subset_at_1", "expected one of recall_at_1, recall_at_5, recall_at_10, recall_at_50; fix"),
    ],
)
def test_a_figure_that_the_data_set_does_not_surely_have_is_refused(dataset, select_by, words):
    with pytest.raises(ComposirError) as error:
        load_recipe({"backbone": "tiny", "dataset": dataset, "select_by": select_by})
    assert words in str(error.value)


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "total"), [(CIRR, 2.0 + 0.4 * 1.0 + 0.4 * 0.5), (FASHION_IQ, 2.0 + 1.0 + 0.5)])
def test_the_total_is_weighted_on_cirr_and_plain_on_fashioniq(file, total):
    losses = {"loss_itc": 2.0, "loss_rtc": 1.0, "loss_align": 0.5}
    weights = load_recipe({}, file).loss_weights
    assert total_loss({name: torch.tensor(loss) for name, loss in losses.items()}, weights).item() == pytest.approx(
        total
    )


def test_twenty_steps_of_the_loop_s_optimiser_follow_the_published_curve(golden, golden_model):
    data, model = golden("train_batches"), golden_model().train()
    curve = json.loads((GOLDEN / "train_curve.json").read_text())
    recipe = load_recipe({"backbone": "tiny", "learning_rate": 1e-3, "schedule_epochs": 8}, CIRR)
    optimizer, schedule = make_optimizer(model, recipe, num_steps=20, steps_per_epoch=5)
    names = ("ref_embeds", "target_embeds", "input_ids", "attention_mask")
    assert len(curve) == 20
    for step, expected in enumerate(curve):
        losses = model.training_losses(*(data[f"batch{step % 4}.{name}"] for name in names))
        total = total_loss(losses, recipe.loss_weights)
        optimizer.zero_grad()
        total.backward()
        before = model.temperature.detach().clone()
        optimizer.step()
        schedule.step()
        keep_temperature(model.temperature, before)
        for name, loss in {**losses, "total": total}.items():
            assert loss.item() == pytest.approx(expected[name], abs=1e-5), (step, name)


@pytest.mark.usefixtures("any_precision")
def test_twenty_steps_of_the_published_command_equal_torch_s_own_optimiser(run, shapes_root, tmp_path):
    """Two batches of ten an epoch, four of the 24 triplets left out, the rate of the 80 epochs that are planned."""
    code, printed, told = run(
        "train", "--config", CIRR, "--data-root", shapes_root, "--backbone", "tiny", "--batch-size", 10,
        "--max-steps", 20, "--set", "validation_frequency=50", "--learning-rate", 1e-3,
        "--output-dir", tmp_path, "--json",
    )  # fmt: skip
    assert code == 0, told
    assert "fp16 is for GPUs: here the computing is done in float32" in " ".join(told.split())
    folder = Path(json.loads(printed)["run"])
    recipe = load_recipe({}, folder / "recipe.toml")

    torch.manual_seed(recipe.seed)
    model = build("tiny", fusion="none").train()
    batches = Batches(recipe, load_splits("CIRR", shapes_root, "train"), model, model.tokens)
    optimizer = torch.optim.AdamW(
        [{"params": [weight for weight in model.parameters() if weight.requires_grad], "lr": 1e-3,
          "betas": (0.9, 0.98), "eps": 1e-7, "weight_decay": 0.05}]
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, pct_start=1 / 50, steps_per_epoch=24 // 10, epochs=80
    )
    means = []
    for epoch in range(10):
        totals = []
        for batch, inputs in batches.of_epoch(epoch, 0):
            assert len(batch) == 10
            losses = model.training_losses(*inputs[:4])
            total = losses["loss_itc"] + 0.4 * losses["loss_rtc"] + 0.4 * losses["loss_align"]
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
            totals.append(total.item())
        means.append(sum(totals) / 2)
    with (folder / "training_log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["total"]) for row in rows] == pytest.approx(means, abs=2e-6)
    assert means[-1] < means[0]
    trained = load_file(folder / "last/model/model.safetensors")
    for name, weight in model.own_weights().items():
        torch.testing.assert_close(trained[name], weight, atol=2e-6, rtol=1e-5, msg=lambda text, name=name: name + text)
