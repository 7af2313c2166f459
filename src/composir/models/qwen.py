"""Qwen3-VL-Embedding by ``transformers`` alone: pictures and sentences as messages of a chat, read by a language model.

What is done here is what the authors do (QwenLM/Qwen3-VL-Embedding, src/models/qwen3_vl_embedding.py, and
src/evaluation/mmeb_v2/data/datasets/image_i2i_vg_dataset.py): the instruction is the system's message, the user's holds
the picture and then the sentence, the assistant's is begun; the last token's hidden state of the last layer is the
embedding. torchvision is not needed: pictures are cut by the processor that works with Pillow.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from composir.errors import ComposirError
from composir.machine import has_bf16
from composir.models.address import Options
from composir.models.embedder import VectorEmbedder
from composir.models.identity import folder_hash
from composir.models.loading import OURS_ALONE, load_network, telling_what_fails
from composir.models.scripts import pieces_of, scripts_of
from composir.models.weights.sources import read_json

QUERY_PROMPT = "Given an image, find a similar everyday image with the described changes:"
"""Before queries: MMEB's instruction for CIRR, which the authors' evaluation gives; for FashionIQ it is "Find an image
to match the fashion image and style note:"."""
DOCUMENT_PROMPT = "Represent the user's input."
"""Before candidates: the authors' default."""
FACTOR = 32
"""Sides of a picture are multiples of so many pixels, and a square of them is one token."""
MIN_PIXELS, MAX_PIXELS = 4 * FACTOR**2, 1800 * FACTOR**2
"""Of a picture as it is read: 4 to 1,800 tokens."""
MAX_TOKENS = 8192
IMAGE_TOKEN = "<|image_pad|>"
BATCH_SIZE = 4
"""Inputs a pass: 4 pictures of ``MAX_PIXELS`` are 7,200 tokens."""
Prepared = tuple[np.ndarray, np.ndarray]
"""A picture's patches (patches, values) and its grid (frames, rows, columns)."""


