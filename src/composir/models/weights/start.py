"""Where the BLIP-2 backbones start: the weights of other projects and of this one, by this one's names, in order."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import ValidationError
from torch import Tensor

from composir.errors import ComposirError, command, listed, wrong_fields
from composir.models.composer import Composer
from composir.models.config import CONFIG, ComposerConfig
from composir.models.fusion import GATE, NONE
from composir.models.fusion import WEIGHTS as FUSION_WEIGHTS
from composir.models.vision import Tower
from composir.models.vit import (
    LN_VISION_EPS,
    describe_vit,
    known_blocks,
    known_heads,
    vit_network,
    vit_tower,
)
from composir.models.weights.names import HF_RULES, LAVIS_RULES, Renamed, Rule, first_blocks, rename, their_name
from composir.models.weights.published import CLIP_FILE, EVA_FILE, EXPECTED
from composir.models.weights.sources import FORMS, HF, Source, language_model, read_json
from composir.models.weights.tensors import LazyTensors

if TYPE_CHECKING:
    from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

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
CLOSE = 0.8
MANY = 40
"""With more keys wrong than this the file is another model's, and near names say nothing."""
PATCHES = "network.transformer.embeddings.patch_embedding.weight"
"""The weight of a tower that shows its width."""
LN_VISION = "ln_vision."
"""Start of the names of the norm's weights behind a tower: LAVIS trains them, and so keeps them beside the Q-Former."""


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
    needs_sizes: bool
    """Whether the weights were understood only by the ``sizes`` given beside them."""
    mapped: dict[str, str]
    dropped: dict[str, str]


def read_start(source: Source, sizes: Mapping[str, Any] | None = None, backbone: str = "") -> Start:
    """Return what a source holds, checked: every key has its place, and every place its key, of the right shape.

    ``sizes`` are the fields of a ``--qformer-config`` file. Raises ``ComposirError`` with all that is wrong.
    """
    told = dict(sizes or {})
    sizes, norm_eps = _hub_sizes(source, told)
    rules = HF_RULES if source.form == HF else LAVIS_RULES
    renamed = rename(source.weights, rules)
    require_qformer(source)
    if source.tower is not None:
        renamed = _with_tower(source, renamed)
        sizes = _hub_sizes(source.tower, sizes)[0]
    renamed = _published_blocks(renamed)
    weights = LazyTensors(
        {name: partial(read_float, renamed.weights, name) for name in renamed.weights if not name.startswith("tower.")}
    )
    tower_weights = _tower_part(renamed)
    config = _config(source, weights, sizes, backbone)
    if tower_weights:
        config = config.model_copy(update={"ln_vision": True})
    problems = _differences(_shapes(config), weights, rules)
    heads = sizes.get(VIT_HEADS)
    problems += _tower_problems(tower_weights, rules, heads, config.token_width)
    problems += [f"unexpected {key}" for key in renamed.unknown]
    _require_none(problems, source)
    _require_finite(renamed.weights, rules, source)

    make_tower, tower = None, None
    if tower_weights:
        make_tower, tower = _tower_start(tower_weights, heads, norm_eps, source.name)
    return Start(
        config,
        weights,
        make_tower,
        tower_weights,
        tower,
        needs_sizes=_are_needed(told, config, tower_weights),
        mapped=renamed.mapped,
        dropped={**renamed.dropped, **source.beside},
    )


