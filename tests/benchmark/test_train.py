"""Steps, gate and features at the size of the tiny backbone; real sizes are for the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch

from composir.benchmark.gate import benchmark_gate
from composir.benchmark.processes import Measured
from composir.benchmark.steps import LADDER, OURS, PUBLISHED, Step, make_batch, make_model
from composir.benchmark.train import benchmark_train
from composir.losses import hard_negative_loss
from composir.models.fusion import FUSIONS


def test_every_rung_has_the_losses_and_gradients_of_the_published_way():
    batch = make_batch("tiny", 5)
    model = make_model("tiny", fusion="gate")
    with torch.no_grad():
        model.gated_fusion.alpha.fill_(0.7)
    loss, expected, operations = Step(model, LADDER[PUBLISHED]).gradients(batch)
    assert len(expected) > 50
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    assert largest > 0.1
    counts = [operations]
    for name, way in list(LADDER.items())[1:]:
        own_loss, gradients, operations = Step(model, way).gradients(batch)
        counts.append(operations)
        assert own_loss == pytest.approx(loss, abs=1e-5), name
        for key, gradient in expected.items():
            torch.testing.assert_close(gradients[key], gradient, atol=2e-6 * largest, rtol=0, msg=f"{name}: {key}")
    assert all(after <= before for before, after in pairwise(counts))
    assert counts[-1] < counts[0] / 2


def test_a_step_changes_the_model_that_all_ways_share_alike():
    batch = make_batch("tiny", 4)
    after = []
    for way in (LADDER[PUBLISHED], LADDER[OURS]):
        model = make_model("tiny")
        step = Step(model, way)
        assert [step(batch) for _ in range(3)][-1] < step(batch) + 1
        after.append({name: parameter.detach().clone() for name, parameter in model.named_parameters()})
    for name in after[0]:
        if "key.bias" not in name:  # no softmax sees it: its gradient is rounding alone, and ours is none
            # Adam moves a weight by its gradient's sign, and where that is rounding the sign is chance.
            apart = (after[0][name] - after[1][name]).abs() > 1e-6
            assert apart.float().mean() < 0.01, name


def test_the_ladder_is_measured(run, monkeypatch):
    monkeypatch.setattr("composir.benchmark.train.in_fresh_process", here)
    document = benchmark_train(backbone="tiny", batch_size=3, repeats=1, processor_time=True, curve_steps=5)
    assert {"ratios", "seconds", "peak_memory_bytes", "machine"} <= set(document)
    assert list(document["shares"]) == list(LADDER)[1:]
    assert document["clock"] == "processor"
    bound = 1e-5 * document["largest_gradient"]
    assert all(0 <= one["gradient"] < bound for name, one in document["largest_difference"].items() if name in LADDER)
    assert set(document["peak_memory_bytes"]) == {PUBLISHED, OURS}
    assert all(len(losses) == 5 for losses in document["curve"].values())
    monkeypatch.setattr(
        "composir.benchmark.train.benchmark_train", lambda progress, **sizes: document | {"sizes": sizes}
    )
    code, out, _ = run("benchmark", "train", "--backbone", "tiny", "--batch-size", 3, "--json")
    assert code == 0
    assert json.loads(out)["sizes"]["batch_size"] == 3
    code, out, _ = run("benchmark", "train")
    assert code == 0
    assert "published_over_ours" in out


@pytest.fixture
def small_real(monkeypatch):
    """Let ``real`` be small; it has the norm behind the tower, which ``tiny`` has not."""
    sizes = {"token_width": 12, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16, "vocab_size": 30}
    monkeypatch.setattr("composir.benchmark.steps.REAL_SIZES", {**sizes, "ln_vision": True})
    monkeypatch.setattr("composir.benchmark.steps.NUM_TOKENS", 40)


@pytest.mark.usefixtures("small_real")
def test_a_frozen_norm_is_not_trained_and_computes_the_same():
    model, batch = make_model("real"), make_batch("real", 3)
    torch.nn.init.normal_(model.ln_vision.weight)
    loss, gradients, operations = Step(model, LADDER[PUBLISHED]).gradients(batch)
    frozen, without, fewer = Step(model, replace(LADDER[PUBLISHED], frozen_norm=True)).gradients(batch)
    assert frozen == loss
    assert gradients["ln_vision.weight"].any()
    assert not without["ln_vision.weight"].any()
    torch.testing.assert_close(
        {name: value for name, value in without.items() if "ln_vision" not in name},
        {name: value for name, value in gradients.items() if "ln_vision" not in name},
    )
    # One layer of two reads pictures; keys and values, of references and targets, give tokens their gradients.
    assert operations - fewer == 2 * 2 * 2 * 3 * 40 * 12 * 8
    assert model.ln_vision.weight.requires_grad


@pytest.mark.usefixtures("small_real")
@pytest.mark.parametrize("way", [PUBLISHED, OURS])
def test_a_way_with_dropout_drops_out_and_leaves_the_model_without(way):
    model, batch = make_model("real"), make_batch("real", 3)
    plain = Step(model, LADDER[way])
    step = Step(model, replace(LADDER[way], dropout=True))
    assert len({step.backward(batch).item() for _ in range(3)}) == 3
    assert len({plain.backward(batch).item() for _ in range(3)}) == 1


@pytest.mark.usefixtures("small_real")
def test_the_floor_is_the_operations_at_the_rate_of_products(run, monkeypatch):
    monkeypatch.setattr("composir.benchmark.train.in_fresh_process", here)
    monkeypatch.setattr("composir.benchmark.peak.SIZE_ON_CPU", 64)
    monkeypatch.setattr("composir.benchmark.train.has_bf16", lambda device: True)
    document = benchmark_train(batch_size=3, repeats=1, curve_steps=1)
    steps = [*LADDER, "published bf16", "no padding bf16", "published, ln_vision frozen"]
    steps += ["published, dropout", "no padding, dropout"]
    assert list(document["floor_seconds"]) == list(document["over_floor"]) == steps
    for name in steps:
        rate = document["peak_gflops"]["products, bf16" if "bf16" in name else "products, fp32"][0]
        floor = document["operations"][name] / rate / 1e9
        assert document["seconds"][name][0] / floor == pytest.approx(document["over_floor"][name], rel=0.1)
    assert "no padding bf16" in document["largest_difference"]
    assert not any("dropout" in name or "frozen" in name for name in document["largest_difference"])
    monkeypatch.setattr("composir.benchmark.train.benchmark_train", lambda **_: document)
    code, out, _ = run("benchmark", "train")
    assert code == 0
    assert "over floor" in out
    assert "ln_vision_of_published" in out
    assert "products, bf16:" in out


def test_the_gate_is_measured_beside_its_bound(run, monkeypatch):
    monkeypatch.setattr("composir.benchmark.gate.in_fresh_process", here)
    document = benchmark_gate(backbone="tiny", batch_size=3, repeats=2)
    # Per sample and token five products of width by width, and two a sample of what depends on the text alone.
    plain, gated = document["operations"]["plain"], document["operations"]["gated"]
    own = 5 * 2 * 3 * 9 * 24 * 24
    assert own < gated - plain < 4 * own
    assert document["ratios"]["bound"] == gated / plain
    assert document["ratios"]["gated_over_plain"] > 0
    assert {"seconds", "peak_memory_bytes", "machine"} <= set(document)
    code, _, err = run("benchmark", "gate", "--backbone", "tiny", "--token-width", 5)
    assert code == 2
    assert "the width of tiny's tokens is fixed" in err
    code, _, err = run("benchmark", "gate", "--backbone", "pretrain")
    assert code == 2
    assert "backbone 'pretrain' cannot be measured; expected real, mini, tiny" in err


def test_every_method_is_measured(run, monkeypatch):
    code, out, err = run("benchmark", "methods", "--backbone", "tiny", "--batch-size", 3, "--repeats", 1, "--json")
    assert code == 0, err
    document = json.loads(out)
    extra = {"gate+attention", "gate+late", "local alignment", "hn-nce", "subset negatives", "mined negatives"}
    assert set(document["ratios"]) == set(FUSIONS) | extra
    assert set(document["seconds"]) == set(document["ratios"]) | {"none"}
    assert all(ratio > 0 for ratio in document["ratios"].values())
    monkeypatch.setattr("composir.benchmark.methods.benchmark_methods", lambda **_: document)
    code, out, _ = run("benchmark", "methods")
    assert code == 0
    assert "local alignment: " in out


def test_settings_of_a_step_reach_the_loss():
    model, batch = make_model("tiny"), make_batch("tiny", 3)
    plain = Step(model, LADDER[OURS]).gradients(batch)[0]
    for settings in ({"local": True}, {"contrast": partial(hard_negative_loss, beta=0.5)}):
        assert abs(Step(model, LADDER[OURS], **settings).gradients(batch)[0] - plain) > 1e-3


def test_reading_decoding_and_the_tower_are_measured(run, tmp_path, monkeypatch):
    monkeypatch.setattr("composir.benchmark.features.alone", alone_here)
    monkeypatch.setattr("composir.benchmark.features.in_fresh_process", here)
    monkeypatch.setattr("composir.benchmark.features.NUM_PICTURES", 4)
    monkeypatch.setattr("composir.benchmark.features.NUM_INDEXED", 6)
    command = ("benchmark", "features", "--backbone", "tiny", "--num-images", 300, "--num-reads", 70, "--repeats", 2)
    code, out, err = run(*command, "--directory", tmp_path, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["cache_bytes"] == 300 * 9 * 24 * 2
    assert {"ratios", "seconds", "peak_memory_bytes", "machine"} <= set(document)
    of_index = [f"index: {part}" for part in ("open", "decode", "square", "tower", "Q-Former")]
    parts = ["read cold", "read warm", "decode", "prepare", "tower", *of_index, "index"]
    assert list(document["images_per_second"]) == parts
    taken = document["seconds"]
    of_picture = [sum(taken[part][run] for part in of_index[1:]) / 4 for run in range(2)]
    ratios = [whole / 6 / one for whole, one in zip(taken["index"], of_picture, strict=True)]
    assert document["ratios"]["index_over_parts"] == pytest.approx(sum(ratios) / 2, rel=0.1)
    assert all(rate > 0 for rate in document["images_per_second"].values())
    assert all(len(times) == 2 for times in document["seconds"].values())
    assert not list(tmp_path.iterdir())


def here(work, *arguments):
    """Stand in for a process of its own, which takes seconds to start; test_evaluate.py has the real one."""
    return work(*arguments), 2**20


def alone_here(work, *arguments):
    return Measured(*here(work, *arguments))
