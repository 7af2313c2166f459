"""The words of BLIP-2."""

from __future__ import annotations

import zipfile

from tokenizers import Tokenizer as WordPieceTokenizer

from composir.models.backbones.mini import minilm_file
from composir.models.text import Tokenizer


def blip2_tokenizer() -> Tokenizer:
    """Return BERT's uncased WordPiece vocabulary, which MiniLM's package brings, and BLIP-2's one further word."""
    with zipfile.ZipFile(minilm_file()) as archive:
        words = WordPieceTokenizer.from_str(archive.read("tokenizer.json").decode())
    words.add_special_tokens(["[DEC]"])
    return Tokenizer(words)
