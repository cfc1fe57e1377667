"""The statistics that planes are normalized with: which planes share them, and how they are made.

Each class is a policy on the (N, C) grid, as :mod:`momentnorm.pool` has them, that also records
how it came to its result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..pool import INSTANCE, Policy, Pool
from .trace import STATISTICS, Steps, Worked

if TYPE_CHECKING:
    from collections.abc import Callable

    from .views import View


class Statistics(Protocol):
    """A policy that records its steps."""

    @property
    def of_input(self) -> bool:
        """Whether the moments of the planes have a part in it."""

    @property
    def as_it_is(self) -> bool:
        """Whether each plane's moments are used by that plane, and no other."""

    @property
    def centres(self) -> bool:
        """Whether a mean is subtracted."""

    #: The operands of the policy that have a gradient, by the layer's names.
    parameters: dict[str, Tensor]

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """As any policy: the moments that each plane is normalized with."""

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        """The steps from the moments of the planes to what the call returns."""


def pool_numbers(pool: Pool, samples: int, channels: int) -> Tensor:
    """(N, C): planes with the same number share their statistics."""
    tall = samples if pool.samples is None else pool.samples
    wide = channels if pool.channels is None else pool.channels
    n = torch.arange(samples).div(max(tall, 1), rounding_mode="floor")
    c = torch.arange(channels).div(max(wide, 1), rounding_mode="floor")
    across = -(-channels // max(wide, 1))
    return n.unsqueeze(1) * across + c


def record_pools(steps: Steps, view: View, pool: Pool, mean: Tensor, name: str = "pools") -> None:
    """Which planes share: a letter for each plane."""
    numbers = pool_numbers(pool, *mean.shape)
    steps.add(
        STATISTICS,
        name,
        view.grid(numbers),
        view.grid_axes,
        "planes with the same letter share their mean and variance",
        r"\mathcal{P}(n, c)",
        letters=True,
    )


def sum_of(values: list[float], form: str = "{}") -> tuple[str, list[float]]:
    """Such as "{} + {} + {}" with its numbers; long sums by their ends."""
    if len(values) <= 8:
        return " + ".join([form] * len(values)), values
    return " + ".join([form] * 3 + ["...", form]), [*values[:3], values[-1]]


def _first_of(values: Tensor) -> float:
    return float(values.detach().flatten()[0])


@dataclass(eq=False)
class Pooled:
    """The moments of a rectangle of planes: Instance, Group, Layer and Batch Normalization."""

    pool: Pool
    of_input = True
    centres = True
    parameters: dict[str, Tensor] = field(default_factory=dict)

    @property
    def as_it_is(self) -> bool:
        return self.pool == INSTANCE

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return self.pool(mean, var)

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        record_pools(steps, view, self.pool, mean)
        if self.as_it_is:
            record_plane_moments(steps, view, mean, var, names=("mean", "var"))
            return
        record_plane_moments(steps, view, mean, var)
        record_pooled(steps, view, self.pool, mean, var, names=("mean", "var"))


def record_plane_moments(
    steps: Steps,
    view: View,
    mean: Tensor,
    var: Tensor,
    names: tuple[str, str] = ("plane_mean", "plane_var"),
) -> None:
    """Mean and biased variance of each plane."""
    values = steps.first_plane
    worked_mean = worked_var = None
    if values:
        text, numbers = sum_of(values)
        count = len(values)
        centre = _first_of(mean)
        worked_mean = Worked(f"({text}) / {count} = {{}}", (*numbers, centre))
        text, numbers = sum_of([value - centre for value in values], "({})^2")
        worked_var = Worked(f"({text}) / {count} = {{}}", (*numbers, _first_of(var)))
    steps.add(
        STATISTICS,
        names[0],
        view.grid(mean),
        view.grid_axes,
        f"{names[0]} = sum(x) / m, over the m elements of a plane",
        r"\mu = \frac{1}{m} \sum_{i} x_{i}",
        unit="x",
        worked=worked_mean,
    )
    steps.add(
        STATISTICS,
        names[1],
        view.grid(var),
        view.grid_axes,
        f"{names[1]} = sum((x - {names[0]})^2) / m: biased, divided by m",
        r"\sigma^2 = \frac{1}{m} \sum_{i} (x_{i} - \mu)^2",
        unit="x^2",
        worked=worked_var,
    )


def record_pooled(
    steps: Steps,
    view: View,
    pool: Pool,
    mean: Tensor,
    var: Tensor,
    names: tuple[str, str],
    of: tuple[str, str] = ("plane_mean", "plane_var"),
) -> tuple[Tensor, Tensor]:
    """Mean and variance of all elements of a pool, from those of its planes."""
    pooled_mean, pooled_var = pool(mean, var)
    first = (pool_numbers(pool, *mean.shape) == 0).to(mean.device)
    means, variances = mean.detach()[first].tolist(), var.detach()[first].tolist()
    centre, count = _first_of(pooled_mean), len(means)
    text, numbers = sum_of(means)
    steps.add(
        STATISTICS,
        names[0],
        view.grid(pooled_mean),
        view.grid_axes,
        f"{names[0]} = E[{of[0]}] over the planes of a pool",
        r"\mu = \mathrm{E}[\mu_p]",
        unit="x",
        worked=Worked(f"({text}) / {count} = {{}}", (*numbers, centre)),
    )
    text, numbers = sum_of(variances)
    spread, offsets = sum_of([one - centre for one in means], "({})^2")
    steps.add(
        STATISTICS,
        names[1],
        view.grid(pooled_var),
        view.grid_axes,
        f"{names[1]} = E[{of[1]}] + Var[{of[0]}] over the planes of a pool",
        r"\sigma^2 = \mathrm{E}[\sigma_p^2] + \mathrm{Var}[\mu_p]",
        unit="x^2",
        worked=Worked(
            f"({text}) / {count} + ({spread}) / {count} = {{}}",
            (*numbers, *offsets, _first_of(pooled_var)),
        ),
    )
    return pooled_mean, pooled_var


@dataclass(eq=False)
class Given:
    """Moments from outside: the running statistics, in evaluation.

    Args:
        mean, var: (C,), or what else broadcasts to the grid, in the statistics' type.
    """

    mean: Tensor
    var: Tensor
    of_input = False
    as_it_is = False
    centres = True
    parameters: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean.expand(mean.shape), self.var.expand(var.shape)

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        for name, values, letter, unit in (
            ("mean", self.mean, r"\mu", "x"),
            ("var", self.var, r"\sigma^2", "x^2"),
        ):
            steps.add(
                STATISTICS,
                name,
                view.grid(values.expand(mean.shape)),
                view.grid_axes,
                f"{name} = running_{name}, of each channel: nothing of this input is in it",
                rf"{letter} = {letter}_\mathrm{{running}}",
                unit=unit,
            )


@dataclass(eq=False)
class MeanSquare:
    """RMS Normalization: nothing is subtracted, and the mean square stands for the variance."""

    of_input = True
    as_it_is = False
    centres = False
    parameters: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(mean), var + mean.square()

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        _, square = self(mean, var)
        record_pools(steps, view, INSTANCE, mean)
        text, numbers = sum_of(steps.first_plane, "({})^2")
        steps.add(
            STATISTICS,
            "mean_square",
            view.grid(square),
            view.grid_axes,
            "mean_square = sum(x^2) / m, over the m elements of a row: no mean is subtracted",
            r"\overline{x^2} = \frac{1}{m} \sum_{i} x_{i}^2",
            unit="x^2",
            worked=Worked(
                f"({text}) / {len(steps.first_plane)} = {{}}", (*numbers, _first_of(square))
            ),
        )


@dataclass(eq=False)
class Mixed:
    """Switchable Normalization: learned proportions of the plane's, sample's and batch's moments.

    Args:
        policy: the layer's own, of the leaves in ``parameters``.
        kinds: of "in" (plane), "ln" (sample) and "bn" (batch), those that the layer mixes.
        moments_of: of a kind, from the moments of the planes.
        running: whether the batch's are the running ones.
        unbiased: whether the variance of a plane is, rather than that of the pool.
        parameters: ``mean_weight`` and ``var_weight``.
    """

    policy: Policy
    kinds: tuple[str, ...]
    moments_of: Callable[[str, Tensor, Tensor], tuple[Tensor, Tensor]]
    running: bool
    unbiased: bool
    parameters: dict[str, Tensor]
    of_input = True
    as_it_is = False
    centres = True

    _POOLS = {"in": INSTANCE, "ln": Pool(1, None), "bn": Pool(None, 1)}  # noqa: RUF012

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(mean, var)

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        record_plane_moments(steps, view, mean, var)
        what = {"in": "the plane", "ln": "all channels of the sample", "bn": "the whole batch"}
        for kind in self.kinds:
            given = self.running and kind == "bn"
            if not given:
                record_pools(steps, view, self._POOLS[kind], mean, f"{kind}_pools")
            source = "running_{}" if given else f"the {{}} over {what[kind]}"
            for name, letter, unit, values in zip(
                ("mean", "var"),
                (r"\mu", r"\sigma^2"),
                ("x", "x^2"),
                self.moments_of(kind, mean, var),
                strict=True,
            ):
                note = ""
                if name == "var" and not given:
                    note = "Planes have their unbiased variance here, divided by m - 1."
                    if not self.unbiased:
                        note = "It is the unbiased one, divided by the number of elements less 1."
                steps.add(
                    STATISTICS,
                    f"{kind}_{name}",
                    view.grid(values.expand(mean.shape)),
                    view.grid_axes,
                    f"{kind}_{name} = {source.format(name)}",
                    rf"{letter}_\mathrm{{{kind}}}",
                    unit=unit,
                    note=note,
                )
        mixed = dict(zip(("mean", "var"), self(mean, var), strict=True))
        for name, letter in (("mean", r"\mu"), ("var", r"\sigma^2")):
            weight = self.parameters[f"{name}_weight"]
            shares = weight.softmax(0)
            exponents = weight.detach().tolist()
            total = " + ".join(["exp({})"] * len(exponents))
            steps.add(
                STATISTICS,
                f"{name}_shares",
                shares,
                ("/".join(self.kinds),),
                f"{name}_shares = softmax({name}_weight), of {', '.join(self.kinds)}",
                r"w_k = \frac{e^{\lambda_k}}{\sum_j e^{\lambda_j}}",
                worked=Worked(
                    f"exp({{}}) / ({total}) = {{}}", (exponents[0], *exponents, _first_of(shares))
                ),
            )
            parts = [
                _first_of(self.moments_of(kind, mean, var)[name == "var"]) for kind in self.kinds
            ]
            numbers = [n for pair in zip(shares.tolist(), parts, strict=True) for n in pair]
            steps.add(
                STATISTICS,
                name,
                view.grid(mixed[name].expand(mean.shape)),
                view.grid_axes,
                f"{name} = " + " + ".join(f"share * {kind}_{name}" for kind in self.kinds),
                rf"{letter} = \sum_k w_k {letter}_k",
                unit="x" if name == "mean" else "x^2",
                worked=Worked(
                    " + ".join(["{} * {}"] * len(parts)) + " = {}",
                    (*numbers, _first_of(mixed[name])),
                ),
            )


@dataclass(eq=False)
class Gated:
    """Batch-Instance Normalization: per channel, a gate's share of batch, the rest of instance.

    Args:
        policy: the layer's own; the variance that it returns has eps inside.
        batch: the batch's moments, or the running ones, from those of the planes.
        gate: (C,), in [0, 1].
    """

    policy: Policy
    batch: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    running: bool
    gate: Tensor
    eps: float
    parameters: dict[str, Tensor]
    of_input = True
    as_it_is = False
    centres = True

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return self.policy(mean, var)

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        record_pools(steps, view, INSTANCE, mean, "in_pools")
        record_plane_moments(steps, view, mean, var, ("in_mean", "in_var"))
        batch_mean, batch_var = self.batch(mean, var)
        if self.running:
            for name, values, unit in (("mean", batch_mean, "x"), ("var", batch_var, "x^2")):
                steps.add(
                    STATISTICS,
                    f"bn_{name}",
                    view.grid(values.expand(mean.shape)),
                    view.grid_axes,
                    f"bn_{name} = running_{name}",
                    r"\mu_B" if name == "mean" else r"\sigma_B^2",
                    unit=unit,
                )
        else:
            record_pools(steps, view, Pool(None, 1), mean, "bn_pools")
            record_pooled(
                steps, view, Pool(None, 1), mean, var, ("bn_mean", "bn_var"), ("in_mean", "in_var")
            )
        pooled_mean, pooled_var = self(mean, var)
        gate = _first_of(self.gate)
        steps.add(
            STATISTICS,
            "mean",
            view.grid(pooled_mean.expand(mean.shape)),
            view.grid_axes,
            "mean = in_mean + (bn_mean - in_mean) * gate * s_b / s, the zero of the mixed line",
            r"\mu = \frac{\rho s_B \mu_B + (1 - \rho) s_I \mu_I}{s}",
            unit="x",
            note="Both normalizations are lines in x, so their mixture is one line too.",
        )
        steps.add(
            STATISTICS,
            "var",
            view.grid(pooled_var.expand(mean.shape)),
            view.grid_axes,
            "var = 1 / s^2, s = gate * s_b + (1 - gate) * s_i, s_. = 1 / sqrt(var_. + eps)",
            r"\sigma^2 = s^{-2}, \quad s = \rho s_B + (1 - \rho) s_I",
            unit="x^2",
            note="eps is inside already.",
            worked=Worked(
                "1 / ({} * {} + {} * {})^2 = {}",
                (
                    gate,
                    _first_of(torch.rsqrt(batch_var + self.eps)),
                    1 - gate,
                    _first_of(torch.rsqrt(var + self.eps)),
                    _first_of(pooled_var),
                ),
            ),
        )
