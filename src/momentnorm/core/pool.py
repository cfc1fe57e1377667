"""Pools: which planes of a feature map share their statistics.

A feature map (N, C, *S) is a grid of N x C planes. Every layer of the family is one answer to one
question, *which planes share their mean and variance?*, and that answer is a policy: a function
from the per-plane ``(mean, var)``, both (N, C), to the pooled ``(mean, var)`` that each plane is
normalized with, again (N, C) or broadcastable to it.
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

    ``None`` means all of them, so that

    ========================  =================================
    InstanceNorm              ``Pool(samples=1, channels=1)``
    GroupNorm, G groups       ``Pool(samples=1, channels=C//G)``
    LayerNorm over (C, *S)    ``Pool(samples=1, channels=None)``
    BatchNorm                 ``Pool(samples=None, channels=1)``
    ========================  =================================

    Planes of one feature map have equal sizes, so the pooled moments are

    .. math:: \\mu = E[\\mu_i], \\qquad \\sigma^2 = E[\\sigma_i^2] + \\mathrm{Var}[\\mu_i]

    which subtracts nothing large from anything large.

    Args:
        samples: how many samples a pool spans; ``None`` for the whole batch.
        channels: how many channels a pool spans; ``None`` for all of them.

    Raises:
        ValueError: a size is below 1, or does not divide the (N, C) grid that it is called with.

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
        """How many samples and channels one pool spans on a grid of ``batch`` x ``width``.

        Raises:
            ValueError: they do not divide the grid.
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
        """Pool per-plane ``mean`` and ``var``, both (N, C); the results are (N, C) too."""
        pooled_mean, pooled_var = self.merge(mean, var)
        return self.spread(pooled_mean, mean.shape), self.spread(pooled_var, mean.shape)

    def average(self, values: Tensor) -> Tensor:
        """The mean of the planes' values, (N, C), in each pool: (N / samples, C / channels)."""
        return self._rectangles(values).mean((1, 3))

    def merge(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """The moments of each pool, from those of its planes: one value for each."""
        if self.samples == 1 and self.channels == 1:
            return mean, var
        mean, var = self._rectangles(mean), self._rectangles(var)
        pooled_mean = mean.mean((1, 3), keepdim=True)
        pooled_var = (var + (mean - pooled_mean).square()).mean((1, 3))
        # One dimension at a time: the TorchScript exporter of ONNX takes no others.
        return pooled_mean.squeeze(3).squeeze(1), pooled_var

    def _rectangles(self, values: Tensor) -> Tensor:
        """(N, C) -> (N / samples, samples, C / channels, channels): a pool is axes 1 and 3."""
        batch, width = values.shape
        samples, channels = self.sizes(batch, width)
        return values.reshape(batch // samples, samples, width // channels, channels)

    def spread(self, values: Tensor, grid: Sequence[int]) -> Tensor:
        """One value for each pool -> one for each plane of a grid (N, C)."""
        if self.samples == 1 and self.channels == 1:
            return values
        batch, width = grid
        samples, channels = self.sizes(batch, width)
        whole = (batch // samples, samples, width // channels, channels)
        return values[:, None, :, None].expand(whole).reshape(batch, width)


#: One plane, one pool: Instance Normalization.
INSTANCE = Pool(samples=1, channels=1)

#: One channel of all samples, one pool: Batch Normalization.
BATCH = Pool(samples=None, channels=1)
