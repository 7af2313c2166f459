"""The BLIP-2 backbones, from small files in the layouts of the big ones."""

from __future__ import annotations

import pytest
import torch
from transformers import Blip2Config, Blip2ForImageTextRetrieval
from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig

from composir.errors import ComposirError
from composir.models import backbones
from composir.models.backbones import build
from composir.models.checkpoint import from_pretrained, save_pretrained
from composir.models.weights import start
from composir.training import load_recipe, train

VOCABULARY = 30_523


pytestmark = pytest.mark.usefixtures("small_heads")


@pytest.fixture
def lavis_file(whole, tmp_path):
    """Return the maker of a file in the layout of LAVIS's stage-1 checkpoints, from golden parts."""

    def make(tower):
        file, weights = tmp_path / "blip2_pretrained.pth", whole(tower, VOCABULARY)
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
    assert torch.equal(model.ln_vision.weight, weights["ln_vision.weight"])
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
        torch.testing.assert_close(model.ln_vision(model.tower.network(pixels)), tokens, atol=1e-5, rtol=0)
        found = model.encode_target(model.tower.network(pixels))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backbone", ["pretrain", "pretrain_vitL"])
def test_without_weights_the_message_says_what_where_and_what_instead(backbone, tmp_path):
    with pytest.raises(ComposirError) as error:
        build(backbone)
    words = str(error.value)
    assert "needs pretrained weights, and none were given" in words
    assert "blip2_pretrained" in words
    assert "--backbone mini" in words
    with pytest.raises(ComposirError, match=r"nowhere\.pth: no such file or folder"):
        build(backbone, str(tmp_path / "nowhere.pth"))


def test_weights_of_the_other_backbone_are_refused_by_their_width(lavis_file, monkeypatch):
    monkeypatch.setattr(start, "WIDTHS", {"pretrain": 1408, "pretrain_vitL": 64})
    file, _ = lavis_file("vit_clip")
    with pytest.raises(ComposirError, match=r"image tokens 64 wide, not 1408.*fix: --backbone pretrain_vitL"):
        build("pretrain", str(file))


def test_a_file_without_a_tower_makes_no_model_on_pictures(golden, tmp_path):
    torch.save({"Blip2QformerCirAlignPrompt": golden("weights")}, tmp_path / "sprc.pt")
    with pytest.raises(ComposirError, match=r"sprc\.pt: holds no vision tower"):
        build("pretrain", str(tmp_path / "sprc.pt"))


def test_training_starts_from_a_checkpoint_folder_with_another_gate(lavis_file, tmp_path):
    file, weights = lavis_file("vit_eva")
    save_pretrained(build("pretrain", str(file), use_gated_fusion=False), tmp_path / "plain")
    gated = build("pretrain", str(tmp_path / "plain"))
    assert gated.gated_fusion is not None
    assert gated.config.matching_head
    assert torch.equal(gated.itm_head.weight, weights["itm_head.weight"])
    save_pretrained(gated, tmp_path / "gated")
    backbones.read_backbone.cache_clear()
    again = build("pretrain", str(tmp_path / "gated"), alpha_init=0.1)
    assert torch.equal(again.gated_fusion.gate[0].weight, gated.gated_fusion.gate[0].weight)
    assert build("pretrain", str(tmp_path / "gated"), use_gated_fusion=False).gated_fusion is None


def test_the_tower_stays_asleep_and_frozen(lavis_file):
    model = build("pretrain", str(lavis_file("vit_eva")[0])).train()
    assert model.training
    assert not any(module.training for module in model.tower.modules())
    assert not any(parameter.requires_grad for parameter in model.tower.parameters())
