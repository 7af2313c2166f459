"""The built-in model for photographs, on pictures that these tests draw."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from composir import Retriever
from composir.errors import ComposirError
from composir.features import open_embedder, open_model
from composir.models.photos.colours import COLOURS, colour_shares, to_lab
from composir.models.photos.embedder import ABOUT, DIM, PARTS, SIDE, PhotosEmbedder
from composir.models.photos.ground import cut_out, look_at
from composir.models.photos.minilm import embed
from composir.models.photos.vocabulary import NUM_CLASSES, class_vectors, read_class_vectors, read_classes
from composir.search import read_manifest


@pytest.fixture(scope="module")
def model():
    return PhotosEmbedder()


def disc(colour, ground="white", size=(120, 90), box=(40, 25, 80, 65)):
    picture = Image.new("RGB", size, ground)
    ImageDraw.Draw(picture).ellipse(box, fill=colour)
    return picture


def noise(seed, size=(120, 90)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    for name in ("red", "green", "blue", "yellow"):
        disc(name).save(root / f"{name}.png")
    noise(0).save(root / "noise.png")
    return root


def test_colours_of_known_values():
    np.testing.assert_allclose(to_lab(np.array([255, 255, 255])), [100, 0, 0], atol=0.01)
    np.testing.assert_allclose(to_lab(np.array([255, 0, 0])), [53.24, 80.09, 67.20], atol=0.02)  # CIE 15, D65
    lab = to_lab(np.array([[200, 20, 30], [40, 80, 190]]))  # prototypes of red and of blue
    one = colour_shares(lab[:1], np.ones(1))
    assert one.sum() == pytest.approx(1)
    assert COLOURS[one.argmax()] == "red"
    both = colour_shares(lab, np.array([3.0, 1.0]))
    np.testing.assert_allclose(both, (3 * one + colour_shares(lab[1:], np.ones(1))) / 4)


def test_the_thing_on_a_plain_ground_is_found_and_cut_out():
    picture = disc("red")
    ground = look_at(picture)
    assert ground.white == 1
    assert ground.colour == (255, 255, 255)
    np.testing.assert_allclose(ground.box, [40 / 120, 25 / 90, 81 / 120, 66 / 90], atol=1.1 / 48)
    assert COLOURS[ground.colours.argmax()] == "red"
    thing = cut_out(picture, ground)
    assert thing.width == thing.height
    assert 40 < thing.width < 55
    assert thing.getpixel((thing.width // 2, thing.height // 2)) == (255, 0, 0)


def test_a_busy_or_empty_picture_has_no_thing_cut_out():
    for picture in (noise(1), Image.new("RGB", (80, 60), "grey")):
        ground = look_at(picture)
        assert ground.white == 0
        assert ground.box is None
        assert cut_out(picture, ground) is None


def test_the_shipped_vectors_of_the_classes_are_those_of_their_words():
    classes = read_classes()
    assert len(classes) == NUM_CLASSES
    some = [0, 207, 999]
    assert classes[207].name == "golden retriever"
    computed = class_vectors([classes[place] for place in some])
    torch.testing.assert_close(computed, read_class_vectors()[some], atol=2e-4, rtol=0)


def test_sentences_of_one_meaning_are_near():
    dog, puppy, car = embed("a dog"), embed("a puppy"), embed("a car")
    assert float(dog @ dog) == pytest.approx(1, abs=1e-5)
    assert float(dog @ puppy) > 0.7
    assert float(dog @ car) < 0.5


def test_vectors_are_golden_and_parts_have_equal_weight(model):
    (vector,) = model.embed_documents([disc("red")])[0]
    assert vector.shape == (DIM,)
    for part in vector.split(PARTS):
        assert float(part.norm()) == pytest.approx(0.5, abs=1e-4)
    query = model.compose(None, "a red car")
    assert float(query.norm()) == pytest.approx(1, abs=1e-5)
    golden = [-0.0054, -0.0057, 0.0232, -0.0408, 0.0036, 0.0088, 0.0046, 0.0014]
    assert vector[[0, 1, 2, 3, *range(384, 388)]].tolist() == pytest.approx(golden, abs=5e-4)
    golden = [0.4234, 0.2033, 0.0131, 0.0063, 0.0217, 0.0117, 0.1249, 0.0596, 0.0109, 0.0778, 0.057, 0, 0.5]
    assert vector[-13:].tolist() == pytest.approx(golden, abs=5e-4)
    golden = [-0.0261, 0.0714, -0.0118, 0.0419, 0.1146, 0.4867]
    assert query[[0, 1, 2, 3, 384 + 817, -13]].tolist() == pytest.approx(golden, abs=5e-4)


def test_one_picture_is_as_in_a_batch(model):
    pictures = [disc("red"), noise(2), disc("blue", ground="grey"), *(noise(seed) for seed in range(3, 9))]
    together = model.embed_documents(pictures)
    for place, picture in enumerate(pictures):
        assert torch.equal(model.embed_documents([picture])[0], together[place])


def test_a_picture_asked_about_several_times_is_looked_at_once(model, monkeypatch):
    first, second = noise(1), noise(2)
    pairs = [first, second, first, first], ["", "but red", "but blue", "a dog"]
    alone = [model.embed_pairs([picture], [text])[0] for picture, text in zip(*pairs, strict=True)]
    prepare, looked_at = model.prepare, []
    monkeypatch.setattr(model, "prepare", lambda picture: looked_at.append(picture) or prepare(picture))
    torch.testing.assert_close(model.embed_pairs(*pairs), torch.stack(alone), atol=1e-6, rtol=0)
    assert looked_at == [first, second]


def test_a_large_picture_is_as_it_is_shrunk(model):
    picture = disc("red", size=(1600, 1200), box=(500, 400, 900, 800))
    small = picture.copy()
    small.thumbnail((SIDE, SIDE))
    assert torch.equal(model.embed_documents([picture]), model.embed_documents([small]))


def test_a_colour_asked_for_is_found_first(model, folder):
    names = ["red", "green", "blue", "yellow"]
    gallery = model.embed_gallery([folder / f"{name}.png" for name in names])[:, 0]
    queries = model.embed_queries([folder / "red.png"] * 4, ["but green", "a blue one", "the same in yellow", ""])
    assert [names[place] for place in (queries @ gallery.T).argmax(dim=1)] == ["green", "blue", "yellow", "red"]
    away = model.embed_queries([folder / "red.png"], ["not red"])
    assert (away @ gallery.T)[0, 0] < 1 > (queries[3] @ gallery.T)[0]


def test_names_of_classes_are_found_where_the_classifier_sees_them(model):
    """A vector that is all one class answers to its name, and its parent's, before those of all others."""
    names = [one.name for one in read_classes()]
    meaning = torch.nn.functional.normalize(read_class_vectors() - read_class_vectors().mean(dim=0), dim=-1)
    gallery = torch.cat([meaning, torch.eye(NUM_CLASSES), torch.zeros(NUM_CLASSES, 13)], dim=1)
    for text in ("goldfish", "a volcano", "show me a teapot"):
        best = int((gallery @ model.compose(None, text)).argmax())
        assert names[best] in text
    best = int((gallery @ model.compose(None, "a dog")).argmax())
    assert "dog" in read_classes()[best].parents


