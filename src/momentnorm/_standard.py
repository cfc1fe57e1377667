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
    if mask is None and lengths is None:
        y = instance_norm(
            input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps
        )
        return _written(_followed(y, activation, negative_slope, residual), input, inplace, out)
    padding = ~valid_elements(input, mask, lengths)
    x = input.masked_fill(padding, 0)
    if use_input_stats:
        spatial = list(range(2, x.dim()))
        centred, mean, var, counts = _masked(x, padding, spatial)
        if running_mean is not None and running_var is not None:
            used = counts > 0
            samples = used.sum(0).clamp(min=1).flatten()
            unbiased = var * (counts / (counts - 1).clamp(min=1))
            share = momentum * used.any().to(mean.dtype)
            _move(running_mean, mean.sum(0).flatten() / samples, share)
            _move(running_var, unbiased.sum(0).flatten() / samples, share)
        y = _affine(centred * torch.rsqrt(var + eps), weight, bias).to(x.dtype)
    else:
        y = instance_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    return _padded(y, padding, activation, negative_slope, residual, input, inplace, out)


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
    mask: Tensor | None,
    lengths: Tensor | None,
    inplace: bool,
    out: Tensor | None,
) -> Tensor:
    """:func:`momentnorm.functional.batch_norm`."""
    if mask is None and lengths is None:
        y = batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return _written(_followed(y, activation, negative_slope, residual), input, inplace, out)
    padding = ~valid_elements(input, mask, lengths)
    x = input.masked_fill(padding, 0)
    if training:
        others = [0] + list(range(2, x.dim()))  # noqa: RUF005 (TorchScript)
        centred, mean, var, counts = _masked(x, padding, others)
        if running_mean is not None and running_var is not None:
            share = momentum * (counts > 0).any().to(mean.dtype)
            unbiased = var * (counts / (counts - 1).clamp(min=1))
            _move(running_mean, mean.flatten(), share)
            _move(running_var, unbiased.flatten(), share)
        y = _affine(centred * torch.rsqrt(var + eps), weight, bias).to(x.dtype)
    else:
        y = batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
    return _padded(y, padding, activation, negative_slope, residual, input, inplace, out)


def standard_group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    negative_slope: float,
    residual: Tensor | None,
    mask: Tensor | None,
    lengths: Tensor | None,
    inplace: bool,
    out: Tensor | None,
) -> Tensor:
    """:func:`momentnorm.functional.group_norm`."""
    if mask is None and lengths is None:
        y = group_norm(input, num_groups, weight, bias, eps)
        return _written(_followed(y, activation, negative_slope, residual), input, inplace, out)
    padding = ~valid_elements(input, mask, lengths)
    x = input.masked_fill(padding, 0)
    groups = x.reshape([x.size(0), num_groups, -1] + list(x.shape[2:]))  # noqa: RUF005
    of_groups = padding.unsqueeze(1).expand_as(groups)
    centred, _, var, _ = _masked(groups, of_groups, list(range(2, groups.dim())))
    standardized = (centred * torch.rsqrt(var + eps)).reshape(x.shape)
    y = _affine(standardized, weight, bias).to(x.dtype)
    return _padded(y, padding, activation, negative_slope, residual, input, inplace, out)


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


def _padded(
    y: Tensor,
    padding: Tensor,
    activation: str | None,
    negative_slope: float,
    residual: Tensor | None,
    input: Tensor,
    inplace: bool,
    out: Tensor | None,
) -> Tensor:
    """What follows, none of it in the padding."""
    if residual is not None:
        residual = residual.masked_fill(padding, 0)
    y = _followed(y, activation, negative_slope, residual).masked_fill(padding, 0)
    return _written(y, input, inplace, out)


def _masked(
    x: Tensor,  # 0 in its padding
    padding: Tensor,
    pool: list[int],  # the dimensions that share their statistics
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x about the mean of its valid elements; their mean and variance; and how many there are."""
    if x.dtype == torch.float16 or x.dtype == torch.bfloat16:
        x = x.float()
    counts = (~padding).sum(pool, keepdim=True)
    divisor = counts.clamp(min=1)
    mean = x.sum(pool, keepdim=True) / divisor
    centred = (x - mean).masked_fill(padding, 0)
    return centred, mean, centred.square().sum(pool, keepdim=True) / divisor, counts


def _move(running: Tensor, batch: Tensor, share: Tensor) -> None:
    batch = batch.detach()
    running.copy_(torch.lerp(running.to(batch.dtype), batch, share))


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    per_channel = [1, x.size(1)] + [1] * (x.dim() - 2)
    if weight is not None:
        x = x * weight.view(per_channel)
    if bias is not None:
        x = x + bias.view(per_channel)
    return x
