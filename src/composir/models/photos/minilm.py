"""Sentences as vectors of MiniLM-L6 (Wang et al., arXiv 2002.10957), as sentence-transformers trained it."""

from __future__ import annotations

import json
import zipfile
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from safetensors.torch import load as load_safetensors
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import normalize

from composir.models.backbones.mini import minilm_file
from composir.models.scripts import scripts_of
from composir.models.weights.tensors import Undrawn

if TYPE_CHECKING:
    from transformers import BertModel

WIDTH = 384
MAX_WORDS = 128
"""Pieces of words that are read of a sentence."""
NUM_KEPT = 4096
"""Sentences whose vectors are remembered."""


@lru_cache(maxsize=NUM_KEPT)
@torch.no_grad()
def embed(text: str) -> Float[Tensor, " 384"]:
    """Return the L2-normalised mean over the words of a sentence, on the CPU.

    Sentences go one by one: beside longer ones they would be padded, and come out otherwise in the last bits.
    """
    tokenizer, model = _load()
    ids = torch.tensor([tokenizer.encode(text).ids])
    return normalize(model(ids).last_hidden_state[0].mean(dim=0), dim=0)


@cache
def minilm_scripts() -> frozenset[str]:
    """Return the scripts in which MiniLM has words."""
    return scripts_of(_load()[0].get_vocab())


@cache
def _load() -> tuple[Tokenizer, BertModel]:
    from transformers import BertConfig, BertModel  # noqa: PLC0415 (two seconds, only where this model reads)

    with zipfile.ZipFile(minilm_file()) as archive:
        tokenizer = Tokenizer.from_str(archive.read("tokenizer.json").decode())
        config = BertConfig(**json.loads(archive.read("config.json")))
        weights = load_safetensors(archive.read("model.safetensors"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_WORDS)
    with Undrawn():
        model = BertModel(config, add_pooling_layer=False).eval()
    known = model.state_dict()
    model.load_state_dict({name: tensor for name, tensor in weights.items() if name in known})
    return tokenizer, model
