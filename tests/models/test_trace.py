"""What a trace says, against the model asked directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from composir.benchmark.steps import LibraryAttention
from composir.models.backbones import build
from composir.models.trace import patches, watch, without_fusions
from composir.scoring import similarity

TEXT = "make it red"


@pytest.fixture
def make_model():
    def make(fusion="gate", **settings):
        torch.manual_seed(0)
        model = build("tiny", fusion=fusion, **settings).eval()
        with torch.no_grad():  # fresh weights hardly hear the picture
            for parameter in model.qformer.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(5)
        return model

    return make


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)) for _ in range(2)]


def hide(tokens, place):
    hidden = tokens.clone()
    hidden[0, place] = tokens.float().mean(dim=1).to(tokens.dtype)[0]
    return hidden


def test_shapes_types_and_sums(make_model, pictures):
    model = make_model()
    seen = model.trace(pictures[0], TEXT, pictures[1])
    shapes = {
        "query": (16,), "cross_attention": (1, 2, 4, 9), "attention": (9,), "influence": (9,), "gate": (9,),
        "change": (9,), "relative_change": (9,), "fusion_influence": (9,), "vector_scores": (4,),
        "reference_attribution": (9,), "target_attribution": (9,),
    }  # fmt: skip
    for name, shape in shapes.items():
        values = getattr(seen, name)
        assert values.shape == shape, name
        assert values.dtype == np.float32, name
        assert np.isfinite(values).all(), name
    np.testing.assert_allclose(seen.cross_attention.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(seen.attention, seen.cross_attention.mean(axis=(0, 1, 2)), atol=1e-6)
    assert seen.text_attention is None
    assert ((seen.gate > 0) & (seen.gate < 1)).all()


@torch.no_grad()
def test_gate_and_change_are_those_of_the_formula(make_model, pictures):
    model = make_model()
    tokens, (ids, mask) = model.tokens(pictures[:1]), model.tokenize([TEXT])
    words = model.qformer.layernorm(model.text_embeddings(ids))
    gate, delta = model.gated_fusion.gate_and_delta(tokens.float(), words, mask)
    change = (0.5 * gate * delta[:, None])[0].norm(dim=-1)
    seen = model.trace(pictures[0], TEXT)
    np.testing.assert_allclose(seen.gate, gate[0].mean(dim=-1).detach(), atol=1e-6)
    np.testing.assert_allclose(seen.change, change.detach(), atol=1e-5)
    expected = change / tokens[0].float().norm(dim=-1)
    np.testing.assert_allclose(seen.relative_change, expected.detach(), atol=1e-5)


def test_cross_attention_is_what_the_library_s_attention_says(make_model, pictures):
    model = make_model()
    seen = []

    def ask_the_library(module, inputs, output):
        library = LibraryAttention(module, model.config).library.eval()
        library.config._attn_implementation = "eager"
        seen.append(library(inputs[0], encoder_hidden_states=inputs[1])[1])

    handles = [
        layer.crossattention.attention.register_forward_hook(ask_the_library)
        for layer in model.qformer.layers
        if layer.has_cross_attention
    ]
    traced = model.trace(pictures[0], TEXT)
    for handle in handles:
        handle.remove()
    np.testing.assert_allclose(traced.cross_attention[0], seen[0][0].detach(), atol=1e-6)


@pytest.mark.parametrize("fusion", ["none", "gate", "attention", "gate+attention", "late"])
@torch.no_grad()
def test_influence_is_how_far_the_query_moves(make_model, pictures, fusion):
    model = make_model(fusion)
    seen = model.trace(pictures[0], TEXT)
    query = model.embed_query(pictures[:1], [TEXT])
    np.testing.assert_allclose(seen.query, query[0], atol=1e-6)
    tokens, inputs = model.tokens(pictures[:1]), model.tokenize([TEXT])
    for place in range(9):
        moved = (model.encode_query(hide(tokens, place), *inputs) - query).norm()
        assert seen.influence[place] == pytest.approx(moved.item(), abs=1e-5)
    assert seen.influence.min() > 1e-4
    has = {"gate": "gate" in fusion, "text_attention": "attention" in fusion}
    has |= dict.fromkeys(("change", "relative_change", "fusion_influence"), "gate" in fusion or "attention" in fusion)
    assert {name: getattr(seen, name) is not None for name in has} == has


@torch.no_grad()
def test_attribution_is_how_far_the_score_falls(make_model, pictures):
    model = make_model()
    seen = model.trace(pictures[0], TEXT, pictures[1])
    query, target = model.embed_query(pictures[:1], [TEXT]), model.embed_target(pictures[1:])
    score = similarity(query, target).item()
    assert seen.score == pytest.approx(score, abs=1e-6)
    assert seen.vector_scores.max() == pytest.approx(score, abs=1e-6)
    tokens, other, inputs = model.tokens(pictures[:1]), model.tokens(pictures[1:]), model.tokenize([TEXT])
    for place in range(9):
        of_reference = score - similarity(model.encode_query(hide(tokens, place), *inputs), target).item()
        of_target = score - similarity(query, model.encode_target(hide(other, place))).item()
        assert seen.reference_attribution[place] == pytest.approx(of_reference, abs=1e-5)
        assert seen.target_attribution[place] == pytest.approx(of_target, abs=1e-5)


@torch.no_grad()
def test_the_fusions_influence_is_that_of_undoing_it_on_one_patch(make_model, pictures):
    model = make_model(alpha_init=3.0)
    seen = model.trace(pictures[0], TEXT)
    tokens, (ids, mask) = model.tokens(pictures[:1]).float(), model.tokenize([TEXT])
    fused = model.gated_fusion(tokens, model.qformer.layernorm(model.text_embeddings(ids)), mask)
    query = model.encode_query(tokens, ids, mask)
    with without_fusions(model):
        torch.testing.assert_close(model.encode_query(fused, ids, mask), query)
        for place in range(9):
            fused_but_one = fused.clone()
            fused_but_one[0, place] = tokens[0, place]
            moved = (model.encode_query(fused_but_one, ids, mask) - query).norm()
            assert seen.fusion_influence[place] == pytest.approx(moved.item(), abs=1e-5)
    assert seen.fusion_influence.min() > 1e-4


def test_with_alpha_zero_nothing_is_changed(make_model, pictures):
    seen = make_model(alpha_init=0.0).trace(pictures[0], TEXT)
    assert not seen.change.any()
    np.testing.assert_allclose(seen.fusion_influence, 0, atol=1e-6)


def test_without_fusions_is_the_model_that_has_none_and_comes_back(make_model, pictures):
    model, plain = make_model("gate+late"), make_model("none")
    with_fusions = model.embed_query(pictures[:1], [TEXT])
    with without_fusions(model):
        assert torch.equal(model.embed_query(pictures[:1], [TEXT]), plain.embed_query(pictures[:1], [TEXT]))
    assert torch.equal(model.embed_query(pictures[:1], [TEXT]), with_fusions)


@torch.no_grad()
def test_text_guided_attention_is_traced_behind_the_gate(make_model, pictures):
    model = make_model("gate+attention")
    seen = model.trace(pictures[0], TEXT)
    assert seen.text_attention.sum() == pytest.approx(1, abs=1e-5)
    tokens, (ids, mask) = model.tokens(pictures[:1]).float(), model.tokenize([TEXT])
    words = model.qformer.layernorm(model.text_embeddings(ids))
    gated = model.gated_fusion(tokens, words, mask)
    attention = model.fusions["attention"]
    np.testing.assert_allclose(
        seen.text_attention, attention.attention(gated, attention.summarise(words, mask))[0].detach(), atol=1e-6
    )
    change = (attention(gated, words, mask) - tokens)[0].norm(dim=-1)
    np.testing.assert_allclose(seen.change, change.detach(), atol=1e-5)


def test_tracing_leaves_the_model_as_it_was(make_model, pictures):
    model = make_model().train()
    model.trace(pictures[0], TEXT, pictures[1])
    assert model.training
    hooks = [module for module in model.modules() if module._forward_hooks or module._forward_pre_hooks]
    assert not hooks


# -- watching ----------------------------------------------------------------------------------------------------------


def gradients(model, pictures, *, watched):
    torch.manual_seed(1)
    tokens, inputs = model.tokens(pictures), model.tokenize([TEXT, "and it is blue"])
    model.zero_grad()
    if watched:
        with watch(model) as seen:
            losses = model.training_losses(tokens, tokens, *inputs)
    else:
        seen, losses = [], model.training_losses(tokens, tokens, *inputs)
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, list(seen)


def test_a_watched_training_step_has_the_same_gradients_to_the_bit(make_model, pictures):
    model = make_model(dropout=0.5).train()
    plain, _ = gradients(model, pictures, watched=False)
    watched, seen = gradients(model, pictures, watched=True)
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert [one.with_text for one in seen] == [True, False]
    assert seen[0].gate.shape == (2, 9)
    assert seen[0].cross_attention.shape == seen[1].cross_attention.shape == (2, 1, 2, 4, 9)
    assert seen[1].gate is seen[1].change is None
    assert not seen[0].gate.requires_grad


def test_all_readings_of_a_step_with_a_late_gate_are_kept(make_model, pictures):
    _, seen = gradients(make_model(fusion="gate+late").train(), pictures, watched=True)
    assert [one.with_text for one in seen] == [True, False, False]
    assert seen[0].gate.shape == (2, 9)


def test_only_the_last_readings_are_kept(make_model, pictures):
    model = make_model()
    with watch(model, keep=3) as seen:
        for _ in range(4):
            model.embed_target(pictures)
        model.embed_query(pictures, [TEXT, TEXT])
    assert [one.with_text for one in seen] == [False, False, True]
    model.embed_target(pictures)
    assert len(seen) == 3


def test_patches_are_rows_and_columns_without_the_class_token():
    assert patches(np.arange(9.0)).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert patches(np.arange(10.0)[None]).tolist() == [[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]
    assert patches(np.zeros(257)).shape == (16, 16)
    with pytest.raises(ValueError, match="11 tokens are no square"):
        patches(np.zeros(11))
