"""What stands around a model and is not part of it."""

from __future__ import annotations

from torch import nn

_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that a compiler, or data parallelism, was given."""
    while True:
        if isinstance(model, _PARALLEL):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model
