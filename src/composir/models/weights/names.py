"""Weights of other projects under this one's names and back: explicit key maps, nothing dropped in silence."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from composir.models.weights.tensors import LazyTensors

BLOCK = "tower.network.transformer.encoder.layers.{n}."
"""A block of a vision transformer, by our names."""


class Rule(NamedTuple):
    """Their name and ours. One that ends in a dot is the start of a name; ``{n}`` is a number."""

    theirs: str
    ours: str | None
    """``None`` drops the key on purpose."""
    reason: str = ""
    """Why it is dropped."""


QFORMER_RULES = (
    Rule("Qformer.bert.embeddings.word_embeddings.", "text_embeddings.word_embeddings."),
    Rule("Qformer.bert.embeddings.position_embeddings.", "text_embeddings.position_embeddings."),
    Rule("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    Rule("Qformer.bert.embeddings.position_ids", None, "positions are counted, not stored"),
    Rule("Qformer.bert.encoder.layer.{n}.attention.self.", "qformer.encoder.layer.{n}.attention.attention."),
    Rule("Qformer.bert.encoder.layer.{n}.crossattention.self.", "qformer.encoder.layer.{n}.crossattention.attention."),
    Rule("Qformer.bert.encoder.", "qformer.encoder."),
    Rule("Qformer.cls.", None, "the head that predicts words is used in BLIP-2's pretraining only"),
    Rule("query_tokens", "query_tokens"),
    Rule("prompt_tokens", "prompt_tokens"),
    Rule("ln_vision.", "ln_vision."),
    Rule("vision_proj.", "vision_proj."),
    Rule("text_proj.", "text_proj."),
    Rule("itm_head.", "itm_head."),
    Rule("temp", "temperature"),
    Rule("gated_fusion.", "gated_fusion."),
    Rule("Fformer.", None, "a frozen copy of the Q-Former that only the training of SPRC's re-ranking model reads"),
    Rule("query_tokens_f", None, "a frozen copy, as Fformer"),
    Rule("vision_proj_f.", None, "a frozen copy, as Fformer"),
    Rule("text_proj_f.", None, "a frozen copy, as Fformer"),
)
BEHIND_TOWER = "BLIP-2 reads the tower before what stands behind its blocks"
EVA_RULES = (
    Rule("visual_encoder.norm.", None, BEHIND_TOWER),
    Rule("visual_encoder.fc_norm.", None, BEHIND_TOWER),
    Rule("visual_encoder.head.", None, BEHIND_TOWER),
    Rule("visual_encoder.lm_head.", None, BEHIND_TOWER),
    Rule("visual_encoder.mask_token", None, "stands for hidden patches in EVA's own training only"),
    Rule("visual_encoder.cls_token", "tower.network.transformer.embeddings.class_embedding"),
    Rule("visual_encoder.pos_embed", "tower.network.transformer.embeddings.position_embedding"),
    Rule("visual_encoder.patch_embed.proj.", "tower.network.transformer.embeddings.patch_embedding."),
    Rule("visual_encoder.blocks.{n}.norm1.", BLOCK + "layer_norm1."),
    Rule("visual_encoder.blocks.{n}.norm2.", BLOCK + "layer_norm2."),
    Rule("visual_encoder.blocks.{n}.attn.qkv.", BLOCK + "self_attn.qkv."),
    Rule("visual_encoder.blocks.{n}.attn.proj.", BLOCK + "self_attn.projection."),
    Rule("visual_encoder.blocks.{n}.mlp.", BLOCK + "mlp."),
)
CLIP_RULES = (
    Rule("visual_encoder.ln_post.", None, BEHIND_TOWER),
    Rule("visual_encoder.proj", None, BEHIND_TOWER),
    Rule("visual_encoder.class_embedding", "tower.network.transformer.embeddings.class_embedding"),
    Rule("visual_encoder.positional_embedding", "tower.network.transformer.embeddings.position_embedding.weight"),
    Rule("visual_encoder.conv1.", "tower.network.transformer.embeddings.patch_embedding."),
    Rule("visual_encoder.ln_pre.", "tower.network.transformer.pre_layrnorm."),
    Rule("visual_encoder.transformer.resblocks.{n}.ln_1.", BLOCK + "layer_norm1."),
    Rule("visual_encoder.transformer.resblocks.{n}.ln_2.", BLOCK + "layer_norm2."),
    Rule("visual_encoder.transformer.resblocks.{n}.attn.q_proj.", BLOCK + "self_attn.q_proj."),
    Rule("visual_encoder.transformer.resblocks.{n}.attn.k_proj.", BLOCK + "self_attn.k_proj."),
    Rule("visual_encoder.transformer.resblocks.{n}.attn.v_proj.", BLOCK + "self_attn.v_proj."),
    Rule("visual_encoder.transformer.resblocks.{n}.attn.out_proj.", BLOCK + "self_attn.out_proj."),
    Rule("visual_encoder.transformer.resblocks.{n}.mlp.c_fc.", BLOCK + "mlp.fc1."),
    Rule("visual_encoder.transformer.resblocks.{n}.mlp.c_proj.", BLOCK + "mlp.fc2."),
)
LAVIS_RULES = (*QFORMER_RULES, *EVA_RULES, *CLIP_RULES)
"""The names of LAVIS's BLIP-2 and of SPRC, and ours. Two things in a tower are no mere names, see ``split_keys``."""

