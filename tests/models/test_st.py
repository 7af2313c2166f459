"""Models of sentence-transformers, small ones that these tests build, save and load."""

from __future__ import annotations

import json
import re
import string
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from composir import Retriever
from composir.errors import ComposirError
from composir.features import open_model
from composir.models.address import Options
from composir.models.heads.folder import read_head
from composir.models.st import SentenceEmbedder, load_sentence_embedder
from composir.search import index_folder
from composir.token_cache import TokenPlace
from composir.training import load_recipe, train

from ..small_duals import save_clip

LETTERS = string.ascii_lowercase


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """Return a CLIP of 8 dimensions over pictures of 32 px, saved as sentence-transformers saves it."""
    folder = tmp_path_factory.mktemp("clip")
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": len(words), "bos_token_id": 52, "eos_token_id": 53},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder / "plain")
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    tokenizer = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(folder / "plain")
    SentenceTransformer(str(folder / "plain")).save(str(folder / "clip"))
    return folder / "clip"


@pytest.fixture
def files(shapes_root):
    return sorted((shapes_root / "dev").glob("*.png"))[:3]


def test_its_tokenizer_says_which_scripts_it_reads(clip_folder):
    assert load_sentence_embedder(str(clip_folder), device="cpu").scripts == {"LATIN"}


def test_what_such_a_model_looks_at_is_not_shown(clip_folder, files, run, tmp_path):
    words = ("--image", files[0], "--text", "red", "--out", tmp_path / "map.png")
    code, _, err = run("visualize", "--model", f"st:{clip_folder}", *words)
    assert code == 2
    assert "a sentence-transformers model does not show what it looks at; fix: give a checkpoint folder" in err


def test_a_model_of_one_modality_at_a_time_is_combined_by_a_weighted_sum(clip_folder, files):
    embedder = load_sentence_embedder(str(clip_folder))
    assert not embedder.composes
    gallery = embedder.embed_gallery(files)
    assert gallery.shape == (3, 1, 8)
    texts = ["red", "", "blue"]
    words = embedder.embed_text_only(["red", "blue"], files)
    queries = embedder.embed_queries(files, texts)
    # 0.5 * picture + 0.5 * sentence, normalised; the picture alone where there is no sentence
    pictures = gallery[:, 0]
    expected = torch.stack([pictures[0] + words[0], pictures[1], pictures[2] + words[1]])
    torch.testing.assert_close(queries, torch.nn.functional.normalize(expected, dim=-1), atol=1e-5, rtol=0)
    assert embedder.embed_queries(files[:1], [""]).shape == (1, 8)
    assert embedder.weights_hash().startswith("st-")


class Joint:
    """A model that takes both at once, as far as the embedder asks: it remembers what it was given."""

    def __init__(self):
        self.given = []

    def supports(self, modality):
        return True

    def state_dict(self):
        return {"weight": torch.ones(2)}

    def encode_query(self, inputs, **settings):
        self.given += inputs
        return torch.tensor([[1.0, 0.0] if isinstance(one, dict) else [0.0, 2.0] for one in inputs])

    encode_document = encode_query


def test_a_model_that_composes_is_given_both_in_one_input(files):
    model = Joint()
    embedder = SentenceEmbedder(model)
    queries = embedder.embed_queries(files, ["red", "", "blue"])
    assert queries.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert [one["text"] for one in model.given if isinstance(one, dict)] == ["red", "blue"]
    assert all(one["image"].mode == "RGB" for one in model.given if isinstance(one, dict))
    assert embedder.weights_hash() != f"st-{'0' * 16}"


