"""Parity with the published model, in the numbers of tests/golden."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Blip2QFormerModel

from composir.benchmark.steps import library_config
from composir.losses import contrastive_loss
from composir.models.backbones import build
from composir.models.weights.names import rename
from composir.scoring import similarity

TOLERANCE = {"atol": 1e-5, "rtol": 0}
WEIGHTS = {"loss_itc": 1.0, "loss_rtc": 0.4, "loss_align": 0.4}


def inputs(data):
    return data["ref_embeds"], data["target_embeds"], data["input_ids"], data["attention_mask"]


def total(losses):
    return sum(weight * losses[name] for name, weight in WEIGHTS.items())


def test_hidden_states_equal_the_published_ones(golden, golden_model):
    data, model = golden("forward"), golden_model()
    reference, target, ids, mask = inputs(data)
    queries = model.config.num_query_tokens
    torch.testing.assert_close(model.fuse(reference, ids, mask), data["fusion_hidden"][:, :queries], **TOLERANCE)
    torch.testing.assert_close(model.look(target), data["target_hidden"], **TOLERANCE)


def test_reading_a_few_positions_equals_the_library_s_whole_pass(golden, golden_model):
    data, model = golden("forward"), golden_model()
    reference, _, ids, mask = inputs(data)
    queries = model.config.num_query_tokens
    words = model.text_embeddings(ids)
    embeddings = torch.cat([model.query_tokens.expand(len(ids), -1, -1), words], dim=1)
    whole_mask = torch.cat([mask.new_ones(len(ids), queries), mask], dim=1)
    library = Blip2QFormerModel(library_config(model.config, "eager")).eval()
    library.load_state_dict(model.qformer.state_dict())
    whole = library(
        query_embeds=embeddings, query_length=queries, attention_mask=whole_mask, encoder_hidden_states=reference
    ).last_hidden_state
    torch.testing.assert_close(whole, data["fusion_hidden"], **TOLERANCE)
    torch.testing.assert_close(model.fuse(reference, ids, mask), whole[:, :queries], **TOLERANCE)
    text = library(query_embeds=embeddings, query_length=0, attention_mask=whole_mask).last_hidden_state
    for at in (slice(0, 1), slice(queries, queries + 1), slice(3, 9)):
        read = model.qformer(model.query_tokens, words, mask, at=at)
        torch.testing.assert_close(read, text[:, at], **TOLERANCE)


def test_features_and_similarity_equal_the_published_ones(golden, golden_model):
    data, model = golden("forward"), golden_model()
    reference, target, ids, mask = inputs(data)
    query, targets = model.encode_query(reference, ids, mask), model.encode_target(target)
    torch.testing.assert_close(query, data["fusion_feats"], **TOLERANCE)
    torch.testing.assert_close(targets, data["target_feats"], **TOLERANCE)
    torch.testing.assert_close(model.encode_prompt(ids, mask), data["text_only_feats"], **TOLERANCE)
    torch.testing.assert_close(similarity(query, targets), data["inference_similarity"], **TOLERANCE)


def test_matching_equals_the_published_head_and_the_candidate_counts(golden, golden_model):
    data, model = golden("forward"), golden_model(use_gated_fusion=True)
    reference, target, ids, mask = inputs(data)
    torch.testing.assert_close(model.match((reference,), ids, mask), data["itm_logits"], **TOLERANCE)
    both = model.match((reference, target), ids, mask)
    other = model.match((reference, target.roll(1, 0)), ids, mask)
    assert both.shape == (6,)
    assert (both - other).abs().min() > 1e-4
    one = model.match((reference[:1], target[:1]), ids[:1], mask[:1])
    torch.testing.assert_close(one, both[:1], **TOLERANCE)


def test_losses_and_gradients_equal_the_published_ones(golden, golden_model):
    data, model = golden("forward"), golden_model()
    losses = model.training_losses(*inputs(data))
    for name in WEIGHTS:
        torch.testing.assert_close(losses[name], data[name].squeeze(0), **TOLERANCE)
    torch.testing.assert_close(total(losses), data["loss_total"].squeeze(0), **TOLERANCE)
    total(losses).backward()
    gradients = rename(golden("gradients")).weights
    names = {name for name, _ in model.named_parameters()}
    assert set(gradients) <= names
    assert names - set(gradients) == {"itm_head.weight", "itm_head.bias"}
    for name, gradient in gradients.items():
        own = model.get_parameter(name).grad
        torch.testing.assert_close(torch.zeros_like(gradient) if own is None else own, gradient, **TOLERANCE)


def test_the_gate_off_is_not_constructed_and_alpha_zero_changes_no_number(golden, golden_model):
    data = golden("forward")
    off, zero = golden_model(), golden_model(use_gated_fusion=True, alpha_init=0.0)
    assert off.gated_fusion is None
    assert not any("gated_fusion" in name for name in off.state_dict())
    plain, gated = off.training_losses(*inputs(data)), zero.training_losses(*inputs(data))
    assert all(torch.equal(plain[name], gated[name]) for name in WEIGHTS)
    reference, _, ids, mask = inputs(data)
    assert torch.equal(off.encode_query(reference, ids, mask), zero.encode_query(reference, ids, mask))


def test_the_gate_acts_on_the_query_and_not_on_the_target(golden, golden_model):
    data = golden("forward")
    off, on = golden_model(), golden_model(use_gated_fusion=True)
    reference, target, ids, mask = inputs(data)
    assert not torch.allclose(off.encode_query(reference, ids, mask), on.encode_query(reference, ids, mask))
    assert torch.equal(off.encode_target(target), on.encode_target(target))
    assert torch.equal(off.encode_prompt(ids, mask), on.encode_prompt(ids, mask))


def test_the_fork_s_gate_takes_the_mean_of_all_positions_padding_included(golden, golden_model):
    """Written out: words and places of 32 positions, normalised, their mean; whatever length the batch is cut to."""
    data = golden("forward")
    masked, model = golden_model(use_gated_fusion=True), golden_model(use_gated_fusion=True, gate_pooling="all")
    model.load_state_dict(masked.state_dict())
    reference, _, ids, mask = inputs(data)
    full = torch.nn.functional.pad(ids, (0, 32 - ids.shape[1]))  # [PAD] is 0
    words, places = model.text_embeddings.word_embeddings.weight, model.text_embeddings.position_embeddings.weight
    sentences = model.qformer.layernorm(words[full] + places[:32])
    tokens = model.gated_fusion(reference, sentences)
    expected = model.qformer(
        model.query_tokens, model.text_embeddings(ids), mask, tokens, at=slice(model.config.num_query_tokens)
    )
    longest = int(mask.sum(dim=1).max())
    for length in (longest, ids.shape[1]):
        fused = model.fuse(reference, ids[:, :length], mask[:, :length])
        torch.testing.assert_close(fused, expected, **TOLERANCE)
    gate = model.gated_fusion.gate_and_delta(reference, sentences)[0]
    torch.testing.assert_close(model.gate_values(reference, ids, mask), gate, **TOLERANCE)
    assert not torch.allclose(masked.fuse(reference, ids, mask), expected, atol=1e-4)


def test_padding_is_not_trained_by_the_fork_s_mean(golden, golden_model):
    data, model = golden("forward"), golden_model(use_gated_fusion=True, gate_pooling="all")
    total(model.training_losses(*inputs(data))).backward()
    assert not model.text_embeddings.word_embeddings.weight.grad[0].any()
    assert model.text_embeddings.position_embeddings.weight.grad[31].any()


@pytest.mark.parametrize("gate", [False, True])
def test_a_batch_of_one_equals_its_row_in_a_batch(golden, golden_model, gate):
    data, model = golden("forward"), golden_model(use_gated_fusion=gate)
    reference, target, ids, mask = inputs(data)
    query, targets = model.encode_query(reference, ids, mask), model.encode_target(target)
    for row in range(len(ids)):
        one = slice(row, row + 1)
        assert model.encode_query(reference[one], ids[one], mask[one]).shape == query[one].shape
        torch.testing.assert_close(model.encode_query(reference[one], ids[one], mask[one]), query[one], **TOLERANCE)
        torch.testing.assert_close(model.encode_target(target[one]), targets[one], **TOLERANCE)


def test_padding_does_not_change_a_query(golden, golden_model):
    data, model = golden("forward"), golden_model(use_gated_fusion=True)
    reference, _, ids, mask = inputs(data)
    row = int(mask.sum(dim=1).argmin())
    length = int(mask[row].sum())
    assert length < ids.shape[1]
    one = slice(row, row + 1)
    short = model.encode_query(reference[one], ids[one, :length], mask[one, :length])
    torch.testing.assert_close(short, model.encode_query(reference[one], ids[one], mask[one]), **TOLERANCE)
    torch.testing.assert_close(
        model.encode_prompt(ids[one, :length], mask[one, :length]),
        model.encode_prompt(ids[one], mask[one]),
        **TOLERANCE,
    )


@pytest.mark.parametrize("num_query_tokens", [1, 5])
def test_no_number_of_query_tokens_is_built_in(num_query_tokens):
    model = build("tiny", num_query_tokens=num_query_tokens).eval()
    tokens = torch.randn(3, 9, 24)
    ids, mask = model.tokenize(["red", "a long blue dress", "x"])
    assert model.encode_target(tokens).shape == (3, num_query_tokens, 16)
    assert model.encode_query(tokens, ids, mask).shape == (3, 16)
    losses = model.training_losses(tokens, tokens, ids, mask)
    assert all(loss.isfinite() for loss in losses.values())


def test_further_candidates_are_negatives_and_shared_targets_are_not():
    model = build("tiny").eval()
    tokens = torch.randn(4, 9, 24)
    ids, mask = model.tokenize(["red", "blue"])
    plain = model.training_losses(tokens[:2], tokens[:2], ids, mask)["loss_itc"]
    more = model.training_losses(tokens[:2], tokens, ids, mask)["loss_itc"]
    assert more > plain
    # The further candidates are the targets again: marked as such they are no negatives, and the loss is the plain one.
    twice = torch.cat([tokens[:2], tokens[:2]])
    same = torch.tensor([[True, False, True, False], [False, True, False, True]])
    masked = model.training_losses(tokens[:2], twice, ids, mask, same_target=same)["loss_itc"]
    unmasked = model.training_losses(tokens[:2], twice, ids, mask)["loss_itc"]
    assert unmasked > masked > plain  # each query still has the other's target twice
    both = same | torch.tensor([[False, False, False, True], [False, False, True, False]])
    torch.testing.assert_close(model.training_losses(tokens[:2], twice, ids, mask, same_target=both)["loss_itc"], plain)


def slow_local_score(model, fused, words, mask, target):
    """Mean over fused queries, and over words but [CLS], of the best product with the target's vectors; their mean."""
    scores = []
    for vectors in (fused, words[1 : int(mask.sum())]):
        projected = torch.nn.functional.normalize(model.text_proj(vectors), dim=-1)
        scores.append(sum(max(vector @ other for other in target) for vector in projected) / len(projected))
    return (scores[0] + scores[1]) / 2


