"""Parity of the vision transformers with the published ones, in the numbers of tests/golden."""

from __future__ import annotations

import re

import pytest
import torch

from composir.data.images import read_image
from composir.data.transforms import TRANSFORMS
from composir.errors import ComposirError
from composir.models import vit
from composir.models.qformer import Affine
from composir.models.vit import vit_tower
from composir.models.weights.names import rename, to_lavis

from ..conftest import GOLDEN


@pytest.fixture
def lavis_tower(golden):
    """Return golden weights by LAVIS's names, and by those of ``Tower.state_dict``."""

    def read(name):
        weights = {key: value for key, value in golden(name).items() if not key.startswith("__")}
        renamed = rename(weights)
        assert renamed.unknown == ()
        assert set(renamed.mapped) == set(weights)
        return weights, {new.removeprefix("tower."): tensor for new, tensor in renamed.weights.items()}

    return read


def split_norm(weights):
    """Return the tower's weights, and what scales and shifts its tokens."""
    affine = Affine(weights["ln_vision.weight"].shape[0])
    affine.load_state_dict({name: weights[f"ln_vision.{name}"] for name in ("weight", "bias")})
    return {key: tensor for key, tensor in weights.items() if key.startswith("network.")}, affine


@pytest.mark.parametrize("name", ["vit_eva", "vit_clip"])
def test_equals_the_published_tower(golden, lavis_tower, name):
    data, (weights, affine) = golden(name), split_norm(lavis_tower(name)[1])
    tower = vit_tower(weights, num_heads=4)
    assert (tower.num_tokens, tower.width, tower.image_size) == (17, 64, 56)
    with torch.inference_mode():
        torch.testing.assert_close(affine(tower.network(data["__input__"])), data["__output__"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["vit_eva", "vit_clip"])
def test_a_former_tower_that_has_the_norm_equals_the_published_one(golden, lavis_tower, name):
    data, (weights, affine) = golden(name), split_norm(lavis_tower(name)[1])
    former = weights | {f"network.norm.{key}": tensor for key, tensor in affine.state_dict().items()}
    tower = vit_tower(former, num_heads=4)
    assert not tower.network.norm.weight.requires_grad
    assert tower.fingerprint() != vit_tower(weights, num_heads=4).fingerprint()
    with torch.inference_mode():
        torch.testing.assert_close(tower.network(data["__input__"]), data["__output__"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ["vit_eva", "vit_clip"])
def test_what_the_network_sees_of_a_picture_is_what_the_published_one_sees(golden, lavis_tower, name, transform):
    """The golden pictures, all but the one with a palette, through a tower for 224 px with patches as BLIP-2's."""
    weights, _ = split_norm(lavis_tower(name)[1])
    (positions,) = (key for key in weights if "position_embedding" in key)
    weights[positions] = torch.zeros(*weights[positions].shape[:-2], 1 + 16 * 16, weights[positions].shape[-1])
    tower = vit_tower(weights, num_heads=4)
    tower.transform = transform
    seen = []
    tower.network.register_forward_pre_hook(lambda _, pixels: seen.append(pixels[0]))
    files = [file for file in sorted((GOLDEN / "images").iterdir()) if not file.name.startswith("06")]
    for file in files:
        tower.tokens([read_image(file)])
    expected = golden("transforms")
    assert len(seen) == 8
    for file, pixels in zip(files, seen, strict=True):
        assert (pixels.shape, pixels.dtype) == ((1, 3, 224, 224), torch.float32)
        every4, (mean, std) = (expected[f"{file.name[:2]}.{transform}.{part}"] for part in ("every4", "mean_std"))
        torch.testing.assert_close(pixels[0, :, ::4, ::4], every4, atol=1e-5, rtol=0)
        torch.testing.assert_close(
            torch.stack([pixels.mean(), pixels.std()]), torch.stack([mean, std]), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", ["vit_eva", "vit_clip"])
def test_the_names_go_back_to_lavis_weight_for_weight(lavis_tower, name):
    theirs, ours = lavis_tower(name)
    back = to_lavis({f"tower.{key}" if key.startswith("network.") else key: tensor for key, tensor in ours.items()})
    assert back.unknown == ()
    assert set(back.weights) == set(theirs)
    assert all(torch.equal(back.weights[key], tensor) for key, tensor in theirs.items())


def test_the_number_of_heads_of_another_width_is_asked_for(lavis_tower):
    with pytest.raises(ComposirError, match=r"the vision tower is 64 wide.*give vit_num_attention_heads"):
        vit_tower(split_norm(lavis_tower("vit_eva")[1])[0])


def test_a_gpu_computes_in_half_precision_and_keeps_the_hash(lavis_tower, monkeypatch):
    tower = vit_tower(split_norm(lavis_tower("vit_eva")[1])[0], num_heads=4)
    before, pixels = tower.fingerprint(), torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    plain = tower(pixels)
    assert tower.dtype_on(torch.device("cpu")) == torch.float32
    assert tower.dtype_on(torch.device("cuda")) == torch.float16
    monkeypatch.setattr(vit.Tower, "dtype_on", lambda self, device: torch.float16)
    tower.to("cpu")  # as if it were a GPU
    dtype_by_name = {name: weight.dtype for name, weight in tower.network.named_parameters()}
    halves = {name for name, dtype in dtype_by_name.items() if dtype == torch.float16}
    assert halves == {name for name in dtype_by_name if re.search(r"(patch_embedding|qkv|projection|fc\d)\.", name)}
    assert tower.fingerprint() == before
    torch.testing.assert_close(tower(pixels).float(), plain.float(), atol=2e-2, rtol=0)
