"""The whole path on stand-ins for GPUs (``devices.py``): nothing lies on two devices, and a step waits for nothing."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from fastapi.testclient import TestClient
from PIL import Image
from torch import Tensor, nn

from composir.data import Split, load_splits, read_image
from composir.evaluation import evaluate, rank_splits
from composir.evaluation.result import KINDS
from composir.features import CachedEmbedder, open_embedder
from composir.machine import default_device
from composir.models.backbones import build
from composir.models.backbones.mini import lite_tower
from composir.models.backbones.tiny import tiny_tower
from composir.models.dual import FEATURE_SUM, DualEncoder
from composir.models.fusion import FUSIONS, NONE
from composir.models.heads.folder import HeadConfig, make_head, save_head
from composir.models.sprc import Standardise
from composir.models.vision import Tower
from composir.models.vit import vit_tower
from composir.models.weights.names import rename
from composir.search import Retriever, index_folder
from composir.search.encoder import NO_PICTURE, ComposerEncoder
from composir.token_cache import MEMORY, TokenCache, TokenPlace, make_cache
from composir.training import load_recipe, loop, train
from composir.training.guards import make_accelerator
from composir.training.log import gradient_norms, parts_of
from composir.training.optimizer import keep_temperature, make_optimizer
from composir.web.app import create_app
from composir.web.limits import Limits

from .devices import Device, OnGpu, Sync, numbers, stand_in
from .small_duals import save_clip

IN_MEMORY = TokenPlace(MEMORY)
TEXTS = ("red", "a blue one", "", "with two squares")
PRECISIONS = [("cuda", "no"), ("cuda", "bf16"), ("cuda", "fp16"), ("mps", "no"), ("mps", "fp16")]

WAITS_OF_A_STEP = {
    Sync(
        "item", "training/loop.py:_step"
    ): "fp16: the scaler's scale, for the norms, and whether Accelerate's optimiser skipped the step",
}
"""What the CPU may wait for in a training step on CUDA, and why; in bf16 and float32 it is nothing."""
WAITS_ON_MPS = {
    Sync("upload", "models/composer.py:tokenize"): "ids of words",
    Sync("upload", "models/qformer.py:to"): "which rows are padding",
    Sync("upload", "models/token_fusion.py:summarise"): "which words are padding",
    Sync("upload", "models/sprc.py:_parts"): "which words are padding",
    Sync("tolist", "training/numbers.py:tell"): "the losses, for the log: only CUDA tells them a step later",
    Sync("item", ""): "AdamW that is not fused asks whether the step overflowed in fp16",
}
"""Beside those: a copy to MPS has to be waited for (``composir.machine.to_device``)."""
WAITS_OF_AN_EVALUATION = {
    Sync("upload", "features.py:embed_gallery"): "tokens, once a batch",
    Sync("upload", "features.py:embed_queries"): "tokens, once a batch",
    Sync("upload", "features.py:embed_text_only"): "the mean picture, once a batch",
    Sync("cpu", "token_cache.py:mean"): "the mean picture, once a gallery",
    Sync("upload", "token_cache.py:mean"): "tokens for it on MPS, once a batch",
    Sync("index from the CPU", "evaluation/evaluator.py:_embed_image_only"): "rows of references, once a split",
    Sync("cpu", "evaluation/ranking.py:rank_blocks"): "the similarities, once a block of queries: ranks are the CPU's",
}
WAITS_OF_AN_INDEX = {
    Sync("upload", "models/vision.py:forward"): "pixels, once a batch",
    Sync("index by a mask", "search/merging.py:_merge"): "the vectors that are left, once a batch",
    Sync("cpu", "search/embedding.py:_vectors"): "the vectors, once a batch: they go to disk",
}
WAITS_OF_A_SEARCH = {
    Sync("upload", "models/vision.py:forward"): "pixels",
    Sync("index from the CPU", "search/encoder.py:_embed"): "which query has which picture",
    Sync("cpu", "search/query.py:embed_queries"): "the queries' vectors: the index is searched by the CPU",
}


LOADING = ("models/checkpoint.py", "models/vision.py:_apply", "models/vision.py:hash_weights")
"""Where a model is opened, which is done once."""


def assert_waits(seen, allowed, kind):
    assert seen and set(seen) <= {*allowed, *(WAITS_ON_MPS if kind == "mps" else ())}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Device]]:
    """Return the maker of a stand-in; in the end Accelerate forgets it."""
    yield lambda kind, **settings: stand_in(kind, monkeypatch, **settings)
    AcceleratorState._reset_state(reset_partial_state=True)


def train_two_steps(
    fusion: str, precision: str, *, device: Device | None = None
) -> tuple[list[Sync], list[dict[str, Tensor]]]:
    """Return the waits of two steps, and their losses; without a device they are the CPU's."""
    torch.manual_seed(0)
    recipe = load_recipe({"backbone": "tiny", "fusion": fusion, "mixed_precision": precision})
    accelerator = make_accelerator(recipe)
    if accelerator.scaler is not None:  # of a scale at which no step is left out
        accelerator.scaler = torch.amp.GradScaler(accelerator.device.type, init_scale=256.0)
    model = build("tiny", fusion=fusion).to(accelerator.device)
    optimizer, schedule = make_optimizer(model, recipe, num_steps=2, steps_per_epoch=2)
    optimizer, parts = accelerator.prepare(optimizer), parts_of(model)
    tokens = torch.randn(2, len(TEXTS), 9, 24).half().to(model.device)
    waits: list[Sync] = []
    losses = []

    def step() -> None:
        with accelerator.autocast():
            every = model.training_losses(*tokens, *model.tokenize(TEXTS), local=True)
            total = torch.stack(list(every.values())).sum()
        accelerator.backward(total)
        gradient_norms(parts)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        temperature = model.temperature.detach().clone()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        keep_temperature(model.temperature, temperature)
        losses.append({name: loss.detach() for name, loss in every.items()})

    for _ in range(2):
        if device is None:
            step()
        else:
            with device.watched() as seen:
                step()
            waits += seen
    return waits, losses


