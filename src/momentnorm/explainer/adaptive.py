"""Adaptive: explanations of layers with a weight from outside, or with an activation inside."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..core.backends.reference import moments
from ..core.grid import per_plane, statistics_dtype
from ..core.pool import BATCH, INSTANCE, Pool
from ..layers.adain import AdaIN, AdaptiveInstanceNorm2d
from ..layers.conditional_instance_norm import ConditionalInstanceNorm2d
from ..layers.evo_norm import EvoNorm2dB0, EvoNorm2dS0
from ..layers.filter_response_norm import FilterResponseNorm2d
from ..layers.spade import SPADE
from .explanation import (
    Explanation,
    as_leaf,
    record_scaled_and_shifted,
    record_x,
    record_y,
)
from .planes import Planes
from .registry import explains, explanation_of
from .running import batch_updates
from .statistics import (
    MeanSquare,
    Pooled,
    record_plane_moments,
    record_pooled_moments,
    record_pools,
)
from .steps import INPUT, OUTPUT, STATISTICS, Steps, worked_first
from .views import axes_of, feature_map

_OWN = "each plane (one channel of one sample) has statistics of its own"


@explains(ConditionalInstanceNorm2d)
def _conditional(layer: Any, x: Tensor, residual: Tensor | None, styles: Any) -> Explanation:
    mixed = isinstance(styles, Tensor) and styles.is_floating_point()
    if mixed:  # a mixture of styles is rounded to the dtype of the parameters
        layer = copy.deepcopy(layer).to(statistics_dtype(x))
    weight, bias = layer.parameters_of(styles, x.shape[0])
    found = Planes(x, Pooled(INSTANCE), weight=weight, bias=bias, eps=layer.eps)
    found.exact = not mixed
    found.summary = f"{_OWN}; the style of a sample chooses its weight and bias"
    return found


@explains(AdaptiveInstanceNorm2d)
def _adaptive(
    layer: Any,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Explanation:
    grid = x.shape[:2]
    found = Planes(
        x,
        Pooled(INSTANCE),
        weight=(layer.weight if weight is None else weight).reshape(grid),
        bias=(layer.bias if bias is None else bias).reshape(grid),
        eps=layer.eps,
    )
    found.summary = f"{_OWN}; weight and bias of each sample are assigned from outside"
    return found


@explains(AdaIN)
def _adain(layer: Any, x: Tensor, residual: Tensor | None, style: Tensor) -> Explanation:
    mean, var = functional.plane_moments(style.detach().to(statistics_dtype(style)))
    count, eps = style.shape[2:].numel(), layer.eps
    deviation = (var * (count / (count - 1)) + (eps if layer.variant == "pytorch" else 0)).sqrt()
    formula = "sqrt(var of the style, unbiased)"
    if layer.variant == "pytorch":
        # The unbiased variance plus eps is (biased variance + eps (n - 1) / n) * n / (n - 1).
        count = x.shape[2:].numel()
        rest = (count - 1) / count
        deviation, eps = deviation * rest**0.5, eps * rest
        formula = "sqrt((var of the style, unbiased, + eps) * (n - 1) / n)"
    grid = x.shape[:2]
    found = Planes(
        x,
        Pooled(INSTANCE),
        weight=deviation.expand(grid),
        bias=mean.expand(grid),
        eps=eps,
    )
    found.exact = False  # the layer rounds the style's moments to the input's dtype
    found.summary = f"{_OWN}; weight and bias are deviation and mean of the style's plane"
    found.notes.append(f"weight_of_sample = {formula}; bias_of_sample = the style's mean.")
    return found


@explains(SPADE)
def _spade(layer: Any, x: Tensor, residual: Tensor | None, map: Tensor) -> Explanation:
    inner = explanation_of(layer.param_free_norm, x, None)
    assert isinstance(inner, Planes)
    dtype = statistics_dtype(x)
    wide = copy.deepcopy(layer).to(dtype)
    with torch.no_grad():
        resized = torch.nn.functional.interpolate(map.to(dtype), size=x.shape[2:], mode="nearest")
        hidden = wide.mlp_shared(resized)
        weight, bias = 1 + wide.mlp_gamma(hidden), wide.mlp_beta(hidden)
    found = Planes(
        x,
        inner.statistics,
        weight=weight,
        bias=bias,
        per_element=True,
        eps=inner.eps,
        updates=tuple(
            replace(update, name=f"param_free_norm.{update.name}") for update in inner.updates
        ),
    )
    found.exact = False  # convolutions, weight and bias are computed in the input's dtype
    found.summary = f"{inner.summary}; weight and bias of each pixel are convolutions of the map"
    found.notes.append("weight = 1 + gamma(map), bias = beta(map).")
    return found


class _Thresholded(Planes):
    """Policy on planes, followed by the maximum of each value and a threshold of its channel."""

    # The threshold gets a gradient too, which the formulas of Planes lack: autograd serves here.
    backward = Explanation.backward
    tau: Tensor | None = None

    def _record_input(self, steps: Steps, planes: Tensor) -> None:
        super()._record_input(steps, planes)
        if self.tau is not None:
            steps.add(INPUT, "tau", self.tau, ("C",), "tau of each channel: a threshold", r"\tau")

    def _record_tail(self, steps: Steps, values: Tensor) -> Tensor:
        if self.tau is None:
            return values
        before = values
        tau = self.tau[:, None, None]
        values = torch.maximum(before, tau)
        self.record(
            steps,
            OUTPUT,
            "thresholded",
            values,
            "thresholded = max(the step before, tau)",
            r"\max(\hat x \gamma + \beta,\, \tau)",
            worked=worked_first("max({}, {}) = {}", before, tau, values),
        )
        return values


@explains(FilterResponseNorm2d)
def _filter_response(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    statistics = MeanSquare()
    if layer.learnable_eps:
        statistics.parameters["learned_eps"] = as_leaf(layer.learned_eps, x)
    found = _Thresholded(
        x,
        statistics,
        weight=layer.weight,
        bias=layer.bias,
        eps=0.0 if layer.learnable_eps else abs(layer.eps),
    )
    if layer.threshold:
        found.tau = found.leaf("tau", layer.tau.to(x.dtype))
    found.summary = "each plane is divided by its own root mean square; no mean is subtracted"
    return found


class _EvoNorm(Explanation):
    """Base of both EvoNorms: operands, moments, weight and bias. Autograd gives the backward.

    The layers compute in the dtype of the input, so both sides are compared in float64.
    """

    exact = False

    def __init__(self, layer: Any, x: Tensor) -> None:
        super().__init__()
        self.x, self.eps = x, layer.eps
        for name in ("weight", "bias", "v"):
            self.leaf(name, getattr(layer, name))

    def _moments(self, steps: Steps, x: Tensor) -> tuple[Tensor, Tensor]:
        record_x(steps, self.x, axes_of(x))
        for name, letter in (("weight", r"\gamma"), ("bias", r"\beta"), ("v", "v")):
            steps.add(INPUT, name, self.leaves[name], ("C",), f"{name} of each channel", letter)
        steps.first_plane = x.detach()[0, 0].flatten().tolist()
        mean, var = moments(x)
        record_plane_moments(steps, feature_map(x), mean, var)
        return mean, var

    def _record_output(self, steps: Steps, x_hat: Tensor) -> Tensor:
        weight, bias = (self.leaves[name][:, None, None] for name in ("weight", "bias"))
        y = record_scaled_and_shifted(steps, x_hat, weight, bias, axes_of(self.x))
        record_y(steps, y, self.x, axes_of(self.x))
        return y


class _EvoNormS0(_EvoNorm):
    def __init__(self, layer: Any, x: Tensor) -> None:
        super().__init__(layer, x)
        self.pool = Pool(1, layer.num_features // layer.groups)
        self.summary = "neighbouring channels of one sample share their variance; x has a gate"

    def forward(self, steps: Steps, x: Tensor) -> Tensor:
        mean, var = self._moments(steps, x)
        axes, grid = axes_of(x), ("N", "C")
        record_pools(steps, feature_map(x), self.pool, mean)
        _, pooled = record_pooled_moments(
            steps, feature_map(x), self.pool, mean, var, ("mean", "var")
        )
        std = (pooled + self.eps).sqrt()
        formula = f"std = sqrt(var + eps), eps = {self.eps:g}"
        steps.add(STATISTICS, "std", std, grid, formula, r"\sqrt{\sigma^2 + \epsilon}", unit="x")
        gate = torch.sigmoid(self.leaves["v"][:, None, None] * x)
        steps.add(OUTPUT, "gate", gate, axes, "gate = sigmoid(v * x)", r"\sigma(v x)")
        x_hat = x * gate / per_plane(std, x)
        steps.add(
            OUTPUT,
            "x_hat",
            x_hat,
            axes,
            "x_hat = x * gate / std: no mean is subtracted",
            r"\hat x = \frac{x \, \sigma(v x)}{\sqrt{\sigma^2 + \epsilon}}",
            worked=worked_first("{} * {} / {} = {}", x, gate, std, x_hat),
        )
        return self._record_output(steps, x_hat)


class _EvoNormB0(_EvoNorm):
    def __init__(self, layer: Any, x: Tensor) -> None:
        super().__init__(layer, x)
        running = layer.running_var.detach().to(statistics_dtype(x), copy=True)
        self.given = None if layer.training else running
        self.updates = batch_updates(layer, x, BATCH)
        self.summary = "x is divided by the batch's deviation or a line in x, whichever is larger"

    def forward(self, steps: Steps, x: Tensor) -> Tensor:
        mean, var = self._moments(steps, x)
        axes, grid, view = axes_of(x), ("N", "C"), feature_map(x)
        if self.given is None:
            record_pools(steps, view, BATCH, mean)
            _, of_batch = record_pooled_moments(
                steps, view, BATCH, mean, var, ("bn_mean", "bn_var")
            )
        else:
            of_batch = self.given.expand(var.shape)
            steps.add(
                STATISTICS, "bn_var", of_batch, grid, "bn_var = running_var", r"\sigma_B^2",
                unit="x^2",
            )  # fmt: skip
        floor, own = (of_batch + self.eps).sqrt(), (var + self.eps).sqrt()
        for name, values, source, letter in (
            ("bn_std", floor, "bn_var", r"\sigma_B"),
            ("plane_std", own, "plane_var", r"\sigma_I"),
        ):
            formula = f"{name} = sqrt({source} + eps), eps = {self.eps:g}"
            steps.add(STATISTICS, name, values, grid, formula, letter, unit="x")
        line = self.leaves["v"][:, None, None] * x + per_plane(own, x)
        steps.add(OUTPUT, "line", line, axes, "line = v * x + plane_std", r"v x + \sigma_I")
        x_hat = x / torch.maximum(per_plane(floor, x), line)
        steps.add(
            OUTPUT,
            "x_hat",
            x_hat,
            axes,
            "x_hat = x / max(bn_std, line): no mean is subtracted",
            r"\hat x = \frac{x}{\max(\sigma_B, v x + \sigma_I)}",
            worked=worked_first("{} / max({}, {}) = {}", x, floor, line, x_hat),
        )
        y = self._record_output(steps, x_hat)
        for update in self.updates:
            update.record(steps, mean.detach(), var.detach())
        return y


@explains(EvoNorm2dS0)
def _evonorm_s0(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    return _EvoNormS0(layer, x)


@explains(EvoNorm2dB0)
def _evonorm_b0(layer: Any, x: Tensor, residual: Tensor | None) -> Explanation:
    return _EvoNormB0(layer, x)
