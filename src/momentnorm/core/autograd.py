"""Autograd: nodes that the engine puts into autograd's graph, eager or compiled.

A normalization by a :class:`Pool` is one node, ``_Normalize``. A normalization by any other policy
is two nodes, ``_Moments`` and ``_Affine``, with the operators of the policy between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import context, graph_operators, grid, replay
from .backends import reference
from .backends.operands import dense
from .pool import INSTANCE, Pool
from .second_order import NormalizeBackward
from .tail import PLAIN, Tail

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .backends import Backend


@dataclass(slots=True)
class Call:
    """Arguments of a call of ``_Normalize`` that autograd does not differentiate."""

    tail: Tail
    pool: Pool
    eps: float
    backend: Backend
    #: Mean and variance of each pool. No gradient flows into them.
    moments: Sequence[Tensor] = ()
    bias_dtype: torch.dtype | None = None


class _Gradients(NamedTuple):
    """Gradients of the operands of ``_Normalize``."""

    dx: Tensor | None = None
    dweight: Tensor | None = None
    dbias: Tensor | None = None
    residual: Tensor | None = None


class _Normalize(torch.autograd.Function):
    """y from x, weight, bias and residual, with statistics of x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: Call,
    ) -> Tensor:
        y: Tensor
        y, *call.moments = call.backend.normalize(x, weight, bias, call.eps, call.pool, call.tail)
        _Normalize.save(ctx, x, weight, bias, residual, call)
        return y

    @staticmethod
    def save(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        call: Call,
    ) -> None:
        ctx.call = call
        if bias is not None:
            call.bias_dtype = bias.dtype
        if call.tail.activation:
            ctx.save_for_backward(x, weight, bias, residual)
        else:
            # Without an activation no gradient depends on the values of bias and residual. They
            # are not saved, so callers may change them before the backward.
            ctx.save_for_backward(x, weight)
        if residual is not None:  # autograd has saved it if needed, and checks its version
            call.tail = call.tail.bare

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *activated_with = _saved(ctx)
        bias, residual = activated_with or (None, None)
        call: Call = ctx.call
        _, needs_dweight, needs_dbias, needs_residual, *_ = needs = ctx.needs_input_grad
        activated = bool(call.tail.activation)
        # Without an activation the gradient of the residual is the given one.
        needs = (*needs[:3], needs_residual and activated)
        operands = x, weight, bias, residual
        backend = _backend_for_backward(call.backend, gradient)
        if not (activated or any(needs)):
            found = _Gradients()
        elif backend is not None:
            found = _kernel_gradients(backend, call, gradient, operands, needs)
        else:
            found = _formula_gradients(call, gradient, operands, needs)
        return (
            found.dx,
            _as(weight.dtype, found.dweight) if needs_dweight else None,
            _as(call.bias_dtype, found.dbias) if needs_dbias else None,
            gradient if needs_residual and not activated else found.residual,
            None,
        )


def _kernel_gradients(
    backend: Backend,
    call: Call,
    gradient: Tensor,
    operands: Sequence[Any],
    needs: Sequence[bool],
) -> _Gradients:
    """Gradients of ``_Normalize`` by the functions of a backend."""
    x, weight, bias, residual = operands
    tail = call.tail if residual is None else call.tail._replace(residual=residual)
    mean, var = call.moments
    if needs[0] or tail.activation:
        dx, residual_gradient, dweight, dbias, _ = backend.normalize_backward(
            gradient, x, mean, var, weight, bias, call.eps, call.pool, tail, needs[3]
        )
        return _Gradients(dx, dweight, dbias, residual_gradient)
    # Only the parameters need a gradient.
    mean, var = (call.pool.spread(values, x.shape[:2]) for values in (mean, var))
    sums, weighted_sums = backend.gradient_sums(gradient, x, mean)
    dweight = (weighted_sums * grid.scale(None, var, call.eps)).sum(0)
    return _Gradients(None, dweight, sums.sum(0))


def _formula_gradients(
    call: Call, gradient: Tensor, operands: Sequence[Any], needs: Sequence[bool]
) -> _Gradients:
    """Gradients of ``_Normalize`` by torch's operators.

    They serve gradients that are differentiated again, and batched gradients.
    """
    x, weight, bias, residual = operands
    tail, pool, eps = call.tail, call.pool, call.eps
    differentiated = _is_differentiated(call.backend, gradient)
    if differentiated and pool is INSTANCE and not tail.activation:
        fallback = partial(replay.normalize_backward, eps=eps)
        return _Gradients(
            *NormalizeBackward.apply(  # type: ignore[no-untyped-call]
                gradient, x, weight, *call.moments, eps, call.backend, fallback
            )
        )
    if bias is None and call.bias_dtype is not None:
        bias = torch.zeros(x.shape[1], dtype=call.bias_dtype, device=x.device)
    if differentiated and tail.activation:
        plain = Call(PLAIN, pool, eps, call.backend)
        formula = partial(_activated, call=plain, tail=tail)
    else:
        formula = partial(replay.normalize, pool=pool, eps=eps, tail=tail)
    return _Gradients(*replay.replay(formula, (x, weight, bias, residual), needs, gradient))


