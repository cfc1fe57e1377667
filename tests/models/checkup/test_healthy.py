"""check finds nothing in healthy networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import check
from support.checkup_cases import (
    every_library,
    noise,
    summary,
    trained,
    two_blocks,
)


class _Residual(nn.Module):
    def __init__(self, channels, norm):
        super().__init__()
        self.branch = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            norm(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3, bias=False),
            norm(channels),
        )

    def forward(self, x):
        return x + self.branch(x)


def _generator(library):
    norm = library.InstanceNorm2d
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, 8, 7, bias=False),
        norm(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, 2, 1, bias=False),
        norm(16),
        nn.ReLU(inplace=True),
        *(_Residual(16, norm) for _ in range(3)),
        nn.ConvTranspose2d(16, 8, 3, 2, 1, 1, bias=False),
        norm(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 3, 7, padding=3),
        nn.Tanh(),
    ), (torch.rand(1, 3, 32, 32) * 2 - 1,)


def _resnet(library):
    norm = library.BatchNorm2d
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        norm(16),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        *(_Residual(16, norm) for _ in range(3)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 32, bias=False),
        library.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    x = torch.randn(16, 3, 32, 32) * torch.tensor([0.5, 1, 2]).view(1, 3, 1, 1)
    return trained(model, x), (x,)


class _UNet(nn.Module):
    def __init__(self, library):
        super().__init__()

        def stage(inputs, outputs, stride):
            return nn.Sequential(
                nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False),
                library.InstanceNorm3d(outputs, affine=True),
                nn.LeakyReLU(0.01, inplace=True),
                nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False),
                library.GroupNorm(2, outputs),
                nn.LeakyReLU(0.01, inplace=True),
            )

        self.down = nn.ModuleList([stage(1, 4, 1), stage(4, 8, 2), stage(8, 16, 2)])
        self.up = nn.ModuleList([stage(24, 8, 1), stage(12, 4, 1)])
        self.head = nn.Conv3d(4, 2, 1)

    def forward(self, batch):
        skips = []
        x = batch["image"]
        for stage in self.down:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for stage in self.up:
            x = nn.functional.interpolate(x, scale_factor=2.0)
            x = stage(torch.cat((x, skips.pop()), 1))
        return {"segmentation": (self.head(x), x)}


def _unet(library):
    return _UNet(library), ({"image": torch.randn(2, 1, 16, 16, 16)},)


def _transformer(library):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    embed = nn.Sequential(nn.Embedding(50, 32), library.LayerNorm(32))
    encoder = nn.TransformerEncoder(layer, 2, norm=library.RMSNorm(32))
    return nn.Sequential(embed, encoder), (torch.randint(50, (3, 12)),)


NETWORKS = {f.__name__[1:]: f for f in (_generator, _resnet, _unet, _transformer)}


@every_library
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("network", NETWORKS)
def test_healthy_networks_have_no_findings(network, training, library):
    model, inputs = NETWORKS[network](library)
    report = check(model.train(training), *inputs)
    assert summary(report) == [], str(report)
    assert report.calls == report.layers > 3
    assert report.training is training
    assert report.ok
    assert report


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "norm",
    [momentnorm.SwitchableNorm2d, momentnorm.BatchInstanceNorm2d, momentnorm.IBN],
)
def test_healthy_relatives_have_no_findings(norm, training):
    x = noise()
    model = trained(two_blocks(lambda: norm(8)), x).train(training)
    report = check(model, x)
    assert summary(report) == [], str(report)
    assert report.calls == (4 if norm is momentnorm.IBN else 2)


def test_the_layers_of_a_transformer_with_padding_are_called():
    # torch's fast path would skip the layers, and pack the tokens that are not padding.
    model, _ = _transformer(nn)
    encoder = model[1].eval()
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    report = check(encoder, noise(2, 5, 32), src_key_padding_mask=padding)
    assert summary(report) == []
    assert report.calls == report.layers == 5
