"""Base: the class that all layers inherit."""

from __future__ import annotations

from typing import NoReturn

from torch import nn


class Layer(nn.Module):
    """A layer of this library. ``torch.jit.script`` refuses it in one line."""

    def __prepare_scriptable__(self) -> NoReturn:
        # torch.jit.script calls this method of each module before it compiles anything.
        raise RuntimeError(
            f"torch.jit.script does not take momentnorm.{type(self).__name__}: call "
            "momentnorm.restore(model) first, which gives torch's own layers back, or use "
            "torch.export or torch.jit.trace"
        )