def test_evaluate_takes_such_a_model(run, clip_folder, shapes_root):
    code, out, err = run("evaluate", "--model", f"st:{clip_folder}", "--data-root", shapes_root, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert set(document["baselines"]) == {"image_only", "text_only"}
    assert document["signature_fields"]["weights"].startswith("st-")
    code, _, err = run("evaluate", "--model", f"st:{clip_folder}", "--data-root", shapes_root, "--rerank", 5)
    assert code == 2
    assert "a sentence-transformers model has no matching head; fix: leave out --rerank" in err
    code, _, err = run("evaluate", "--model", f"st:{clip_folder}", "--data-root", shapes_root, "--scoring", "local")
    assert code == 2
    assert "a sentence-transformers model has no local scoring; fix: leave out --scoring" in err


def test_index_and_search_take_such_a_model(run, clip_folder, shapes_root, tmp_path, monkeypatch):
    monkeypatch.chdir(clip_folder.parent)
    pictures, out = shapes_root / "dev", tmp_path / "index"
    code, _, err = run("index", pictures, "--model", f"st:{clip_folder.name}", "--out", out)
    assert code == 0, err
    monkeypatch.chdir(tmp_path)  # the model's place is remembered, not the folder that the command ran in
    asked = sorted(pictures.glob("*.png"))[0]
    code, found, err = run("search", out, "--image", asked, "--text", "red", "--json", "--top-k", 12)
    assert code == 0, err
    hits = json.loads(found)["results"]
    assert len(hits) == 11  # the reference is left out
    embedder = load_sentence_embedder(str(clip_folder))
    files = [Path(hit["path"]) for hit in hits]
    scores = (embedder.embed_gallery(files)[:, 0] @ embedder.embed_queries([asked], ["red"])[0]).tolist()
    assert [hit["score"] for hit in hits] == pytest.approx(scores, abs=2e-3)  # vectors are stored in fp16
    with Retriever(out) as retriever:
        (best, *_) = retriever.search(asked, exclude=())
        assert (best.path, best.score) == (asked, pytest.approx(1, abs=2e-3))
        words = embedder.embed_sentences(["blue", "red"])
        (first, *_) = retriever.search(text="blue", negative_text="red", exclude=())
        none = embedder.embed_sentences([""])[0]
        query = torch.nn.functional.normalize(words[0] - words[1] + none, dim=-1)
        assert first.score == pytest.approx(float(embedder.embed_gallery([first.path])[0, 0] @ query), abs=2e-3)
        picture = Image.open(asked).convert("RGB")
        assert retriever.prepare(picture) == picture
        assert retriever.box(picture.size) == (0, 0, 60, 52)
        with pytest.raises(ComposirError, match="is the index of a sentence-transformers model, which neither matches"):
            retriever.read([picture], ["red"])
    code, _, err = run("index", pictures, "--out", out, "--vectors-per-image", 2)
    assert code == 2
    assert "--vectors-per-image 2 is more than the model makes; expected at most 1" in err


def test_a_model_of_sentences_alone_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    config = BertConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ComposirError, match="embeds no image; expected a model of pictures and sentences"):
        load_sentence_embedder(str(tmp_path / "bert"))


def test_what_cannot_be_loaded_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComposirError, match=r"empty: cannot be loaded by sentence-transformers \(.*check the name"):
        load_sentence_embedder(str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ComposirError, match=r"not installed; fix: pip install 'sentence-transformers\[image\]>="):
        load_sentence_embedder(str(tmp_path))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ModuleNotFoundError("No module named 'torchvision'", name="torchvision"), "needs the package torchvision,"),
        (ImportError("\nA requires the Torchvision library but it was not found"), "needs the package Torchvision,"),
        (
            ImportError("libcudart.so.12: cannot open shared object file"),
            "a package is installed and cannot be imported",
        ),
    ],
)
def test_a_package_that_lacks_and_one_that_is_broken_are_told_apart(clip_folder, monkeypatch, error, told):
    def failing(*arguments, **options):
        raise error

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", failing)
    with pytest.raises(ComposirError, match=told):
        load_sentence_embedder(str(clip_folder))


def test_a_model_with_code_of_its_own_says_what_to_use_instead(tmp_path):
    folder = save_clip(tmp_path / "bge")
    with pytest.raises(ComposirError, match=r"code of its own, which is never run.*such as bge-vl-base:FOLDER"):
        open_model(f"st:{folder}", "cpu")
    with pytest.raises(ComposirError, match=r"has a name here.*fix: --model bge-vl-base"):
        open_model("st:BAAI/BGE-VL-base", "cpu")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}])
    )
    (tmp_path / "own/custom_st.py").write_text("raise SystemExit('code of a repository was run')")
    with pytest.raises(ComposirError, match="own: "):
        open_model(f"st:{tmp_path / 'own'}", "cpu")


