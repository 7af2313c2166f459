"""What the tables offer, by name, for ``--help``: the tables themselves import torch, which takes seconds.

A line in a table is a line here as well; tests/test_cli_help.py compares them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

DATASETS = (
    "CIRR",
    "FashionIQ",
    "CIRCO",
    "GeneCIS",
    "Fashion200k",
    "Shoes",
    "LaSCo",
    "i-CIR",
    "PinPoint",
    "EDIR",
    "MT-FashionIQ",
    "CIRCLED",
    "OACIRR",
    "own",
)
SUBMITTED = ("CIRR", "CIRCO")
"""The data sets that have a test server."""
TRANSFORMS = ("targetpad", "squarepad")
BACKBONES = {"mini": "no downloads", "pretrain": "ViT-g", "pretrain_vitL": "ViT-L", "tiny": "tests"}
FUSIONS = ("gate", "attention", "late", "tirg", "combiner", "sum")
HEADS = ("gate", "joint", "gate-joint", "combiner", "sum", "tirg")
LOSSES = ("infonce", "hn-nce")
MODELS = (
    "bge-vl-base", "bge-vl-large", "clip-vit-b-32", "siglip2-base", "qwen3-vl-embedding-2b", "blip2-itm-vit-g",
    "sprc-cirr", "sprc-fashioniq", "sprc-spn-cirr", "sprc-spn-fashioniq",
)  # fmt: skip
BUILT_IN = ("photos", "lite0")
INDEXES = {"exact": "default", "faiss": "large galleries", "qdrant": "a server or a cluster"}


def one_of(names: Sequence[str]) -> str:
    """Return the names as one reads them: ``a, b or c``."""
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def with_notes(note_by_name: Mapping[str, str]) -> str:
    """Return the names, each with what it is for."""
    return ", ".join(f"{name} ({note})" for name, note in note_by_name.items())
