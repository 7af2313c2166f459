"""``composir convert``: weights of another project into a checkpoint folder, and a checkpoint into SPRC's file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composir.errors import ComposirError, listed
from composir.files import replacing
from composir.models.backbones import read_source
from composir.models.backbones.blip2 import blip2_tokenizer
from composir.models.checkpoint import model_card, write_folder
from composir.models.composer import Composer
from composir.models.config import TOKENIZER, ComposerConfig
from composir.models.fusion import GATE, NONE
from composir.models.randomness import random_numbers_aside
from composir.models.text import Tokenizer
from composir.models.vision import hash_weights
from composir.models.vit import NORM
from composir.models.weights.names import to_lavis
from composir.models.weights.sources import FORMS, OWN, Layout, open_source
from composir.models.weights.start import BLIP2_VOCABULARY, FRESH, qformer_sizes, read_float
from composir.models.weights.tensors import LazyTensors

SPRC_CLASS = "Blip2QformerCirAlignPrompt"
"""Under which SPRC's training saves its state dict, and its validation looks for it."""


@dataclass(frozen=True)
class Dropped:
    """A key of the source that was left out on purpose."""

    key: str
    reason: str


@dataclass(frozen=True)
class Conversion:
    """What became of the keys of a source."""

    out: Path
    mapped: dict[str, str]
    """The new name of every key taken over."""
    dropped: tuple[Dropped, ...]
    fresh: tuple[str, ...]
    """Weights of the model that the source does not hold: they start at random."""
    tower: str
    """``embedded``, ``referenced`` or ``none``."""
    has_tokenizer: bool
    layout: Layout
    """How the source held its weights."""

    def to_json(self) -> dict[str, Any]:
        """Return the document of ``composir convert --json``."""
        return {**asdict(self), "out": str(self.out), "dropped": [asdict(one) for one in self.dropped]}


def convert(
    source: str,
    form: str,
    out: Path,
    *,
    qformer_config: Path | None = None,
    gated_fusion: bool | None = None,
    embed_tower: bool = False,
    vision_tower: str | None = None,
    state: str = "",
    seed: int = 0,
) -> Conversion:
    """Return what became of the keys of ``source``, whose weights are then in the checkpoint folder ``out``.

    ``gated_fusion`` on adds a fresh gate where the source has none, off leaves out the one it has. ``vision_tower`` is
    the file of a tower that the source, which may be a checkpoint of this project, has not. ``state`` chooses among
    several sets of weights in one file. Weights are read and written one at a time.

    The tower is stored where ``embed_tower`` asks for it, and where reading the source again would not bring it back:
    it was joined from another file, its file holds several sets, or ``qformer_config`` told its sizes.

    Raises ``ComposirError``, and writes nothing, where the source is not of the ``form``, lacks a weight, holds one
    without a place or one that is no number, or ``out`` is there already.
    """
    _require_absent(out)
    if form == OWN and vision_tower is None:
        raise ComposirError(
            "is a checkpoint of composir, which needs no conversion",
            file=source,
            fix="give --vision-tower to join a vision tower to one that has none",
        )
    opened = open_source(source, form, state=state)
    if vision_tower is not None:
        if opened.tower is not None:
            raise ComposirError(
                f"holds a vision tower of its own, {opened.tower.path.name}",
                file=source,
                fix="leave out --vision-tower, or give the file instead of the folder",
            )
        opened = replace(opened, tower=open_source(vision_tower))
    start = read_source(opened, qformer_sizes(qformer_config) if qformer_config else None)
    config = start.config
    if gated_fusion is not None:
        config = config.model_copy(update={"fusion": GATE if gated_fusion else NONE})
    fresh = _fresh(config, start.weights, seed)
    weights = dict.fromkeys(start.weights, start.weights.__getitem__)
    mapped, dropped = dict(start.mapped), dict(start.dropped)
    if config.fusion == NONE:
        for key, name in start.mapped.items():
            if name.startswith("gated_fusion."):
                del weights[name], mapped[key]
                dropped[key] = "the gate is off"
    if form == OWN:
        words = opened.path / TOKENIZER
        tokenizer = Tokenizer.load(words) if words.is_file() else None
    else:
        tokenizer = _tokenizer(config.vocab_size, opened.path)
    tower = start.tower
    embed_tower = embed_tower or vision_tower is not None or start.needs_sizes or bool(opened.layout.others)
    if tower is not None and embed_tower:
        tower = {**tower, "fingerprint": ""}  # of what is stored, which is hashed there
    elif tower is not None:
        floats = LazyTensors({name: partial(read_float, start.tower_weights, name) for name in start.tower_weights})
        tower = {**tower, "fingerprint": hash_weights(floats)}
    write_folder(
        out,
        config,
        LazyTensors({name: partial(read, name) for name, read in {**weights, **fresh}.items()}),
        tower=tower,
        tower_weights=start.tower_weights if tower is not None and embed_tower else None,
        tokenizer=tokenizer,
        card=model_card(config, f"Converted from {FORMS[form]}: `{opened.path.name}`."),
    )
    return Conversion(
        out=out,
        mapped=mapped,
        dropped=tuple(Dropped(key, reason) for key, reason in dropped.items()),
        fresh=tuple(fresh),
        tower="none" if tower is None else "embedded" if embed_tower else "referenced",
        has_tokenizer=tokenizer is not None,
        layout=opened.layout,
    )