class QwenEmbedder(VectorEmbedder):
    """Qwen3-VL-Embedding on pictures and sentences; embeddings are cut to ``dim`` values where that is asked for.

    The weights are in bf16 where the device multiplies it itself, else in fp16 on a GPU and in fp32 on a CPU.
    """

    def __init__(self, name: str, folder: Path, device: str | torch.device, options: Options) -> None:
        self.kind = f"the vision-language model {name}"
        options.require_only(self.kind, "prompt", "max_pixels", "dtype", "batch_size", "dim")
        self.backbone = name
        self.device = torch.device(device)
        self.prompt = punctuated(options.prompt or QUERY_PROMPT)
        self.batch_size = options.batch_size or BATCH_SIZE
        max_pixels = options.max_pixels or MAX_PIXELS
        self.network, self.tokenizer, self.processor = _load(
            folder, self.device, options.dtype or _dtype(self.device), max_pixels
        )
        width = self.network.config.text_config.hidden_size
        self._num_kept = options.dim or width
        if self._num_kept > width:
            raise ComposirError(
                f"dim {self._num_kept} is more than the model makes", file=folder, expected=f"at most {width}"
            )
        self._image_id = self.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        asked = hashlib.sha256(f"{self.prompt}|{self._num_kept}|{max_pixels}".encode()).hexdigest()
        self._hash = f"{folder_hash(folder)}-{asked[:8]}"

    @cached_property
    def dim(self) -> int:
        """Length of its vectors: so many of an embedding's first values are kept."""
        return self._num_kept

    def prepare(self, picture: Image.Image) -> Prepared:
        """Return the patches of a picture, made smaller where it has more pixels than are read."""
        found = self.processor(picture, return_tensors="np")
        return found["pixel_values"], found["image_grid_thw"][0]

    def embed_prepared(self, prepared: Sequence[Prepared]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every picture, as a document."""
        return self._embed(DOCUMENT_PROMPT, [(one, "") for one in prepared])

    def embed_pairs(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every picture with its sentence, as a query."""
        return self._embed(self.prompt, [(self.prepare(one), text) for one, text in zip(pictures, texts, strict=True)])

    def embed_sentences(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Return the embedding of every sentence, as a query."""
        return self._embed(self.prompt, [(None, text) for text in texts])

    @cached_property
    def scripts(self) -> frozenset[str]:
        """The scripts in which its tokenizer has words."""
        return scripts_of(pieces_of(self.tokenizer))

    def weights_hash(self) -> str:
        """Return a hash of the folder's files, and of how pictures and sentences are given."""
        return f"qwen-{self._hash}"

    @torch.inference_mode()
    def _embed(self, prompt: str, inputs: Sequence[tuple[Prepared | None, str]]) -> Float[Tensor, "batch dim"]:
        parts = [inputs[start : start + self.batch_size] for start in range(0, len(inputs), self.batch_size)]
        found = torch.cat([self._batch(prompt, part) for part in parts])
        return nn.functional.normalize(found[:, : self._num_kept], dim=-1)

    def _batch(self, prompt: str, inputs: Sequence[tuple[Prepared | None, str]]) -> Float[Tensor, "batch width"]:
        tokens = self.tokenizer(
            [self._chat(prompt, picture, text) for picture, text in inputs],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        pictures = [picture for picture, _ in inputs if picture is not None]
        given = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
        given["mm_token_type_ids"] = (given["input_ids"] == self._image_id).long()
        if pictures:
            given["pixel_values"] = torch.from_numpy(np.concatenate([patches for patches, _ in pictures]))
            given["image_grid_thw"] = torch.from_numpy(np.stack([grid for _, grid in pictures]))
        moved = {name: tensor.to(self.device) for name, tensor in given.items()}
        states = self.network(**moved, use_cache=False).last_hidden_state
        last = given["attention_mask"].sum(dim=1) - 1
        return states[torch.arange(len(inputs)), last].float()

    def _chat(self, prompt: str, picture: Prepared | None, text: str) -> str:
        """Return a chat as text, with a token for each of the picture's; a sentence that is too long is cut off."""
        for mark in self.tokenizer.get_added_vocab():  # a sentence cannot end its own message
            text = text.replace(mark, " ")
        num_tokens = int(np.prod(picture[1])) // 4 if picture is not None else 0  # 2 x 2 patches are a token
        room = MAX_TOKENS - num_tokens - len(self.tokenizer(self._render(prompt, picture is not None, ""))["input_ids"])
        words = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(words) > room:
            text = self.tokenizer.decode(words[:room])
        return self._render(prompt, picture is not None, text).replace(IMAGE_TOKEN, IMAGE_TOKEN * num_tokens, 1)

    def _render(self, prompt: str, has_picture: bool, text: str) -> str:
        content = [{"type": "image"}] * has_picture + [{"type": "text", "text": text}] * bool(text)
        chat = [
            {"role": "system", "content": [{"type": "text", "text": prompt}]},
            {"role": "user", "content": content or [{"type": "text", "text": "NULL"}]},
        ]
        return self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)


def punctuated(prompt: str) -> str:
    """Return an instruction that ends in punctuation, with a full stop where it does not, as the authors' do."""
    prompt = prompt.strip()
    return prompt if not prompt or unicodedata.category(prompt[-1]).startswith("P") else f"{prompt}."


def _dtype(device: torch.device) -> str:
    if device.type == "cpu":
        return "fp32"
    return "bf16" if has_bf16(device) else "fp16"


def _load(folder: Path, device: torch.device, dtype: str, max_pixels: int) -> tuple[Any, Any, Any]:
    """Return the network, its tokenizer and what cuts pictures; raise ``ComposirError`` for what is no such model."""
    from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLModel  # noqa: PLC0415 (takes seconds)

    kind = read_json(folder / "config.json").get("model_type")
    if kind != "qwen3_vl":
        raise ComposirError(f"is a model of the type {kind!r}", file=folder, expected="qwen3_vl, Qwen3-VL-Embedding")
    network = load_network(Qwen3VLModel, folder, dtype=dtype, device=device)
    size = {"shortest_edge": min(MIN_PIXELS, max_pixels), "longest_edge": max_pixels}
    with telling_what_fails(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, **OURS_ALONE)
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil", size=size, **OURS_ALONE)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = read_json(folder / "chat_template.json").get("chat_template")
    return network, tokenizer, processor
