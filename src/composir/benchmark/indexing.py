"""What indexing a picture takes beside its parts, each alone: processor time, as pictures are read beside the tower."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from composir.models.backbones import build
from composir.models.checkpoint import save_pretrained
from composir.search.encoder import ComposerEncoder, open_encoder
from composir.search.folder import index_folder

CPU = "cpu"
OPEN = "open"
Made = TypeVar("Made")


def save_untrained(backbone: str, folder: Path) -> None:
    """Write a checkpoint of a backbone's starting weights."""
    torch.manual_seed(0)
    save_pretrained(build(backbone).eval(), folder)


def index(pictures: Path, model: Path) -> float:
    """Return the seconds of ``index_folder`` over a folder, from the opening of the model to the last commit."""
    with tempfile.TemporaryDirectory(dir=model.parent) as out:
        return _timed(lambda: index_folder(pictures, Path(out), model=model, device=CPU))[0]


def parts(pictures: Sequence[Path], model: Path) -> dict[str, float]:
    """Return the seconds of each part over all pictures, by the batches in which they are indexed.

    The model is opened, Pillow decodes the pictures to RGB, they become the tower's squares, then tokens, and the
    Q-Former makes vectors of these.
    """
    seconds: dict[str, float] = {}
    seconds[OPEN], encoder = _timed(lambda: open_encoder(model, CPU))
    assert isinstance(encoder, ComposerEncoder) and encoder.model.tower is not None
    tower, look = encoder.model.tower, encoder.model.encode_target
    seconds["decode"], decoded = _timed(lambda: [Image.open(picture).convert("RGB") for picture in pictures])
    seconds["square"], squares = _timed(lambda: [encoder.prepare(one) for one in decoded])
    batches = torch.from_numpy(np.stack(squares)).split(encoder.batch_size)
    seconds["tower"], tokens = _timed(lambda: [tower(batch) for batch in batches])
    with torch.inference_mode():
        seconds["Q-Former"], _ = _timed(lambda: [look(batch) for batch in tokens])
    return seconds


def _timed(work: Callable[[], Made]) -> tuple[float, Made]:
    start = time.process_time()
    made = work()
    return time.process_time() - start, made
