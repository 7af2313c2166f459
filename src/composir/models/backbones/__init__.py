"""The backbones: which tower, which Q-Former, which words, what each starts from. A new one is a file and a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from composir.errors import ComposirError, nearest
from composir.machine import keep_freed_memory
from composir.models.backbones.base import Backbone
from composir.models.backbones.blip2 import blip2_tokenizer
from composir.models.backbones.mini import MINI, lite_tower
from composir.models.backbones.tiny import TINY, tiny_tower
from composir.models.composer import Composer
from composir.models.config import CONFIG, TOWER, ComposerConfig, parse_config
from composir.models.fusion import GATE
from composir.models.vision import Tower
from composir.models.vit import CLIP, EVA, NORM, LastHidden, vit_tower
from composir.models.weights.published import CLIP_FILE, EVA_FILE, EXPECTED, no_weights
from composir.models.weights.sources import (
    FORMER_LN_VISION,
    OWN,
    Source,
    convert_command,
    open_safetensors,
    open_source,
)
from composir.models.weights.start import WIDTHS, Start, initialise, join_tower, read_start
from composir.models.weights.tensors import LazyTensors
from composir.tables import Table


def find_backbone(name: str, weights: str = "", *, file: Path | str | None = None) -> Backbone:
    """Return the backbone of ``BACKBONES``; ``file`` is where its name was read, if from a file.

    Raises ``ComposirError`` for an unknown name, and for ``weights`` that the backbone has no use for.
    """
    if name not in BACKBONES:
        raise ComposirError(f"backbone {name!r} is not known", file=file, fix=nearest(str(name), BACKBONES))
    backbone = BACKBONES[name]
    if weights and not backbone.needs_weights:
        raise ComposirError(
            f"the backbone {name!r} takes no weights, and {weights} was given",
            file=file,
            expected=f"--weights with {' or '.join(key for key, one in BACKBONES.items() if one.needs_weights)}",
            fix='leave --weights out (in a recipe.toml: weights = ""), or name the backbone that they are of',
        )
    return backbone


def build(backbone: str, weights: str = "", **settings: object) -> Composer:
    """Return a fresh model of a backbone of ``BACKBONES``; ``settings`` override fields of its config.

    ``weights`` is the folder or file of the backbone's pretrained weights, where they are not in a pip package.
    """
    keep_freed_memory()
    parts = find_backbone(backbone, weights)
    config = ComposerConfig(**{**parts.config(weights).model_dump(), "backbone": backbone, **settings})
    model = Composer(config, tower=parts.tower(weights), tokenizer=parts.tokenizer())
    parts.initialise(model, weights)
    return model


def _blip2_tower(backbone: str, weights: str) -> Tower:
    make_tower = read_backbone(backbone, weights).make_tower
    if make_tower is None:
        file = CLIP_FILE if backbone == "pretrain_vitL" else EVA_FILE
        raise ComposirError(
            "holds no vision tower: the model would work on image tokens only",
            file=weights,
            expected=EXPECTED[backbone],
            fix=f"give a folder with {file} beside it, or join the two: {convert_command(open_source(weights))}",
        )
    return make_tower()


def _blip2(backbone: str) -> Backbone:
    return Backbone(
        config=lambda weights: read_backbone(backbone, weights).config.model_copy(update={"fusion": GATE}),
        tower=lambda weights: _blip2_tower(backbone, weights),
        tokenizer=blip2_tokenizer,
        initialise=lambda model, weights: initialise(model, read_backbone(backbone, weights)),
        recipes={"": "blip2-cirr.toml", "FashionIQ": "blip2-fashioniq.toml"},
        needs_weights=True,
    )


BACKBONES: Table[Backbone] = Table(
    "backbones",
    {
        "tiny": TINY,
        "mini": MINI,
        "pretrain": _blip2("pretrain"),
        "pretrain_vitL": _blip2("pretrain_vitL"),
    },
)

TOWERS: Table[Callable[[Mapping[str, Tensor], Mapping[str, str]], Tower]] = Table(
    "towers",
    {
        "tiny": lambda weights, _: tiny_tower(weights),
        "efficientnet-lite0": lambda weights, _: lite_tower(weights),
        **dict.fromkeys(
            (EVA, CLIP),
            lambda weights, details: vit_tower(
                weights, num_heads=int(details["num_heads"]), norm_eps=float(details["norm_eps"])
            ),
        ),
    },
)
"""How a tower is made of weights that a checkpoint brings along, by ``Tower.name``, and of ``Tower.details``."""


@lru_cache(maxsize=1)
def read_backbone(backbone: str, weights: str) -> Start:
    """Return what the file, folder or hub id ``weights`` holds for a backbone of ``EXPECTED``."""
    if not weights:
        raise no_weights(backbone)
    return read_source(open_source(weights, width=WIDTHS[backbone]), backbone=backbone)


def read_source(source: Source, sizes: Mapping[str, Any] | None = None, backbone: str = "") -> Start:
    """Return what a source holds, this project's or another's: see ``read_start``."""
    if source.form != OWN:
        return read_start(source, sizes, backbone)
    own = read_own(source)
    return own if source.tower is None else join_tower(own, source, dict(sizes or {}))


def read_own(source: Source) -> Start:
    """Return what a checkpoint of this project starts."""
    config, identity = read_config(source.config, source.path / CONFIG)
    assert isinstance(source.weights, LazyTensors)
    weights, norm = source.weights, source.path / FORMER_LN_VISION
    if identity is None and norm.is_file():
        former = open_safetensors(norm)[0]
        affine = {name.replace(NORM, "ln_vision."): partial(former.__getitem__, name) for name in former}
        weights = LazyTensors({**{name: partial(weights.__getitem__, name) for name in weights}, **affine})
        config = config.model_copy(update={"ln_vision": True})
    return Start(
        config,
        weights,
        (lambda: tower_of(config, identity, source.path)) if identity else None,
        LazyTensors({}),
        None,
        needs_sizes=False,
        mapped={},
        dropped={},
    )


def read_config(document: Mapping[str, Any], file: Path) -> tuple[ComposerConfig, dict[str, str] | None]:
    """Return what ``parse_config`` does, of a backbone that is known; another one is a ``ComposirError``."""
    config, tower = parse_config(document, file)
    if config.backbone not in BACKBONES:
        raise ComposirError(
            f"backbone {config.backbone!r} is not known",
            file=file,
            expected=f"one of {', '.join(BACKBONES)}",
            fix="a newer composir may know it",
        )
    return config, tower


def _with_norm(tower: Tower, weights: Mapping[str, Tensor]) -> Tower:
    """Return the tower with the scale and shift that former checkpoints have there, where they are in the weights."""
    if "ln_vision.weight" not in weights:
        return tower
    norm = {f"{NORM}{name}": weights[f"ln_vision.{name}"] for name in ("weight", "bias")}
    former = TOWERS[tower.name]({**tower.state_dict(), **norm}, tower.details)
    former.weights = tower.weights
    return former


def tower_of(config: ComposerConfig, identity: Mapping[str, str], folder: Path) -> Tower:
    """Return the tower that a checkpoint folder holds, or names, and check its hash."""
    source = identity.get("weights", "")
    if Path(source).name == TOWER:
        weights, details = open_safetensors(folder / source)
        if details.get("name") not in TOWERS:
            raise ComposirError(
                f"holds a tower {details.get('name')!r}, which is not known",
                file=folder / source,
                expected=f"one of {', '.join(TOWERS)}",
                fix="a newer composir may know it",
            )
        try:
            tower = TOWERS[details["name"]](weights, details)
        except (KeyError, ValueError, RuntimeError):  # a name or a shape that the network has not
            raise ComposirError(
                f"does not hold the weights of a tower {details['name']!r}",
                file=folder / source,
                fix="copy the tower.safetensors of the same checkpoint",
            ) from None
        tower.weights = str((folder / source).resolve())
    else:
        try:
            tower = BACKBONES[config.backbone].tower(source)
            if not config.ln_vision and isinstance(tower.network, LastHidden):
                tower = _with_norm(tower, read_backbone(config.backbone, source).weights)
        except ComposirError as error:
            if not source:
                raise
            raise ComposirError(
                f"leaves out its vision tower {identity.get('name')}, which was read from {source}: {error}",
                file=folder,
                fix=f"write where the tower's weights are under tower.weights in {CONFIG}, "
                "or have the checkpoint made with --embed-tower",
            ) from None
    if tower.fingerprint() != identity.get("fingerprint"):
        raise ComposirError(
            f"was made with tower weights {identity.get('fingerprint')}, here they are {tower.fingerprint()}",
            file=folder / CONFIG,
            expected="the same frozen tower",
            fix=f"install the {identity.get('name')} weights the model was trained with",
        )
    return tower
