"""What several tests share: golden files, and a composed-retrieval set small enough to train on in a second."""

from __future__ import annotations

import itertools
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import load_file
from torch import Tensor

from composir.cli import main
from composir.models import backbones, vit
from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.models.composer import Composer
from composir.models.config import ComposerConfig
from composir.models.weights import start as weights_start
from composir.models.weights.names import rename
from composir.search import index_folder

GOLDEN = Path(__file__).parent / "golden"
WIDTH, HEADS = 64, 4
"""Of the golden Q-Former and of the golden towers."""
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("ellipse", "rectangle")


NUM_NOT_RUN = pytest.StashKey[int]()

# `make test` tries the same examples every time, and so fails for what was changed alone; `make fuzz` tries new ones.
hypothesis.settings.register_profile(
    "repeatable",
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.register_profile(
    "fuzz",
    hypothesis.settings.get_profile("repeatable"),
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "1000")),
    derandomize=False,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=5, help="how often test_kills_at_any_moment_cost_nothing kills")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the browser tests out where there is no browser; ``pytest_terminal_summary`` says so."""
    needing = [item for item in items if item.get_closest_marker("browser")]
    if needing and shutil.which("chromium") is None:
        items[:] = [item for item in items if item not in needing]
        config.hook.pytest_deselected(items=needing)
        config.stash[NUM_NOT_RUN] = len(needing)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if NUM_NOT_RUN in config.stash:
        terminalreporter.write_line(
            f"NOT RUN: {config.stash[NUM_NOT_RUN]} browser tests, as there is no `chromium` on the path; "
            "to run them: apt-get install chromium (Debian), or link another Chromium under that name",
            yellow=True,
            bold=True,
        )


@pytest.fixture(autouse=True)
def _no_network_and_one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COMPOSIR_CACHE", str(tmp_path_factory.getbasetemp() / "token-cache"))
    torch.set_num_threads(1)  # tests/training compares weights bit by bit


@pytest.fixture
def run(capsys):
    """Return the caller of the command line: exit code, stdout, stderr."""

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return stop.value.code, printed.out, printed.err

    return call


@dataclass
class Child:
    """A process of its own that runs Python ``code``; ``end`` waits for it."""

    process: subprocess.Popen[bytes]
    printed: Path

    def end(self, seconds: float = 300) -> tuple[int, str]:
        """Return its exit code (minus the signal that ended it) and what it printed."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running: {self.printed.read_text()}")
        return code, self.printed.read_text()


