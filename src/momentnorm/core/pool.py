"""Pools: which planes of a feature map share their statistics.

A feature map (N, C, *S) is a grid of N x C planes. The norms of the family differ in the planes
that share their mean and variance. A policy is a function that decides this. It takes the
``(mean, var)`` of each plane, both (N, C). It returns the ``(mean, var)`` that each plane is
normalized with, (N, C) or broadcastable to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

Policy: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pool:
    """A rectangle of planes, ``samples x channels``, that share one mean and one variance.

    ``None`` means all samples or all channels:

    ========================  =================================
    InstanceNorm              ``Pool(samples=1, channels=1)``
    GroupNorm, G groups       ``Pool(samples=1, channels=C//G)``
    LayerNorm over (C, *S)    ``Pool(samples=1, channels=None)``
    BatchNorm                 ``Pool(samples=None, channels=1)``
    ========================  =================================

    Planes of one feature map have equal sizes, so the pooled moments are

    .. math:: \\mu = E[\\mu_i], \\qquad \\sigma^2 = E[\\sigma_i^2] + \\mathrm{Var}[\\mu_i]

    Both terms of the variance are positive, so large values do not cancel.

    Args:
        samples: number of samples that a pool spans; ``None`` for the whole batch.
        channels: number of channels that a pool spans; ``None`` for all channels.

    Raises:
        ValueError: a size below 1, or one that does not divide the (N, C) grid of a call.

    >>> import torch
    >>> mean, var = torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2)
    >>> Pool(samples=1, channels=None)(mean, var)
    (tensor([[2., 2.]]), tensor([[1., 1.]]))
    """

    samples: int | None = 1
    channels: int | None = 1

    def __post_init__(self) -> None:
        for name, size in (("samples", self.samples), ("channels", self.channels)):
            if size is not None and size < 1:
                raise ValueError(
                    f"Pool({name}={size}): a pool spans at least 1; use None for all {name}"
                )

    def sizes(self, batch: int, width: int) -> tuple[int, int]:
        """Number of samples and of channels of one pool, on a grid of ``batch`` x ``width`` planes.

        Raises:
            ValueError: a size that does not divide the grid.
        """
        samples = batch if self.samples is None else self.samples
        channels = width if self.channels is None else self.channels
        for name, whole, part in (("samples", batch, samples), ("channels", width, channels)):
            if part and whole % part:
                raise ValueError(
                    f"{self} does not divide {whole} {name}: choose a divisor of {whole}"
                )
        return max(samples, 1), max(channels, 1)

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Pool the ``mean`` and ``var`` of each plane. All four are (N, C)."""
        pooled_mean, pooled_var = self.merge(mean, var)
        return self.spread(pooled_mean, mean.shape), self.spread(pooled_var, mean.shape)

    def average(self, values: Tensor) -> Tensor:
        """Average values of planes over each pool: (N, C) -> (N / samples, C / channels)."""
        return self._rectangles(values).mean((1, 3))

    def merge(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of each pool from those of planes: (N, C) -> (N / samples, C / channels)."""
        if self.samples == 1 and self.channels == 1:
            return mean, var
        mean, var = self._rectangles(mean), self._rectangles(var)
        pooled_mean = mean.mean((1, 3), keepdim=True)
        pooled_var = (var + (mean - pooled_mean).square()).mean((1, 3))
        # One dimension at a time: the TorchScript exporter of ONNX takes no others.
        return pooled_mean.squeeze(3).squeeze(1), pooled_var

    def _rectangles(self, values: Tensor) -> Tensor:
        """(N, C) -> (N / samples, samples, C / channels, channels). A pool is axes 1 and 3."""
        batch, width = values.shape
        samples, channels = self.sizes(batch, width)
        return values.reshape(batch // samples, samples, width // channels, channels)

    def spread(self, values: Tensor, grid: Sequence[int]) -> Tensor:
        """Repeat values of pools for their planes: (N / samples, C / channels) -> (N, C)."""
        if self.samples == 1 and self.channels == 1:
            return values
        batch, width = grid
        samples, channels = self.sizes(batch, width)
        whole = (batch // samples, samples, width // channels, channels)
        return values[:, None, :, None].expand(whole).reshape(batch, width)


#: One plane is a pool: Instance Normalization.
INSTANCE = Pool(samples=1, channels=1)

#: One channel of all samples is a pool: Batch Normalization.
BATCH = Pool(samples=None, channels=1)
