"""Cases with a residual and an activation, fused and by torch's own operators."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import momentnorm
from momentnorm.functional import instance_norm
from support.layouts import LAYOUTS

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


TORCHS = {
    None: lambda values: values,
    "relu": F.relu,
    "leaky_relu": lambda values: F.leaky_relu(values, 0.2),
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


STATS = {True: lambda: (None, None), False: lambda: (torch.randn(3), torch.rand(3) + 0.5)}


every_activation = pytest.mark.parametrize("activation", TORCHS)


with_and_without_residual = pytest.mark.parametrize("with_residual", [False, True])


in_both_modes = pytest.mark.parametrize("training", [True, False])


# torch calls its own deprecated script compiler when forward mode is first used.
deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")


def by_formula(x, stats, weight, bias, residual, activation, training=True):
    """y by torch's own layers, one after the other."""
    stats = [None if s is None else s.to(x.dtype) for s in stats]
    y = F.instance_norm(x, *stats, weight, bias, training)
    return TORCHS[activation](y if residual is None else y + residual)


def sloped(activation):
    """Activation for a call, with a negative slope if it takes one."""
    return (activation, 0.2) if activation == "leaky_relu" else activation


def by_fusion(x, stats, weight, bias, residual, activation, training=True, **options):
    return instance_norm(
        x,
        *stats,
        weight,
        bias,
        training,
        activation=sloped(activation),
        residual=residual,
        **options,
    )


def make_operands(dtype, layout="contiguous", with_residual=True, shape=(2, 3, 5, 7)):
    """x, weight, bias and residual, a gradient, and contiguous float64 copies of all."""
    x = LAYOUTS[layout]((3 * torch.randn(shape, dtype=torch.float64) + 2).to(dtype))
    weight = (torch.rand(shape[1], dtype=torch.float64) + 0.5).to(dtype)
    bias = torch.randn(shape[1], dtype=torch.float64).to(dtype)
    residual = LAYOUTS[layout](torch.randn(shape, dtype=torch.float64).to(dtype))
    gradient = LAYOUTS[layout](torch.randn(shape, dtype=torch.float64).to(dtype))
    ours = [x, weight, bias, residual if with_residual else None]
    twins = [None if t is None else t.double().contiguous() for t in ours]
    for operand in (*ours, *twins):
        if operand is not None:
            operand.requires_grad_()
    return ours, gradient, twins, gradient.double().contiguous()


def optioned_layer(training=True, **options):
    layer = momentnorm.InstanceNorm2d(3, affine=True, track_running_stats=True, **options)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5), layer.bias.uniform_(-1, 1)
    return layer.train(training)
