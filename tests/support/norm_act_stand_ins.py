"""Stand-ins for layers of timm and torchvision, which the tests do not install.

timm needs torchvision, whose wheels belong to one build of torch. Names, modules, attributes and
results of the forwards are those of timm 1.0.
"""

from __future__ import annotations

import types

import torch
import torch.nn.functional as F
from torch import nn

#: Modules that pickle needs in ``sys.modules`` to find the classes.
MODULES = {name: types.ModuleType(name) for name in ("timm", "torchvision")}


def _of(name):
    """Decorator that makes a class look as if it was defined in the module of this name."""

    def defined(cls):
        cls.__module__ = cls.forward.__module__ = name
        module = MODULES.setdefault(name, types.ModuleType(name))
        setattr(module, cls.__name__, cls)
        return cls

    return defined


class DropBlock(nn.Module):
    """Dropout that is not a subclass of torch's, as timm's is not."""

    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


def _follow(self, act, drop):
    self.drop = nn.Identity() if drop is None else drop
    self.act = nn.Identity() if act is None else act


@_of("timm.layers.norm_act")
class BatchNormAct2d(nn.BatchNorm2d):
    def __init__(self, num_features, act=None, drop=None, **options):
        super().__init__(num_features, **options)
        _follow(self, act, drop)

    def forward(self, x):
        assert x.ndim == 4, f"expected 4D input (got {x.ndim}D input)"
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        used = not self.training or self.track_running_stats
        x = F.batch_norm(
            x,
            self.running_mean if used else None,
            self.running_var if used else None,
            self.weight,
            self.bias,
            self.training or self.running_mean is None,
            momentum,
            self.eps,
        )
        return self.act(self.drop(x))


@_of("timm.layers.norm_act")
class GroupNormAct(nn.GroupNorm):
    def __init__(self, num_channels, num_groups=2, act=None, drop=None):
        super().__init__(num_groups, num_channels)
        _follow(self, act, drop)
        self._fast_norm = False

    def forward(self, x):
        norm = fast_group_norm if self._fast_norm else F.group_norm
        return self.act(self.drop(norm(x, self.num_groups, self.weight, self.bias, self.eps)))


@_of("timm.layers.norm")
class GroupNorm1(nn.GroupNorm):
    def __init__(self, num_channels):
        super().__init__(1, num_channels)
        self._fast_norm = False

    def forward(self, x):
        norm = fast_group_norm if self._fast_norm else F.group_norm
        return norm(x, self.num_groups, self.weight, self.bias, self.eps)


@_of("timm.layers.norm")
class LayerNorm2d(nn.LayerNorm):
    def forward(self, x):
        x = F.layer_norm(
            x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return x.permute(0, 3, 1, 2)


def fast_group_norm(x, *operands):
    return F.group_norm(x, *operands)


class _Frozen(nn.Module):
    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.rand(num_features) + 0.5)
        self.register_buffer("bias", torch.randn(num_features))
        self.register_buffer("running_mean", torch.randn(num_features))
        self.register_buffer("running_var", torch.rand(num_features) + 0.5)

    def frozen(self, x):
        values = (self.weight, self.bias, self.running_var, self.running_mean)
        weight, bias, var, mean = (value.reshape(1, -1, 1, 1) for value in values)
        scale = weight * (var + self.eps).rsqrt()
        return x * scale + (bias - mean * scale)


@_of("torchvision.ops.misc")
class FrozenBatchNorm2d(_Frozen):
    def forward(self, x):
        return self.frozen(x)


@_of("timm.layers.norm_act")
class FrozenBatchNormAct2d(_Frozen):
    def __init__(self, num_features, act=None, drop=None):
        super().__init__(num_features)
        _follow(self, act, drop)

    def forward(self, x):
        return self.act(self.drop(self.frozen(x)))
