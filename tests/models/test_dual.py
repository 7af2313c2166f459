"""Dual encoders: pixels and features equal to transformers', compositions worked by hand, folders as on the hub."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, CLIPModel, SiglipModel

from composir import Retriever
from composir.errors import ComposirError
from composir.features import open_model
from composir.models import identity
from composir.models.catalogue import MODELS
from composir.models.dual import FEATURE_SUM, WEIGHTED_SUM, DualEncoder, read_preprocessing
from composir.models.identity import folder_hash

from ..small_duals import CLIP_PICTURES, SIGLIP_PICTURES, into_cache, save_clip, save_siglip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("duals") / "clip")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory):
    return save_siglip(tmp_path_factory.mktemp("duals") / "siglip")


@pytest.fixture
def cached(clip, tmp_path, monkeypatch):
    """Return the snapshot of ``bge-vl-base`` in a hub's cache, the small one standing for it."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model = MODELS["bge-vl-base"]
    return into_cache(clip, tmp_path / "hub", model.hub_id, model.revision)


@pytest.fixture
def files(shapes_root):
    return sorted((shapes_root / "dev").glob("*.png"))[:3]


def noise(width, height):
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(60, 52), (52, 60), (33, 97), (32, 32), (200, 31), (31, 31), (640, 479)])
@pytest.mark.parametrize("wanted", [CLIP_PICTURES, SIGLIP_PICTURES, CLIP_PICTURES | {"size": 48, "crop_size": 32}])
def test_pixels_are_those_of_the_processor_of_transformers(tmp_path, size, wanted):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(wanted))
    picture = noise(*size)
    ours = read_preprocessing(tmp_path)
    theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(picture, return_tensors="np")["pixel_values"]
    scaled = (ours(picture) / 255 - np.array(ours.mean)[:, None, None]) / np.array(ours.std)[:, None, None]
    np.testing.assert_allclose(scaled, theirs[0], atol=1e-5)
    left, top, right, bottom = ours.box(size)
    assert -1e-9 <= left < right <= size[0] + 1e-9
    assert -1e-9 <= top < bottom <= size[1] + 1e-9


def test_its_tokenizer_says_which_scripts_it_reads(clip, siglip):
    for folder in (clip, siglip):
        assert DualEncoder("x", folder, composition=WEIGHTED_SUM, device="cpu").scripts == {"LATIN"}


def test_the_box_is_what_is_read(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP_PICTURES))
    # 100 x 50 becomes 64 x 32, of which the middle 32 x 32 is read: 25 to 75 of the picture
    assert read_preprocessing(tmp_path).box((100, 50)) == (25, 0, 75, 50)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(SIGLIP_PICTURES))
    assert read_preprocessing(tmp_path).box((100, 50)) == (0, 0, 100, 50)


@pytest.mark.parametrize(
    "change", [{"do_center_crop": True, "crop_size": 64}, {"rescale_factor": 1}, {"image_mean": [0.5]}, {"size": {}}]
)
def test_a_preprocessing_that_is_not_known_is_refused(tmp_path, change):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(CLIP_PICTURES | change))
    with pytest.raises(ComposirError, match=r"preprocessor_config\.json: asks for a preprocessing that is not known"):
        read_preprocessing(tmp_path)


def test_compositions_are_those_worked_by_hand():
    image, text = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -1.0]])
    # BGE-VL: (3, 4) + (0, -1) = (3, 3), of length 3 * sqrt(2); the longer picture counts for more
    torch.testing.assert_close(FEATURE_SUM(image, text), torch.tensor([[1.0, 1.0]]) / math.sqrt(2))
    # weighted: half of (0.6, 0.8) and of (0, -1) = (0.3, -0.1), of length sqrt(0.1)
    torch.testing.assert_close(WEIGHTED_SUM(image, text), torch.tensor([[0.3, -0.1]]) / math.sqrt(0.1))


def theirs_of(folder, kind, pictures, tokens):
    """Return the features of pictures and sentences as ``transformers`` computes them, float32."""
    network = kind.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")(pictures, return_tensors="pt")
    with torch.inference_mode():
        images = network.get_image_features(**pixels).pooler_output
        return images, network.get_text_features(torch.tensor(tokens)).pooler_output


