"""Running moments of layers with buffers, in place of those of the batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core.grid import statistics_dtype


def running_moments(layer: Any, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Running mean and variance, (C,), in evaluation; None in training or without buffers.

    They are copies: the buffers may be updated before the backward needs these values.
    """
    if layer.training or layer.running_mean is None or layer.running_var is None:
        return None
    dtype = statistics_dtype(x)
    mean, var = (
        statistic.detach().to(dtype, copy=True).flatten()
        for statistic in (layer.running_mean, layer.running_var)
    )
    return mean, var
