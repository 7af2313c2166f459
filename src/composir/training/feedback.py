"""Training a head on what people meant: examples that name pictures of an index, whose vectors are in it already."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from composir.data import Left, Query, Split
from composir.data.annotations import Entry
from composir.data.images import ImageSource
from composir.data.images.files import content_id, read_bytes
from composir.data.importing import as_row, read_triplets
from composir.errors import ComposirError, counted
from composir.evaluation import evaluate, metric_label
from composir.evaluation.saved import RECIPE
from composir.features import BaseEmbedder
from composir.files import write_text
from composir.progress import Counted
from composir.search.index import float32
from composir.search.manifest import read_manifest, rebuild_command
from composir.token_cache import TokenPlace
from composir.training.heads import MIN_TRIPLETS, HeadRun, require_enough
from composir.training.loop import TrainResult
from composir.training.observer import Observer
from composir.training.recipe import Recipe
from composir.training.vectors import Vectors

EXAMPLES = "examples.jsonl"
"""File of a run folder: the examples as they were when the run began, each with its split."""
HELD_OUT = 5
"""Of so many reference pictures one is held out."""


def index_model(index: Path) -> str:
    """Return the model that an index was made by, as ``--backbone`` names it."""
    return str(read_manifest(index).model.find(index))


class FeedbackRun(HeadRun):
    """The run of a head on an index: ``data_root`` of its recipe is the file of examples, ``index`` the index.

    Pictures are called by their ids. Where the file says of no example that it is for validation, all those of every
    fifth reference, by its id, are held out; where too few are left on either side, all are trained on and nothing is
    measured.
    """

    @classmethod
    def read(
        cls, recipe: Recipe, resume: Path | None, observer: Observer
    ) -> tuple[Sequence[Split], Sequence[Split], Mapping[str, Left]]:
        """Return the examples to train on and those held out, of the file, or as the run to go on with has them.

        Raises ``ProblemsError`` with every example that is malformed, whose pictures are not in the index, or whose
        reference's file is gone, and ``ComposirError`` for too few examples.
        """
        index = Path(recipe.index)
        pictures = _Pictures(index)
        file = resume / EXAMPLES if resume is not None and (resume / EXAMPLES).exists() else Path(recipe.data_root)
        rows = read_triplets(file, pictures.find, split="train")
        examples = {name: _without_other_targets(queries) for name, queries in rows.items()}
        train = examples.get("train", [])
        require_enough([query.targets[0] for query in train], file)
        held_out = examples.get("val", [])
        if not held_out:
            train, held_out = _hold_out(train)
        if pictures.num_gone:
            observer.on_note(f"pictures that were shown and are no longer in {index}: {pictures.num_gone:,}, left out")
        splits = [
            [
                Split(
                    dataset="own",
                    name=name,
                    category="",
                    queries=tuple(queries),
                    gallery=tuple(pictures.images),
                    images=pictures.images,
                    gallery_rule="original",
                    exclude_reference=True,
                    text_rule="as annotated",
                    file=file,
                )
            ]
            if queries
            else []
            for name, queries in (("train", train), ("val", held_out))
        ]
        if held_out:
            of = counted(len({query.reference for query in held_out}), "reference picture")
            to_train = f"{counted(len(train), 'example')} to train on"
            observer.on_note(f"{to_train}; {len(held_out):,}, those of {of}, are held out")
        else:
            observer.on_note(f"{len(train):,} examples are too few to hold some out: all are trained on, none measured")
        return splits[0], splits[1], {}

    def open_vectors(self, base: BaseEmbedder, identity: str, place: TokenPlace) -> Vectors:
        """Return the base's vectors, those of pictures out of the index; ``ComposirError`` where another made it."""
        index = Path(self.recipe.index)
        manifest = read_manifest(index)
        if identity != manifest.weights_hash:
            raise ComposirError(
                f"is the index of another model (weights {manifest.weights_hash}) than {self.recipe.backbone} "
                f"({identity})",
                file=index,
                fix="give an index by the model that the head is on, or make this one anew: "
                + rebuild_command(index, root=manifest.root.find(index), model=Path(self.recipe.backbone)),
            )
        with closing(manifest.open_table(index)) as table:
            snapshot = table.snapshot()
        row_by_id = dict(zip(snapshot.ids[snapshot.rows].astype(str).tolist(), snapshot.rows.tolist(), strict=True))
        images = self.train_splits[0].images
        rows = {source: (image_id, row_by_id[image_id]) for image_id, source in images.items()}
        return IndexVectors(base, identity, place, block=snapshot.vectors, rows=rows)

    def keep_data(self) -> None:
        """Write down the examples, too: people may go on adding to the file."""
        super().keep_data()
        rows = [
            json.dumps({**as_row(query), "split": split.name}, ensure_ascii=False)
            for split in [*self.train_splits, *self.val_splits]
            for query in split.queries
        ]
        write_text(self.run / EXAMPLES, "\n".join(rows) + "\n")

    @property
    def keeps_epoch(self) -> bool:
        """Whether it is an epoch with a validation: of few examples an epoch is one step, and saving takes longer."""
        return self.is_done or self.state.epoch % self.recipe.validation_frequency == 0

    def validate(self) -> dict[str, str]:
        """Return what a run's validation does; where nothing is held out, keep the head as it is as the best."""
        if self.val_splits:
            return super().validate()
        if self.recipe.save_training:
            about = "Trained on examples of one's own; too few to hold some out, so nothing was measured."
            self.save_model(self.run / "best", about, {RECIPE: self.recipe.to_toml().encode()})
        return {}

    def train(self, resume: Path | None) -> TrainResult:
        """Train, and tell what the head gains on the examples that were held out."""
        result = super().train(resume)
        if self.val_splits and result.metrics:
            plain = evaluate(self.vectors, self.val_splits, baselines=False)
            key = self.recipe.select_by or plain.primary
            without, learned = (f"{100 * figures[key]:.2f}" for figures in (plain.metrics, result.metrics))
            self.observer.on_note(
                f"held out: {metric_label(key)} {without} without the head, {learned} with it, of "
                f"{len(self.val_splits[0].queries):,} examples"
            )
        return result


