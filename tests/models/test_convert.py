"""The key maps: every key has its place, forth and back."""

from __future__ import annotations

import pytest
import torch

from composir.models.weights.names import HF_RULES, rename, their_name, to_lavis


@pytest.mark.parametrize("tower", ["vit_eva", "vit_clip"])
def test_every_key_is_mapped_or_dropped_with_a_reason_and_goes_back(whole, tower):
    weights = whole(tower, prompt=True)
    renamed = rename(weights)
    assert renamed.unknown == ()
    assert set(renamed.mapped) | set(renamed.dropped) == set(weights)
    assert all(
        key.startswith(("Qformer.cls.", "Qformer.bert.embeddings.position_ids")) and reason
        for key, reason in renamed.dropped.items()
    )
    back = to_lavis(renamed.weights)
    assert set(back.weights) == set(renamed.mapped)
    assert all(torch.equal(back.weights[key], weights[key]) for key in back.weights)


def test_what_the_training_of_the_reranking_model_keeps_beside_it_is_dropped(golden):
    weights = golden("weights")
    copies = {f"Fformer{key.removeprefix('Qformer')}": value for key, value in weights.items() if "Qformer" in key}
    copies |= {"query_tokens_f": weights["query_tokens"], "vision_proj_f.bias": weights["vision_proj.bias"]}
    renamed = rename({**weights, **copies})
    assert renamed.unknown == ()
    assert set(copies) <= set(renamed.dropped)


def test_a_key_that_no_rule_speaks_of_is_told():
    renamed = rename({"query_tokens": torch.zeros(1), "opt_model.x": torch.zeros(1), "temperature": torch.zeros(1)})
    assert renamed.unknown == ("opt_model.x", "temperature")
    assert to_lavis({"adapter.norm.bias": torch.zeros(1)}).unknown == ("adapter.norm.bias",)


def test_a_bias_of_queries_without_that_of_values_has_no_place():
    assert rename({"visual_encoder.blocks.0.attn.q_bias": torch.zeros(2)}).unknown == (
        "visual_encoder.blocks.0.attn.q_bias",
    )


def test_their_names_are_used_in_messages():
    assert their_name("vision_proj.bias", HF_RULES) == "vision_projection.bias"
    assert their_name("gated_fusion.alpha", HF_RULES) == "gated_fusion.alpha"
