"""Attention on rows without padding, beside the library's on each sequence alone."""

from __future__ import annotations

import pytest
import torch
from transformers import Blip2QFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention

from composir.models.attention import Layout, SelfAttention

WORDS = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
"""Of four sentences, the third without any."""
NUM_QUERIES, HIDDEN = 2, 24


def test_rows_are_the_sequences_without_their_padding():
    layout = Layout.of(NUM_QUERIES, WORDS)
    sequences = torch.arange(4 * 6 * 3).view(4, 6, 3).float() + 1
    rows = layout.rows(sequences)
    assert len(rows) == 4 * NUM_QUERIES + WORDS.sum()
    kept = torch.cat([torch.ones(4, NUM_QUERIES), WORDS], dim=1)[..., None]
    assert torch.equal(layout.sequences(rows), sequences * kept)
    queries, words = layout.split(rows)
    assert torch.equal(queries, sequences[:, :NUM_QUERIES])
    assert torch.equal(words, sequences[:, NUM_QUERIES:][WORDS.bool()])


def test_a_batch_may_be_empty_as_a_process_s_share_may():
    layout = Layout.of(NUM_QUERIES, WORDS[:0])
    rows = layout.rows(torch.zeros(0, 6, 3))
    assert rows.shape == (0, 3)
    assert layout.sequences(rows).shape == (0, 6, 3)


def test_without_words_rows_are_the_queries_of_any_number_of_sequences():
    layout = Layout(NUM_QUERIES)
    for sequences in (torch.rand(1, NUM_QUERIES, 3), torch.rand(5, NUM_QUERIES, 3)):
        assert torch.equal(layout.sequences(layout.rows(sequences)), sequences)
        assert torch.equal(layout.split(layout.rows(sequences))[0], sequences)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, {"atol": 1e-6, "rtol": 1e-5}), (torch.bfloat16, {"atol": 2e-2, "rtol": 0})]
)
def test_rows_see_what_each_sequence_sees_alone(dtype, tolerance):
    torch.manual_seed(0)
    config = Blip2QFormerConfig(hidden_size=HIDDEN, num_attention_heads=3)
    config._attn_implementation = "eager"
    library = Blip2QFormerMultiHeadAttention(config).eval()
    attention, layout = SelfAttention(library).eval(), Layout.of(NUM_QUERIES, WORDS)
    sequences = torch.randn(4, 6, HIDDEN)
    rows = layout.rows(sequences).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        seen, _ = attention(rows, layout=layout)
    seen = layout.sequences(seen.float())
    grown = torch.autograd.grad(seen.square().sum(), rows)[0]
    for row, num_words in enumerate(WORDS.sum(dim=1)):
        length = NUM_QUERIES + num_words
        alone = sequences[row : row + 1, :length].clone().requires_grad_()
        expected = library(alone)[0]
        torch.testing.assert_close(seen[row : row + 1, :length], expected, **tolerance)
        gradient = torch.autograd.grad(expected.square().sum(), alone)[0]
        torch.testing.assert_close(layout.sequences(grown)[row : row + 1, :length], gradient, **tolerance)
