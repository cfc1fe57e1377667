"""Findings about a whole model: biases without effect, and layers that are not called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import momentnorm
from momentnorm import check
from support.checkup_cases import (
    convolution,
    every_library,
    noise,
    summary,
    two_blocks,
)


@every_library
@pytest.mark.parametrize(
    ("layer", "norm", "wasted"),
    [
        (lambda: nn.Conv2d(3, 8, 3), lambda library: library.InstanceNorm2d(8), True),
        (lambda: nn.Conv2d(3, 8, 3), lambda library: library.BatchNorm2d(8), True),
        (lambda: nn.ConvTranspose2d(3, 8, 3), lambda library: library.GroupNorm(8, 8), True),
        (lambda: nn.Conv2d(3, 8, 3), lambda library: library.GroupNorm(2, 8), False),
        (lambda: nn.Conv2d(3, 8, 3, bias=False), lambda library: library.BatchNorm2d(8), False),
    ],
)
def test_a_bias_that_a_norm_removes(layer, norm, wasted, library):
    model = nn.Sequential(nn.Sequential(layer(), norm(library)), nn.ReLU())
    report = check(model, noise())
    assert summary(report) == ([("hint", "wasted-bias", "0.0")] if wasted else [])
    if wasted:
        assert "8 parameters" in report.findings[0].message
        x = noise()
        before = model(x)
        model[0][0].bias.data.normal_()
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


def test_an_accelerated_model_has_the_same_findings():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU())
    before = summary(check(model, noise()))
    momentnorm.accelerate(model)
    assert summary(check(model, noise())) == before == [("hint", "wasted-bias", "0")]


def test_a_bias_of_other_channels_has_an_effect():
    linear = nn.Linear(3, 8)
    assert check(nn.Sequential(linear, nn.BatchNorm1d(8)), noise(16, 3)).of("wasted-bias")
    # In (N, L, C) the channels of the norm are L, and those of the Linear are C.
    assert not check(nn.Sequential(linear, nn.BatchNorm1d(5)), noise(16, 5, 3)).of("wasted-bias")

    norm = nn.BatchNorm2d(8)  # called twice
    model = nn.Sequential(convolution(3), norm, nn.Conv2d(8, 8, 3), norm)
    assert summary(check(model, noise())) == [("hint", "wasted-bias", "2")]

    class Twice(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + self[0](x)

    assert summary(check(Twice(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), noise())) == []


@every_library
def test_a_layer_that_is_not_called(library):
    model = two_blocks(lambda: library.InstanceNorm2d(8))
    model.register_module("spare", library.InstanceNorm2d(8))
    model.forward = lambda x: model.head(model.body(model.stem(x)))
    assert summary(check(model, noise())) == [("hint", "unused", "spare")]