def test_flags_are_options_that_an_index_remembers(run, clip_folder, shapes_root, tmp_path):
    pictures, out = shapes_root / "dev", tmp_path / "index"
    flags = ("--prompt", "a / b", "--max-pixels", 400, "--dtype", "fp32", "--batch-size", 3)
    code, _, err = run("index", pictures, "--model", f"st:{clip_folder}", "--out", out, *flags)
    assert code == 0, err
    asked = sorted(pictures.glob("*.png"))[0]
    code, found, err = run("search", out, "--image", asked, "--text", "red", "--json")
    assert code == 0, err
    hit = json.loads(found)["results"][0]
    options = Options(prompt="a / b", max_pixels=400)
    embedder = load_sentence_embedder(str(clip_folder), options=options)
    score = embedder.embed_gallery([hit["path"]])[0, 0] @ embedder.embed_queries([asked], ["red"])[0]
    assert hit["score"] == pytest.approx(float(score), abs=2e-3)
    others = [Options(), Options(prompt="a / b"), Options(max_pixels=400)]
    names = {load_sentence_embedder(str(clip_folder), options=one).weights_hash() for one in others}
    assert len(names | {embedder.weights_hash()}) == 4
    code, _, err = run("index", pictures, "--out", out, "--dtype", "bf16")
    assert code == 2
    assert "--dtype is for st:NAME and models by name; fix: leave it out, or give such a --model" in err
    code, _, err = run("evaluate", "--model", "models/x", "--data-root", shapes_root, "--max-pixels", 400)
    assert code == 2
    assert "--max-pixels is for st:NAME and models by name, not for models/x" in err


def test_a_photograph_of_12_megapixels_is_made_smaller(clip_folder):
    embedder = load_sentence_embedder(str(clip_folder))
    small = embedder.prepare(Image.new("RGB", (4000, 3000)))
    assert small.size == (1567, 1175)  # sqrt(1800 * 32 * 32 / 12,000,000) of either side
    assert embedder.prepare(small) is small


def test_a_head_is_trained_on_such_a_model_and_names_it_from_any_folder(
    clip_folder, shapes_root, tmp_path, run, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(clip_folder.parent)
    recipe = load_recipe(
        {
            "backbone": f"st:{clip_folder.name}", "data_root": str(shapes_root), "output_dir": str(tmp_path / "models"),
            "num_epochs": 3, "validation_frequency": 3, "batch_size": 8, "learning_rate": 0.01, "target_map": True,
        }
    )  # fmt: skip
    best = train(recipe, place=TokenPlace("memory")).best
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert read_head(best).config.base == f"st:{clip_folder}"
    index_folder(shapes_root / "dev", tmp_path / "index", model=f"st:{clip_folder}")
    asked = shapes_root / "dev/val-red-ellipse.png"
    with Retriever(tmp_path / "index") as plain, Retriever(tmp_path / "index", model=best) as taught:
        assert taught.search(asked, "make it blue") != plain.search(asked, "make it blue")
        assert taught.search(asked) == plain.search(asked)
    config = json.loads((best / "config.json").read_text())
    (best / "config.json").write_text(json.dumps({**config, "base": f"st:{tmp_path}/gone"}))
    code, _, err = run("search", tmp_path / "index", "--model", best, "--text", "red")
    assert code == 2
    assert re.search(
        r"names the model below it, st:\S+gone, which is not there; fix: put it back", " ".join(err.split())
    )


def test_pairs_and_pictures_at_once_are_those_of_either(clip_folder, files):
    embedder = load_sentence_embedder(str(clip_folder))
    pictures = [Image.open(file).convert("RGB") for file in files]
    pairs, seen = embedder.embed_pairs_and_pictures(pictures, [(2, "red"), (0, ""), (2, "blue")])
    asked = [pictures[2], pictures[0], pictures[2]]
    torch.testing.assert_close(pairs, embedder.embed_pairs(asked, ["red", "", "blue"]))
    torch.testing.assert_close(seen, embedder.embed_gallery(files)[:, 0])
