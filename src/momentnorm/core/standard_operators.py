"""Standard operators: the functional forms in torch's own operators.

They serve programs that are exported or traced, which may run where momentnorm is not installed,
and types of tensors that know torch's functions alone.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

# Imported by name, so that they stay torch's functions under momentnorm.patch().
from torch.nn.functional import batch_norm as torch_batch_norm
from torch.nn.functional import group_norm as torch_group_norm
from torch.nn.functional import instance_norm as torch_instance_norm

from .backends.reference import activate
from .checks import HALF_DTYPES
from .grid import unbiased, update_running
from .masks import valid_elements
from .options import Options, Pair
from .tail import parse_activation


def instance_norm(
    input: Tensor,
    statistics: Pair,
    parameters: Pair,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    options: Options,
) -> Tensor:
    """:func:`momentnorm.functional.instance_norm` in torch's operators."""
    norm = partial(torch_instance_norm, momentum=momentum, eps=eps)
    return _tracked_norm(norm, (), input, statistics, parameters, use_input_stats, options)


def batch_norm(
    input: Tensor,
    statistics: Pair,
    parameters: Pair,
    training: bool,
    momentum: float,
    eps: float,
    options: Options,
) -> Tensor:
    """:func:`momentnorm.functional.batch_norm` in torch's operators."""
    norm = partial(torch_batch_norm, momentum=momentum, eps=eps)
    return _tracked_norm(norm, (0,), input, statistics, parameters, training, options)


def _tracked_norm(
    norm: partial[Tensor],  # torch's function, with its momentum and eps
    pooled: tuple[int, ...],  # dimensions that share their statistics, besides the spatial ones
    input: Tensor,
    statistics: Pair,
    parameters: Pair,
    of_input: bool,
    options: Options,
) -> Tensor:
    """y of a norm with running statistics, and their update."""
    parse_activation(options.activation)  # raises before anything is recorded
    if options.mask is None and options.lengths is None:
        return _finished(norm(input, *statistics, *parameters, of_input), input, options)
    padding, x = _padding(input, options)
    if not of_input:
        return _finished(norm(x, *statistics, *parameters, False), input, options, padding)
    momentum, eps = norm.keywords["momentum"], norm.keywords["eps"]
    pool = (*pooled, *range(2, x.dim()))
    centred, mean, var, counts = _masked_moments(x, padding, pool)
    if statistics[0] is not None:
        used = counts > 0
        divisor = used.sum(0).clamp(min=1).flatten()
        batch_mean, batch_var = (
            (values.sum(0).flatten() / divisor).detach() for values in (mean, unbiased(var, counts))
        )
        share = momentum * used.any().to(mean.dtype)
        update_running(statistics, batch_mean, batch_var, share)
    y = _affine(centred * torch.rsqrt(var + eps), *parameters).to(x.dtype)
    return _finished(y, input, options, padding)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    options: Options,
) -> Tensor:
    """:func:`momentnorm.functional.group_norm` in torch's operators."""
    parse_activation(options.activation)  # raises before anything is recorded
    if options.mask is None and options.lengths is None:
        return _finished(torch_group_norm(input, num_groups, weight, bias, eps), input, options)
    padding, x = _padding(input, options)
    groups = x.reshape(x.size(0), num_groups, -1, *x.shape[2:])
    group_padding = padding.unsqueeze(1).expand_as(groups)
    centred, _, var, _ = _masked_moments(groups, group_padding, tuple(range(2, groups.dim())))
    standardized = (centred * torch.rsqrt(var + eps)).reshape(x.shape)
    y = _affine(standardized, weight, bias).to(x.dtype)
    return _finished(y, input, options, padding)


def _padding(input: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """True where an element of the input is not valid, and the input with zeros there."""
    padding = ~valid_elements(input, options.mask, options.lengths)
    return padding, input.masked_fill(padding, 0)


def _finished(y: Tensor, input: Tensor, options: Options, padding: Tensor | None = None) -> Tensor:
    """Apply the tail to y, set its padding to 0, and write it into the tensor for the result."""
    residual = options.residual
    if residual is not None:
        y = y + (residual if padding is None else residual.masked_fill(padding, 0))
    y = activate(y, *parse_activation(options.activation))
    if padding is not None:
        y = y.masked_fill(padding, 0)
    if options.inplace:
        return input.copy_(y)
    return y if options.out is None else options.out.copy_(y)


def _masked_moments(
    x: Tensor,  # 0 in its padding
    padding: Tensor,
    pool: tuple[int, ...],  # the dimensions that share their statistics
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centred x, and mean, variance and number of the valid elements of each pool."""
    if x.dtype in HALF_DTYPES:
        x = x.float()
    counts = (~padding).sum(pool, keepdim=True)
    divisor = counts.clamp(min=1)
    mean = x.sum(pool, keepdim=True) / divisor
    centred = (x - mean).masked_fill(padding, 0)
    return centred, mean, centred.square().sum(pool, keepdim=True) / divisor, counts


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    per_channel = (1, x.size(1)) + (1,) * (x.dim() - 2)
    if weight is not None:
        x = x * weight.view(per_channel)
    if bias is not None:
        x = x + bias.view(per_channel)
    return x
