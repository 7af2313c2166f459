"""Re-ranking what a search finds with the matching head."""

from __future__ import annotations

import pytest
import torch

from composir.errors import ComposirError
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.search import Retriever, index_folder


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
