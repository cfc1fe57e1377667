"""``Planes``: every layer that is a policy on planes, forward and backward, step by step.

The arithmetic is that of :mod:`momentnorm.backends.reference`, in its order, so that the last step
has the bits of the layer's output.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..backends import reference
from .explanation import Explanation
from .statistics import Statistics, sum_of
from .trace import BACKWARD, INPUT, OUTPUT, RUNNING, STATISTICS, Steps, Worked
from .views import View, feature_map

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, eq=False)
class Update:
    """How one running statistic moves in training.

    Args:
        name: of the buffer.
        before: its values, in the buffer's own dtype and shape.
        batch: what the batch contributes, from the moments of the planes.
        rule: what the batch contributes, in words.
        share: the batch's share of the new value; None where the batch is added.
    """

    name: str
    before: Tensor
    batch: Callable[[Tensor, Tensor], Tensor]
    rule: str
    share: float | None

    def record(self, steps: Steps, mean: Tensor, var: Tensor) -> None:
        """Before, the batch's, and after, which equals what the layer would have written."""
        batch = self.batch(mean, var).reshape(self.before.shape)
        axes = ("C",) if self.before.dim() == 1 else ("1", "C", "1")
        unit = "x" if self.name == "running_mean" else "x^2"
        if self.share is None:
            after = self.before.clone().add_(batch)
            rule = f"{self.name} + {self.name}_of_batch: a sum over all batches"
            latex = r"r \leftarrow r + b"
            worked = "{} + {} = {}"
            numbers: tuple[float, ...] = ()
        else:
            moved = torch.lerp(self.before.to(batch.dtype), batch, self.share)
            after = moved.to(self.before.dtype)
            rule = f"(1 - momentum) * {self.name} + momentum * {self.name}_of_batch"
            latex = r"r \leftarrow (1 - m)\, r + m\, b"
            worked = "(1 - {}) * {} + {} * {} = {}"
            numbers = (self.share,)
        if self.before.numel():
            old, new = float(self.before.flatten()[0]), float(batch.flatten()[0])
            ends = (new, float(after.flatten()[0]))
            numbers = (*numbers, old, *numbers, *ends)
        steps.add(
            RUNNING,
            f"{self.name}_before",
            self.before,
            axes,
            "the buffer as it is; explaining does not change it",
            "r",
            unit=unit,
        )
        steps.add(
            RUNNING, f"{self.name}_of_batch", batch, axes, self.rule, "b", unit=unit
        )
        steps.add(
            RUNNING,
            self.name,
            after,
            axes,
            f"{self.name} after = {rule}",
            latex,
            unit=unit,
            worked=Worked(worked, numbers) if self.before.numel() else None,
        )


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
        self.weight = self.leaf("weight", weight)
        self.bias = self.leaf("bias", bias)
        self.residual = self.leaf("residual", residual)
        self.leaves.update(statistics.parameters)
        self.per_element = per_element
        self.eps = eps
        self.activation = activation
        self.slope = slope
        self.updates = updates
        if self.view.note:
            self.notes.append(self.view.note)

    def _full(self, steps: Steps, part: str, name: str, values: Tensor, *more: str, **options) -> None:  # type: ignore[no-untyped-def]  # noqa: E501
        steps.add(part, name, self.view.full(values), self.view.axes, *more, **options)

    def _grid(self, steps: Steps, part: str, name: str, values: Tensor, *more: str, **options) -> None:  # type: ignore[no-untyped-def]  # noqa: E501
        steps.add(part, name, self.view.grid(values), self.view.grid_axes, *more, **options)

    def _parameter_axes(self, values: Tensor) -> tuple[str, ...]:
        if self.per_element:
            return self.view.axes[len(self.view.axes) - values.dim() :]
        return ("C",) if values.dim() == 1 else ("N", "C")

    def _moments(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        if self.statistics.of_input and planes.numel():
            return reference.moments(planes)
        zero = torch.zeros(planes.shape[:2], dtype=planes.dtype, device=planes.device)
        return zero, zero

    def _scale(self, var: Tensor) -> Tensor:
        """(N, C), what the centred values are multiplied by."""
        weight = None if self.per_element else self.weight
        return reference.scale(weight, var, self.eps).expand(var.shape)

    def forward(self, steps: Steps, x: Tensor) -> Tensor:
        planes = self.view.planes(x)
        self._record_input(steps, planes)
        own_mean, own_var = self._moments(planes)
        mean, var = (
            values.expand(planes.shape[:2]) for values in self.statistics(own_mean, own_var)
        )
        self.statistics.record(steps, self.view, own_mean, own_var)
        inverse_std = reference.scale(None, var, self.eps)
        spread = "var" if self.statistics.centres else "mean_square"
        centred = planes - reference._per_plane(mean, planes)
        if self.statistics.centres:
            self._full(
                steps,
                STATISTICS,
                "centred",
                centred,
                "centred = x - mean, the mean of its own pool for each plane",
                r"x - \mu",
                unit="x",
                worked=_of_first("{} - {} = {}", planes, mean, centred),
            )
        std = (var + self.eps).sqrt()
        self._grid(
            steps,
            STATISTICS,
            "std",
            std,
            f"std = sqrt({spread} + eps), eps = {self.eps:g}",
            r"\sqrt{\sigma^2 + \epsilon}"
            if self.statistics.centres
            else r"\sqrt{\overline{x^2} + \epsilon}",
            unit="x",
            worked=_of_first(f"sqrt({{}} + {self.eps:g}) = {{}}", var, std),
        )
        normalized = centred * reference._per_plane(inverse_std, planes)
        self._full(
            steps,
            OUTPUT,
            "normalized",
            normalized,
            f"normalized = {'centred' if self.statistics.centres else 'x'} / std",
            r"\hat x = \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}}"
            if self.statistics.centres
            else r"\hat x = \frac{x}{\sqrt{\overline{x^2} + \epsilon}}",
            unit="std",
            worked=_of_first("{} / {} = {}", centred, std, normalized),
        )
        values = self._scaled(steps, centred, normalized, mean, var)
        values = self._tail(steps, values)
        y = self.view.full(values)
        dtype = self.x.dtype
        steps.add(
            OUTPUT,
            "y",
            y.to(dtype),
            self.view.axes,
            f"y = the step before, rounded once to {str(dtype).removeprefix('torch.')}",
            "y",
        )
        for update in self.updates:
            update.record(steps, own_mean.detach(), own_var.detach())
        return y

    def _record_input(self, steps: Steps, planes: Tensor) -> None:
        if planes.numel():
            steps.first_plane = planes.detach()[0, 0].flatten().tolist()
        steps.add(INPUT, "x", self.x, self.view.axes, "the input", "x", unit="x")
        for name, values in (("weight", self.weight), ("bias", self.bias)):
            if values is not None:
                letter = r"\gamma" if name == "weight" else r"\beta"
                of = "element of a row" if self.per_element else "channel"
                axes = self._parameter_axes(values)
                steps.add(INPUT, name, values, axes, f"{name} of each {of}", letter)
        if self.residual is not None:
            steps.add(
                INPUT, "residual", self.residual, self.view.axes, "added before the activation", "r"
            )

    def _scaled(
        self, steps: Steps, centred: Tensor, normalized: Tensor, mean: Tensor, var: Tensor
    ) -> Tensor:
        if self.per_element:
            values = normalized if self.weight is None else normalized * self.weight
            values = values if self.bias is None else values + self.bias
        else:
            # The reference multiplies by one number for each plane, weight / std.
            scale, shift = self._scale(var), reference.shift(self.bias, mean)
            values = centred * reference._per_plane(scale, centred)
            values = values + reference._per_plane(shift, centred)
        if self.weight is None and self.bias is None:
            return values
        times = "" if self.weight is None else " * weight"
        plus = "" if self.bias is None else " + bias"
        parts = [part for part in (self.weight, self.bias) if part is not None]
        text = "{}" + " * {}" * bool(times) + " + {}" * bool(plus) + " = {}"
        self._full(
            steps,
            OUTPUT,
            "scaled_and_shifted",
            values,
            f"scaled_and_shifted = normalized{times}{plus}",
            r"\hat x" + r" \cdot \gamma" * bool(times) + r" + \beta" * bool(plus),
            worked=_of_first(text, normalized, *parts, values),
        )
        return values

    def _tail(self, steps: Steps, values: Tensor) -> Tensor:
        if self.residual is not None:
            before, residual = values, self.view.planes(self.residual)
            values = before + residual
            self._full(
                steps,
                OUTPUT,
                "with_residual",
                values,
                "with_residual = the step before + residual",
                r"\hat x \gamma + \beta + r",
                worked=_of_first("{} + {} = {}", before, residual, values),
            )
        if self.activation:
            before = values
            values = reference.activate(before, self.activation, self.slope)
            name = self.activation
            self._full(
                steps,
                OUTPUT,
                "activated",
                values,
                f"activated = {name}(the step before)"
                + (f", negative_slope = {self.slope:g}" if name == "leaky_relu" else ""),
                rf"\phi = \mathrm{{{name}}}".replace("_", r"\_"),
                worked=_of_first(f"{name}({{}}) = {{}}", before, values),
            )
        return values

    def _before_activation(
        self, planes: Tensor, mean: Tensor, var: Tensor, normalized: Tensor
    ) -> Tensor:
        """What the activation is applied to."""
        values = self._scaled(Steps(), planes - reference._per_plane(mean, planes), normalized, mean, var)  # noqa: E501
        return values if self.residual is None else values + self.view.planes(self.residual)

    def backward(self, steps: Steps, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        planes = self.view.planes(x).detach()
        own_mean, own_var = self._moments(planes)
        mean, var = (
            values.detach().expand(planes.shape[:2])
            for values in self.statistics(own_mean, own_var)
        )
        inverse_std = reference.scale(None, var, self.eps)
        centred = planes - reference._per_plane(mean, planes)
        normalized = centred * reference._per_plane(inverse_std, planes)
        steps.add(
            BACKWARD,
            "gradient",
            gradient,
            self.view.axes,
            "gradient = dL/dy, what arrives from behind the layer"
            + ("" if self.activation else "; g for short"),
            r"\frac{\partial L}{\partial y}",
        )
        found: dict[str, Tensor] = {}
        g = self.view.planes(gradient)
        if self.activation:
            before = self._before_activation(planes, mean, var, normalized).detach()
            g = reference._activation_gradient(g, before, self.activation, self.slope)
            self._full(
                steps,
                BACKWARD,
                "g",
                g,
                f"g = gradient * {self.activation}'(what it was applied to)",
                r"g = \frac{\partial L}{\partial y} \cdot \phi'",
            )
        if self.residual is not None:
            found["residual"] = self.view.full(g)
        if self.per_element:
            found |= self._element_gradients(steps, g, normalized)
            if self.weight is not None:
                g = g * self.weight.detach()
                self._full(
                    steps,
                    BACKWARD,
                    "g_weighted",
                    g,
                    "g_weighted = g * weight; it stands for g below",
                    r"g \gamma",
                )
        sums = g.flatten(2).sum(2)
        weighted_sums = (g * centred).flatten(2).sum(2)
        named = "g" if not self.per_element or self.weight is None else "g_weighted"
        self._grid(
            steps,
            BACKWARD,
            "sum_g",
            sums,
            f"sum_g = sum({named}) of each plane",
            r"\sum_i g_i",
            worked=_sum_of_first(g, sums),
        )
        self._grid(
            steps,
            BACKWARD,
            "sum_g_centred",
            weighted_sums,
            f"sum_g_centred = sum({named} * centred) of each plane",
            r"\sum_i g_i (x_i - \mu)",
            unit="x",
            worked=_sum_of_products(g, centred, weighted_sums),
        )
        if not self.per_element:
            found |= self._plane_gradients(steps, sums, weighted_sums, inverse_std)
        found |= self._record_dx(steps, planes, g, var, inverse_std, sums, weighted_sums)
        if self.residual is not None:
            steps.add(
                BACKWARD,
                "dresidual",
                found["residual"],
                self.view.axes,
                "dresidual = g",
                r"\partial L / \partial r = g",
            )
        return found

    def _element_gradients(self, steps: Steps, g: Tensor, normalized: Tensor) -> dict[str, Tensor]:
        """Of a weight and a bias that belong to elements: sums over the rows that share them."""
        found = {}
        for name, parameter, values, formula, latex in (
            ("weight", self.weight, g * normalized, "g * normalized", r"g \hat x"),
            ("bias", self.bias, g, "g", "g"),
        ):
            if parameter is None:
                continue
            found[name] = values.sum_to_size(parameter.shape)
            steps.add(
                BACKWARD,
                f"d{name}",
                found[name],
                self._parameter_axes(parameter),
                f"d{name} = sum({formula}) over all rows",
                rf"\sum {latex}",
            )
        return found

    def _plane_gradients(
        self, steps: Steps, sums: Tensor, weighted_sums: Tensor, inverse_std: Tensor
    ) -> dict[str, Tensor]:
        """Of a weight and a bias of each channel, or plane."""
        found = {}
        for name, parameter, values, formula, latex in (
            (
                "weight",
                self.weight,
                weighted_sums * inverse_std,
                "sum_g_centred / std",
                r"\sum_{n,i} g_i \hat x_i",
            ),
            ("bias", self.bias, sums, "sum_g", r"\sum_{n,i} g_i"),
        ):
            if parameter is None:
                continue
            found[name] = values.sum_to_size(parameter.shape)
            over = ", summed over the samples" if parameter.dim() == 1 else ""
            column = values.detach()[:, 0] if parameter.dim() == 1 else values.detach()[:1, 0]
            text, numbers = sum_of(column.tolist())
            steps.add(
                BACKWARD,
                f"d{name}",
                found[name],
                self._parameter_axes(parameter),
                f"d{name} = {formula}{over}",
                rf"\partial L / \partial \{'gamma' if name == 'weight' else 'beta'} = {latex}",
                worked=Worked(f"{text} = {{}}", (*numbers, float(found[name].flatten()[0]))),
            )
        return found

    def _record_dx(
        self,
        steps: Steps,
        planes: Tensor,
        g: Tensor,
        var: Tensor,
        inverse_std: Tensor,
        sums: Tensor,
        weighted_sums: Tensor,
    ) -> dict[str, Tensor]:
        """The coefficients a, b and c of each plane, and dx; and what the policy learns from."""
        a = self._scale(var).detach()
        own_mean, own_var = self._moments(planes)
        leaves = [own_mean.detach().requires_grad_(), own_var.detach().requires_grad_()]
        learned = list(self.statistics.parameters.values())
        with torch.enable_grad():
            pooled = [values.expand(own_mean.shape) for values in self.statistics(*leaves)]
        # What reaches the moments that a plane is normalized with; then through the policy.
        reaching = (-a * sums, a * inverse_std.square() * weighted_sums / -2)
        wanted = [values for values in pooled if values.requires_grad]
        if wanted:
            dmean, dvar, *dlearned = torch.autograd.grad(
                wanted,
                [*leaves, *learned],
                [of for of, values in zip(reaching, pooled, strict=True) if values.requires_grad],
                allow_unused=True,
                materialize_grads=True,
            )
        else:
            dmean, dvar, dlearned = torch.zeros_like(sums), torch.zeros_like(sums), []
        count = max(planes.shape[2:].numel(), 1)
        b, c = dvar * (2 / count), dmean / count
        self._grid(
            steps,
            BACKWARD,
            "a",
            a,
            "a = weight / std" if self.weight is not None and not self.per_element else "a = 1 / std",
            r"a = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}",
            unit="1/x",
        )
        of_input, through = self.statistics.of_input, not self.statistics.as_it_is
        if of_input:
            moments = [("dmean", reaching[0]), ("dvar", reaching[1])]
            if through:
                moments += [("dplane_mean", dmean), ("dplane_var", dvar)]
            self._record_moment_gradients(steps, moments)
        of_plane, its_mean = ("dplane_", "plane_mean") if through else ("d", "mean")
        self._grid(
            steps,
            BACKWARD,
            "b",
            b,
            f"b = 2 / m * {of_plane}var" if of_input else "b = 0: no statistic is of x",
            r"b = \frac{2}{m} \frac{\partial L}{\partial \sigma_p^2}",
            unit="1/x^2",
        )
        self._grid(
            steps,
            BACKWARD,
            "c",
            c,
            f"c = {of_plane}mean / m" if of_input else "c = 0: no statistic is of x",
            r"c = \frac{1}{m} \frac{\partial L}{\partial \mu_p}",
            unit="1/x",
        )
        from_mean = planes - reference._per_plane(own_mean, planes)
        dx = reference._per_plane(b, planes) * from_mean
        dx = dx + reference._per_plane(a, planes) * g + reference._per_plane(c, planes)
        found = {"x": self.view.full(dx)}
        self._full(
            steps,
            BACKWARD,
            "dx",
            dx,
            f"dx = a * g + b * (x - {its_mean}) + c" if of_input else "dx = a * g",
            r"\partial L / \partial x = a g + b (x - \mu_p) + c",
            unit="1/x",
            worked=_of_first("{} * {} + {} * {} + {} = {}", a, g, b, from_mean, c, dx),
        )
        for (name, parameter), values in zip(
            self.statistics.parameters.items(), dlearned, strict=False
        ):
            found[name] = values
            steps.add(
                BACKWARD,
                f"d{name}",
                values,
                tuple("CK"[parameter.dim() > 0 and name != "gate"] for _ in range(values.dim())),
                f"d{name}: dmean and dvar through the policy, by autograd on the (N, C) grid",
                rf"\partial L / \partial \mathrm{{{name}}}".replace("_", r"\_"),
            )
        return found

    def _record_moment_gradients(self, steps: Steps, found: list[tuple[str, Tensor]]) -> None:
        said = {
            "dmean": (
                "dmean = -a * sum_g, what reaches the mean that a plane is normalized with",
                r"\frac{\partial L}{\partial \mu} = -a \sum_i g_i",
            ),
            "dvar": (
                "dvar = -a / (2 std^2) * sum_g_centred, what reaches its variance",
                r"\frac{\partial L}{\partial \sigma^2} = -\frac{a}{2 (\sigma^2 + \epsilon)}"
                r" \sum_i g_i (x_i - \mu)",
            ),
            "dplane_mean": (
                "dplane_mean: both through the policy, to the mean of each plane",
                r"\frac{\partial L}{\partial \mu_p}",
            ),
            "dplane_var": (
                "dplane_var: both through the policy, to the variance of each plane",
                r"\frac{\partial L}{\partial \sigma_p^2}",
            ),
        }
        for name, values in found:
            unit = "1/x" if name.endswith("mean") else "1/x^2"
            self._grid(steps, BACKWARD, name, values, *said[name], unit=unit)


def _of_first(text: str, *values: Tensor) -> Worked | None:
    """The text with the first element of each, where there is one."""
    if not all(one.numel() for one in values):
        return None
    return Worked(text, tuple(float(one.detach().flatten()[0]) for one in values))


def _sum_of_first(g: Tensor, sums: Tensor) -> Worked | None:
    if not g.numel():
        return None
    text, numbers = sum_of(g.detach()[0, 0].flatten().tolist())
    return Worked(f"{text} = {{}}", (*numbers, float(sums[0, 0])))


def _sum_of_products(g: Tensor, centred: Tensor, sums: Tensor) -> Worked | None:
    if not g.numel():
        return None
    pairs = torch.stack((g.detach()[0, 0].flatten(), centred.detach()[0, 0].flatten()), 1)
    whole = pairs.tolist()
    shown = whole if len(whole) <= 8 else [*whole[:3], whole[-1]]
    text, _ = sum_of([0.0] * len(whole), "{} * {}")
    return Worked(
        f"{text} = {{}}", (*(number for pair in shown for number in pair), float(sums[0, 0]))
    )
