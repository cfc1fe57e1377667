"""Networks that people tile, computed in tiles: the plan, the schedules, and the result."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import momentnorm
from momentnorm.tiles import TilesError, tiled
from support.models import cyclegan_generator


class UNet(nn.Module):
    """Two levels, a skip connection at each, a norm behind each convolution."""

    def __init__(self, axes=2, width=4):
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
        self.pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1](2)

        def block(inputs, outputs):
            return nn.Sequential(
                convolution(inputs, outputs, 3, padding=1), nn.GroupNorm(2, outputs), nn.SiLU()
            )

        self.down1, self.down2 = block(1, width), block(width, 2 * width)
        self.bottom = block(2 * width, 4 * width)
        self.up2, self.up1 = (
            transposed(4 * width, 2 * width, 2, 2),
            transposed(2 * width, width, 2, 2),
        )
        self.merge2, self.merge1 = block(4 * width, 2 * width), block(2 * width, width)
        self.last = convolution(width, 2, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(self.pool(one))
        y = self.bottom(self.pool(two))
        y = self.merge2(torch.cat([two, self.up2(y)], 1))
        return self.last(self.merge1(torch.cat([one, self.up1(y)], 1)))


class Residual(nn.Module):
    """The block of VAE decoders: norm, activation and convolution, twice, around a shortcut."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(2, inputs), nn.GroupNorm(2, outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(y)))


def vae_decoder():
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1),
        Residual(8, 8),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(8, 8, 3, padding=1),
        Residual(8, 4),
        nn.Upsample(scale_factor=2),
        Residual(4, 4),
        nn.GroupNorm(2, 4),
        nn.SiLU(),
        nn.Conv2d(4, 3, 3, padding=1),
    )


class Halo(nn.Module):
    """One pass measures a map and reads it with a halo, for another map that it measures."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, padding=1)
        self.norm1, self.norm2 = nn.InstanceNorm2d(2), nn.InstanceNorm2d(2)

    def forward(self, x):
        x = self.first(x)
        return self.norm1(x) + self.norm2(self.second(x))


NETWORKS = {
    "halo of a measured map": (Halo, (1, 22, 26), 8),
    "cyclegan": (lambda: cyclegan_generator(blocks=1), (3, 36, 28), 16),
    "unet": (UNet, (1, 44, 36), 16),
    "unet, three axes": (lambda: UNet(axes=3), (1, 16, 12, 20), 8),
    "vae decoder": (vae_decoder, (4, 9, 12), 16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    make, shape, tile = NETWORKS[name]
    model, image = make().double().eval(), torch.randn(shape, dtype=torch.float64)
    with torch.no_grad():
        wanted = model(image[None])
    close = {"rtol": 0, "atol": 1e-12 * max(wanted.abs().max().item(), 1)}
    for store in (True, False):
        torch.testing.assert_close(tiled(model, tile, store=store)(image), wanted, **close)


def test_accelerated_network():
    model = UNet().eval()
    image = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        wanted = model(image)
    momentnorm.accelerate(model)
    found = momentnorm.tiled(model, tile=16)(image)
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)


def test_half_precision():
    model = UNet().to(torch.bfloat16).eval()
    image = torch.randn(1, 1, 32, 32).bfloat16()
    with torch.no_grad():
        wanted = model(image)
    found = tiled(model, tile=16)(image)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.1)


@pytest.mark.parametrize("name", ["monai", "nnunet"])
def test_published_network(name):
    if name == "monai":
        monai = pytest.importorskip("monai.networks.nets")
        model = monai.UNet(2, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1)
    else:
        nets = pytest.importorskip("dynamic_network_architectures.architectures.unet")
        model = nets.PlainConvUNet(
            *(1, 3, (4, 8, 16), nn.Conv3d, 3, (1, 2, 2), 1, 2, 1),
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
    image = torch.randn(1, 1, *((24, 20) if name == "monai" else (12, 16, 8)), dtype=torch.float64)
    model = model.double().eval()
    with torch.no_grad():
        wanted = model(image)
    torch.testing.assert_close(tiled(model, tile=8)(image), wanted, rtol=0, atol=1e-11)


def test_plan_says_what_a_run_does():
    plan = tiled(UNet().eval(), tile=512, store=True).plan((1, 1, 4096, 4096))
    assert (plan.schedule, plan.tiles, plan.grid) == ("store", 64, (8, 8))
    assert [one.measured for one in plan.passes] == [
        ["down1.1"],
        ["down2.1"],
        ["bottom.1"],
        ["merge2.1"],
        ["merge1.1"],
        [],
    ]
    # The convolutions' outputs: 4 channels at full size, 8 at half, 16 at a quarter, and back.
    full = 4096 * 4096 * 4
    assert [one.written for one in plan.passes] == [4 * full, 2 * full, full, 2 * full, 4 * full, 0]
    assert [one.halo for one in plan.passes] == [1, 2, 2, 1, 1, 0]
    # down1.0 until pass 5 reads it, and what else is there beside it.
    assert plan.disk == (4 + 2 + 4) * full
    assert plan.multiplications / plan.untiled == pytest.approx(1.0, abs=0.02)
    assert plan.seconds > 0
    text = str(plan)
    assert "moments of bottom.1; reads down2.0; halo 2; writes 67.1 MB" in text
    assert "estimated time" in text


def test_recompute_needs_no_disk_and_more_arithmetic():
    shape = (1, 1, 4096, 4096)
    plan = tiled(UNet().eval(), tile=512, store=False).plan(shape, estimate=False)
    assert plan.disk == 0
    assert all(one.reads == ["the image"] for one in plan.passes)
    assert 2 < plan.multiplications / plan.untiled < 6
    assert plan.seconds is None


def test_memory_of_a_plan_does_not_depend_on_the_image():
    run = tiled(UNet().eval(), tile=256, store=True)
    small, large = (run.plan((1, 1, n, n), estimate=False).memory for n in (1024, 65536))
    assert large == small


def test_tiles_are_as_large_as_the_budget_allows():
    model, shape = UNet().eval(), (1, 1, 4096, 4096)
    plan = tiled(model, memory="60 MB").plan(shape, estimate=False)
    larger = tiled(model, tile=plan.tile[0] + 256).plan(shape, estimate=False)
    assert plan.memory <= 60_000_000 < larger.memory
    with pytest.raises(TilesError, match=r"need .* MB, more than the budget of 1 MB"):
        tiled(model, tile=512, memory=10**6).plan(shape)


class Branches(nn.Module):
    """Two norms side by side are measured in one pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.InstanceNorm2d(2), nn.GroupNorm(1, 2)

    def forward(self, x):
        return self.a(x) + self.b(2 * x)