def test_the_local_score_equals_the_slow_one(golden, golden_model):
    data, model = golden("forward"), golden_model()
    reference, target, ids, mask = inputs(data)
    with torch.no_grad():
        vectors = model.encode_target(target)
        fused = model.fuse(reference, ids, mask)
        words = model._sentence(fused, model.text_embeddings(ids), mask, num_words=ids.shape[1])
        local = similarity(model.encode_query_parts(reference, ids, mask, scoring="local"), vectors)
        both = similarity(model.encode_query_parts(reference, ids, mask, scoring="both"), vectors)
        for i in range(len(ids)):
            for j in range(len(vectors)):
                expected = slow_local_score(model, fused[i], words[i], mask[i], vectors[j])
                torch.testing.assert_close(local[i, j], expected, **TOLERANCE)
        plain = similarity(model.encode_query(reference, ids, mask), vectors)
    torch.testing.assert_close(both, (plain + local) / 2, **TOLERANCE)


def test_the_parts_of_a_query_do_not_depend_on_padding_or_batch(golden, golden_model):
    data, model = golden("forward"), golden_model()
    reference, _, ids, mask = inputs(data)
    with torch.no_grad():
        parts = model.encode_query_parts(reference, ids, mask, scoring="both")
        assert parts.shape == (
            len(ids),
            1 + model.config.num_query_tokens + model.config.max_words - 1,
            model.config.embed_dim,
        )
        for row in range(len(ids)):
            length = int(mask[row].sum())
            alone = model.encode_query_parts(
                reference[row : row + 1], ids[row : row + 1, :length], mask[row : row + 1, :length], scoring="both"
            )
            torch.testing.assert_close(alone[0], parts[row], **TOLERANCE)


