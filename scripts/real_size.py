"""BLIP-2 at its real size on this machine: convert, load, tokens, a training step, a gallery; seconds and memory.

The weights are random, in the two files that LAVIS publishes: ``blip2_pretrained.pth`` with the 12-layer Q-Former, and
``eva_vit_g.pth`` in fp16, with one block more than BLIP-2 takes of it.
``make real-size`` runs it; it needs 10 GB of disk and about as much memory, and minutes on a CPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import composir
from composir.features import TokenCache
from composir.machine import default_device
from composir.models.composer import Composer
from composir.models.config import ComposerConfig
from composir.models.transfer import convert
from composir.models.vit import EVA_EPS, LastHidden
from composir.models.weights.names import to_lavis
from composir.models.weights.start import BLIP2_VOCABULARY
from composir.models.weights.tensors import LazyTensors

NUM_BATCH, NUM_GALLERY = 4, 8
STD = 0.02


def main() -> None:
    """Run every stage and print one JSON document; progress goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=40, help="blocks in the tower's file; fewer is a quick try")
    parser.add_argument("--dir", type=Path, default=None, help="where the 10 GB go; the system's temporary folder")
    parser.add_argument("--device", default=str(default_device()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.dir) as folder:
        stages = run(Path(folder), arguments.layers, arguments.device)
    machine = torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor() or platform.machine()
    document = {
        "stages": stages,
        "machine": machine,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "layers": arguments.layers,
    }
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


def run(folder: Path, layers: int, device: str) -> dict[str, dict[str, float]]:
    """Return seconds and peak memory of every stage."""
    stages: dict[str, dict[str, float]] = {}
    file, eyes, out = folder / "blip2_pretrained.pth", folder / "eva_vit_g.pth", folder / "model"
    with measured("write random weights", stages):
        weights, start = random_weights(layers), "visual_encoder."
        tower = {key.removeprefix(start): weights.pop(key).half() for key in list(weights) if key.startswith(start)}
        torch.save({"model": weights}, file)
        torch.save(tower, eyes)
        del weights, tower
    stages["write random weights"]["file_gb"] = (file.stat().st_size + eyes.stat().st_size) / 1e9
    with measured("convert", stages):
        convert(str(file), "lavis", out, vision_tower=str(eyes), gated_fusion=True)
    with measured("load", stages):
        model = composir.load(out, device=device)
    pictures = [folder / f"{number}.png" for number in range(NUM_GALLERY)]
    chance = np.random.default_rng(0)
    for picture in pictures:
        Image.fromarray(chance.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(picture)
    assert model.tower is not None
    tokens = TokenCache(model.tower)
    with measured(f"tokens of {NUM_BATCH} images", stages):
        batch = tokens(pictures[:NUM_BATCH]).to(device)
    with measured(f"training step of batch {NUM_BATCH}", stages):
        loss = training_step(model.train(), batch)
    with measured(f"embed a gallery of {NUM_GALLERY}, {NUM_BATCH} with tokens", stages), torch.inference_mode():
        gallery = model.eval().encode_target(tokens(pictures).to(device))
    assert np.isfinite(loss)
    assert gallery.shape == (NUM_GALLERY, 32, 256)
    assert gallery.isfinite().all()
    return stages


def training_step(model: Composer, tokens: torch.Tensor) -> float:
    """Return the loss of one step of AdamW on four triplets."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, betas=(0.9, 0.98), eps=1e-7, weight_decay=0.05)
    ids, mask = model.tokenize(["make it red", "the same but on a beach", "without the dog", "two of them"])
    losses = model.training_losses(tokens, tokens.roll(1, 0), ids, mask)
    total = losses["loss_itc"] + 0.4 * losses["loss_rtc"] + 0.4 * losses["loss_align"]
    total.backward()
    optimizer.step()
    return total.item()


def random_weights(layers: int) -> dict[str, torch.Tensor]:
    """Return random weights of the real sizes by LAVIS's names."""
    from transformers import Blip2VisionConfig, Blip2VisionModel  # noqa: PLC0415

    vision = Blip2VisionConfig(
        hidden_size=1408, intermediate_size=6144, num_hidden_layers=layers, num_attention_heads=16, image_size=224,
        patch_size=14, layer_norm_eps=EVA_EPS, qkv_bias=True,
    )  # fmt: skip
    qformer = ComposerConfig(
        token_width=1408, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
        vocab_size=BLIP2_VOCABULARY, fusion="none",
    )  # fmt: skip
    with torch.device("meta"):
        tower = LastHidden(Blip2VisionModel(vision), 1408, EVA_EPS, affine=False)
        parts = {f"tower.network.{name}": tensor for name, tensor in tower.state_dict().items()}
        parts |= Composer(qformer).own_weights()

    def fill(tensor: torch.Tensor, name: str) -> torch.Tensor:
        is_norm = "norm" in name.lower() and name.endswith("weight")
        return torch.empty(tensor.shape).normal_(1.0 if is_norm else 0.0, STD)

    named = to_lavis(LazyTensors({name: lambda t=tensor, n=name: fill(t, n) for name, tensor in parts.items()}))
    assert not named.unknown
    return {name: named.weights[name].clone() for name in named.weights if name not in {"prompt_tokens"}}


@contextmanager
def measured(name: str, stages: dict[str, dict[str, float]]) -> Iterator[None]:
    """Measure a stage: seconds, and the most memory that is no cached part of a file."""
    done, peak = threading.Event(), [0.0]

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], anonymous_gb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    seconds = time.perf_counter() - start
    stages[name] = {"seconds": round(seconds, 1), "peak_gb": round(peak[0], 2)}
    if torch.cuda.is_available():
        stages[name]["peak_gpu_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
        torch.cuda.reset_peak_memory_stats()
    sys.stderr.write(f"{name}: {stages[name]}\n")


def anonymous_gb() -> float:
    """Return this process's memory that is no cached part of a file (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    main()