@functools.cache
def losses_on_the_cpu(fusion: str) -> list[dict[str, Tensor]]:
    AcceleratorState._reset_state(reset_partial_state=True)
    return train_two_steps(fusion, "no")[1]


@pytest.mark.parametrize(("kind", "precision"), PRECISIONS)
@pytest.mark.parametrize("fusion", [NONE, *FUSIONS])
def test_a_step_of_every_fusion_waits_for_nothing_and_is_the_cpus(on, kind, precision, fusion):
    expected = losses_on_the_cpu(fusion)
    with on(kind) as device:
        waits, losses = train_two_steps(fusion, precision, device=device)
    assert set(waits) <= {*WAITS_OF_A_STEP, *(WAITS_ON_MPS if kind == "mps" else ())}
    for ours, theirs in zip(losses, expected, strict=True):
        for name, loss in ours.items():
            assert isinstance(loss, OnGpu)
            assert numbers(loss) == pytest.approx(numbers(theirs[name]), rel=0 if precision == "no" else 0.2)


def embed_and_rank(fusion: str, split: Split) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return rankings of all kinds of queries, and what an index and a search ask a model for, as float32."""
    torch.manual_seed(0)
    model = build("tiny", fusion=fusion).to(default_device()).eval()
    assert model.tower is not None
    ranked = rank_splits(CachedEmbedder(model, make_cache(model.tower, IN_MEMORY)), [split], kinds=KINDS)
    encoder = ComposerEncoder(model)
    pictures = [read_image(split.images[query.reference]) for query in split.queries[:2]]
    with torch.inference_mode():
        vectors = [
            encoder.embed_pictures([encoder.prepare(picture) for picture in pictures]),
            encoder.embed_asked(pictures, [(1, "make it red"), (NO_PICTURE, "a circle"), (0, "")]),
        ]
    return [ranking.top for (ranking,) in ranked.values()], [numbers(one) for one in vectors]


@functools.cache
def ranked_by_the_cpu(fusion: str, root: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return embed_and_rank(fusion, load_splits("CIRR", str(root), "val")[0])


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("fusion", [NONE, *FUSIONS])
def test_every_fusion_embeds_and_ranks_as_on_the_cpu(on, shapes_root, kind, fusion):
    """In fp32: nothing but a training step is computed in another precision, and ViT towers (below)."""
    tops, vectors = ranked_by_the_cpu(fusion, shapes_root)
    with on(kind) as device, device.watched() as seen:
        own_tops, own_vectors = embed_and_rank(fusion, load_splits("CIRR", str(shapes_root), "val")[0])
    assert all(map(np.array_equal, own_tops, tops))
    assert all(map(np.array_equal, own_vectors, vectors))
    seen = [one for one in seen if one.place and not one.place.startswith((*LOADING, "token_cache.py"))]
    assert_waits(seen, {*WAITS_OF_AN_EVALUATION, *WAITS_OF_AN_INDEX, *WAITS_OF_A_SEARCH}, kind)


@pytest.mark.parametrize(("kind", "dtype", "error"), [("cuda", torch.float16, 5e-3), ("mps", torch.float32, 1e-6)])
def test_a_dual_encoder_embeds_as_on_the_cpu(on, tmp_path, shapes_root, kind, dtype, error):  # noqa: PLR0917
    folder = save_clip(tmp_path / "clip")
    pictures = [read_image(file) for file in sorted((shapes_root / "dev").glob("*.png"))[:3]]

    def embed():
        model = DualEncoder("bge-vl-base", folder, composition=FEATURE_SUM, device=default_device())
        found = [
            model.embed_prepared([model.prepare(picture) for picture in pictures]),
            model.embed_pairs(pictures, ["red", "", "a blue one"]),
            model.embed_sentences(["red"]),
        ]
        return model, [numbers(one) for one in found]

    _, expected = embed()
    with on(kind):
        model, found = embed()
        assert (model.network.dtype, model.batch_size) == (dtype, 256)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=error)


@pytest.mark.parametrize(("kind", "precision"), [("cuda", "auto"), ("cuda", "fp16"), ("mps", "auto")])
def test_a_run_and_its_resumption(on, monkeypatch, shapes_root, tmp_path, kind, precision):  # noqa: PLR0917
    step, waits = loop.Run._step, []
    settings = {
        "backbone": "tiny",
        "data_root": str(shapes_root),
        "output_dir": str(tmp_path),
        "num_epochs": 1,
        "batch_size": 12,
        "mixed_precision": precision,
        "fusion": "gate",
        "subset_negatives": 2,
        "max_grad_norm": 1.0,
        "contrastive_loss": "hn-nce",
        "gradient_checkpointing": True,
    }
    with on(kind) as device:

        def watched(run, *arguments):
            with device.watched() as seen:
                step(run, *arguments)
            waits.extend(seen)

        monkeypatch.setattr(loop.Run, "_step", watched)
        result = train(load_recipe(settings), place=IN_MEMORY)
        if (kind, precision) == ("cuda", "auto"):
            assert waits == []
        else:
            assert_waits(waits, WAITS_OF_A_STEP, kind)
        assert train(load_recipe(settings), place=IN_MEMORY, resume=result.run).metrics == result.metrics


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_evaluation_index_search_and_server(on, monkeypatch, shapes_root, shapes_index, tmp_path, kind):  # noqa: PLR0917
    model, pictures = shapes_index.parent / "model", shapes_index.parent / "pictures"
    picture = next(pictures.iterdir())
    splits = load_splits("CIRR", str(shapes_root), "val")
    on_cpu = evaluate(open_embedder(model, splits, place=IN_MEMORY)[0], splits)
    with Retriever(shapes_index) as retriever:
        found_on_cpu = retriever.search(picture, "make it red", negative_text="blue", top_k=3)
    with on(kind) as device:
        for scoring in ("global", "both"):
            embedder, _ = open_embedder(model, splits, place=IN_MEMORY, scoring=scoring)
            assert embedder.model.device == device.name
            with device.watched() as seen:
                result = evaluate(embedder, splits)
            assert_waits(seen, WAITS_OF_AN_EVALUATION, kind)
            assert scoring == "both" or result.metrics == on_cpu.metrics

        for vectors in (None, 2):
            index = tmp_path / f"index-{vectors}"
            with device.watched() as seen:
                assert index_folder(pictures, index, model=model, vectors_per_image=vectors).num_added == 12
            seen = [one for one in seen if not one.place.startswith(LOADING)]
            assert_waits(seen, WAITS_OF_AN_INDEX, kind)
            with Retriever(index) as retriever:
                with device.watched() as seen:
                    found = retriever.search(picture, "make it red", negative_text="blue", top_k=3)
                assert_waits(seen, WAITS_OF_A_SEARCH, kind)
                assert vectors or [hit.id for hit in found] == [hit.id for hit in found_on_cpu]
        with Retriever(index) as retriever:
            retriever.model.trace(picture, "make it red", picture)
            assert_served(retriever, device, picture, monkeypatch)


@pytest.mark.parametrize("kind", ["cuda", "mps"])
@pytest.mark.parametrize("of_head", [False, True])
def test_what_is_drawn_on_a_gpu_is_what_is_drawn_on_the_cpu(on, run, shapes_index, tmp_path, kind, of_head):  # noqa: PLR0917
    model, pictures = shapes_index.parent / "model", shapes_index.parent / "pictures"
    asked = ("--image", next(pictures.iterdir()), "--text", "make it red", "--gallery", pictures)
    if of_head:
        base, identity = open_embedder(model, (), place=IN_MEMORY)
        dims = {"dim": base.model.config.embed_dim, "text_dim": base.embed_words(["red"]).shape[-1]}
        config = HeadConfig(head="gate", base=str(model), base_hash=identity, **dims)
        save_head(make_head(config), config, tmp_path / "head")
    words = ("visualize", "--model", tmp_path / "head" if of_head else model, *asked, *["--all"] * (not of_head))
    code, _, err = run(*words, "--out", tmp_path / "cpu.png", "--device", "cpu")
    assert code == 0, err
    with on(kind) as device, device.watched() as seen:
        code, _, err = run(*words, "--out", tmp_path / "gpu.png")
    assert code == 0, err
    assert seen  # it was there that it computed
    drawn, expected = (np.asarray(Image.open(tmp_path / f"{name}.png"), np.int16) for name in ("gpu", "cpu"))
    assert np.abs(drawn - expected).max() <= 2


def assert_served(retriever: Retriever, device: Device, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search and draw a heat map over HTTP; the server's threads know of the device as those of a real one do."""
    for name in ("search_many", "read"):
        work = getattr(retriever, name)

        def in_thread(*args, work=work):
            with device:
                return work(*args)

        monkeypatch.setattr(retriever, name, in_thread)
    with TestClient(create_app(retriever, limits=Limits()), base_url="http://localhost:8000") as client:
        asked = {"text": "make it red", "top_k": 3}
        answer = client.post("/api/search", data=asked, files={"image": picture.read_bytes()})
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["results"]) == 3
        image_id = answer.json()["results"][0]["id"]
        heat = client.post("/api/heat", json={"image_id": image_id, "text": "make it red"})
        assert heat.status_code == 200, heat.text


