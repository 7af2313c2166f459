"""The norm behind the tower: its scale and shift are trained, as published; checkpoints from before still load."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from composir.models.backbones import build
from composir.models.checkpoint import from_pretrained, load_weights, save_pretrained
from composir.models.config import ComposerConfig
from composir.models.sprc import Sprc
from composir.models.transfer import convert, export_sprc
from composir.models.vision import hash_weights
from composir.models.watch import watch

VOCABULARY = 30_523
SIZES = {
    "token_width": 16,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "vocab_size": 30,
    "num_query_tokens": 4,
    "embed_dim": 8,
}


def inputs(model, batch=3):
    torch.manual_seed(1)
    words = torch.randint(1, 30, (batch, 5))
    tokens = torch.randn(2, batch, 6, model.config.token_width)
    return *tokens, words, torch.ones_like(words)


def pair(*, fusion, dropout=0.0):
    """Return a model with the norm's weights, and the one that is given tokens scaled and shifted already."""
    torch.manual_seed(0)
    model = Sprc(ComposerConfig(**SIZES, fusion=fusion, dropout=dropout, ln_vision=True))
    plain = Sprc(ComposerConfig(**SIZES, fusion=fusion, dropout=dropout))
    weights = dict(model.state_dict())
    for name, parameter in model.named_parameters():
        if ".crossattention.attention." in name or name in {"query_tokens", "prompt_tokens"}:
            torch.nn.init.normal_(parameter, std=0.5)
    torch.nn.init.normal_(model.ln_vision.weight)
    torch.nn.init.normal_(model.ln_vision.bias)
    weights = model.state_dict()
    plain.load_state_dict({name: weights[name] for name in plain.state_dict()})
    return model, plain


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("fusion", ["none", "gate"])
def test_losses_and_gradients_are_those_of_tokens_scaled_and_shifted_one_by_one(fusion, dropout):
    """The Q-Former scales its projections instead of the tokens: the same, with no gradient of any token."""
    model, plain = pair(fusion=fusion, dropout=dropout)
    model.double()
    plain.double()
    reference, target, words, mask = inputs(model)
    weight, bias = (tensor.detach().clone().requires_grad_() for tensor in model.ln_vision.parameters())
    torch.manual_seed(2)
    losses = model.training_losses(reference.double(), target.double(), words, mask)
    torch.manual_seed(2)
    expected = plain.training_losses(reference.double() * weight + bias, target.double() * weight + bias, words, mask)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name])
    torch.testing.assert_close(model.ln_vision.weight.grad, weight.grad)
    torch.testing.assert_close(model.ln_vision.bias.grad, bias.grad)
    assert weight.grad.abs().min() > 0


@pytest.mark.parametrize("fusion", ["none", "gate"])
def test_every_pass_reads_the_scaled_tokens(fusion):
    model, plain = (one.eval() for one in pair(fusion=fusion))
    reference, target, words, mask = inputs(model)
    with torch.no_grad():
        scaled_reference, scaled_target = model.ln_vision(reference), model.ln_vision(target)
        for ours, theirs in (
            (model.encode_query(reference, words, mask), plain.encode_query(scaled_reference, words, mask)),
            (model.encode_target(target), plain.encode_target(scaled_target)),
            (
                model.match([reference, target], words, mask),
                plain.match([scaled_reference, scaled_target], words, mask),
            ),
        ):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        if fusion == "gate":
            gates = model.gate_values(reference, words, mask), plain.gate_values(scaled_reference, words, mask)
            torch.testing.assert_close(*gates)


def test_what_the_gate_changes_is_read_off_the_scaled_tokens():
    model, plain = (one.eval() for one in pair(fusion="gate+attention"))
    reference, _, words, mask = inputs(model)
    with watch(model) as seen, watch(plain) as expected:
        model.encode_query(reference, words, mask)
        plain.encode_query(model.ln_vision(reference), words, mask)
    for name in ("gate", "text_attention", "change", "relative_change"):
        torch.testing.assert_close(getattr(seen[-1], name), getattr(expected[-1], name), atol=1e-5, rtol=1e-4)


# -- checkpoints from before -------------------------------------------------------------------------------------------


