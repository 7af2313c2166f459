from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from composir import selfcheck
from composir.selfcheck import check_gated_fusion

ROOT = Path(__file__).parents[1]


def test_prints_what_the_published_self_check_promises():
    done = subprocess.run(
        [sys.executable, ROOT / "test_gated_fusion.py"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "1. Create the module (hidden_size=768)",
        "2,952,193",
        "torch.Size([4, 257, 768])",
        "torch.Size([4, 32, 768])",
        "image_feat: True",
        "text_feat: True",
        "5. Gate mechanism",
        "All checks passed.",
    ):
        assert words in done.stdout
    zero, normal = (float(line.split(":")[1]) for line in done.stdout.splitlines() if "change made by" in line)
    assert 0 < zero < normal


def test_is_deterministic_and_leaves_the_random_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert check_gated_fusion(64) == check_gated_fusion(64)
    assert torch.equal(before, torch.get_rng_state())


class WithoutText(selfcheck.GatedFusion):
    def forward(self, image_tokens, text_tokens, text_mask=None):
        return super().forward(image_tokens, torch.zeros_like(text_tokens), text_mask)


class Spoilt(selfcheck.GatedFusion):
    def forward(self, image_tokens, text_tokens, text_mask=None):
        return super().forward(image_tokens, text_tokens, text_mask)[:, 1:]


class OneTooMany(selfcheck.GatedFusion):
    def __init__(self, hidden_size):
        super().__init__(hidden_size)
        self.more = torch.nn.Parameter(torch.zeros(1))


@pytest.mark.parametrize(
    ("broken", "line"),
    [(WithoutText, "text_feat: False"), (OneTooMany, "parameters: "), (Spoilt, "output: torch.Size([4, 256, 64])")],
)
def test_fails_where_the_module_is_broken(monkeypatch, broken, line):
    monkeypatch.setattr(selfcheck, "GatedFusion", broken)
    try:
        report = check_gated_fusion(64)
    except RuntimeError:  # shapes that cannot even be subtracted
        assert broken is Spoilt
        return
    assert not report.passed
    assert any("[FAILED]" in printed and line in printed for printed in report.lines)
