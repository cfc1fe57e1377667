"""Backward of a policy on planes, step by step.

.. code-block:: text

    g                          gradient before the activation
    sum(g), sum(g * centred)   for each plane
    a, b, c                    for each plane; b and c by autograd through the policy
    dx = a * g + b * (x - mean) + c
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import grid
from ..core.backends import reference
from .explanation import record_gradient
from .plane_operands import Normalized, PlaneOperands
from .steps import BACKWARD, Steps, Worked, worked_first, worked_sum
from .values import first_of


@dataclass(frozen=True, eq=False)
class _Sums:
    """Gradient before the affine map, and its sums over each plane."""

    g: Tensor  # (N, C, *S)
    of_g: Tensor  # (N, C), sum(g)
    of_g_centred: Tensor  # (N, C), sum(g * centred)


@dataclass(frozen=True, eq=False)
class _MomentGradients:
    """Gradients of the moments, and of the parameters of the policy."""

    a: Tensor  # (N, C), weight / std
    mean: Tensor  # (N, C), of the moments that each plane is normalized with
    var: Tensor
    plane_mean: Tensor  # (N, C), of the moments of each plane
    plane_var: Tensor
    parameters: dict[str, Tensor]


@torch.no_grad()
def backward(of: PlaneOperands, steps: Steps, x: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Record the backward of ``of``. Returns the gradients of x and of its leaves by name."""
    values = of.normalize(of.view.planes(x))
    g = _record_pre_activation_gradient(of, steps, values, gradient)
    found: dict[str, Tensor] = {}
    if of.residual is not None:
        found["residual"] = of.view.full(g)
    if of.per_element:
        found |= _record_element_gradients(of, steps, g, values.x_hat)
        if of.weight is not None:
            g = g * of.weight
            formula = "g_weighted = g * weight, the gradient of x_hat"
            of.record(steps, BACKWARD, "g_weighted", g, formula, r"g \gamma")
    sums = _record_sums(of, steps, g, values)
    if not of.per_element:
        found |= _record_plane_gradients(of, steps, sums, values.inverse_std)
    moments = _moment_gradients(of, values, sums)
    found["x"] = _record_dx(of, steps, values, sums, moments)
    found |= _record_parameter_gradients(steps, moments)
    if of.residual is not None:
        formula, latex = "dresidual = g", r"\partial L / \partial r = g"
        steps.add(BACKWARD, "dresidual", found["residual"], of.view.axes, formula, latex)
    return found


def _record_pre_activation_gradient(
    of: PlaneOperands, steps: Steps, values: Normalized, gradient: Tensor
) -> Tensor:
    """Record dL/dy and the gradient before the activation. Returns the latter, (N, C, *S)."""
    record_gradient(steps, gradient, of.view.axes, "" if of.activation else "g")
    g = of.view.planes(gradient)
    if of.activation:
        g = reference.activation_gradient(g, of.pre_activation(values), of.activation, of.slope)
        of.record(
            steps,
            BACKWARD,
            "pre_activation_gradient",
            g,
            f"pre_activation_gradient = gradient * {of.activation}'(pre_activation); g for short",
            r"g = \frac{\partial L}{\partial y} \cdot \phi'",
        )
    return g


