"""Adapters on CLIP-like models of random weights: the start, what is learned, what is saved, and going on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPModel

from composir.cli import main
from composir.data import load_splits
from composir.data.images import read_image
from composir.errors import ComposirError
from composir.evaluation import evaluate
from composir.features import open_embedder
from composir.search import Retriever, index_folder
from composir.training import load_recipe, loop, train
from composir.training.lora import LoraDual, open_dual

from ..small_duals import save_clip, save_siglip

NAMES = {"clip": "clip-vit-b-32", "bge": "bge-vl-base", "siglip": "siglip2-base"}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Return a folder in the hub's layout for each kind; BGE-VL's composes without normalising."""
    place = tmp_path_factory.mktemp("lora")
    return {
        "clip": save_clip(place / "clip"),
        "bge": save_clip(place / "bge", seed=1),
        "siglip": save_siglip(place / "siglip"),
    }


@pytest.fixture
def make_recipe(folders, shapes_root, tmp_path):
    def make(kind="clip", **settings):
        return load_recipe(
            {
                "backbone": f"{NAMES[kind]}:{folders[kind]}",
                "lora": 2,
                "data_root": str(shapes_root),
                "output_dir": str(tmp_path / "models"),
                "num_epochs": 2,
                "batch_size": 8,
                "learning_rate": 0.02,
                **settings,
            }
        )

    return make


@pytest.fixture(scope="session")
def trained(folders, shapes_root, tmp_path_factory):
    """Return the result of a short training of the small BGE-VL."""
    given = {"backbone": f"bge-vl-base:{folders['bge']}", "data_root": str(shapes_root), "batch_size": 8}
    long = {"lora": 8, "num_epochs": 10, "validation_frequency": 5, "learning_rate": 0.01}
    return train(load_recipe({**given, **long, "output_dir": str(tmp_path_factory.mktemp("tuned"))}))


def figures(model, split):
    embedder, name = open_embedder(model, [split])
    return evaluate(embedder, [split], weights_hash=name)


