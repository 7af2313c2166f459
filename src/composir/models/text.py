"""Sentences as the models read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Int
from tokenizers import Tokenizer as WordPieceTokenizer
from torch import Tensor

from composir.errors import ComposirError
from composir.models.scripts import scripts_of

MAX_WORDS = 50
"""Words kept of a sentence before tokenising, as in BLIP's caption processor."""
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


def normalise(text: str) -> str:
    """Return the sentence in lower case, ``. ! " ( ) * # : ; ~`` turned to spaces, at most 50 words.

    The rule is that of BLIP's caption processor (LAVIS), which SPRC uses in training and in evaluation.
    """
    return " ".join(_PUNCTUATION.sub(" ", text.lower()).split()[:MAX_WORDS])


class Tokenizer:
    """A WordPiece tokenizer with the sentence normalisation in front; the only way from words to ids."""

    def __init__(self, tokenizer: WordPieceTokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self.pad_id = _special_id(tokenizer, "[PAD]")
        self.vocab_size = tokenizer.get_vocab_size()

    @classmethod
    def load(cls, file: Path) -> Tokenizer:
        """Return the tokenizer of a ``tokenizer.json``; a file that is none raises ``ComposirError``."""
        try:
            return cls(WordPieceTokenizer.from_file(str(file)))
        except Exception as error:  # the tokenizers library raises bare exceptions
            raise ComposirError(
                f"cannot be read as a tokenizer ({error})", file=file, fix="download or copy it again"
            ) from None

    def save(self, file: Path) -> None:
        """Write ``tokenizer.json``, which Hugging Face's libraries read as well."""
        self._tokenizer.no_truncation()
        self._tokenizer.save(str(file))

    def check_same_words(self, file: Path) -> None:
        """Raise ``ComposirError`` where a ``tokenizer.json`` gives a word of this one another id."""
        theirs = Tokenizer.load(file)._tokenizer.get_vocab()
        words = self._tokenizer.get_vocab(with_added_tokens=False)
        wrong = [word for word, index in words.items() if theirs.get(word) != index]
        if wrong:
            raise ComposirError(
                f"does not match: {len(wrong):,} of {len(words):,} words have another id, such as {min(wrong)!r}",
                file=file,
                expected="BERT's uncased vocabulary, which BLIP-2's weights were trained with",
                fix="give the folder with the tokenizer that belongs to the weights",
            )

    @cached_property
    def scripts(self) -> frozenset[str]:
        """The scripts in which it has words (``composir.models.scripts``)."""
        return scripts_of(self._tokenizer.get_vocab())

    def __call__(
        self, texts: Sequence[str], *, max_words: int
    ) -> tuple[Int[Tensor, "batch words"], Int[Tensor, "batch words"]]:
        """Return ids and mask, ``[CLS]`` first and ``[SEP]`` last, cut at ``max_words``, padded to the longest."""
        self._tokenizer.enable_truncation(max_words)
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch([normalise(text) for text in texts])]
        length = max((len(row) for row in rows), default=0)
        input_ids = torch.full((len(rows), length), self.pad_id)
        attention_mask = torch.zeros(len(rows), length, dtype=torch.long)
        for index, row in enumerate(rows):
            input_ids[index, : len(row)] = torch.tensor(row)
            attention_mask[index, : len(row)] = 1
        return input_ids, attention_mask


def _special_id(tokenizer: WordPieceTokenizer, word: str) -> int:
    index = tokenizer.token_to_id(word)
    if index is None:
        raise ValueError(f"the tokenizer has no {word} token")
    return index