def _saved(ctx: Any) -> list[Any]:
    """Saved tensors, x first. A hook on saved tensors may have changed the layout of x."""
    x, *others = ctx.saved_tensors
    return [dense(x), *others]


def _as(dtype: torch.dtype | None, gradient: Tensor | None) -> Tensor | None:
    return gradient if gradient is None or gradient.dtype == dtype else gradient.to(dtype)


def _activated(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    call: Call,
    tail: Tail,
) -> Tensor:
    """y, with the normalization by a backend and the tail in torch's own operators.

    So the second derivative of the normalization is by kernels too. Half types are widened, since
    rounding before the activation could move a value across its kink.
    """
    dtype = grid.parameter_dtype(x)
    parameters = [None if values is None else values.to(dtype) for values in (weight, bias)]
    y: Tensor = apply_normalize(x.to(dtype), *parameters, None, call)
    if residual is not None:
        y = y + residual.to(dtype)
    return reference.activate(y, tail.activation, tail.slope).to(x.dtype)


@dataclass(slots=True)
class Link:
    """Connection of a ``_Moments`` and the ``_Affine`` of the same x.

    Each of the two nodes has a term of dx, and one pass over memory can compute both. In a backward
    by kernels ``_Affine`` stores the coefficients of its term in ``left``. It passes the gradient
    of y on to ``_Moments`` as the gradient of the token, an output of ``_Moments`` in the shape of
    x.
    """

    token: Tensor | None = None
    left: tuple[Tensor, Tensor, Tensor | None, Tail] | None = None


class _Moments(torch.autograd.Function):
    """Mean and variance of each plane of x, and the token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, link: Link, backend: Backend) -> tuple[Tensor, ...]:
        mean, var = backend.moments(x)
        ctx.save_for_backward(x, mean)
        ctx.set_materialize_grads(False)
        ctx.link, ctx.backend = link, backend
        token = torch.empty_strided(x.shape, (0,) * x.dim(), dtype=x.dtype, device=x.device)
        return mean, var, token

    @staticmethod
    def backward(
        ctx: Any, dmean: Tensor | None, dvar: Tensor | None, gradient: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, mean = _saved(ctx)
        given = [values for values in (dmean, dvar) if values is not None]
        if not given and gradient is None:
            return None, None, None
        zero = torch.zeros_like(mean)
        dmean, dvar = zero if dmean is None else dmean, zero if dvar is None else dvar
        if gradient is None and _backend_for_backward(ctx.backend, *given) is None:
            gradients = replay.replay(reference.moments, (x,), (True,), (dmean, dvar))
            return *gradients, None, None
        count = x.shape[2:].numel()
        b, c = dvar * (2 / count), dmean / count
        if gradient is None:
            return ctx.backend.apply(x, mean, b, c), None, None
        left, ctx.link.left = ctx.link.left, None
        assert left is not None
        centre, scale, shift, tail = left
        if shift is not None:  # rewrite the affine map of the forward around the plane's own mean
            shift = shift + (mean - centre) * scale
        dx, _ = ctx.backend.apply_gradient(gradient, x, mean, scale, b, c, scale, shift, tail)
        return dx, None, None


#: mean, var, weight, bias and eps of a call with given moments, one value for each channel.
Given: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]


class _Affine(torch.autograd.Function):
    """y = tail((x - mean) * scale + shift), with (N, C) tensors from outside.

    If the map comes from given moments, the forward is the backend's ``normalize_with``. Then y has
    the same bits with and without a graph.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        token: Tensor | None,
        link: Link | None,
        tail: Tail,
        backend: Backend,
        given: Given | None,
    ) -> Tensor:
        _Affine.save(ctx, x, mean, scale, shift, tail, backend, link)
        if given is None:
            return backend.apply(x, mean, scale, shift, tail)
        return backend.normalize_with(x, *given, tail)

    @staticmethod
    def save(
        ctx: Any,
        x: Tensor,
        mean: Tensor,
        scale: Tensor,
        shift: Tensor,
        tail: Tail,
        backend: Backend,
        link: Link | None = None,
    ) -> None:
        ctx.tail, ctx.backend, ctx.link = PLAIN, backend, link
        if tail.activation:
            ctx.save_for_backward(x, mean, scale, shift, tail.residual)
            ctx.tail = tail.bare
        else:
            # No gradient depends on the shift, so callers may change it before the backward.
            ctx.save_for_backward(x, mean, scale, None, None)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, shift, residual = _saved(ctx)
        needs_dx, *needs_sums, needs_residual = needs = ctx.needs_input_grad[:5]
        tail: Tail = ctx.tail if residual is None else ctx.tail._replace(residual=residual)
        # Without an activation the gradient of the residual is the given one.
        own_residual = needs_residual and bool(tail.activation)
        dx = dmean = dscale = dshift = residual_gradient = passed_on = None
        backend = _backend_for_backward(ctx.backend, gradient)
        if backend is None:
            shift = torch.zeros_like(mean) if shift is None else shift
            dx, dmean, dscale, dshift, residual_gradient = replay.replay(
                lambda x, mean, scale, shift, residual: reference.apply(
                    x, mean, scale, shift, tail._replace(residual=residual)
                ),
                (x, mean, scale, shift, residual),
                (*needs[:4], own_residual),
                gradient,
            )
        else:
            if ctx.link is not None and not own_residual:
                ctx.link.left, passed_on = (mean, scale, shift, tail), gradient
            elif needs_dx or own_residual:
                zero = torch.zeros_like(mean)
                dx, residual_gradient = backend.apply_gradient(
                    gradient, x, mean, scale, zero, zero, scale, shift, tail, own_residual
                )
            if any(needs_sums):
                dshift, dscale = backend.gradient_sums(gradient, x, mean, scale, shift, tail)
                dmean = -scale * dshift
        if needs_residual and not own_residual:
            residual_gradient = gradient
        return dx, dmean, dscale, dshift, residual_gradient, passed_on, None, None, None, None


