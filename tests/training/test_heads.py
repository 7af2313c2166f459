"""Heads on models that stay as they are: trained, saved, evaluated, and asked of an index that was there before."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from composir.cli.console import TrainBars
from composir.data import load_splits
from composir.errors import ComposirError
from composir.evaluation import evaluate
from composir.features import open_embedder
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.models.heads import HEADS
from composir.models.heads.folder import HeadConfig, make_head, read_head, save_head
from composir.search import Retriever, index_folder
from composir.search.encoder import NO_PICTURE, open_encoder
from composir.token_cache import TokenPlace
from composir.training import load_recipe, loop, train
from composir.training.guards import make_accelerator
from composir.training.heads import HeadInputs, HeadRun
from composir.training.observer import Silent
from composir.training.optimizer import keep_temperature
from composir.training.vectors import Vectors

IN_MEMORY = TokenPlace("memory")


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Return the checkpoint folder of a random model, of several vectors a picture."""
    folder = tmp_path_factory.mktemp("base") / "model"
    torch.manual_seed(3)
    save_pretrained(build("tiny").eval(), folder)
    return folder


@pytest.fixture
def make_recipe(shapes_root, base, tmp_path):
    def make(**settings):
        return load_recipe(
            {
                "backbone": str(base),
                "data_root": str(shapes_root),
                "output_dir": str(tmp_path / "models"),
                "num_epochs": 3,
                "batch_size": 8,
                "validation_frequency": 1,
                **settings,
            }
        )

    return make


@pytest.fixture(scope="session")
def trained(base, shapes_root, tmp_path_factory):
    """Return the run folder of a head that was trained long enough to change what it ranks."""
    given = {"backbone": str(base), "data_root": str(shapes_root), "output_dir": str(tmp_path_factory.mktemp("heads"))}
    long = {"num_epochs": 20, "validation_frequency": 20, "batch_size": 8, "learning_rate": 0.01}
    return train(load_recipe({**given, **long}), place=IN_MEMORY).run


def figures(model, split):
    embedder, name = open_embedder(model, [split], place=IN_MEMORY)
    return evaluate(embedder, [split], weights_hash=name)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("vectors", [1, 3])
