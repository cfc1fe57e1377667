"""The engine: moments -> pool -> scale -> apply, and its one backward.

    mean, var = moments(x)                          per plane, (N, C)
    mean, var = pool(mean, var)                     a policy on the (N, C) grid
    scale     = weight / sqrt(var + eps)            (N, C)
    y         = tail((x - mean) * scale + bias)     plus a residual, then an activation

The backward needs ``sum(g)`` and ``sum(g * (x - mean))`` of each plane, autograd through the
policy on the (N, C) grid, and one pass ``dx = a*g + b*(x - mean) + c``, where g is the gradient in
front of the activation. It saves x and two (N, C) tensors, never y, so callers may modify y in
place. With an activation it saves the bias and the residual too, and computes the activation's
derivative again from them.

A layer is a policy. It brings no kernel and no backward of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _dispatch, _ops
from ._second_order import NormalizeBackward
from .backends import PLAIN, Tail, reference
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
    tail: Tail = PLAIN,
    out: Tensor | None = None,  # like x, and x itself or apart from it; where autograd is off
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize x with its own pooled moments.

    Returns y, like x, and the moments of each plane before pooling, (N, C), outside autograd.
    """
    if not x.numel():  # no statistics, and nothing to normalize with them
        zero = torch.zeros(x.shape[:2], dtype=reference.statistics_dtype(x), device=x.device)
        y = normalize_with(x, zero, zero, weight, bias, eps=eps, tail=tail, out=out)
        return y, zero, zero
    if pool is not INSTANCE and pool == INSTANCE:
        pool = INSTANCE
    backend = _backend_for(x, weight, bias, tail.residual)
    if pool is not INSTANCE and (backend is _ops or _learns(pool, x)):
        # A compiler fuses a policy with the arithmetic around it better than operators would, and
        # the parameters of a policy that learns need autograd through all of it.
        backend = None
    if backend is None:
        y, mean, var = composite(x, weight, bias, pool, eps, tail)
    elif backend is not _ops and _needs_gradient(x, weight, bias, tail.residual):
        call = _Call(tail, pool, eps, backend)
        y = _apply_normalize(x, weight, bias, tail.residual, call)
        mean, var = call.moments
    else:
        target = _written_by(backend, out, x, tail)
        y, mean, var = _forward(x, weight, bias, pool, eps, backend, tail, target)
    return y if out is None else _into(out, y), mean, var


