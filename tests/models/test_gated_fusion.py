from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from composir.models.gated_fusion import GatedFusion
from composir.models.qformer import Affine


def load_golden(golden, name, hidden_size, text_size):
    data = golden(name)
    module = GatedFusion(hidden_size, text_size)
    parts = ("gate", "delta", "alpha", "text_proj")
    module.load_state_dict({key: value for key, value in data.items() if key.split(".")[0] in parts}, strict=True)
    return module, data


@pytest.mark.parametrize(("name", "hidden_size", "text_size"), [("gate_same_width", 12, 12), ("gate_projected", 20, 8)])
def test_equals_the_golden_arithmetic_with_and_without_mask(golden, name, hidden_size, text_size):
    module, data = load_golden(golden, name, hidden_size, text_size)
    image, text, mask = data["image_tokens"], data["text_tokens"], data["text_mask"]
    torch.testing.assert_close(module(image, text, mask), data["fused"], atol=1e-5, rtol=0)
    torch.testing.assert_close(module(image, text), data["fused_without_mask"], atol=1e-5, rtol=0)
    gate, delta = module.gate_and_delta(image, text, mask)
    torch.testing.assert_close(gate, data["gate_values"], atol=1e-5, rtol=0)
    torch.testing.assert_close(delta, data["delta_values"], atol=1e-5, rtol=0)


def test_split_products_equal_the_formula_written_out(golden):
    module, data = load_golden(golden, "gate_projected", 20, 8)
    image, text, mask = data["image_tokens"], data["text_tokens"], data["text_mask"]
    for row in range(len(image)):
        words = text[row][mask[row].bool()]
        t = module.text_proj(words.mean(dim=0))
        for token in range(image.shape[1]):
            gate = module.gate(torch.cat([image[row, token], t]))
            expected = image[row, token] + module.alpha * gate * module.delta(t)
            torch.testing.assert_close(module(image, text, mask)[row, token], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("hidden_size", [1, 12, 768])
def test_has_the_published_number_of_parameters(hidden_size):
    count = sum(parameter.numel() for parameter in GatedFusion(hidden_size).parameters())
    assert count == 5 * hidden_size**2 + 4 * hidden_size + 1
    if hidden_size == 768:
        assert count == 2_952_193


def test_projection_is_counted_where_the_widths_differ():
    count = sum(parameter.numel() for parameter in GatedFusion(1408, 768).parameters())
    assert count == 5 * 1408**2 + 4 * 1408 + 1 + 1408 * 768 + 1408


def test_padding_words_do_not_matter():
    module = GatedFusion(8)
    image, text = torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    changed = text.clone()
    changed[0, 3:] = 99.0
    torch.testing.assert_close(module(image, text, mask), module(image, changed, mask))
    assert not torch.allclose(module(image, text), module(image, changed))


def test_both_means_of_a_sentence_are_those_worked_by_hand():
    """Two words 0.2 and 0.4, padding 0.8 and 1: the means are 0.3 and 0.6; half a gate, half an alpha, tanh of each."""
    module = GatedFusion(1)
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)
    for weight in (module.delta[0].weight, module.delta[2].weight):
        torch.nn.init.ones_(weight)
    torch.nn.init.constant_(module.alpha, 0.5)
    text, mask = torch.tensor([[[0.2], [0.4], [0.8], [1.0]]]), torch.tensor([[1, 1, 0, 0]])
    image = torch.tensor([[[1.0]]])
    assert module(image, text, mask).item() == pytest.approx(1 + 0.25 * 0.291313, abs=1e-6)
    assert module(image, text).item() == pytest.approx(1 + 0.25 * 0.537050, abs=1e-6)


def test_zero_alpha_and_identity_start_change_nothing():
    image, text = torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    assert torch.equal(GatedFusion(8, alpha_init=0.0)(image, text), image)
    module = GatedFusion(8)
    assert not torch.equal(module(image, text), image)
    module.start_as_identity()
    assert torch.equal(module(image, text), image)


def test_with_a_layer_norm_the_gate_reads_normalised_tokens_and_changes_the_tokens_themselves():
    torch.manual_seed(0)
    module = GatedFusion(8, layer_norm=True)
    plain = GatedFusion(8)
    plain.load_state_dict({name: value for name, value in module.state_dict().items() if "norm." not in name})
    image, text = 3 + 2 * torch.randn(2, 5, 8), torch.randn(2, 6, 8)
    normalised = torch.nn.functional.layer_norm(image, (8,))
    change = plain(normalised, text) - normalised
    torch.testing.assert_close(module(image, text), image + change)
    assert sum(parameter.numel() for parameter in module.parameters()) == 5 * 64 + 4 * 8 + 1 + 2 * 8


def test_an_all_masked_sentence_is_finite():
    module = GatedFusion(8)
    fused = module(torch.randn(1, 5, 8), torch.randn(1, 3, 8), torch.zeros(1, 3, dtype=torch.long))
    assert fused.isfinite().all()


@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_affine_is_that_of_tokens_scaled_and_shifted_before(layer_norm):
    torch.manual_seed(0)
    module, affine = GatedFusion(8, 6, layer_norm=layer_norm).double(), Affine(8).double()
    for parameter in affine.parameters():
        torch.nn.init.normal_(parameter)
    image, text = torch.randn(2, 5, 8).double(), torch.randn(2, 4, 6).double()
    found, gradients = [], []
    for fused in (module(image, text, None, affine), module(affine(image), text)):
        parameters = {**dict(module.named_parameters()), **dict(affine.named_parameters(prefix="affine"))}
        found.append(fused)
        gradients.append(torch.autograd.grad(fused.square().sum(), list(parameters.values())))
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(module.maps(image, text, None, affine), module.maps(affine(image), text))


def test_training_an_affine_adds_no_product_of_the_tokens():
    module, affine = GatedFusion(8), Affine(8)
    image, text = torch.randn(2, 50, 8), torch.randn(2, 4, 8)
    counts = []
    for scaled in (lambda: module(image, text), lambda: module(image, text, None, affine)):
        with FlopCounterMode(display=False) as counter:
            scaled().sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