def test_a_head_starts_as_its_base_bit_for_bit_and_every_weight_can_move(name, vectors):
    torch.manual_seed(0)
    head = make_head(HeadConfig(head=name, base="photos", base_hash="x", dim=6, text_dim=4))
    query, target = (torch.nn.functional.normalize(torch.randn(5, 1, 6), dim=-1) for _ in range(2))
    reference, sentence = torch.nn.functional.normalize(torch.randn(5, vectors, 6), dim=-1), torch.randn(5, 4)
    assert torch.equal(head.eval()(query[:, 0], reference, sentence), query[:, 0])
    assert not head(torch.zeros(5, 6), reference, sentence).any()  # a query that asks for nothing

    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    before = {weight: value.clone() for weight, value in head.state_dict().items()}
    for _ in range(3):  # the first step moves only what stands behind the zeros
        head.training_losses(query[:, 0], reference, sentence, target)["loss_itc"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [weight for weight, value in head.state_dict().items() if torch.equal(value, before[weight])] == []
    changed = head(query[:, 0], reference, sentence)
    assert not torch.allclose(changed, query[:, 0], atol=1e-3)
    torch.testing.assert_close(changed.norm(dim=-1), torch.ones(5))


def test_a_map_of_targets_starts_as_the_identity_bit_for_bit_and_moves_candidates_alone():
    torch.manual_seed(0)
    plain, mapped = (
        make_head(HeadConfig(head="sum", base="photos", base_hash="x", dim=6, text_dim=4, target_map=one))
        for one in (False, True)
    )
    query, reference, target = (torch.nn.functional.normalize(torch.randn(5, 3, 6), dim=-1) for _ in range(3))
    asked = query[:, 0], reference, torch.randn(5, 4)
    mapped.load_state_dict(plain.state_dict(), strict=False)
    assert torch.equal(mapped.map_targets(target), target)
    first, second = (head.eval().training_losses(*asked, target)["loss_itc"] for head in (plain, mapped))
    assert torch.equal(first, second)
    second.backward()
    assert mapped.target_map.weight.grad.any()
    with torch.no_grad():
        mapped.target_map.weight.copy_(torch.eye(6).roll(1, dims=0))
    assert torch.equal(mapped(*asked), plain(*asked))  # the reference is read as it was
    torch.testing.assert_close(mapped.map_targets(target).norm(dim=-1), torch.ones(5, 3))
    one = mapped.map_targets(torch.tensor([0.6, 0.0, 0.0, 0.8, 0.0, 0.0]))
    # (0.6, 0, 0, 0.8, 0, 0) and the same moved by one, at length 1
    torch.testing.assert_close(one, torch.tensor([0.6, 0.6, 0.0, 0.8, 0.8, 0.0]) / 2**0.5)
    assert not mapped.map_targets(torch.zeros(2, 6)).any()


def test_the_change_is_added_to_the_query_at_its_length():
    head = make_head(HeadConfig(head="sum", base="photos", base_hash="x", dim=2, text_dim=1))
    with torch.no_grad():
        head.change.text_proj.weight.copy_(torch.tensor([[3.0], [0.0]]))
    query, reference = torch.tensor([[0.0, 1.0]]), torch.tensor([[[1.0, 0.0]]])
    expected = torch.tensor([[3.0, 1.0]]) / 10**0.5
    torch.testing.assert_close(head(query, reference, torch.ones(1, 1)), expected)


@pytest.mark.parametrize("target_map", [False, True])
def test_an_untrained_head_has_the_figures_of_its_base(base, shapes_root, tmp_path, target_map):
    (split,) = load_splits("CIRR", shapes_root, "val")
    whole, base_hash = open_embedder(base, [split], place=IN_MEMORY)
    zero_shot = evaluate(whole, [split])
    dim = whole.embed_gallery(split.gallery_sources[:1]).shape[-1]
    text_dim = whole.embed_words(["a"]).shape[-1]
    config = HeadConfig(
        head="gate", base=str(base), base_hash=base_hash, dim=dim, text_dim=text_dim, target_map=target_map
    )
    save_head(make_head(config), config, tmp_path / "head")
    untrained = figures(tmp_path / "head", split)
    assert untrained.metrics == zero_shot.metrics
    assert untrained.baselines == zero_shot.baselines


def test_a_run_leaves_a_head_that_evaluates_as_its_best_validation(make_recipe, shapes_root):
    recipe = make_recipe(head="gate-joint", num_epochs=2, target_map=True)
    result = train(recipe)
    run = result.run
    names = {"recipe.toml", "training_log.csv", "curves.png", "last", "best", "data.json"}
    assert names <= {path.name for path in run.iterdir()}
    header = (run / "training_log.csv").read_text().splitlines()[0].split(",")
    assert {"loss_itc", "alpha", "mean_gate", "gate_entropy", "relative_change", "grad_head", "R@5"} <= set(header)
    saved = read_head(result.best)
    assert (saved.config.head, saved.config.base, saved.config.target_map) == ("gate-joint", recipe.backbone, True)
    assert saved.head.target_map.weight.any()
    card = (result.best / "README.md").read_text()
    assert "A head (gate-joint) on model" in card
    assert "| R@5 |" in card
    (split,) = load_splits("CIRR", shapes_root, "val")
    assert figures(result.best, split).metrics == result.metrics


def test_progress_is_told_of_vectors_and_steps(make_recipe):
    told = []
    bars = SimpleNamespace(tell=lambda name, *_: told.append(name), seconds=30)
    train(make_recipe(num_epochs=1), observer=TrainBars(bars), place=IN_MEMORY)
    assert set(told) == {"vectors", "training"}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_what_sentences_do_to_pictures(name):
    torch.manual_seed(0)
    kinds, colours = torch.arange(36) // 6, torch.arange(36) % 6
    one_hot = torch.eye(6)
    pictures = torch.cat([one_hot[kinds], one_hot[colours]], dim=1)[:, None] / 2**0.5
    reference, asked = torch.arange(36).repeat_interleave(6), torch.arange(6).repeat(36)
    target = 6 * kinds[reference] + asked  # the same kind in the colour asked for
    head = make_head(HeadConfig(head=name, base="photos", base_hash="x", dim=12, text_dim=6))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)

    def right():
        with torch.no_grad():
            queries = head.eval()(pictures[reference, 0], pictures[reference], one_hot[asked])
        return ((queries @ pictures[:, 0].T).argmax(dim=1) == target).float().mean().item()

    assert right() == pytest.approx(1 / 6)  # the reference itself
    for _ in range(60):
        inputs = pictures[reference, 0], pictures[reference], one_hot[asked], pictures[target]
        losses = head.train().training_losses(*inputs, same_target=target[:, None] == target[None])
        losses["loss_itc"].backward()
        before = head.temperature.detach().clone()
        optimizer.step()
        optimizer.zero_grad()
        keep_temperature(head.temperature, before)
    assert right() > 0.9


