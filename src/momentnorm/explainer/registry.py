"""Registry: the explanation of each class of layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from .errors import ExplainError
from .explanation import Explanation

#: Function of a layer, its input, the residual (or None) and the further operands of its call.
Explainer = Callable[..., Explanation]

_EXPLAINERS: dict[type[nn.Module], Explainer] = {}

_Function = TypeVar("_Function", bound=Explainer)


def explains(*classes: type[nn.Module]) -> Callable[[_Function], _Function]:
    """Register the decorated function as the explanation of these classes and their subclasses.

    The function is called with the layer, the input, the residual (or None) and the further
    positional operands of the layer's call. It returns an :class:`Explanation`, and must not change
    the layer.

    >>> import momentnorm, torch
    >>> from momentnorm.explainer import Planes, Pooled, explains
    >>> class AllChannels(torch.nn.Module):  # all channels of a sample share
    ...     def forward(self, x):
    ...         return momentnorm.functional.pooled_norm(x, pool=momentnorm.Pool(1, None))
    >>> @explains(AllChannels)
    ... def _all_channels(layer, x, residual):
    ...     return Planes(x, Pooled(momentnorm.Pool(1, None)))
    >>> momentnorm.explain(AllChannels(), torch.rand(2, 3, 4)).checks[0].difference
    0.0
    """

    def register(function: _Function) -> _Function:
        for one in classes:
            _EXPLAINERS[one] = function
        return function

    return register


def explanation_of(
    layer: nn.Module, x: Tensor, residual: Tensor | None, *operands: object
) -> Explanation:
    """Explanation of a layer and its input.

    Raises:
        ExplainError: no explanation is registered for this class.
    """
    for one in type(layer).__mro__:
        if one in _EXPLAINERS:
            return _EXPLAINERS[one](layer, x, residual, *operands)
    known = ", ".join(sorted({one.__name__.lstrip("_") for one in _EXPLAINERS}))
    raise ExplainError(
        f"no explanation is known for {type(layer).__name__}: explained are {known} and their "
        "subclasses; register another with momentnorm.explainer.explains"
    )
