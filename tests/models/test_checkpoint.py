from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import composir
from composir.errors import ComposirError
from composir.models import checkpoint
from composir.models.backbones import build
from composir.models.backbones.blip2 import blip2_tokenizer
from composir.models.checkpoint import from_pretrained, save_pretrained, weights_hash
from composir.models.fusion import FUSIONS, NONE


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = build("tiny").eval()
    save_pretrained(model, tmp_path / "model", extra_files={"recipe.toml": b"seed = 0\n"})
    return model, tmp_path / "model"


def test_a_saved_model_answers_the_same(saved, shapes_root):
    model, folder = saved
    again = composir.load(folder)
    files = sorted((shapes_root / "dev").glob("*.png"))[:3]
    texts = ["make it red", "make it blue", ""]
    assert torch.equal(again.embed_query(files, texts), model.embed_query(files, texts))
    assert torch.equal(again.embed_target(files), model.embed_target(files))
    assert weights_hash(again) == weights_hash(model)
    assert not again.training


@pytest.mark.parametrize("gate", [True, False])
def test_a_checkpoint_from_before_there_were_several_fusions_loads(tmp_path, gate):
    model = build("tiny", fusion="gate" if gate else "none").eval()
    save_pretrained(model, tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    fields = json.loads(file.read_text())
    del fields["fusion"]
    file.write_text(json.dumps({**fields, "use_gated_fusion": gate}))
    again = from_pretrained(tmp_path / "model")
    assert (again.gated_fusion is not None) == gate
    assert again.config == model.config
    assert weights_hash(again) == weights_hash(model)


def test_the_gate_s_pooling_is_kept_and_masked_where_a_checkpoint_does_not_say(tmp_path):
    model = build("tiny", gate_pooling="all").eval()
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert again.config.gate_pooling == "all"
    tokens, (ids, mask) = torch.randn(2, 9, 24), model.tokenize(["red", "make it blue"])
    assert torch.equal(again.encode_query(tokens, ids, mask), model.encode_query(tokens, ids, mask))
    file = tmp_path / "model" / "config.json"
    fields = json.loads(file.read_text())
    del fields["gate_pooling"]
    file.write_text(json.dumps(fields))
    before = from_pretrained(tmp_path / "model")
    assert before.config.gate_pooling == "masked"
    assert not torch.allclose(before.encode_query(tokens, ids, mask), model.encode_query(tokens, ids, mask))


@pytest.mark.parametrize("fusion", ["late", "gate+attention", "tirg", "combiner", "sum", "none"])
def test_every_fusion_is_kept_by_a_checkpoint(tmp_path, fusion):
    model = build("tiny", fusion=fusion).eval()
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert again.config.fusion == fusion
    tokens, (ids, mask) = torch.randn(2, 9, 24), model.tokenize(["red", "make it blue"])
    assert torch.equal(again.encode_query(tokens, ids, mask), model.encode_query(tokens, ids, mask))
    named = fusion.replace("+", " and ")
    line = "without a fusion" if fusion == "none" else f"with the fusion {named}"
    assert line in (tmp_path / "model/README.md").read_text()


def test_the_folder_holds_what_it_should_and_not_the_tower(saved):
    _, folder = saved
    assert sorted(file.name for file in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "recipe.toml",
        "tokenizer.json",
    ]
    assert not any(name.startswith("tower.") for name in load_file(folder / "model.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    assert config["tower"]["name"] == "tiny"
    assert config["backbone"] == "tiny"


def test_the_hash_tells_models_apart(saved):
    model, _ = saved
    before = weights_hash(model)
    with torch.no_grad():
        model.temperature.add_(1e-3)
    assert weights_hash(model) != before


def test_saving_over_a_model_replaces_it_whole(saved):
    model, folder = saved
    (folder / "left over").write_text("x")
    save_pretrained(model, folder)
    assert not (folder / "left over").exists()
    assert not (folder / "recipe.toml").exists()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def edit_config(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, ["was written by composir", "which is newer", "install a newer composir"]),
        ({"format": "1"}, ["config.json: format is '1'; expected a whole number, 1; fix: use the config.json"]),
        ({"format": None}, ["format is None"]),
        ({"tower": "tiny"}, ["tower is 'tiny'; expected null, or its name, weights and fingerprint as text"]),
        ({"tower": {}}, ["tower is {}"]),
        ({"tower": {"name": 3, "fingerprint": "0"}}, ["tower is {'name': 3"]),
        ({"backbone": "minni"}, ["backbone 'minni' is not known", "config.json"]),
        ({"hidden_size": -1}, ["hidden_size = -1: expected a whole number, above 0", "config.json"]),
        ({"no_such_field": 1}, ["no_such_field", "config.json"]),
        (
            {"no_such_field": 1, "composir_version": "0.7.2"},
            [
                "was written by composir 0.7.2, this is 0.1.0: unknown key 'no_such_field'",
                "fix: install composir 0.7.2",
            ],
        ),
        ({"embed_dim": 17}, ["does not fit its config.json", "vision_proj.weight is (16, 32) instead of (17, 32)"]),
        ({"fusion": "none"}, ["does not fit its config.json", "unexpected gated_fusion.alpha"]),
        ({"tower": {"name": "tiny", "fingerprint": "0"}}, ["was made with tower weights 0", "the same frozen tower"]),
        ({"model": "other"}, ["is not the config of a composir model"]),
    ],
)
def test_a_config_that_does_not_fit_is_one_clear_error(saved, changes, words):
    _, folder = saved
    edit_config(folder, **changes)
    with pytest.raises(ComposirError) as error:
        from_pretrained(folder)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_missing_or_cut_file_is_one_clear_error(saved, tmp_path):
    _, folder = saved
    with pytest.raises(ComposirError, match="nowhere: no such file or folder"):
        from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ComposirError, match=r"is not a checkpoint folder: it has no config\.json"):
        from_pretrained(tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ComposirError, match="is not a readable safetensors file"):
        from_pretrained(folder)
    weights.unlink()
    with pytest.raises(ComposirError, match="is missing"):
        from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ComposirError, match="is not JSON"):
        from_pretrained(folder)


