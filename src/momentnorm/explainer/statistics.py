"""Statistics: policies on the (N, C) grid that record how they arrive at their result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ..core.pool import INSTANCE, Pool
from .steps import STATISTICS, Steps, Worked, worked_sum
from .values import first_of

if TYPE_CHECKING:
    from .views import View


class Statistics(Protocol):
    """A policy (see :mod:`momentnorm.core.pool`) that records its steps."""

    @property
    def uses_input(self) -> bool:
        """Whether the result depends on the moments of the planes."""

    @property
    def per_plane(self) -> bool:
        """Whether each plane is normalized with its own moments alone."""

    @property
    def subtracts_mean(self) -> bool:
        """Whether a mean is subtracted from x."""

    #: Operands of the policy that get a gradient, by the layer's names of its parameters.
    parameters: dict[str, Tensor]

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        """Moments that each plane is normalized with, from the moments of the planes, (N, C)."""

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        """Record the steps from the moments of the planes to the result of the call."""


def record_moment(
    steps: Steps, view: View, name: str, values: Tensor, formula: str, latex: str, **more: Any
) -> None:
    """Record a moment of each plane, (N, C). Its unit is x if the name ends with "mean"."""
    unit = "x" if name.endswith("mean") else "x^2"
    steps.add(
        STATISTICS, name, view.grid(values), view.grid_axes, formula, latex, unit=unit, **more
    )


def pool_numbers(pool: Pool, samples: int, channels: int) -> Tensor:
    """Number of the pool of each plane, (N, C). Planes of one pool have the same number."""
    tall = samples if pool.samples is None else pool.samples
    wide = channels if pool.channels is None else pool.channels
    n = torch.arange(samples).div(max(tall, 1), rounding_mode="floor")
    c = torch.arange(channels).div(max(wide, 1), rounding_mode="floor")
    across = -(-channels // max(wide, 1))
    return n.unsqueeze(1) * across + c


def record_pools(steps: Steps, view: View, pool: Pool, mean: Tensor, name: str = "pools") -> None:
    """Record which planes share their statistics, as a letter for each plane."""
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


def record_plane_moments(
    steps: Steps,
    view: View,
    mean: Tensor,
    var: Tensor,
    names: tuple[str, str] = ("plane_mean", "plane_var"),
) -> None:
    """Record mean and biased variance of each plane."""
    values, centre = steps.first_plane, first_of(mean)
    count = len(values)
    text, numbers = worked_sum(values)
    record_moment(
        steps,
        view,
        names[0],
        mean,
        f"{names[0]} = sum(x) / m, over the m elements of a {view.of}",
        r"\mu = \frac{1}{m} \sum_{i} x_{i}",
        worked=Worked(f"({text}) / {count} = {{}}", (*numbers, centre)),
    )
    text, numbers = worked_sum([value - centre for value in values], "({})^2")
    record_moment(
        steps,
        view,
        names[1],
        var,
        f"{names[1]} = sum((x - {names[0]})^2) / m: biased, divided by m",
        r"\sigma^2 = \frac{1}{m} \sum_{i} (x_{i} - \mu)^2",
        worked=Worked(f"({text}) / {count} = {{}}", (*numbers, first_of(var))),
    )


def record_pooled_moments(
    steps: Steps,
    view: View,
    pool: Pool,
    mean: Tensor,
    var: Tensor,
    names: tuple[str, str],
    of: tuple[str, str] = ("plane_mean", "plane_var"),
) -> tuple[Tensor, Tensor]:
    """Record mean and variance of all elements of a pool, from the moments of its planes.

    Args:
        steps: the recorder.
        view: how the input is a grid of planes.
        pool: the pool.
        mean, var: the moments of the planes, (N, C).
        names: names of the two steps.
        of: names of the steps with the moments of the planes.

    Returns:
        The pooled mean and variance, (N, C).
    """
    pooled_mean, pooled_var = pool(mean, var)
    first = (pool_numbers(pool, *mean.shape) == 0).to(mean.device)
    means, variances = mean.detach()[first].tolist(), var.detach()[first].tolist()
    centre, count = first_of(pooled_mean), len(means)
    text, numbers = worked_sum(means)
    record_moment(
        steps,
        view,
        names[0],
        pooled_mean,
        f"{names[0]} = E[{of[0]}] over the planes of a pool",
        r"\mu = \mathrm{E}[\mu_p]",
        worked=Worked(f"({text}) / {count} = {{}}", (*numbers, centre)),
    )
    text, numbers = worked_sum(variances)
    spread, offsets = worked_sum([one - centre for one in means], "({})^2")
    record_moment(
        steps,
        view,
        names[1],
        pooled_var,
        f"{names[1]} = E[{of[1]}] + Var[{of[0]}] over the planes of a pool",
        r"\sigma^2 = \mathrm{E}[\sigma_p^2] + \mathrm{Var}[\mu_p]",
        worked=Worked(
            f"({text}) / {count} + ({spread}) / {count} = {{}}",
            (*numbers, *offsets, first_of(pooled_var)),
        ),
    )
    return pooled_mean, pooled_var


@dataclass(eq=False)
class Pooled:
    """Moments of a rectangle of planes: Instance, Group, Layer and Batch Normalization."""

    pool: Pool
    uses_input = True
    subtracts_mean = True
    parameters: dict[str, Tensor] = field(default_factory=dict)

    @property
    def per_plane(self) -> bool:
        return self.pool == INSTANCE

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return self.pool(mean, var)

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        record_pools(steps, view, self.pool, mean)
        if self.per_plane:
            record_plane_moments(steps, view, mean, var, names=("mean", "var"))
            return
        record_plane_moments(steps, view, mean, var)
        record_pooled_moments(steps, view, self.pool, mean, var, names=("mean", "var"))


@dataclass(eq=False)
class Given:
    """Moments that do not come from the input: the running statistics, in evaluation.

    Args:
        mean, var: (C,), or another shape that broadcasts to (N, C), in the dtype of the statistics.
    """

    mean: Tensor
    var: Tensor
    uses_input = False
    per_plane = False
    subtracts_mean = True
    parameters: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean.expand(mean.shape), self.var.expand(var.shape)

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        words = "of each channel, independent of this input"
        pooled_mean, pooled_var = self(mean, var)
        record_moment(
            steps,
            view,
            "mean",
            pooled_mean,
            f"mean = running_mean {words}",
            r"\mu = \mu_\mathrm{running}",
        )
        record_moment(
            steps,
            view,
            "var",
            pooled_var,
            f"var = running_var {words}",
            r"\sigma^2 = \sigma^2_\mathrm{running}",
        )


@dataclass(eq=False)
class MeanSquare:
    """Mean square of each plane: RMS and Filter Response Normalization, which subtract no mean.

    Args:
        parameters: empty, or ``learned_eps``, (1,), whose magnitude is added to the mean square.
    """

    uses_input = True
    per_plane = False
    subtracts_mean = False
    parameters: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        square = var + mean.square()
        for learned_eps in self.parameters.values():
            square = square + learned_eps.abs()
        return torch.zeros_like(mean), square

    def record(self, steps: Steps, view: View, mean: Tensor, var: Tensor) -> None:
        _, square = self(mean, var)
        record_pools(steps, view, INSTANCE, mean)
        text, numbers = worked_sum(steps.first_plane, "({})^2")
        plus = " + |learned_eps|" if self.parameters else ""
        record_moment(
            steps,
            view,
            "mean_square",
            square,
            f"mean_square = sum(x^2) / m{plus}, over the m elements of a {view.of}",
            r"\overline{x^2} = \frac{1}{m} \sum_{i} x_{i}^2",
            worked=Worked(
                f"({text}) / {len(steps.first_plane)}{' + {}' if plus else ''} = {{}}",
                (*numbers, *map(first_of, self.parameters.values()), first_of(square)),
            ),
        )