@pytest.mark.parametrize("kind", NAMES)
def test_before_the_first_step_it_is_the_base_bit_for_bit_and_all_adapters_can_move(kind, folders, shapes_root):
    (split,) = load_splits("CIRR", shapes_root, "val")
    name = f"{NAMES[kind]}:{folders[kind]}"
    zero_shot = figures(name, split)
    base = open_dual(name, torch.device("cpu"))
    before = {weight: tensor.clone() for weight, tensor in base.network.state_dict().items()}
    model = LoraDual(base, 3)
    merged = model.merged().state_dict()
    assert merged.keys() == before.keys()
    assert all(torch.equal(merged[weight], tensor) for weight, tensor in before.items())
    assert evaluate(base.with_network(model.merged()), [split]).metrics == zero_shot.metrics

    own = model.own_weights()
    assert len(own) == 2 * 4 * 2 + 1  # A and B of four projections in the one layer of each tower; the temperature
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=generator)
    tokens, spoken = base.tokenize(["red", "blue", "red", "blue red", "", "red red"]), torch.tensor([1, 1, 1, 1, 0, 1])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    start = {weight: tensor.clone() for weight, tensor in own.items()}
    for _ in range(2):  # A has no gradient while B is zero
        model.training_losses(pictures, pictures.flip(0), tokens, spoken.bool())["loss_itc"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [weight for weight, tensor in model.own_weights().items() if torch.equal(tensor, start[weight])] == []
    after = model.merged().state_dict()
    moved = {weight for weight, tensor in before.items() if not torch.equal(after[weight], tensor)}
    assert moved == {weight for weight in before if ".self_attn." in weight and weight.endswith("_proj.weight")}


@pytest.mark.parametrize("kind", NAMES)
def test_queries_in_training_are_those_of_evaluation(kind, folders, shapes_root):
    (split,) = load_splits("CIRR", shapes_root, "val")
    base = open_dual(f"{NAMES[kind]}:{folders[kind]}", torch.device("cpu"))
    paths, texts = split.gallery_sources[:3], ["red", "", "blue red"]
    expected = base.embed_queries(paths, texts)
    pixels = torch.stack([torch.from_numpy(base.prepare(read_image(path))) for path in paths])
    model = LoraDual(base, 2).eval()
    queries, _ = model.queries(pixels, base.tokenize(texts), torch.tensor([True, False, True]))
    torch.testing.assert_close(queries, expected, atol=1e-6, rtol=0)


def test_the_loss_falls_and_the_best_model_evaluates_as_it_was_validated(trained, shapes_root):
    rows = [line.split(",") for line in (trained.run / "training_log.csv").read_text().splitlines()]
    header = rows[0]
    losses = [float(row[header.index("loss_itc")]) for row in rows[1:]]
    assert losses[-1] < 0.8 * losses[0]
    assert {"grad_lora", "grad_temperature", "relative_change", "R@5"} <= set(header)
    assert float(rows[-1][header.index("relative_change")]) > 0.01
    assert trained.run.name.startswith("clip_finetuned_on_cirr_lora_8_")
    (split,) = load_splits("CIRR", shapes_root, "val")
    again = figures(trained.best, split)
    assert again.metrics == trained.metrics
    card = (trained.best / "README.md").read_text()
    assert "# bge-vl-base, trained further" in card
    assert f"Signature: `{again.signature}`" in card  # the weights have one hash in training and in the folder


def test_the_best_model_is_a_whole_folder_in_the_layout_of_the_hub(trained, folders):
    says = json.loads((trained.best / "config.json").read_text())
    assert says["model_type"] == "clip"
    assert says["architectures"] == ["CLIPModel"]
    assert "auto_map" not in says  # the address of code that is not there
    names = {file.name for file in trained.best.iterdir()}
    assert {"model.safetensors", "preprocessor_config.json", "tokenizer.json", "composition.json"} <= names
    assert not {name for name in names if name.endswith(".py")}
    network, told = CLIPModel.from_pretrained(trained.best, output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    base = CLIPModel.from_pretrained(folders["bge"], dtype=torch.float32).state_dict()
    assert {weight for weight, tensor in network.state_dict().items() if not torch.equal(tensor, base[weight])}
    way = json.loads((trained.best / "composition.json").read_text())
    assert (way["base"], way["image_weight"], way["is_normalised"]) == ("bge-vl-base", 0.5, False)


def test_a_folder_of_pictures_is_indexed_searched_and_a_head_and_adapters_go_on_top(trained, shapes_root, tmp_path):
    index_folder(shapes_root / "dev", tmp_path / "index", model=trained.best)
    image = sorted((shapes_root / "dev").glob("*.png"))[0]
    with Retriever(tmp_path / "index") as retriever:
        assert "bge-vl-base, trained on CIRR" in retriever.manifest.model_line
        hits = retriever.search(image, "red", top_k=3)
    embedder, _ = open_embedder(trained.best, [])
    scores = embedder.embed_gallery([hit.path for hit in hits])[:, 0] @ embedder.embed_queries([image], ["red"])[0]
    torch.testing.assert_close(scores, torch.tensor([hit.score for hit in hits]), atol=1e-3, rtol=0)
    given = {"backbone": str(trained.best), "data_root": str(shapes_root), "output_dir": str(tmp_path / "on")}
    for more in ({}, {"lora": 1}):
        result = train(load_recipe({**given, "num_epochs": 1, "batch_size": 8, **more}))
        assert result.best is not None


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_stopped_run_goes_on_as_if_unbroken(kind, make_recipe, monkeypatch):
    settings = {"mined_ratio": 0.5, "subset_negatives": 2}
    unbroken = train(make_recipe(kind, **settings)).run
    step, count = loop.Run._step, []

    def stop(self, *batch):
        step(self, *batch)
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Run, "_step", stop)
    stopped = train(make_recipe(kind, **settings))
    assert stopped.interrupted
    monkeypatch.setattr(loop.Run, "_step", step)
    assert not train(make_recipe(kind, **settings), resume=stopped.run).interrupted
    for file in ("last/model/model.safetensors", "best/model.safetensors"):
        weights, expected = load_file(stopped.run / file), load_file(unbroken / file)
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert (stopped.run / "training_log.csv").read_text() == (unbroken / "training_log.csv").read_text()


def test_a_run_whose_base_has_changed_is_not_gone_on_with(make_recipe, tmp_path, folders):
    shutil.copytree(folders["clip"], tmp_path / "own")
    recipe = make_recipe(backbone=f"clip-vit-b-32:{tmp_path / 'own'}", num_epochs=1)
    run = train(recipe).run
    shutil.rmtree(tmp_path / "own")
    save_clip(tmp_path / "own", seed=5)
    with pytest.raises(ComposirError, match=r"was dual-\S+, and now it is dual-\S+; expected the same weights that"):
        train(recipe, resume=run)


@pytest.mark.parametrize("backbone", ["photos", "st:no-such-model", "qwen3-vl-embedding-2b", "{checkpoint}"])
def test_adapters_on_what_is_no_clip_are_one_line(backbone, make_recipe, tmp_path):
    (tmp_path / "checkpoint").mkdir()
    recipe = make_recipe(backbone=backbone.format(checkpoint=tmp_path / "checkpoint"))
    with pytest.raises(ComposirError, match=r"--lora is for CLIP-like models, and \S+ is none; expected bge-vl-base"):
        train(recipe)
    assert not list((tmp_path / "models").glob("*"))


def test_without_peft_the_extra_is_named(make_recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ComposirError, match=r"needs the package peft.*fix: pip install 'peft>="):
        train(make_recipe())
    assert not list((tmp_path / "models").glob("*"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": -1}, "lora = -1: expected a whole number, at least 0"),
        ({"backbone": "mini"}, "lora = 2 is a setting of a CLIP-like model, not a backbone"),
        ({"head": "gate"}, "head = 'gate' is a setting of a head, and with lora there is none"),
        ({"fusion": "late"}, "fusion = 'late' is a setting of a backbone, and a CLIP-like model has none"),
    ],
)
def test_settings_that_do_not_fit_are_refused(make_recipe, settings, message):
    with pytest.raises(ComposirError, match=message):
        make_recipe(**settings)


def test_a_rank_below_one_is_one_line_of_the_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["train", "--backbone", "clip-vit-b-32", "--lora", "0"])
    said = capsys.readouterr().err
    assert said.startswith("error: --lora: expected a number from 1 to 1,024 ")
    assert said.count("\n") == 1


def test_a_batch_of_automatic_size_is_refused(make_recipe):
    with pytest.raises(ComposirError, match="what a batch of a CLIP-like model takes is not measured"):
        train(make_recipe(), largest_batch=True)


def test_a_broken_picture_is_told_before_the_first_step(make_recipe, shapes_root, tmp_path):
    shutil.copytree(shapes_root, tmp_path / "data")
    (broken, *_) = sorted((tmp_path / "data" / "dev").glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ComposirError, match=broken.name):
        train(make_recipe(data_root=str(tmp_path / "data")))
    assert not list((tmp_path / "models").glob("*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "is in format 99"),
        ({"image_weight": 2}, "image_weight = 2: expected a number, at least 0 and at most 1"),
    ],
)
def test_a_composition_that_cannot_be_is_one_line(trained, tmp_path, change, message):
    shutil.copytree(trained.best, tmp_path / "best")
    file = tmp_path / "best/composition.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ComposirError, match=rf"composition\.json: {message}"):
        open_embedder(tmp_path / "best", [])