def _hub_sizes(source: Source, sizes: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """Return ``sizes`` with what the config of a folder of the hub's layout adds, and the epsilon of the norm."""
    if source.form != HF:
        return dict(sizes), LN_VISION_EPS
    hub = _hub_config(source)
    vision = cast("Blip2VisionConfig", hub.vision_config)
    qformer = cast("Blip2QFormerConfig", hub.qformer_config)
    shown = {"num_attention_heads": qformer.num_attention_heads, VIT_HEADS: vision.num_attention_heads}
    return {**shown, **sizes}, vision.layer_norm_eps


def _are_needed(sizes: Mapping[str, Any], config: ComposerConfig, tower_weights: Mapping[str, Tensor]) -> bool:
    """Return whether what a user told of the sizes is more than the weights show."""
    width = tower_weights[PATCHES].shape[0] if tower_weights else 0
    heads, vit_heads = sizes.get("num_attention_heads"), sizes.get(VIT_HEADS)
    return heads not in {None, NUM_HEADS_BY_HIDDEN.get(config.hidden_size)} or (
        bool(width) and vit_heads not in {None, known_heads(width)}
    )


def _tower_start(
    weights: LazyTensors, heads: int | None, norm_eps: float, source: str
) -> tuple[Callable[[], Tower], dict[str, Any]]:
    """Return what makes a tower, and what a checkpoint says of it but its fingerprint."""
    name, details = describe_vit(vit_network(weights, num_heads=heads, norm_eps=norm_eps))
    make = partial(vit_tower, weights, num_heads=heads, norm_eps=norm_eps, source=source)
    return make, {"name": name, "weights": source, "details": details}


def _tower_part(renamed: Renamed) -> LazyTensors:
    return LazyTensors(
        {
            name.removeprefix("tower."): partial(renamed.weights.__getitem__, name)
            for name in renamed.weights
            if name.startswith("tower.")
        }
    )


def require_qformer(source: Source) -> None:
    """Raise ``ComposirError`` that says what the weights are, where they are of no model that is meant."""
    renamed = rename(source.weights, HF_RULES if source.form == HF else LAVIS_RULES)
    words = language_model(list(source.weights))
    if words and not {"vision_proj.weight", "text_embeddings.word_embeddings.weight"} <= set(renamed.weights):
        raise ComposirError(
            f"is a model that answers in words, with {words}: it has no embeddings to compare",
            file=source.path,
            expected=FORMS[source.form],
            fix="give BLIP-2's first stage: blip2_pretrained.pth, blip2_pretrained_vitL.pth or blip2-itm-vit-g",
        )
    if any(key.startswith("Qformer_query.") for key in source.weights):
        raise ComposirError(
            "has a Q-Former of its own for queries (Qformer_query, as SPN4CIR's second stage trains one)",
            file=source.path,
            expected="one Q-Former for queries and candidates: half of this file would be another model",
        )
    if any(name.startswith("qformer.") for name in renamed.weights):
        return
    if any(name.startswith("tower.network.transformer.") for name in renamed.weights):
        is_clip = "visual_encoder.conv1.weight" in source.weights
        model = f"blip2_pretrained{'_vitL' if is_clip else ''}.pth"
        raise ComposirError(
            f"is the vision tower alone, {'CLIP ViT-L' if is_clip else 'EVA ViT-g'}, with no Q-Former",
            file=source.path,
            expected=f"it beside the file it belongs to, such as {model}",
            fix=command("convert", "--from", source.form, model, "--vision-tower", source.path, "--out", "DIR"),
        )
    is_hub = any(key.startswith(("qformer.encoder.", "vision_model.")) for key in source.weights)
    raise ComposirError(
        f"holds no Q-Former: its keys are {', '.join(list(source.weights)[:4])}, ...",
        file=source.path,
        expected=FORMS[source.form],
        fix="these are the hub's names: give the folder, with its config.json, to --from hf"
        if is_hub
        else "check that it is the right file",
    )


def _with_tower(source: Source, renamed: Renamed) -> Renamed:
    """Return the model's weights and the vision tower's of another file, whose own norm is left out."""
    assert source.tower is not None
    if any(name.startswith("tower.") for name in renamed.weights):
        raise ComposirError(
            "has a vision tower of its own", file=source.path, fix="leave out --vision-tower, or give another file"
        )
    tower = rename(source.tower.weights, HF_RULES if source.tower.form == HF else LAVIS_RULES)
    theirs = {name: partial(tower.weights.__getitem__, name) for name in tower.weights if name.startswith("tower.")}
    if not theirs:
        raise ComposirError(
            "holds no vision tower",
            file=source.tower.path,
            expected=f"LAVIS's {EVA_FILE} or {CLIP_FILE}, or another file or folder with such a tower",
            fix="check --vision-tower",
        )
    read = {name: partial(renamed.weights.__getitem__, name) for name in renamed.weights}
    reason = "the norm behind the tower comes with the Q-Former"
    norm = {key: reason for key, name in tower.mapped.items() if name.startswith(LN_VISION)}
    return Renamed(
        LazyTensors({**read, **theirs}),
        {**renamed.mapped, **{key: name for key, name in tower.mapped.items() if name.partition(",")[0] in theirs}},
        {**renamed.dropped, **{key: why for key, why in tower.dropped.items() if _is_of_tower(key)}, **norm},
        (*renamed.unknown, *(key for key in tower.unknown if _is_of_tower(key))),
    )


def _is_of_tower(key: str) -> bool:
    return key.startswith(("visual_encoder.", "vision_model."))


def _published_blocks(renamed: Renamed) -> Renamed:
    """Return weights without the blocks of a published tower that BLIP-2 does not have."""
    patches = f"tower.{PATCHES}"
    width = renamed.weights[patches].shape[0] if patches in renamed.weights else 0
    num_blocks = known_blocks(width)
    return first_blocks(renamed, num_blocks) if num_blocks else renamed


def _tower_problems(
    weights: Mapping[str, Tensor], rules: tuple[Rule, ...], heads: int | None, token_width: int
) -> list[str]:
    """Return what is wrong with a tower, where there is one."""
    width = weights[PATCHES].shape[0] if PATCHES in weights else token_width
    if width != token_width:  # another tower's: what else is wrong says nothing
        return [f"the tower is {width} wide, and the Q-Former reads tokens {token_width} wide"]
    return _tower_differences(weights, rules, heads) if weights else []


def _require_none(problems: Sequence[str], source: Source) -> None:
    if problems:
        raise ComposirError(
            f"does not hold the weights of such a model: {list_problems(with_nearest(problems))}",
            file=source.path,
            expected=FORMS[source.form],
            fix="check that it is the right file, and whole",
        )


def _require_finite(weights: Mapping[str, Tensor], rules: tuple[Rule, ...], source: Source) -> None:
    """Raise ``ComposirError`` with the names of weights that hold what is no number, or infinite."""
    broken = [their_name(name, rules) for name in not_finite(weights)]
    if broken:
        raise ComposirError(
            f"holds weights that are not numbers, or infinite: {listed(broken)}",
            file=source.path,
            expected="finite numbers; such a training had failed before it was saved",
            fix="give a checkpoint from before that",
        )


def initialise(model: Composer, start: Start) -> None:
    """Give a fresh model the pretrained weights; what it lacks of them stays as it starts.

    A fusion in the file that the model is built without is left out.
    """
    own = model.own_weights()
    weights = {
        name: start.weights[name] for name in start.weights if name in own or not name.startswith(FUSION_WEIGHTS)
    }
    model.load_own_weights({**own, **weights})


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the weights in which a number is NaN or infinite; one is in memory at a time."""
    return [name for name in weights if not _is_finite(weights[name])]


def _is_finite(weight: Tensor) -> bool:
    """Return whether all numbers are finite: by the smallest and the largest, a tenth of the time of looking at each.

    Either is NaN where one of them is.
    """
    return not weight.numel() or all(end.isfinite() for end in weight.aminmax())


def read_float(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a weight in float32, which is what the model computes with."""
    return weights[name].float()


def join_tower(start: Start, source: Source, sizes: dict[str, Any]) -> Start:
    """Return what a checkpoint of this project without a vision tower starts, with the tower of another file."""
    assert source.tower is not None
    if start.make_tower is not None:
        raise ComposirError("has its vision tower already", file=source.path, fix="leave it as it is")
    if not start.config.ln_vision:
        raise ComposirError(
            "has no weights of the norm between a vision tower and the Q-Former (ln_vision)",
            file=source.path,
            expected="a folder that composir convert made of weights without a tower",
            fix="convert the weights again, with --vision-tower",
        )
    renamed = _published_blocks(_with_tower(source, Renamed(LazyTensors({}), {}, {}, ())))
    sizes, _ = _hub_sizes(source.tower, sizes)
    rules = HF_RULES if source.tower.form == HF else LAVIS_RULES
    weights, heads = _tower_part(renamed), sizes.get(VIT_HEADS)
    problems = _tower_problems(weights, rules, heads, start.config.token_width)
    _require_none([*problems, *(f"unexpected {key}" for key in renamed.unknown)], source.tower)
    _require_finite(renamed.weights, rules, source.tower)
    make_tower, tower = _tower_start(weights, heads, LN_VISION_EPS, source.tower.name)
    return replace(
        start,
        make_tower=make_tower,
        tower_weights=weights,
        tower=tower,
        mapped={**dict(zip(start.weights, start.weights, strict=True)), **renamed.mapped},
        dropped=renamed.dropped,
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
            ln_vision=f"{LN_VISION}weight" in weights,
            **shown,
        )
    except ValidationError as error:
        wrong = "; ".join(wrong_fields(error, ComposerConfig))
        raise ComposirError(f"has sizes that make no model ({wrong})", file=source.path) from None


def _hub_config(source: Source) -> Blip2Config:
    from huggingface_hub.errors import StrictDataclassError  # noqa: PLC0415 (with transformers)
    from transformers import Blip2Config  # noqa: PLC0415 (seconds, and only the hub's layout has such a config)

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


def list_problems(problems: Sequence[str]) -> str:
    """Return problems in one line, of every kind (missing, unexpected, other) some where they are many."""
    kinds = ("missing ", "unexpected ")
    other = [problem for problem in problems if not problem.startswith(kinds)]
    return listed(*([one for one in problems if one.startswith(kind)] for kind in kinds), other, separator="; ")


def with_nearest(problems: Sequence[str]) -> list[str]:
    """Return problems, a missing key with the nearest unexpected one and the other way round where one is near."""
    keys = {
        kind: [problem.removeprefix(f"{kind} ") for problem in problems if problem.startswith(f"{kind} ")]
        for kind in ("missing", "unexpected")
    }
    if max(map(len, keys.values())) > MANY:
        return list(problems)
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