def test_missing_and_unexpected_weights_are_all_named(saved):
    _, folder = saved
    weights = load_file(folder / "model.safetensors")
    weights.pop("temperature")
    weights.pop("query_tokens")
    weights["surplus"] = torch.zeros(1)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ComposirError, match="missing query_tokens, missing temperature, unexpected surplus"):
        from_pretrained(folder)


@pytest.mark.parametrize("backbone", ["tiny", "mini"])
def test_a_stored_tower_needs_no_package(tmp_path, shapes_root, monkeypatch, backbone):
    model = build(backbone).eval()
    save_pretrained(model, tmp_path / "model", embed_tower=True)
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["tower"]["weights"] == "tower.safetensors"
    assert "is in tower.safetensors" in (tmp_path / "model/README.md").read_text()
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    again = from_pretrained(tmp_path / "model")
    files = sorted((shapes_root / "dev").glob("*.png"))[:2]
    assert torch.equal(again.embed_target(files), model.embed_target(files))
    assert weights_hash(again) == weights_hash(model)


def test_a_stored_tower_that_is_changed_or_unknown_is_refused(tmp_path):
    save_pretrained(build("tiny"), tmp_path / "model", embed_tower=True)
    file = tmp_path / "model/tower.safetensors"
    weights = load_file(file)
    save_file(weights, file, metadata={"name": "telescope"})
    with pytest.raises(ComposirError, match="holds a tower 'telescope', which is not known; expected one of tiny"):
        from_pretrained(tmp_path / "model")
    weights["network.convolution.bias"] += 1
    save_file(weights, file, metadata={"name": "tiny"})
    with pytest.raises(ComposirError, match="was made with tower weights"):
        from_pretrained(tmp_path / "model")
    del weights["network.convolution.bias"]
    save_file(weights, file, metadata={"name": "tiny"})
    with pytest.raises(ComposirError, match=r"tower\.safetensors: does not hold the weights of a tower 'tiny'"):
        from_pretrained(tmp_path / "model")
    file.unlink()
    with pytest.raises(ComposirError, match=r"tower\.safetensors: is missing"):
        from_pretrained(tmp_path / "model")


def test_a_tokenizer_of_another_model_is_refused(saved):
    _, folder = saved
    blip2_tokenizer().save(folder / "tokenizer.json")
    with pytest.raises(ComposirError, match=r"tokenizer\.json: knows 30,523 words, and the weights have a row for 140"):
        from_pretrained(folder)


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    model, folder = saved

    def fail(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_safetensors", fail)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(model, folder)
    assert weights_hash(from_pretrained(folder)) == weights_hash(model)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


@pytest.mark.parametrize("fusion", [NONE, *FUSIONS])
def test_reading_a_checkpoint_draws_no_random_number_and_gives_what_was_saved(tmp_path, fusion):
    model = build("tiny", fusion=fusion).eval()
    save_pretrained(model, tmp_path / "model")
    before = torch.get_rng_state()
    again = from_pretrained(tmp_path / "model")
    assert torch.equal(torch.get_rng_state(), before)
    known, read = model.state_dict(), again.state_dict()
    assert list(read) == list(known)
    assert all(torch.equal(read[name], tensor) for name, tensor in known.items())
    assert not torch.equal(build("tiny", fusion=fusion).query_tokens, model.query_tokens)  # a fresh one is drawn
