"""Running: how the running statistics move in training, with the arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core.grid import statistics_dtype
from ..core.pool import Policy, Pool
from .steps import RUNNING, Steps, worked_first


@dataclass(frozen=True, eq=False)
class Update:
    """Update of one running statistic in training.

    Args:
        name: the name of the buffer.
        before: its values before the update, in the dtype and shape of the buffer.
        batch: the statistic of the batch, as a function of the moments of the planes.
        rule: the statistic of the batch, in words.
        share: share of the batch in the new value, or None if the batch is added to a sum.
    """

    name: str
    before: Tensor
    batch: Callable[[Tensor, Tensor], Tensor]
    rule: str
    share: float | None

    def record(self, steps: Steps, mean: Tensor, var: Tensor) -> None:
        """Record the buffer before, the statistic of the batch, and the buffer after.

        The last one equals the values that the layer writes.
        """
        before, batch = self.before.flatten(), self.batch(mean, var).flatten()
        unit = "x" if self.name == "running_mean" else "x^2"
        if self.share is None:
            after = before.clone().add_(batch)
            rule = f"{self.name} + {self.name}_of_batch: a sum over all batches"
            latex = r"r \leftarrow r + b"
            worked = worked_first("{} + {} = {}", before, batch, after)
        else:
            after = torch.lerp(before.to(batch.dtype), batch, self.share).to(before.dtype)
            rule = f"(1 - momentum) * {self.name} + momentum * {self.name}_of_batch"
            latex = r"r \leftarrow (1 - m)\, r + m\, b"
            share = torch.tensor(self.share, dtype=torch.float64)
            worked = worked_first(
                "(1 - {}) * {} + {} * {} = {}", share, before, share, batch, after
            )
        kept = "the buffer before the call; explaining does not change it"
        for name, values, formula, letter, example in (
            (f"{self.name}_before", before, kept, "r", None),
            (f"{self.name}_of_batch", batch, self.rule, "b", None),
            (self.name, after, f"{self.name} after = {rule}", latex, worked),
        ):
            steps.add(RUNNING, name, values, ("C",), formula, letter, unit=unit, worked=example)


def running_moments(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Running mean and variance of a layer, (C,), in the dtype of the statistics of x."""
    dtype = statistics_dtype(x)
    return (
        layer.running_mean.detach().to(dtype).flatten(),
        layer.running_var.detach().to(dtype).flatten(),
    )


def moments_in_evaluation(layer: Any, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Running moments that replace those of the batch in a mixture; None in training."""
    if layer.training or layer.running_mean is None:
        return None
    return running_moments(layer, x)


def updates_of(
    layer: Any, policy: Policy, count: int, share: float, mean_rule: str, var_rule: str
) -> tuple[Update, ...]:
    """Updates of the buffers running_mean and running_var, as far as the layer has them.

    Args:
        layer: the layer with the buffers.
        policy: the moments of the batch, (C,), as a function of the moments of the planes.
        count: number of elements in each variance, to make it unbiased.
        share: share of the batch in the new values.
        mean_rule, var_rule: the statistics of the batch, in words.
    """

    def mean_of(mean: Tensor, var: Tensor) -> Tensor:
        return policy(mean, var)[0].flatten()

    def var_of(mean: Tensor, var: Tensor) -> Tensor:
        return policy(mean, var)[1].flatten() * (count / (count - 1))

    return tuple(
        Update(name, getattr(layer, name).detach().clone(), of_batch, rule, share)
        for name, of_batch, rule in (
            ("running_mean", mean_of, mean_rule),
            ("running_var", var_of, var_rule),
        )
        if hasattr(layer, name)
    )


def batch_updates(layer: Any, x: Tensor, pool: Pool) -> tuple[Update, ...]:
    """Updates of a layer that tracks the moments of each channel over the whole batch.

    Args:
        layer: the layer with the buffers.
        x: the input.
        pool: the pool of one channel: ``BATCH``, or ``INSTANCE`` for a batch of vectors.
    """
    tracks = getattr(layer, "track_running_stats", True) and layer.running_var is not None
    if not (layer.training and tracks):
        return ()

    def of_channel(mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
        pooled_mean, pooled_var = pool(mean, var)
        return pooled_mean[0], pooled_var[0]

    share = layer.momentum
    if share is None:  # average of all batches
        share = 1.0 / (int(layer.num_batches_tracked) + 1)
    return updates_of(
        layer,
        of_channel,
        x.shape[0] * x.shape[2:].numel(),
        share,
        "the batch's mean of each channel",
        "the batch's unbiased variance of each channel, n / (n - 1) * var of n elements",
    )