def test_a_stand_in_refuses_what_a_gpu_refuses(on):
    with on("cuda") as device:
        here, there = torch.ones(2, 3, device=device.name), torch.ones(2, 3)
        for mix in (lambda: here + there, lambda: torch.cat([here, there]), lambda: here.addmm_(there, here.T)):
            with pytest.raises(RuntimeError, match="same device, cuda:0 and cpu"):
                mix()
        assert (here + torch.tensor(1.0)).device == device.name  # a number may lie anywhere
        with pytest.raises(TypeError, match="to numpy"):
            here.numpy()
        with pytest.raises(TypeError, match="BFloat16"):
            here.bfloat16().cpu().numpy()
        weight = here.clone().requires_grad_()
        (weight * here).sum().backward()
        assert isinstance(weight.grad, OnGpu)
        assert numbers(weight.grad).tolist() == [[1.0] * 3] * 2


@pytest.mark.parametrize(
    ("operation", "wait"),
    [
        ("item", lambda x: x.sum().item()),
        ("item", lambda x: bool(x.sum() > 0)),
        ("item", lambda x: float(x.sum())),
        ("tolist", lambda x: x.tolist()),
        ("cpu", lambda x: x.cpu()),
        ("cpu", lambda x: x.to("cpu", torch.float64)),
        ("cpu", lambda x: torch.empty(3).copy_(x)),
        ("nonzero", lambda x: x.nonzero()),
        ("index by a mask", lambda x: x[x > 1]),
        ("masked_select", lambda x: x.masked_select(x > 1)),
        ("index from the CPU", lambda x: x[[0, 1]]),
        ("upload", lambda x: torch.ones(3).to(x.device)),
        ("_unique2", lambda x: x.unique()),
    ],
)
def test_a_stand_in_tells_of_every_wait(on, operation, wait):
    with on("cuda") as device:
        x = torch.arange(3.0, device=device.name)
        with device.watched() as seen:
            x.masked_fill(x > 1, 0.0)[:2].add_(1).softmax(dim=0)
            torch.ones(3).to(x.device, non_blocking=True)
            assert seen == []
            wait(x)
        assert [one.operation for one in seen] == [operation]


