"""The functional forms in torch's standard operators, for graphs that leave the process.

Exported, traced and scripted programs may run where momentnorm is not installed. TorchScript
compiles what is here, so it is written in the Python that TorchScript knows.
"""

from __future__ import annotations

import torch
from torch import Tensor

# By name, so that they are torch's under momentnorm.patch() too.
from torch.nn.functional import batch_norm, group_norm, instance_norm

from ._masks import valid_elements
from .backends.reference import activate


def standard_instance_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    activation: str | None,
    negative_slope: float,
    residual: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    inplace: bool,
    out: Tensor | None,
) -> Tensor:
    """:func:`momentnorm.functional.instance_norm`."""
    x = input
    padding: Tensor | None = None
    if mask is not None or lengths is not None:
        padding = ~valid_elements(input, mask, lengths)
        x = input.masked_fill(padding, 0)
        if residual is not None:
            residual = residual.masked_fill(padding, 0)
    if padding is not None and use_input_stats:
        y = _masked(x, padding, running_mean, running_var, weight, bias, momentum, eps)
    else:
        y = instance_norm(
            x, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
    y = _followed(y, activation, negative_slope, residual)
    if padding is not None:
        y = y.masked_fill(padding, 0)
    return _written(y, input, inplace, out)


def standard_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str | None,
    negative_slope: float,
    residual: Tensor | None,
    inplace: bool,
    out: Tensor | None,
) -> Tensor:
    """:func:`momentnorm.functional.batch_norm`."""
    y = batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _written(_followed(y, activation, negative_slope, residual), input, inplace, out)


def standard_group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
    residual: Tensor | None,
    inplace: bool,
    out: Tensor | None,
) -> Tensor:
    """:func:`momentnorm.functional.group_norm`."""
    y = group_norm(input, num_groups, weight, bias, eps)
    return _written(_followed(y, activation, negative_slope, residual), input, inplace, out)


def _followed(
    y: Tensor, activation: str | None, negative_slope: float, residual: Tensor | None
) -> Tensor:
    """What follows a normalization."""
    if residual is not None:
        y = y + residual
    if activation is not None:
        y = activate(y, activation, negative_slope)
    return y


def _written(y: Tensor, input: Tensor, inplace: bool, out: Tensor | None) -> Tensor:
    """y, where it is wanted."""
    if inplace:
        return input.copy_(y)
    if out is not None:
        return out.copy_(y)
    return y


def _masked(
    x: Tensor,  # 0 in its padding
    padding: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    """x normalized with the moments of its valid elements."""
    dtype = x.dtype
    if dtype == torch.float16 or dtype == torch.bfloat16:
        x = x.float()
    spatial = list(range(2, x.dim()))
    counts = (~padding).sum(spatial, keepdim=True)
    divisor = counts.clamp(min=1)
    mean = x.sum(spatial, keepdim=True) / divisor
    centred = (x - mean).masked_fill(padding, 0)
    var = centred.square().sum(spatial, keepdim=True) / divisor
    if running_mean is not None and running_var is not None:
        used = counts > 0
        samples = used.sum(0).clamp(min=1).flatten()
        share = momentum * used.any().to(x.dtype)
        unbiased = var.detach() * (counts / (counts - 1).clamp(min=1))
        batch_mean = mean.detach().sum(0).flatten() / samples
        batch_var = unbiased.sum(0).flatten() / samples
        for running, batch in ((running_mean, batch_mean), (running_var, batch_var)):
            running.copy_(torch.lerp(running.to(batch.dtype), batch, share))
    y = centred * torch.rsqrt(var + eps)
    per_channel = [1, x.size(1)] + [1] * len(spatial)
    if weight is not None:
        y = y * weight.view(per_channel)
    if bias is not None:
        y = y + bias.view(per_channel)
    return y.to(dtype)
