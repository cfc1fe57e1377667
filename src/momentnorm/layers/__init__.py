"""Layers: one file for each norm, by its published name.

``LayerNorm``, ``RMSNorm`` and ``LocalResponseNorm`` are torch's own classes, here for completeness.
They are not policies on planes: the first two have a weight for each element of
``normalized_shape``, and the third has a window of neighbouring channels. ``GroupNorm(1, C)`` is
LayerNorm over (C, *S) with a weight per channel.
"""

from torch.nn import LayerNorm, LocalResponseNorm, RMSNorm

from .adain import AdaIN, AdaptiveInstanceNorm2d
from .batch_instance_norm import BatchInstanceNorm2d
from .batch_norm import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    LazyBatchNorm1d,
    LazyBatchNorm2d,
    LazyBatchNorm3d,
)
from .by_name import get_norm_layer, register_norm_layer
from .conditional_instance_norm import ConditionalInstanceNorm2d
from .contrast_norm import ContrastNorm2d
from .evo_norm import EvoNorm2dB0, EvoNorm2dS0
from .filter_response_norm import FilterResponseNorm2d
from .group_norm import GroupNorm
from .ibn import IBN
from .instance_norm import (
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    LazyInstanceNorm1d,
    LazyInstanceNorm2d,
    LazyInstanceNorm3d,
)
from .sequential import Sequential
from .spade import SPADE
from .switchable_norm import SwitchableNorm1d, SwitchableNorm2d, SwitchableNorm3d

__all__ = [
    "IBN",
    "SPADE",
    "AdaIN",
    "AdaptiveInstanceNorm2d",
    "BatchInstanceNorm2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "ConditionalInstanceNorm2d",
    "ContrastNorm2d",
    "EvoNorm2dB0",
    "EvoNorm2dS0",
    "FilterResponseNorm2d",
    "GroupNorm",
    "InstanceNorm1d",
    "InstanceNorm2d",
    "InstanceNorm3d",
    "LayerNorm",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "LazyInstanceNorm1d",
    "LazyInstanceNorm2d",
    "LazyInstanceNorm3d",
    "LocalResponseNorm",
    "RMSNorm",
    "Sequential",
    "SwitchableNorm1d",
    "SwitchableNorm2d",
    "SwitchableNorm3d",
    "get_norm_layer",
    "register_norm_layer",
]