def test_a_stand_in_for_mps_refuses_what_mps_lacks(on):
    with on("mps") as device:
        x = torch.ones(3, device=device.name)
        with pytest.raises(TypeError, match="float64"):
            x.double()
        with pytest.raises(NotImplementedError, match="aten::heaviside"):
            torch.heaviside(x, x)
        with pytest.raises(RuntimeError, match="foreach"):
            torch.nn.utils.get_total_norm([x], foreach=True)
        with pytest.raises(AssertionError, match="189690"):
            torch.ones(3).to(device.name, non_blocking=True)


def test_channel_statistics_are_fitted_to_a_model_on_mps(on):
    tokens, expected = torch.randn(4, 9, 3).half(), Standardise(3)
    expected.fit(tokens)
    with on("mps") as device:
        standardise = Standardise(3).to(device.name)
        standardise.fit(tokens)
        assert (numbers(standardise.mean) == expected.mean.numpy()).all()
        assert (numbers(standardise.std) == expected.std.numpy()).all()


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_stand_in_knows_autocast(on, kind):
    with on(kind) as device, torch.autocast(kind, torch.bfloat16):
        x = torch.ones(2, 3, device=device.name)
        half = x @ x.T
        assert half.dtype == torch.bfloat16
        assert half.softmax(dim=-1).dtype == nn.functional.normalize(half, dim=-1).dtype == torch.float32
        assert torch.cat([half, x], dim=1).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "settings", "precision"),
    [
        ("cuda", {"has_bf16": True}, "bf16"),
        ("cuda", {"has_bf16": False}, "fp16"),  # T4, V100: torch emulates bf16 there
        ("mps", {}, "no"),
    ],
)
def test_the_precision_is_one_that_the_gpu_computes_in(on, monkeypatch, kind, settings, precision):
    with on(kind, **settings):
        assert default_device().type == kind
        accelerator = make_accelerator(load_recipe({"backbone": "tiny"}))
        assert (accelerator.device.type, accelerator.mixed_precision) == (kind, precision)
        assert (accelerator.scaler is not None) == (precision == "fp16")
        AcceleratorState._reset_state(reset_partial_state=True)
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        accelerator = make_accelerator(load_recipe({"backbone": "tiny"}))
        assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "no")


