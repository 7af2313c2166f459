"""Everything a training run depends on, as one validated table that can be written down and run again."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from composir.data import DATASETS, find_dataset
from composir.data.transforms import TARGET_RATIO
from composir.errors import ComposirError, nearest, short, wrong_fields
from composir.evaluation import DEPTH, protocol_of
from composir.files import read_toml, tomllib
from composir.limits import MAX_COUNT, MAX_RATE, MAX_SEED, MAX_WORKERS
from composir.losses import LOSSES, PUBLISHED_TERMS, TERMS
from composir.models.backbones import BACKBONES, find_backbone
from composir.models.config import MODEL_NAME
from composir.models.fusion import GATE, NONE, fusion_names
from composir.models.heads import HEADS
from composir.models.named import find_address
from composir.models.token_fusion import ALPHA_INIT, MASKED, Pooling

MODELS = (MODEL_NAME,)
HEAD_RECIPE, FEEDBACK_RECIPE, LORA_RECIPE = "head.toml", "feedback.toml", "lora.toml"
FUSION_SWITCH = "gated_fusion"
"""The published flag for what ``fusion`` says of the gate."""


MAX_EPOCHS = 1_000_000


class Recipe(BaseModel):
    """The settings of a training run; ``recipe.toml`` of a run folder holds all of them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    dataset: str = "CIRR"
    """Key of ``DATASETS``."""
    data_root: str = "."
    """Folder of the data set, or its parent; with an ``index`` the file of examples."""
    index: str = ""
    """An index that a head is trained for: its pictures are those of the examples, and their vectors are taken."""
    skip_missing_images: bool = False
    """Train and validate on the queries whose images are all there; off, a missing image is an error."""
    text_rule: str = ""
    """How sentences are made, in training and validation: one of the data set's ``text_rules``; empty is its own."""
    blip_model_name: str = MODEL_NAME
    backbone: str = "pretrain"
    """Key of ``BACKBONES``, or a model that stays as it is and gets a head: ``photos``, ``st:NAME``, a folder."""
    head: str = "joint"
    """Key of ``HEADS``: what is trained on the vectors of a model that is no backbone."""
    lora: int = Field(default=0, ge=0, le=1024)
    """Rank of the adapters that a CLIP-like model is trained by, instead of a head; 0 is a head."""
    target_map: bool = False
    """A head also learns one linear map of the targets' vectors; an index then gets a second set of vectors by it."""
    weights: str = ""
    """Folder or file of the backbone's pretrained weights, where they are not in a package."""
    transform: Literal["targetpad", "squarepad"] = "targetpad"
    target_ratio: float = Field(default=TARGET_RATIO, ge=1, le=100)

    fusion: str = GATE
    """Keys of ``FUSIONS`` joined by +; ``none``: nothing is constructed, and the model is SPRC. ``gated_fusion = true``
    and ``false``, as which recipes were written before there were several, are read as ``gate`` and ``none``."""
    alpha_init: float = Field(default=ALPHA_INIT, ge=-1000, le=1000)
    """Start of the one scalar of the gate, and of the attention."""
    gate_layer_norm: bool = False
    """The gate reads the tokens through a layer norm; the published one does not."""
    gate_pooling: Pooling = MASKED
    """What the gate, and the attention, take the sentence's mean over: its words (``masked``), or ``all`` positions,
    padding included, as in the fork that the gate comes from."""
    gate_identity_start: bool = False
    """Zero the last layer of their direction, so that training starts from the model without them."""

    train_ln_vision: bool = True
    """Train scale and shift of the norm behind the tower, as published, where the model has them; off, they stay."""

    num_epochs: int = Field(default=10, ge=1, le=MAX_EPOCHS)
    max_steps: int = Field(default=0, ge=0, le=MAX_COUNT)
    """Stop (and end the schedule) after this many optimiser steps; 0 is all epochs."""
    batch_size: int = Field(default=64, ge=2, le=MAX_COUNT)
    """Triplets a step sees at once, over all processes; they are each other's negatives. More than there are is all."""
    drop_last: bool = False
    """Leave out an epoch's last batch where it is smaller than the others, as published; each epoch another one."""
    gradient_accumulation: int = Field(default=1, ge=1, le=MAX_COUNT)
    """Batches whose gradients are added up before a step; negatives stay within a batch."""
    gradient_checkpointing: bool = False
    """Keep the input of each Q-Former layer only and compute the layer again in the backward pass: less memory, more
    time, the same gradients."""
    learning_rate: float = Field(default=1e-5, gt=0, le=MAX_RATE)
    """Peak for weights that start at random, and for all where ``pretrained_learning_rate`` is 0."""
    pretrained_learning_rate: float = Field(default=0.0, ge=0, le=MAX_RATE)
    """Peak for weights that start from pretrained ones; 0 is ``learning_rate``."""
    gate_learning_rate: float = Field(default=0.0, ge=0, le=MAX_RATE)
    """Peak for the fusion's weights; 0 is ``learning_rate``."""
    alpha_learning_rate: float = Field(default=0.0, ge=0, le=MAX_RATE)
    """Peak for their alpha; 0 is ``gate_learning_rate``."""
    weight_decay: float = Field(default=0.05, ge=0, le=MAX_RATE)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-7, gt=0, le=1)
    max_grad_norm: float = Field(default=0.0, ge=0, le=MAX_COUNT)
    """Gradients are scaled down to this norm; 0 is no clipping, as published."""
    pct_start: float = Field(default=0.1, gt=0, lt=1)
    """Share of the steps over which the rate rises (OneCycle)."""
    div_factor: float = Field(default=25.0, ge=1, le=MAX_COUNT)
    """The rate starts at its peak divided by this."""
    schedule_epochs: int = Field(default=0, ge=0, le=MAX_EPOCHS)
    """Length the schedule is built for, 0 being the real one; SPRC builds 80 epochs on CIRR and trains fewer."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)

    loss_align: float = Field(default=0.4, ge=0, le=MAX_RATE)
    loss_rtc: float = Field(default=0.4, ge=0, le=MAX_RATE)
    loss_local: float = Field(default=0.0, ge=0, le=MAX_RATE)
    """Weight of the local alignment: each fused query and each word against the target's vectors; 0 leaves it out."""
    loss_terms: dict[str, float] = Field(default_factory=dict)
    """Weights of further terms of the loss, by their name in ``TERMS``."""
    contrastive_loss: str = "infonce"
    """Key of ``LOSSES``: ``hn-nce`` weights negatives by how close they are and looks from both sides; ``infonce`` is
    published."""
    hard_negative_beta: float = Field(default=0.5, ge=0, le=MAX_RATE)
    """hn-nce: how much closer negatives weigh more; 0 is infonce from both sides."""
    hard_negative_alpha: float = Field(default=1.0, ge=0, le=1)
    """hn-nce: the weight of the target's own term in the denominator."""
    mask_same_target: bool = False
    """Leave out negatives that show the query's own target; off is the published loss."""
    subset_negatives: int = Field(default=0, ge=0, le=1000)
    """Look-alikes added to the batch as negatives for each query: from its CIRR subset, else its own reference."""
    mined_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of the look-alikes that are mined instead: what the model itself takes for the target."""
    mining_frequency: int = Field(default=1, ge=1, le=MAX_EPOCHS)
    """Epochs from one mining to the next; the first comes after so many."""
    mining_depth: int = Field(default=50, ge=1, le=DEPTH)
    """Best-ranked training images that negatives are mined from."""
    mining_skip: int = Field(default=2, ge=0, le=DEPTH)
    """Ranks on either side of the target that are left out, as likely right answers that nobody annotated."""
    mining_margin: float = Field(default=0.02, ge=0, le=2)
    """Candidates whose score is so close to the target's are left out for the same reason."""
    center_embeddings: bool = False
    """Before the first step, set the heads' biases so that embeddings are centred on training triplets."""

    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """``auto`` is bf16 on GPUs that compute in it, fp16 on older ones of Nvidia's, ``no`` on others and on CPUs."""
    compile: bool = False
    """Let torch compile the losses and their gradients: fewer and larger kernels, after a first step of minutes."""
    deterministic: bool = False
    """Use only algorithms of torch that give the same numbers every time; on a CPU training does so anyway."""
    validation_frequency: int = Field(default=1, ge=1, le=MAX_EPOCHS)
    """Epochs from one validation to the next; the last epoch always has one."""
    select_by: str = ""
    """The figure whose best value makes ``best/``, such as ``mean_of_seven``; empty is the data set's primary one."""
    save_training: bool = True
    """Keep ``last/`` (complete state, for --resume) and ``best/``."""
    save_minutes: float = Field(default=10.0, ge=0, le=MAX_COUNT)
    """Minutes after which ``last/`` is written within an epoch, too; 0 is after every step."""
    save_best: bool = True
    """Keep the best checkpoint only; off keeps one of each validated epoch as well."""
    num_workers: int = Field(default=4, ge=0, le=MAX_WORKERS)
    """Threads that decode images."""
    output_dir: str = "models"

    @field_validator("betas", mode="before")
    @classmethod
    def _are_two(cls, betas: object) -> tuple[float, ...]:
        """Return the pair, which TOML has as a list."""
        pair = betas if isinstance(betas, (list, tuple)) else ()
        if len(pair) != 2 or not all(type(one) in (int, float) and 0 <= one < 1 for one in pair):
            raise ValueError("expected two numbers, at least 0 and below 1")
        return tuple(map(float, pair))

    @field_validator("fusion")
    @classmethod
    def _is_known(cls, fusion: str) -> str:
        fusion_names(fusion)
        return fusion

    @field_validator("head")
    @classmethod
    def _is_a_head(cls, head: str) -> str:
        if head not in HEADS:
            raise ValueError(f"expected {' or '.join(HEADS)}")
        return head

    @field_validator("contrastive_loss")
    @classmethod
    def _is_a_loss(cls, loss: str) -> str:
        if loss not in LOSSES:
            raise ValueError(f"expected {' or '.join(LOSSES)}")
        return loss

    @field_validator("loss_terms")
    @classmethod
    def _are_terms(cls, terms: dict[str, float]) -> dict[str, float]:
        for name, weight in terms.items():
            if name not in TERMS:
                raise ValueError(f"no term {name!r}, expected {', '.join(TERMS) or 'none, as none is registered'}")
            if not 0 <= weight <= MAX_RATE:
                raise ValueError(f"the weight of {name} is {weight}, expected a number from 0 to {MAX_RATE:,}")
        return terms

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weight of every term of the loss by name, in the order in which they are added."""
        own = {name: getattr(self, setting) if setting else 1.0 for name, setting in PUBLISHED_TERMS.items()}
        return own | {f"loss_{name}": weight for name, weight in self.loss_terms.items()}

    def to_toml(self) -> str:
        """Return the recipe as the text of a ``recipe.toml``, every field in it."""
        return tomli_w.dumps(self.model_dump(mode="json"))


def load_recipe(given: dict[str, Any], config: Path | None = None) -> Recipe:
    """Return the recipe: what is ``given`` (flags), else in the ``config`` file, else the backbone's own defaults."""
    settings = _over(read_toml(config) if config else {}, given)
    where = f"{config}, with what is given beside it" if config and given else config
    backbone = settings.get("backbone", Recipe.model_fields["backbone"].default)
    dataset = find_dataset(str(settings.get("dataset", "CIRR")))
    if is_model(str(backbone)):
        file = LORA_RECIPE if settings.get("lora") else FEEDBACK_RECIPE if settings.get("index") else HEAD_RECIPE
    else:
        files = find_backbone(backbone, settings.get("weights", ""), file=where).recipes
        file = files.get(dataset, files[""])
    defaults = tomllib.loads(resources.files("composir.recipes").joinpath(file).read_text(encoding="utf-8"))
    return validate({**_over(defaults, settings), "dataset": dataset}, where)


