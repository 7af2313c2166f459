from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from composir.losses import contrastive_loss
from composir.models.backbones import build
from composir.models.config import ComposerConfig
from composir.models.fusion import FUSIONS, WEIGHTS, fusion_names
from composir.models.fusion.attention import TextGuidedAttention
from composir.models.fusion.combiner import Combiner
from composir.models.fusion.late import LateGate
from composir.models.fusion.plain_sum import PlainSum
from composir.models.fusion.tirg import TirgGating
from composir.scoring import similarity

TOLERANCE = {"atol": 1e-6, "rtol": 1e-5}
ALL = [*FUSIONS, "gate+attention", "gate+late"]


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# -- the parts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text_size", [8, 6])
def test_attention_equals_the_formula_patch_by_patch(text_size):
    module = TextGuidedAttention(8, text_size)
    image, text = torch.randn(2, 5, 8), torch.randn(2, 6, text_size)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    fused = module(image, text, mask)
    for row, length in enumerate((3, 6)):
        t = text[row, :length].mean(dim=0)
        t = t if module.text_proj is None else module.text_proj(t)
        scores = [(module.query(t) @ module.key(x)).item() / math.sqrt(8) for x in image[row]]
        total = sum(math.exp(score) for score in scores)
        assert module.attention(image[row : row + 1], t[None])[0].sum().item() == pytest.approx(1)
        for token, score in enumerate(scores):
            expected = image[row, token] + 0.5 * 5 * math.exp(score) / total * module.delta(t)
            torch.testing.assert_close(fused[row, token], expected, **TOLERANCE)


def test_attention_starts_as_identity_when_asked():
    module = TextGuidedAttention(8, 8)
    image, text = torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    assert not torch.equal(module(image, text), image)
    module.start_as_identity()
    assert torch.equal(module(image, text), image)


def test_the_late_gate_equals_the_formula_row_by_row():
    torch.manual_seed(0)
    module = LateGate(16)
    query, reference, sentence = torch.randn(3, 3, 16)
    torch.testing.assert_close(module(query, reference, sentence), query + 0.5 * reference + 0.5 * sentence)
    nn.init.normal_(module.gate[2].weight)
    joined = module(query, reference, sentence)
    for row in range(3):
        both = torch.cat([query[row], reference[row], sentence[row]])
        of_reference, of_sentence = torch.sigmoid(module.gate[2](module.gate[0](both).clamp(min=0)))
        expected = query[row] + of_reference * reference[row] + of_sentence * sentence[row]
        torch.testing.assert_close(joined[row], expected, **TOLERANCE)
        assert 0 < of_reference < 1 and of_reference != of_sentence


def test_tirg_equals_the_formula_row_by_row():
    module = TirgGating(4)
    query, reference, sentence = torch.randn(3, 3, 4)
    joined = module(query, reference, sentence)
    (gate_norm, _, gate, _), (norm, _, first, _, second) = module.gate, module.residual
    for row in range(3):
        both = torch.cat([reference[row], sentence[row]])
        keep = torch.sigmoid(gate.weight @ gate_norm(both).clamp(min=0) + gate.bias)
        change = second(first(norm(both).clamp(min=0)).clamp(min=0))
        made = keep * reference[row] + 10 * change
        torch.testing.assert_close(joined[row], query[row] + made / made.norm(), **TOLERANCE)


def test_combiner_equals_the_formula_row_by_row():
    module = Combiner(4).eval()
    query, reference, sentence = torch.randn(3, 3, 4)
    joined = module(query, reference, sentence)
    for row in range(3):
        of_reference = module.reference[0](reference[row]).clamp(min=0)
        of_sentence = module.sentence[0](sentence[row]).clamp(min=0)
        both = torch.cat([of_reference, of_sentence])
        share = torch.sigmoid(module.share[3](module.share[0](both).clamp(min=0)))
        added = module.mixture[3](module.mixture[0](both).clamp(min=0))
        made = (1 - share) * reference[row] + share * sentence[row] + added
        torch.testing.assert_close(joined[row], query[row] + made / made.norm(), **TOLERANCE)
    module.train()
    assert not torch.equal(module(query, reference, sentence), joined)  # dropout


def test_the_plain_sum():
    query, reference, sentence = torch.tensor([[[1.0, 2.0]], [[3.0, -5.0]], [[0.5, 0.0]]])
    assert PlainSum()(query, reference, sentence).tolist() == [[4.5, -3.0]]


def test_numbers_of_parameters_are_those_of_the_docstrings():
    assert num_parameters(TextGuidedAttention(12, 12)) == 4 * 12**2 + 3 * 12 + 1
    assert num_parameters(TextGuidedAttention(12, 7)) == 4 * 12**2 + 3 * 12 + 1 + 12 * 7 + 12
    assert num_parameters(LateGate(6)) == 3 * 6**2 + 3 * 6 + 2
    assert num_parameters(TirgGating(6)) == 8 * 6**2 + 12 * 6 + 2
    assert num_parameters(Combiner(6)) == 144 * 6**2 + 33 * 6 + 1
    assert num_parameters(PlainSum()) == 0