@dataclass(kw_only=True)
class IndexVectors(Vectors):
    """A base's vectors, of which those of pictures are an index's: none is embedded."""

    block: Float[np.ndarray, "rows vectors dim"]
    """fp16, the index's own, memory-mapped."""
    rows: Mapping[ImageSource, tuple[str, int]]
    """Every picture's id and row."""

    def embed_gallery(self, paths: Sequence[ImageSource]) -> Float[Tensor, "batch vectors dim"]:
        """Return the index's vectors of every picture."""
        return float32(self.block[[self.rows[path][1] for path in paths]])

    def dim(self, example: ImageSource) -> int:
        """Return the width of a vector."""
        return self.block.shape[-1]

    def images_of(self, sources: Sequence[ImageSource]) -> dict[ImageSource, str]:
        """Return what identifies each picture: a base's query may be made of its vector, which is rounded here."""
        return {source: f"indexed {self.rows[source][0]}" for source in sources}

    def fill_pictures(self, image_by_source: Mapping[ImageSource, str], progress: Counted | None) -> None:
        """Do nothing: the index has them."""


class _Pictures:
    """The pictures of an index, by the ways in which an example may name them."""

    def __init__(self, index: Path) -> None:
        manifest = read_manifest(index)
        self.index, self.root = index, manifest.root.find(index)
        with closing(manifest.open_table(index)) as table:
            self.images: dict[str, ImageSource] = {
                image_id: self.root / path for image_id, path in table.images_in_order(0, len(table))
            }
            self.files: dict[str, list[Path]] = defaultdict(list)
            for record in table.files():
                self.files[record.id].append(self.root / record.path)
        self.id_by_path = {file: image_id for image_id, files in self.files.items() for file in files}
        self.num_gone = 0
        self._found: dict[str, bool] = {}

    def find(self, row: Entry, what: str, name: str) -> str | None:
        """Return the id of a picture; None after adding a problem, or where it was only shown and is gone."""
        image_id = name if name in self.images else self.id_by_path.get(self.root / name)
        if image_id is None:
            if what.startswith("subset"):
                self.num_gone += 1
            else:
                message = f"{what} {name!r} is not in the index {self.index}, or not any more"
                row.problem(message, "index its picture again, or remove the row")
        elif what == "reference" and not self._find_file(image_id):
            message = f"the file of the {what} {name!r}, {self.images[image_id]}, is gone or has changed"
            row.problem(message, "put it back, or remove the row")
            return None
        return image_id

    def _find_file(self, image_id: str) -> bool:
        """Return whether a file still holds the picture; ``images`` then has that one."""
        if image_id not in self._found:
            file = next((file for file in self.files[image_id] if _holds(file, image_id)), None)
            self._found[image_id] = file is not None
            if file is not None:
                self.images[image_id] = file
        return self._found[image_id]


def _holds(file: Path, image_id: str) -> bool:
    try:
        return content_id(read_bytes(file)) == image_id
    except ComposirError:
        return False


def _without_other_targets(queries: Sequence[Query]) -> list[Query]:
    """Return the examples, none with a negative that another one calls right for the same picture and sentence."""
    targets: dict[tuple[str, str], set[str]] = defaultdict(set)
    for query in queries:
        targets[query.reference, query.text].update(query.targets)
    kept = []
    for query in queries:
        right = targets[query.reference, query.text]
        subset = tuple(name for name in query.subset if name == query.targets[0] or name not in right)
        kept.append(replace(query, subset=subset if len(subset) > 1 else ()))
    return kept


def _hold_out(queries: Sequence[Query]) -> tuple[list[Query], list[Query]]:
    """Return the examples to train on, and those held out: all of a reference, so that it stays new to the head."""
    held_out = [query for query in queries if int(query.reference, 16) % HELD_OUT == 0]
    rest = [query for query in queries if int(query.reference, 16) % HELD_OUT != 0]
    if min(len(held_out), len(rest)) < MIN_TRIPLETS:
        return list(queries), []
    return rest, held_out