def test_a_stopped_run_goes_on_as_if_unbroken(make_recipe, monkeypatch):
    settings = {"mined_ratio": 0.5, "subset_negatives": 2, "head": "combiner", "target_map": True}  # dropout, mining
    unbroken = train(make_recipe(**settings)).run
    step, count = loop.Run._step, []

    def stop(self, *batch):
        step(self, *batch)
        count.append(1)
        if len(count) == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop.Run, "_step", stop)
    stopped = train(make_recipe(**settings))
    assert stopped.interrupted
    monkeypatch.setattr(loop.Run, "_step", step)
    assert train(make_recipe(**settings), resume=stopped.run).run == stopped.run
    one, other = (load_file(run / "last/model/model.safetensors") for run in (unbroken, stopped.run))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert (unbroken / "training_log.csv").read_text() == (stopped.run / "training_log.csv").read_text()


def test_vectors_out_of_the_cache_are_those_that_were_computed(base, shapes_root, tmp_path):
    splits = load_splits("CIRR", shapes_root, "val")
    embedder, identity = open_embedder(base, splits, place=IN_MEMORY)
    place = TokenPlace("disk", tmp_path)
    computed = Vectors(embedder, identity, place)
    computed.fill(splits)
    kept, told = Vectors(embedder, identity, place), []
    kept.fill(splits, lambda *progress: told.append(progress))
    assert told == []  # all were there
    query = splits[0].queries[0]
    path = splits[0].images[query.reference]
    for ask in (
        lambda one: one.embed_gallery([path]),
        lambda one: one.embed_queries([path], [query.text]),
        lambda one: one.embed_words([query.text]),
    ):
        assert torch.equal(ask(kept), ask(computed))
        torch.testing.assert_close(ask(kept), ask(embedder))  # a batch of other sentences rounds otherwise


def test_a_batch_holds_the_vectors_of_its_triplets_and_their_look_alikes(make_recipe, shapes_root):
    splits = load_splits("CIRR", shapes_root, "train")
    run = make_run(make_recipe(subset_negatives=1), splits)
    batch, inputs = next(run.batches.of_epoch(0, 0))
    assert isinstance(inputs, HeadInputs)
    assert inputs.num_all == (8, 16)
    split, query = batch[3]
    assert torch.equal(inputs.target[3], run.vectors.embed_gallery([split.images[query.targets[0]]])[0])
    assert torch.equal(inputs.reference[3], run.vectors.embed_gallery([split.images[query.reference]])[0])
    assert torch.equal(inputs.sentence[3], run.vectors.embed_words([query.text])[0])


def make_run(recipe, splits):
    accelerator = make_accelerator(recipe)
    run = HeadRun(recipe, accelerator, train_splits=splits, val_splits=splits, observer=Silent(), place=IN_MEMORY)
    run.fill()
    return run


