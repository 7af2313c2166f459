"""Training a head on the vectors of a model that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from composir.data import Split
from composir.errors import ComposirError
from composir.evaluation import Embedder
from composir.features import BaseEmbedder, open_base_embedder, require_same_base
from composir.machine import to_device
from composir.models.heads.embedder import HeadEmbedder
from composir.models.heads.folder import HeadConfig, head_card, make_head, read_head, save_head
from composir.models.heads.head import Head, head_hash, mean_vector
from composir.models.named import lasting_name
from composir.token_cache import TokenPlace
from composir.training.batches import Drawing, Drawn
from composir.training.log import NUM_PROBE_TRIPLETS, Log, entropy
from composir.training.loop import Run
from composir.training.recipe import Recipe
from composir.training.state import LAST_MODEL, State
from composir.training.vectors import Vectors

MIN_TRIPLETS = 8
"""With fewer a batch has hardly any negatives."""


class HeadInputs(NamedTuple):
    """A batch as ``Head.training_losses`` takes it."""

    query: Float[Tensor, "batch dim"]
    reference: Float[Tensor, "batch vectors dim"]
    sentence: Float[Tensor, "batch text_dim"]
    target: Float[Tensor, "candidates vectors dim"]
    same_target: Bool[Tensor, "batch candidates"] | None
    num_all: tuple[int, int]
    """Queries and candidates of all processes."""

    def to(self, device: torch.device) -> HeadInputs:
        """Return the inputs on a device."""
        moved = [to_device(one, device) for one in (self.query, self.reference, self.sentence, self.target)]
        same_target = None if self.same_target is None else to_device(self.same_target, device)
        return HeadInputs(moved[0], moved[1], moved[2], moved[3], same_target, self.num_all)


class HeadBatches(Drawn[HeadInputs]):
    """Batches of vectors."""

    def __init__(self, recipe: Recipe, splits: Sequence[Split], vectors: Vectors, device: torch.device) -> None:
        super().__init__(recipe, splits, device)
        self.vectors = vectors

    def read_all(self, drawn: Drawing) -> HeadInputs:
        """Return the base's vectors of the pictures, the pairs and the sentences."""
        vectors, texts = self.vectors, drawn.share(drawn.texts)
        return HeadInputs(
            vectors.embed_queries(drawn.references, texts),
            vectors.embed_gallery(drawn.references),
            vectors.embed_words(texts),
            vectors.embed_gallery(drawn.candidates),
            drawn.same_target,
            drawn.num_all,
        )


class HeadLog(Log):
    """The log of a head: its gate and its change on the first training triplets."""

    def __init__(self, run: Path, head: Head, batches: HeadBatches, *, first_step: int) -> None:
        super().__init__(run, first_step=first_step)
        self.head, self.batches = head, batches

    @torch.no_grad()
    def gate_figures(self) -> dict[str, float]:
        """Return alpha, the gate's mean and entropy, and the change's length; the base's query has length 1."""
        self.head.eval()
        reference, sentence = self._probe()
        alpha = self.head.change.alpha
        figures = {} if alpha is None else {"alpha": alpha.item()}
        if (opened := self.head.change.opened(reference, sentence)) is not None:
            figures |= {"mean_gate": opened.mean().item(), "gate_entropy": entropy(opened).mean().item()}
        return figures | {"relative_change": self.head.change(reference, sentence).norm(dim=-1).mean().item()}

    @torch.no_grad()
    def show(self, state: State) -> None:
        """Write the histogram of a gate to TensorBoard."""
        if (opened := self.head.change.opened(*self._probe())) is not None:
            self.board.add_histogram("gate/values", opened, state.step)

    def _probe(self) -> tuple[Tensor, Tensor]:
        inputs = self.batches.inputs(self.batches.triplets[:NUM_PROBE_TRIPLETS], None)
        return mean_vector(inputs.reference), inputs.sentence


class HeadRun(Run):
    """The run of a head: of the base's vectors, out of their cache, instead of image tokens."""

    def make(self, place: TokenPlace) -> None:
        """Open the base, make a head of its widths, and the cache of its vectors."""
        recipe, device = self.recipe, self.accelerator.device
        self.base, identity = open_base_embedder(recipe.backbone, place)
        self.vectors = self.open_vectors(self.base, identity, place)
        triplets = [(split, query) for split in self.train_splits for query in split.queries]
        require_enough([split.images[query.targets[0]] for split, query in triplets], self.train_splits[0].file)
        split, query = triplets[0]
        self.config = HeadConfig(
            head=recipe.head,
            base=lasting_name(recipe.backbone),
            base_hash=identity,
            dim=self.vectors.dim(split.images[query.reference]),
            text_dim=self.base.embed_words([query.text]).shape[-1],
            target_map=recipe.target_map,
        )
        torch.manual_seed(recipe.seed)  # the base may have used up random numbers
        self.model = make_head(self.config).to(device)
        self.batches = HeadBatches(recipe, self.train_splits, self.vectors, device)

    def open_vectors(self, base: BaseEmbedder, identity: str, place: TokenPlace) -> Vectors:
        """Return what gives the base's vectors."""
        return Vectors(base, identity, place)

    def fill(self, share: tuple[int, int] = (0, 1)) -> None:
        """Make the vectors of all pictures, pairs and sentences present, or of a share of the pictures."""
        num_bytes = 4 * self.config.dim

        def tell(done: int, total: int) -> None:
            self.observer.on_vectors(done, total, total * num_bytes)

        self.vectors.fill([*self.train_splits, *self.val_splits], tell, share=share)

    def take_largest_batch(self) -> None:
        """Raise ``ComposirError``: vectors are small, and how many are good is not a question of memory."""
        raise ComposirError(
            "a head's batch is not bounded by memory", expected="a number", fix="--batch-size 256, say, or leave it out"
        )

    def require_room(self) -> None:
        """Take it that there is room: a step of a head takes some megabytes."""

    def prepare(self) -> None:
        """Change nothing: a head starts as its base."""

    def embedder(self) -> Embedder:
        """Return the head on the base's vectors."""
        return HeadEmbedder(self.model, self.vectors)

    def weights_hash(self) -> str:
        """Return what identifies the head as it is, and its base."""
        return head_hash(self.model, self.config.base_hash)

    def save_model(self, folder: Path, about: str, files: Mapping[str, bytes]) -> None:
        """Write the head's folder."""
        save_head(self.model, self.config, folder, card=head_card(self.config, about), extra_files=files)

    def make_log(self) -> Log:
        """Return what writes the run down."""
        return HeadLog(self.run, self.model, self.batches, first_step=self.state.step)

    def _load(self) -> State:
        """Return where the run stood; raise ``ComposirError`` where its base is no longer the same."""
        require_same_base(read_head(self.run / LAST_MODEL), self.config.base_hash, self.run)
        return super()._load()

    @property
    def alpha(self) -> Tensor | None:
        """The change's one scalar, of a head that has one."""
        return self.model.change.alpha


def require_enough(targets: Sequence[object], file: Path | None) -> None:
    """Raise ``ComposirError`` where the examples of these targets are too few, or all alike, to learn anything from."""
    if len(targets) < MIN_TRIPLETS:
        raise ComposirError(
            f"holds {len(targets)} example{'s' * (len(targets) != 1)}",
            file=file,
            expected=f"{MIN_TRIPLETS} or more: each one's target is compared with the others'",
            fix="add examples; some fifty begin to help",
        )
    if len(set(targets)) == 1:
        raise ComposirError(
            f"all {len(targets)} examples have the same target",
            file=file,
            expected="examples with different targets",
            fix="add some whose target is another picture",
        )
