"""Grid: arithmetic on one value for each plane, between the moments and the application.

A feature map (N, C, *S) is a grid of N x C planes. Each tensor here is small: it has one value for
each plane, (N, C), or for each channel, (C,).
"""

from __future__ import annotations

import torch
from torch import Tensor


def statistics_dtype(x: Tensor) -> torch.dtype:
    """Dtype of the statistics of x: float64, or float32 on a device that lacks it.

    A float32 mean of 1000 +- 0.01 has lost the digits that the variance needs.
    """
    return torch.float32 if x.device.type == "mps" else torch.float64


def parameter_dtype(x: Tensor) -> torch.dtype:
    """Dtype of a weight that is computed for x: that of x, or float32 with a half type."""
    return torch.promote_types(x.dtype, torch.float32)


def per_plane(values: Tensor, x: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, ..., 1), to broadcast over the planes of x, (N, C, *S)."""
    return values.reshape(values.shape + (1,) * (x.dim() - 2))


def scale(weight: Tensor | None, var: Tensor, eps: float) -> Tensor:
    """``weight / sqrt(var + eps)``, (N, C), with 0 in place of infinity where var + eps is 0."""
    if eps > 0:
        inverse_std = torch.rsqrt(var + eps)
    else:
        total = var + eps
        zero = total == 0
        inverse_std = torch.rsqrt(torch.where(zero, 1, total)).masked_fill(zero, 0)
    return inverse_std if weight is None else inverse_std * weight.to(var.dtype)


def shift(bias: Tensor | None, mean: Tensor) -> Tensor:
    """Shift of each plane, (N, C): the bias, or zeros without one."""
    return torch.zeros_like(mean) if bias is None else bias.to(mean.dtype).expand(mean.shape)


def map_of_moments(
    x: Tensor,  # (N, C, *S)
    mean: Tensor,  # (C,) or (N, C), and so are the next three
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, scale and shift of each plane, (N, C), from given moments."""
    grid, dtype = x.shape[:2], statistics_dtype(x)
    # A copy: the caller may update a running mean before a backward needs this one.
    mean = mean.to(dtype, copy=True).expand(grid)
    return mean, scale(weight, var.to(dtype), eps).expand(grid), shift(bias, mean)


def unbiased(var: Tensor, count: int | Tensor) -> Tensor:
    """Unbiased variance from the biased one of ``count`` values. One value has the variance 0."""
    if isinstance(count, Tensor):
        return var * (count / (count - 1).clamp(min=1))
    return var * (count / (count - 1)) if count > 1 else var


def move_towards(running: Tensor, batch: Tensor, share: float | Tensor) -> None:
    """Update a running statistic: ``running += share * (batch - running)``, rounded once."""
    running.copy_(torch.lerp(running.to(batch.dtype), batch, share))


def update_running(
    statistics: tuple[Tensor | None, Tensor | None],  # running mean and variance, (C,)
    mean: Tensor,  # (C,)
    var: Tensor,  # (C,), unbiased
    share: float | Tensor,
) -> None:
    """Move running statistics, where there are any, towards the moments of a batch."""
    for running, batch in zip(statistics, (mean, var), strict=True):
        if running is not None:
            move_towards(running, batch, share)
