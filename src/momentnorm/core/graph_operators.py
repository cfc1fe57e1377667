"""Graph operators: the backend functions as ``torch.ops.momentnorm``, for compiled graphs.

Under ``torch.compile`` the engine calls this module in place of a backend. Each function is one
node of the graph. Its fake function gives shape, dtype and layout of the outputs without running
it. The operator chooses the backend when it runs. Eager calls do not use these operators, since the
dispatch of an operator takes microseconds.

Schemas of operators have no tuples and no optional outputs. So a tail and a pool are passed in
parts, and an empty tensor means None. No operator updates running statistics or writes into a given
output. The callers do that with torch's own operators.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import dispatch
from .backends.operands import dense
from .grid import map_of_moments, statistics_dtype
from .pool import INSTANCE, Pool
from .tail import PLAIN, Tail

if TYPE_CHECKING:
    from collections.abc import Callable

name = "graph operators"

library = torch.library.Library("momentnorm", "DEF")  # type: ignore[no-untyped-call]

#: Parts of a tail and of a pool in every schema.
_TAIL = "Tensor? residual, str activation, float slope"
_POOL = "SymInt pool_samples, SymInt pool_channels"


def _planes(x: Tensor) -> Tensor:
    """An empty (N, C) tensor for statistics of the planes of x."""
    return x.new_empty(x.shape[:2], dtype=statistics_dtype(x))


def _pools(x: Tensor, samples: int, channels: int) -> Tensor:
    """An empty tensor for statistics of the pools of x."""
    pools = x.shape[0] // samples, x.shape[1] // channels
    return x.new_empty(pools, dtype=statistics_dtype(x))


def _per_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """An empty (C,) tensor for the gradient of a parameter."""
    parameter = bias if weight is None else weight
    dtype = statistics_dtype(x) if parameter is None else parameter.dtype
    return x.new_empty(x.shape[1:2], dtype=dtype)


def _like(x: Tensor) -> Tensor:
    """An empty tensor like x, in a layout that kernels read."""
    return torch.empty_like(dense(x))


def _like_if(needed: bool, x: Tensor) -> Tensor:
    return _like(x) if needed else x.new_empty(0)


def _define(schema: str, fake: Callable[..., object]) -> Callable[..., Any]:
    """Define the operator of this schema; ``fake`` gives outputs without values."""
    operator, _, rest = schema.partition("(")
    names = [operand.split()[-1] for operand in rest.partition(")")[0].split(", ")]

    def run(*operands: Any) -> object:
        named = dict(zip(names, operands, strict=True))
        x = named["x"] = dense(named["x"])  # in a graph x may have any strides
        choice = dispatch.choose(x, named.get("weight"), named.get("bias"))
        if "residual" in named:
            parts = named.pop("activation"), named.pop("slope"), named.pop("residual")
            named["tail"] = Tail(*parts)
        if "pool_samples" in named:
            named["pool"] = Pool(named.pop("pool_samples"), named.pop("pool_channels"))
        results = getattr(choice.backend, operator)(**named)
        if isinstance(results, tuple):
            return tuple(x.new_empty(0) if result is None else result for result in results)
        return results

    def shadow(*operands: Any) -> object:
        _tell_inductor(overload)
        return fake(*operands)

    tags = (torch.Tag.needs_exact_strides,)
    library.define(schema, tags=tags)  # type: ignore[no-untyped-call]
    library.impl(operator, run, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"momentnorm::{operator}", shadow, lib=library)
    overload: Callable[..., Any] = getattr(torch.ops.momentnorm, operator).default
    return overload


def _tell_inductor(operator: Callable[..., Any]) -> None:
    """Register this operator with inductor, if it is imported, as one to call unchanged.

    Inductor with ``implicit_fallbacks=False`` would refuse it otherwise. Importing inductor takes
    seconds, so this waits until a graph is made.
    """
    lowering = sys.modules.get("torch._inductor.lowering")
    if lowering is not None and operator not in getattr(lowering, "lowerings", {operator: None}):
        lowering.make_fallback(operator, warn=False)


def _parts(tail: Tail) -> tuple[Tensor | None, str, float]:
    return tail.residual, tail.activation, tail.slope


_moments = _define("moments(Tensor x) -> (Tensor, Tensor)", lambda x: (_planes(x), _planes(x)))

_apply = _define(
    f"apply(Tensor x, Tensor mean, Tensor scale, Tensor shift, {_TAIL}) -> Tensor",
    lambda x, *_: _like(x),
)
_normalize = _define(
    f"normalize(Tensor x, Tensor? weight, Tensor? bias, {_TAIL}, float eps, {_POOL}) "
    "-> (Tensor, Tensor, Tensor)",
    lambda x, *rest: (_like(x), _pools(x, *rest[-2:]), _pools(x, *rest[-2:])),
)
_gradient_sums = _define(
    "gradient_sums(Tensor gradient, Tensor x, Tensor mean, Tensor? scale, Tensor? shift, "
    f"{_TAIL}) -> (Tensor, Tensor)",
    lambda gradient, x, *_: (_planes(x), _planes(x)),
)
_apply_gradient = _define(
    "apply_gradient(Tensor gradient, Tensor x, Tensor mean, Tensor a, Tensor b, Tensor c, "
    f"Tensor? scale, Tensor? shift, {_TAIL}, bool needs_residual) -> (Tensor, Tensor)",
    lambda gradient, x, *operands: (_like(x), _like_if(operands[-1], x)),
)
_normalize_backward = _define(
    "normalize_backward(Tensor gradient, Tensor x, Tensor mean, Tensor var, Tensor? weight, "
    f"Tensor? bias, float eps, {_POOL}, {_TAIL}, bool needs_residual) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda gradient, x, mean, var, weight, bias, eps, samples, channels, *rest: (
        _like(x),
        _like_if(rest[-1], x),
        _per_channel(x, weight, bias),
        _per_channel(x, weight, bias),
        torch.stack((_planes(x), _planes(x))) if samples == channels == 1 else x.new_empty(0),
    ),
)


def refuses(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> str | None:
    """None, since the backend is chosen when the operator runs."""
    return None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    mean, var = _moments(x)
    return mean, var


def apply(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    y: Tensor = _apply(x, mean, scale, shift, *_parts(tail))
    return y


def normalize(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pool: Pool = INSTANCE,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, var = _normalize(x, weight, bias, *_parts(tail), eps, *pool.sizes(*x.shape[:2]))
    return y, mean, var


def normalize_with(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    tail: Tail = PLAIN,
    out: Tensor | None = None,
) -> Tensor:
    return apply(x, *map_of_moments(x, mean, var, weight, bias, eps), tail)


def gradient_sums(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    tail: Tail = PLAIN,
) -> tuple[Tensor, Tensor]:
    sums, weighted_sums = _gradient_sums(gradient, x, mean, scale, shift, *_parts(tail))
    return sums, weighted_sums


def apply_gradient(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    tail: Tail = PLAIN,
    needs_residual: bool = False,
) -> tuple[Tensor, Tensor | None]:
    dx, residual_gradient = _apply_gradient(
        gradient, x, mean, a, b, c, scale, shift, *_parts(tail), needs_residual
    )
    return dx, residual_gradient if needs_residual else None


def normalize_backward(
    gradient: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    pool: Pool = INSTANCE,
    tail: Tail = PLAIN,
    needs_residual: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    sizes = pool.sizes(*x.shape[:2])
    dx, residual_gradient, dweight, dbias, sums = _normalize_backward(
        gradient, x, mean, var, weight, bias, eps, *sizes, *_parts(tail), needs_residual
    )
    residual_gradient = residual_gradient if needs_residual else None
    return dx, residual_gradient, dweight, dbias, sums if sizes == (1, 1) else None
