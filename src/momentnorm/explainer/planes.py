"""``Planes``: every layer that is a policy on planes, forward and backward, step by step.

The arithmetic is that of :mod:`momentnorm.backends.reference`, in its order, so that the last step
has the bits of the layer's output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import grid
from ..core.backends import reference
from .explanation import Explanation, rounded
from .statistics import Statistics
from .trace import INPUT, OUTPUT, STATISTICS, Steps, of_first
from .views import View, feature_map

if TYPE_CHECKING:
    from .running import Update


class Planes(Explanation):
    """Statistics of planes, shared as a policy says, and the four steps of every layer.

    Args:
        x: the input, for its dtype.
        statistics: the policy.
        view: how x is a grid of planes.
        weight, bias: of each channel, (C,), of each plane, (N, C), or, with ``per_element``,
            anything that broadcasts to the planes. None for ones and zeros.
        per_element: whether weight and bias belong to elements.
        eps: added to the variance.
        residual: added before the activation, like x.
        activation, slope: what follows, as in ``reference.activate``.
        updates: the running statistics that move.
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
        #: What is computed for each sample is no parameter, and has another name than one.
        each = weight is not None and weight.dim() == 2 and not per_element
        self.names = ("weight_of_sample", "bias_of_sample") if each else ("weight", "bias")
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

    def full(
        self, steps: Steps, part: str, name: str, values: Tensor, *formula: str, **more: Any
    ) -> None:
        """Record a value of each element, in the input's own shape."""
        steps.add(part, name, self.view.full(values), self.view.axes, *formula, **more)

    def grid(
        self, steps: Steps, part: str, name: str, values: Tensor, *formula: str, **more: Any
    ) -> None:
        """Record a value of each plane."""
        steps.add(part, name, self.view.grid(values), self.view.grid_axes, *formula, **more)

    def parameter_axes(self, values: Tensor) -> tuple[str, ...]:
        """The names of the axes of a weight or bias."""
        if self.per_element:
            return self.view.axes[len(self.view.axes) - values.dim() :]
        return ("C",) if values.dim() == 1 else ("N", "C")

    def moments(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of each plane, where the statistics are made of them."""
        if self.statistics.of_input:
            return reference.moments(planes)
        zero = torch.zeros(planes.shape[:2], dtype=planes.dtype, device=planes.device)
        return zero, zero

    def scale(self, var: Tensor) -> Tensor:
        """(N, C), what the centred values are multiplied by."""
        weight = None if self.per_element else self.weight
        return grid.scale(weight, var, self.eps).expand(var.shape)

    def forward(self, steps: Steps, x: Tensor) -> Tensor:
        planes = self.view.planes(x)
        self._record_input(steps, planes)
        own_mean, own_var = self.moments(planes)
        mean, var = (
            values.expand(planes.shape[:2]) for values in self.statistics(own_mean, own_var)
        )
        self.statistics.record(steps, self.view, own_mean, own_var)
        inverse_std = grid.scale(None, var, self.eps)
        spread = "var" if self.statistics.centres else "mean_square"
        centred = planes - grid.per_plane(mean, planes)
        if self.statistics.centres:
            self.full(
                steps,
                STATISTICS,
                "centred",
                centred,
                "centred = x - mean, the mean of its own pool for each plane",
                r"x - \mu",
                unit="x",
                worked=of_first("{} - {} = {}", planes, mean, centred),
            )
        std = (var + self.eps).sqrt()
        self.grid(
            steps,
            STATISTICS,
            "std",
            std,
            f"std = sqrt({spread} + eps), eps = {self.eps:g}",
            r"\sqrt{\sigma^2 + \epsilon}"
            if self.statistics.centres
            else r"\sqrt{\overline{x^2} + \epsilon}",
            unit="x",
            worked=of_first(f"sqrt({{}} + {self.eps:g}) = {{}}", var, std),
        )
        normalized = centred * grid.per_plane(inverse_std, planes)
        self.full(
            steps,
            OUTPUT,
            "normalized",
            normalized,
            f"normalized = {'centred' if self.statistics.centres else 'x'} / std",
            r"\hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}"
            if self.statistics.centres
            else r"\hat x = \frac{x}{\sqrt{\overline{x^2} + \epsilon}}",
            unit="std",
            worked=of_first("{} / {} = {}", centred, std, normalized),
        )
        values = self.scaled(steps, centred, normalized, mean, var)
        values = self._tail(steps, values)
        y = self.view.full(values)
        rounded(steps, y, self.x, self.view.axes)
        for update in self.updates:
            update.record(steps, own_mean.detach(), own_var.detach())
        return y

    def backward(self, steps: Steps, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        from .planes_backward import backward

        return backward(self, steps, x, gradient)

    def _record_input(self, steps: Steps, planes: Tensor) -> None:
        steps.first_plane = planes.detach()[0, 0].flatten().tolist()
        steps.add(INPUT, "x", self.x, self.view.axes, "the input", "x", unit="x")
        for name, values in zip(self.names, (self.weight, self.bias), strict=True):
            if values is not None:
                letter = r"\gamma" if values is self.weight else r"\beta"
                of = "element" if self.per_element else "channel"
                of = "channel of each sample" if name.endswith("_of_sample") else of
                axes = self.parameter_axes(values)
                steps.add(INPUT, name, values, axes, f"{name} of each {of}", letter)
        if self.residual is not None:
            steps.add(
                INPUT, "residual", self.residual, self.view.axes, "added before the activation", "r"
            )

    def scaled(
        self, steps: Steps, centred: Tensor, normalized: Tensor, mean: Tensor, var: Tensor
    ) -> Tensor:
        if self.per_element:
            values = normalized if self.weight is None else normalized * self.weight
            values = values if self.bias is None else values + self.bias
        else:
            # The reference multiplies by one number for each plane, weight / std.
            scale, shift = self.scale(var), grid.shift(self.bias, mean)
            values = centred * grid.per_plane(scale, centred)
            values = values + grid.per_plane(shift, centred)
        if self.weight is None and self.bias is None:
            return values
        times = "" if self.weight is None else f" * {self.names[0]}"
        plus = "" if self.bias is None else f" + {self.names[1]}"
        parts = [part for part in (self.weight, self.bias) if part is not None]
        text = "{}" + " * {}" * bool(times) + " + {}" * bool(plus) + " = {}"
        self.full(
            steps,
            OUTPUT,
            "scaled_and_shifted",
            values,
            f"scaled_and_shifted = normalized{times}{plus}",
            r"\hat x" + r" \cdot \gamma" * bool(times) + r" + \beta" * bool(plus),
            worked=of_first(text, normalized, *parts, values),
        )
        return values

    def _tail(self, steps: Steps, values: Tensor) -> Tensor:
        if self.residual is not None:
            before, residual = values, self.view.planes(self.residual)
            values = before + residual
            self.full(
                steps,
                OUTPUT,
                "with_residual",
                values,
                "with_residual = the step before + residual",
                r"\hat x \gamma + \beta + r",
                worked=of_first("{} + {} = {}", before, residual, values),
            )
        if self.activation:
            before = values
            values = reference.activate(before, self.activation, self.slope)
            name = self.activation
            self.full(
                steps,
                OUTPUT,
                "activated",
                values,
                f"activated = {name}(the step before)"
                + (f", negative_slope = {self.slope:g}" if name == "leaky_relu" else ""),
                rf"\phi = \mathrm{{{name}}}".replace("_", r"\_"),
                worked=of_first(f"{name}({{}}) = {{}}", before, values),
            )
        return values
