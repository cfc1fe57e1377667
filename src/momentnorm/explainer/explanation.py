"""Explanation: the steps of one layer for one input, forward and backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.grid import statistics_dtype
from .steps import BACKWARD, INPUT, OUTPUT, Steps, worked_first

if TYPE_CHECKING:
    from collections.abc import Sequence


class Explanation:
    """The steps of one layer for one input.

    A subclass implements :meth:`forward` with differentiable operators in the dtype of the
    statistics. Autograd then gives the backward. A subclass that shows the formulas of the backward
    implements :meth:`backward` too, and the result is checked against autograd.

    Attributes:
        summary: one line that says which planes share their statistics.
        notes: further sentences for the reader.
        leaves: operands that get a gradient, except x, in the dtype of the statistics. The keys are
            the layer's own names of its parameters, such as "weight".
        exact: True if the layer computes by momentnorm's reference backend. The last step must
            then equal the output bit by bit. If False (as for torch's own layers, which compute in
            the dtype of the input) both are compared in float64.
    """

    summary: str = ""
    exact: bool = True

    def __init__(self) -> None:
        self.leaves: dict[str, Tensor] = {}
        self.notes: list[str] = []

    def leaf(self, name: str, values: Tensor | None) -> Tensor | None:
        """Copy of an operand in the dtype of the statistics, as a leaf that gets a gradient."""
        if values is None:
            return None
        copy = as_leaf(values, values)
        self.leaves[name] = copy
        return copy

    def forward(self, steps: Steps, x: Tensor) -> Tensor:
        """Record the steps from x to y.

        Args:
            steps: the recorder.
            x: the input in the dtype of the statistics, as a leaf that gets a gradient.

        Returns:
            y before it is rounded to the dtype of the input, in the graph of x and ``leaves``.
        """
        raise NotImplementedError

    def backward(self, steps: Steps, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        """Record the steps of the backward.

        Args:
            steps: the recorder.
            x: as in :meth:`forward`.
            gradient: dL/dy in the dtype of the statistics.

        Returns:
            The gradients by name: "x", and the names of ``leaves``.
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
        """Gradients by torch's autograd through the operators of :meth:`forward`."""
        operands = {"x": x, **self.leaves}
        with torch.enable_grad():
            y = self.forward(Steps(), x)
            found = torch.autograd.grad(
                y, list(operands.values()), gradient, allow_unused=True, materialize_grads=True
            )
        return dict(zip(operands, found, strict=True))


def as_leaf(values: Tensor, x: Tensor) -> Tensor:
    """Copy of ``values`` in the dtype of the statistics of x, as a leaf that gets a gradient."""
    return values.detach().to(statistics_dtype(x), copy=True).requires_grad_()


def record_x(steps: Steps, x: Tensor, axes: Sequence[str]) -> None:
    """Record the input."""
    steps.add(INPUT, "x", x, axes, "the input", "x", unit="x")


def record_y(steps: Steps, y: Tensor, x: Tensor, axes: Sequence[str]) -> None:
    """Record the output: the step before it, rounded to the dtype of x."""
    dtype = str(x.dtype).removeprefix("torch.")
    formula = f"y = the step before, rounded once to {dtype}"
    steps.add(OUTPUT, "y", y.to(x.dtype), axes, formula, "y")


def record_scaled_and_shifted(
    steps: Steps, x_hat: Tensor, weight: Tensor, bias: Tensor, axes: Sequence[str]
) -> Tensor:
    """Record and return ``x_hat * weight + bias``."""
    values = x_hat * weight + bias
    return steps.add(
        OUTPUT,
        "scaled_and_shifted",
        values,
        axes,
        "scaled_and_shifted = x_hat * weight + bias",
        r"\hat x \cdot \gamma + \beta",
        worked=worked_first("{} * {} + {} = {}", x_hat, weight, bias, values),
    )


def record_gradient(steps: Steps, gradient: Tensor, axes: Sequence[str], short: str = "g") -> None:
    """Record dL/dy. ``short`` is its name in the formulas of later steps, or ""."""
    steps.add(
        BACKWARD,
        "gradient",
        gradient,
        axes,
        "gradient = dL/dy, the gradient of the output" + (f"; {short} for short" if short else ""),
        rf"{short} = \frac{{\partial L}}{{\partial y}}"
        if short
        else r"\frac{\partial L}{\partial y}",
    )