HF_RULES = (
    Rule("embeddings.position_ids", None, "positions are counted, not stored"),
    Rule("embeddings.", "text_embeddings."),
    Rule("qformer.", "qformer."),
    Rule("itm_head.", "itm_head."),
    Rule("query_tokens", "query_tokens"),
    Rule("vision_projection.", "vision_proj."),
    Rule("text_projection.", "text_proj."),
    Rule("vision_model.post_layernorm.", "ln_vision."),
    Rule("vision_model.", "tower.network.transformer."),
)
"""Hugging Face's names (``Blip2ForImageTextRetrieval``) and ours."""

_IN_PROJ = re.compile(r"(.*\.attn\.)in_proj_(weight|bias)$")
_QKV_BIAS = re.compile(r"(.*\.attn\.)(?:q|v)_bias$")
_OWN_QKV_BIAS = re.compile(r"tower\..*\.self_attn\.qkv\.bias$")
_OWN_Q_PROJ = re.compile(r"(tower\..*\.self_attn\.)q_proj\.(weight|bias)$")
_OWN_BLOCK = re.compile(r"tower\.network\.transformer\.encoder\.layers\.(\d+)\.")
_OWN_KV_PROJ = re.compile(r"tower\..*\.self_attn\.[kv]_proj\.(?:weight|bias)$")


@dataclass(frozen=True)
class Renamed:
    """Weights under other names, each read when it is asked for, and what became of every key."""

    weights: LazyTensors
    mapped: dict[str, str]
    """The new name of every key; several names are joined by a comma."""
    dropped: dict[str, str]
    """The reason for every key left out on purpose."""
    unknown: tuple[str, ...]
    """Keys that no rule speaks of."""


def rename(weights: Mapping[str, Tensor], rules: Sequence[Rule] = LAVIS_RULES) -> Renamed:
    """Return weights of another project under this one's names; shapes are as they were."""
    read_by_name: dict[str, Callable[[], Tensor]] = {}
    mapped: dict[str, str] = {}
    dropped: dict[str, str] = {}
    unknown: list[str] = []
    for key in weights:
        for part, read in split_keys(weights, key):
            rule = next((rule for rule in rules if _substitute(part, rule.theirs, "") is not None), None)
            if rule is None:
                unknown.append(key)
            elif rule.ours is None:
                dropped[key] = rule.reason
            else:
                name = _substitute(part, rule.theirs, rule.ours)
                assert name is not None
                read_by_name[name] = read
                mapped[key] = f"{mapped[key]}, {name}" if key in mapped else name
    return Renamed(LazyTensors(read_by_name), mapped, dropped, tuple(dict.fromkeys(unknown)))