@pytest.fixture
def lavis(whole, tmp_path):
    """Return a LAVIS file with a tower."""
    file = tmp_path / "blip2_pretrained.pth"
    torch.save({"model": whole("vit_eva", VOCABULARY)}, file)
    return file


def as_before(folder):
    """Rewrite a checkpoint folder as it was when the frozen tower had the norm's weights, or none but a file had."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    norm = {f"network.norm.{part}": weights.pop(f"ln_vision.{part}") for part in ("weight", "bias")}
    save_file(weights, folder / "model.safetensors")
    assert config.pop("ln_vision") is True
    if config["tower"] is None:
        save_file(norm, folder / "ln_vision.safetensors")
    else:
        tower = from_tower(folder, config) | norm
        config["tower"]["fingerprint"] = hash_weights({name: tensor.float() for name, tensor in tower.items()})
        if (folder / "tower.safetensors").exists():
            details = {"name": "eva-vit", "num_heads": "4", "norm_eps": "1e-05"}
            save_file(tower, folder / "tower.safetensors", details)
    (folder / "config.json").write_text(json.dumps(config))
    return norm


def from_tower(folder, config):
    if (folder / "tower.safetensors").exists():
        return load_file(folder / "tower.safetensors")
    return dict(build("pretrain", config["tower"]["weights"]).tower.state_dict())


@pytest.mark.usefixtures("small_heads")
@pytest.mark.parametrize("embed_tower", [True, False])
def test_a_checkpoint_from_before_loads_with_the_norm_in_its_tower(lavis, tmp_path, shapes_root, *, embed_tower):
    convert(str(lavis), "lavis", tmp_path / "model", embed_tower=embed_tower)
    files = sorted((shapes_root / "dev").glob("*.png"))[:2]
    now = from_pretrained(tmp_path / "model")
    norm = as_before(tmp_path / "model")
    before = from_pretrained(tmp_path / "model")
    assert before.ln_vision is None
    assert torch.equal(before.tower.network.norm.weight, norm["network.norm.weight"])
    # Apart by what fp16 rounds: tokens are kept before the scale now, and were behind it.
    torch.testing.assert_close(before.embed_target(files), now.embed_target(files), atol=5e-3, rtol=0)
    save_pretrained(before, tmp_path / "again")
    assert torch.equal(from_pretrained(tmp_path / "again").embed_target(files), before.embed_target(files))


@pytest.mark.usefixtures("small_heads")
def test_a_checkpoint_from_before_is_exported_with_its_norm(lavis, tmp_path):
    convert(str(lavis), "lavis", tmp_path / "model", embed_tower=True)
    export_sprc(str(tmp_path / "model"), tmp_path / "now.pt")
    as_before(tmp_path / "model")
    export_sprc(str(tmp_path / "model"), tmp_path / "before.pt")
    now, before = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("now", "before"))
    now, before = now["Blip2QformerCirAlignPrompt"], before["Blip2QformerCirAlignPrompt"]
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], before[name]) for name in now)


@pytest.mark.usefixtures("small_heads")
def test_a_checkpoint_from_before_without_a_tower_is_joined_with_one(whole, tmp_path, shapes_root):
    weights = whole("vit_eva", VOCABULARY)
    tower = {key: weights.pop(key) for key in list(weights) if key.startswith("visual_encoder.")}
    torch.save({"model": weights}, tmp_path / "q.pth")
    torch.save({key.removeprefix("visual_encoder."): tensor for key, tensor in tower.items()}, tmp_path / "eva.pth")
    convert(str(tmp_path / "q.pth"), "lavis", tmp_path / "blind")
    eyes = str(tmp_path / "eva.pth")
    convert(str(tmp_path / "blind"), "composir", tmp_path / "now", vision_tower=eyes)
    as_before(tmp_path / "blind")
    convert(str(tmp_path / "blind"), "composir", tmp_path / "joined", vision_tower=eyes)
    joined = from_pretrained(tmp_path / "joined")
    load_weights(from_pretrained(tmp_path / "now"), tmp_path / "joined" / "model.safetensors")
    files = sorted((shapes_root / "dev").glob("*.png"))[:2]
    assert torch.equal(joined.embed_target(files), from_pretrained(tmp_path / "now").embed_target(files))