# -- an index stays ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def index(base, shapes_root, tmp_path_factory):
    """Return an index of the val pictures by the base; not to be changed."""
    folder = tmp_path_factory.mktemp("index") / "index"
    index_folder(shapes_root / "dev", folder, model=base)
    return folder


def test_an_index_is_searched_by_a_head_on_its_model_without_a_new_vector(trained, index, shapes_root, run):
    (split,) = load_splits("CIRR", shapes_root, "val")
    query = split.queries[0]
    path = split.images[query.reference]
    before = {file.name: file.read_bytes() for file in index.iterdir() if file.is_file()}
    embedder, _ = open_embedder(trained / "best", [split], place=IN_MEMORY)
    with Retriever(index) as plain, Retriever(index, model=trained / "best") as taught:
        (hit,) = taught.search(path, query.text, top_k=1)
        scores = embedder.embed_queries([path], [query.text]) @ embedder.embed_gallery([hit.path])[0].T
        assert hit.score == pytest.approx(scores.max().item(), abs=2e-3)  # the index keeps fp16
        assert [one.id for one in taught.search(path, query.text)] != [one.id for one in plain.search(path, query.text)]
        for alone in ({"images": path}, {"text": query.text}):
            assert taught.search(**alone) == plain.search(**alone)
        assert taught.model_line.startswith("a head (joint) on ")
        assert not taught.shows_where_it_looks
        with pytest.raises(ComposirError, match="is asked by a head, which neither matches pairs nor shows"):
            taught.search(path, query.text, rerank=3)
    assert {file.name: file.read_bytes() for file in index.iterdir() if file.is_file()} == before
    code, out, _ = run("search", index, "--model", trained / "best", "--image", path, "--text", query.text)
    assert code == 0
    assert str(hit.path) in out.splitlines()[0]
    assert "model: a head (joint) on " in out


def test_a_head_looks_at_a_picture_once_and_asks_as_its_base_does(trained, shapes_root, monkeypatch):
    encoder = open_encoder(trained / "best", "cpu")
    pictures = [Image.open(file) for file in sorted((shapes_root / "dev").glob("*.png"))[:2]]
    asked = [(1, "red"), (NO_PICTURE, "a circle"), (0, ""), (1, "blue"), (0, "red")]
    looked = []
    tokens = encoder.base.model.tokens
    monkeypatch.setattr(encoder.base.model, "tokens", lambda some: looked.extend(some) or tokens(some))
    with torch.inference_mode():
        own, seen = encoder.base.embed_asked_and_pictures(pictures, asked)
        assert torch.equal(own, encoder.base.embed_asked(pictures, asked))
        torch.testing.assert_close(
            seen, encoder.base.embed_pictures([encoder.base.prepare(picture) for picture in pictures])
        )
        queries = encoder.embed_asked(pictures, asked)
    assert looked == pictures
    assert torch.equal(queries[[1, 2]], own[[1, 2]])
    changed = encoder.head(
        own[[0, 3, 4]],
        seen[[1, 1, 0]],
        encoder.base.model.encode_prompt(*encoder.base.model.tokenize(["red", "blue", "red"])),
    )
    torch.testing.assert_close(queries[[0, 3, 4]], changed)


def test_an_index_of_another_model_is_one_line(trained, shapes_index):
    with pytest.raises(ComposirError, match=r"is the index of another model .* than the one below the head") as error:
        Retriever(shapes_index, model=trained / "best")
    assert "give a head that was trained on the index's model" in str(error.value)


# -- what cannot be ------------------------------------------------------------------------------------------------


def test_a_head_is_no_model_to_index_by_nor_to_put_a_head_on(trained, make_recipe, shapes_root, tmp_path):
    with pytest.raises(ComposirError, match="is a head, which changes queries and no picture's vectors"):
        index_folder(shapes_root / "dev", tmp_path / "index", model=trained / "best")
    assert not (tmp_path / "index").exists()
    with pytest.raises(ComposirError, match="is a head, and a head goes on a model"):
        train(make_recipe(backbone=str(trained / "best")))
    assert not list((tmp_path / "models").glob("*/*"))


