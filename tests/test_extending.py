"""What docs/extending.md shows is run: a throw-away plug-in of each kind trains, evaluates, searches and is drawn."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from composir.data import DATASETS
from composir.errors import ComposirError
from composir.evaluation.metrics import METRICS, PROTOCOLS
from composir.features import open_model
from composir.losses import LOSSES, TERMS
from composir.models.backbones import BACKBONES, TOWERS
from composir.models.catalogue import MODELS
from composir.models.checkpoint import from_pretrained
from composir.models.fusion import FUSIONS
from composir.models.heads import HEADS
from composir.search.manifest import INDEXES
from composir.tables import Table
from composir.tables import _points as points_of  # its memory would outlast the test's packages

from .small_duals import save_clip

PAGE = Path(__file__).parents[1] / "docs/extending.md"
TABLES = (DATASETS, METRICS, PROTOCOLS, LOSSES, TERMS, BACKBONES, TOWERS, FUSIONS, HEADS, INDEXES, MODELS)
TRAIN = (
    "train", "--dataset", "mine", "--backbone", "tiny-one", "--fusion", "shift", "--num-epochs", "2",
    "--batch-size", "6", "--set", "contrastive_loss=smoothed", "--set", "loss_terms={spread=0.1}", "--json",
)  # fmt: skip


@pytest.fixture
def plug_ins():
    """Run the page's blocks, and take out of the tables afterwards what they have put in."""
    before = [dict(table._entries) for table in TABLES]
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), {})
    yield
    for table, entries in zip(TABLES, before, strict=True):
        table._entries = entries


@pytest.mark.usefixtures("plug_ins")
def test_what_the_page_shows_trains_evaluates_searches_and_is_drawn(run, shapes_root, tmp_path):
    root = ("--data-root", shapes_root)
    code, printed, err = run(*TRAIN, *root, "--output-dir", tmp_path / "runs")
    assert code == 0, err
    done = json.loads(printed)
    run_folder, best = Path(done["run"]), Path(done["best"])
    with (run_folder / "training_log.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["loss_spread"]) > 0
    assert rows[0]["mrr@10"]
    assert (run_folder / "curves.png").stat().st_size > 10_000
    assert set(done["metrics"]) == {"recall_at_1", "recall_at_10", "mrr_at_10"}

    model = from_pretrained(best)
    assert (model.config.backbone, model.config.fusion, model.tower.name) == ("tiny-one", "shift", "tiny-one")
    code, printed, err = run("evaluate", "--model", best, "--dataset", "mine", *root, "--json")
    assert code == 0, err
    assert json.loads(printed)["metrics"]["mrr_at_10"] == pytest.approx(done["metrics"]["mrr_at_10"])
    words = ("train", "--dataset", "mine", "--backbone", best, "--head", "product", "--num-epochs", "2", "--json")
    code, printed, err = run(*words, "--batch-size", "6", *root, "--output-dir", tmp_path / "heads")
    assert code == 0, err
    head = json.loads(printed)
    code, printed, err = run("evaluate", "--model", head["best"], "--dataset", "mine", *root, "--json")
    assert code == 0, err
    assert json.loads(printed)["metrics"]["mrr_at_10"] == pytest.approx(head["metrics"]["mrr_at_10"])

    index = tmp_path / "index"
    code, _, err = run("index", shapes_root / "dev", "--model", best, "--out", index, "--backend", "scan")
    assert code == 0, err
    assert json.loads((index / "index.json").read_text())["backend"] == "scan"
    picture = shapes_root / "dev/val-red-ellipse.png"
    code, printed, err = run("search", index, "--image", picture, "--text", "make it blue", "--json")
    assert code == 0, err
    assert len(json.loads(printed)["results"]) == 10
    drawn = tmp_path / "seen.png"
    code, _, err = run("visualize", "--model", best, "--image", picture, "--text", "make it blue", "--out", drawn)
    assert code == 0, err
    assert drawn.stat().st_size > 10_000
    assert model.trace(picture, "make it blue").maps["length"].shape == (9,)

    named = open_model(f"clip-vit-l-14:{save_clip(tmp_path / 'clip')}", "cpu")
    assert (named.composition.image_weight, named.composition.is_normalised) == (0.3, True)


def install(folder: Path, code: str, points: dict[str, str]) -> None:
    """Put a package into a folder of the path, as pip would: its code, its name and its entry points."""
    (folder / "plugged.py").write_text(code)
    info = folder / "plugged-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    groups = [f"[composir.{kind}]\n{line}\n" for kind, line in points.items()]
    (info / "entry_points.txt").write_text("\n".join(groups))


def test_an_installed_package_adds_to_the_tables_by_entry_points(tmp_path, shapes_root):
    code = "from composir.losses import contrastive_loss\n\ndef make(settings):\n    return contrastive_loss\n"
    install(tmp_path, code, {"losses": "plain = plugged:make", "indexes": "broken = plugged:missing"})
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path}
    words = ("train", "--dataset", "CIRR", "--data-root", shapes_root, "--backbone", "tiny", "--max-steps", "1")
    command = [sys.executable, "-m", "composir", *map(str, words), "--output-dir", str(tmp_path / "runs"), "--set"]
    done = subprocess.run(
        [*command, "contrastive_loss=plain"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [*command, "contrastive_loss=plane"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "expected infonce or hn-nce or plain" in done.stderr


def test_a_package_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    install(tmp_path, "", {"losses": "broken = plugged:missing"})
    monkeypatch.syspath_prepend(tmp_path)
    points_of.cache_clear()
    table: Table[int] = Table("losses", {"own": 1})
    assert list(table) == ["own", "broken"]
    assert "broken" in table
    with pytest.raises(
        ComposirError, match=r"losses 'broken' of the package plugged cannot be loaded \(AttributeError"
    ):
        table["broken"]
    with pytest.raises(KeyError):
        table["other"]
    points_of.cache_clear()
