"""Training on a set of a dozen pictures, in this process; test_processes.py has real ones, which are killed."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from composir.data import load_splits
from composir.errors import ComposirError, ProblemsError
from composir.evaluation import load_rankings, measure
from composir.models.checkpoint import from_pretrained, weights_hash
from composir.models.composer import Composer
from composir.models.qformer import SelfAttention
from composir.token_cache import TokenPlace
from composir.training import composer, load_recipe, loop, memory, read_toml, resume_recipe, runs, train, validate
from composir.training.guards import make_accelerator
from composir.training.log import NUM_PROBE_TRIPLETS
from composir.training.memory import StepMemory
from composir.training.observer import Silent
from composir.training.optimizer import TEMPERATURE_RANGE


@pytest.fixture
def no_step_ahead(monkeypatch):
    """Measure no step before the first one: it takes passes of its own."""
    monkeypatch.setattr(memory, "measure_step", lambda *_, **__: StepMemory(0, 0))


@pytest.fixture
def make_recipe(shapes_root, tmp_path):
    def make(**settings):
        return load_recipe(
            {
                "backbone": "tiny",
                "data_root": str(shapes_root),
                "output_dir": str(tmp_path / "models"),
                "num_epochs": 2,
                "batch_size": 5,
                **settings,
            }
        )

    return make


def weights_of(run):
    return load_file(run / "last/model/model.safetensors")


def assert_same_weights(one, other):
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def read_log(run):
    with (run / "training_log.csv").open() as file:
        return list(csv.DictReader(file))


def kept_losses(run):
    return torch.load(run / "last/training.pt", weights_only=True)["state"]["losses"]


def test_a_run_leaves_what_it_promises(make_recipe):
    recipe = make_recipe(validation_frequency=2, num_epochs=3)
    result = train(recipe)
    run = result.run
    assert run.name.startswith("clip_finetuned_on_cirr_blip2_cir_align_prompt_")
    assert {"recipe.toml", "training_log.csv", "curves.png", "last", "best"} <= {path.name for path in run.iterdir()}
    assert validate(read_toml(run / "recipe.toml")) == recipe
    assert from_pretrained(run / "best").trained_on == "trained on CIRR"
    rows = read_log(run)
    assert list(rows[1]) == [
        "epoch", "loss_itc", "loss_rtc", "loss_align", "total", "lr", "alpha", "mean_gate", "gate_entropy",
        "relative_change", "grad_fusion", "grad_qformer", "grad_heads", "grad_queries", "grad_words",
        "grad_temperature", "R@1", "R@5", "R@10", "R@50", "R_s@1", "R_s@2", "R_s@3", "mean(R@5+R_s@1)",
        "mean of all seven",
    ]  # fmt: skip
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [bool(row["R@1"]) for row in rows] == [False, True, True]  # every second epoch, and the last
    for row in rows:
        parts = float(row["loss_itc"]) + 0.4 * float(row["loss_rtc"]) + 0.4 * float(row["loss_align"])
        assert float(row["total"]) == pytest.approx(parts, abs=1e-5)
    assert 100 * result.metrics["recall_at_5"] == pytest.approx(float(rows[-1]["R@5"]), abs=0.005) or rows[1]["R@5"]
    events = EventAccumulator(str(run)).Reload().Tags()["scalars"]
    assert {"train/loss_itc", "train/total", "val/recall_at_1", "val/mean_r5_rs1", "gate/alpha", "gate/mean"} <= set(
        events
    )
    best = from_pretrained(result.best)
    assert best.gated_fusion is not None
    assert "R@5" in (result.best / "README.md").read_text()
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    losses = kept_losses(run)
    assert losses.keys() == {"step", "loss_itc", "loss_rtc", "loss_align", "total"}
    steps = losses["step"]
    assert steps == list(range(1, len(steps) + 1))
    of_first = losses["total"][: len(steps) // 3]  # the batches of the first of three epochs
    assert sum(of_first) / len(of_first) == pytest.approx(float(rows[0]["total"]), abs=1e-6)


def test_the_gate_off_has_no_gate_columns(make_recipe):
    result = train(make_recipe(gated_fusion=False, num_epochs=1))
    columns = set(read_log(result.run)[0])
    assert not {"alpha", "mean_gate", "gate_entropy", "relative_change", "grad_fusion"} & columns
    assert "grad_qformer" in columns
    assert from_pretrained(result.best).gated_fusion is None


def test_another_fusion_is_trained_at_the_fusions_rate_and_saved(make_recipe):
    still, moved = (
        from_pretrained(train(make_recipe(fusion="late", num_epochs=1, gate_learning_rate=rate)).best)
        for rate in (1e-12, 1e-2)
    )
    assert not still.fusions["late"].gate[2].weight.abs().max() > 1e-9
    assert moved.fusions["late"].gate[2].weight.abs().max() > 1e-4


def test_gate_entropy_and_change_are_those_of_the_probe(make_recipe):
    run = train(make_recipe(num_epochs=1)).run
    model, (split,) = from_pretrained(run / "last/model"), loop.load_splits("CIRR", make_recipe().data_root, "train")
    probe = split.queries[:NUM_PROBE_TRIPLETS]
    tokens = model.tokens([split.images[query.reference] for query in probe])
    ids, mask = model.tokenize([query.text for query in probe])
    with torch.no_grad():
        words = model.qformer.layernorm(model.text_embeddings(ids))
        gate, delta = model.gated_fusion.gate_and_delta(tokens.float(), words, mask)
        change = (model.gated_fusion.alpha * gate * delta[:, None]).norm(dim=-1) / tokens.float().norm(dim=-1)
    gate = gate.double().numpy()
    entropy = -(gate * np.log2(gate) + (1 - gate) * np.log2(1 - gate)).mean()
    (row,) = read_log(run)
    assert float(row["gate_entropy"]) == pytest.approx(entropy, abs=2e-6)
    assert float(row["relative_change"]) == pytest.approx(change.mean().item(), abs=2e-6)


def test_gradient_norms_are_by_part_before_clipping_and_means_over_steps(make_recipe, monkeypatch):
    measure, seen = loop.gradient_norms, []

    def remember(parts, scale):
        norms = measure(parts, scale)
        for part, parameters in parts.items():
            squares = [parameter.grad.square().sum() for parameter in parameters if parameter.grad is not None]
            assert norms[part].item() == pytest.approx(sum(squares).sqrt().item(), rel=1e-5)
        seen.append(norms)
        return norms

    monkeypatch.setattr(loop, "gradient_norms", remember)
    (row,) = read_log(train(make_recipe(num_epochs=1, gradient_accumulation=2, max_grad_norm=1e-4)).run)
    assert len(seen) == 3  # five batches by twos
    for part in seen[0]:
        assert float(row[f"grad_{part}"]) == pytest.approx(sum(norms[part].item() for norms in seen) / 3, rel=1e-3)
    assert float(row["grad_qformer"]) > 1e-3


def test_the_batches_of_a_step_weigh_alike_also_where_an_epoch_ends_with_fewer(make_recipe, monkeypatch):
    """Five batches by threes are a step of three and one of two: thirds, then halves."""
    weights, backward = [], Accelerator.backward

    def remember(self, loss, **options):
        weights.append(loss.item())
        backward(self, loss, **options)

    monkeypatch.setattr(Accelerator, "backward", remember)
    told = []
    monkeypatch.setattr(composer.RunLog, "record", lambda self, state, step, losses, norms, alpha: told.append(losses))
    monkeypatch.setattr(composer.RunLog, "row", lambda *_, **__: {})
    monkeypatch.setattr(composer.RunLog, "write", lambda *_, **__: None)
    train(make_recipe(num_epochs=2, gradient_accumulation=3))
    shares = [weight / losses["total"] for weight, losses in zip(weights, told, strict=True)]
    assert shares == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2] * 2, rel=1e-6)


def test_a_step_that_overflowed_is_counted_and_leaves_the_epoch_s_norms_finite(make_recipe, monkeypatch):
    measure, calls = loop.gradient_norms, itertools.count(1)

    def overflow(parts, scale):
        norms = measure(parts, scale)
        return {part: norm * float("inf") for part, norm in norms.items()} if next(calls) in {2, 3} else norms

    monkeypatch.setattr(loop, "gradient_norms", overflow)
    first, second = read_log(train(make_recipe()).run)
    assert (first["skipped_steps"], second["skipped_steps"]) == ("2", "")
    assert 0 < float(first["grad_qformer"]) < 100
    assert 0 < float(second["grad_qformer"]) < 100


def test_a_temperature_from_outside_is_said_and_kept(make_recipe, monkeypatch):
    notes = []

    class Listener(Silent):
        def on_note(self, note):
            notes.append(note)

    build = composer.build

    def build_cold(*arguments, **settings):
        model = build(*arguments, **settings)
        model.temperature.data.fill_(0.004)
        return model

    monkeypatch.setattr(composer, "build", build_cold)
    run = train(make_recipe(), observer=Listener()).run
    (note,) = notes
    assert note == (
        "the temperature of the weights is 0.004, outside 0.01 to 0.5, where training keeps it: "
        "it stays as it is, or comes nearer"
    )
    assert 0.004 <= weights_of(run)["temperature"].item() < 0.01


def test_the_norm_behind_the_tower_is_trained_unless_the_recipe_says_no(make_recipe, monkeypatch):
    build = composer.build
    monkeypatch.setattr(composer, "build", lambda *arguments, **settings: build(*arguments, **settings, ln_vision=True))
    trained, frozen = (weights_of(train(make_recipe(train_ln_vision=on, num_epochs=1)).run) for on in (True, False))
    assert not torch.equal(trained["ln_vision.weight"], frozen["ln_vision.weight"])
    assert torch.equal(frozen["ln_vision.weight"], torch.ones_like(frozen["ln_vision.weight"]))
    assert torch.equal(frozen["ln_vision.bias"], torch.zeros_like(frozen["ln_vision.bias"]))


def test_a_thread_reads_ahead_what_would_have_been_read_at_once(make_recipe, shapes_root):
    recipe = make_recipe(subset_negatives=2, mask_same_target=True)
    splits = loop.load_splits("CIRR", shapes_root, "train")
    run = composer.ComposerRun(
        recipe, make_accelerator(recipe), train_splits=splits, val_splits=splits, observer=Silent()
    )  # fmt: skip
    everything = list(run.batches.of_epoch(1, 0))
    assert [len(batch) for batch, _ in everything] == [5, 5, 5, 5, 4]
    for number, (batch, inputs) in enumerate(everything):
        generator = np.random.default_rng([recipe.seed, 1, number])
        for ahead, at_once in zip(inputs, run.batches.inputs(batch, generator), strict=True):
            assert torch.equal(ahead, at_once) if isinstance(ahead, torch.Tensor) else ahead == at_once
    (first, *_), *_ = list(run.batches.of_epoch(1, 3))
    assert first == everything[3][0]


def test_the_losses_are_compiled_on_request_and_what_the_compiler_refuses_is_one_line(make_recipe, monkeypatch):
    compiled = []

    def compile_(function, *, dynamic):
        compiled.append(dynamic)
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    plain, traced = (weights_of(train(make_recipe(max_steps=2, compile=on)).run) for on in (False, True))
    assert compiled == [True]
    assert all(torch.equal(traced[name], tensor) for name, tensor in plain.items())

    refused = type("InvalidCxxCompiler", (RuntimeError,), {"__module__": "torch._inductor.exc"})("no compiler\nat all")

    def refuse(*_, **__):
        raise refused

    monkeypatch.setattr(torch, "compile", lambda function, *, dynamic: refuse)
    with pytest.raises(ComposirError, match=r"cannot be compiled here \(no compiler\); fix: leave --compile out"):
        train(make_recipe(max_steps=2, compile=True))


def test_every_validation_shows_the_same_two_queries_and_histograms(make_recipe):
    run = train(make_recipe(num_epochs=3, validation_frequency=2, fusion="gate+attention")).run
    events = EventAccumulator(str(run)).Reload()
    assert set(events.Tags()["images"]) == {"examples/0", "examples/1"}
    assert {"gate/values", "gate/relative_changes"} <= set(events.Tags()["histograms"])
    images = events.Images("examples/1")
    assert [image.step for image in images] == [10, 15]
    assert images[0].width == 5 * images[0].height  # the reference, both fusions' maps, change and attention
    (split,) = loop.load_splits("CIRR", make_recipe().data_root, "val")
    words = events.Tensors("examples/1/text_summary")[0].tensor_proto.string_val[0].decode()
    assert words.startswith(f"{split.queries[12].text}: the reference, gate 0.")
    assert {"gradient/fusion", "gradient/qformer", "gate/entropy", "gate/relative_change"} <= set(
        events.Tags()["scalars"]
    )


def test_fashioniq_trains_with_varied_texts_and_logs_every_category(make_recipe, fashion_root, monkeypatch):
    texts = set()
    words = Composer.words

    def remember(self, given):
        texts.update(given)
        return words(self, given)

    monkeypatch.setattr(Composer, "words", remember)
    run = train(make_recipe(dataset="FashionIQ", data_root=str(fashion_root), num_epochs=3)).run
    assert run.name.startswith("clip_finetuned_on_fashioniq_")
    row = read_log(run)[-1]
    assert {"dress R@10", "shirt R@50", "toptee mean(R@10+R@50)", "R@10", "R@50", "mean(R@10+R@50)"} <= set(row)
    mean = sum(float(row[f"{category} R@10"]) for category in ("dress", "shirt", "toptee")) / 3
    assert float(row["R@10"]) == pytest.approx(mean, abs=0.011)
    kinds = {"Is another one", "Is another one and like red", "Like red and is another one", "Like red"}
    assert {text for text in texts if "red" in text or text == "Is another one"} >= kinds


def test_a_text_rule_makes_the_sentences_of_training_and_validation(make_recipe, fashion_root, monkeypatch):
    texts = set()
    words = Composer.words

    def remember(self, given):
        texts.update(given)
        return words(self, given)

    monkeypatch.setattr(Composer, "words", remember)
    rule = "both captions, comma between"
    run = train(make_recipe(dataset="FashionIQ", data_root=str(fashion_root), num_epochs=1, text_rule=rule)).run
    assert len(texts) > 3
    assert all(text.startswith("is another one., and like ") for text in texts if text)
    assert resume_recipe(run).text_rule == rule
    assert load_rankings(run / "best/rankings.safetensors").signature_fields["text"] == rule


def test_validation_takes_the_split_whose_answers_are_public(make_recipe, shapes_root, tmp_path):
    root = tmp_path / "Fashion200k"
    shutil.copytree(shapes_root, root)
    (root / "labels").mkdir()
    for split, place in (("train", "train/0"), ("test", "dev")):
        prefix = {"train": "train", "test": "val"}[split]
        for kind in ("dress", "jacket", "pants", "skirt", "top"):
            colours = ("red", "blue") if kind == "dress" else ()
            lines = [f"{place}/{prefix}-{colour}-ellipse.png\t0.9\t{colour} ellipse\n" for colour in colours]
            (root / f"labels/{kind}_{split}_detect_all.txt").write_text("".join(lines))
    (root / "test_queries.txt").write_text("dev/val-red-ellipse.png dev/val-blue-ellipse.png\n")
    result = train(make_recipe(dataset="Fashion200k", data_root=str(root), num_epochs=1))
    assert result.metrics["recall_at_1"] == 1.0  # the reference is taken out, the other picture is the target


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(make_recipe):
    one, again, other = (train(make_recipe(seed=seed)).run for seed in (0, 0, 1))
    assert_same_weights(one, again)
    assert not torch.equal(weights_of(one)["query_tokens"], weights_of(other)["query_tokens"])


def test_cached_training_equals_uncached(make_recipe, tmp_path):
    cached = train(make_recipe(), place=TokenPlace(folder=tmp_path / "cache")).run
    folders = [TokenPlace(folder=tmp_path / name) for name in ("cache", "other")]
    for place in (*folders, TokenPlace("memory"), TokenPlace("off")):
        assert_same_weights(cached, train(make_recipe(), place=place).run)


def test_deterministic_holds_for_the_steps_and_no_longer(make_recipe, monkeypatch):
    step, seen = loop.Run._step, []

    def remember(self, *arguments):
        seen.append(torch.are_deterministic_algorithms_enabled())
        step(self, *arguments)

    monkeypatch.setattr(loop.Run, "_step", remember)
    for wanted in (True, False):
        train(make_recipe(deterministic=wanted, max_steps=1))
        assert seen[-1] == wanted
        assert not torch.are_deterministic_algorithms_enabled()


def test_every_triplet_is_seen_once_an_epoch_the_last_batch_included(make_recipe, monkeypatch):
    seen = []
    step = loop.Run._step

    def remember(self, batch, *rest):
        seen.append([query.id for _, query in batch])
        return step(self, batch, *rest)

    monkeypatch.setattr(loop.Run, "_step", remember)
    train(make_recipe())
    assert [len(batch) for batch in seen] == [5, 5, 5, 5, 4] * 2
    first, second = ([query_id for batch in seen[start : start + 5] for query_id in batch] for start in (0, 5))
    assert sorted(first) == sorted(second) == sorted(set(first))
    assert first != second


def test_accumulated_gradients_are_those_of_the_mean_loss(make_recipe):
    recipe = make_recipe(gradient_accumulation=2, num_epochs=1)
    result = train(recipe)
    steps = torch.load(result.run / "last/training.pt", weights_only=True)["state"]["step"]
    assert steps == 3  # five batches by twos: 2 + 2 + 1


@pytest.mark.usefixtures("no_step_ahead")
def test_gradient_checkpointing_computes_layers_again_and_changes_nothing(make_recipe, monkeypatch):
    passes = []
    forward = SelfAttention.forward
    monkeypatch.setattr(
        SelfAttention, "forward", lambda self, *args, **named: passes.append(1) or forward(self, *args, **named)
    )
    runs, counts = [], []
    for is_on in (False, True):
        passes.clear()
        runs.append(train(make_recipe(max_steps=2, gradient_checkpointing=is_on)).run)
        counts.append(len(passes))
    # Two steps, three passes of one layer each (the last layer is read in parts and kept), once more for each.
    assert counts[1] == counts[0] + 2 * 3
    kept, again = (load_file(run / "last/model/model.safetensors") for run in runs)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_max_steps_ends_the_run_and_its_schedule(make_recipe):
    result = train(make_recipe(max_steps=3, num_epochs=50))
    assert len(read_log(result.run)) == 1
    assert float(read_log(result.run)[0]["lr"]) < 1e-5


def test_a_schedule_that_rises_for_no_step_begins_at_its_peak(make_recipe):
    (row,) = read_log(train(make_recipe(max_steps=9, batch_size=2, pct_start=0.1, validation_frequency=9)).run)
    assert float(row["lr"]) < 1e-5


def test_the_published_schedule_can_be_longer_than_the_run(make_recipe):
    short = float(read_log(train(make_recipe(num_epochs=1)).run)[0]["lr"])
    long = float(read_log(train(make_recipe(num_epochs=1, schedule_epochs=80)).run)[0]["lr"])
    assert short < 1e-5
    assert long > 10 * short


def test_learning_rates_go_to_the_parts_they_name(make_recipe, monkeypatch):
    groups = []
    optimizer = loop.make_optimizer

    def remember(model, *arguments, **named):
        made, schedule = optimizer(model, *arguments, **named)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups.append({group["max_lr"]: {names[id(p)] for p in group["params"]} for group in made.param_groups})
        return made, schedule

    monkeypatch.setattr(loop, "make_optimizer", remember)
    train(
        make_recipe(
            num_epochs=1,
            learning_rate=1e-3,
            pretrained_learning_rate=2e-3,
            gate_learning_rate=3e-3,
            alpha_learning_rate=4e-3,
        )
    )
    (group,) = groups
    assert group[4e-3] == {"gated_fusion.alpha"}
    assert {name.split(".")[0] for name in group[3e-3]} == {"gated_fusion"}
    assert "query_tokens" in group[2e-3]  # tiny has no new parts but the gate
    assert 1e-3 not in group


def test_subset_negatives_are_look_alikes_and_never_the_target(make_recipe, shapes_root):
    recipe = make_recipe(subset_negatives=3)
    splits = loop.load_splits("CIRR", shapes_root, "train")
    run = composer.ComposerRun(
        recipe, make_accelerator(recipe), train_splits=splits, val_splits=splits, observer=Silent()
    )  # fmt: skip
    for split, query in run.batches.triplets:
        files = run.batches.look_alikes(split, query, np.random.default_rng(0))
        assert len(set(files)) == 3
        assert split.images[query.targets[0]] not in files
        assert {file.stem for file in files} <= {*query.subset, query.reference}
    batch = run.batches.triplets[:4]
    _, candidates, _, _, same, _ = run.batches.inputs(batch, np.random.default_rng(0))
    assert len(candidates) == 4 + 12
    assert same.shape == (4, 16)
    assert same[:, :4].diagonal().all()


@pytest.mark.parametrize(
    "settings",
    [
        {"gate_identity_start": True},
        {"gate_layer_norm": True},
        {"gate_pooling": "all"},
        {"drop_last": True},
        {"center_embeddings": True},
        {"subset_negatives": 2},
        {"mask_same_target": True},
        {"max_grad_norm": 0.01},
        {"loss_rtc": 0.0},
        {"loss_align": 0.0},
        {"alpha_init": 0.1},
        {"transform": "squarepad"},
        {"target_ratio": 1.0},
        {"weight_decay": 0.5},
        {"eps": 1e-2},
        {"betas": [0.5, 0.9]},
        {"pct_start": 0.9},
        {"div_factor": 1.0},
        {"batch_size": 6},
        {"gradient_accumulation": 2},
        {"learning_rate": 2e-3},
        {"loss_local": 0.5},
        {"contrastive_loss": "hn-nce"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_no_setting_does_nothing(make_recipe, settings):
    plain, changed = (train(make_recipe(num_epochs=1, **more)).run for more in ({}, settings))
    first, second = weights_of(plain), weights_of(changed)
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("setting", [{"hard_negative_beta": 2.0}, {"hard_negative_alpha": 0.5}])
def test_hard_negative_settings_do_something(make_recipe, setting):
    plain, changed = (train(make_recipe(num_epochs=1, contrastive_loss="hn-nce", **more)).run for more in ({}, setting))
    first, second = weights_of(plain), weights_of(changed)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_local_loss_is_logged_where_it_is_trained(make_recipe):
    (row,) = read_log(train(make_recipe(num_epochs=1, loss_local=0.5)).run)
    parts = {name: float(row[name]) for name in ("loss_itc", "loss_rtc", "loss_align", "loss_local", "total")}
    recipe = make_recipe()
    expected = parts["loss_itc"] + recipe.loss_rtc * parts["loss_rtc"] + recipe.loss_align * parts["loss_align"]
    assert parts["total"] == pytest.approx(expected + 0.5 * parts["loss_local"], abs=1e-5)
    (row,) = read_log(train(make_recipe(num_epochs=1)).run)
    assert "loss_local" not in row


MINED = {"subset_negatives": 2, "mined_ratio": 0.5, "mining_skip": 0, "mining_margin": 0.0}


def test_mined_negatives_are_what_the_model_ranks_high(make_recipe):
    run = train(make_recipe(num_epochs=4, mining_frequency=2, **MINED)).run
    assert [file.name for file in (run / "mined").iterdir()] == ["epoch-2.jsonl"]  # the last epoch mines for nobody
    lines = [json.loads(line) for line in (run / "mined/epoch-2.jsonl").read_text().splitlines()]
    assert len(lines) == 24
    assert all(line["target"] not in line["negatives"] for line in lines)
    assert all(line["reference"] not in line["negatives"] for line in lines)  # CIRR leaves it out of the ranking
    assert all(len(line["negatives"]) == 10 for line in lines)  # twelve images, less those two


def test_a_run_with_mined_negatives_resumes_to_the_weights_of_an_unbroken_one(make_recipe, monkeypatch):
    recipe = make_recipe(num_epochs=3, **MINED)
    unbroken = train(recipe)
    step, count = loop.Run._step, []

    def interrupt(self, *arguments_):
        step(self, *arguments_)
        count.append(1)
        if len(count) == 7:  # in the second epoch, after the first mining
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Run, "_step", interrupt)
    broken = train(recipe)
    assert broken.interrupted
    resumed = train(resume_recipe(broken.run), resume=broken.run)
    assert_same_weights(unbroken.run, resumed.run)
    for epoch in (1, 2):
        name = f"mined/epoch-{epoch}.jsonl"
        assert (unbroken.run / name).read_text() == (resumed.run / name).read_text()


def test_half_of_the_look_alikes_are_mined(make_recipe, shapes_root):
    recipe = make_recipe(**MINED)
    splits = loop.load_splits("CIRR", shapes_root, "train")
    run = composer.ComposerRun(
        recipe, make_accelerator(recipe), train_splits=splits, val_splits=splits, observer=Silent()
    )  # fmt: skip
    split, query = run.batches.triplets[0]
    hard = next(name for name in split.gallery if name not in (*query.subset, query.reference))
    run.batches.mined = {("", query.id): [hard]}
    drawn = [file for seed in range(100) for file in run.batches.look_alikes(split, query, np.random.default_rng(seed))]
    assert 80 < sum(file == split.images[hard] for file in drawn) < 120  # 200 draws at one half


def test_without_save_training_no_weights_are_kept(make_recipe):
    result = train(make_recipe(save_training=False))
    assert result.best is None
    assert not (result.run / "last").exists()
    assert read_log(result.run)


def test_without_save_best_every_validated_epoch_is_kept(make_recipe):
    run = train(make_recipe(save_best=False)).run
    assert from_pretrained(run / "epoch-1").config == from_pretrained(run / "epoch-2").config
    rows = read_log(run)
    for epoch in (1, 2):
        saved = load_rankings(run / f"epoch-{epoch}" / "rankings.safetensors")
        assert f"{100 * measure(saved.rankings).metrics['recall_at_1']:.2f}" == rows[epoch - 1]["R@1"]


def test_the_rankings_of_the_best_checkpoint_are_kept(make_recipe, shapes_root):
    """What is saved in training is what evaluating the checkpoint gives, so runs compare without a model."""
    recipe = make_recipe(seed=3)
    result = train(recipe)
    saved = load_rankings(result.best / "rankings.safetensors", load_splits("CIRR", shapes_root, "val"))
    assert set(saved.rankings) == {"composed"}
    assert measure(saved.rankings).metrics == result.metrics
    assert saved.seed == 3
    assert saved.weights_hash == weights_hash(from_pretrained(result.best))
    before = (result.best / "rankings.safetensors").read_bytes()
    train(resume_recipe(result.run), resume=result.run)
    assert (result.best / "rankings.safetensors").read_bytes() == before


# -- interrupts, kills and resuming ------------------------------------------------------------------------------------


def test_an_interrupted_run_resumes_to_the_weights_of_an_unbroken_one(make_recipe, monkeypatch):
    recipe = make_recipe(num_epochs=3, subset_negatives=1)
    unbroken = train(recipe)
    step, count = loop.Run._step, []

    def interrupt(self, *arguments_):
        step(self, *arguments_)
        count.append(1)
        if len(count) in (3, 8):  # in the middle of the first epoch, and of the second
            os.kill(os.getpid(), signal.SIGINT if len(count) == 3 else signal.SIGTERM)

    monkeypatch.setattr(loop.Run, "_step", interrupt)
    broken = train(recipe)
    assert broken.interrupted
    assert broken.epochs == 0
    broken = train(resume_recipe(broken.run), resume=broken.run)
    assert broken.interrupted
    assert broken.epochs == 1
    resumed = train(resume_recipe(broken.run), resume=broken.run)
    assert not resumed.interrupted
    assert len(count) == 15
    assert_same_weights(unbroken.run, resumed.run)
    assert read_log(unbroken.run) == read_log(resumed.run)
    assert kept_losses(unbroken.run) == kept_losses(resumed.run)
    assert resumed.metrics == unbroken.metrics
    one, other = (load_rankings(result.best / "rankings.safetensors") for result in (unbroken, resumed))
    assert one.signature_fields == other.signature_fields
    assert np.array_equal(one.rankings["composed"][0].top, other.rankings["composed"][0].top)


# -- the step ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def any_precision():
    """Let a run have another precision than the ones before it: accelerate keeps to the first of a process."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.usefixtures("no_step_ahead", "any_precision")
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_a_step_computes_in_training_mode_and_in_the_recipe_s_precision(make_recipe, monkeypatch, precision, dtype):
    """In the second epoch too, which comes after a validation in evaluation mode; the heads are always in float32."""
    heads, told = [], []
    step = loop.Run._step

    def look(module, _, output):
        if heads and isinstance(module, torch.nn.Linear) and output.requires_grad:
            assert output.dtype == torch.float32 or module not in heads
            if module not in heads:
                told.append((module.training, output.dtype))

    def watched(self, *arguments):
        heads.extend([self.model.text_proj, self.model.vision_proj])
        step(self, *arguments)
        heads.clear()

    monkeypatch.setattr(loop.Run, "_step", watched)
    with torch.nn.modules.module.register_module_forward_hook(look):
        result = train(make_recipe(mixed_precision=precision, gated_fusion=False))
    assert len(told) > 10 * 10  # ten steps, some maps each
    assert set(told) == {(True, dtype)}
    assert weights_of(result.run)["text_proj.weight"].dtype == torch.float32


