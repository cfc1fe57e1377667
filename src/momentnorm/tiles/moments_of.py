"""Statistics of a whole map, merged from its tiles."""

from __future__ import annotations

import torch
from torch import Tensor

from ..moments import Moments


class Statistics:
    """Mean and biased variance of every plane of a map, (N, C) in float64, and their count."""

    def __init__(self, moments: Moments) -> None:
        self.mean = moments.mean
        self.var = moments.var
        self.count = float(moments.count.max())

    def pooled(self, samples: bool, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and variance, (N, C), of pools of planes: ``groups`` groups of channels, and all
        samples together or each by itself. Planes of one map have equal counts."""
        n, c = self.mean.shape
        shape = (n, groups, c // groups)
        axes = [0, 2] if samples else [2]
        mean, var = self.mean.reshape(shape), self.var.reshape(shape)
        pool_mean = mean.mean(axes, keepdim=True)
        pool_var = var.mean(axes, keepdim=True) + (mean - pool_mean).square().mean(
            axes, keepdim=True
        )
        return pool_mean.expand(shape).reshape(n, c), pool_var.expand(shape).reshape(n, c)


def merged(parts: list[Moments | None]) -> Moments:
    """The moments of all parts, folded in their order; None stands for an empty part."""
    present = [part for part in parts if part is not None]
    total = present[0]
    for part in present[1:]:
        total = total.merge(part)
    return total


def on(moments: Moments, device: torch.device) -> Moments:
    """The moments on a device."""
    count, mean, var = (t.to(device) for t in (moments.count, moments.mean, moments.var))
    return Moments(count, mean, var)