def test_a_base_that_has_changed_is_one_line(trained, base, shapes_root, tmp_path):
    (split,) = load_splits("CIRR", shapes_root, "val")
    shutil.copytree(trained / "best", tmp_path / "head")
    config = json.loads((tmp_path / "head/config.json").read_text())
    torch.manual_seed(4)
    save_pretrained(build("tiny").eval(), tmp_path / "other")

    def name(**changed):
        (tmp_path / "head/config.json").write_text(json.dumps({**config, **changed}))

    name(base=str(tmp_path / "other"))
    with pytest.raises(ComposirError, match=r"is a head on .*other as it was .*, and now it is .*put them back, or tr"):
        open_embedder(tmp_path / "head", [split])
    name(base=str(tmp_path / "gone"))
    with pytest.raises(ComposirError, match=r"names the model below it, .*gone, which is not there; fix: put it back"):
        open_embedder(tmp_path / "head", [split])


def test_a_run_does_not_go_on_with_a_base_that_has_changed(make_recipe, base, tmp_path):
    moved = tmp_path / "model"
    shutil.copytree(base, moved)
    begun = train(make_recipe(backbone=str(moved), num_epochs=1)).run
    save_pretrained(build("tiny").eval(), moved)
    with pytest.raises(ComposirError, match=r"is a head on .*model as it was .*, and now it is"):
        train(make_recipe(backbone=str(moved), num_epochs=1), resume=begun)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dim": 7}, r"does not fit its config.json: .*is \(.*\) instead of \("),
        ({"head": "joints"}, "head 'joints' is not known; fix: did you mean 'joint'"),
        ({"format": 2}, "is a head in format 2; expected format 1"),
        ({"dim": 0, "colour": 1}, r"dim = 0: expected a whole number, above 0; unknown key 'colour' \(one of: base, "),
    ],
)
def test_a_damaged_head_is_one_line(trained, tmp_path, changed, message):
    shutil.copytree(trained / "best", tmp_path / "head")
    config = json.loads((tmp_path / "head/config.json").read_text())
    (tmp_path / "head/config.json").write_text(json.dumps({**config, **changed}))
    with pytest.raises(ComposirError, match=message):
        read_head(tmp_path / "head")


def test_too_few_or_equal_examples_are_one_line(make_recipe, shapes_root, tmp_path, monkeypatch):
    splits = load_splits("CIRR", shapes_root, "train")
    few = [dataclasses.replace(splits[0], queries=splits[0].queries[:3])]
    with pytest.raises(ComposirError, match=r"holds 3 examples; expected 8 or more"):
        make_run(make_recipe(), few)
    alike = tuple(dataclasses.replace(query, targets=splits[0].queries[0].targets) for query in splits[0].queries)
    with pytest.raises(ComposirError, match="all 24 examples have the same target"):
        make_run(make_recipe(), [dataclasses.replace(splits[0], queries=alike)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "joints"}, "head = 'joints': expected gate or joint or"),
        ({"backbone": "tiny", "target_map": True}, "target_map = True is a setting of a head on"),
        ({"fusion": "late"}, "fusion = 'late' is a setting of a backbone, and a head has none"),
        ({"loss_local": 0.1}, "loss_local = 0.1 is a setting of a backbone"),
        ({"backbone": "tiny", "head": "gate"}, "head = 'gate' is a setting of a head on a model that stays as it is"),
        ({"backbone": "photo"}, "backbone 'photo' is not known"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(make_recipe, settings, message):
    with pytest.raises(ComposirError, match=message):
        make_recipe(**settings)


def test_a_batch_of_automatic_size_is_refused(make_recipe):
    with pytest.raises(ComposirError, match="a head's batch is not bounded by memory"):
        train(make_recipe(), largest_batch=True, place=IN_MEMORY)
