"""Which head gains on frozen vectors, and how much of that is a gate: the first table of docs/gated-fusion.md.

    python scripts/head_study.py drawings --base lite0 --root path/to/twemoji --out study.jsonl
    python scripts/head_study.py photographs --base photos --root path/to/photo_bench --out study.jsonl
    python scripts/head_study.py --summary study.jsonl

Vectors are computed once; a run is then some seconds of one thread, and a line of ``--out``; lines that are there are
not run again. Heads have as many parameters as the published gate has on the same base, as near as a width allows
(``sum`` has no width). Rate and steps are chosen for each head alike, on a fifth of the training families that is held
out, with seed 100 (``--choose``); without, they are those of the file's last choice for the head, or the recipe's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from composir.data import Split, load_splits
from composir.data.images import file_of, read_image
from composir.features import open_base_embedder
from composir.models.embedder import VectorComposer
from composir.models.fusion.tirg import TirgGating
from composir.models.heads.change import DROPOUT, Change, two_layers, zeroed
from composir.models.heads.gate import Gate
from composir.models.heads.gate_joint import GateJoint
from composir.models.heads.head import Head
from composir.models.heads.joined import Joined
from composir.models.heads.joint import Joint
from composir.models.heads.sum import Sum
from composir.models.photos.minilm import embed
from composir.scoring import similarity
from composir.token_cache import ON_DISK
from composir.training.optimizer import keep_temperature
from composir.training.vectors import Vectors

RATES, STEPS = (1e-3, 3e-3), (300, 600)
BATCH, DECAY = 256, 0.01


@dataclass
class Asked:
    """Queries as places in the rows of ``Data``: reference, pair, sentence, right answers, look-alikes."""

    reference: Tensor
    pair: Tensor
    sentence: Tensor
    right: list[list[int]]
    look_alikes: list[list[int]]
    family: list[int]
    """Queries of one family are held out together."""

    def of(self, rows: Sequence[int]) -> Asked:
        """Return some of the queries."""
        places = (one[list(rows)] for one in (self.reference, self.pair, self.sentence))
        return Asked(*places, *([some[row] for row in rows] for some in (self.right, self.look_alikes, self.family)))


@dataclass
class Data:
    """Vectors of pictures, pairs and sentences, and what is asked of them."""

    pictures: Tensor
    pairs: Tensor
    sentences: Tensor
    train: Asked
    val: Asked
    gallery: list[int]


def asked(rows: Sequence[dict[str, Any]]) -> Asked:
    """Return rows as columns."""
    reference, pair, sentence = (
        torch.tensor([row[name] for row in rows]) for name in ("reference", "pair", "sentence")
    )
    return Asked(
        reference,
        pair,
        sentence,
        right=[row["right"] for row in rows],
        look_alikes=[row["look_alikes"] for row in rows],
        family=[row["family"] for row in rows],
    )


def of_dataset(base: str, root: Path) -> Data:
    """Return a set in CIRR's layout; ``random`` is a fixed random projection of 32 x 32 pixels."""
    splits = {name: load_splits("CIRR", root, name) for name in ("train", "val")}
    every = [split for some in splits.values() for split in some]
    pictures, pairs, sentences = vectors_of(base, every)
    place = {one: row for row, one in enumerate(pictures)}
    place_of_pair = {one: row for row, one in enumerate(pairs)}
    place_of_text = {one: row for row, one in enumerate(sentences)}

    def rows(split: Split) -> list[dict[str, Any]]:
        images = split.images
        return [
            {
                "reference": place[images[query.reference]],
                "pair": place_of_pair[images[query.reference], query.text],
                "sentence": place_of_text[query.text],
                "right": [place[images[query.targets[0]]]],
                "look_alikes": [place[images[one]] for one in query.subset if one != query.targets[0]],
                "family": zlib.crc32(" ".join(sorted({*query.subset, query.reference})).encode()),
            }
            for query in split.queries
        ]

    train, val = (asked([row for split in splits[name] for row in rows(split)]) for name in ("train", "val"))
    gallery = sorted({place[one] for split in splits["val"] for one in split.images.values()})
    return Data(
        torch.stack(list(pictures.values())),
        torch.stack(list(pairs.values())),
        torch.stack(list(sentences.values())),
        train,
        val,
        gallery,
    )


