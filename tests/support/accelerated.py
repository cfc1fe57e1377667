"""Helpers of the tests of accelerate: a small model, and comparisons of models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")


def small(norm=None):
    """Convolution, norm (an InstanceNorm2d by default) and ReLU."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True) if norm is None else norm,
        nn.ReLU(),
    )


def close(actual, expected):
    """Assert that two lists of tensors agree, relative to the largest value."""
    scale = max(tensor.abs().max().item() for tensor in expected)
    for mine, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=0, atol=1e-4 * scale)


def step(model, x):
    """Output and all gradients, in the model's mode, with equal random numbers each time."""
    torch.manual_seed(1)
    y = model(x)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [y, *torch.autograd.grad(y.square().sum(), parameters, allow_unused=True)]


def types(model):
    """Class of each module."""
    return [type(module) for module in model.modules()]