def test_parallel_norms_share_a_pass():
    plan = tiled(Branches().eval(), tile=64, store=True).plan((1, 2, 256, 256))
    assert [one.measured for one in plan.passes] == [["a", "b"], []]
    assert plan.disk == 0  # they are cheap to compute again from the image


ARGUMENTS = {
    "tile": ({"tile": 0}, 'tile is "auto", a positive number'),
    "tiles": ({"tile": (8, 8, 8)}, "one for each of the 2 axes"),
    "memory": ({"memory": "much"}, "such as \"4GB\", not 'much'"),
    "store": ({"store": "disk"}, 'store is True, False or "auto"'),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_arguments(name):
    options, message = ARGUMENTS[name]
    with pytest.raises(TilesError, match=message):
        tiled(nn.Conv2d(1, 1, 1), **options)


class Two(nn.Module):
    def forward(self, x):
        return x, x


class Random(nn.Module):
    def forward(self, x):
        return F.dropout(x, training=True)


MODELS = {
    "training": (nn.Conv2d(1, 1, 1), (1, 1, 8, 8), r"call model.eval\(\) first"),
    "two outputs": (Two().eval(), (1, 1, 8, 8), "returns one tensor, got 2 outputs"),
    "channels": (nn.Conv2d(1, 1, 1).eval(), (1, 2, 8, 8), "torch.export cannot record the model"),
    "dimensions": (nn.Conv2d(1, 1, 1).eval(), (8, 8), "2 spatial axes, got"),
    "random": (Random().eval(), (1, 1, 8, 8), "dropout in the model's own forward: it is random"),
}


@pytest.mark.parametrize("name", MODELS)
def test_bad_models_and_shapes(name):
    model, shape, message = MODELS[name]
    with pytest.raises(TilesError, match=message):
        tiled(model).plan(shape)


def test_a_model_that_changed_is_recorded_again():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.InstanceNorm2d(1)).eval()
    run, image = tiled(model, tile=8), torch.randn(1, 1, 16, 16)
    run(image)
    model[0] = nn.Conv2d(1, 1, 1)
    model.double()
    with torch.no_grad():
        torch.testing.assert_close(run(image.double()), model(image.double()))


def test_moments_of_one_image_serve_another():
    model = UNet().double().eval()
    first, second = torch.randn(2, 1, 1, 32, 32, dtype=torch.float64)
    run = tiled(model, tile=16)
    moments = run.moments(first)
    assert list(moments) == ["down1.1", "down2.1", "bottom.1", "merge2.1", "merge1.1"]
    with torch.no_grad():
        direct = momentnorm.Moments.of(model.down1[0](first))
    torch.testing.assert_close(moments["down1.1"].var, direct.var)
    torch.testing.assert_close(run(first, moments=moments), run(first))
    # The second image with the first's statistics, layer by layer.
    found = run(second, moments=moments)
    hooks = [
        model.get_submodule(name).register_forward_hook(_with(moments[name])) for name in moments
    ]
    with torch.no_grad():
        wanted = model(second)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, run(second))
    del moments["bottom.1"]
    with pytest.raises(TilesError, match=r"of another model: bottom\.1 differ"):
        run(second, moments=moments)


def _with(moments):
    """A hook that puts GroupNorm's output with given moments in place of its own."""

    def hook(norm, inputs, _):
        (x,) = inputs
        n, c = x.shape[:2]
        mean, var = (t.reshape(n, norm.num_groups, -1) for t in (moments.mean, moments.var))
        pool_mean = mean.mean(2, keepdim=True)
        pool_var = (var + (mean - pool_mean) ** 2).mean(2, keepdim=True)
        groups = x.reshape(n, norm.num_groups, c // norm.num_groups, -1)
        y = (groups - pool_mean[..., None]) / (pool_var[..., None] + norm.eps).sqrt()
        return y.reshape(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]

    return hook
