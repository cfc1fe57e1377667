"""Engine: moments -> pool -> scale -> apply, and the backward of each.

.. code-block:: text

    mean, var = moments(x)                          per plane, (N, C)
    mean, var = pool(mean, var)                     a policy on the (N, C) grid
    scale     = weight / sqrt(var + eps)            (N, C)
    y         = tail((x - mean) * scale + bias)     plus a residual, then an activation

A layer is a policy, and has no kernel or backward of its own. The main functions are:

:func:`normalize`
    The policy is a :class:`Pool`, a rectangle of planes. A backend reads each pool from memory once
    in the forward and once in the backward.
:func:`normalize_by`
    The policy is any function. The moments and the application are two nodes of autograd's graph.
    Between them autograd differentiates the policy and its parameters on the small (N, C) grid.
:func:`normalize_with`
    The moments are given, such as running statistics.

The backward needs x and values of the (N, C) grid, but not y, so callers may modify y in place.
With an activation it also needs the bias and the residual, to compute the activation's derivative.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import autograd, checks, context, grid
from .backends import reference
from .pool import INSTANCE, Policy, Pool
from .routes import GRAPH_OPERATOR, Route, needs_gradient, route_of
from .tail import PLAIN, Tail


def normalize(
    x: Tensor,  # (N, C, *S)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    *,
    pool: Pool = INSTANCE,
    eps: float,
    tail: Tail = PLAIN,
    out: Tensor | None = None,  # like x: x itself, or without overlap; only without autograd
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x with the moments of its pools.

    Returns y, like x, and the moments of each pool, outside autograd.
    """
    if not x.numel():
        return _normalize_empty(x, weight, bias, eps=eps, tail=tail, out=out)
    if pool is not INSTANCE and pool.sizes(*x.shape[:2]) == (1, 1):
        pool = INSTANCE
    given, (route, x) = x, route_of(x, weight, bias, tail.residual)
    if route.kind == "formula":
        y, mean, var = reference.normalize(x, weight, bias, eps, pool, tail)
        mean, var = mean.detach(), var.detach()
    elif route.kind == "kernel" and needs_gradient(x, weight, bias, tail.residual):
        call = autograd.Call(tail, pool, eps, route.backend)
        y = autograd.apply_normalize(x, weight, bias, tail.residual, call)
        mean, var = call.moments
    else:
        out = _copy_or(out, route, x, given)
        target = _target_of(route, out, x, tail)
        y, mean, var = route.backend.normalize(x, weight, bias, eps, pool, tail, target)
    return y if out is None else _written(out, y), mean, var


