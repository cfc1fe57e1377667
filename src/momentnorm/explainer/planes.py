"""Planes: the explanation of every layer that is a policy on planes."""

from __future__ import annotations

from torch import Tensor

from ..core.backends import reference
from . import planes_backward
from .explanation import record_x, record_y
from .plane_operands import Normalized, PlaneOperands
from .steps import INPUT, OUTPUT, STATISTICS, Steps, worked_first


class Planes(PlaneOperands):
    """Explanation of a layer that is a policy on planes, followed by a weight, a bias and a tail.

    The arguments are those of :class:`PlaneOperands`.
    """

    def forward(self, steps: Steps, x: Tensor) -> Tensor:
        planes = self.view.planes(x)
        self._record_input(steps, planes)
        values = self.normalize(planes)
        self.statistics.record(steps, self.view, values.plane_mean, values.plane_var)
        self._record_x_hat(steps, values)
        scaled = self._record_scaled_and_shifted(steps, values)
        y = self.view.full(self._record_tail(steps, scaled))
        record_y(steps, y, self.x, self.view.axes)
        for update in self.updates:
            update.record(steps, values.plane_mean.detach(), values.plane_var.detach())
        return y

    def backward(self, steps: Steps, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        return planes_backward.backward(self, steps, x, gradient)

    def _record_input(self, steps: Steps, planes: Tensor) -> None:
        steps.first_plane = planes.detach()[0, 0].flatten().tolist()
        record_x(steps, self.x, self.view.axes)
        for name, values in zip(self.names, (self.weight, self.bias), strict=True):
            if values is not None:
                letter = r"\gamma" if values is self.weight else r"\beta"
                of = "element" if self.per_element else "channel"
                of = "channel of each sample" if name.endswith("_of_sample") else of
                axes = self.parameter_axes(values)
                steps.add(INPUT, name, values, axes, f"{name} of each {of}", letter)
        if self.residual is not None:
            words = "added before the activation"
            steps.add(INPUT, "residual", self.residual, self.view.axes, words, "r")

    def _record_x_hat(self, steps: Steps, values: Normalized) -> None:
        """Record the centred values, the standard deviation, and x_hat."""
        centres = self.statistics.subtracts_mean
        if centres:
            self.record(
                steps,
                STATISTICS,
                "centred",
                values.centred,
                "centred = x - mean, with the mean that each plane is normalized with",
                r"x - \mu",
                unit="x",
                worked=worked_first("{} - {} = {}", values.planes, values.mean, values.centred),
            )
        moment, source, root, letters = (
            ("var", "centred", r"\sqrt{\sigma^2 + \epsilon}", r"x - \mu")
            if centres
            else ("mean_square", "x", r"\sqrt{\overline{x^2} + \epsilon}", "x")
        )
        std = (values.var + self.eps).sqrt()
        self.record_grid(
            steps,
            STATISTICS,
            "std",
            std,
            f"std = sqrt({moment} + eps), eps = {self.eps:g}",
            root,
            unit="x",
            worked=worked_first(f"sqrt({{}} + {self.eps:g}) = {{}}", values.var, std),
        )
        self.record(
            steps,
            OUTPUT,
            "x_hat",
            values.x_hat,
            f"x_hat = {source} / std",
            rf"\hat x = \frac{{{letters}}}{{{root}}}",
            unit="std",
            worked=worked_first("{} / {} = {}", values.centred, std, values.x_hat),
        )

    def _record_scaled_and_shifted(self, steps: Steps, values: Normalized) -> Tensor:
        """Record and return ``x_hat * weight + bias``; nothing is recorded without both."""
        found = self.scaled_and_shifted(values)
        if self.weight is None and self.bias is None:
            return found
        times = "" if self.weight is None else f" * {self.names[0]}"
        plus = "" if self.bias is None else f" + {self.names[1]}"
        parts = [part for part in (self.weight, self.bias) if part is not None]
        text = "{}" + " * {}" * bool(times) + " + {}" * bool(plus) + " = {}"
        self.record(
            steps,
            OUTPUT,
            "scaled_and_shifted",
            found,
            f"scaled_and_shifted = x_hat{times}{plus}",
            r"\hat x" + r" \cdot \gamma" * bool(times) + r" + \beta" * bool(plus),
            worked=worked_first(text, values.x_hat, *parts, found),
        )
        return found

    def _record_tail(self, steps: Steps, values: Tensor) -> Tensor:
        """Record the sum with the residual and the activation. Returns the result."""
        if self.residual is not None:
            before, residual = values, self.view.planes(self.residual)
            values = before + residual
            self.record(
                steps,
                OUTPUT,
                "pre_activation",
                values,
                "pre_activation = the step before + residual",
                r"\hat x \gamma + \beta + r",
                worked=worked_first("{} + {} = {}", before, residual, values),
            )
        if self.activation:
            before, name = values, self.activation
            values = reference.activate(before, name, self.slope)
            slope = f", negative slope {self.slope:g}" if name == "leaky_relu" else ""
            self.record(
                steps,
                OUTPUT,
                "activated",
                values,
                f"activated = {name}(the step before){slope}",
                rf"\phi = \mathrm{{{name}}}".replace("_", r"\_"),
                worked=worked_first(f"{name}({{}}) = {{}}", before, values),
            )
        return values