def test_the_local_loss_is_the_contrastive_loss_of_the_local_score(golden, golden_model):
    data, model = golden("forward"), golden_model()
    arguments = inputs(data)
    with torch.no_grad():
        plain = model.training_losses(*arguments)
        losses = model.training_losses(*arguments, local=True)
        reference, target, ids, mask = arguments
        scores = similarity(
            model.encode_query_parts(reference, ids, mask, scoring="local"), model.encode_target(target)
        )
        expected = contrastive_loss(scores / model.temperature)
    assert set(losses) - set(plain) == {"loss_local"}
    for name, loss in plain.items():
        torch.testing.assert_close(losses[name], loss, **TOLERANCE)
    torch.testing.assert_close(losses["loss_local"], expected, **TOLERANCE)


def test_training_mode_does_not_wake_the_tower():
    model = build("tiny").train()
    assert model.training
    assert model.tower is not None
    assert not any(module.training for module in model.tower.modules())
    assert not any(parameter.requires_grad for parameter in model.tower.parameters())


def test_one_seed_gives_the_same_start_with_the_gate_and_without():
    models = []
    for gate in (True, False):
        torch.manual_seed(3)
        models.append(build("tiny", use_gated_fusion=gate).state_dict())
    shared = set(models[1])
    assert set(models[0]) - shared == {name for name in models[0] if name.startswith("gated_fusion.")}
    assert all(torch.equal(models[0][name], models[1][name]) for name in shared)


