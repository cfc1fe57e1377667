"""Replay: gradients by autograd through formulas made of torch's own operators.

A backward uses it where no kernel can compute the gradient: for higher derivatives, batched
gradients and transforms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .backends import reference
from .grid import statistics_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .pool import Pool
    from .tail import Tail


def replay(
    function: Callable[..., Tensor | Sequence[Tensor]],
    operands: Sequence[Tensor | None],
    needed: Sequence[bool],
    gradient: Tensor | Sequence[Tensor],
) -> list[Tensor | None]:
    """Gradients of ``function`` in the operands that need one, and None for the others.

    If grad mode is on, they are differentiable to any order.
    """
    differentiable = torch.is_grad_enabled()
    with torch.enable_grad():
        # A view is a node of its own: this gradient stops at it, and later ones flow through it.
        views = [None if operand is None else operand.view_as(operand) for operand in operands]
        wanted = [
            view for view, need in zip(views, needed, strict=False) if view is not None and need
        ]
        if not wanted:  # the residual alone needs a gradient, and it is the given one
            return [None] * len(views)
        for view in wanted:
            if not view.requires_grad:  # zeros for an operand whose value was not saved
                view.requires_grad_()
        y = function(*views)
        found = iter(torch.autograd.grad(y, wanted, gradient, create_graph=differentiable))
    return [next(found) if need else None for _, need in zip(views, needed, strict=False)]


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    *,
    pool: Pool,
    eps: float,
    tail: Tail,
) -> Tensor:
    """y by the reference, with the operands that autograd knows as arguments."""
    return reference.normalize(x, weight, bias, eps, pool, tail._replace(residual=residual))[0]


def normalize_backward(
    operands: Sequence[Tensor | None],
    needed: Sequence[bool],
    gradients: Sequence[Tensor],
    eps: float,
) -> list[Tensor | None]:
    """Gradients of the function (gradient, x, weight) -> dx, dweight, dbias."""

    def backward(gradient: Tensor, x: Tensor, weight: Tensor | None) -> Sequence[Tensor]:
        dtype = statistics_dtype(x)
        bias = torch.zeros(x.shape[1:2], dtype=dtype, device=x.device, requires_grad=True)
        scale = torch.ones_like(bias) if weight is None else weight.to(dtype)
        x = x if x.requires_grad else x.view_as(x).requires_grad_()
        scale = scale if scale.requires_grad else scale.detach().requires_grad_()
        y, _, _ = reference.normalize(x, scale, bias, eps)
        return torch.autograd.grad(y, (x, scale, bias), gradient, create_graph=True)

    return replay(backward, operands, needed, gradients)
