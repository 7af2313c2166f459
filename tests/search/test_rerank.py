"""Re-ranking what a search finds with the matching head."""

from __future__ import annotations

import string
import sys

import pytest
import torch
from PIL import Image
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.cross_encoder.modules import LogitScore
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from composir.errors import ComposirError
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.search import Retriever, Sentence, index_folder, load_reranker
from composir.search.rerank import INSTRUCTION

WORDS = ["<pad>", "<unk>", "<image>", "yes", "no", "query", "document", "red", "retrieve", *string.ascii_lowercase]
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEMPLATE = """{% for one in messages %}{{ one.role }} {% if one.content is string %}{{ one.content }}{% else %}
{% for part in one.content %}{% if part.type == 'image' %} <image> {% else %}{{ part.text }} {% endif %}{% endfor %}
{% endif %}{% endfor %}"""


def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "additional_special_tokens": ["<image>"]}
    return PreTrainedTokenizerFast(tokenizer_object=words, padding_side="left", **special)


@pytest.fixture(scope="module")
def reranker_folder(tmp_path_factory):
    """Return a LLaVA of 16 dimensions that says yes or no of a pair, saved as sentence-transformers saves it."""
    folder = tmp_path_factory.mktemp("reranker")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SIZES, image_size=32, patch_size=16),
        text_config=LlamaConfig(**SIZES, vocab_size=len(WORDS), num_key_value_heads=2, initializer_range=0.5),
        image_token_index=WORDS.index("<image>"),
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder / "plain")
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=tokenizer(),
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder / "plain")
    reader = Transformer(str(folder / "plain"), transformer_task="any-to-any")
    CrossEncoder(modules=[reader, LogitScore(WORDS.index("yes"), WORDS.index("no"))]).save(str(folder / "st"))
    return folder / "st"


@pytest.fixture
def retriever(tmp_path, pictures):
    torch.manual_seed(0)
    save_pretrained(build("tiny", matching_head=True).eval(), tmp_path / "model")
    index_folder(pictures, tmp_path / "index", model=tmp_path / "model")
    with Retriever(tmp_path / "index") as opened:
        yield opened


def test_the_best_come_by_their_matching_logits_and_the_others_stay(retriever, pictures):
    reference = pictures / "03.png"
    plain = retriever.search(reference, "make it red", top_k=12)
    reranked = retriever.search(reference, "make it red", top_k=12, rerank=10)
    assert {hit.id for hit in reranked[:10]} == {hit.id for hit in plain[:10]}
    assert reranked[10:] == plain[10:]
    assert [hit.rank for hit in reranked] == list(range(1, 13))
    model = retriever.model
    with torch.inference_mode():
        words = model.tokenize(["make it red"])
        logits = [model.match((model.tokens([reference]), model.tokens([hit.path])), *words).item() for hit in plain]
    expected = sorted(zip(logits[:10], (hit.id for hit in plain[:10]), strict=True), reverse=True)
    assert [hit.id for hit in reranked[:10]] == [name for _, name in expected]
    assert [hit.score for hit in reranked[:10]] == pytest.approx([logit for logit, _ in expected], abs=1e-5)
    assert retriever.search(reference, "make it red", top_k=3, rerank=10) == reranked[:3]


def test_what_cannot_be_reranked_says_so(retriever, pictures, run, model_folder, tmp_path):
    with pytest.raises(ComposirError, match="expected a picture, and no negative text"):
        retriever.search(text="make it red", rerank=5)
    with pytest.raises(ComposirError, match="fix: leave out --rerank, or the negative text"):
        retriever.search(pictures / "03.png", "red", negative_text="blue", rerank=5)
    index_folder(pictures, tmp_path / "plain", model=model_folder)
    code, _, err = run("search", tmp_path / "plain", "--image", pictures / "03.png", "--text", "red", "--rerank", 5)
    assert code == 2
    assert "the tiny model has no trained matching head" in err


