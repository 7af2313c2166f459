"""Parity of the vision transformers with the published ones, in the numbers of tests/golden."""

from __future__ import annotations

import pytest
import torch

from composir.models.vit import tower_from_lavis


@pytest.mark.parametrize("name", ["vit_eva", "vit_clip"])
def test_equals_the_published_tower(golden, name):
    data = golden(name)
    weights = {key: value for key, value in data.items() if not key.startswith("__")}
    tower = tower_from_lavis(weights, num_heads=4)
    assert (tower.num_tokens, tower.width, tower.image_size) == (17, 64, 56)
    with torch.inference_mode():
        torch.testing.assert_close(tower.network(data["__input__"]), data["__output__"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["vit_eva", "vit_clip"])
def test_every_weight_has_a_place(golden, name):
    weights = {key: value for key, value in golden(name).items() if not key.startswith("__")}
    with pytest.raises(KeyError, match=r"no rule for visual_encoder\.surplus"):
        tower_from_lavis({**weights, "visual_encoder.surplus": torch.zeros(1)}, num_heads=4)
    missing = next(key for key in weights if "mlp" in key and key.endswith("bias"))
    with pytest.raises(RuntimeError, match="Missing key"):
        tower_from_lavis({key: value for key, value in weights.items() if key != missing}, num_heads=4)
