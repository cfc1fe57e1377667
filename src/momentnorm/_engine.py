"""The engine: moments -> pool -> scale -> apply, and its one backward.

    mean, var = moments(x)                          per plane, (N, C)
    mean, var = pool(mean, var)                     a policy on the (N, C) grid
    scale     = weight / sqrt(var + eps)            (N, C)
    y         = (x - mean) * scale + bias

The backward needs ``sum(g)`` and ``sum(g * (x - mean))`` of each plane, autograd through the
policy on the (N, C) grid, and one pass ``dx = a*g + b*(x - mean) + c``. It saves x and two (N, C)
tensors, never y, so callers may modify y in place.

A layer is a policy. It brings no kernel and no backward of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _dispatch, _ops
from .backends import reference
from .pool import INSTANCE, Policy

if TYPE_CHECKING:
    from types import ModuleType


def normalize(
    x: Tensor,  # (N, C, *S)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    *,
    pool: Policy = INSTANCE,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x with its own pooled moments.

    Returns y, like x, and the moments of each plane before pooling, (N, C), outside autograd.
    """
    backend = _backend_for(x, weight, bias)
    if backend is None:
        return _composite(x, weight, bias, pool, eps)
    if _needs_gradient(x, weight, bias):
        y, mean, var = _Normalize.apply(x, weight, bias, pool, eps, backend)
        return y, mean, var
    return _forward(x, weight, bias, pool, eps, backend)


def normalize_with(
    x: Tensor,  # (N, C, *S)
    mean: Tensor,  # (C,) or (N, C)
    var: Tensor,  # (C,) or (N, C)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    *,
    eps: float,
) -> Tensor:
    """Normalize x with given moments, such as running statistics."""
    backend = _backend_for(x, weight, bias, mean, var)
    grid = x.shape[:2]
    dtype = reference.statistics_dtype(x)
    mean = mean.to(dtype).expand(grid)
    scale = _scale(weight, var.to(dtype), eps).expand(grid)
    shift = torch.zeros_like(mean) if bias is None else bias.to(dtype).expand(grid)
    if backend is None:
        return reference.apply(x, mean, scale, shift)
    if _needs_gradient(x, mean, scale, shift):
        return _Apply.apply(x, mean, scale, shift, backend)
    return backend.apply(x, mean, scale, shift)


def _backend_for(x: Tensor, *others: Tensor | None) -> ModuleType | None:
    """The backend for this call, or None where it has to be made of torch's own operators."""
    if torch.compiler.is_compiling():
        # One operator in the graph where a kernel will take it; otherwise the compiler fuses.
        takes = _dispatch.choose(x, *others[:2]).backend is not reference
        return _ops if takes else None
    if _dispatch.transform_in_progress(x, *others) is not None:
        return None
    return _dispatch.choose(x, *others[:2]).backend


def _needs_gradient(*operands: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        operand is not None and operand.requires_grad for operand in operands
    )


def _scale(weight: Tensor | None, var: Tensor, eps: float) -> Tensor:
    """``weight / sqrt(var + eps)``, and 0 rather than infinity for var = eps = 0, as in torch."""
    if eps > 0:
        inverse_std = torch.rsqrt(var + eps)
    else:
        total = var + eps
        zero = total == 0
        inverse_std = torch.rsqrt(torch.where(zero, 1, total)).masked_fill(zero, 0)
    return inverse_std if weight is None else inverse_std * weight.to(var.dtype)


def _composite(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, pool: Policy, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same formula in torch's own operators: every transform of torch works on it."""
    mean, var = reference.moments(x)
    pooled_mean, pooled_var = pool(mean, var)
    scale = _scale(weight, pooled_var, eps)
    shift = torch.zeros_like(pooled_mean) if bias is None else bias.to(mean.dtype)
    y = reference.apply(x, pooled_mean, scale, shift.expand(pooled_mean.shape))
    return y, mean.detach(), var.detach()


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pool: Policy,
    eps: float,
    backend: ModuleType,
) -> tuple[Tensor, Tensor, Tensor]:
    if pool == INSTANCE and hasattr(backend, "normalize"):
        y, mean, var = backend.normalize(x, weight, bias, eps)
        return y, mean, var
    mean, var = backend.moments(x)
    pooled_mean, pooled_var = pool(mean, var)
    scale = _scale(weight, pooled_var, eps)
    shift = torch.zeros_like(mean) if bias is None else bias.to(mean.dtype).expand(mean.shape)
    return backend.apply(x, pooled_mean, scale, shift), mean, var


