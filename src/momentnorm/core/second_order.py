r"""Second order: the backward of a normalization and its own backward, for gradient penalties.

A pool is one plane here.

For one plane of n elements, with :math:`d = x - \mu`, :math:`r = 1/\sqrt{\sigma^2 + \epsilon}` and
:math:`\hat x = r d`, the first backward is

.. math:: dx = w r \,(g - \bar g - b \hat x), \qquad b = \overline{g \hat x}, \qquad
    dw = \sum g \hat x, \qquad db = \sum g

Let :math:`v, v_w, v_b` be the gradients of a loss in these three results, and
:math:`a = \overline{v \hat x}`, :math:`p = \overline{v g} - \bar v \bar g - a b`. Then the
gradients of the loss in the operands are

.. math::
    \partial g &= w r \,(v - \bar v - a \hat x) + v_w \hat x + v_b \\
    \partial x &= -w r^2 \,\bigl(p \hat x + b (v - \bar v - a \hat x)
        + a (g - \bar g - b \hat x)\bigr) + v_w r \,(g - \bar g - b \hat x) \\
    \partial w &= r n p

The backends' ``gradient_sums`` and ``apply_gradient`` compute all of these terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import context, grid
from .backends.operands import dense, laid_out_as

if TYPE_CHECKING:
    from collections.abc import Callable

    from .backends import Backend


class NormalizeBackward(torch.autograd.Function):
    """(gradient, x, weight) -> dx, and dweight and dbias summed over samples, (C,).

    ``replay(operands, needed, gradients)`` computes the same gradients by torch's own operators. It
    serves third derivatives, and gradients that kernels cannot be given.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        x: Tensor,
        weight: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        backend: Backend,
        replay: Callable[..., list[Tensor | None]],
    ) -> tuple[Tensor, Tensor, Tensor]:
        dx, _, _, _, plane_sums = backend.normalize_backward(
            gradient, x, mean, var, weight, None, eps
        )
        assert plane_sums is not None  # each pool is one plane
        sums, weighted_sums = plane_sums
        ctx.save_for_backward(gradient, x, weight, mean, var, sums, weighted_sums)
        ctx.eps, ctx.backend, ctx.replay = eps, backend, replay
        dweight = (weighted_sums * grid.scale(None, var, eps)).sum(0)
        return dx, dweight, sums.sum(0)

    @staticmethod
    def backward(
        ctx: Any,
        v: Tensor,  # (N, C, *S)
        v_weight: Tensor,  # (C,)
        v_bias: Tensor,  # (C,)
    ) -> tuple[Tensor | None, ...]:
        gradient, x, weight, mean, var, sums, weighted_sums = ctx.saved_tensors
        if torch.is_grad_enabled() or not context.kernels_see(v, v_weight, v_bias):
            operands = (gradient, x, weight)
            found = ctx.replay(operands, ctx.needs_input_grad, (v, v_weight, v_bias))
            return (*found, *(None,) * 5)
        backend, count, x = ctx.backend, x.shape[2:].numel(), dense(x)
        gradient = laid_out_as("the gradient", gradient, x)  # backends get it in place of x below
        r = grid.scale(None, var, ctx.eps)  # (N, C), and so are all of the following
        wr = r if weight is None else r * weight.to(r.dtype)
        v_sums, v_weighted = backend.gradient_sums(v, x, mean)
        g_mean, v_mean = sums / count, v_sums / count
        a, b = r * v_weighted / count, r * weighted_sums / count
        needs_gradient, needs_x, needs_weight, *_ = ctx.needs_input_grad
        d_gradient = d_x = d_weight = None
        if needs_gradient:
            d_gradient, _ = backend.apply_gradient(
                v, x, mean, wr, r * (v_weight - wr * a), v_bias - wr * v_mean
            )
        if needs_x or needs_weight:
            _, products = backend.gradient_sums(v, gradient, g_mean)
            p = products / count - a * b
        if needs_x:
            of_v, of_g = -wr * r * b, r * (v_weight - wr * a)
            of_d = -r * r * (wr * (p - 2 * a * b) + v_weight * b)
            rest = -of_v * v_mean - of_g * g_mean
            part, _ = backend.apply_gradient(gradient, x, mean, of_g, of_d, rest)
            zero, one = torch.zeros_like(r), torch.ones_like(r)
            d_x, _ = backend.apply_gradient(v, part, zero, of_v, one, zero)
        if needs_weight:
            d_weight = ((r * p).sum(0) * count).to(weight.dtype)
        return (d_gradient, d_x, d_weight, *(None,) * 5)
