"""The backend functions as torch operators, for graphs.

Under ``torch.compile`` the engine calls these instead of a backend: each stays one node in the
graph, knows its output's shape, dtype and layout without running, and chooses the backend when it
runs. Eager calls do not come here, since an operator's dispatch costs microseconds.

No operator takes running statistics: those are updated by torch's own in-place operators, which
functionalization sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _dispatch
from .backends import reference

if TYPE_CHECKING:
    from collections.abc import Callable

name = "ops"

library = torch.library.Library("momentnorm", "DEF")  # type: ignore[no-untyped-call]


def _grid(x: Tensor) -> Tensor:
    """An empty (N, C) tensor for statistics of x."""
    return x.new_empty(x.shape[:2], dtype=reference.statistics_dtype(x))


def _define(schema: str, fake: Callable[..., object]) -> Callable[..., Any]:
    operator, _, rest = schema.partition("(")
    names = [operand.split()[-1] for operand in rest.partition(")")[0].split(", ")]

    def run(*operands: Any) -> object:
        named = dict(zip(names, operands, strict=True))
        choice = _dispatch.choose(named["x"], named.get("weight"), named.get("bias"))
        return getattr(choice.backend, operator)(*operands)

    library.define(schema)  # type: ignore[no-untyped-call]
    library.impl(operator, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"momentnorm::{operator}", fake, lib=library)
    overload: Callable[..., Any] = getattr(torch.ops.momentnorm, operator).default
    return overload


moments = _define("moments(Tensor x) -> (Tensor, Tensor)", lambda x: (_grid(x), _grid(x)))
apply = _define(
    "apply(Tensor x, Tensor mean, Tensor scale, Tensor shift) -> Tensor",
    lambda x, mean, scale, shift: torch.empty_like(x),
)
gradient_sums = _define(
    "gradient_sums(Tensor gradient, Tensor x, Tensor mean) -> (Tensor, Tensor)",
    lambda gradient, x, mean: (_grid(x), _grid(x)),
)
apply_gradient = _define(
    "apply_gradient(Tensor gradient, Tensor x, Tensor mean, Tensor a, Tensor b, Tensor c) "
    "-> Tensor",
    lambda gradient, x, mean, a, b, c: torch.empty_like(x),
)
normalize = _define(
    "normalize(Tensor x, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)",
    lambda x, weight, bias, eps: (torch.empty_like(x), _grid(x), _grid(x)),
)
normalize_backward = _define(
    "normalize_backward(Tensor gradient, Tensor x, Tensor mean, Tensor var, Tensor? weight, "
    "float eps) -> (Tensor, Tensor, Tensor)",
    lambda gradient, x, mean, var, weight, eps: (torch.empty_like(x), _grid(x), _grid(x)),
)
