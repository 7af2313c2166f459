"""Make what leaderboard/bench.toml names: bench_inputs.py OUT --drawings TWEMOJI --photographs BENCH.

OUT/sets gets the generated scenes, a link to the Twemoji drawings in CIRR's layout (docs/data.md) and the photographs
of docs/photos.md as triplets of one's own; OUT/models a random CLIP, `mini` and `tiny` untrained, `mini` trained for 60
steps on the scenes, and heads on `photos` and `lite0`, three seeds of each. What is there is not made again. Some ten
minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from small_duals import save_clip

COMPOSED = ("C1", "C2", "attributes")
"""The benchmark's queries of a picture and a sentence; the others ask with one of the two."""
BASES, SEEDS = ("photos", "lite0"), (0, 1, 2)
"""Of the heads."""
LATE = ("--validation-frequency", 1000)
"""One validation, at the end."""


def main(arguments: list[str] | None = None) -> int:
    """Make what is not there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--photographs", type=Path, required=True)
    flags = parser.parse_args(arguments)
    sets, models = flags.out / "sets", flags.out / "models"
    sets.mkdir(parents=True, exist_ok=True)
    if not (sets / "scenes").exists():
        _composir("data", "scenes", "--out", sets / "scenes", "--images", 1800, "--seed", 0)
    if not (sets / "drawings").exists():
        (sets / "drawings").symlink_to(flags.drawings.resolve())
    if not (sets / "photographs").exists():
        triplets = flags.out / "photographs.jsonl"
        _write_triplets(flags.photographs, triplets)
        pictures = (flags.photographs / "pictures").resolve()
        _composir("data", "import", triplets, "--images", pictures, "--out", sets / "photographs")
    if not (models / "clip-random").exists():
        save_clip(models / "clip-random")
    for backbone in ("mini", "tiny"):
        if not (models / f"{backbone}-untrained").exists():
            torch.manual_seed(0)
            save_pretrained(build(backbone).eval(), models / f"{backbone}-untrained")
    _train(models / "mini-scenes-0", sets / "scenes", 0, "--backbone", "mini", "--max-steps", 60, *LATE)
    for base in BASES:
        for seed in SEEDS:
            _train(models / f"{base}-joint-drawings-{seed}", sets / "drawings", seed, "--backbone", base)
    return 0


def _write_triplets(bench: Path, out: Path) -> None:
    """Write the composed queries as ``composir data import`` reads them; the reference is never its own answer."""
    content = json.loads((bench / "bench.json").read_text(encoding="utf-8"))
    rows = [
        {
            "reference": query["image"],
            "text": query["text"],
            "targets": [name for name in content["groups"][query["right"]] if name != query["image"]],
        }
        for query in content["queries"]
        if query["set"] in COMPOSED
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _train(out: Path, data: Path, seed: int, *settings: object) -> None:
    """Train and keep the best checkpoint alone, as ``out``."""
    if out.exists():
        return
    runs = out.parent / "runs" / out.name
    shutil.rmtree(runs, ignore_errors=True)
    where = ("--dataset", "CIRR", "--data-root", data, "--output-dir", runs)
    _composir("train", *settings, *where, "--seed", seed)
    (run,) = runs.iterdir()
    (run / "best").rename(out)
    shutil.rmtree(runs)


def _composir(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "composir", *map(str, words)], check=True)


if __name__ == "__main__":
    sys.exit(main())