def is_model(backbone: str) -> bool:
    """Return whether a recipe's ``backbone`` names a model to train a head on: no backbone, but a model's name."""
    is_name = find_address(backbone) is not None or "/" in backbone or Path(backbone).is_dir()
    return backbone not in BACKBONES and is_name


def _over(lower: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of both, ``upper``'s first; the fusion and its switch are one setting."""
    names = {FUSION_SWITCH, "fusion"}
    return {key: value for key, value in lower.items() if key not in names or not names & upper.keys()} | upper


def validate(settings: dict[str, Any], file: Path | str | None = None) -> Recipe:
    """Return the settings as a ``Recipe``; all unknown keys and wrong values are one ``ComposirError``."""
    settings, wrong = _read_fusion_switch(settings)
    if settings.get("blip_model_name", MODEL_NAME) not in MODELS:
        name = str(settings["blip_model_name"])
        wrong.append(f"blip_model_name {name!r} is not known ({nearest(name, MODELS)})")
    recipe = None
    try:
        recipe = Recipe.model_validate(settings)
    except ValidationError as error:
        wrong += wrong_fields(error, Recipe)
    if recipe is not None and recipe.mined_ratio and not recipe.subset_negatives:
        wrong.append("mined_ratio mixes into the look-alikes, and subset_negatives = 0 takes none")
    if recipe is not None:
        wrong += _without_effect(recipe)
    if recipe is not None and recipe.index and recipe.dataset != "own":
        wrong.append(f"index = {short(recipe.index)} is for examples of one's own, dataset = 'own'")
    if recipe is not None and recipe.select_by and recipe.select_by not in (figures := _figures(recipe.dataset)):
        wrong.append(f"select_by = {short(recipe.select_by)}: expected one of {', '.join(figures)}")
    if recipe is not None and recipe.text_rule and recipe.text_rule not in (rules := _text_rules(recipe.dataset)):
        expected = ", ".join(rules) or f"none, as {recipe.dataset} has one way to make its sentences"
        wrong.append(f"text_rule = {short(recipe.text_rule)}: expected one of {expected}")
    if wrong or recipe is None:
        raise ComposirError("; ".join(wrong), file=file, fix="docs/reference/settings.md lists every setting")
    return recipe


OF_A_BACKBONE = (
    "weights", "transform", "target_ratio", "fusion", "alpha_init", "gate_layer_norm", "gate_pooling",
    "gate_identity_start", "train_ln_vision", "gradient_checkpointing", "pretrained_learning_rate",
    "gate_learning_rate", "alpha_learning_rate", "loss_align", "loss_rtc", "loss_local", "center_embeddings",
)  # fmt: skip
"""Settings that a head and adapters have no use for."""


def _without_effect(recipe: Recipe) -> list[str]:
    """Return, for each setting that was changed and would change nothing, whose it is."""
    whose_by_name: dict[str, str] = {
        "head": "of a head on a model that stays as it is",
        "index": "of a head on a model that stays as it is",
        "target_map": "of a head on a model that stays as it is",
        "lora": "of a CLIP-like model, not a backbone",
    }
    if recipe.backbone not in BACKBONES:
        other = "a CLIP-like model" if recipe.lora else "a head"
        whose_by_name = dict.fromkeys(OF_A_BACKBONE, f"of a backbone, and {other} has none")
        if recipe.lora:
            whose_by_name |= dict.fromkeys(("head", "target_map"), "of a head, and with lora there is none")
    return [
        f"{name} = {short(getattr(recipe, name))} is a setting {whose}"
        for name, whose in whose_by_name.items()
        if getattr(recipe, name) != Recipe.model_fields[name].default
    ]


def _text_rules(dataset: str) -> tuple[str, ...]:
    return DATASETS[find_dataset(dataset)].text_rules


def _figures(dataset: str) -> list[str]:
    """Return the metric keys that every validation on a data set has."""
    protocol = protocol_of(find_dataset(dataset))
    return [key for key in protocol.keys if protocol.subsets_required or not key.startswith("recall_subset")]


def _read_fusion_switch(settings: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the settings with ``gated_fusion`` read as the ``fusion`` it stands for, and what is wrong with it."""
    if FUSION_SWITCH not in settings:
        return settings, []
    rest = {key: value for key, value in settings.items() if key != FUSION_SWITCH}
    gate = settings[FUSION_SWITCH]
    if not isinstance(gate, bool):
        return rest, [f"{FUSION_SWITCH} = {gate!r}: input should be a valid boolean"]
    fusion = rest.setdefault("fusion", GATE if gate else NONE)
    if gate != (GATE in str(fusion).split("+")):
        return rest, [f"{FUSION_SWITCH} = {str(gate).lower()} contradicts fusion = {fusion!r}"]
    return rest, []


def parse_value(text: str) -> Any:
    """Return the value of a ``--set key=value``: a TOML value where it is one, else the words themselves."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # no TOML, or a number of thousands of digits
        return text
