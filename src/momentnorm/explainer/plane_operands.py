"""Plane operands: the operands of a policy on planes, and the values of its forward and backward.

The arithmetic and its order are those of :mod:`momentnorm.core.backends.reference`, so the last
step has the bits of the layer's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import grid
from ..core.backends import reference
from .explanation import Explanation
from .statistics import Statistics
from .steps import Steps
from .views import View, feature_map

if TYPE_CHECKING:
    from .running import Update


@dataclass(frozen=True, eq=False)
class Normalized:
    """Planes and the values on the way to x_hat."""

    planes: Tensor  # (N, C, *S)
    plane_mean: Tensor  # (N, C), moments of each plane
    plane_var: Tensor
    mean: Tensor  # (N, C), moments that each plane is normalized with
    var: Tensor
    inverse_std: Tensor  # (N, C)
    centred: Tensor  # (N, C, *S), x - mean
    x_hat: Tensor  # (N, C, *S)


class PlaneOperands(Explanation):
    """Base of :class:`Planes`: operands, shared values, and methods that record them.

    Args:
        x: the input, in its own dtype.
        statistics: the policy.
        view: how x is a grid of planes; None for a feature map.
        weight, bias: for each channel, (C,), or for each plane, (N, C); with ``per_element``,
            anything that broadcasts to the planes. None for ones and zeros.
        per_element: whether weight and bias have a value for each element.
        eps: added to the variance.
        residual: added before the activation, in the shape of x.
        activation: name of the activation, or "".
        slope: negative slope of leaky_relu.
        updates: the running statistics that move in this call.
    """

    def __init__(
        self,
        x: Tensor,
        statistics: Statistics,
        *,
        view: View | None = None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        per_element: bool = False,
        eps: float = 1e-5,
        residual: Tensor | None = None,
        activation: str = "",
        slope: float = 0.01,
        updates: tuple[Update, ...] = (),
    ) -> None:
        super().__init__()
        self.x = x
        self.statistics = statistics
        self.view = view or feature_map(x)
        # A weight that was computed for each sample is no parameter of the layer.
        of_samples = weight is not None and weight.dim() == 2 and not per_element
        self.names = ("weight_of_sample", "bias_of_sample") if of_samples else ("weight", "bias")
        self.weight = self.leaf(self.names[0], weight)
        self.bias = self.leaf(self.names[1], bias)
        self.residual = self.leaf("residual", residual)
        self.leaves.update(statistics.parameters)
        self.per_element = per_element
        self.eps = eps
        self.activation = activation
        self.slope = slope
        self.updates = updates
        if self.view.note:
            self.notes.append(self.view.note)

    def record(
        self, steps: Steps, part: str, name: str, values: Tensor, *formula: str, **more: Any
    ) -> None:
        """Record a value of each element, in the shape of the input."""
        steps.add(part, name, self.view.full(values), self.view.axes, *formula, **more)

    def record_grid(
        self, steps: Steps, part: str, name: str, values: Tensor, *formula: str, **more: Any
    ) -> None:
        """Record a value of each plane."""
        steps.add(part, name, self.view.grid(values), self.view.grid_axes, *formula, **more)

    def parameter_axes(self, values: Tensor) -> tuple[str, ...]:
        """Names of the axes of a weight or bias."""
        if self.per_element:
            return self.view.axes[len(self.view.axes) - values.dim() :]
        return ("C",) if values.dim() == 1 else ("N", "C")

    def plane_moments(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each plane, (N, C); zeros if the statistics do not use them."""
        if self.statistics.uses_input:
            return reference.moments(planes)
        zero = torch.zeros(planes.shape[:2], dtype=planes.dtype, device=planes.device)
        return zero, zero

    def normalize(self, planes: Tensor) -> Normalized:
        """Values on the way from the planes to x_hat."""
        plane_mean, plane_var = self.plane_moments(planes)
        mean, var = (
            values.expand(planes.shape[:2]) for values in self.statistics(plane_mean, plane_var)
        )
        inverse_std = grid.scale(None, var, self.eps)
        centred = planes - grid.per_plane(mean, planes)
        x_hat = centred * grid.per_plane(inverse_std, planes)
        return Normalized(planes, plane_mean, plane_var, mean, var, inverse_std, centred, x_hat)

    def scale(self, var: Tensor) -> Tensor:
        """Factor of the centred values, ``weight / sqrt(var + eps)``, (N, C)."""
        weight = None if self.per_element else self.weight
        return grid.scale(weight, var, self.eps).expand(var.shape)

    def scaled_and_shifted(self, values: Normalized) -> Tensor:
        """``x_hat * weight + bias``, (N, C, *S)."""
        if self.per_element:
            found = values.x_hat if self.weight is None else values.x_hat * self.weight
            return found if self.bias is None else found + self.bias
        # The reference multiplies by one number for each plane, weight / std.
        centred = values.centred
        scale, shift = self.scale(values.var), grid.shift(self.bias, values.mean)
        return centred * grid.per_plane(scale, centred) + grid.per_plane(shift, centred)

    def pre_activation(self, values: Normalized) -> Tensor:
        """``x_hat * weight + bias + residual``, (N, C, *S)."""
        found = self.scaled_and_shifted(values)
        return found if self.residual is None else found + self.view.planes(self.residual)