class _Normalize(torch.autograd.Function):
    """y from x, weight and bias, with statistics of x itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        pool: Policy,
        eps: float,
        backend: ModuleType,
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, mean, var = _forward(x, weight, bias, pool, eps, backend)
        ctx.save_for_backward(x, weight, bias, mean, var)
        ctx.pool, ctx.eps, ctx.backend = pool, eps, backend
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)
        return y, mean, var

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, var = ctx.saved_tensors
        if gradient is None:
            return (None,) * 6
        pool, eps, backend = ctx.pool, ctx.eps, ctx.backend
        if not torch.compiler.is_compiling():
            if torch.is_grad_enabled() or _dispatch.transform_in_progress(gradient):
                return (*_replay(ctx, gradient, x, weight, bias, pool, eps), None, None, None)
            backend = _dispatch.choose(x, weight, bias).backend
        count = x[0, 0].numel() if x.numel() else 1
        if pool == INSTANCE and hasattr(backend, "normalize_backward"):
            dx, sums, weighted_sums = backend.normalize_backward(
                gradient, x, mean, var, weight, eps
            )
            dweight = weighted_sums * _scale(None, var, eps)
        else:
            sums, weighted_sums = backend.gradient_sums(gradient, x, mean)
            with torch.enable_grad():
                leaves = [mean.detach().requires_grad_(), var.detach().requires_grad_()]
                pooled_mean, pooled_var = pool(*leaves)
                unit = _scale(None, pooled_var, eps)
                unit_weighted = unit if weight is None else unit * weight.to(unit.dtype)
            # sum(g * (x - pooled_mean)), from the same sum about the plane's own mean
            about_pooled = weighted_sums + sums * (mean - pooled_mean.detach())
            dmean, dvar = torch.autograd.grad(
                (pooled_mean, unit_weighted),
                leaves,
                (-unit_weighted.detach() * sums, about_pooled),
                allow_unused=True,
                materialize_grads=True,
            )
            dx = backend.apply_gradient(
                gradient, x, mean, unit_weighted.detach(), dvar * (2 / count), dmean / count
            )
            dweight = about_pooled * unit.detach()
        _, needs_dweight, needs_dbias, *_ = ctx.needs_input_grad
        return (
            dx,
            dweight.sum(0).to(weight.dtype) if needs_dweight else None,
            sums.sum(0).to(bias.dtype) if needs_dbias else None,
            None,
            None,
            None,
        )


def _replay(
    ctx: Any,
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pool: Policy,
    eps: float,
) -> list[Tensor | None]:
    """The gradients by autograd through the composite: differentiable again, to any order."""
    operands = (x, weight, bias)
    with torch.enable_grad():
        # Views are new graph nodes: the gradients are with respect to these operands, and flow on.
        views = [None if t is None else t.view_as(t) for t in operands]
        wanted = [v for v, needed in zip(views, ctx.needs_input_grad, strict=False) if needed]
        y, _, _ = _composite(*views, pool, eps)  # type: ignore[arg-type]
        found = iter(
            torch.autograd.grad(y, wanted, gradient, create_graph=torch.is_grad_enabled())
        )
    return [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]


class _Apply(torch.autograd.Function):
    """y = (x - mean) * scale + shift, with (N, C) tensors from outside."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, backend: ModuleType
    ) -> Tensor:
        ctx.save_for_backward(x, mean, scale, shift)
        ctx.backend = backend
        y: Tensor = backend.apply(x, mean, scale, shift)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, shift = ctx.saved_tensors
        backend = ctx.backend
        if not torch.compiler.is_compiling():
            if torch.is_grad_enabled() or _dispatch.transform_in_progress(gradient):
                with torch.enable_grad():
                    views = [t.view_as(t) for t in (x, mean, scale, shift)]
                    wanted = [
                        v for v, needed in zip(views, ctx.needs_input_grad, strict=False) if needed
                    ]
                    y = reference.apply(*views)
                    found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=True))
                return (*(next(found) if n else None for n in ctx.needs_input_grad[:4]), None)
            backend = _dispatch.choose(x).backend
        needs_dx, *needs_sums, _ = ctx.needs_input_grad
        dx = dmean = dscale = dshift = None
        if needs_dx:
            zero = torch.zeros_like(scale)
            dx = backend.apply_gradient(gradient, x, mean, scale, zero, zero)
        if any(needs_sums):
            dshift, dscale = backend.gradient_sums(gradient, x, mean)
            dmean = -scale * dshift
        return dx, dmean, dscale, dshift, None