def test_bge_vl_adds_features_that_are_not_normalised(clip, files):
    embedder = DualEncoder("bge-vl-base", clip, composition=FEATURE_SUM, device="cpu")
    pictures = [Image.open(file).convert("RGB") for file in files]
    # "ab" and "c" by letters, between the marks of start (52) and end (53), with which the shorter is filled up
    images, texts = theirs_of(clip, CLIPModel, pictures, [[52, 0, 27, 53], [52, 28, 53, 53]])
    together = embedder.embed_queries(files, ["ab", "", "c"])
    expected = torch.stack([images[0] + texts[0], images[1], images[2] + texts[1]])
    torch.testing.assert_close(together, expected / expected.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)
    alone = images / images.norm(dim=1, keepdim=True)
    torch.testing.assert_close(embedder.embed_gallery(files)[:, 0], alone, atol=1e-5, rtol=0)
    sentences = texts / texts.norm(dim=1, keepdim=True)
    torch.testing.assert_close(embedder.embed_text_only(["ab", "c"], files), sentences, atol=1e-5, rtol=0)
    pairs, seen = embedder.embed_pairs_and_pictures(pictures, [(0, "ab"), (1, ""), (2, "c")])
    torch.testing.assert_close(pairs, together)
    torch.testing.assert_close(seen, alone, atol=1e-5, rtol=0)
    # features of other lengths than 1, or the two compositions would be one
    assert not torch.allclose(WEIGHTED_SUM(images[:1], texts[:1]), together[:1], atol=1e-3)
    assert embedder.network.dtype == torch.float32  # on a CPU, though the file holds fp16


def test_siglip_reads_lower_case_padded_to_the_full_length(siglip, files):
    embedder = DualEncoder("siglip2-base", siglip, composition=WEIGHTED_SUM, device="cpu", batch_size=2)
    pictures = [Image.open(file).convert("RGB") for file in files]
    images, texts = theirs_of(siglip, SiglipModel, pictures, [[2, 0, 0, 0, 0, 0], [3, 2, 2, 2, 2, 2]])
    unit = [each / each.norm(dim=1, keepdim=True) for each in (images, texts)]
    expected = torch.stack([unit[0][0] + unit[1][0], unit[0][1] + unit[1][1], unit[0][2]])
    words = ["Red", "blue red red red red red red red", ""]  # the last two words do not fit
    found = embedder.embed_queries(files, words)
    torch.testing.assert_close(found, expected / expected.norm(dim=1, keepdim=True), atol=1e-5, rtol=0)


def test_a_name_is_found_in_the_cache_and_its_code_is_not_run(cached, clip, files):
    model = open_model("bge-vl-base", "cpu")
    assert isinstance(model, DualEncoder)
    assert (model.composition, model.backbone) == (FEATURE_SUM, "bge-vl-base")
    copy = open_model(f"bge-vl-base:{clip}", "cpu")
    assert copy.weights_hash() == model.weights_hash()  # wherever the files are
    assert torch.equal(copy.embed_gallery(files), model.embed_gallery(files))
    assert open_model(f"clip-vit-b-32:{clip}", "cpu").weights_hash() != model.weights_hash()  # composes otherwise


def test_a_name_that_is_not_here_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ComposirError, match=r"bge-vl-base is not on this machine; fix: composir models get bge-vl-base"
    ):
        open_model("bge-vl-base", "cpu")
    with pytest.raises(ComposirError, match=r"no model to ask as it is.*convert --from hf blip2-itm-vit-g"):
        open_model("blip2-itm-vit-g", "cpu")
    with pytest.raises(ComposirError, match="sprc-spn-cirr is listed for its figures alone"):
        open_model("sprc-spn-cirr", "cpu")
    with pytest.raises(ComposirError, match="nowhere: is no folder; expected the files of BAAI/BGE-VL-base"):
        open_model(f"bge-vl-base:{tmp_path / 'nowhere'}", "cpu")
    with pytest.raises(ComposirError, match="the dual encoder bge-vl-base takes no prompt"):
        open_model(f"bge-vl-base:{tmp_path}?prompt=Find", "cpu")
    with pytest.raises(ComposirError, match=r"dtype 'fp8' is not known; expected fp32 or bf16 or fp16"):
        open_model("bge-vl-base?dtype=fp8", "cpu")


