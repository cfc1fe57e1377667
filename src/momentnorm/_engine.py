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

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _dispatch, _ops
from ._second_order import NormalizeBackward
from .backends import reference
from .pool import INSTANCE, Policy, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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
    if not x.numel():  # no statistics, and nothing to normalize with them
        zero = torch.zeros(x.shape[:2], dtype=reference.statistics_dtype(x), device=x.device)
        return normalize_with(x, zero, zero, weight, bias, eps=eps), zero, zero
    backend = _backend_for(x, weight, bias)
    if pool != INSTANCE and (backend is _ops or _learns(pool, x)):
        # A compiler fuses a policy with the arithmetic around it better than operators would, and
        # the parameters of a policy that learns need autograd through all of it.
        backend = None
    if backend is None:
        return _composite(x, weight, bias, pool, eps)
    if backend is not _ops and _needs_gradient(x, weight, bias):
        y, mean, var = _Normalize.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, pool, eps, backend
        )
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
    # A copy: the caller may move a running mean on before the backward needs this one.
    mean = mean.to(dtype, copy=True).expand(grid)
    scale = reference.scale(weight, var.to(dtype), eps).expand(grid)
    shift = reference.shift(bias, mean)
    if backend is None:
        return reference.apply(x, mean, scale, shift)
    if backend is not _ops and _needs_gradient(x, mean, scale, shift):
        y: Tensor = _Apply.apply(  # type: ignore[no-untyped-call]
            x, mean, scale, shift, backend
        )
    else:
        y = backend.apply(x, mean, scale, shift)
    return y


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each plane of x, (N, C), outside autograd."""
    with torch.no_grad():
        mean, var = (_backend_for(x) or reference).moments(x)
    return mean, var


def _backend_for(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *others: Tensor
) -> ModuleType | None:
    """The backend for this call, or None where it has to be made of torch's own operators."""
    if _dispatch.transform_in_progress(x, weight, bias, *others) is not None:
        return None
    backend = _dispatch.choose(x, weight, bias).backend
    if torch.compiler.is_compiling():
        # One operator in the graph where a kernel will take it; otherwise the compiler fuses.
        return None if backend is reference else _ops
    return backend


def _needs_gradient(*operands: Tensor | None) -> bool:
    if torch.is_grad_enabled():
        for operand in operands:
            if operand is not None and operand.requires_grad:
                return True
    return False


def _learns(pool: Policy, x: Tensor) -> bool:
    """Whether the policy has parameters of its own, as a learned mixture of pools has."""
    if isinstance(pool, Pool) or not torch.is_grad_enabled():
        return False
    probe = torch.zeros(x.shape[:2], dtype=reference.statistics_dtype(x), device=x.device)
    return any(pooled.requires_grad for pooled in pool(probe, probe))


