"""Where the BLIP-2 backbones start: the weights of other projects and of this one, by this one's names, in order."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from pydantic import ValidationError
from torch import Tensor
from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

from composir.errors import ComposirError
from composir.models.composer import Composer
from composir.models.config import ComposerConfig
from composir.models.convert import HF_RULES, LAVIS_RULES, Rule, rename, their_name
from composir.models.fusion import GATE, NONE
from composir.models.fusion import WEIGHTS as FUSION_WEIGHTS
from composir.models.sources import CONFIG, FORMS, HF, OWN, Source, open_source, read_json
from composir.models.tensors import LazyTensors
from composir.models.vision import Tower
from composir.models.vit import LN_VISION_EPS, describe_vit, vit_network, vit_tower

NUM_HEADS_BY_HIDDEN = {768: 12}
"""Of every published Q-Former (BERT's): the number of heads does not show in weights."""
FRESH = ("prompt_tokens", "temperature", "itm_head.", *FUSION_WEIGHTS)
"""Starts of the names of weights that a file may lack: they start fresh."""
SIZE_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
    "encoder_width": "token_width",
    "num_query_tokens": "num_query_tokens",
    "embed_dim": "embed_dim",
}
"""What is read of a file given with ``--qformer-config``, and the field of ``ComposerConfig`` it is."""
VIT_HEADS = "vit_num_attention_heads"
EXPECTED = {
    "pretrain": "LAVIS's blip2_pretrained.pth, a .pt of SPRC, or Salesforce/blip2-itm-vit-g (hub id or folder)",
    "pretrain_vitL": "LAVIS's blip2_pretrained_vitL.pth, or a .pt of SPRC on ViT-L",
}
WIDTHS = {"pretrain": 1408, "pretrain_vitL": 1024}
"""Of the image tokens, by backbone."""
BLIP2_VOCABULARY = 30_523
"""BERT's uncased words and [DEC]."""
PUBLISHED = {
    "text_embeddings.word_embeddings.weight": (BLIP2_VOCABULARY, 768),
    "text_embeddings.position_embeddings.weight": (512, 768),
    "qformer.encoder.layer.0.crossattention.attention.key.weight": (768, WIDTHS["pretrain"]),
    "qformer.encoder.layer.0.intermediate.dense.weight": (3072, 768),
    "query_tokens": (1, 32, 768),
    "vision_proj.weight": (256, 768),
}
"""The weights whose shapes show a model's sizes, and their shapes in BLIP-2: what a file that lacks one should hold."""
INSTEAD = "give it with --weights, or train without any download: --backbone mini"
CLOSE = 0.8
MANY = 40
"""With more keys wrong than this the file is another model's, and near names say nothing."""


@dataclass(frozen=True)
class Start:
    """Pretrained parts of a model: sizes, weights and tower, by our names, and what became of the file's keys."""

    config: ComposerConfig
    weights: LazyTensors
    """All but the tower's, each read when asked for."""
    make_tower: Callable[[], Tower] | None
    """``None`` where there is none."""
    tower_weights: LazyTensors
    """By the names of ``Tower.state_dict``, in the file's own precision; empty for a checkpoint of this project."""
    tower: dict[str, Any] | None
    """What ``tower_identity`` returns of the tower, its fingerprint left out."""
    mapped: dict[str, str]
    dropped: dict[str, str]


@lru_cache(maxsize=1)
def read_backbone(backbone: str, weights: str) -> Start:
    """Return what the file, folder or hub id ``weights`` holds for a backbone of ``EXPECTED``."""
    if not weights:
        raise ComposirError(
            f"the backbone {backbone!r} needs pretrained weights, and none were given",
            expected=EXPECTED[backbone],
            fix=INSTEAD,
        )
    return read_start(open_source(weights), backbone=backbone)