def _node(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply`` without its support for transforms, which take another route."""
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


apply_normalize = _node(_Normalize)
_apply_moments = _node(_Moments)
_apply_affine = _node(_Affine)


def moments(x: Tensor, backend: Backend) -> tuple[Tensor, Tensor, Link]:
    """Mean and variance of each plane of x, and the link for :func:`affine` of the same x."""
    link = Link()
    mean, var, link.token = _apply_moments(x, link, backend)
    return mean, var, link


def affine(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    tail: Tail,
    backend: Backend,
    link: Link | None = None,
    given: Given | None = None,
) -> Tensor:
    """``tail((x - mean) * scale + shift)``, recorded by autograd."""
    token = None
    if link is not None:
        token, link.token = link.token, None  # a kept token would keep its own node alive
    y: Tensor = _apply_affine(
        x, mean, scale, shift, tail.residual, token, link, tail, backend, given
    )
    return y


def _backend_for_backward(backend: Backend, *gradients: Tensor) -> Backend | None:
    """Backend for a backward, or None if torch's own operators have to compute the gradient."""
    if torch.is_grad_enabled():  # create_graph: the gradient is differentiated again
        return None
    if backend is not graph_operators and context.kernels_see(*gradients):
        return backend
    if backend is graph_operators or torch.compiler.is_compiling():
        return graph_operators
    return None


def _is_differentiated(backend: Backend, gradient: Tensor) -> bool:
    """Whether the backward of an eager call is differentiated again and kernels can compute it."""
    return (
        backend is not graph_operators and torch.is_grad_enabled() and context.kernels_see(gradient)
    )


# The graph operators use the backward functions of these nodes.
def _save_normalize(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, activation, slope, eps, samples, channels = inputs
    _, mean, var = output
    pool = Pool(samples, channels)
    call = Call(Tail(activation, slope), pool, eps, graph_operators, (mean, var))
    _Normalize.save(ctx, x, weight, bias, residual, call)
    ctx.mark_non_differentiable(mean, var)


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mean, scale, shift, residual, activation, slope = inputs
    _Affine.save(ctx, x, mean, scale, shift, Tail(activation, slope, residual), graph_operators)


torch.library.register_autograd(
    "momentnorm::normalize",
    lambda ctx, gradient, *_: (*_Normalize.backward(ctx, gradient), *(None,) * 4),
    setup_context=_save_normalize,
    lib=graph_operators.library,
)
torch.library.register_autograd(
    "momentnorm::apply",
    lambda ctx, gradient: (*_Affine.backward(ctx, gradient)[:5], None, None),
    setup_context=_save_apply,
    lib=graph_operators.library,
)
