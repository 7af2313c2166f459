"""A run of the composed-retrieval model: tower, Q-Former and fusion, on image tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from composir.evaluation import Embedder
from composir.features import CachedEmbedder
from composir.models.backbones import build
from composir.models.checkpoint import model_card, save_pretrained, weights_hash
from composir.token_cache import TokenPlace, fill_splits, make_cache
from composir.training.batches import Batches
from composir.training.features import with_size
from composir.training.log import Log, RunLog, examples_of
from composir.training.loop import Run
from composir.training.memory import Memory

NUM_STATISTICS_IMAGES = 1024
"""Training images whose tokens fit the channel statistics of towers that need them."""
NUM_CENTER_TRIPLETS = 256


class ComposerRun(Run):
    """The run of a whole model, all of which but the tower is trained."""

    def make(self, place: TokenPlace) -> None:
        """Make the fresh model, and what reads its batches and measures them."""
        recipe = self.recipe
        self.model = build(
            recipe.backbone,
            recipe.weights,
            fusion=recipe.fusion,
            alpha_init=recipe.alpha_init,
            gate_layer_norm=recipe.gate_layer_norm,
            gate_pooling=recipe.gate_pooling,
            transform=recipe.transform,
            target_ratio=recipe.target_ratio,
        ).to(self.accelerator.device)
        assert self.model.tower is not None
        self.model.qformer.gradient_checkpointing = recipe.gradient_checkpointing
        if self.model.ln_vision is not None:
            self.model.ln_vision.requires_grad_(recipe.train_ln_vision)
        self.tokens = make_cache(self.model.tower, place)
        self.batches = Batches(recipe, self.train_splits, self.model, self.tokens)
        texts = [query.text for _, query in self.batches.triplets]
        self.memory = Memory(self.model, recipe, texts, self.accelerator)
        self.examples = examples_of(self.model.tower, self.val_splits)

    def embedder(self) -> Embedder:
        """Return the model as evaluation asks it."""
        return CachedEmbedder(self.model, self.tokens)

    def weights_hash(self) -> str:
        """Return what identifies the model as it is."""
        return weights_hash(self.model)

    def save_model(self, folder: Path, about: str, files: Mapping[str, bytes]) -> None:
        """Write the model's folder with ``about`` on its card and further ``files``."""
        save_pretrained(self.model, folder, card=model_card(self.model.config, about), extra_files=files)

    def make_log(self) -> Log:
        """Return what writes the run down, from this step on."""
        return RunLog(self.run, self.model, self.batches, self.examples, first_step=self.state.step)

    @property
    def alpha(self) -> Tensor | None:
        """The gate's one scalar, for the log."""
        return None if self.model.gated_fusion is None else self.model.gated_fusion.alpha

    def fill(self, share: tuple[int, int] = (0, 1)) -> None:
        """Make the tokens of all images present, or of a share of them, for several processes at once."""
        tell = with_size(self.tokens, self.observer.on_features)
        fill_splits(self.tokens, [*self.train_splits, *self.val_splits], tell, share=share)

    def take_largest_batch(self) -> None:
        """Let the batch be the largest power of two that fits; raise ``ComposirError`` where none can be told."""
        size = self.memory.largest_batch(self.train_splits[0].file)
        self.recipe = self.batches.recipe = self.recipe.model_copy(update={"batch_size": size})

    def require_room(self) -> None:
        """Raise ``ComposirError`` where what a training of this size surely needs is more than there is."""
        self.memory.require_room(self.batches.size)

    def prepare(self) -> None:
        """Fit what a fresh model takes from the training data: channel statistics, a gate, centred heads."""
        generator = np.random.default_rng(self.recipe.seed)
        if self.model.standardise is not None:
            paths = sorted({path for split in self.train_splits for path in split.images.values()}, key=str)
            chosen = generator.permutation(len(paths))[:NUM_STATISTICS_IMAGES]
            self.model.standardise.fit(self.tokens([paths[index] for index in sorted(chosen)]))
        if self.recipe.gate_identity_start:
            self.model.start_fusions_as_identity()
        if self.recipe.center_embeddings:
            triplets = self.batches.triplets
            chosen = generator.permutation(len(triplets))[:NUM_CENTER_TRIPLETS]
            self.model.eval().center(*self.batches.inputs([triplets[index] for index in sorted(chosen)], None)[:4])