def read_start(source: Source, sizes: Mapping[str, Any] | None = None, backbone: str = "") -> Start:
    """Return what a source holds, checked: every key has its place, and every place its key, of the right shape.

    ``sizes`` are the fields of a ``--qformer-config`` file. Raises ``ComposirError`` with all that is wrong.
    """
    if source.form == OWN:
        return _read_own(source)
    sizes = dict(sizes or {})
    rules: tuple[Rule, ...] = LAVIS_RULES
    norm_eps = LN_VISION_EPS
    if source.form == HF:
        rules = HF_RULES
        hub = _hub_config(source)
        vision, qformer = cast(Blip2VisionConfig, hub.vision_config), cast(Blip2QFormerConfig, hub.qformer_config)
        norm_eps = vision.layer_norm_eps
        sizes = {
            "num_attention_heads": qformer.num_attention_heads,
            VIT_HEADS: vision.num_attention_heads,
            **sizes,
        }
    renamed = rename(source.weights, rules)
    weights = LazyTensors(
        {name: partial(read_float, renamed.weights, name) for name in renamed.weights if not name.startswith("tower.")}
    )
    tower_weights = LazyTensors(
        {
            name.removeprefix("tower."): partial(renamed.weights.__getitem__, name)
            for name in renamed.weights
            if name.startswith("tower.")
        }
    )
    if not any(name.startswith("qformer.") for name in weights):
        raise ComposirError(
            f"holds no Q-Former: its keys are {', '.join(list(source.weights)[:4])}, ...",
            file=source.path,
            expected=FORMS[source.form],
            fix="check that it is the right file",
        )
    config = _config(source, weights, sizes, backbone)
    problems = _differences(_shapes(config), weights, rules)
    heads = sizes.get(VIT_HEADS)
    if tower_weights:
        problems += _tower_differences(tower_weights, rules, heads)
        width = next((tensor.shape[0] for name, tensor in tower_weights.items() if name == "network.norm.weight"), 0)
        if width and width != config.token_width:
            problems.append(f"the tower is {width} wide, and the Q-Former reads tokens {config.token_width} wide")
    problems += [f"unexpected {key}" for key in renamed.unknown]
    if problems:
        raise ComposirError(
            f"does not hold the weights of such a model: {'; '.join(with_nearest(problems))}",
            file=source.path,
            expected=FORMS[source.form],
            fix="check that it is the right file, and whole",
        )

    make_tower, tower = None, None
    if tower_weights:
        make_tower = partial(vit_tower, tower_weights, num_heads=heads, norm_eps=norm_eps, source=source.name)
        name, details = describe_vit(vit_network(tower_weights, num_heads=heads, norm_eps=norm_eps))
        tower = {"name": name, "weights": source.name, "details": details}
    return Start(config, weights, make_tower, tower_weights, tower, renamed.mapped, renamed.dropped)


def initialise(model: Composer, start: Start) -> None:
    """Give a fresh model the pretrained weights; what it lacks of them stays as it starts.

    A fusion in the file that the model is built without is left out.
    """
    own = model.own_weights()
    weights = {
        name: start.weights[name] for name in start.weights if name in own or not name.startswith(FUSION_WEIGHTS)
    }
    model.load_own_weights({**own, **weights})


