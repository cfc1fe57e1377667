"""The reference backend: eager PyTorch, any device, dtype, layout and rank.

This is the specification: every step is written as its formula, in float64, and is
differentiable, so that autograd through it is the specification of every gradient too. The other
backends are tested against it, and what they do not take comes here.
"""

from __future__ import annotations

import torch
from torch import Tensor

name = "reference"


def statistics_dtype(x: Tensor) -> torch.dtype:
    """float64, where the device has it: a float32 mean of (1000 ± 0.01) has lost its digits."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def _per_plane(values: Tensor, x: Tensor) -> Tensor:
    """(N, C) -> (N, C, 1, ..., 1), to broadcast over the planes of x, (N, C, *S)."""
    return values.reshape(values.shape + (1,) * (x.dim() - 2))


def refuses(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> str | None:
    """The reference takes everything."""
    return None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    planes = x.to(statistics_dtype(x)).flatten(2)  # (N, C, S)
    # The second mean, of the centred values, takes away the rounding of the first.
    rough = planes.mean(2, keepdim=True).detach()
    mean = rough + (planes - rough).mean(2, keepdim=True)
    var = (planes - mean).square().mean(2)
    return mean.squeeze(2), var


def apply(x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    centred = x.to(statistics_dtype(x)) - _per_plane(mean, x)
    return (centred * _per_plane(scale, x) + _per_plane(shift, x)).to(x.dtype)


def scale(weight: Tensor | None, var: Tensor, eps: float) -> Tensor:
    """``weight / sqrt(var + eps)``, (N, C), and 0 rather than infinity where var + eps is 0."""
    if eps > 0:
        inverse_std = torch.rsqrt(var + eps)
    else:
        total = var + eps
        zero = total == 0
        inverse_std = torch.rsqrt(torch.where(zero, 1, total)).masked_fill(zero, 0)
    return inverse_std if weight is None else inverse_std * weight.to(var.dtype)


def shift(bias: Tensor | None, mean: Tensor) -> Tensor:
    """The bias of each plane, (N, C)."""
    return torch.zeros_like(mean) if bias is None else bias.to(mean.dtype).expand(mean.shape)


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, var = moments(x)
    return apply(x, mean, scale(weight, var, eps), shift(bias, mean)), mean, var


def gradient_sums(gradient: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    dtype = statistics_dtype(x)
    planes = gradient.to(dtype).flatten(2)
    centred = x.to(dtype).flatten(2) - mean.unsqueeze(2)
    return planes.sum(2), (planes * centred).sum(2)


def apply_gradient(
    gradient: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> Tensor:
    dtype = statistics_dtype(x)
    # x comes first, since a sum takes the memory layout of its first term.
    dx = _per_plane(b, x) * (x.to(dtype) - _per_plane(mean, x))
    return (dx + _per_plane(a, x) * gradient.to(dtype) + _per_plane(c, x)).to(x.dtype)


def normalize_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    sums, weighted_sums = gradient_sums(gradient, x, mean)
    count = x.shape[2:].numel()
    a = scale(weight, var, eps)
    b = -a * scale(None, var, eps).square() * weighted_sums / count
    return apply_gradient(gradient, x, mean, a, b, -a * sums / count), sums, weighted_sums
