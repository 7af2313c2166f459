"""Which scripts a tokenizer has words in."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as AnyTokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from composir.models.backbones.mini import MINI
from composir.models.scripts import MANY, pieces_of, scripts_of, unread_share


def test_english_wordpiece_reads_latin_alone():
    assert MINI.tokenizer().scripts == {"LATIN"}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("the same, but red", 0),
        ("naïve café", 0),
        ("红色的狗", 1),
        ("كلب أحمر", 1),
        ("красная собака", 1),
        ("赤い犬", 1),
        ("dog 红", 1 / 4),
        ("狗狗 3", 1),
        ("...", 1),
        ("", 1),
        ("🐕", 1),
        ("a 🐕", 1 / 2),
        ("16:9", 0),
        ("２０２５", 0),
    ],
)
def test_what_of_a_sentence_an_english_model_does_not_read(text, share):
    assert unread_share(text, {"LATIN"}) == pytest.approx(share)


def test_a_script_is_known_by_many_pieces_of_two_letters_or_more():
    letters = [chr(0x4E00 + number) for number in range(MANY)]
    words = [2 * letter for letter in letters]
    assert scripts_of(letters) == {"LATIN"}
    assert scripts_of(words[1:]) == {"LATIN"}
    assert scripts_of(words) == {"LATIN", "CJK"}
    assert scripts_of(f"##{word}" for word in words) == {"LATIN", "CJK"}
    assert scripts_of(chr(0x1F400 + number) for number in range(MANY)) == {"LATIN", "SYMBOL"}
    kana = [first + second for first in "あいうえおかきくけこ" for second in "アイウエオカキクケコ"]
    assert scripts_of(kana) == {"LATIN", "KANA"}
    assert unread_share("いぬ と ネコ", scripts_of(kana)) == 0


def test_the_pieces_of_a_hub_tokenizer_are_text():
    words = AnyTokenizer(WordLevel({"<unk>": 0, "red": 1, "红色": 2}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert pieces_of(tokenizer) == ["<unk>", "red", "红色"]
