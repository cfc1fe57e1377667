"""Routes: the three ways in which a call is computed.

``kernel``
    The functions of a backend are called at once. Autograd does not see what they do, so
    :mod:`.autograd` has nodes of its own for such a call.
``graph operator``
    The call becomes a ``torch.ops.momentnorm`` operator of a graph that torch compiles.
``formula``
    The reference computes the call in torch's own differentiable operators. Transforms, tensor
    subclasses and dispatch modes take this route, and compiled graphs that no kernel serves.
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
    """Route of one call, and the backend whose functions it calls."""

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
        # The compiler fuses a formula with its surroundings. An operator it cannot fuse.
        return FORMULA if backend is reference else GRAPH_OPERATOR, x
    return Route("kernel", backend), x


def needs_gradient(*operands: Tensor | None) -> bool:
    """Whether autograd records a call with these operands."""
    if torch.is_grad_enabled():
        for operand in operands:
            if operand is not None and operand.requires_grad:
                return True
    return False
