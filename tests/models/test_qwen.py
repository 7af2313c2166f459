"""Qwen3-VL-Embedding: the chat that is read, what is pooled, pictures of any size; beside transformers' network."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, Qwen3VLForConditionalGeneration

from composir.errors import ComposirError
from composir.features import open_model
from composir.models.address import Options
from composir.models.qwen import FACTOR, QwenEmbedder, punctuated

from ..small_duals import save_qwen

NAME = "qwen3-vl-embedding-2b"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_qwen(tmp_path_factory.mktemp("qwen") / "model")


@pytest.fixture(scope="module")
def embedder(folder):
    return QwenEmbedder(NAME, folder, "cpu", Options(prompt="a b", batch_size=2))


@pytest.fixture(scope="module")
def pictures():
    sizes = [(64, 96), (70, 40), (96, 64)]
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)) for width, height in sizes]


def theirs(folder, ids, picture=None):
    """Return the last hidden state at the last token, of one input without padding, normalised."""
    network = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval().model
    given = {"input_ids": torch.tensor([ids])}
    given["mm_token_type_ids"] = (given["input_ids"] == 4).long()
    if picture is not None:
        size = {"shortest_edge": 4 * 32 * 32, "longest_edge": 1800 * 32 * 32}
        given |= AutoImageProcessor.from_pretrained(folder, backend="pil", size=size)(picture, return_tensors="pt")
    with torch.inference_mode():
        return torch.nn.functional.normalize(network(**given).last_hidden_state[0, -1], dim=0)


def test_query_document_and_sentence_are_the_chats_of_the_authors(folder, embedder, pictures):
    # <|im_start|> 0, <|im_end|> 1, vision 2 and 3, image 4; then <unk>, system, user, assistant, NULL, red ... from 6
    start = [0, 7, 13, 14, 15, 1, 0, 8]  # system: "a b.", user:
    end = [1, 0, 9]  # assistant:
    grids = [one[1] for one in map(embedder.prepare, pictures)]
    image = [[2, *[4] * (int(np.prod(grid)) // 4), 3] for grid in grids]
    queries = embedder.embed_pairs(pictures, ["red", "", "blue red red"])
    expected = torch.stack(
        [
            theirs(folder, [*start, *image[0], 11, *end], pictures[0]),
            theirs(folder, [*start, *image[1], *end], pictures[1]),
            theirs(folder, [*start, *image[2], 12, 11, 11, *end], pictures[2]),
        ]
    )
    torch.testing.assert_close(queries, expected, atol=1e-5, rtol=0)
    sentences = embedder.embed_sentences(["red", "blue blue"])
    expected = torch.stack([theirs(folder, [*start, 11, *end]), theirs(folder, [*start, 12, 12, *end])])
    torch.testing.assert_close(sentences, expected, atol=1e-5, rtol=0)
    # "Represent the user's input." is five words that the small vocabulary lacks, "user" and the marks between
    words = embedder.tokenizer("Represent the user's input.")["input_ids"]
    document = theirs(folder, [0, 7, *words, 1, 0, 8, *image[0], *end], pictures[0])
    gallery = embedder.embed_prepared([embedder.prepare(one) for one in pictures])
    torch.testing.assert_close(gallery[0], document, atol=1e-5, rtol=0)


def test_embeddings_are_cut_before_they_are_normalised(folder, embedder):
    short = QwenEmbedder(NAME, folder, "cpu", Options(prompt="a b", dim=4))
    whole = embedder.embed_sentences(["red"])[:, :4]
    torch.testing.assert_close(short.embed_sentences(["red"]), whole / whole.norm(), atol=1e-5, rtol=0)
    assert short.weights_hash() != embedder.weights_hash()
    with pytest.raises(ComposirError, match="dim 17 is more than the model makes; expected at most 16"):
        QwenEmbedder(NAME, folder, "cpu", Options(dim=17))


@pytest.mark.parametrize(("limit", "most"), [(None, 1800), (200 * FACTOR**2, 200)])
def test_a_photograph_of_12_megapixels_is_no_more_tokens_than_the_limit(folder, limit, most):
    embedder = QwenEmbedder(NAME, folder, "cpu", Options(max_pixels=limit))
    _, grid = embedder.prepare(Image.new("RGB", (4000, 3000)))
    assert most * 0.9 < np.prod(grid) / 4 <= most
    _, small = embedder.prepare(Image.new("RGB", (10, 10)))
    assert np.prod(small) / 4 == 4


def test_a_sentence_can_be_neither_endless_nor_a_mark_of_the_chat(embedder, pictures):
    marked = embedder.embed_pairs(pictures[:1], ["red <|image_pad|> <|im_end|>"])
    torch.testing.assert_close(marked, embedder.embed_pairs(pictures[:1], ["red"]), atol=1e-6, rtol=0)
    chat = embedder._chat("a b.", None, "red " * 20_000)
    assert 8190 < len(embedder.tokenizer(chat)["input_ids"]) <= 8192


def test_it_is_opened_by_its_name(folder, tmp_path):
    opened = open_model(f"{NAME}:{folder}?dim=8&max_pixels=65536", "cpu")
    assert (opened.dim, opened.processor.size["longest_edge"]) == (8, 65536)
    assert opened.prompt.endswith("with the described changes:")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ComposirError, match="is a model of the type 'clip'; expected qwen3_vl"):
        open_model(f"{NAME}:{tmp_path}", "cpu")


def test_index_search_and_evaluate_take_it(run, folder, shapes_root, tmp_path):
    pictures, out, model = shapes_root / "dev", tmp_path / "index", f"{NAME}:{folder}?dim=8"
    code, _, err = run("index", pictures, "--model", model, "--out", out, "--batch-size", 5)
    assert code == 0, err
    asked = sorted(pictures.glob("*.png"))[0]
    code, found, err = run("search", out, "--image", asked, "--text", "red", "--json")
    assert code == 0, err
    best = json.loads(found)["results"][0]
    embedder = QwenEmbedder(NAME, folder, "cpu", Options(dim=8))
    score = embedder.embed_gallery([best["path"]])[0, 0] @ embedder.embed_queries([asked], ["red"])[0]
    assert best["score"] == pytest.approx(float(score), abs=2e-3)  # vectors are stored in fp16
    code, out, err = run("evaluate", "--model", model, "--data-root", shapes_root, "--prompt", "a", "--json")
    assert code == 0, err
    assert json.loads(out)["signature_fields"]["weights"].startswith("qwen-")


ASKED = ("Find it", " Find it: ", "Find it.", "")


def test_an_instruction_ends_in_punctuation():
    assert [punctuated(one) for one in ASKED] == [
        "Find it.",
        "Find it:",
        "Find it.",
        "",
    ]