def in_order(hits, scores):
    """Return the ids of hits in the order of scores, by hand."""
    return [hit.id for _, hit in sorted(zip(scores, hits, strict=True), key=lambda one: -one[0])]


@pytest.mark.parametrize(("with_picture", "text"), [(True, "r e d"), (True, ""), (False, "r e d")])
def test_a_vision_language_model_scores_each_pair(retriever, reranker_folder, pictures, with_picture, text):
    reference = pictures / "03.png" if with_picture else None
    plain = retriever.search(reference, text, top_k=12)
    reranked = retriever.search(reference, text, top_k=12, rerank=10, reranker=load_reranker(str(reranker_folder)))
    assert reranked[10:] == plain[10:]
    model = CrossEncoder(str(reranker_folder))
    picture = reference and Image.open(reference).convert("RGB")
    query = {"image": picture, "text": text} if picture and text else picture or text
    prompt = INSTRUCTION if picture and text else None
    candidates = [Image.open(hit.path).convert("RGB") for hit in plain[:10]]
    scores = [float(model.predict([(query, one)], prompt=prompt)[0]) for one in candidates]
    assert max(scores) - min(scores) > 0.01
    assert [hit.id for hit in reranked[:10]] == in_order(plain[:10], scores)
    assert [hit.score for hit in reranked[:10]] == pytest.approx(sorted(scores, reverse=True), abs=1e-4)
    assert [hit.rank for hit in reranked] == list(range(1, 13))


def test_several_references_are_the_mean_and_the_least_score_is_the_re_ranker_s(retriever, reranker_folder, pictures):
    files = [pictures / "03.png", pictures / "04.png"]
    reranker = load_reranker(str(reranker_folder))
    alone = []
    for file in files:
        hits = retriever.search(file, "r e d", exclude=(), top_k=20, rerank=20, reranker=reranker)
        alone.append({hit.id: hit.score for hit in hits})
    both = retriever.search(files, "r e d", exclude=(), top_k=20, rerank=20, reranker=reranker)
    means = [(alone[0][hit.id] + alone[1][hit.id]) / 2 for hit in both]
    assert [hit.score for hit in both] == pytest.approx(means, abs=1e-4)
    least = both[4].score
    assert retriever.search(files, "r e d", exclude=(), rerank=20, reranker=reranker, min_score=least) == both[:5]


def test_the_command_takes_a_re_ranker_by_name(retriever, reranker_folder, pictures, run):
    arguments = ("search", retriever.folder, "--image", pictures / "03.png", "--text", "r e d", "--top-k", 5)
    code, out, err = run(*arguments, "--rerank", 10, "--rerank-model", reranker_folder)
    assert code == 0, err
    reranker = load_reranker(str(reranker_folder))
    expected = retriever.search(pictures / "03.png", "r e d", top_k=5, rerank=10, reranker=reranker)
    assert [line.split()[:3] for line in out.splitlines()[:5]] == [
        [str(hit.rank), f"{hit.score:.3f}", str(hit.path)] for hit in expected
    ]


def test_what_is_no_re_ranker_of_pictures_is_one_clear_error(retriever, pictures, tmp_path, monkeypatch):
    with pytest.raises(ComposirError, match="cannot be loaded by sentence-transformers"):
        load_reranker(str(tmp_path / "nothing"))
    BertForSequenceClassification(BertConfig(**SIZES, vocab_size=len(WORDS), num_labels=1)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ComposirError, match="does not read a picture and a sentence together; expected a vision-lang"):
        load_reranker(str(tmp_path))
    with pytest.raises(ComposirError, match="re-ranking reads one sentence, and there are 2; fix: write them as one"):
        retriever.search(pictures / "03.png", texts=[Sentence("red"), Sentence("blue")], rerank=5)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ComposirError, match="needs the package sentence-transformers, which is not installed"):
        load_reranker(str(tmp_path))
