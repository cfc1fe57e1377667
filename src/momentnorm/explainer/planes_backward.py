"""The backward of a policy on planes, step by step.

g                          the gradient in front of the activation
sum(g), sum(g * centred)   of each plane
a, b, c                    of each plane; b and c by autograd through the policy
dx = a * g + b * (x - mean) + c
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core import grid
from ..core.backends import reference
from .statistics import first_of, sum_of
from .trace import BACKWARD, Steps, Worked, of_first

if TYPE_CHECKING:
    from .planes import Planes


def _before_activation(
    of: Planes, planes: Tensor, mean: Tensor, var: Tensor, normalized: Tensor
) -> Tensor:
    """What the activation is applied to."""
    values = of.scaled(Steps(), planes - grid.per_plane(mean, planes), normalized, mean, var)
    return values if of.residual is None else values + of.view.planes(of.residual)


def backward(of: Planes, steps: Steps, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    planes = of.view.planes(x).detach()
    own_mean, own_var = of.moments(planes)
    mean, var = (
        values.detach().expand(planes.shape[:2]) for values in of.statistics(own_mean, own_var)
    )
    inverse_std = grid.scale(None, var, of.eps)
    centred = planes - grid.per_plane(mean, planes)
    normalized = centred * grid.per_plane(inverse_std, planes)
    steps.add(
        BACKWARD,
        "gradient",
        gradient,
        of.view.axes,
        "gradient = dL/dy, what arrives from behind the layer"
        + ("" if of.activation else "; g for short"),
        r"\frac{\partial L}{\partial y}",
    )
    found: dict[str, Tensor] = {}
    g = of.view.planes(gradient)
    if of.activation:
        before = _before_activation(of, planes, mean, var, normalized).detach()
        g = reference.activation_gradient(g, before, of.activation, of.slope)
        of.full(
            steps,
            BACKWARD,
            "g",
            g,
            f"g = gradient * {of.activation}'(what it was applied to)",
            r"g = \frac{\partial L}{\partial y} \cdot \phi'",
        )
    if of.residual is not None:
        found["residual"] = of.view.full(g)
    if of.per_element:
        found |= _element_gradients(of, steps, g, normalized)
        if of.weight is not None:
            g = g * of.weight.detach()
            of.full(
                steps,
                BACKWARD,
                "g_weighted",
                g,
                "g_weighted = g * weight; it stands for g below",
                r"g \gamma",
            )
    sums = g.flatten(2).sum(2)
    weighted_sums = (g * centred).flatten(2).sum(2)
    named = "g" if not of.per_element or of.weight is None else "g_weighted"
    of.grid(
        steps,
        BACKWARD,
        "sum_g",
        sums,
        f"sum_g = sum({named}) of each {of.view.of}",
        r"\sum_i g_i",
        worked=_sum_of_first(g, sums),
    )
    of.grid(
        steps,
        BACKWARD,
        "sum_g_centred",
        weighted_sums,
        f"sum_g_centred = sum({named} * {'centred' if of.statistics.centres else 'x'}) of each "
        + of.view.of,
        r"\sum_i g_i (x_i - \mu)",
        unit="x",
        worked=_sum_of_products(g, centred, weighted_sums),
    )
    if not of.per_element:
        found |= _plane_gradients(of, steps, sums, weighted_sums, inverse_std)
    found |= _record_dx(of, steps, planes, g, var, inverse_std, sums, weighted_sums)
    if of.residual is not None:
        steps.add(
            BACKWARD,
            "dresidual",
            found["residual"],
            of.view.axes,
            "dresidual = g",
            r"\partial L / \partial r = g",
        )
    return found


def _element_gradients(
    of: Planes, steps: Steps, g: Tensor, normalized: Tensor
) -> dict[str, Tensor]:
    """Of a weight and a bias that belong to elements: sums over the rows that share them."""
    found = {}
    for name, parameter, values, formula, latex in (
        ("weight", of.weight, g * normalized, "g * normalized", r"g \hat x"),
        ("bias", of.bias, g, "g", "g"),
    ):
        if parameter is None:
            continue
        found[name] = values.sum_to_size(parameter.shape)
        steps.add(
            BACKWARD,
            f"d{name}",
            found[name],
            of.parameter_axes(parameter),
            f"d{name} = sum({formula}) over all rows",
            rf"\sum {latex}",
        )
    return found


def _plane_gradients(
    of: Planes, steps: Steps, sums: Tensor, weighted_sums: Tensor, inverse_std: Tensor
) -> dict[str, Tensor]:
    """Of a weight and a bias of each channel, or plane."""
    found = {}
    for name, parameter, values, formula, latex in (
        (
            of.names[0],
            of.weight,
            weighted_sums * inverse_std,
            "sum_g_centred / std",
            r"\sum_{n,i} g_i \hat x_i",
        ),
        (of.names[1], of.bias, sums, "sum_g", r"\sum_{n,i} g_i"),
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
            of.parameter_axes(parameter),
            f"d{name} = {formula}{over}",
            rf"\partial L / \partial \{'gamma' if parameter is of.weight else 'beta'} = {latex}",
            worked=Worked(f"{text} = {{}}", (*numbers, first_of(found[name]))),
        )
    return found


def _record_dx(
    of: Planes,
    steps: Steps,
    planes: Tensor,
    g: Tensor,
    var: Tensor,
    inverse_std: Tensor,
    sums: Tensor,
    weighted_sums: Tensor,
) -> dict[str, Tensor]:
    """The coefficients a, b and c of each plane, and dx; and what the policy learns from."""
    a = of.scale(var).detach()
    own_mean, own_var = of.moments(planes)
    leaves = [own_mean.detach().requires_grad_(), own_var.detach().requires_grad_()]
    learned = list(of.statistics.parameters.values())
    with torch.enable_grad():
        pooled = [values.expand(own_mean.shape) for values in of.statistics(*leaves)]
    # What reaches the moments that a plane is normalized with; then through the policy.
    reaching = (-a * sums, a * inverse_std.square() * weighted_sums / -2)
    wanted = [values for values in pooled if values.requires_grad]
    if wanted:
        dmean, dvar, *dlearned = torch.autograd.grad(
            wanted,
            [*leaves, *learned],
            [one for one, values in zip(reaching, pooled, strict=True) if values.requires_grad],
            allow_unused=True,
            materialize_grads=True,
        )
    else:
        dmean, dvar, dlearned = torch.zeros_like(sums), torch.zeros_like(sums), []
    count = planes.shape[2:].numel()
    b, c = dvar * (2 / count), dmean / count
    of.grid(
        steps,
        BACKWARD,
        "a",
        a,
        "a = weight / std" if of.weight is not None and not of.per_element else "a = 1 / std",
        r"a = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}",
        unit="1/x",
    )
    of_input, through = of.statistics.of_input, not of.statistics.as_it_is
    if of_input:
        moments = [("dmean", reaching[0]), ("dvar", reaching[1])]
        if through:
            moments += [("dplane_mean", dmean), ("dplane_var", dvar)]
        _record_moment_gradients(of, steps, moments)
    of_plane, its_mean = ("dplane_", "plane_mean") if through else ("d", "mean")
    of.grid(
        steps,
        BACKWARD,
        "b",
        b,
        f"b = 2 / m * {of_plane}var" if of_input else "b = 0: no statistic is of x",
        r"b = \frac{2}{m} \frac{\partial L}{\partial \sigma_p^2}",
        unit="1/x^2",
    )
    of.grid(
        steps,
        BACKWARD,
        "c",
        c,
        f"c = {of_plane}mean / m" if of_input else "c = 0: no statistic is of x",
        r"c = \frac{1}{m} \frac{\partial L}{\partial \mu_p}",
        unit="1/x",
    )
    from_mean = planes - grid.per_plane(own_mean, planes)
    dx = grid.per_plane(b, planes) * from_mean
    dx = dx + grid.per_plane(a, planes) * g + grid.per_plane(c, planes)
    found = {"x": of.view.full(dx)}
    of.full(
        steps,
        BACKWARD,
        "dx",
        dx,
        f"dx = a * g + b * (x - {its_mean}) + c" if of_input else "dx = a * g",
        r"\partial L / \partial x = a g + b (x - \mu_p) + c",
        unit="1/x",
        worked=of_first("{} * {} + {} * {} + {} = {}", a, g, b, from_mean, c, dx)
        if of_input
        else of_first("{} * {} = {}", a, g, dx),
    )
    for name, values in zip(of.statistics.parameters, dlearned, strict=False):
        found[name] = values
        steps.add(
            BACKWARD,
            f"d{name}",
            values,
            ("C",) if name == "gate" else ("K",),
            f"d{name}: dmean and dvar through the policy, by autograd on the (N, C) grid",
            rf"\partial L / \partial \mathrm{{{name}}}".replace("_", r"\_"),
        )
    return found


def _record_moment_gradients(of: Planes, steps: Steps, found: list[tuple[str, Tensor]]) -> None:
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
        of.grid(steps, BACKWARD, name, values, *said[name], unit=unit)


def _sum_of_first(g: Tensor, sums: Tensor) -> Worked:
    text, numbers = sum_of(g.detach()[0, 0].flatten().tolist())
    return Worked(f"{text} = {{}}", (*numbers, float(sums[0, 0])))


def _sum_of_products(g: Tensor, centred: Tensor, sums: Tensor) -> Worked:
    pairs = torch.stack((g.detach()[0, 0].flatten(), centred.detach()[0, 0].flatten()), 1)
    whole = pairs.tolist()
    shown = whole if len(whole) <= 8 else [*whole[:3], whole[-1]]
    text, _ = sum_of([0.0] * len(whole), "{} * {}")
    return Worked(
        f"{text} = {{}}", (*(number for pair in shown for number in pair), float(sums[0, 0]))
    )