def _pooled(pool: Policy, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    pooled_mean, pooled_var = pool(mean, var)
    return pooled_mean.expand(mean.shape), pooled_var.expand(mean.shape)


def _composite(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, pool: Policy, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The same formula in torch's own operators: every transform of torch works on it."""
    mean, var = reference.moments(x)
    pooled_mean, pooled_var = _pooled(pool, mean, var)
    scale = reference.scale(weight, pooled_var, eps)
    y = reference.apply(x, pooled_mean, scale, reference.shift(bias, mean))
    return y, mean.detach(), var.detach()


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pool: Policy,
    eps: float,
    backend: ModuleType,
) -> tuple[Tensor, Tensor, Tensor]:
    if pool == INSTANCE:
        y, mean, var = backend.normalize(x, weight, bias, eps)
        return y, mean, var
    mean, var = backend.moments(x)
    pooled_mean, pooled_var = _pooled(pool, mean, var)
    scale = reference.scale(weight, pooled_var, eps)
    return backend.apply(x, pooled_mean, scale, reference.shift(bias, mean)), mean, var


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
        results = _forward(x, weight, bias, pool, eps, backend)
        _Normalize.save(ctx, (x, weight, bias, eps), results, pool, backend)
        return results

    @staticmethod
    def save(
        ctx: Any, inputs: tuple[Any, ...], output: Any, pool: Policy, backend: ModuleType
    ) -> None:
        x, weight, bias, ctx.eps = inputs
        _, mean, var = output
        # Not the bias: no gradient depends on its value, and its owner may change it meanwhile.
        ctx.save_for_backward(x, weight, mean, var)
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.pool, ctx.backend = pool, backend
        ctx.mark_non_differentiable(mean, var)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return (None,) * 6
        x, weight, mean, var = ctx.saved_tensors
        pool, eps = ctx.pool, ctx.eps
        twice = torch.is_grad_enabled() and ctx.backend is not _ops
        if twice and pool == INSTANCE and _dispatch.kernels_see(gradient):
            dx, dweight, dbias = NormalizeBackward.apply(  # type: ignore[no-untyped-call]
                gradient, x, weight, mean, var, eps, ctx.backend, partial(_replay_backward, eps=eps)
            )
            _, needs_dweight, needs_dbias, *_ = ctx.needs_input_grad
            return (
                dx,
                dweight.to(weight.dtype) if needs_dweight else None,
                dbias.to(ctx.bias_dtype) if needs_dbias else None,
                None,
                None,
                None,
            )
        backend = _backend_for_backward(ctx, gradient)
        if backend is None:
            bias = None
            if ctx.bias_dtype is not None:
                bias = torch.zeros(x.shape[1], dtype=ctx.bias_dtype, device=x.device)
            found = _replay(
                lambda x, weight, bias: _composite(x, weight, bias, pool, eps)[0],
                (x, weight, bias),
                ctx.needs_input_grad,
                gradient,
            )
            return (*found, None, None, None)
        needs_dx, needs_dweight, needs_dbias, *_ = ctx.needs_input_grad
        dx = None
        if pool != INSTANCE:
            dx, sums, weighted_sums, inverse_std = _pooled_backward(
                gradient, x, mean, var, weight, pool, eps, backend, needs_dx
            )
        else:
            if needs_dx:
                dx, sums, weighted_sums = backend.normalize_backward(
                    gradient, x, mean, var, weight, eps
                )
            else:
                sums, weighted_sums = backend.gradient_sums(gradient, x, mean)
            inverse_std = reference.scale(None, var, eps)
        dweight = dbias = None
        if needs_dweight:
            dweight = (weighted_sums * inverse_std).sum(0).to(weight.dtype)
        if needs_dbias:
            dbias = sums.sum(0).to(ctx.bias_dtype)
        return dx, dweight, dbias, None, None, None


def _pooled_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    pool: Policy,
    eps: float,
    backend: ModuleType,
    needs_dx: bool,
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """dx; sum(g) and sum(g * (x - pooled mean)) of each plane; and the inverse std, all (N, C)."""
    sums, weighted_sums = backend.gradient_sums(gradient, x, mean)
    dmean, dvar = torch.zeros_like(mean), torch.zeros_like(var)
    with torch.enable_grad():
        leaves = [mean.detach().requires_grad_(), var.detach().requires_grad_()]
        pooled_mean, pooled_var = _pooled(pool, *leaves)
        inverse_std = reference.scale(None, pooled_var, eps)
        scale = inverse_std if weight is None else inverse_std * weight.detach().to(mean.dtype)
        # from the same sum about the plane's own mean
        weighted_sums = weighted_sums + sums * (mean - pooled_mean.detach())
        if not needs_dx:
            return None, sums, weighted_sums, inverse_std.detach()
        loss = (scale * weighted_sums - pooled_mean * (scale.detach() * sums)).sum()
        if loss.requires_grad:  # a policy may leave the moments out
            dmean, dvar = torch.autograd.grad(
                loss, leaves, allow_unused=True, materialize_grads=True
            )
    count = x.shape[2:].numel()
    b, c = dvar * (2 / count), dmean / count
    dx = backend.apply_gradient(gradient, x, mean, scale.detach(), b, c)
    return dx, sums, weighted_sums, inverse_std.detach()


class _Apply(torch.autograd.Function):
    """y = (x - mean) * scale + shift, with (N, C) tensors from outside."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, scale: Tensor, shift: Tensor, backend: ModuleType
    ) -> Tensor:
        _Apply.save(ctx, (x, mean, scale, shift), None, backend)
        y: Tensor = backend.apply(x, mean, scale, shift)
        return y

    @staticmethod
    def save(ctx: Any, inputs: tuple[Tensor, ...], output: Any, backend: ModuleType) -> None:
        ctx.save_for_backward(*inputs[:3])  # not the shift, for the same reason
        ctx.backend = backend

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale = ctx.saved_tensors
        backend = _backend_for_backward(ctx, gradient)
        if backend is None:
            operands = (x, mean, scale, torch.zeros_like(mean))
            return (*_replay(reference.apply, operands, ctx.needs_input_grad, gradient), None)
        needs_dx, *needs_sums = ctx.needs_input_grad[:4]
        dx = dmean = dscale = dshift = None
        if needs_dx:
            zero = torch.zeros_like(mean)
            dx = backend.apply_gradient(gradient, x, mean, scale, zero, zero)
        if any(needs_sums):
            dshift, dscale = backend.gradient_sums(gradient, x, mean)
            dmean = -scale * dshift
        return dx, dmean, dscale, dshift, None


def _backend_for_backward(ctx: Any, gradient: Tensor) -> ModuleType | None:
    """The backend of the forward, or None where the gradient has to be made of torch's own."""
    if torch.is_grad_enabled():  # create_graph: somebody differentiates the gradient
        return None
    backend: ModuleType = ctx.backend
    if backend is _ops or torch.compiler.is_compiling():
        return _ops
    return backend if _dispatch.kernels_see(gradient) else None


def _replay_backward(
    operands: Sequence[Tensor | None],
    needed: Sequence[bool],
    gradients: Sequence[Tensor],
    eps: float,
) -> list[Tensor | None]:
    """The gradients of (gradient, x, weight) -> dx, dweight, dbias by torch's own operators."""

    def backward(gradient: Tensor, x: Tensor, weight: Tensor | None) -> Sequence[Tensor]:
        channels = x.shape[1:2]
        bias = torch.zeros(channels, dtype=mean_dtype, device=x.device, requires_grad=True)
        scale = torch.ones_like(bias) if weight is None else weight.to(mean_dtype)
        x = x if x.requires_grad else x.view_as(x).requires_grad_()
        scale = scale if scale.requires_grad else scale.detach().requires_grad_()
        y, _, _ = _composite(x, scale, bias, INSTANCE, eps)
        return torch.autograd.grad(y, (x, scale, bias), gradient, create_graph=True)

    x = operands[1]
    assert x is not None
    mean_dtype = reference.statistics_dtype(x)
    return _replay(backward, operands, needed, gradients)


def _replay(
    function: Callable[..., Tensor | Sequence[Tensor]],
    operands: Sequence[Tensor | None],
    needed: Sequence[bool],
    gradient: Tensor | Sequence[Tensor],
) -> list[Tensor | None]:
    """The gradients by autograd through ``function``, itself made of torch's own operators.

    They are differentiable again, to any order, if grad mode says so.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views are new graph nodes: autograd stops at them here, and flows on through them later.
        views = [None if operand is None else operand.view_as(operand) for operand in operands]
        wanted = [
            view for view, need in zip(views, needed, strict=False) if view is not None and need
        ]
        for view in wanted:
            if not view.requires_grad:  # stands for an operand whose value was not saved
                view.requires_grad_()
        y = function(*views)
        found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=differentiable))
    return [next(found) if need else None for _, need in zip(views, needed, strict=False)]


# In a compiled graph the operators have the same backward.
torch.library.register_autograd(
    "momentnorm::normalize",
    lambda ctx, *gradients: _Normalize.backward(ctx, *gradients)[:4],
    setup_context=partial(_Normalize.save, pool=INSTANCE, backend=_ops),
    lib=_ops.library,
)
torch.library.register_autograd(
    "momentnorm::apply",
    lambda ctx, gradient: _Apply.backward(ctx, gradient)[:4],
    setup_context=partial(_Apply.save, backend=_ops),
    lib=_ops.library,
)
