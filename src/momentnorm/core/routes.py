"""Routes: the three ways in which a call is computed.

``kernel``
    A backend's functions are called at once, behind autograd's back. :mod:`.autograd` has the
    nodes that record such a call.
``graph operator``
    The call becomes a ``torch.ops.momentnorm`` operator of a graph that torch compiles.
``formula``
    The call is the reference's formula in torch's own differentiable operators: for transforms,
    tensor subclasses and dispatch modes, and for compiled graphs where no kernel serves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from . import context, dispatch, graph_operators
from .backends import reference
from .backends.operands import dense

if TYPE_CHECKING:
    from .backends import Backend


class Route(NamedTuple):
    """The way of one call, and the functions that it calls."""

    kind: Literal["kernel", "graph operator", "formula"]
    backend: Backend


FORMULA = Route("formula", reference)
GRAPH_OPERATOR = Route("graph operator", graph_operators)


def route_of(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *others: Tensor | None
) -> tuple[Route, Tensor]:
    """Route of a call on x with these operands, and x in a layout that backends read.

    x is copied if it is neither contiguous nor channels_last. Autograd records the copy.
    """
    if context.transform_in_progress(x, weight, bias, *others) is not None:
        return FORMULA, x
    x = dense(x)
    backend = dispatch.choose(x, weight, bias).backend
    if torch.compiler.is_compiling():
        # The compiler fuses a formula better than it could fuse an operator without a kernel.
        return FORMULA if backend is reference else GRAPH_OPERATOR, x
    return Route("kernel", backend), x


def needs_gradient(*operands: Tensor | None) -> bool:
    """Whether autograd records a call with these operands."""
    if torch.is_grad_enabled():
        for operand in operands:
            if operand is not None and operand.requires_grad:
                return True
    return False
