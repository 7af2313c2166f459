"""Models between composir and mteb: what either package asks of the other's models."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from composir import mteb_models
from composir.data import load_splits
from composir.data.images import read_image
from composir.errors import ComposirError
from composir.evaluation import COMPOSED, evaluate, rank_splits
from composir.evaluation.ranking import first_ranks, hits
from composir.features import open_embedder
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.models.heads.folder import HeadConfig, make_head, save_head
from composir.mteb_models import DOCUMENT, QUERY, MtebEmbedder, MtebModel
from composir.token_cache import TokenPlace

from .small_duals import save_clip

IN_MEMORY = TokenPlace("memory")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return a checkpoint, a CLIP and a head with a map of targets on the checkpoint, all of random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    save_pretrained(build("tiny").eval(), folder / "best")
    clip = f"clip-vit-b-32:{save_clip(folder / 'clip')}"
    base, identity = open_embedder(folder / "best", [], place=IN_MEMORY)
    config = HeadConfig(
        head="sum",
        base=str(folder / "best"),
        base_hash=identity,
        dim=base.model.config.embed_dim,
        text_dim=base.embed_words(["red"]).shape[-1],
        target_map=True,
    )
    head = make_head(config)
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    save_head(head, config, folder / "head")
    return {"checkpoint": folder / "best", "clip": clip, "head": folder / "head"}


@pytest.fixture
def without_mteb(monkeypatch):
    """Put in mteb's place what a model needs of it, whether it is installed or not."""
    meta = SimpleNamespace(create_empty=lambda known: SimpleNamespace(**known))
    monkeypatch.setattr(mteb_models, "_package", lambda _: SimpleNamespace(ModelMeta=meta))


@pytest.fixture
def val(shapes_root):
    return load_splits("CIRR", shapes_root, "val", exclude_reference=False)  # mteb leaves it among the candidates


@pytest.mark.usefixtures("without_mteb")
@pytest.mark.parametrize("kind", ["checkpoint", "clip", "head"])
def test_mteb_is_given_the_embeddings_that_evaluation_asks_for(models, val, kind):
    model, (embedder, _) = MtebModel(models[kind]), open_embedder(models[kind], val, place=IN_MEMORY)
    queries = val[0].queries[:5]
    paths, texts = [val[0].images[one.reference] for one in queries], [one.text for one in queries]
    pictures = [read_image(path) for path in paths]
    batches = [{"image": pictures[:2], "text": texts[:2]}, {"image": pictures[2:], "text": texts[2:]}]
    pairs = model.encode(batches, prompt_type=QUERY, task_metadata=None, batch_size=2)
    torch.testing.assert_close(pairs, embedder.embed_queries(paths, texts), atol=1e-5, rtol=0)
    alone = model.encode([{"image": pictures}], prompt_type=QUERY)
    torch.testing.assert_close(alone, embedder.embed_queries(paths, [""] * 5), atol=1e-5, rtol=0)
    targets = model.encode([{"image": [*pictures, *pictures]}], prompt_type=DOCUMENT)
    expected = embedder.embed_gallery([*paths, *paths])
    torch.testing.assert_close(targets, expected, atol=1e-5, rtol=0)
    scores = model.similarity(pairs, targets[:5])
    torch.testing.assert_close(scores, (expected[:5] @ pairs.T).amax(dim=1).T, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.similarity_pairwise(pairs, targets[:5]), scores.diagonal())
    assert model.encode([{"text": texts}], prompt_type=QUERY).shape == pairs.shape


@pytest.mark.usefixtures("without_mteb")
def test_a_model_is_called_by_its_folder_and_its_weights(models):
    meta = MtebModel(models["checkpoint"]).mteb_model_meta
    assert (meta.name, meta.revision) == ("composir/best", open_embedder(models["checkpoint"], [])[1])


@pytest.mark.usefixtures("without_mteb")
@pytest.mark.parametrize("batch", [{"text": ["a dog"]}, {"image": [Image.new("RGB", (9, 9))], "text": ["a dog"]}])
def test_documents_with_words_are_refused(models, batch):
    with pytest.raises(ComposirError, match="the documents of this task are not pictures alone"):
        MtebModel(models["clip"]).encode([batch], prompt_type=DOCUMENT)


def test_without_mteb_it_is_named(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ComposirError, match=r"mteb cannot be imported .*; fix: pip install 'mteb>="):
        MtebEmbedder(None)


# -- with mteb itself, where it is installed ---------------------------------------------------------------------------


@pytest.fixture
def task(val):
    """Return mteb's task of CIRR, on the coloured shapes."""
    mteb = pytest.importorskip("mteb", reason="needs the extra mteb")
    from datasets import Dataset  # noqa: PLC0415 (comes with mteb)

    (split,) = val
    queries = {
        "id": [query.id for query in split.queries],
        "image": [read_image(split.images[query.reference]) for query in split.queries],
        "text": [query.text for query in split.queries],
    }
    corpus = {"id": list(split.gallery), "image": [read_image(path) for path in split.gallery_sources]}
    loaded = {
        "queries": Dataset.from_dict(queries),
        "corpus": Dataset.from_dict(corpus),
        "relevant_docs": {query.id: {query.targets[0]: 1} for query in split.queries},
        "top_ranked": None,
    }
    cirr = mteb.get_task("CIRRIT2IRetrieval")
    cirr.dataset, cirr.data_loaded = {"default": {"test": loaded}}, True
    return cirr


@pytest.mark.parametrize("kind", ["checkpoint", "clip", "head"])
def test_a_task_of_mteb_gives_what_evaluation_gives(models, val, task, kind):
    import mteb  # noqa: PLC0415 (an extra)

    done = mteb.evaluate(MtebModel(models[kind]), task, cache=None, encode_kwargs={"batch_size": 7})
    scores = done.task_results[0].scores["test"][0]
    embedder, _ = open_embedder(models[kind], val, place=IN_MEMORY)
    (ranking,) = rank_splits(embedder, val)[COMPOSED]
    ranks = first_ranks(hits(ranking)).tolist()  # from 1; all 12 candidates are ranked
    assert min(ranks) > 0
    for depth in (1, 3, 5, 10):
        assert scores[f"recall_at_{depth}"] == pytest.approx(sum(rank <= depth for rank in ranks) / 24, abs=1e-5)
        gains = [1 / math.log2(rank + 1) for rank in ranks if rank <= depth]
        assert scores[f"ndcg_at_{depth}"] == pytest.approx(sum(gains) / 24, abs=1e-5)
    assert scores["main_score"] == scores["ndcg_at_10"]


@pytest.mark.usefixtures("task")
@pytest.mark.parametrize("kind", ["checkpoint", "clip"])
def test_a_model_that_went_to_mteb_and_back_is_the_same(models, val, kind):
    there_and_back = MtebEmbedder(MtebModel(models[kind]), batch_size=5)
    embedder, _ = open_embedder(models[kind], val, place=IN_MEMORY)
    name = there_and_back.weights_hash()
    one, other = (evaluate(each, val, weights_hash=name) for each in (there_and_back, embedder))
    assert name.startswith("mteb-")
    assert name != MtebEmbedder(MtebModel(models[kind]), task="FashionIQIT2IRetrieval").weights_hash()
    assert one.metrics == other.metrics
    assert one.baselines["image_only"] == other.baselines["image_only"]
