"""The engine: moments -> pool -> scale -> apply, and the backward of each.

    mean, var = moments(x)                          per plane, (N, C)
    mean, var = pool(mean, var)                     a policy on the (N, C) grid
    scale     = weight / sqrt(var + eps)            (N, C)
    y         = tail((x - mean) * scale + bias)     plus a residual, then an activation

A layer is a policy. It brings no kernel and no backward of its own, and goes one of three ways:

``normalize``
    The policy is a :class:`Pool`, a rectangle of planes: a backend visits each pool once, forward
    and backward.
``normalize_by``
    Any other policy: the moments and the application are two nodes of the graph, and between them
    autograd differentiates the policy, with whatever parameters it has, on the tiny (N, C) grid.
``normalize_with``
    Given moments.

The backward saves x and tensors of the grid, never y, so callers may modify y in place. With an
activation it saves the bias and the residual too, and computes the activation's derivative again
from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _autograd, _dispatch, _ops
from .backends import PLAIN, Tail, reference
from .backends.operands import dense
from .pool import INSTANCE, Policy, Pool

if TYPE_CHECKING:
    from types import ModuleType


def normalize(
    x: Tensor,  # (N, C, *S)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    *,
    pool: Pool = INSTANCE,
    eps: float,
    tail: Tail = PLAIN,
    out: Tensor | None = None,  # like x, and x itself or apart from it; where autograd is off
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x with the moments of its pools.

    Returns y, like x, and the moments of each pool, outside autograd.
    """
    grid = x.shape[:2]
    if not x.numel():
        return _of_nothing(x, weight, bias, eps=eps, tail=tail, out=out)
    if pool is not INSTANCE and pool.sizes(*grid) == (1, 1):
        pool = INSTANCE
    given, (backend, x) = x, _prepared(x, weight, bias, tail.residual)
    if backend is None:
        y, mean, var = reference.normalize(x, weight, bias, eps, pool, tail)
        mean, var = mean.detach(), var.detach()
    elif backend is not _ops and _needs_gradient(x, weight, bias, tail.residual):
        call = _autograd.Call(tail, pool, eps, backend)
        y = _autograd.apply_normalize(x, weight, bias, tail.residual, call)
        mean, var = call.moments
    else:
        out = _over_the_copy(backend, out, x, given)
        target = _written_by(backend, out, x, tail)
        y, mean, var = backend.normalize(x, weight, bias, eps, pool, tail, target)
    return y if out is None else _into(out, y), mean, var


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
        return _of_nothing(x, weight, bias, policy, eps=eps, tail=tail, out=out)
    backend, x = _prepared(x, weight, bias, tail.residual)
    if backend is None or backend is _ops:
        # A compiler fuses a policy with the arithmetic around it better than operators would.
        y, mean, var = reference.normalize_by(policy, x, weight, bias, eps, tail)
        return y if out is None else _into(out, y), mean.detach(), var.detach()
    link = None
    if _needs_gradient(x):
        mean, var, link = _autograd.moments(x, backend)
    else:
        mean, var = backend.moments(x)
    # The kernels read the type of statistics, whatever a policy computes in.
    pooled_mean, pooled_var = (values.to(mean.dtype) for values in policy(mean, var))
    centre = pooled_mean.expand(mean.shape)
    scale = reference.scale(weight, pooled_var, eps).expand(mean.shape)
    y = _applied(backend, x, centre, scale, reference.shift(bias, mean), tail, out, link)
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
    """:func:`normalize_by` a rectangle of planes, with a weight and a bias of each sample."""
    grid = x.shape[:2]
    if pool.sizes(*grid) != (1, 1) or not x.is_contiguous():
        return normalize_by(pool, x, weight, bias, eps=eps, tail=tail)
    # Instances know of no samples: these are the planes of one, with more channels.
    merged = (1, grid.numel(), *x.shape[2:])
    parameters = [
        None if values is None else values.expand(grid).reshape(-1) for values in (weight, bias)
    ]
    if tail.residual is not None:
        tail = tail._replace(residual=tail.residual.reshape(merged))
    y, mean, var = normalize(x.view(merged), *parameters, eps=eps, tail=tail)
    return y.view(x.shape), mean.view(grid), var.view(grid)


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
    given, (backend, x) = x, _prepared(x, weight, bias, mean, var, tail.residual)
    by_channel: _autograd.Given | None = None
    if mean.dim() == 1 and (weight is None or weight.dim() == 1):
        by_channel = mean, var, weight, bias, eps
        recorded = _needs_gradient(x, weight, bias, mean, var, tail.residual)
        if backend is not None and backend is not _ops and not recorded:
            out = _over_the_copy(backend, out, x, given)
            target = _written_by(backend, out, x, tail)
            y: Tensor = backend.normalize_with(x, *by_channel, tail, target)
            return y if out is None else _into(out, y)
    mapped = reference.given_map(x, mean, var, weight, bias, eps)
    return _applied(backend, x, *mapped, tail, out, given=by_channel)