@pytest.mark.usefixtures("no_step_ahead")
def test_a_scaler_changes_neither_the_logged_norms_nor_the_weights(make_recipe, monkeypatch):
    """A power of two shifts exponents alone, and is taken off again before anything is measured or learned."""
    plain = train(make_recipe(num_epochs=1, gradient_accumulation=2))
    scales = []

    def scaled(recipe):
        accelerator = Accelerator(cpu=True)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        scales.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr(runs, "make_accelerator", scaled)
    under_a_scaler = train(make_recipe(num_epochs=1, gradient_accumulation=2))
    assert scales[0].get_scale() == 2.0**12
    (one,), (other,) = (read_log(result.run) for result in (plain, under_a_scaler))
    norms = [column for column in one if column.startswith("grad_")]
    assert len(norms) == 6
    for column in norms:
        assert float(other[column]) == pytest.approx(float(one[column]), rel=1e-3)
    kept, again = (weights_of(result.run) for result in (plain, under_a_scaler))
    for name, tensor in kept.items():
        torch.testing.assert_close(again[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.usefixtures("no_step_ahead")
def test_steps_however_large_leave_the_temperature_in_its_range(make_recipe, monkeypatch):
    temperatures = []
    step = loop.Run._step

    def watched(self, *arguments):
        step(self, *arguments)
        temperatures.append(self.model.temperature.item())

    monkeypatch.setattr(loop.Run, "_step", watched)
    train(make_recipe(num_epochs=1, learning_rate=1.0))
    low, high = TEMPERATURE_RANGE
    assert len(temperatures) == 5
    assert all(low - 1e-6 <= temperature <= high + 1e-6 for temperature in temperatures)
    assert any(temperature == pytest.approx(limit) for temperature in temperatures for limit in TEMPERATURE_RANGE)


# -- resuming on other annotations -------------------------------------------------------------------------------------

CAPTIONS = "cirr/captions/cap.rc2.{}.json"
NAMES = "cirr/image_splits/split.rc2.{}.json"


def change(file, how):
    """Rewrite a JSON file by a function of its content."""
    file.write_text(json.dumps(how(json.loads(file.read_text()))))


def grow(queries):
    return queries + [{**one, "pairid": one["pairid"] + 1000, "caption": "again"} for one in queries[:6]]


def turn_targets(queries):
    first, second = (query["target_hard"] for query in queries[:2])
    for query, target in zip(queries, (second, first), strict=False):
        query["target_hard"], query["target_soft"] = target, {target: 1.0}
    return queries


@pytest.fixture
def stopped(make_recipe, shapes_root, tmp_path, monkeypatch):
    """Return a run that was stopped after its first step, and the root of its data, which may be changed."""
    shutil.copytree(shapes_root, tmp_path / "root")
    step = loop.Run._step

    def interrupt(self, *arguments_):
        step(self, *arguments_)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "_step", interrupt)
        done = train(make_recipe(data_root=str(tmp_path / "root")))
    assert done.interrupted
    return done.run, tmp_path / "root"


@pytest.mark.parametrize(
    ("file", "how", "words"),
    [
        (CAPTIONS.format("train"), grow, "(train): holds 30 queries, the run began with 24; "),
        (CAPTIONS.format("train"), lambda queries: queries[:9], "(train): holds 9 queries, the run began with 24; "),
        (
            CAPTIONS.format("train"),
            lambda queries: [{**one, "caption": one["caption"] + ", please"} for one in queries],
            "(train): holds other sentences than when the run began; ",
        ),
        (
            CAPTIONS.format("train"),
            lambda queries: queries[::-1],
            "(train): holds its queries in another order than when the run began; ",
        ),
        (
            CAPTIONS.format("train"),
            lambda queries: [{**one, "pairid": one["pairid"] + 500} for one in queries],
            "(train): holds other ids than when the run began; ",
        ),
        (CAPTIONS.format("train"), turn_targets, "(train): holds other targets than when the run began; "),
        (CAPTIONS.format("val"), lambda queries: queries[:-1], "(val): holds 23 queries, the run began with 24; "),
        (
            NAMES.format("val"),
            lambda names: {**names, "copy": "./dev/val-red-ellipse.png"},
            "(val): holds 13 gallery images, the run began with 12; ",
        ),
        (
            NAMES.format("val"),
            lambda names: dict(reversed(names.items())),
            "(val): holds other gallery images than when the run began; ",
        ),
    ],
)
def test_resuming_on_other_annotations_is_refused_with_what_has_changed(stopped, monkeypatch, file, how, words):
    run, root = stopped
    change(root / file, how)
    monkeypatch.setattr(loop.Run, "_step", lambda *_: pytest.fail("a step was taken"))
    before = (run / "last/training.pt").read_bytes()
    with pytest.raises(ProblemsError) as caught:
        train(resume_recipe(run), resume=run)
    (problem,) = caught.value.problems
    split = "val" if "val" in file else "train"
    assert str(problem).startswith(f"{root / CAPTIONS.format(split)} {words}fix: put it back as it was, or start ")
    assert str(problem).endswith(f"composir train --config {run}/recipe.toml")
    assert (run / "last/training.pt").read_bytes() == before


def test_resuming_with_another_text_rule_is_refused_and_runs_of_before_do_not_say_theirs(stopped):
    run, _ = stopped
    other = resume_recipe(run).model_copy(update={"text_rule": "in a prompt"})
    with pytest.raises(ProblemsError) as caught:
        train(other, resume=run)
    assert [problem.message for problem in caught.value.problems] == [
        "makes its sentences by the text rule 'in a prompt', the run began with 'as annotated'"
    ] * 2

    def forget(document):
        return {
            **document,
            "splits": [{k: v for k, v in one.items() if k != "text_rule"} for one in document["splits"]],
        }

    change(run / "data.json", forget)
    with pytest.raises(ProblemsError, match="holds other sentences than when the run began"):
        train(other, resume=run)
    assert train(resume_recipe(run), resume=run).epochs == 2


def test_annotations_that_read_the_same_are_the_same(stopped):
    run, root = stopped
    for split in ("train", "val"):
        file = root / CAPTIONS.format(split)
        file.write_text(json.dumps(json.loads(file.read_text()), indent=3))
    assert train(resume_recipe(run), resume=run).epochs == 2


class Notes(Silent):
    def __init__(self):
        self.told = []

    def on_note(self, note):
        self.told.append(note)


def test_a_run_of_before_there_were_fingerprints_goes_on_with_a_note(stopped):
    run, root = stopped
    (run / "data.json").unlink()
    notes = Notes()
    change(root / CAPTIONS.format("train"), grow)
    with pytest.raises(
        ComposirError, match=r"was planned for 10 steps, and by its recipe 30 triplets are 12; expected"
    ):
        train(resume_recipe(run), resume=run, observer=notes)
    change(root / CAPTIONS.format("train"), lambda queries: queries[:24])
    assert train(resume_recipe(run), resume=run, observer=notes).epochs == 2
    assert notes.told == 2 * [
        f"{run} does not say what it was trained on, being of an earlier version; "
        "whether the annotations have changed since cannot be told"
    ]


@pytest.mark.parametrize("content", ["", "{}", '{"format": 2}', '{"format": 1, "splits": [{}]}', "[1]"])
def test_a_damaged_fingerprint_is_named(stopped, content):
    run, _ = stopped
    (run / "data.json").write_text(content)
    with pytest.raises(ComposirError, match=r"data\.json: is damaged .*fix: remove it"):
        train(resume_recipe(run), resume=run)


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_step_ahead")
def test_a_loss_that_is_not_finite_stops_with_step_and_ids(make_recipe, monkeypatch):
    recipe = make_recipe(num_epochs=3)
    compute, count = Composer.training_losses, []

    def spoil(self, *inputs, **settings):
        losses = compute(self, *inputs, **settings)
        count.append(1)
        return {**losses, "loss_itc": losses["loss_itc"] * float("nan")} if len(count) == 7 else losses

    monkeypatch.setattr(Composer, "training_losses", spoil)
    with pytest.raises(ComposirError, match=r"the loss is nan at step 7, on the triplets \d+, \d+"):
        train(recipe)
    (run,) = Path(recipe.output_dir).iterdir()
    assert torch.load(run / "last/training.pt", weights_only=True)["state"]["step"] == 5


def test_broken_data_is_told_before_a_run_folder_is_made(make_recipe, shapes_root, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(shapes_root, root)
    (root / "train/0/train-red-ellipse.png").unlink()
    (root / "dev/val-red-ellipse.png").write_bytes(b"")
    with pytest.raises(ProblemsError) as error:
        train(make_recipe(data_root=str(root)))
    assert len(error.value.problems) == 2
    (root / "train/0/train-red-ellipse.png").write_text("not an image")
    shutil.copy(shapes_root / "dev/val-red-ellipse.png", root / "dev")
    with pytest.raises(ProblemsError, match="train-red-ellipse"):
        train(make_recipe(data_root=str(root)))
    assert not list((tmp_path / "models").glob("*"))


def test_a_missing_image_is_skipped_on_request_alone_and_stays_known(make_recipe, fashion_root):
    """11 queries a category and split, each picture but the first and the last in two: run folder, card, signature."""
    for split, number in (("train", 3), ("val", 0)):
        names = json.loads((fashion_root / f"image_splits/split.dress.{split}.json").read_text())
        (fashion_root / f"images/{names[number]}.png").unlink()
    told = []

    class Told(Silent):
        def on_missing_images(self, left_by_key):
            told.append({key: str(left) for key, left in left_by_key.items() if left.is_less})

    recipe = make_recipe(dataset="FashionIQ", data_root=str(fashion_root), num_epochs=1)
    with pytest.raises(ProblemsError, match="train, evaluate and features take --skip-missing-images"):
        train(recipe, observer=Told())
    assert told == []
    skipping = recipe.model_copy(update={"skip_missing_images": True})
    result = train(skipping, observer=Told())
    assert told == [
        {
            "dress.train": "9 of 11 queries and 11 of 12 images are left",
            "dress.val": "10 of 11 queries and 11 of 12 images are left",
        }
    ]
    assert read_toml(result.run / "recipe.toml")["skip_missing_images"] is True
    card = (result.best / "README.md").read_text()
    assert "Not the published set: queries that need an image that was missing are left out." in card
    assert "\n- dress.train: 9 of 11 queries and 11 of 12 images are left\n" in card
    assert "\n- dress.val: 10 of 11 queries and 11 of 12 images are left\n" in card
    assert "- shirt" not in card
    rule = load_rankings(result.best / "rankings.safetensors").signature_fields["gallery"]
    assert rule == "original less missing, 32 of 33 queries, 35 of 36 images"
    assert f"|gallery:{rule.replace(' ', '-')}|" in card
    assert resume_recipe(result.run) == skipping


def test_the_largest_batch_that_fits_is_taken_and_written_down(make_recipe, monkeypatch):
    mebibyte = 2**20
    monkeypatch.setattr(memory, "measure_step", lambda *_, **__: StepMemory(10 * mebibyte, 100 * mebibyte))
    monkeypatch.setattr(memory, "available_memory", lambda: 600 * mebibyte)
    run = train(make_recipe(batch_size=2, max_steps=1), largest_batch=True).run
    assert read_toml(run / "recipe.toml")["batch_size"] == 4
    monkeypatch.setattr(memory, "available_memory", lambda: 200 * mebibyte)
    with pytest.raises(ComposirError, match=r"not even two triplets fit into the 209\.7 MB of memory that are left"):
        train(make_recipe(), largest_batch=True)
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    with pytest.raises(ComposirError, match="--batch-size auto measures"):
        train(make_recipe(), largest_batch=True)


def test_a_run_that_will_not_fit_is_refused_before_the_first_step(make_recipe, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(ComposirError, match=r"gradients and optimiser alone need .* kB of memory, 1\.0 kB are left"):
        train(make_recipe())
    gibibyte = 2**30
    monkeypatch.setattr(memory, "measure_step", lambda *_, **__: StepMemory(0, gibibyte))
    monkeypatch.setattr(memory, "available_memory", lambda: 7 * gibibyte)
    with pytest.raises(ComposirError, match=r"a step of 8 triplets needs 8\.6 GB of memory, 7\.5 GB are left") as error:
        train(make_recipe(batch_size=8))
    assert error.value.fix.startswith("--batch-size 4 with --set gradient_accumulation=2, or ")
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ComposirError, match=r"the last and the best state of this run need .*--output-dir"):
        train(make_recipe())


def test_an_output_folder_that_cannot_be_made_is_named(make_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ComposirError, match=r"file.*cannot be written to.*--output-dir"):
        train(make_recipe(output_dir=str(tmp_path / "file" / "models")))


def test_resuming_what_is_no_run_says_so(tmp_path, make_recipe):
    with pytest.raises(ComposirError, match="holds no state to resume from"):
        resume_recipe(tmp_path)
    run = train(make_recipe(num_epochs=1)).run
    (run / "last/training.pt").write_bytes(b"cut off")
    with pytest.raises(ComposirError, match=r"training\.pt: cannot be read"):
        train(resume_recipe(run), resume=run)


def test_a_finished_run_resumes_to_itself(make_recipe):
    done = train(make_recipe())
    before = weights_of(done.run)
    again = train(resume_recipe(done.run), resume=done.run)
    assert again.metrics == done.metrics
    assert all(torch.equal(before[name], value) for name, value in weights_of(done.run).items())
