"""The statistics that planes are normalized with: which planes share them, and how they are made.

Each class is a policy on the (N, C) grid, as :mod:`momentnorm.pool` has them, that also records
how it came to its result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..core.pool import INSTANCE, Pool
from .trace import STATISTICS, Steps, Worked

if TYPE_CHECKING:
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
        f"{view.of}s with the same letter share their statistics",
        r"\mathcal{P}(n, c)",
        letters=True,
    )


def sum_of(values: list[float], form: str = "{}") -> tuple[str, list[float]]:
    """Such as "{} + {} + {}" with its numbers; long sums by their ends."""
    if len(values) <= 8:
        return " + ".join([form] * len(values)), values
    return " + ".join([form] * 3 + ["...", form]), [*values[:3], values[-1]]


def first_of(values: Tensor) -> float:
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
    values, centre = steps.first_plane, first_of(mean)
    count = len(values)
    text, numbers = sum_of(values)
    worked_mean = Worked(f"({text}) / {count} = {{}}", (*numbers, centre))
    text, numbers = sum_of([value - centre for value in values], "({})^2")
    worked_var = Worked(f"({text}) / {count} = {{}}", (*numbers, first_of(var)))
    steps.add(
        STATISTICS,
        names[0],
        view.grid(mean),
        view.grid_axes,
        f"{names[0]} = sum(x) / m, over the m elements of a {view.of}",
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
    centre, count = first_of(pooled_mean), len(means)
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
            (*numbers, *offsets, first_of(pooled_var)),
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
    """RMS and Filter Response Normalization: the mean square, of which nothing is subtracted.

    Args:
        parameters: ``learned_eps``, (1,), whose size is added, where there is one.
    """

    of_input = True
    as_it_is = False
    centres = False
    parameters: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        square = var + mean.square()
        for learned_eps in self.parameters.values():
            square = square + learned_eps.abs()
        return torch.zeros_like(mean), square

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        _, square = self(mean, var)
        record_pools(steps, view, INSTANCE, mean)
        text, numbers = sum_of(steps.first_plane, "({})^2")
        plus = " + |learned_eps|" if self.parameters else ""
        steps.add(
            STATISTICS,
            "mean_square",
            view.grid(square),
            view.grid_axes,
            f"mean_square = sum(x^2) / m{plus}, over the m elements of a {view.of}",
            r"\overline{x^2} = \frac{1}{m} \sum_{i} x_{i}^2",
            unit="x^2",
            worked=Worked(
                f"({text}) / {len(steps.first_plane)}{' + {}' if plus else ''} = {{}}",
                (*numbers, *map(first_of, self.parameters.values()), first_of(square)),
            ),
        )