def affine(
    x: Tensor,  # (N, C, *S)
    mean: Tensor,  # this and the next two: (N, C), or what broadcasts to it
    scale: Tensor,
    shift: Tensor,
    *,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    """``tail((x - mean) * scale + shift)``, like x, and its gradients in all operands."""
    backend, x = _prepared(x, mean, scale, shift, tail.residual)
    mean, scale, shift = (values.expand(x.shape[:2]) for values in (mean, scale, shift))
    return _applied(backend, x, mean, scale, shift, tail, out)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each plane of x, (N, C), and their gradients."""
    backend, x = _prepared(x)
    # Of nothing they are NaN, with a graph.
    if backend is None or not x.numel() or (backend is _ops and torch.is_grad_enabled()):
        return reference.moments(x)
    if _needs_gradient(x):
        mean, var, _ = _autograd.moments(x, backend)
    else:
        mean, var = backend.moments(x)
    return mean, var


def _of_nothing(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    policy: Policy = INSTANCE,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of an empty x: no statistics, and nothing to normalize with them, but a graph."""
    zero = torch.zeros(x.shape[:2], dtype=reference.statistics_dtype(x), device=x.device)
    return normalize_with(x, *policy(zero, zero), weight, bias, **options), zero, zero


def _applied(
    backend: ModuleType | None,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    tail: Tail,
    out: Tensor | None,
    link: _autograd.Link | None = None,
    given: _autograd.Given | None = None,
) -> Tensor:
    y: Tensor
    if backend is None:
        y = reference.apply(x, mean, scale, shift, tail)
    elif backend is not _ops and _needs_gradient(x, mean, scale, shift, tail.residual):
        y = _autograd.affine(x, mean, scale, shift, tail, backend, link, given)
    else:
        y = backend.apply(x, mean, scale, shift, tail, _written_by(backend, out, x, tail))
    return y if out is None else _into(out, y)


def _prepared(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *others: Tensor | None
) -> tuple[ModuleType | None, Tensor]:
    """The backend for this call, and x in a layout that backends read, a copy if need be.

    The backend is None where the call has to be made of torch's own operators.
    """
    if _dispatch.transform_in_progress(x, weight, bias, *others) is not None:
        return None, x
    x = dense(x)
    backend = _dispatch.choose(x, weight, bias).backend
    if torch.compiler.is_compiling():
        # One operator in the graph where a kernel will take it; otherwise the compiler fuses.
        return None if backend is reference else _ops, x
    return backend, x


def _needs_gradient(*operands: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for operand in operands:
            if operand is not None and operand.requires_grad:
                return True
    return False


def _over_the_copy(
    backend: ModuleType, out: Tensor | None, x: Tensor, given: Tensor
) -> Tensor | None:
    """What y is written into, where no graph needs x: a copy of the given x, which is ours."""
    mine = x is not given and backend is not _ops and backend is not reference
    return x if out is None and mine else out


def _written_by(backend: ModuleType, out: Tensor | None, x: Tensor, tail: Tail) -> Tensor | None:
    """``out``, where the backend may write over it; otherwise None, and the engine copies."""
    if out is None or backend is _ops or out.stride() != x.stride():
        return None
    if _dispatch.transform_in_progress(out) is not None:
        return None
    if out.is_inference() and not torch.is_inference_mode_enabled():
        return None  # a copy raises torch's own error
    # A residual may be read after what it shares memory with is written.
    return None if _dispatch.memory_overlaps(out, tail.residual) else out


def _into(out: Tensor, y: Tensor) -> Tensor:
    """y, which a backend has written into ``out`` or left elsewhere, in ``out``."""
    if y is not out:
        return out.copy_(y)
    torch.autograd.graph.increment_version(out)  # kernels write behind autograd's back
    return out