def read_float(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a weight in float32, which is what the model computes with."""
    return weights[name].float()


def _read_own(source: Source) -> Start:
    from composir.models.checkpoint import parse_config, tower_of  # noqa: PLC0415 (it knows all backbones)

    config, identity = parse_config(source.config, source.path / CONFIG)
    assert isinstance(source.weights, LazyTensors)
    return Start(
        config,
        source.weights,
        (lambda: tower_of(config, identity, source.path)) if identity else None,
        LazyTensors({}),
        None,
        {},
        {},
    )


def _config(source: Source, weights: Mapping[str, Tensor], sizes: Mapping[str, Any], backbone: str) -> ComposerConfig:
    layers = {name.split(".")[3] for name in weights if name.startswith("qformer.encoder.layer.")}
    crossing = sorted({int(name.split(".")[3]) for name in weights if ".crossattention." in name})
    words, positions, keys, feed_forward, queries, projection = (
        tuple(weights[name].shape) if name in weights else shape for name, shape in PUBLISHED.items()
    )
    hidden = words[1]
    shown = {
        "token_width": keys[1],
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "intermediate_size": feed_forward[0],
        "cross_attention_frequency": min((layer for layer in crossing if layer), default=len(layers)),
        "vocab_size": words[0],
        "max_position_embeddings": positions[0],
        "num_query_tokens": queries[1],
        "embed_dim": projection[0],
    }
    given = {field: sizes[key] for key, field in SIZE_FIELDS.items() if key in sizes}
    wrong = [
        f"{key} is {sizes[key]} in the config and {shown[field]} in the weights"
        for key, field in SIZE_FIELDS.items()
        if key in sizes and field in shown and shown[field] != sizes[key]
    ]
    if wrong:
        raise ComposirError(
            f"holds a Q-Former of another size: {'; '.join(wrong)}",
            file=source.path,
            fix="give the config that belongs to the weights",
        )
    heads = given.get("num_attention_heads") or NUM_HEADS_BY_HIDDEN.get(hidden)
    if heads is None:
        raise ComposirError(
            f"the Q-Former is {hidden} wide, and weights do not show its number of heads",
            file=source.path,
            expected=f"a width of {', '.join(map(str, NUM_HEADS_BY_HIDDEN))}, or the number",
            fix="give num_attention_heads in a JSON file with --qformer-config",
        )
    if not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise ComposirError(
            f"num_attention_heads is {heads!r}",
            file=source.path,
            expected=f"a whole number that divides the hidden size {hidden}",
            fix="correct the file of --qformer-config",
        )
    found = next((name for name, width in WIDTHS.items() if width == shown["token_width"]), "pretrain")
    if backbone and shown["token_width"] in WIDTHS.values() and found != backbone:
        raise ComposirError(
            f"holds weights for image tokens {shown['token_width']} wide, not {WIDTHS[backbone]}",
            file=source.path,
            expected=EXPECTED[backbone],
            fix=f"--backbone {found}",
        )
    try:
        return ComposerConfig(
            backbone=backbone or found,
            num_attention_heads=heads,
            fusion=GATE if any(name.startswith("gated_fusion.") for name in weights) else NONE,
            matching_head="itm_head.weight" in weights,
            **shown,
        )
    except ValidationError as error:
        raise ComposirError(f"has sizes that make no model ({error})", file=source.path) from None


def _hub_config(source: Source) -> Blip2Config:
    if source.config.get("model_type") != "blip-2":
        raise ComposirError(
            f"is the config of a {source.config.get('model_type', 'nameless')!r} model",
            file=source.path / CONFIG,
            expected=FORMS[HF],
            fix="check that it is the right repository: blip2-itm-vit-g, not blip2-opt or blip2-flan-t5",
        )
    try:
        return Blip2Config.from_dict(dict(source.config))
    except (StrictDataclassError, TypeError, ValueError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ComposirError(
            f"is not a config that transformers reads ({reason})", file=source.path / CONFIG, expected=FORMS[HF]
        ) from None


def _shapes(config: ComposerConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Composer(config).own_weights().items()}


def _tower_differences(weights: Mapping[str, Tensor], rules: tuple[Rule, ...], num_heads: int | None) -> list[str]:
    try:
        network = vit_network(weights, num_heads=num_heads)
    except KeyError as error:
        return [f"missing {their_name(f'tower.{error.args[0]}', rules)}"]
    expected = {f"network.{name}": tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    return _differences(expected, weights, rules, "tower.")


def _differences(
    expected: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], rules: tuple[Rule, ...], prefix: str = ""
) -> list[str]:
    """Return what is missing, has no place or has another shape, by the names of the file."""
    missing = [name for name in expected if name not in weights and not name.startswith(tuple(FRESH))]
    extra = [name for name in weights if name not in expected]
    shapes = [
        f"{their_name(prefix + name, rules)} is {tuple(weights[name].shape)} instead of {expected[name]}"
        for name in expected
        if name in weights and tuple(weights[name].shape) != expected[name]
    ]
    return [
        *(f"missing {their_name(prefix + name, rules)}" for name in missing),
        *(f"unexpected {their_name(prefix + name, rules)}" for name in extra),
        *shapes,
    ]


def with_nearest(problems: list[str]) -> list[str]:
    """Return problems, a missing key with the nearest unexpected one and the other way round where one is near."""
    keys = {
        kind: [problem.removeprefix(f"{kind} ") for problem in problems if problem.startswith(f"{kind} ")]
        for kind in ("missing", "unexpected")
    }
    if max(map(len, keys.values())) > MANY:
        return problems
    told = []
    for problem in problems:
        kind, _, key = problem.partition(" ")
        others = keys["unexpected"] if kind == "missing" else keys["missing"] if kind == "unexpected" else []
        near = difflib.get_close_matches(key, others, n=1, cutoff=CLOSE)
        told.append(f"{problem} (nearest: {near[0]})" if near else problem)
    return told


def qformer_sizes(file: Path) -> dict[str, Any]:
    """Return the fields of a ``--qformer-config`` file; one without any that is read is a ``ComposirError``."""
    fields = read_json(file)
    if not set(fields) & {*SIZE_FIELDS, VIT_HEADS}:
        raise ComposirError(
            f"has none of the fields that are read: {', '.join([*SIZE_FIELDS, VIT_HEADS])}",
            file=file,
            fix="give the Q-Former's config, with num_attention_heads",
        )
    return fields