def of_photographs(base: str, root: Path, seed: int) -> Data:
    """Return the benchmark's edits of class and colour: trained on half of what is asked for, tested on the rest."""
    bench = json.loads((root / "bench.json").read_text())
    names = sorted(bench["pictures"])
    queries = [query for query in bench["queries"] if query["set"] in ("C1", "C2")]
    images = {name: root / "pictures" / name for name in names}
    model, _ = open_base_embedder(base, ON_DISK)
    cache = root / f"{base}.pt"
    if not cache.exists():
        found = torch.cat([model.embed_gallery([images[name]]) for name in names])
        torch.save(found, cache)
    pictures = torch.load(cache, weights_only=True)
    place = {name: row for row, name in enumerate(names)}
    references = torch.stack([pictures[place[query["image"]], 0] for query in queries])
    texts = [query["text"] for query in queries]
    if not isinstance(model, VectorComposer):
        raise SystemExit(f"{base}: photographs are asked of a model whose queries are made of its vectors")
    pairs = model.pairs_of_vectors(references, texts)
    kinds = sorted({query["right"].split(" / ")[0] for query in queries})
    trained = set(np.random.default_rng(seed).permutation(kinds)[: len(kinds) // 2])
    rows = [
        {
            "reference": place[query["image"]],
            "pair": row,
            "sentence": row,
            "right": [place[one] for one in bench["groups"][query["right"]] if one != query["image"]],
            "look_alikes": [place[query["image"]]],
            "family": zlib.crc32(query["right"].encode()),
        }
        for row, query in enumerate(queries)
    ]
    is_trained = [query["right"].split(" / ")[0] in trained for query in queries]
    return Data(
        pictures,
        pairs,
        model.embed_words(texts),
        asked([row for row, chosen in zip(rows, is_trained, strict=True) if chosen]),
        asked([row for row, chosen in zip(rows, is_trained, strict=True) if not chosen]),
        list(range(len(names))),
    )


def vectors_of(base: str, splits: Sequence[Split]) -> tuple[dict[Any, Tensor], dict[Any, Tensor], dict[Any, Tensor]]:
    """Return the vectors of all pictures, pairs and sentences."""
    if base != "random":
        model, identity = open_base_embedder(base, ON_DISK)
        found = Vectors(model, identity, ON_DISK)
        found.fill(splits)
        return found._pictures, found._pairs, found._words
    weights = torch.randn(3 * 32 * 32, 445, generator=torch.Generator().manual_seed(0))
    pictures, pairs, sentences = {}, {}, {}
    for split in splits:
        for source in split.images.values():
            pixels = torch.from_numpy(np.asarray(read_image(file_of(source)).resize((32, 32)))).float().flatten()
            pictures[source] = nn.functional.normalize((pixels / 255 - 0.5) @ weights, dim=0)[None]
        for query in split.queries:
            pairs[split.images[query.reference], query.text] = pictures[split.images[query.reference]][0]
            if query.text not in sentences:
                sentences[query.text] = embed(query.text)
    return pictures, pairs, sentences


class Text(Change):
    """``P t + V2 relu(V1 t)``: a change by the sentence alone, without a gate."""

    def __init__(self, dim: int, text_dim: int, hidden: int) -> None:
        super().__init__()
        self.line = zeroed(nn.Linear(text_dim, dim))
        self.delta = two_layers(text_dim, dim, hidden=hidden)
        zeroed(self.delta[-1])

    def forward(self, reference: Tensor, sentence: Tensor) -> Tensor:
        """Return the change."""
        return self.line(sentence) + self.delta(sentence)


class Dropped(Change):
    """A change whose inputs drop out in training, as ``joint``'s do."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def forward(self, reference: Tensor, sentence: Tensor) -> Tensor:
        """Return the change."""
        drop = nn.functional.dropout
        return self.change(drop(reference, DROPOUT, self.training), drop(sentence, DROPOUT, self.training))


def equal_joint(dim: int, text_dim: int) -> Change:
    """Return ``joint`` of the gate's size."""
    change = Joint(dim, text_dim)
    hidden = size_of_gate(dim, text_dim) // (2 * dim + text_dim + 1)
    change.delta = two_layers(dim + text_dim, dim, hidden=hidden)
    zeroed(change.delta[-1])
    return change


def equal_gate_joint(dim: int, text_dim: int) -> Change:
    """Return ``gate-joint`` of the gate's size."""
    change, hidden = GateJoint(dim, text_dim), size_of_gate(dim, text_dim) // (2 * (2 * dim + text_dim + 1))
    change.gate, change.delta = (two_layers(dim + text_dim, dim, hidden=hidden) for _ in range(2))
    zeroed(change.delta[-1])
    return change


def size_of_gate(dim: int, text_dim: int) -> int:
    """Return the parameters of the published gate at these widths."""
    return sum(one.numel() for one in Gate(dim, text_dim).parameters())


STUDIED: dict[str, Callable[[int, int], Change]] = {
    "sum": Sum,
    "text": lambda dim, text: Text(dim, text, (size_of_gate(dim, text) - dim * text) // (dim + text + 1)),
    "gate": Gate,
    "gate, dropout": lambda dim, text: Dropped(Gate(dim, text)),
    "gate-joint": equal_gate_joint,
    "joint": equal_joint,
    "tirg, dropout": lambda dim, text: Dropped(Joined(TirgGating(dim), dim, text)),
}


@torch.no_grad()
def figures(head: Head | None, data: Data, queries: Asked, gallery: Sequence[int]) -> dict[str, float]:
    """Return R@1, R@5, and where there are look-alikes R_s@1 and mean(R@5+R_s@1); the reference is left out."""
    rows = torch.tensor(gallery)
    column = {row: place for place, row in enumerate(gallery)}
    query = data.pairs[queries.pair]
    if head is not None:
        head.eval()
        query = head(query, data.pictures[queries.reference], data.sentences[queries.sentence])
    scores = similarity(query, data.pictures[rows])
    hits = defaultdict(list)
    for row, (reference, right, look_alikes) in enumerate(
        zip(queries.reference.tolist(), queries.right, queries.look_alikes, strict=True)
    ):
        own = scores[row].clone()
        if reference in column:
            own[column[reference]] = -torch.inf
        best = own[[column[one] for one in right]].max()
        place = int((own > best).sum())
        hits["R@1"].append(place < 1)
        hits["R@5"].append(place < 5)
        others = [column[one] for one in look_alikes if one != reference]
        if others:
            hits["R_s@1"].append(bool((own[others] <= best).all()))
    found = {name: 100 * float(np.mean(some)) for name, some in hits.items()}
    return found | ({"mean": (found["R@5"] + found["R_s@1"]) / 2} if "R_s@1" in found else {})


def train(
    data: Data, queries: Asked, rows: Sequence[int], head: str, *, rate: float, steps: int, seed: int
) -> tuple[Head, list[float]]:
    """Return a trained head, and its mean loss over each tenth of the steps."""
    torch.manual_seed(seed)
    dim, text_dim = data.pictures.shape[-1], data.sentences.shape[-1]
    model = Head(STUDIED[head](dim, text_dim), dim)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), eps=1e-7, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.3)
    random = np.random.default_rng(seed)
    order: list[int] = []
    losses = []
    model.train()
    for _ in range(steps):
        if len(order) < min(BATCH, len(rows)):
            order = list(random.permutation(list(rows)))
        batch, order = order[:BATCH], order[BATCH:]
        right = [random.choice(queries.right[row]) for row in batch]
        alike = [random.choice(queries.look_alikes[row]) for row in batch]
        candidates = torch.tensor([*right, *alike])
        same = torch.tensor(right)[:, None] == candidates[None]
        for line, row in enumerate(batch):  # another right answer is no negative, either
            same[line] |= torch.isin(candidates, torch.tensor(queries.right[row]))
        chosen = torch.tensor(batch)
        loss = model.training_losses(
            data.pairs[queries.pair[chosen]],
            data.pictures[queries.reference[chosen]],
            data.sentences[queries.sentence[chosen]],
            data.pictures[candidates],
            same_target=same,
        )["loss_itc"]
        optimizer.zero_grad()
        loss.backward()
        before = model.temperature.detach().clone()
        optimizer.step()
        keep_temperature(model.temperature, before)
        schedule.step()
        losses.append(loss.item())
    return model, [float(np.mean(some)) for some in np.array_split(losses, 10)]


@dataclass
class Cell:
    """A set, a base and a share of the triplets: what was run of it is in ``file``, with other cells."""

    set: str
    base: str
    share: float
    root: Path
    file: Path

    def __post_init__(self) -> None:
        """Read what is there."""
        text = self.file.read_text() if self.file.exists() else ""
        self.lines = [json.loads(line) for line in text.splitlines()]
        self.name = {"set": self.set, "base": Path(self.base).name, "share": self.share}
        self.fixed = None if self.set == "photographs" else of_dataset(self.base, self.root)

    def data(self, seed: int) -> Data:
        """Return the set; of photographs the halves are drawn by the seed."""
        return self.fixed or of_photographs(self.base, self.root, seed)

    def has(self, **wanted: object) -> bool:
        """Return whether such a run is there."""
        wanted |= self.name
        return any(all(line[name] == value for name, value in wanted.items()) for line in self.lines)

    def keep(self, line: dict[str, Any]) -> None:
        """Write a run down."""
        self.lines.append(self.name | line)
        with self.file.open("a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")

    def untrained(self, seed: int) -> None:
        """Measure the base without a head."""
        if self.has(head="none", seed=seed) or (seed and self.fixed):
            return
        data = self.data(seed)
        found = figures(None, data, data.val, data.gallery)
        self.keep({"head": "none", "seed": seed, "choice": False, "rate": 0, "steps": 0, "parameters": 0, "seconds": 0}
                  | found)  # fmt: skip

    def run(self, head: str, rate: float, steps: int, seed: int, *, choice: bool) -> None:
        """Train and measure a head; for a ``choice`` on a fifth of the training families, which are left out."""
        if self.has(head=head, seed=seed, choice=choice, **({"rate": rate, "steps": steps} if choice else {})):
            return
        data = self.data(seed)
        rows = list(range(len(data.train.right)))
        tested, gallery = data.val, data.gallery
        if choice:
            every_fifth = set(sorted(set(data.train.family))[::5])
            tested = data.train.of([row for row in rows if data.train.family[row] in every_fifth])
            rows = [row for row in rows if data.train.family[row] not in every_fifth]
            if self.fixed:
                some = zip(tested.right, tested.look_alikes, strict=True)
                gallery = sorted({one for right, alike in some for one in (*right, *alike)})
        drawn = np.random.default_rng(seed).permutation(rows)[: round(self.share * len(rows))]
        start = time.process_time()
        model, losses = train(data, data.train, drawn.tolist(), head, rate=rate, steps=steps, seed=seed)
        seconds = round(time.process_time() - start, 1)
        size = sum(one.numel() for one in model.change.parameters())
        found = figures(model, data, tested, gallery)
        self.keep({"head": head, "seed": seed, "choice": choice, "rate": rate, "steps": steps, "parameters": size,
                   "seconds": seconds} | found | {"losses": losses})  # fmt: skip

    def chosen(self, head: str) -> tuple[float, int]:
        """Return rate and steps of a head's best choice: on this set and base, else on this base, else on any."""
        choices = [line for line in self.lines if line["choice"] and line["head"] == head]
        for names in (("set", "base"), ("base",), ()):
            near = [line for line in choices if all(line[name] == self.name[name] for name in names)]
            if near:
                best = max(near, key=figure)
                return best["rate"], best["steps"]
        return RATES[0], STEPS[0]


def figure(line: dict[str, Any]) -> float:
    """Return what heads are compared by: mean(R@5+R_s@1), R@1 where there are no look-alikes."""
    return line["mean"] if "mean" in line else line["R@1"]


def main() -> None:
    """Run what is missing of a cell, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", nargs="?", choices=("drawings", "scenes", "photographs"))
    parser.add_argument("--base", default="lite0")
    parser.add_argument("--root", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--heads", nargs="+", default=list(STUDIED), choices=list(STUDIED))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--share", type=float, default=1.0, help="of the training queries")
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--summary", type=Path, nargs="+")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.summary:
        summarise([json.loads(line) for file in arguments.summary for line in file.read_text().splitlines()])
        return
    cell = Cell(arguments.set, arguments.base, arguments.share, arguments.root, arguments.out)
    if arguments.choose:
        for head, rate, steps in product(arguments.heads, RATES, STEPS):
            cell.run(head, rate, steps, 100, choice=True)
    for seed in range(arguments.seeds):
        cell.untrained(seed)
        for head in arguments.heads:
            cell.run(head, *cell.chosen(head), seed, choice=False)


def summarise(lines: Sequence[dict[str, Any]]) -> None:
    """Print a table a cell: means over seeds with 95 % intervals by Student's t, differences paired by seed."""
    cells: dict[tuple[Any, ...], dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if not line["choice"]:
            cells[line["set"], line["base"], line["share"]][line["head"]].append(line)
    say = sys.stdout.write
    for (name, base, share), heads in cells.items():
        say(f"\n{name}, base {base}, {100 * share:g} % of the triplets\n\n")
        say("| head | parameters | rate, steps | R@1 | R@5 | R_s@1 | mean(R@5+R_s@1) | over joint | seconds |\n")
        say("|---|---|---|---|---|---|---|---|---|\n")
        joint = {line["seed"]: figure(line) for line in heads.get("joint", [])}
        for head, runs in heads.items():
            first = runs[0]
            cells_of = [
                interval([line[key] for line in runs if key in line]) for key in ("R@1", "R@5", "R_s@1", "mean")
            ]
            gain = [figure(line) - joint[line["seed"]] for line in runs if line["seed"] in joint and head != "joint"]
            seconds = float(np.mean([line["seconds"] for line in runs]))
            columns = [
                head,
                f"{first['parameters']:,}",
                f"{first['rate']:g}, {first['steps']}",
                *cells_of,
                interval(gain),
            ]
            say(f"| {' | '.join(columns)} | {seconds:.0f} |\n")


def interval(values: Sequence[float]) -> str:
    """Return the mean with its 95 % interval."""
    if len(values) < 2:
        return f"{values[0]:.2f}" if values else ""
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
    return f"{np.mean(values):.2f} ({np.mean(values) - half:.2f} to {np.mean(values) + half:.2f})"


if __name__ == "__main__":
    main()