def split_keys(weights: Mapping[str, Tensor], key: str) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Give what a LAVIS key holds by simpler keys: its attention keeps three projections (CLIP) in one tensor.

    In EVA the bias of the queries and that of the values are two tensors, the keys have none, and our parts have one
    for the three.
    """
    in_proj, bias = _IN_PROJ.match(key), _QKV_BIAS.match(key)
    if in_proj:
        for place, which in enumerate("qkv"):
            yield f"{in_proj[1]}{which}_proj.{in_proj[2]}", partial(_third, weights, key, place)
    elif bias and f"{bias[1]}q_bias" in weights and f"{bias[1]}v_bias" in weights:
        yield f"{bias[1]}qkv.bias", partial(_qkv_bias, weights, bias[1])
    else:
        yield key, partial(weights.__getitem__, key)


def to_lavis(weights: Mapping[str, Tensor]) -> Renamed:
    """Return our weights under the names of LAVIS and SPRC: what ``rename`` makes, undone.

    What LAVIS's model has and this one never read (``dropped`` there) is not in it.
    """
    is_eva = any(_OWN_QKV_BIAS.match(name) for name in weights)
    rules = [rule for rule in (*QFORMER_RULES, *(EVA_RULES if is_eva else CLIP_RULES)) if rule.ours is not None]
    read_by_name: dict[str, Callable[[], Tensor]] = {}
    mapped: dict[str, str] = {}
    unknown: list[str] = []
    for name in weights:
        theirs = next(
            (new for rule in rules if (new := _substitute(name, rule.ours or "", rule.theirs)) is not None), None
        )
        q_proj = _OWN_Q_PROJ.match(name)
        if theirs is None:
            unknown.append(name)
            continue
        if _OWN_QKV_BIAS.match(name):
            head = theirs.removesuffix("qkv.bias")
            # The keys' third is left out: it moves all scores of a query alike, which softmax does not see.
            read_by_name[f"{head}q_bias"] = partial(_third, weights, name, 0)
            read_by_name[f"{head}v_bias"] = partial(_third, weights, name, 2)
            theirs = f"{head}q_bias, {head}v_bias"
        elif q_proj:
            theirs = theirs.replace("q_proj.", "in_proj_")
            read_by_name[theirs] = partial(_in_proj, weights, q_proj[1], q_proj[2])
        elif _OWN_KV_PROJ.match(name):
            theirs = re.sub(r"[kv]_proj\.", "in_proj_", theirs)
        else:
            read_by_name[theirs] = partial(weights.__getitem__, name)
        mapped[name] = theirs
    return Renamed(LazyTensors(read_by_name), mapped, {}, tuple(unknown))


def first_blocks(renamed: Renamed, num_blocks: int) -> Renamed:
    """Return weights without the blocks of the tower behind the first ``num_blocks``; their keys are dropped."""

    def is_behind(name: str) -> bool:
        match = _OWN_BLOCK.match(name)
        return match is not None and int(match[1]) >= num_blocks

    behind = {key for key, name in renamed.mapped.items() if is_behind(name)}
    if not behind:
        return renamed
    kept = {name: partial(renamed.weights.__getitem__, name) for name in renamed.weights if not is_behind(name)}
    reason = f"BLIP-2 reads the tower behind {num_blocks} of its blocks"
    return Renamed(
        LazyTensors(kept),
        {key: name for key, name in renamed.mapped.items() if key not in behind},
        {**renamed.dropped, **dict.fromkeys(sorted(behind), reason)},
        renamed.unknown,
    )


def _third(weights: Mapping[str, Tensor], key: str, place: int) -> Tensor:
    return weights[key].chunk(3)[place]


def _qkv_bias(weights: Mapping[str, Tensor], head: str) -> Tensor:
    query, value = weights[f"{head}q_bias"], weights[f"{head}v_bias"]
    return torch.cat([query, torch.zeros_like(value), value])


def _in_proj(weights: Mapping[str, Tensor], head: str, part: str) -> Tensor:
    return torch.cat([weights[f"{head}{which}_proj.{part}"] for which in "qkv"])


@lru_cache(maxsize=256)
def _pattern(template: str) -> re.Pattern[str]:
    end = "" if template.endswith(".") else "$"
    return re.compile(re.escape(template).replace(r"\{n\}", r"(\d+)") + end)


def _substitute(name: str, template: str, replacement: str) -> str | None:
    """Return the name with what ``template`` says of it replaced, ``None`` where it does not speak of it."""
    match = _pattern(template).match(name)
    if match is None:
        return None
    number = match[1] if match.groups() else ""
    return replacement.replace("{n}", number) + name[match.end() :]


def their_name(name: str, rules: Sequence[Rule]) -> str:
    """Return the other project's name of one of our weights, ours where no rule speaks of it."""
    named = (_substitute(name, rule.ours, rule.theirs) for rule in rules if rule.ours is not None)
    return next((theirs for theirs in named if theirs is not None), name)
