"""Unwrap: the model inside a compiled or data-parallel wrapper."""

from __future__ import annotations

from torch import nn

_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """Module that was given to torch.compile, DataParallel or DistributedDataParallel."""
    while True:
        if isinstance(model, _PARALLEL):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model
