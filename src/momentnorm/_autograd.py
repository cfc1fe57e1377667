"""The nodes that the engine puts into autograd's graph, eager and compiled.

Of a rectangle of planes it is one node, ``_Normalize``; of any other policy two, ``_Moments`` and
``_Affine``, with the policy between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from . import _dispatch, _ops
from ._second_order import NormalizeBackward
from .backends import PLAIN, Tail, reference
from .backends.operands import dense
from .pool import INSTANCE, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType


@dataclass(slots=True)
class Call:
    """What a call of ``_Normalize`` is about, beside the operands that autograd knows."""

    tail: Tail
    pool: Pool
    eps: float
    backend: ModuleType
    #: Of each pool. No gradient flows into them, so they are neither operands nor results.
    moments: Sequence[Tensor] = ()
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
            # Without an activation no gradient depends on the values of these two, and their
            # owners may change them meanwhile.
            ctx.save_for_backward(x, weight)
        if residual is not None:  # autograd keeps it, and watches its version
            call.tail = call.tail._replace(residual=None) if call.tail.activation else PLAIN

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *activated_with = _saved(ctx)
        bias, residual = activated_with or (None, None)
        call: Call = ctx.call
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
        elif backend is not None and (needs_dx or activated):
            dx, dresidual, dweight, dbias, _ = backend.normalize_backward(
                gradient,
                x,
                *call.moments,
                weight,
                bias,
                eps,
                pool,
                tail,
                needs_dresidual and activated,
            )
        elif backend is not None:  # the parameters alone
            mean, var = (pool.spread(values, x.shape[:2]) for values in call.moments)
            sums, weighted_sums = backend.gradient_sums(gradient, x, mean)
            dweight = (weighted_sums * reference.scale(None, var, eps)).sum(0)
            dbias = sums.sum(0)
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
            if activated and _is_differentiated(call.backend, gradient):
                plain = Call(PLAIN, pool, eps, call.backend)
                formula = partial(_activated, call=plain, tail=tail)
            else:
                formula = partial(_formula, pool=pool, eps=eps, tail=tail)
            dx, dweight, dbias, dresidual = _replay(
                formula,
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


def _saved(ctx: Any) -> list[Any]:
    """The saved tensors, x first, which a hook may have given back in any layout."""
    x, *others = ctx.saved_tensors
    return [dense(x), *others]


def _as(dtype: torch.dtype | None, gradient: Tensor) -> Tensor:
    return gradient if gradient.dtype == dtype else gradient.to(dtype)


def _formula(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    pool: Pool,
    eps: float,
    tail: Tail,
) -> Tensor:
    """y in torch's own operators, of the operands that autograd knows."""
    return reference.normalize(x, weight, bias, eps, pool, tail._replace(residual=residual))[0]


def _activated(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    call: Call,
    tail: Tail,
) -> Tensor:
    """The same y, its normalization by a backend and the tail in torch's own operators.

    A second derivative is then that of the plain normalization. Half types are widened, since a
    rounding before the activation may move a value over its kink.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    parameters = [None if values is None else values.to(dtype) for values in (weight, bias)]
    y: Tensor = apply_normalize(x.to(dtype), *parameters, None, call)
    if residual is not None:
        y = y + residual.to(dtype)
    return reference.activate(y, tail.activation, tail.slope).to(x.dtype)


@dataclass(slots=True)
class Link:
    """Between a ``_Moments`` and the ``_Affine`` of the same x.

    Each of the two has a term of dx, and one pass can compute both. So in a backward by kernels the
    second leaves here what its term is made of, and hands the gradient of y to the first, as if it
    were that of a token, an output of the first in the shape of x.
    """

    token: Tensor | None = None
    left: tuple[Tensor, Tensor, Tensor | None, Tail] | None = None


class _Moments(torch.autograd.Function):
    """Mean and var of each plane of x, and the token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, link: Link, backend: ModuleType) -> tuple[Tensor, ...]:
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
            return *_replay(reference.moments, (x,), (True,), (dmean, dvar)), None, None
        count = x.shape[2:].numel()
        b, c = dvar * (2 / count), dmean / count
        if gradient is None:
            return ctx.backend.apply(x, mean, b, c), None, None
        left, ctx.link.left = ctx.link.left, None
        assert left is not None
        centre, scale, shift, tail = left
        if shift is not None:  # the same affine map about the plane's own mean
            shift = shift + (mean - centre) * scale
        dx, _ = ctx.backend.apply_gradient(gradient, x, mean, scale, b, c, scale, shift, tail)
        return dx, None, None


#: mean, var, weight, bias and eps of a call with given moments, one value for each channel.
Given: TypeAlias = tuple[Tensor, Tensor, Tensor | None, Tensor | None, float]


