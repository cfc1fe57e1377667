"""Reference backend: eager PyTorch, for any device, dtype, layout and rank.

This backend is the specification. Each step is a formula in float64, made of differentiable
operators, so autograd through it specifies every gradient. The other backends are tested against
it. It takes the calls that they refuse.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import grid
from ..grid import per_plane, statistics_dtype
from ..pool import INSTANCE, Policy, Pool
from ..tail import PLAIN, Tail

name = "reference"


def refuses(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> str | None:
    """None, since the reference takes every call."""
    return None


def activate(values: Tensor, activation: str, slope: float) -> Tensor:
    """Activation of this name, by torch's own function."""
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


def activation_gradient(gradient: Tensor, values: Tensor, activation: str, slope: float) -> Tensor:
    """``gradient * activation'(values)``, by torch's own backward."""
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
    # The second mean, of the centred values, removes the rounding error of the first.
    rough = planes.mean(2, keepdim=True).detach()
    mean = rough + (planes - rough).mean(2, keepdim=True)
    var = (planes - mean).square().mean(2)
    return mean.squeeze(2), var


def _pre_activation(
    x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None
) -> Tensor:
    """``(x - mean) * scale + shift + residual``, in the dtype of the statistics."""
    values = (x.to(statistics_dtype(x)) - per_plane(mean, x)) * per_plane(scale, x)
    values = values + per_plane(shift, x)
    return values if residual is None else values + residual.to(values.dtype)


def apply(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    values = _pre_activation(x, mean, scale, shift, tail.residual)
    y = activate(values, tail.activation, tail.slope).to(x.dtype)
    return y if out is None else out.copy_(y)


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
    """Normalize by any policy, with weight and bias (C,) or (N, C).

    Returns y, and mean and variance of each plane before pooling.
    """
    mean, var = moments(x)
    pooled_mean, pooled_var = policy(mean, var)
    scale = grid.scale(weight, pooled_var, eps).expand(mean.shape)
    shift = grid.shift(bias, mean)
    return apply(x, pooled_mean.expand(mean.shape), scale, shift, tail, out), mean, var


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
    return apply(x, *grid.map_of_moments(x, mean, var, weight, bias, eps), tail, out)


def _pre_activation_gradient(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    tail: Tail,
) -> Tensor:
    """``gradient * activation'(pre_activation)``, in the dtype of the statistics."""
    gradient = gradient.to(statistics_dtype(x))
    if not tail.activation:
        return gradient
    assert scale is not None
    assert shift is not None
    values = _pre_activation(x, mean, scale, shift, tail.residual)
    return activation_gradient(gradient, values, tail.activation, tail.slope)


def gradient_sums(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    tail: Tail = PLAIN,
) -> tuple[Tensor, Tensor]:
    planes = _pre_activation_gradient(gradient, x, mean, scale, shift, tail).flatten(2)
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
    gradient = _pre_activation_gradient(gradient, x, mean, scale, shift, tail)
    # x comes first, since a sum takes the memory layout of its first term.
    dx = per_plane(b, x) * (x.to(gradient.dtype) - per_plane(mean, x))
    dx = (dx + per_plane(a, x) * gradient + per_plane(c, x)).to(x.dtype)
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
    planes = x.shape[:2]
    mean, var = pool.spread(mean, planes), pool.spread(var, planes)
    inverse_std, scale = grid.scale(None, var, eps), grid.scale(weight, var, eps)
    forward = scale, grid.shift(bias, mean), tail
    sums, weighted_sums = gradient_sums(gradient, x, mean, *forward)
    # b is the part of dx through the variance, c the part through the mean.
    b, c = (pool.spread(pool.average(scale * part), planes) for part in (weighted_sums, sums))
    b, c = (-part / x.shape[2:].numel() for part in (b * inverse_std.square(), c))
    dx, residual_gradient = apply_gradient(gradient, x, mean, scale, b, c, *forward, needs_residual)
    parameter = bias if weight is None else weight
    dtype = mean.dtype if parameter is None else parameter.dtype
    dweight, dbias = (weighted_sums * inverse_std).sum(0).to(dtype), sums.sum(0).to(dtype)
    plane_sums = torch.stack((sums, weighted_sums)) if pool == INSTANCE else None
    return dx, residual_gradient, dweight, dbias, plane_sums
