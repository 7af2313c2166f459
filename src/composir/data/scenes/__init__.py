"""A generated data set in CIRR's layout: coloured shapes on a 3 x 3 grid, and sentences that edit them.

In the style of CSS (Vo et al., TIRG, CVPR 2019, arXiv 1812.07119), drawn in the plane. Everything needed to
train and measure without a download, and built so that neither modality alone gets far:

- Pictures come in clusters: a base and eleven edits of it. Every query goes from the base to one edit, so the
  picture alone (reference excluded) finds at most 1 target in 11.
- Sentences say as little as singles out one picture of the gallery *given the reference* ("make the circle
  blue"), so the sentence alone fits many pictures.
- Edits come in twins that leave the same thing to be said of the target: "make the circle blue" and "add a
  blue circle". A query's subset holds the twin, other edits of the same base (which the picture alone cannot
  tell apart) and edits of other bases that the sentence fits too (which the sentence alone cannot).
- Validation shows pairs of colour and shape that training never does.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

from composir.data.scenes.drawing import draw
from composir.data.scenes.planning import plan
from composir.data.scenes.world import SceneQuery, SceneSplit
from composir.data.triplets import Split
from composir.errors import ComposirError

__all__ = ["draw", "generate", "is_generated", "plan"]

IMAGES_PER_FOLDER = 100
"""Training images in one numbered sub-folder."""
GENERATED_NAME = re.compile(r"(train|dev|test1)-\d{5}")


def generate(out: str | Path, *, num_images: int = 3000, seed: int = 0) -> dict[str, dict[str, int]]:
    """Return ``{split: {"num_queries", "num_gallery"}}`` after writing the data set to a new folder.

    ``num_images`` are shared 4 : 1 : 1 by train, val and test1 (which has no targets, as CIRR's). The same
    ``num_images`` and ``seed`` give the same bytes. ``out`` appears when it is complete, never in part.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ComposirError("already exists and is not empty", file=out, fix="choose a new folder")
    splits = plan(num_images, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as parent:
        home = Path(parent) / "scenes"
        first_pairid = 0
        for split in splits:
            _write(split, home, first_pairid, Random(f"{seed} {split.name}"))
            first_pairid += len(split.queries)
        if out.exists():
            out.rmdir()
        home.replace(out)
    return {split.name: {"num_queries": len(split.queries), "num_gallery": len(split.scenes)} for split in splits}


def is_generated(split: Split) -> bool:
    """Return whether a split is one that ``generate`` wrote, by the names of its pictures."""
    return all(GENERATED_NAME.fullmatch(name) for name in split.gallery)


def _write(split: SceneSplit, home: Path, first_pairid: int, rng: Random) -> None:
    """Write the pictures and the two annotation files of a split, as CIRR has them."""
    prefix = "dev" if split.name == "val" else split.name
    names = [f"{prefix}-{number:05d}" for number in range(len(split.scenes))]
    path_by_name = {}
    for number, (name, scene) in enumerate(zip(names, split.scenes, strict=True)):
        folder = f"train/{number // IMAGES_PER_FOLDER}" if split.name == "train" else prefix
        path_by_name[name] = f"./{folder}/{name}.png"
        file = home / folder / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        draw(scene, rng).save(file)
    entries = [
        _annotate(query, names, first_pairid + number, with_target=split.name != "test1")
        for number, query in enumerate(split.queries)
    ]
    for kind, prefix, content in (
        ("captions", "cap", entries),
        ("image_splits", "split", path_by_name),
    ):
        file = home / "cirr" / kind / f"{prefix}.rc2.{split.name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content), encoding="utf-8")


def _annotate(query: SceneQuery, names: Sequence[str], pairid: int, *, with_target: bool) -> dict[str, object]:
    """Return one entry of CIRR's caption file; every query has an image set of its own."""
    image_set: dict[str, object] = {
        "id": pairid,
        "members": [names[number] for number in query.members],
        "reference_rank": query.members.index(query.reference),
    }
    entry: dict[str, object] = {"pairid": pairid, "reference": names[query.reference]}
    if with_target:
        target = names[query.target]
        entry |= {"target_hard": target, "target_soft": {target: 1.0}}
        image_set["target_rank"] = query.members.index(query.target)
    return entry | {"caption": query.sentence.text, "img_set": image_set}