def _record_element_gradients(
    of: PlaneOperands, steps: Steps, g: Tensor, x_hat: Tensor
) -> dict[str, Tensor]:
    """Record the gradients of a weight and a bias that have a value for each element."""
    found = {}
    for name, parameter, values, formula, latex in (
        ("weight", of.weight, g * x_hat, "g * x_hat", r"g \hat x"),
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


def _record_sums(of: PlaneOperands, steps: Steps, g: Tensor, values: Normalized) -> _Sums:
    """Record and return the two sums of each plane that the backward needs."""
    sums = _Sums(g, g.flatten(2).sum(2), (g * values.centred).flatten(2).sum(2))
    named = "g" if not of.per_element or of.weight is None else "g_weighted"
    factor = "centred" if of.statistics.subtracts_mean else "x"
    text, numbers = worked_sum(g[0, 0].flatten().tolist())
    of.record_grid(
        steps,
        BACKWARD,
        "sum_g",
        sums.of_g,
        f"sum_g = sum({named}) of each {of.view.of}",
        r"\sum_i g_i",
        worked=Worked(f"{text} = {{}}", (*numbers, first_of(sums.of_g))),
    )
    of.record_grid(
        steps,
        BACKWARD,
        "sum_g_centred",
        sums.of_g_centred,
        f"sum_g_centred = sum({named} * {factor}) of each {of.view.of}",
        r"\sum_i g_i (x_i - \mu)",
        unit="x",
        worked=_worked_products(g, values.centred, sums.of_g_centred),
    )
    return sums


def _worked_products(g: Tensor, centred: Tensor, sums: Tensor) -> Worked:
    """Worked example of sum(g * centred) over the first plane."""
    pairs = torch.stack((g[0, 0].flatten(), centred[0, 0].flatten()), 1).tolist()
    shown = pairs if len(pairs) <= 8 else [*pairs[:3], pairs[-1]]
    text, _ = worked_sum([0.0] * len(pairs), "{} * {}")
    return Worked(
        f"{text} = {{}}", (*(number for pair in shown for number in pair), first_of(sums))
    )


def _record_plane_gradients(
    of: PlaneOperands, steps: Steps, sums: _Sums, inverse_std: Tensor
) -> dict[str, Tensor]:
    """Record the gradients of a weight and a bias with a value for each channel or plane."""
    found = {}
    weight, bias = of.names
    for name, parameter, letter, values, formula, latex in (
        (
            weight,
            of.weight,
            "gamma",
            sums.of_g_centred * inverse_std,
            "sum_g_centred / std",
            r"\sum_{n,i} g_i \hat x_i",
        ),
        (bias, of.bias, "beta", sums.of_g, "sum_g", r"\sum_{n,i} g_i"),
    ):
        if parameter is None:
            continue
        found[name] = values.sum_to_size(parameter.shape)
        over = ", summed over the samples" if parameter.dim() == 1 else ""
        column = values[:, 0] if parameter.dim() == 1 else values[:1, 0]
        text, numbers = worked_sum(column.tolist())
        steps.add(
            BACKWARD,
            f"d{name}",
            found[name],
            of.parameter_axes(parameter),
            f"d{name} = {formula}{over}",
            rf"\partial L / \partial \{letter} = {latex}",
            worked=Worked(f"{text} = {{}}", (*numbers, first_of(found[name]))),
        )
    return found


def _moment_gradients(of: PlaneOperands, values: Normalized, sums: _Sums) -> _MomentGradients:
    """Gradients of the moments, by formula, then through the policy by autograd."""
    a = of.scale(values.var)
    mean, var = -a * sums.of_g, a * values.inverse_std.square() * sums.of_g_centred / -2
    leaves = [one.detach().requires_grad_() for one in (values.plane_mean, values.plane_var)]
    with torch.enable_grad():
        pooled = [one.expand(mean.shape) for one in of.statistics(*leaves)]
    differentiable = [
        (one, gradient)
        for one, gradient in zip(pooled, (mean, var), strict=True)
        if one.requires_grad
    ]
    if not differentiable:
        zero = torch.zeros_like(mean)
        return _MomentGradients(a, mean, var, zero, zero, {})
    outputs, gradients = zip(*differentiable, strict=True)
    parameters = of.statistics.parameters
    plane_mean, plane_var, *learned = torch.autograd.grad(
        outputs,
        [*leaves, *parameters.values()],
        gradients,
        allow_unused=True,
        materialize_grads=True,
    )
    learned_by_name = dict(zip(parameters, learned, strict=True))
    return _MomentGradients(a, mean, var, plane_mean, plane_var, learned_by_name)


def _record_dx(
    of: PlaneOperands,
    steps: Steps,
    values: Normalized,
    sums: _Sums,
    moments: _MomentGradients,
) -> Tensor:
    """Record the coefficients a, b and c of each plane, and dx. Returns dx."""
    planes, statistics = values.planes, of.statistics
    count = planes.shape[2:].numel()
    a, b, c = moments.a, moments.plane_var * (2 / count), moments.plane_mean / count
    _record_coefficients(of, steps, moments, b, c)
    from_mean = planes - grid.per_plane(values.plane_mean, planes)
    dx = grid.per_plane(b, planes) * from_mean
    dx = dx + grid.per_plane(a, planes) * sums.g + grid.per_plane(c, planes)
    if statistics.uses_input:
        mean = "mean" if statistics.per_plane else "plane_mean"
        formula = f"dx = a * g + b * (x - {mean}) + c"
        worked = worked_first("{} * {} + {} * {} + {} = {}", a, sums.g, b, from_mean, c, dx)
    else:
        formula, worked = "dx = a * g", worked_first("{} * {} = {}", a, sums.g, dx)
    latex = r"\partial L / \partial x = a g + b (x - \mu_p) + c"
    of.record(steps, BACKWARD, "dx", dx, formula, latex, unit="1/x", worked=worked)
    return of.view.full(dx)


def _record_coefficients(
    of: PlaneOperands, steps: Steps, moments: _MomentGradients, b: Tensor, c: Tensor
) -> None:
    """Record a, the gradients of the moments, and the coefficients b and c made of them."""
    weighted = of.weight is not None and not of.per_element
    of.record_grid(
        steps,
        BACKWARD,
        "a",
        moments.a,
        f"a = {'weight' if weighted else '1'} / std",
        r"a = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}",
        unit="1/x",
    )
    if of.statistics.uses_input:
        _record_moment_gradients(of, steps, moments)
        of_plane = "d" if of.statistics.per_plane else "dplane_"
        b_formula, c_formula = f"b = 2 / m * {of_plane}var", f"c = {of_plane}mean / m"
    else:
        b_formula, c_formula = (f"{name} = 0: no statistic depends on x" for name in "bc")
    of.record_grid(
        steps,
        BACKWARD,
        "b",
        b,
        b_formula,
        r"b = \frac{2}{m} \frac{\partial L}{\partial \sigma_p^2}",
        unit="1/x^2",
    )
    of.record_grid(
        steps,
        BACKWARD,
        "c",
        c,
        c_formula,
        r"c = \frac{1}{m} \frac{\partial L}{\partial \mu_p}",
        unit="1/x",
    )


def _record_moment_gradients(of: PlaneOperands, steps: Steps, moments: _MomentGradients) -> None:
    """Record the gradients of the pooled moments, and of the planes' moments if they differ."""
    of.record_grid(
        steps,
        BACKWARD,
        "dmean",
        moments.mean,
        "dmean = -a * sum_g, the gradient of the mean that a plane is normalized with",
        r"\frac{\partial L}{\partial \mu} = -a \sum_i g_i",
        unit="1/x",
    )
    of.record_grid(
        steps,
        BACKWARD,
        "dvar",
        moments.var,
        "dvar = -a / (2 std^2) * sum_g_centred, the gradient of its variance",
        r"\frac{\partial L}{\partial \sigma^2} = -\frac{a}{2 (\sigma^2 + \epsilon)}"
        r" \sum_i g_i (x_i - \mu)",
        unit="1/x^2",
    )
    if of.statistics.per_plane:
        return
    of.record_grid(
        steps,
        BACKWARD,
        "dplane_mean",
        moments.plane_mean,
        "dplane_mean: dmean and dvar through the policy, to the mean of each plane",
        r"\frac{\partial L}{\partial \mu_p}",
        unit="1/x",
    )
    of.record_grid(
        steps,
        BACKWARD,
        "dplane_var",
        moments.plane_var,
        "dplane_var: dmean and dvar through the policy, to the variance of each plane",
        r"\frac{\partial L}{\partial \sigma_p^2}",
        unit="1/x^2",
    )


def _record_parameter_gradients(steps: Steps, moments: _MomentGradients) -> dict[str, Tensor]:
    """Record and return the gradients of the parameters of the policy."""
    for name, values in moments.parameters.items():
        steps.add(
            BACKWARD,
            f"d{name}",
            values,
            ("C",) if name == "gate" else ("K",),
            f"d{name}: dmean and dvar through the policy, by autograd on the (N, C) grid",
            rf"\partial L / \partial \mathrm{{{name}}}".replace("_", r"\_"),
        )
    return moments.parameters