@pytest.mark.parametrize(("kind", "precision", "is_fused"), [("cuda", "fp16", True), ("mps", "no", True),
                                                             ("mps", "fp16", False)])  # fmt: skip
def test_the_optimizer_is_fused_where_that_heeds_the_scaler(on, kind, precision, is_fused):
    with on(kind) as device:
        recipe = load_recipe({"backbone": "tiny", "mixed_precision": precision})
        optimizer, _ = make_optimizer(build("tiny").to(device.name), recipe, num_steps=2, steps_per_epoch=2)
        assert optimizer.defaults["fused"] == is_fused


def folder_of(tower: Tower, root: Path) -> Path:
    return root / TokenCache(tower, root)._name


def test_tokens_are_kept_by_kind_of_device_and_precision(on, golden, shapes_root, tmp_path):
    def vit(kind: str) -> Tower:
        weights = rename({name: tensor for name, tensor in golden(kind).items() if not name.startswith("__")}).weights
        named = {name.removeprefix("tower."): weights[name] for name in weights if name.startswith("tower.")}
        return vit_tower(named, num_heads=4)

    pictures = sorted((shapes_root / "dev").iterdir())[:3]
    makers = (tiny_tower, lite_tower, lambda: vit("vit_eva"), lambda: vit("vit_clip"))
    on_cpu = []
    for tower in (make() for make in makers):
        key = f"{tower.fingerprint()} targetpad 1.25 {tower.image_size}"  # of every cache that a CPU has filled so far
        folder = folder_of(tower, tmp_path)
        assert folder.name == f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        on_cpu.append((TokenCache(tower, tmp_path)(pictures), folder))
    for kind in ("cuda", "mps"):
        with on(kind) as device:
            for make, (expected, folder) in zip(makers, on_cpu, strict=True):
                tower = make().to(device.name)
                assert folder_of(tower, tmp_path) not in {folder, *tmp_path.iterdir()}
                tokens = TokenCache(tower, tmp_path)(pictures)
                assert tokens.device.type == "cpu"
                rounds_otherwise = kind == "cuda" and tower.half_on_gpu  # in fp16
                assert torch.equal(tokens, expected) != rounds_otherwise
                torch.testing.assert_close(tokens, expected, rtol=0.02, atol=0.02)
    assert len(list(tmp_path.iterdir())) == 3 * len(makers)
