from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import composir
from composir.errors import ComposirError
from composir.models import checkpoint
from composir.models.checkpoint import from_pretrained, save_pretrained, weights_hash
from composir.models.presets import build


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
        ({"format": 99}, ["was written by composir", "which is newer", "pip install -U composir"]),
        ({"backbone": "minni"}, ["backbone 'minni' is not known", "config.json"]),
        ({"hidden_size": -1}, ["hidden_size", "greater than 0", "config.json"]),
        ({"no_such_field": 1}, ["no_such_field", "config.json"]),
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
    with pytest.raises(ComposirError, match=r"is not a checkpoint folder: it has no config\.json"):
        from_pretrained(tmp_path / "nowhere")
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


def test_a_failed_save_leaves_the_old_model(saved, monkeypatch):
    model, folder = saved

    def fail(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        save_pretrained(model, folder)
    assert weights_hash(from_pretrained(folder)) == weights_hash(model)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
