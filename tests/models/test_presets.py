from __future__ import annotations

import pytest
import torch

from composir.errors import ComposirError
from composir.models.backbones import build


@pytest.fixture(scope="module")
def mini():
    torch.manual_seed(0)
    return build("mini").eval()


def test_an_unknown_backbone_suggests_the_nearest():
    with pytest.raises(ComposirError, match=r"backbone 'mimi' is not known; fix: did you mean 'mini'\?"):
        build("mimi")


@pytest.mark.parametrize("backbone", ["tiny", "mini"])
def test_weights_are_not_passed_over_by_a_backbone_that_takes_none(backbone):
    words = rf"the backbone '{backbone}' takes no weights, and my\.pt was given; expected .*pretrain or pretrain_vitL"
    with pytest.raises(ComposirError, match=words):
        build(backbone, "my.pt")


def test_settings_override_the_backbone_s_config():
    model = build("tiny", use_gated_fusion=False, num_query_tokens=3)
    assert model.gated_fusion is None
    assert model.query_tokens.shape == (1, 3, 32)
    with pytest.raises(ValueError, match="num_query_tokens"):
        build("tiny", num_query_tokens=0)


def test_mini_gates_tokens_as_wide_as_the_published_self_check(mini):
    assert mini.gated_fusion is not None
    projection = 384 * 768 + 768
    assert sum(p.numel() for p in mini.gated_fusion.parameters()) == 2_952_193 + projection


def test_mini_starts_from_minilm_on_both_sides(mini):
    layer = mini.qformer.encoder.layer[0]
    assert torch.equal(layer.intermediate.dense.weight, layer.intermediate_query.dense.weight)
    assert torch.equal(layer.output.LayerNorm.bias, layer.output_query.LayerNorm.bias)
    assert not mini.text_embeddings.word_embeddings.weight.requires_grad
    assert layer.attention.attention.key.weight.abs().sum() > 0
    cls = mini.text_embeddings.word_embeddings.weight
    similar, other = (torch.nn.functional.cosine_similarity(cls[2417], cls[word], dim=0) for word in (2630, 2832))
    assert similar > other  # red is nearer to blue than to process: these are trained words


def test_mini_s_query_listens_to_picture_and_sentence_from_the_start(mini):
    """At the start [CLS] is a mean over words and queries: both change it, and by much more than rounding does."""
    torch.manual_seed(0)
    tokens = torch.randn(6, 49, 768)
    ids, mask = mini.tokenize(["make it red", "same but blue", "on a beach", "with a dog", "is shorter", "remove it"])
    with torch.inference_mode():

        def spread(tokens, ids, mask):
            return mini.answer(mini.fuse(tokens, ids, mask), ids, mask).var(dim=0).sum().item()

        by_picture = spread(tokens, ids[:1].expand(6, -1), mask[:1].expand(6, -1))
        by_sentence = spread(tokens[:1].expand(6, -1, -1), ids, mask)
    assert by_picture > 0.01
    assert by_sentence > 0.01