def test_explanations_name_classes_and_colours(model):
    vector = np.zeros(DIM, np.float32)
    vector[PARTS[0] + np.array([207, 1, 5])] = [0.4, 0.3, 0.2]
    vector[PARTS[0] + NUM_CLASSES + COLOURS.index("pink")] = 0.5
    names = [one.name for one in read_classes()]
    assert model.seen(vector) == f"{names[207]}, {names[1]}, {names[5]}; pink"


def test_one_name_is_told_where_its_class_is_likely_enough(model):
    vector = np.zeros(DIM, np.float32)
    vector[PARTS[0] + NUM_CLASSES + COLOURS.index("pink")] = 0.5
    vector[PARTS[0] + np.array([207, 1])] = 0.5 * np.sqrt([0.81, 0.19])
    assert model.named(vector) == (read_classes()[207].name, "pink")
    vector[PARTS[0] + np.array([207, 1])] = 0.5 * np.sqrt([0.79, 0.21])
    assert model.named(vector) is None


def test_the_hash_tells_other_rules(model, monkeypatch):
    before = model.weights_hash()
    assert before.startswith("photos-")
    monkeypatch.setattr("composir.models.photos.embedder.VERSION", 2)
    assert model.weights_hash() != before


def test_index_without_a_model_takes_photos(run, folder, tmp_path, monkeypatch):
    out = tmp_path / "photos.index"
    code, said, _ = run("index", folder, "--out", out)
    assert code == 0
    assert f"model: photos ({ABOUT})" in said
    assert "a better one: --model st:NAME" in said
    manifest = read_manifest(out)
    assert (manifest.model.path, manifest.about) == ("photos", ABOUT)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "photos")
    code, said, _ = run("index", "photos")  # into photos.index
    assert code == 0
    assert "(0 new, 0 gone, 0 skipped)" in said
    assert "a better one" not in said

    words = ("search", out, "--image", folder / "red.png", "--text", "but green", "--top-k", "1")
    code, said, _ = run(*words, "--explain")
    assert code == 0
    assert "read as: colours: green; reference: its thing is kept" in said
    assert "green.png  [" in said
    assert "; green]" in said
    assert f"model: photos ({ABOUT})" in said
    document = json.loads(run(*words, "--explain", "--json")[1])
    assert document["reading"] == "colours: green; reference: its thing is kept"
    assert document["results"][0]["seen"].endswith("; green")
    assert "seen" not in json.loads(run(*words, "--json")[1])["results"][0]

    code, said, err = run("search", out, "--image", folder / "red.png", "--text", "红色的", "--top-k", "1")
    assert code == 0
    assert "did not count: nothing in it can be used" in err
    code, _, err = run("search", out, "--text", "the same")
    assert code == 2
    assert "there is nothing to search for in 'the same': nothing in it can be used: photos reads English names" in err
    assert "expected a picture, or a sentence that the model can use" in err

    fields = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps({name: value for name, value in fields.items() if name != "about"}))
    with Retriever(out) as retriever:  # as one of before models said what they were trained for
        assert retriever.manifest.model_line == "photos"
        with pytest.raises(ComposirError, match="is the index of photos, which neither matches pairs"):
            retriever.search(folder / "red.png", "but green", rerank=2)


