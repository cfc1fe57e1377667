"""The reference backend: eager PyTorch, any device, dtype, layout and rank.

This is the specification: every step is written as its formula, in float64, and is
differentiable, so that autograd through it is the specification of every gradient too. The other
backends are tested against it, and what they do not take comes here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..pool import INSTANCE, Policy, Pool
from . import PLAIN, Tail

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


def activate(values: Tensor, activation: str, slope: float) -> Tensor:
    """The activation of this name, by torch's own function. TorchScript compiles it."""
    if activation == "relu":
        return F.relu(values)
    if activation == "leaky_relu":
        return F.leaky_relu(values, slope)
    if activation == "silu":
        return F.silu(values)
    if activation == "gelu":
        return F.gelu(values)
    if activation == "tanh":
        return torch.tanh(values)
    if activation == "sigmoid":
        return torch.sigmoid(values)
    return values


def _activation_gradient(gradient: Tensor, values: Tensor, activation: str, slope: float) -> Tensor:
    """``gradient * activation'(values)``, as torch's own backward has it."""
    aten = torch.ops.aten
    found: Tensor = {
        "relu": lambda: aten.threshold_backward(gradient, values, 0),
        "leaky_relu": lambda: aten.leaky_relu_backward(gradient, values, slope, False),
        "silu": lambda: aten.silu_backward(gradient, values),
        "gelu": lambda: aten.gelu_backward(gradient, values),
        "tanh": lambda: aten.tanh_backward(gradient, torch.tanh(values)),
        "sigmoid": lambda: aten.sigmoid_backward(gradient, torch.sigmoid(values)),
    }[activation]()
    return found


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    planes = x.to(statistics_dtype(x)).flatten(2)  # (N, C, S)
    # The second mean, of the centred values, takes away the rounding of the first.
    rough = planes.mean(2, keepdim=True).detach()
    mean = rough + (planes - rough).mean(2, keepdim=True)
    var = (planes - mean).square().mean(2)
    return mean.squeeze(2), var


def _before_activation(
    x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None
) -> Tensor:
    """``(x - mean) * scale + shift + residual``, in the statistics' type."""
    values = (x.to(statistics_dtype(x)) - _per_plane(mean, x)) * _per_plane(scale, x)
    values = values + _per_plane(shift, x)
    return values if residual is None else values + residual.to(values.dtype)


def apply(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    values = _before_activation(x, mean, scale, shift, tail.residual)
    y = activate(values, tail.activation, tail.slope).to(x.dtype)
    return y if out is None else out.copy_(y)


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
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pool: Pool = INSTANCE,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, var = normalize_by(pool, x, weight, bias, eps, tail, out)
    return y, *pool.merge(mean, var)


def normalize_by(
    policy: Policy,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for any policy, with the moments of the planes, and weights (C,) or (N, C)."""
    mean, var = moments(x)
    pooled_mean, pooled_var = policy(mean, var)
    a = scale(weight, pooled_var, eps).expand(mean.shape)
    return apply(x, pooled_mean.expand(mean.shape), a, shift(bias, mean), tail, out), mean, var


def normalize_with(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    return apply(x, *given_map(x, mean, var, weight, bias, eps), tail, out)


def given_map(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """mean, scale and shift of each plane, (N, C), from given moments, (C,) or (N, C)."""
    grid, dtype = x.shape[:2], statistics_dtype(x)
    # A copy: the caller may move a running mean on before a backward needs this one.
    mean = mean.to(dtype, copy=True).expand(grid)
    return mean, scale(weight, var.to(dtype), eps).expand(grid), shift(bias, mean)


def _through_activation(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    tail: Tail,
) -> Tensor:
    """The gradient before the tail's activation, in the statistics' type."""
    gradient = gradient.to(statistics_dtype(x))
    if not tail.activation:
        return gradient
    assert scale is not None
    assert shift is not None
    values = _before_activation(x, mean, scale, shift, tail.residual)
    return _activation_gradient(gradient, values, tail.activation, tail.slope)


def gradient_sums(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    tail: Tail = PLAIN,
) -> tuple[Tensor, Tensor]:
    planes = _through_activation(gradient, x, mean, scale, shift, tail).flatten(2)
    centred = x.to(planes.dtype).flatten(2) - mean.unsqueeze(2)
    return planes.sum(2), (planes * centred).sum(2)


def apply_gradient(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    tail: Tail = PLAIN,
    needs_residual: bool = False,
) -> tuple[Tensor, Tensor | None]:
    gradient = _through_activation(gradient, x, mean, scale, shift, tail)
    # x comes first, since a sum takes the memory layout of its first term.
    dx = _per_plane(b, x) * (x.to(gradient.dtype) - _per_plane(mean, x))
    dx = (dx + _per_plane(a, x) * gradient + _per_plane(c, x)).to(x.dtype)
    return dx, torch.empty_like(x).copy_(gradient) if needs_residual else None


def normalize_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pool: Pool = INSTANCE,
    tail: Tail = PLAIN,
    needs_residual: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    grid = x.shape[:2]
    mean, var = pool.spread(mean, grid), pool.spread(var, grid)
    inverse_std, a = scale(None, var, eps), scale(weight, var, eps)
    forward = a, shift(bias, mean), tail
    sums, weighted_sums = gradient_sums(gradient, x, mean, *forward)
    # What flows through the variance, and through the mean.
    b, c = (pool.spread(pool.average(a * part), grid) for part in (weighted_sums, sums))
    b, c = (-part / x.shape[2:].numel() for part in (b * inverse_std.square(), c))
    dx, dresidual = apply_gradient(gradient, x, mean, a, b, c, *forward, needs_residual)
    parameter = bias if weight is None else weight
    dtype = mean.dtype if parameter is None else parameter.dtype
    dweight, dbias = (weighted_sums * inverse_std).sum(0).to(dtype), sums.sum(0).to(dtype)
    found = torch.stack((sums, weighted_sums)) if pool == INSTANCE else None
    return dx, dresidual, dweight, dbias, found
