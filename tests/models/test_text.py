from __future__ import annotations

import pytest

from composir.models.backbones import build
from composir.models.text import Tokenizer, normalise


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Make it RED.", "make it red"),
        ('a "b" (c) *d* #e: f; g~ h!', "a b c d e f g h"),
        ("  two   spaces\n", "two spaces"),
        ("keeps, commas? and 'quotes'", "keeps, commas? and 'quotes'"),
        (" ".join(["word"] * 60), " ".join(["word"] * 50)),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize("backbone", ["tiny", "mini"])
def test_rows_are_padded_to_the_longest_and_cut_with_both_ends_kept(backbone):
    model = build(backbone)
    ids, mask = model.tokenize(["red", "a blue dress", "word " * 50])
    assert ids.shape == mask.shape == (3, 32)  # as in SPRC's training and evaluation
    first, last = ids[0, 0], ids[2, -1]
    assert (ids[:, 0] == first).all()
    lengths = mask.sum(dim=1)
    assert [ids[row, length - 1].item() for row, length in enumerate(lengths)] == [last.item()] * 3
    assert (ids[0, lengths[0] :] == model.tokenizer.pad_id).all()
    assert model.tokenize(["red"])[0].shape[1] == lengths[0]


def test_the_mini_words_are_those_of_bert():
    ids, _ = build("mini").tokenize(["make it red"])
    assert ids.tolist() == [[101, 2191, 2009, 2417, 102]]


def test_a_saved_tokenizer_is_the_same(tmp_path):
    model = build("tiny")
    model.tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    texts = ["Make it red!", "", "a much longer sentence about a dress that is not short"]
    for one, other in zip(model.tokenize(texts), again(texts, max_words=model.config.max_words), strict=True):
        assert one.tolist() == other.tolist()
