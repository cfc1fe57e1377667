"""Layers that the explainer explains, with an input and the further operands of each call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import momentnorm


def _set(layer, **attributes):
    vars(layer).update(attributes)
    return layer


#: Layer of each class in each way of use, and the shape of its input.
LAYERS = {
    "instance": (lambda: momentnorm.InstanceNorm2d(4), (2, 4, 3, 5)),
    "instance 1d": (lambda: momentnorm.InstanceNorm1d(4, affine=True), (2, 4, 7)),
    "instance 3d": (lambda: momentnorm.InstanceNorm3d(4), (2, 4, 2, 3, 2)),
    "instance tracking": (
        lambda: momentnorm.InstanceNorm2d(4, affine=True, track_running_stats=True),
        (2, 4, 3, 5),
    ),
    "instance momentum None": (
        lambda: momentnorm.InstanceNorm2d(4, momentum=None, track_running_stats=True),
        (2, 4, 3, 5),
    ),
    "instance unbatched": (lambda: momentnorm.InstanceNorm2d(4, affine=True), (4, 3, 5)),
    "instance eps 0": (lambda: momentnorm.InstanceNorm2d(4, eps=0.0), (2, 4, 3, 5)),
    "instance relu": (lambda: momentnorm.InstanceNorm2d(4, activation="relu"), (2, 4, 3, 5)),
    "instance inplace": (lambda: momentnorm.InstanceNorm2d(4, inplace=True), (2, 4, 3, 5)),
    "lazy instance": (lambda: momentnorm.LazyInstanceNorm2d(affine=True), (2, 4, 3, 5)),
    "torch instance": (lambda: nn.InstanceNorm2d(4, affine=True), (2, 4, 3, 5)),
    "torch lazy instance": (lambda: nn.LazyInstanceNorm2d(affine=True), (2, 4, 3, 5)),
    "batch": (lambda: momentnorm.BatchNorm2d(4), (2, 4, 3, 5)),
    "batch momentum None": (lambda: momentnorm.BatchNorm2d(4, momentum=None), (2, 4, 3, 5)),
    "batch untracked": (
        lambda: momentnorm.BatchNorm2d(4, track_running_stats=False),
        (2, 4, 3, 5),
    ),
    "batch 1d": (lambda: momentnorm.BatchNorm1d(4), (2, 4, 7)),
    "batch of vectors": (lambda: momentnorm.BatchNorm1d(4, activation="gelu"), (5, 4)),
    "batch no bias": (lambda: momentnorm.BatchNorm3d(4, bias=False), (2, 4, 2, 3, 2)),
    "torch batch": (lambda: nn.BatchNorm2d(4), (2, 4, 3, 5)),
    "group": (lambda: momentnorm.GroupNorm(2, 4, activation="silu"), (2, 4, 3, 5)),
    "group of one": (lambda: momentnorm.GroupNorm(1, 4), (2, 4, 3, 5)),
    "group of vectors": (lambda: momentnorm.GroupNorm(2, 4), (3, 4)),
    "torch group": (lambda: nn.GroupNorm(2, 4, affine=False), (2, 4, 3, 5)),
    "layer": (lambda: momentnorm.LayerNorm((4, 3, 5)), (2, 4, 3, 5)),
    "layer last": (lambda: nn.LayerNorm(5, bias=False), (2, 4, 3, 5)),
    "layer plain": (lambda: nn.LayerNorm((4, 3), elementwise_affine=False), (4, 3)),
    "rms": (lambda: momentnorm.RMSNorm((4, 3, 5)), (2, 4, 3, 5)),
    "rms eps": (lambda: nn.RMSNorm(5, eps=0.1), (2, 4, 3, 5)),
    "local response": (lambda: momentnorm.LocalResponseNorm(3, alpha=0.5), (2, 4, 3, 5)),
    "local response even": (lambda: nn.LocalResponseNorm(4, 0.9, 0.6, 2.0), (2, 5, 3)),
    "switchable": (lambda: momentnorm.SwitchableNorm2d(4), (2, 4, 3, 5)),
    "switchable 1d": (lambda: momentnorm.SwitchableNorm1d(4), (3, 4)),
    "switchable 3d sums": (
        lambda: momentnorm.SwitchableNorm3d(4, using_moving_average=False),
        (2, 4, 2, 3, 2),
    ),
    "switchable without batch": (
        lambda: momentnorm.SwitchableNorm2d(4, using_bn=False),
        (2, 4, 3, 5),
    ),
    "batch instance": (lambda: momentnorm.BatchInstanceNorm2d(4), (2, 4, 3, 5)),
    "batch instance no longer tracking": (
        lambda: _set(momentnorm.BatchInstanceNorm2d(4), track_running_stats=False),
        (2, 4, 3, 5),
    ),
    "batch no longer tracking": (
        lambda: _set(momentnorm.BatchNorm2d(4), track_running_stats=False),
        (2, 4, 3, 5),
    ),
    "batch instance momentum None": (
        lambda: momentnorm.BatchInstanceNorm2d(4, momentum=None),
        (2, 4, 3, 5),
    ),
    "ibn": (lambda: momentnorm.IBN(4, 0.25), (2, 4, 3, 5)),
    "contrast": (lambda: momentnorm.ContrastNorm2d(0.5), (2, 4, 3, 5)),
    "filter response": (lambda: momentnorm.FilterResponseNorm2d(4), (2, 4, 3, 5)),
    "filter response learned eps": (
        lambda: momentnorm.FilterResponseNorm2d(4, learnable_eps=True, threshold=False),
        (2, 4, 3, 5),
    ),
    "evonorm s0": (lambda: momentnorm.EvoNorm2dS0(4, 2), (2, 4, 3, 5)),
    "evonorm b0": (lambda: momentnorm.EvoNorm2dB0(4), (2, 4, 3, 5)),
    "conditional": (lambda: momentnorm.ConditionalInstanceNorm2d(4, 3), (2, 4, 3, 5)),
    "conditional mixed": (lambda: momentnorm.ConditionalInstanceNorm2d(4, 3), (2, 4, 3, 5)),
    "adaptive": (lambda: momentnorm.AdaptiveInstanceNorm2d(4), (2, 4, 3, 5)),
    "adain": (lambda: momentnorm.AdaIN(), (2, 4, 3, 5)),
    "adain pytorch": (lambda: momentnorm.AdaIN(variant="pytorch"), (2, 4, 3, 5)),
    "spade": (lambda: momentnorm.SPADE(4, 2, hidden_channels=8), (2, 4, 3, 5)),
    "spade batch": (
        lambda: momentnorm.SPADE(4, 2, norm="batch", hidden_channels=8),
        (2, 4, 3, 5),
    ),
}

#: Further operands of a call.
OPERANDS = {
    "conditional": lambda: (torch.tensor([2, 0]),),
    "conditional mixed": lambda: (torch.tensor([0.5, 0.2, 0.3]),),
    "adaptive": lambda: (torch.randn(2, 4), torch.randn(2, 4)),
    "adain": lambda: (torch.randn(2, 4, 7, 2),),
    "adain pytorch": lambda: (torch.randn(1, 4, 7, 2),),
    "spade": lambda: (torch.randn(2, 2, 6, 6),),
    "spade batch": lambda: (torch.randn(2, 2, 6, 6),),
}

#: Layers that compute in the dtype of the input. They are compared in float64.
IN_INPUT_DTYPE = (
    "adain",
    "adain pytorch",
    "conditional mixed",
    "spade",
    "spade batch",
    "evonorm s0",
    "evonorm b0",
)

every_layer = pytest.mark.parametrize("kind", LAYERS)


def made(kind, dtype=torch.float32, training=True):
    """Layer whose parameters and buffers are not those of a new one, its input and operands."""
    make, shape = LAYERS[kind]
    x = torch.randn(shape).to(dtype) * 3 + 2
    more = OPERANDS.get(kind, tuple)()
    layer = make()
    with torch.no_grad():
        layer(x.float().clone(), *more)  # lazy layers get parameters, and buffers move
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
        if hasattr(layer, "gate"):
            layer.gate.copy_(torch.tensor([0.0, 0.3, 1.0, 1.2]))
    more = tuple(one.to(dtype) if one.is_floating_point() else one for one in more)
    return layer.to(dtype).train(training), x, *more
