"""Running moments: reading and updating the buffers of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.grid import statistics_dtype, update_running


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


@torch.no_grad()
def update_running_moments(
    layer: Any,
    mean: Tensor,  # (C,)
    var: Tensor,  # (C,), unbiased
    share: float | Tensor,
) -> None:
    """Move ``running_mean`` and ``running_var`` towards the moments of a batch."""
    statistics = layer.running_mean.view(-1), layer.running_var.view(-1)
    update_running(statistics, mean, var, share)
