"""``Explanation``: what one layer does to one input, as steps forward and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.grid import statistics_dtype
from .trace import BACKWARD, OUTPUT, Steps

if TYPE_CHECKING:
    from collections.abc import Sequence


class Explanation:
    """What a layer does to one input.

    A subclass writes :meth:`forward`, of differentiable operators in the statistics' type. With
    that alone it has a backward, by autograd; where the formulas are worth showing it writes
    :meth:`backward` too, which is then checked against autograd.

    Attributes:
        summary: one line: what the layer answers to the question which planes share.
        notes: further sentences.
        leaves: the operands that have a gradient, but for x, by the layer's own names for its
            parameters ("weight"), in the statistics' type.
        exact: whether the layer computes by momentnorm's reference, so that the last step has to
            equal its output bit by bit. Otherwise (arithmetic in the input's dtype, as in torch's
            own layers) the two are compared in float64.
    """

    summary: str = ""
    exact: bool = True

    def __init__(self) -> None:
        self.leaves: dict[str, Tensor] = {}
        self.notes: list[str] = []

    def leaf(self, name: str, values: Tensor | None) -> Tensor | None:
        """The same values in the statistics' type, as an operand that has a gradient."""
        if values is None:
            return None
        copy = values.detach().to(statistics_dtype(values), copy=True).requires_grad_()
        self.leaves[name] = copy
        return copy

    def forward(self, steps: Steps, x: Tensor) -> Tensor:
        """Record the way to y.

        Args:
            steps: what records.
            x: the input in the statistics' type; an operand that has a gradient.

        Returns:
            y before it is rounded to the input's dtype, in the graph of x and ``leaves``.
        """
        raise NotImplementedError

    def backward(self, steps: Steps, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        """Record the way back; returns the gradients by name: "x", and those of ``leaves``.

        Args:
            steps: what records.
            x: as for :meth:`forward`.
            gradient: dL/dy in the statistics' type.
        """
        found = self.autograd(x, gradient)
        for name, values in found.items():
            axes: Sequence[str] = tuple(f"axis {axis}" for axis in range(values.dim()))
            steps.add(
                BACKWARD,
                f"d{name}",
                values,
                axes,
                f"dL/d{name}, by autograd through the steps above",
                rf"\partial L / \partial \mathrm{{{name}}}".replace("_", r"\_"),
            )
        return found

    def autograd(self, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        """The gradients by torch's autograd through the operators of :meth:`forward`."""
        operands = {"x": x, **self.leaves}
        with torch.enable_grad():
            y = self.forward(Steps(), x)
            found = torch.autograd.grad(
                y, list(operands.values()), gradient, allow_unused=True, materialize_grads=True
            )
        return dict(zip(operands, found, strict=True))


def rounded(steps: Steps, y: Tensor, x: Tensor, axes: Sequence[str]) -> None:
    """Record the last step of most layers: y in the dtype of x."""
    dtype = str(x.dtype).removeprefix("torch.")
    formula = f"y = the step before, rounded once to {dtype}"
    steps.add(OUTPUT, "y", y.to(x.dtype), axes, formula, "y")