def test_a_search_by_what_the_model_sees_is_one_by_the_picture(folder, tmp_path, run):
    out = tmp_path / "photos.index"
    assert run("index", folder, "--out", out)[0] == 0
    with Retriever(out) as retriever:
        picture = disc("red", size=(1600, 1200), box=(500, 400, 900, 800))
        hits = retriever.search(picture, "but blue")
        assert retriever.search(retriever.prepare(picture), "but blue") == hits
        assert hits[0].path.name == "blue.png"
        assert retriever.box((30, 20)) == (0, 0, 30, 20)
        both = retriever.search([picture, folder / "blue.png"], "but green", negative_text="yellow")
        assert both[0].path.name == "green.png"


def test_evaluate_takes_photos_as_any_model(run, shapes_root):
    code, said, _ = run("evaluate", "--model", "photos", "--data-root", shapes_root, "--json")
    assert code == 0
    document = json.loads(said)
    assert document["signature_fields"]["weights"].startswith("photos-")
    for option, what in ((("--rerank", "2"), "matching head"), (("--scoring", "local"), "local scoring")):
        code, _, err = run("evaluate", "--model", "photos", "--data-root", shapes_root, *option)
        assert code == 2
        assert f"photos has no {what}" in err


def test_photos_does_not_show_where_it_looks(run, folder, tmp_path):
    words = ("--image", folder / "red.png", "--text", "red", "--out", tmp_path / "map.png")
    code, _, err = run("visualize", "--model", "photos", *words)
    assert code == 2
    assert "photos does not show what it looks at" in err


def test_open_embedder_opens_it():
    assert isinstance(open_model("photos", "cpu"), PhotosEmbedder)
    embedder, name = open_embedder("photos", [])
    assert isinstance(embedder, PhotosEmbedder)
    assert name == embedder.weights_hash()


def test_pairs_and_pictures_at_once_are_those_of_either(model, folder):
    pictures = [Image.open(folder / f"{name}.png") for name in ("red", "noise")]
    pairs, seen = model.embed_pairs_and_pictures(pictures, [(1, "a dog"), (0, ""), (1, "but blue")])
    assert torch.equal(pairs, model.embed_pairs([pictures[1], pictures[0], pictures[1]], ["a dog", "", "but blue"]))
    assert torch.equal(seen, model.embed_documents(pictures)[:, 0])
