"""The BLIP-2 backbones, from small files in the layouts of the big ones."""

from __future__ import annotations

import pytest
import torch
from transformers import Blip2Config, Blip2ForImageTextRetrieval
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig

from composir.errors import ComposirError
from composir.models import blip2, vit
from composir.models.checkpoint import from_pretrained, save_pretrained
from composir.models.presets import build
from composir.training import load_recipe, train

VOCABULARY = 30_523


@pytest.fixture(autouse=True)
def _small_heads(monkeypatch):
    monkeypatch.setattr(vit, "NUM_HEADS_BY_WIDTH", {64: 4})
    monkeypatch.setattr(blip2, "HEAD_DIM", 16)
    blip2.read_start.cache_clear()


@pytest.fixture
def lavis_file(golden, tmp_path):
    """Return the maker of a file in the layout of LAVIS's stage-1 checkpoints, from golden parts."""

    def make(tower):
        weights = {key: value for key, value in golden(tower).items() if not key.startswith("__")}
        weights |= {key: value for key, value in golden("weights").items() if key != "prompt_tokens"}
        for layer in (0, 2):  # the golden Q-Former reads tokens 48 wide, the golden towers are 64 wide
            for part in ("key", "value"):
                name = f"Qformer.bert.encoder.layer.{layer}.crossattention.self.{part}.weight"
                weights[name] = torch.randn(64, 64)
        words = torch.randn(VOCABULARY, 64)
        weights["Qformer.bert.embeddings.word_embeddings.weight"] = words
        file = tmp_path / "blip2_pretrained.pth"
        torch.save({"model": weights}, file)
        return file, weights

    return make


@pytest.mark.parametrize(("backbone", "tower"), [("pretrain", "vit_eva"), ("pretrain_vitL", "vit_clip")])
def test_a_lavis_file_makes_a_model_that_holds_its_weights(lavis_file, backbone, tower, shapes_root):
    file, weights = lavis_file(tower)
    model = build(backbone, str(file)).eval()
    assert (model.config.token_width, model.config.hidden_size, model.config.num_query_tokens) == (64, 64, 32)
    assert model.gated_fusion is not None
    assert torch.equal(model.query_tokens, weights["query_tokens"])
    assert torch.equal(model.tower.network.norm.weight, weights["ln_vision.weight"])
    name = "Qformer.bert.encoder.layer.2.crossattention.self.key.weight"
    assert torch.equal(model.qformer.encoder.layer[2].crossattention.attention.key.weight, weights[name])
    files = sorted((shapes_root / "dev").glob("*.png"))[:2]
    assert model.embed_query(files, ["red", "blue"]).shape == (2, 24)


def test_a_model_of_a_lavis_file_is_saved_without_its_tower_and_loads_again(lavis_file, shapes_root, tmp_path):
    file, _ = lavis_file("vit_eva")
    model = build("pretrain", str(file)).eval()
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    files = sorted((shapes_root / "dev").glob("*.png"))[:2]
    assert torch.equal(again.embed_target(files), model.embed_target(files))


def test_the_published_backbone_trains_from_a_lavis_file(lavis_file, shapes_root, tmp_path):
    file, _ = lavis_file("vit_clip")
    recipe = load_recipe(
        {
            "backbone": "pretrain_vitL",
            "weights": str(file),
            "data_root": str(shapes_root),
            "output_dir": str(tmp_path / "models"),
            "num_epochs": 1,
            "batch_size": 12,
        }
    )
    assert train(recipe).best is not None


def test_a_hub_folder_makes_a_model_with_the_same_features(tmp_path):
    vision = Blip2VisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    qformer = Blip2QFormerConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        encoder_hidden_size=32, use_qformer_text_input=True,
    )  # fmt: skip
    config = Blip2Config(vision_config=vision, qformer_config=qformer, num_query_tokens=4, image_text_hidden_size=8)
    torch.manual_seed(0)
    whole = Blip2ForImageTextRetrieval(config).eval()
    whole.save_pretrained(tmp_path / "hub")
    model = build("pretrain", str(tmp_path / "hub")).eval()
    pixels = torch.randn(2, 3, 28, 28)
    with torch.inference_mode():
        tokens = whole.vision_model(pixels).last_hidden_state
        queries = whole.query_tokens.expand(2, -1, -1)
        hidden = whole.qformer(query_embeds=queries, encoder_hidden_states=tokens).last_hidden_state
        expected = torch.nn.functional.normalize(whole.vision_projection(hidden), dim=-1)
        torch.testing.assert_close(model.tower.network(pixels), tokens, atol=1e-5, rtol=0)
        torch.testing.assert_close(model.encode_target(tokens), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", ["pretrain", "pretrain_vitL"])
def test_without_weights_the_message_says_what_where_and_what_instead(backbone, tmp_path):
    with pytest.raises(ComposirError) as error:
        build(backbone)
    words = str(error.value)
    assert "needs pretrained weights, and none were given" in words
    assert "blip2_pretrained" in words
    assert "--backbone mini" in words
    with pytest.raises(ComposirError, match="no such file or folder of weights"):
        build(backbone, str(tmp_path / "nowhere.pth"))


class Planted:
    """A pickle that would run code when it is loaded without care."""

    def __reduce__(self):
        return (open, ("planted", "w"))


@pytest.mark.parametrize("content", ["cut", "code", "other"])
def test_a_file_that_is_no_such_checkpoint_is_one_clear_error(content, lavis_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file, _ = lavis_file("vit_eva")
    if content == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif content == "code":
        torch.save({"model": Planted()}, file)
    else:
        torch.save({"model": {"layer.weight": torch.zeros(2)}}, file)
    with pytest.raises(ComposirError, match=r"blip2_pretrained\.pth.*expected LAVIS's blip2_pretrained\.pth"):
        build("pretrain", str(file))
    assert not (tmp_path / "planted").exists()


def test_a_folder_that_is_no_hub_model_is_one_clear_error(tmp_path):
    with pytest.raises(ComposirError, match="cannot be read as a BLIP-2 image-text model"):
        build("pretrain", str(tmp_path))
    with pytest.raises(ComposirError, match="is a folder"):
        build("pretrain_vitL", str(tmp_path))