class _Affine(torch.autograd.Function):
    """y = tail((x - mean) * scale + shift), with (N, C) tensors from outside.

    Where the map was made of given moments, the forward is the backend's ``normalize_with`` of
    these. So y has the same bits as without a graph.
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
        backend: ModuleType,
        given: Given | None,
    ) -> Tensor:
        _Affine.save(ctx, x, mean, scale, shift, tail, backend, link)
        y: Tensor
        if given is None:
            y = backend.apply(x, mean, scale, shift, tail)
        else:
            y = backend.normalize_with(x, *given, tail)
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
        link: Link | None = None,
    ) -> None:
        ctx.tail, ctx.backend, ctx.link = PLAIN, backend, link
        if tail.activation:
            ctx.save_for_backward(x, mean, scale, shift, tail.residual)
            ctx.tail = tail._replace(residual=None)
        else:
            ctx.save_for_backward(x, mean, scale, None, None)  # not the shift, for the same reason

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, scale, shift, residual = _saved(ctx)
        needs_dx, *needs_sums, needs_dresidual = needs = ctx.needs_input_grad[:5]
        tail: Tail = ctx.tail if residual is None else ctx.tail._replace(residual=residual)
        # Without an activation the residual's gradient is this one.
        of_residual = needs_dresidual and bool(tail.activation)
        dx = dmean = dscale = dshift = dresidual = passed_on = None
        backend = _backend_for_backward(ctx.backend, gradient)
        if backend is None:
            shift = torch.zeros_like(mean) if shift is None else shift
            dx, dmean, dscale, dshift, dresidual = _replay(
                lambda x, mean, scale, shift, residual: reference.apply(
                    x, mean, scale, shift, tail._replace(residual=residual)
                ),
                (x, mean, scale, shift, residual),
                (*needs[:4], of_residual),
                gradient,
            )
        else:
            if ctx.link is not None and not of_residual:
                ctx.link.left, passed_on = (mean, scale, shift, tail), gradient
            elif needs_dx or of_residual:
                zero = torch.zeros_like(mean)
                dx, dresidual = backend.apply_gradient(
                    gradient, x, mean, scale, zero, zero, scale, shift, tail, of_residual
                )
            if any(needs_sums):
                dshift, dscale = backend.gradient_sums(gradient, x, mean, scale, shift, tail)
                dmean = -scale * dshift
        if needs_dresidual and not of_residual:
            dresidual = gradient
        return dx, dmean, dscale, dshift, dresidual, passed_on, None, None, None, None


def _node(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """``function.apply``, without what it does for transforms, which never come here."""
    apply: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
    return apply


apply_normalize = _node(_Normalize)
_apply_moments = _node(_Moments)
_apply_affine = _node(_Affine)


def moments(x: Tensor, backend: ModuleType) -> tuple[Tensor, Tensor, Link]:
    """mean and var of each plane of x, and the link for :func:`affine` of the same x."""
    link = Link()
    mean, var, link.token = _apply_moments(x, link, backend)
    return mean, var, link


def affine(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    tail: Tail,
    backend: ModuleType,
    link: Link | None = None,
    given: Given | None = None,
) -> Tensor:
    """``tail((x - mean) * scale + shift)``"""
    token = None
    if link is not None:
        token, link.token = link.token, None  # or the node would hold itself
    y: Tensor = _apply_affine(
        x, mean, scale, shift, tail.residual, token, link, tail, backend, given
    )
    return y


def _backend_for_backward(backend: ModuleType, *gradients: Tensor) -> ModuleType | None:
    """The backend of the forward, or None where the gradient has to be made of torch's own."""
    if torch.is_grad_enabled():  # create_graph: somebody differentiates the gradient
        return None
    if backend is not _ops and _dispatch.kernels_see(*gradients):
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
        y, _, _ = reference.normalize(x, scale, bias, eps)
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
        if not wanted:  # a residual alone, whose gradient is the given one
            return [None] * len(views)
        for view in wanted:
            if not view.requires_grad:  # stands for an operand whose value was not saved
                view.requires_grad_()
        y = function(*views)
        found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=differentiable))
    return [next(found) if need else None for _, need in zip(views, needed, strict=False)]


# In a compiled graph the operators have the same backward.
def _save_normalize(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, activation, slope, eps, samples, channels = inputs
    _, mean, var = output
    pool = Pool(samples, channels)
    call = Call(Tail(activation, slope), pool, eps, _ops, (mean, var))
    _Normalize.save(ctx, x, weight, bias, residual, call)
    ctx.mark_non_differentiable(mean, var)


def _save_apply(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, mean, scale, shift, residual, activation, slope = inputs
    _Affine.save(ctx, x, mean, scale, shift, Tail(activation, slope, residual), _ops)


torch.library.register_autograd(
    "momentnorm::normalize",
    lambda ctx, gradient, *_: (*_Normalize.backward(ctx, gradient), *(None,) * 4),
    setup_context=_save_normalize,
    lib=_ops.library,
)
torch.library.register_autograd(
    "momentnorm::apply",
    lambda ctx, gradient: (*_Affine.backward(ctx, gradient)[:5], None, None),
    setup_context=_save_apply,
    lib=_ops.library,
)