def export_sprc(source: str, out: Path) -> Conversion:
    """Return what became of the names of a checkpoint's weights, which are then in the file ``out`` as SPRC saves them.

    The vision tower goes along where the checkpoint has one. Raises ``ComposirError``, and writes nothing, where
    SPRC's model has no place for a weight, or ``out`` is there already.
    """
    _require_absent(out)
    start = read_source(open_source(source, OWN))
    own: dict[str, Tensor] = dict(start.weights)
    if start.make_tower is not None:
        for name, tensor in start.make_tower().state_dict().items():
            own[name.replace(NORM, "ln_vision.") if name.startswith(NORM) else f"tower.{name}"] = tensor
    renamed = to_lavis(own)
    if renamed.unknown:
        raise ComposirError(
            f"has weights that SPRC's model has no place for: {listed(renamed.unknown)}",
            file=source,
            expected="a checkpoint on a BLIP-2 backbone: pretrain or pretrain_vitL",
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        state = {name: tensor.contiguous() for name, tensor in renamed.weights.items()}
        torch.save({"epoch": 0, SPRC_CLASS: state}, temporary)
    return Conversion(
        out=out,
        mapped=renamed.mapped,
        dropped=(),
        fresh=(),
        tower="none" if start.make_tower is None else "embedded",
        has_tokenizer=False,
        layout=Layout(),
    )


def _fresh(config: ComposerConfig, weights: Mapping[str, Tensor], seed: int) -> dict[str, Callable[[str], Tensor]]:
    """Return, by name, the start of every weight of ``FRESH`` that the source lacks."""
    # What these start as depends on none of the sizes made small here, and the rest of the model is not needed.
    small = config.model_copy(update={"num_hidden_layers": 1, "vocab_size": 1, "max_position_embeddings": 1})
    with random_numbers_aside(seed):
        start = Composer(small).own_weights()
    return {name: start.__getitem__ for name in start if name.startswith(FRESH) and name not in weights}


def _tokenizer(vocab_size: int, source: Path) -> Tokenizer | None:
    """Return BLIP-2's tokenizer, ``None`` for weights of another vocabulary, whose words nobody has told."""
    if vocab_size != BLIP2_VOCABULARY:
        return None
    tokenizer = blip2_tokenizer()
    if (source / TOKENIZER).is_file():
        tokenizer.check_same_words(source / TOKENIZER)
    return tokenizer


def _require_absent(out: Path) -> None:
    if out.exists():
        raise ComposirError("already exists", file=out, fix="give another --out, or delete it")