def normalize_by(
    policy: Policy,
    x: Tensor,  # (N, C, *S)
    weight: Tensor | None,  # (C,) or (N, C)
    bias: Tensor | None,  # (C,) or (N, C)
    *,
    eps: float,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x with moments that a policy has pooled.

    Returns y, like x, and the moments of each plane before pooling, (N, C), outside autograd.
    """
    if not x.numel():
        return _normalize_empty(x, weight, bias, policy, eps=eps, tail=tail, out=out)
    route, x = route_of(x, weight, bias, tail.residual)
    if route.kind != "kernel":
        # A compiler fuses a policy with the arithmetic around it better than operators would.
        y, mean, var = reference.normalize_by(policy, x, weight, bias, eps, tail)
        return y if out is None else _written(out, y), mean.detach(), var.detach()
    link = None
    if needs_gradient(x):
        mean, var, link = autograd.moments(x, route.backend)
    else:
        mean, var = route.backend.moments(x)
    # Kernels read the dtype of the statistics, whatever a policy computes in.
    pooled_mean, pooled_var = (values.to(mean.dtype) for values in policy(mean, var))
    centre = pooled_mean.expand(mean.shape)
    scale = grid.scale(weight, pooled_var, eps).expand(mean.shape)
    y = _applied(route, x, centre, scale, grid.shift(bias, mean), tail, out, link)
    return y, mean.detach(), var.detach()


def normalize_each(
    pool: Pool,
    x: Tensor,  # (N, C, *S)
    weight: Tensor | None,  # (C,) or (N, C)
    bias: Tensor | None,  # (C,) or (N, C)
    *,
    eps: float,
    tail: Tail = PLAIN,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do :func:`normalize_by` with a rectangle of planes and a weight and bias of each sample."""
    planes = x.shape[:2]
    if pool.sizes(*planes) != (1, 1) or not x.is_contiguous():
        return normalize_by(pool, x, weight, bias, eps=eps, tail=tail)
    # Instance normalization treats every plane alike, so all planes can be those of one sample.
    merged = (1, planes.numel(), *x.shape[2:])
    parameters = [
        None if values is None else values.expand(planes).reshape(-1) for values in (weight, bias)
    ]
    if tail.residual is not None:
        tail = tail._replace(residual=tail.residual.reshape(merged))
    y, mean, var = normalize(x.view(merged), *parameters, eps=eps, tail=tail)
    return y.view(x.shape), mean.view(planes), var.view(planes)


def normalize_with(
    x: Tensor,  # (N, C, *S)
    mean: Tensor,  # (C,) or (N, C)
    var: Tensor,  # (C,) or (N, C)
    weight: Tensor | None,  # (C,) or (N, C)
    bias: Tensor | None,  # (C,) or (N, C)
    *,
    eps: float,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    """Normalize x with given moments, such as running statistics."""
    given, (route, x) = x, route_of(x, weight, bias, mean, var, tail.residual)
    by_channel: autograd.Given | None = None
    if mean.dim() == 1 and (weight is None or weight.dim() == 1):
        by_channel = mean, var, weight, bias, eps
        recorded = needs_gradient(x, weight, bias, mean, var, tail.residual)
        if route.kind == "kernel" and not recorded:
            out = _copy_or(out, route, x, given)
            target = _target_of(route, out, x, tail)
            y = route.backend.normalize_with(x, *by_channel, tail, target)
            return y if out is None else _written(out, y)
    mapped = grid.map_of_moments(x, mean, var, weight, bias, eps)
    return _applied(route, x, *mapped, tail, out, given=by_channel)


def affine(
    x: Tensor,  # (N, C, *S)
    mean: Tensor,  # (N, C) or broadcastable to it, and so are the next two
    scale: Tensor,
    shift: Tensor,
    *,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    """``tail((x - mean) * scale + shift)``, like x, with gradients in all operands."""
    route, x = route_of(x, mean, scale, shift, tail.residual)
    mean, scale, shift = (values.expand(x.shape[:2]) for values in (mean, scale, shift))
    return _applied(route, x, mean, scale, shift, tail, out)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each plane of x, (N, C), with their gradients.

    Empty planes give NaN and keep the autograd graph.
    """
    route, x = route_of(x)
    differentiated = route is GRAPH_OPERATOR and torch.is_grad_enabled()
    if route.kind == "formula" or differentiated or not x.numel():
        return reference.moments(x)
    if needs_gradient(x):
        mean, var, _ = autograd.moments(x, route.backend)
        return mean, var
    return route.backend.moments(x)


def _normalize_empty(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    policy: Policy = INSTANCE,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize an x without elements: an empty y with an autograd graph, and moments of 0."""
    zero = torch.zeros(x.shape[:2], dtype=grid.statistics_dtype(x), device=x.device)
    return normalize_with(x, *policy(zero, zero), weight, bias, **options), zero, zero


def _applied(
    route: Route,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    tail: Tail,
    out: Tensor | None,
    link: autograd.Link | None = None,
    given: autograd.Given | None = None,
) -> Tensor:
    if route.kind == "formula":
        y = reference.apply(x, mean, scale, shift, tail)
    elif route.kind == "kernel" and needs_gradient(x, mean, scale, shift, tail.residual):
        y = autograd.affine(x, mean, scale, shift, tail, route.backend, link, given)
    else:
        y = route.backend.apply(x, mean, scale, shift, tail, _target_of(route, out, x, tail))
    return y if out is None else _written(out, y)


def _copy_or(out: Tensor | None, route: Route, x: Tensor, given: Tensor) -> Tensor | None:
    """``out``, or without one x, if it is the engine's own copy of the given x.

    Then y is written over the copy. No graph may need x afterwards.
    """
    own = x is not given and route.kind == "kernel" and route.backend is not reference
    return x if out is None and own else out


def _target_of(route: Route, out: Tensor | None, x: Tensor, tail: Tail) -> Tensor | None:
    """``out``, if the backend can write into it. With None the engine copies y into ``out``."""
    if out is None or route.kind != "kernel" or out.stride() != x.stride():
        return None
    if context.transform_in_progress(out) is not None:
        return None
    if out.is_inference() and not torch.is_inference_mode_enabled():
        return None  # the copy raises torch's own error
    # A backend could read a residual that overlaps out after it has written there.
    return None if checks.memory_overlaps(out, tail.residual) else out


def _written(out: Tensor, y: Tensor) -> Tensor:
    """Copy y into ``out``, unless a backend has written it there."""
    if y is not out:
        return out.copy_(y)
    torch.autograd.graph.increment_version(out)  # autograd does not see what kernels write
    return out
