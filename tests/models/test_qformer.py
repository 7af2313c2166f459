"""Our Q-Former beside Hugging Face's: names, start, results, gradients; rows beside each sequence alone."""

from __future__ import annotations

import pytest
import torch
from transformers import Blip2QFormerModel
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerMultiHeadAttention, Blip2TextEmbeddings

from composir.benchmark.steps import LibraryQFormer, library_config
from composir.models.config import ComposerConfig
from composir.models.qformer import Layout, QFormer, SelfAttention, TextEmbeddings

WORDS = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
"""Of four sentences, the third without any."""
NUM_QUERIES, HIDDEN, WIDTH = 2, 24, 20
SIZES = ComposerConfig(
    token_width=WIDTH,
    hidden_size=HIDDEN,
    num_hidden_layers=4,
    num_attention_heads=3,
    intermediate_size=48,
    cross_attention_frequency=2,
    vocab_size=50,
    max_position_embeddings=16,
    num_query_tokens=NUM_QUERIES,
    fusion="none",
)


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
    library = Blip2QFormerMultiHeadAttention(library_config(SIZES, "eager")).eval()
    attention, layout = SelfAttention(SIZES).eval(), Layout.of(NUM_QUERIES, WORDS)
    attention.load_state_dict(library.state_dict())
    sequences = torch.randn(4, 6, HIDDEN)
    rows = layout.rows(sequences).requires_grad_()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        seen = attention(rows, layout)
    seen = layout.sequences(seen.float())
    grown = torch.autograd.grad(seen.square().sum(), rows)[0]
    for row, num_words in enumerate(WORDS.sum(dim=1)):
        length = NUM_QUERIES + num_words
        alone = sequences[row : row + 1, :length].clone().requires_grad_()
        expected = library(alone)[0]
        torch.testing.assert_close(seen[row : row + 1, :length], expected, **tolerance)
        gradient = torch.autograd.grad(expected.square().sum(), alone)[0]
        torch.testing.assert_close(layout.sequences(grown)[row : row + 1, :length], gradient, **tolerance)


def test_it_starts_as_the_library_s_does_from_the_same_seed_and_has_its_names_in_their_order():
    torch.manual_seed(0)
    words, library = (
        Blip2TextEmbeddings(library_config(SIZES, "eager")),
        Blip2QFormerModel(library_config(SIZES, "eager")),
    )
    after = torch.rand(1)
    torch.manual_seed(0)
    own_words, own = TextEmbeddings(SIZES), QFormer(SIZES, WIDTH)
    assert torch.equal(torch.rand(1), after)  # so that whatever is made behind it starts as before
    for ours, theirs in ((own_words, words), (own, library)):
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


ALL, CLS = slice(NUM_QUERIES), slice(NUM_QUERIES, NUM_QUERIES + 1)


@pytest.mark.parametrize(
    ("sentence", "picture", "at"),
    [(True, True, ALL), (True, True, slice(1)), (True, False, ALL), (True, False, CLS), (False, True, ALL)],
    ids=["composed", "composed-one", "sentence-queries", "sentence-cls", "picture"],
)
def test_results_and_gradients_are_the_library_s_at_any_positions(sentence, picture, at):
    torch.manual_seed(0)
    ours = QFormer(SIZES, WIDTH).eval()
    library = LibraryQFormer(ours, SIZES, "eager").eval()
    queries = torch.randn(1, NUM_QUERIES, HIDDEN, requires_grad=True)
    words, mask = (torch.randn(4, 4, HIDDEN, requires_grad=True), WORDS) if sentence else (None, None)
    if mask is not None:
        mask = mask.index_fill(1, torch.tensor(0), 1)  # what stands behind [CLS] may be nothing, [CLS] is always there
    tokens = torch.randn(4, 9, WIDTH, requires_grad=True) if picture else None
    told = []
    for model in (ours, library):
        hidden = model(queries, words, mask, tokens, at=at)
        loss = (hidden * torch.arange(hidden.numel()).view(hidden.shape).sin()).sum()
        inputs = [tensor for tensor in (*ours.parameters(), queries, words, tokens) if tensor is not None]
        told.append((hidden, torch.autograd.grad(loss, inputs, allow_unused=True)))
    torch.testing.assert_close(told[0][0], told[1][0], atol=1e-5, rtol=1e-5)
    for own, other in zip(told[0][1], told[1][1], strict=True):
        if own is None or other is None:  # a key's bias, which no softmax sees, is given no gradient by ours
            assert all(gradient is None or gradient.abs().max() < 1e-4 for gradient in (own, other))
        else:
            torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


def dropouts(model: torch.nn.Module) -> dict[str, float]:
    """Return the probability of dropout by where it stands: a module, or the number that an attention keeps."""
    found = {}
    for name, module in model.named_modules():
        for attribute in ("dropout", "attention_dropout"):
            place = getattr(module, attribute, None)
            if place is not None:
                found[f"{name}.dropout".lstrip(".")] = place.p if isinstance(place, torch.nn.Dropout) else place
    return found


def set_dropout(model: torch.nn.Module, place: str, probability: float) -> None:
    module = model.get_submodule(place.rpartition(".")[0])
    if isinstance(module.dropout, torch.nn.Dropout):
        module.dropout.p = probability
    else:
        module.dropout = probability


PLACES = list(dropouts(QFormer(SIZES, WIDTH)))


def test_dropout_stands_where_the_library_has_it_and_is_a_tenth_unless_told_otherwise():
    library = dropouts(Blip2QFormerModel(library_config(SIZES, "eager")))
    assert dropouts(QFormer(SIZES, WIDTH)) == library
    assert set(library.values()) == {0.1}
    assert len(library) == 1 + 4 * 4 + 2 * 2  # embeddings; attention and outputs of four layers; two looks at a picture
    told = QFormer(SIZES.model_copy(update={"dropout": 0.3}), WIDTH)
    assert dropouts(told) == dict.fromkeys(PLACES, 0.3)


def read_all(model: QFormer, dtype: torch.dtype) -> torch.Tensor:
    """Return what is read of pictures with sentences and of sentences alone, so that every part works."""
    chance = torch.Generator().manual_seed(0)
    queries, words = (torch.randn(*shape, HIDDEN, generator=chance) for shape in ((1, NUM_QUERIES), (4, 4)))
    tokens = torch.randn(4, 9, WIDTH, generator=chance)
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        read = [model(queries, words, WORDS, image, at=ALL).float() for image in (tokens, None)]
    return torch.cat(read)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("place", PLACES)
def test_each_dropout_acts_in_training_and_none_elsewhere(place, dtype):
    torch.manual_seed(0)
    model = QFormer(SIZES, WIDTH)
    for parameter in model.parameters():  # BERT's small start would drown in bfloat16
        torch.nn.init.normal_(parameter, std=0.5)
    for other in PLACES:
        set_dropout(model, other, 0.0)
    plain = read_all(model.train(), dtype)
    set_dropout(model, place, 0.5)
    assert torch.equal(read_all(model.eval(), dtype), plain)
    first, second = read_all(model.train(), dtype), read_all(model, dtype)
    assert first.isfinite().all()
    assert not torch.allclose(first, plain, atol=1e-2)
    assert not torch.allclose(first, second, atol=1e-2)