def normalize_with(
    x: Tensor,  # (N, C, *S)
    mean: Tensor,  # (C,) or (N, C)
    var: Tensor,  # (C,) or (N, C)
    weight: Tensor | None,  # (C,)
    bias: Tensor | None,  # (C,)
    *,
    eps: float,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    """Normalize x with given moments, such as running statistics."""
    backend = _backend_for(x, weight, bias, mean, var, tail.residual)
    grid = x.shape[:2]
    dtype = reference.statistics_dtype(x)
    # A copy: the caller may move a running mean on before the backward needs this one.
    mean = mean.to(dtype, copy=True).expand(grid)
    scale = reference.scale(weight, var.to(dtype), eps).expand(grid)
    shift = reference.shift(bias, mean)
    y: Tensor
    if backend is None:
        y = reference.apply(x, mean, scale, shift, tail)
    elif backend is not _ops and _needs_gradient(x, mean, scale, shift, tail.residual):
        y = _Apply.apply(  # type: ignore[no-untyped-call]
            x, mean, scale, shift, tail.residual, tail, backend
        )
    else:
        y = backend.apply(x, mean, scale, shift, tail, _written_by(backend, out, x, tail))
    return y if out is None else _into(out, y)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each plane of x, (N, C), outside autograd."""
    with torch.no_grad():
        mean, var = (_backend_for(x) or reference).moments(x)
    return mean, var


def _backend_for(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *others: Tensor | None
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


def _learns(pool: Policy, x: Tensor) -> bool:
    """Whether the policy has parameters of its own, as a learned mixture of pools has."""
    if isinstance(pool, Pool) or not torch.is_grad_enabled():
        return False
    probe = torch.zeros(x.shape[:2], dtype=reference.statistics_dtype(x), device=x.device)
    return any(pooled.requires_grad for pooled in pool(probe, probe))


def _pooled(pool: Policy, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    pooled_mean, pooled_var = pool(mean, var)
    return pooled_mean.expand(mean.shape), pooled_var.expand(mean.shape)


def composite(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, pool: Policy, eps: float, tail: Tail
) -> tuple[Tensor, Tensor, Tensor]:
    """The same formula in torch's own operators: every transform of torch works on it."""
    mean, var = reference.moments(x)
    pooled_mean, pooled_var = _pooled(pool, mean, var)
    scale = reference.scale(weight, pooled_var, eps)
    y = reference.apply(x, pooled_mean, scale, reference.shift(bias, mean), tail)
    return y, mean.detach(), var.detach()


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    pool: Policy,
    eps: float,
    backend: ModuleType,
    tail: Tail,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    if pool is INSTANCE:
        y, mean, var = backend.normalize(x, weight, bias, eps, tail, out)
        return y, mean, var
    mean, var = backend.moments(x)
    pooled_mean, pooled_var = _pooled(pool, mean, var)
    scale = reference.scale(weight, pooled_var, eps)
    y = backend.apply(x, pooled_mean, scale, reference.shift(bias, mean), tail, out)
    return y, mean, var


@dataclass(slots=True)
class _Call:
    """What a call of ``_Normalize`` is about, beside the operands that autograd knows."""

    tail: Tail
    pool: Policy
    eps: float
    backend: ModuleType
    #: Of each plane. No gradient flows into them, so they are neither operands nor results.
    moments: tuple[Tensor, ...] = ()
    bias_dtype: torch.dtype | None = None


class _Normalize(torch.autograd.Function):
    """y from x, weight, bias and residual, with statistics of x itself."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: _Call,
    ) -> Tensor:
        y, mean, var = _forward(x, weight, bias, call.pool, call.eps, call.backend, call.tail)
        call.moments = mean, var
        _Normalize.save(ctx, x, weight, bias, residual, call)
        return y

    @staticmethod
    def save(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: _Call,
    ) -> None:
        ctx.call = call
        if bias is not None:
            call.bias_dtype = bias.dtype
        if call.tail.activation:
            ctx.save_for_backward(x, weight, bias, residual)
        else:
            # Without an activation no gradient depends on the values of these two, and their
            # owners may change them meanwhile.
            ctx.save_for_backward(x, weight)
        if residual is not None:  # autograd keeps it, and watches its version
            call.tail = call.tail._replace(residual=None) if call.tail.activation else PLAIN

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *activated_with = ctx.saved_tensors
        bias, residual = activated_with or (None, None)
        call: _Call = ctx.call
        needs_dx, needs_dweight, needs_dbias, needs_dresidual, *_ = needs = ctx.needs_input_grad
        tail, pool, eps = call.tail, call.pool, call.eps
        if residual is not None:
            tail = tail._replace(residual=residual)
        activated = bool(tail.activation)  # otherwise the residual's gradient is this one
        dx: Any = None
        dweight: Any = None
        dbias: Any = None
        dresidual: Any = None
        backend = _backend_for_backward(call.backend, gradient)
        if not (activated or needs_dx or needs_dweight or needs_dbias):
            pass  # the residual alone
        elif pool is INSTANCE and backend is not None and (needs_dx or activated):
            dx, dresidual, dweight, dbias, _ = backend.normalize_backward(
                gradient,
                x,
                *call.moments,
                weight,
                bias,
                eps,
                tail,
                needs_dresidual and activated,
            )
        elif backend is not None:
            dx, dresidual, dweight, dbias = _pooled_backward(
                gradient, x, weight, bias, call, tail, backend, needs
            )
        elif pool is INSTANCE and not activated and _is_differentiated(call.backend, gradient):
            dx, dweight, dbias = NormalizeBackward.apply(  # type: ignore[no-untyped-call]
                gradient,
                x,
                weight,
                *call.moments,
                eps,
                call.backend,
                partial(_replay_backward, eps=eps),
            )
        else:
            if bias is None and call.bias_dtype is not None:
                bias = torch.zeros(x.shape[1], dtype=call.bias_dtype, device=x.device)
            twice = activated and _is_differentiated(call.backend, gradient)
            dx, dweight, dbias, dresidual = _replay(
                partial(_activated if twice else _formula, pool=pool, eps=eps, tail=tail),
                (x, weight, bias, residual),
                (*needs[:3], needs_dresidual and activated),
                gradient,
            )
        return (
            dx,
            _as(weight.dtype, dweight) if needs_dweight else None,
            _as(call.bias_dtype, dbias) if needs_dbias else None,
            gradient if needs_dresidual and not activated else dresidual,
            None,
        )


#: ``_Normalize.apply`` without what it does for torch.func's transforms, which never come here.
_apply_normalize: Callable[..., Tensor] = super(torch.autograd.Function, _Normalize).apply


def _as(dtype: torch.dtype | None, gradient: Tensor) -> Tensor:
    return gradient if gradient.dtype == dtype else gradient.to(dtype)


def _formula(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    pool: Policy,
    eps: float,
    tail: Tail,
) -> Tensor:
    """y in torch's own operators, of the operands that autograd knows."""
    return composite(x, weight, bias, pool, eps, tail._replace(residual=residual))[0]


def _activated(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    pool: Policy,
    eps: float,
    tail: Tail,
) -> Tensor:
    """The same y, its normalization by a backend and the tail in torch's own operators.

    A second derivative is then that of the plain normalization. Half types are widened, since a
    rounding before the activation may move a value over its kink.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    parameters = [None if values is None else values.to(dtype) for values in (weight, bias)]
    y, _, _ = normalize(x.to(dtype), *parameters, pool=pool, eps=eps)
    if residual is not None:
        y = y + residual.to(dtype)
    return reference.activate(y, tail.activation, tail.slope).to(x.dtype)


def _pooled_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    call: _Call,
    tail: Tail,
    backend: ModuleType,
    needs: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """dx and dresidual, where needed; dweight and dbias, (C,)."""
    mean, var = call.moments
    dmean, dvar = torch.zeros_like(mean), torch.zeros_like(var)
    needs_dx, needs_dresidual = needs[0], needs[3] and bool(tail.activation)
    with torch.enable_grad():
        leaves = [mean.detach().requires_grad_(), var.detach().requires_grad_()]
        pooled_mean, pooled_var = _pooled(call.pool, *leaves)
        inverse_std = reference.scale(None, pooled_var, call.eps)
        scale = inverse_std if weight is None else inverse_std * weight.detach().to(mean.dtype)
        off_centre = mean - pooled_mean.detach()
        forward: tuple[Tensor | None, Tensor | None, Tail] = (None, None, tail)
        if tail.activation:  # what the forward did, about the plane's own mean
            shift = reference.shift(bias, mean).detach() + off_centre * scale.detach()
            forward = scale.detach(), shift, tail
        sums, weighted_sums = backend.gradient_sums(gradient, x, mean, *forward)
        # from the same sum about the plane's own mean
        weighted_sums = weighted_sums + sums * off_centre
        loss = (scale * weighted_sums - pooled_mean * (scale.detach() * sums)).sum()
        if needs_dx and loss.requires_grad:  # a policy may leave the moments out
            dmean, dvar = torch.autograd.grad(
                loss, leaves, allow_unused=True, materialize_grads=True
            )
    dx = dresidual = None
    if needs_dx or needs_dresidual:
        count = x.shape[2:].numel()
        b, c = dvar * (2 / count), dmean / count
        dx, dresidual = backend.apply_gradient(
            gradient, x, mean, scale.detach(), b, c, *forward, needs_dresidual
        )
    dweight = (weighted_sums * inverse_std.detach()).sum(0)
    return dx, dresidual, dweight, sums.sum(0)


class _Apply(torch.autograd.Function):
    """y = tail((x - mean) * scale + shift), with (N, C) tensors from outside."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        tail: Tail,
        backend: ModuleType,
    ) -> Tensor:
        _Apply.save(ctx, x, mean, scale, shift, tail, backend)
        y: Tensor = backend.apply(x, mean, scale, shift, tail)
        return y

    @staticmethod
    def save(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        shift: Tensor,
        tail: Tail,
        backend: ModuleType,
    ) -> None:
        ctx.tail, ctx.backend = PLAIN, backend
        if tail.activation:
            ctx.save_for_backward(x, mean, scale, shift, tail.residual)
            ctx.tail = tail._replace(residual=None)
        else:
            ctx.save_for_backward(x, mean, scale, None, None)  # not the shift, for the same reason

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, shift, residual = ctx.saved_tensors
        needs_dx, *needs_sums, needs_dresidual = needs = ctx.needs_input_grad[:5]
        tail: Tail = ctx.tail if residual is None else ctx.tail._replace(residual=residual)
        activated = bool(tail.activation)
        dx = dmean = dscale = dshift = dresidual = None
        backend = _backend_for_backward(ctx.backend, gradient)
        if backend is None:
            shift = torch.zeros_like(mean) if shift is None else shift
            dx, dmean, dscale, dshift, dresidual = _replay(
                lambda x, mean, scale, shift, residual: reference.apply(
                    x, mean, scale, shift, tail._replace(residual=residual)
                ),
                (x, mean, scale, shift, residual),
                (*needs[:4], needs_dresidual and activated),
                gradient,
            )
        else:
            forward = scale, shift, tail
            if needs_dx or (needs_dresidual and activated):
                zero = torch.zeros_like(mean)
                dx, dresidual = backend.apply_gradient(
                    gradient, x, mean, scale, zero, zero, *forward, needs_dresidual and activated
                )
            if any(needs_sums):
                dshift, dscale = backend.gradient_sums(gradient, x, mean, *forward)
                dmean = -scale * dshift
        if needs_dresidual and not activated:
            dresidual = gradient
        return dx, dmean, dscale, dshift, dresidual, None, None


