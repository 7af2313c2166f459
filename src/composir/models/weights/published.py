"""What the published files of weights are called, and which of them a backbone needs; imports no torch."""

from __future__ import annotations

from composir.errors import ComposirError

EVA_FILE, CLIP_FILE = "eva_vit_g.pth", "clip_vit_L.pth"
"""The towers of ViT-g and of ViT-L as LAVIS publishes them, files of their own."""
EXPECTED = {
    "pretrain": f"a folder with LAVIS's blip2_pretrained.pth and {EVA_FILE}, a .pt of SPRC, "
    "or Salesforce/blip2-itm-vit-g (hub id or folder)",
    "pretrain_vitL": f"a folder with LAVIS's blip2_pretrained_vitL.pth and {CLIP_FILE}, or a .pt of SPRC on ViT-L",
}
"""By backbone."""


def no_weights(backbone: str) -> ComposirError:
    """Return the error for a backbone of ``EXPECTED`` that was given no weights."""
    return ComposirError(
        f"the backbone {backbone!r} needs pretrained weights, and none were given",
        expected=EXPECTED[backbone],
        fix="give it with --weights, or train without any download: --backbone mini",
    )
