"""A dual encoder of BGE-VL-base's size on this machine: loading, naming, pictures, sentences; seconds and memory.

The weights are random: a CLIP ViT-B/16 with its projections in fp16, beside a vocabulary of CLIP's size, in the layout
that ``BAAI/BGE-VL-base`` has on the hub. ``--out`` keeps the folder, which ``--model bge-vl-base:FOLDER`` then takes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from composir.features import open_model
from composir.machine import default_device, describe_machine, peak_memory
from composir.models.dual import DualEncoder
from composir.models.identity import folder_hash

NUM_PICTURES, SIZE = 64, (640, 480)
BATCHES = (1, 8, 32, 64)
VOCABULARY = 49_408


def main() -> None:
    """Run every stage and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="keep the folder of random weights there")
    parser.add_argument("--device", default=str(default_device()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary) / "bge-vl-base"
        os.environ["COMPOSIR_CACHE"] = str(Path(temporary) / "cache")  # every hash is computed once
        if not folder.exists():
            write_random(folder)
        stages = run(folder, arguments.device)
    sys.stdout.write(json.dumps({"stages": stages, "machine": describe_machine()}, indent=2) + "\n")


def run(folder: Path, device: str) -> dict[str, dict[str, float]]:
    """Return seconds and peak memory of every stage."""
    stages: dict[str, dict[str, float]] = {}
    with measured("hash the files, first", stages):
        folder_hash(folder)
    with measured("hash the files, again", stages):
        folder_hash(folder)
    with measured("load", stages):
        model = open_model(f"bge-vl-base:{folder}", device)
    assert isinstance(model, DualEncoder)
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (*SIZE[::-1], 3), np.uint8)) for _ in range(NUM_PICTURES)]
    with measured(f"prepare {NUM_PICTURES} pictures of {SIZE[0]} x {SIZE[1]}", stages):
        prepared = [model.prepare(picture) for picture in pictures]
    found = model.embed_prepared(prepared[:1])  # the first pass of a process takes longer
    for batch in BATCHES:
        model.batch_size = batch
        with measured(f"embed {NUM_PICTURES} pictures, {batch} at once", stages):
            found = model.embed_prepared(prepared)
    with measured(f"embed {NUM_PICTURES} sentences", stages):
        texts = model.embed_sentences(["make it red and put it on a beach at night"] * NUM_PICTURES)
    assert found.shape == texts.shape == (NUM_PICTURES, 512)
    assert found.isfinite().all()
    return stages


def write_random(folder: Path) -> None:
    """Write a CLIP ViT-B/16 with random weights, its tokenizer and how its pictures are prepared."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 289)]
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"filler{number}</w>" for number in range(VOCABULARY - len(words) - 2)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt")).save_pretrained(folder)
    vision = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 224, "patch_size": 16,
    }  # fmt: skip
    text = {
        "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
        "vocab_size": VOCABULARY, "bos_token_id": VOCABULARY - 2, "eos_token_id": VOCABULARY - 1,
    }  # fmt: skip
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512)).half().save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


@contextmanager
def measured(name: str, stages: dict[str, dict[str, float]]) -> Iterator[None]:
    """Note how long a stage took and the most memory the process has had till its end."""
    start = time.perf_counter()
    yield
    stages[name] = {
        "seconds": round(time.perf_counter() - start, 3),
        "peak_gb": round(peak_memory() / 1e9, 2),
    }


if __name__ == "__main__":
    main()
