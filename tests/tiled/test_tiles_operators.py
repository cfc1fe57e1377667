"""Every operator that is computed in tiles gives what it gives on the whole map."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import momentnorm
from momentnorm.tiles import TilesError, tiled

#: The largest difference in float64, relative to the largest output: other orders of summation.
CLOSE = 1e-12


def assert_equals_untiled(model, image, tile, store, close=CLOSE):
    model = model.to(image.dtype).eval()
    with torch.no_grad():
        wanted = model(image)
    found = tiled(model, tile=tile, store=store)(image)
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    largest = max(wanted.abs().max().item(), 1.0)
    torch.testing.assert_close(found, wanted, rtol=0, atol=close * largest)


class Apply(nn.Module):
    """A function between two convolutions and a norm, so that both sides are cut."""

    def __init__(self, function, channels=4, axes=2):
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        self.first = convolution(3, channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, channels)
        self.function = function

    def forward(self, x):
        return self.function(self.norm(self.first(x)))


TWO_AXES = {
    "strided, dilated, grouped": nn.Conv2d(4, 6, 3, stride=2, padding=3, dilation=2, groups=2),
    "same, even kernel": nn.Conv2d(4, 2, (4, 2), padding="same"),
    "valid": nn.Conv2d(4, 2, (1, 5), padding="valid"),
    "padding beyond the kernel": nn.Conv2d(4, 2, 1, padding=2),
    "reflect": nn.Conv2d(4, 2, 5, padding=2, padding_mode="reflect"),
    "replicate": nn.Conv2d(4, 2, 3, padding=1, padding_mode="replicate"),
    "transposed": nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=1),
    "transposed with holes": nn.ConvTranspose2d(4, 2, 2, stride=3, dilation=1, output_padding=2),
    "transposed, grouped, dilated": nn.ConvTranspose2d(4, 4, 3, 2, 2, groups=2, dilation=2),
    "max pool": nn.MaxPool2d(3, 2, 1),
    "max pool, ceil": nn.MaxPool2d(2, 2, ceil_mode=True),
    "average pool": nn.AvgPool2d(3, 2, 1),
    "average pool, ceil": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average pool, divisor": nn.AvgPool2d(2, divisor_override=3),
    "zero pad and crop": nn.ZeroPad2d((2, -3, -1, 4)),
    "constant pad": nn.ConstantPad2d(2, 1.5),
    "slices": lambda x: x[:, 1:, 3:-2, ::2],
    "nearest by factor": lambda x: F.interpolate(x, scale_factor=2),
    "nearest by size": lambda x: F.interpolate(x, size=(31, 50)),
    "nearest exact": lambda x: F.interpolate(x, scale_factor=1.3, mode="nearest-exact"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear down": lambda x: F.interpolate(x, scale_factor=0.6, mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(
        x, size=(40, 33), mode="bilinear", align_corners=True
    ),
    "bicubic": lambda x: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "pixel shuffle": nn.Sequential(nn.Conv2d(4, 8, 1), nn.PixelShuffle(2)),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :24, :18], 3),
    "chunks": lambda x: torch.cat([x.chunk(2, 1)[0].sigmoid() * x[:, 2:], x], 1),
    "softmax": lambda x: x.softmax(1),
    "mean over channels": lambda x: x * x.mean(1, keepdim=True).sigmoid(),
    "squeeze and excite": lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid(),
    "variance over all": lambda x: x / (x.var((2, 3), keepdim=True) + 1).sqrt(),
    "mean over samples too": lambda x: x - x.mean((0, 2, 3), keepdim=True),
    "position map": lambda x: x + torch.arange(x.shape[3], dtype=x.dtype),
    "repeat": lambda x: x[:, :1].repeat(1, 2, 1, 1) + x[:, 1:2].expand(-1, 2, -1, -1),
    "in place": lambda x: F.leaky_relu(x, 0.1, inplace=True).add_(1).mul_(x),
    "classifier": lambda x: F.relu(x).mean((2, 3)) @ torch.ones(4, 5, dtype=x.dtype),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, about its own speed
@pytest.mark.parametrize("name", TWO_AXES)
def test_operator(name):
    function = TWO_AXES[name]
    model = Apply(function)
    image = torch.randn(2, 3, 26, 21, dtype=torch.float64)
    assert_equals_untiled(model, image, (7, 9), store=True)


OTHER_AXES = {
    1: nn.Sequential(nn.ConvTranspose1d(4, 4, 4, 2, 1), nn.AvgPool1d(3, 2, 1), nn.MaxPool1d(2)),
    3: nn.Sequential(
        nn.Conv3d(4, 4, 3, 2, 1),
        nn.InstanceNorm3d(4),
        nn.Upsample(scale_factor=2, mode="trilinear"),
        nn.ConvTranspose3d(4, 2, 2, 2),
        nn.AvgPool3d(3, 2, 1),
        nn.MaxPool3d(2),
        nn.Upsample(scale_factor=2),
    ),
}


@pytest.mark.parametrize("axes", OTHER_AXES)
def test_one_and_three_axes(axes):
    size = {1: (53,), 3: (13, 9, 14)}[axes]
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    model = Apply(OTHER_AXES[axes], axes=axes)
    assert_equals_untiled(model, image, 6, store=axes == 3)


NORMS = {
    "instance": nn.InstanceNorm2d(4, affine=True),
    "instance, running": nn.InstanceNorm2d(4, track_running_stats=True),
    "batch": nn.BatchNorm2d(4),
    "batch of the input": nn.BatchNorm2d(4, track_running_stats=False),
    "group": nn.GroupNorm(2, 4),
    "ours, instance": momentnorm.InstanceNorm2d(4, affine=True),
    "switchable": momentnorm.SwitchableNorm2d(4),
    "ibn": momentnorm.IBN(4),
    "batch instance": momentnorm.BatchInstanceNorm2d(4),
    "contrast": momentnorm.ContrastNorm2d(4),
    "filter response": momentnorm.FilterResponseNorm2d(4),
    "evo norm": momentnorm.EvoNorm2dS0(4, groups=2),
}


@pytest.mark.parametrize("name", NORMS)
def test_norm(name):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), NORMS[name], nn.ReLU(True), nn.Conv2d(4, 2, 3))
    image = 3 + torch.randn(2, 3, 22, 17, dtype=torch.float64)
    assert_equals_untiled(model, image, 8, store=True)


STEPS = {
    "convolve": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "dilate": lambda: nn.Conv2d(4, 4, 3, padding=2, dilation=2, padding_mode="reflect"),
    "down": lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1),
    "up": lambda: nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "pool": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "norm": lambda: nn.InstanceNorm2d(4),
    "groups": lambda: nn.GroupNorm(2, 4),
    "relu": lambda: nn.ReLU(True),
}


class Random(nn.Module):
    """Steps in a row, some of them around a skip connection."""

    def __init__(self, steps):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.steps = nn.ModuleList(STEPS[name]() for name, _ in steps)
        self.skips = [skip for _, skip in steps]

    def forward(self, x):
        x = self.first(x)
        for step, skip in zip(self.steps, self.skips, strict=True):
            y = step(x)
            if skip:
                x = F.interpolate(x, size=y.shape[2:], mode="bilinear")
            x = x + y if skip else y
        return x


@settings(max_examples=8)
@given(
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.booleans()), max_size=6),
    size=st.tuples(st.integers(17, 33), st.integers(17, 33)),
    tile=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    store=st.booleans(),
)
def test_random_networks(steps, size, tile, store):
    torch.manual_seed(len(steps))
    image = torch.randn(1, 2, *size, dtype=torch.float64)
    assert_equals_untiled(Random(steps), image, tile, store, close=1e-10)


def test_float32_is_within_its_rounding():
    model = Random([("down", False), ("norm", False), ("relu", False), ("up", False)])
    image = torch.randn(1, 2, 64, 48)
    assert_equals_untiled(model, image, 16, store=True, close=1e-5)


def test_a_mean_far_from_zero_costs_no_digits():
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.InstanceNorm2d(1, eps=0))
    nn.init.ones_(model[0].weight)
    image = 1000 + 0.01 * torch.randn(1, 1, 64, 64, dtype=torch.float64)
    exact = (image - image.mean()) / image.var(correction=0).sqrt()
    single = image.float().double()
    exact = (single - single.mean()) / single.var(correction=0).sqrt()
    found = tiled(model.eval(), tile=16)(image.float())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-5)


def test_a_halo_that_is_too_small_would_be_seen(monkeypatch):
    from momentnorm.tiles.rules import windows

    right = windows.Window.wanted

    def narrow(self, node, region):
        return tuple((a + 1, b + 1) for a, b in right(self, node, region))

    monkeypatch.setattr(windows.Window, "wanted", narrow)
    with pytest.raises(AssertionError, match="not close"):
        assert_equals_untiled(
            Apply(nn.Conv2d(4, 4, 3, padding=1)), torch.randn(1, 3, 20, 20).double(), 8, True
        )


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(1, 4)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x):
        y = self.norm(x).flatten(2).transpose(1, 2)
        y = self.attention(y, y, y, need_weights=False)[0]
        return x + y.transpose(1, 2).unflatten(2, x.shape[2:])


REFUSED = {
    "a transformer": (nn.Sequential(nn.Conv2d(3, 4, 1), Attention()), r"transpose at 1: it moves"),
    "adaptive": (
        nn.AdaptiveAvgPool2d(3),
        "adaptive_avg_pool2d in the model's own forward: its win",
    ),
    "layer norm": (nn.Sequential(nn.LayerNorm(20)), r"layer_norm at 0: .* use GroupNorm\(1, ch"),
    "circular": (nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"), "opposite border"),
    "linear": (
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(800, 2)),
        "at 1: it reord",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_the_whole_map_is_refused_by_name(name):
    model, message = REFUSED[name]
    with pytest.raises(TilesError, match=message) as error:
        tiled(model.eval(), tile=8).plan((1, 3, 20, 20))
    assert "\n" not in str(error.value)