def test_overfits_one_batch(shapes_root):
    torch.manual_seed(0)
    model = build("tiny")
    files = sorted((shapes_root / "dev").glob("*.png"))[:6]
    tokens = model.tokens(files)
    ids, mask = model.tokenize([f"{file.stem} please" for file in files])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    first = None
    for _ in range(600):
        loss = model.training_losses(tokens, tokens.roll(1, 0), ids, mask)["loss_itc"]
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.1:
            break
    assert loss.item() < 0.1 < math.log(6) < first


def test_centred_heads_have_mean_zero():
    torch.manual_seed(0)
    model = build("tiny").eval()
    reference, target = torch.randn(8, 9, 24), torch.randn(8, 9, 24)
    ids, mask = model.tokenize(
        [f"make it {word}" for word in ["red", "blue", "green", "black", "white", "pink", "grey", "gold"]]
    )
    model.center(reference, target, ids, mask)
    vectors = model.vision_proj(model.look(target))
    torch.testing.assert_close(vectors.mean(dim=(0, 1)), torch.zeros(16), atol=1e-5, rtol=0)


def test_works_on_tokens_only_says_so(golden_model):
    model = golden_model()
    with pytest.raises(RuntimeError, match="without a vision tower"):
        model.tokens([])
    with pytest.raises(RuntimeError, match="without a tokenizer"):
        model.tokenize(["x"])