PRELUDE = """
import os, sys, torch
torch.set_num_threads(1)
from composir.cli import main
"""


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Return the starter of a real process; a fresh one, as a fork of one that has started torch may hang."""
    children: list[Child] = []

    def start(code: str, **environment: str) -> Child:
        printed = tmp_path / f"printed-{len(children)}.txt"
        with printed.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-c", PRELUDE + code],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        children.append(Child(process, printed))
        return children[-1]

    yield start
    for child in children:
        child.process.kill()
        child.process.wait()


@pytest.fixture
def golden() -> Callable[[str], dict[str, Tensor]]:
    """Return the reader of golden safetensors files by name."""
    return lambda name: load_file(GOLDEN / f"{name}.safetensors")


@pytest.fixture
def golden_model() -> Callable[..., Composer]:
    """Return the maker of the golden model; its gate, where there is one, is random."""

    def make(**settings: object) -> Composer:
        sizes = json.loads((GOLDEN / "config.json").read_text())
        config = ComposerConfig(
            token_width=sizes["encoder_width"],
            hidden_size=sizes["hidden_size"],
            num_hidden_layers=sizes["num_hidden_layers"],
            num_attention_heads=sizes["num_attention_heads"],
            intermediate_size=sizes["intermediate_size"],
            vocab_size=sizes["vocab_size"],
            max_position_embeddings=sizes["max_position_embeddings"],
            num_query_tokens=sizes["num_query_tokens"],
            embed_dim=sizes["embed_dim"],
            dropout=0.0,
            **{"use_gated_fusion": False, **settings},  # type: ignore[arg-type]
        )
        model = Composer(config)
        weights = rename(load_file(GOLDEN / "weights.safetensors")).weights
        gate = {name: value for name, value in model.state_dict().items() if name.startswith("gated_fusion.")}
        model.load_state_dict({**weights, **gate}, strict=True)
        return model.eval()

    return make


@pytest.fixture
def whole(golden):
    """Return the maker of a state dict by LAVIS's names: Q-Former, tower, BLIP-2's vocabulary unless told otherwise."""

    def make(tower="vit_eva", vocabulary=None, *, prompt=False):
        weights = {key: value for key, value in golden(tower).items() if not key.startswith("__")}
        weights |= {key: value for key, value in golden("weights").items() if prompt or key != "prompt_tokens"}
        for layer in (0, 2):  # the golden Q-Former reads tokens 48 wide, the golden towers are 64 wide
            for part in ("key", "value"):
                name = f"Qformer.bert.encoder.layer.{layer}.crossattention.self.{part}.weight"
                weights[name] = torch.randn(WIDTH, WIDTH)
        if vocabulary is not None:
            weights["Qformer.bert.embeddings.word_embeddings.weight"] = torch.randn(vocabulary, WIDTH)
        return weights

    return make


@pytest.fixture
def small_heads(monkeypatch):
    """Let the widths of the golden parts be known as the published ones are."""
    monkeypatch.setattr(vit, "NUM_HEADS_BY_WIDTH", {WIDTH: HEADS})
    monkeypatch.setattr(weights_start, "NUM_HEADS_BY_HIDDEN", {WIDTH: HEADS})
    backbones.read_backbone.cache_clear()


@pytest.fixture(scope="session")
def real_annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the published annotations of CIRR val and FashionIQ dress val, without images."""
    root = tmp_path_factory.mktemp("real")
    for file in (GOLDEN / "annotations").rglob("*.json.xz"):
        unpacked = root / file.relative_to(GOLDEN / "annotations").with_suffix("")
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        unpacked.write_bytes(lzma.decompress(file.read_bytes()))
    return root


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data root in CIRR's layout: 12 pictures and 24 triplets a split, subsets of six."""
    root = tmp_path_factory.mktemp("shapes")
    for folder in ("cirr/captions", "cirr/image_splits", "train/0", "dev"):
        (root / folder).mkdir(parents=True)
    for split, place in (("train", "train/0"), ("val", "dev")):
        names = {}
        for shape in SHAPES:
            for colour in COLOURS:
                name = f"{split}-{colour}-{shape}"
                picture = Image.new("RGB", (60, 52), "white")
                getattr(ImageDraw.Draw(picture), shape)((12, 10, 46, 40), fill=colour)
                title = PngInfo()
                title.add_text("Title", name)  # or train and val would hold the same files twice
                picture.save(root / place / f"{name}.png", pnginfo=title)
                names[name] = f"./{place}/{name}.png"
        chance = random.Random(split)
        queries = []
        for shape in SHAPES:
            members = [f"{split}-{colour}-{shape}" for colour in COLOURS]
            for colour in COLOURS:
                for target in chance.sample([other for other in COLOURS if other != colour], 2):
                    pairid = len(queries) + (100 if split == "val" else 0)
                    queries.append(
                        {
                            "pairid": pairid,
                            "reference": f"{split}-{colour}-{shape}",
                            "target_hard": f"{split}-{target}-{shape}",
                            "target_soft": {f"{split}-{target}-{shape}": 1.0},
                            "caption": f"make it {target}",
                            "img_set": {"id": pairid, "members": members, "reference_rank": 0, "target_rank": 1},
                        }
                    )
        (root / f"cirr/captions/cap.rc2.{split}.json").write_text(json.dumps(queries))
        (root / f"cirr/image_splits/split.rc2.{split}.json").write_text(json.dumps(names))
    return root


@pytest.fixture
def fashion_root(shapes_root, tmp_path):
    """Return a data root in FashionIQ's layout, from the same pictures; its texts have two captions a query."""
    root = tmp_path / "fashion"
    for folder in ("captions", "image_splits", "images"):
        (root / folder).mkdir(parents=True)
    for split, place in (("train", "train/0"), ("val", "dev")):
        files = sorted((shapes_root / place).glob("*.png"))
        for category in ("dress", "shirt", "toptee"):
            names = [f"{category}-{file.stem}" for file in files]
            for name, file in zip(names, files, strict=True):
                shutil.copy(file, root / "images" / f"{name}.png")
            queries = [
                {"candidate": one, "target": other, "captions": ["is another one.", f"like {other.split('-')[2]}"]}
                for one, other in itertools.pairwise(names)
            ]
            (root / f"captions/cap.{category}.{split}.json").write_text(json.dumps(queries))
            (root / f"image_splits/split.{category}.{split}.json").write_text(json.dumps(names))
    return root


@pytest.fixture(scope="session")
def shapes_index(shapes_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index of the 12 val pictures by a random model, beside a copy of them; neither is to be changed."""
    folder = tmp_path_factory.mktemp("shapes-index")
    torch.manual_seed(0)
    save_pretrained(build("tiny").eval(), folder / "model")
    shutil.copytree(shapes_root / "dev", folder / "pictures")
    index_folder(folder / "pictures", folder / "index", model=folder / "model")
    return folder / "index"