def test_weights_that_are_not_whole_are_refused(clip, tmp_path):
    for name, spoil in (("lacking", lambda one: one.pop("visual_projection.weight")), ("cut", None)):
        folder = shutil.copytree(clip, tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        if spoil:
            spoil(weights)
            save_file(weights, folder / "model.safetensors")
        else:
            (folder / "model.safetensors").write_bytes((clip / "model.safetensors").read_bytes()[:-1000])
    with pytest.raises(ComposirError, match=r"lacks 1 weights of CLIPModel, such as visual_projection\.weight"):
        open_model(f"bge-vl-base:{tmp_path / 'lacking'}", "cpu")
    with pytest.raises(ComposirError, match=r"cut: cannot be loaded .*download or copy it again"):
        open_model(f"bge-vl-base:{tmp_path / 'cut'}", "cpu")
    (tmp_path / "cut/config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ComposirError, match="is a model of the type 'bert'; expected one of clip, siglip"):
        open_model(f"bge-vl-base:{tmp_path / 'cut'}", "cpu")


def test_weights_are_hashed_once_and_those_of_the_cache_never(cached, clip, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPOSIR_CACHE", str(tmp_path / "cache"))
    read, own = [], identity._sha256

    def reading(file):
        read.append(file.name)
        return own(file)

    monkeypatch.setattr(identity, "_sha256", reading)
    name = folder_hash(cached)
    assert "config.json" in read
    assert not [one for one in read if one == "model.safetensors" or len(one) == 64]  # the blob's name is its hash
    read.clear()
    assert folder_hash(clip) == name
    assert read.count("model.safetensors") == 1
    assert folder_hash(clip) == name
    assert read.count("model.safetensors") == 1
    changed = shutil.copytree(clip, tmp_path / "changed")
    content = bytearray((changed / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (changed / "model.safetensors").write_bytes(content)
    assert folder_hash(changed) != name
    other = shutil.copytree(clip, tmp_path / "other")
    (other / "preprocessor_config.json").write_text(json.dumps(CLIP_PICTURES | {"resample": 2}))
    assert folder_hash(other) != name
    with pytest.raises(ComposirError, match="holds no weights"):
        folder_hash(tmp_path / "cache")


def test_evaluate_takes_a_name_under_the_rules_of_the_data_set(run, clip, shapes_root):
    code, out, err = run("evaluate", "--model", f"bge-vl-base:{clip}", "--data-root", shapes_root, "--json")
    assert code == 0, err
    document = json.loads(out)
    assert document["signature_fields"]["weights"].startswith("dual-")
    assert set(document["baselines"]) == {"image_only", "text_only"}
    code, _, err = run("evaluate", "--model", f"bge-vl-base:{clip}", "--data-root", shapes_root, "--rerank", 5)
    assert code == 2
    assert "the dual encoder bge-vl-base has no matching head; fix: leave out --rerank" in err


@pytest.mark.usefixtures("cached")
def test_index_and_search_take_a_name(run, clip, shapes_root, tmp_path):
    pictures, out = shapes_root / "dev", tmp_path / "index"
    code, _, err = run("index", pictures, "--model", "bge-vl-base", "--out", out)
    assert code == 0, err
    asked = sorted(pictures.glob("*.png"))[0]
    code, found, err = run("search", out, "--image", asked, "--text", "red", "--json", "--top-k", 12)
    assert code == 0, err
    hits = json.loads(found)["results"]
    embedder = DualEncoder("bge-vl-base", clip, composition=FEATURE_SUM, device="cpu")
    scores = embedder.embed_gallery([hit["path"] for hit in hits])[:, 0] @ embedder.embed_queries([asked], ["red"])[0]
    assert [hit["score"] for hit in hits] == pytest.approx(scores.tolist(), abs=2e-3)  # vectors are stored in fp16
    with Retriever(out) as retriever:
        picture = Image.open(asked).convert("RGB")
        assert retriever.box(picture.size) == pytest.approx((4, 0, 56, 52), abs=1.5)
        with pytest.raises(ComposirError, match="is the index of the dual encoder bge-vl-base, which neither matches"):
            retriever.read([picture], ["red"])