# -- in the model ------------------------------------------------------------------------------------------------------


def test_names_are_read_and_wrong_ones_refused():
    assert fusion_names("none") == ()
    assert fusion_names("gate+attention") == ("gate", "attention")
    for wrong in ("", "gates", "gate+gate", "gate+none", "gate,attention"):
        with pytest.raises(ValueError, match="expected none, or one or more of gate, attention, "):
            fusion_names(wrong)


def test_the_former_switch_of_a_config_is_read():
    sizes = build("tiny").config.model_dump(exclude={"fusion"})
    assert ComposerConfig(**sizes).fusion == "gate"
    assert ComposerConfig(**sizes, use_gated_fusion=True).fusion == "gate"
    assert ComposerConfig(**sizes, use_gated_fusion=False).fusion == "none"


def inputs(model):
    tokens = torch.randn(3, 9, model.config.token_width, generator=torch.Generator().manual_seed(0))
    return tokens, *model.tokenize(["make it red", "with a longer sleeve and a collar", "x"])


@pytest.mark.parametrize("fusion", ALL)
def test_a_fusion_changes_the_query_alone_and_all_else_starts_the_same(fusion):
    models = []
    for name in ("none", fusion):
        torch.manual_seed(0)
        models.append(build("tiny", fusion=name).eval())
    plain, fused = models
    assert not [name for name in plain.state_dict() if name.startswith(WEIGHTS)]
    shared = {name for name in fused.state_dict() if not name.startswith(WEIGHTS)}
    assert shared == set(plain.state_dict())
    assert all(torch.equal(plain.state_dict()[name], fused.state_dict()[name]) for name in shared)
    tokens, ids, mask = inputs(plain)
    query = fused.encode_query(tokens, ids, mask)
    assert not torch.allclose(query, plain.encode_query(tokens, ids, mask))
    torch.testing.assert_close(query.norm(dim=-1), torch.ones(3))
    assert torch.equal(fused.encode_target(tokens), plain.encode_target(tokens))
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(fused.encode_query(tokens[one], ids[one], mask[one]), query[one], atol=1e-5, rtol=0)


@pytest.mark.parametrize("fusion", ALL)
def test_all_weights_of_a_fusion_learn_from_a_batch_and_from_one_query(fusion):
    model = build("tiny", fusion=fusion).train()
    tokens, ids, mask = inputs(model)
    model.training_losses(tokens[:1], tokens, ids[:1], mask[:1])["loss_itc"].backward()
    weights = {name: weight for name, weight in model.named_parameters() if name.startswith(WEIGHTS)}
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in weights.values())
    model.zero_grad()
    model.training_losses(tokens, tokens, ids, mask)["loss_itc"].backward()
    unused = [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()]
    at_zero = ["fusions.late.gate.0.weight", "fusions.late.gate.0.bias"] if "late" in fusion else []
    assert unused == at_zero  # behind a last layer of zeros; they learn from the second step on


@pytest.mark.parametrize("fusion", ["gate", "attention", "gate+attention"])
def test_identity_start_equals_the_model_without_a_fusion_to_the_bit(fusion):
    models = []
    for name in ("none", fusion):
        torch.manual_seed(0)
        models.append(build("tiny", fusion=name).eval())
    models[1].start_fusions_as_identity()
    tokens, ids, mask = inputs(models[0])
    assert torch.equal(*(model.encode_query(tokens, ids, mask) for model in models))


def test_gate_and_attention_act_one_after_the_other():
    model = build("tiny", fusion="attention+gate").eval()
    tokens, ids, mask = inputs(model)
    words = model.qformer.layernorm(model.text_embeddings(ids))
    seen = []
    handle = model.fusions["attention"].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model.encode_query(tokens, ids, mask)
    handle.remove()
    torch.testing.assert_close(seen[0], model.gated_fusion(tokens, words, mask))


def test_query_fusions_read_the_reference_as_a_target_and_the_sentence_alone():
    model, plain = build("tiny", fusion="sum").eval(), build("tiny", fusion="none").eval()
    plain.load_state_dict(model.state_dict())
    tokens, ids, mask = inputs(model)
    reference = nn.functional.normalize(plain.encode_target(tokens).mean(dim=1), dim=-1)
    both = plain.encode_query(tokens, ids, mask) + reference + plain.encode_prompt(ids, mask)
    query = model.encode_query(tokens, ids, mask)
    torch.testing.assert_close(query, nn.functional.normalize(both, dim=-1))
    target = model.encode_target(tokens)
    losses = model.training_losses(tokens, tokens, ids, mask)  # the same query in training
    expected = contrastive_loss(similarity(query, target) / model.temperature)
    torch.testing.assert_close(losses["loss_itc"], expected)