def _backend_for_backward(backend: ModuleType, gradient: Tensor) -> ModuleType | None:
    """The backend of the forward, or None where the gradient has to be made of torch's own."""
    if torch.is_grad_enabled():  # create_graph: somebody differentiates the gradient
        return None
    if backend is not _ops and _dispatch.kernels_see(gradient):
        return backend
    return _ops if backend is _ops or torch.compiler.is_compiling() else None


def _is_differentiated(backend: ModuleType, gradient: Tensor) -> bool:
    """Whether the backward of an eager call is differentiated again, and kernels may be asked."""
    return backend is not _ops and torch.is_grad_enabled() and _dispatch.kernels_see(gradient)


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
        y, _, _ = composite(x, scale, bias, INSTANCE, eps, PLAIN)
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
def _save_normalize(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, activation, slope, eps = inputs
    _, mean, var = output
    call = _Call(Tail(activation, slope), INSTANCE, eps, _ops, (mean, var))
    _Normalize.save(ctx, x, weight, bias, residual, call)
    ctx.mark_non_differentiable(mean, var)


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mean, scale, shift, residual, activation, slope = inputs
    _Apply.save(ctx, x, mean, scale, shift, Tail(activation, slope, residual), _ops)


torch.library.register_autograd(
    "momentnorm::normalize",
    lambda ctx, gradient, *_: (*_Normalize.backward(ctx, gradient), None, None),
    setup_context=_save_normalize,
    lib=_ops.library,
)
torch.library.register_autograd(
    "momentnorm::apply",
    _Apply.backward,
    setup_context=_save_apply,
    lib=_ops.library,
)
