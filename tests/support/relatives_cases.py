"""Cases of the relatives of Instance Normalization."""

from __future__ import annotations

import copy

import torch

from support.tolerances import GRADIENT, OUTPUT, assert_within

LAYOUT_NAMES = ["contiguous", "channels_last", "sliced"]


def randomize(layer):
    """Set parameters and buffers of a layer to random values, so that no mistake cancels."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5)
        for buffer in layer.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return layer


def assert_is_formula(layer, formula, x):
    """Check y and all gradients of a layer against ``formula(layer, x)`` in float64."""
    twin = copy.deepcopy(layer).double()
    leaf = x.detach().double().contiguous().requires_grad_()
    expected = formula(twin, leaf)
    with torch.no_grad():
        assert_within(copy.deepcopy(layer)(x), expected, OUTPUT)
    y = layer(x)
    assert_within(y, expected, OUTPUT)
    gradient = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *layer.parameters()], gradient)
    wanted = torch.autograd.grad(expected, [leaf, *twin.parameters()], gradient.double())
    for mine, right in zip(found, wanted, strict=True):
        assert_within(mine, right, GRADIENT)
