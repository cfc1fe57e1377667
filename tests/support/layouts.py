"""Layouts of a feature map in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def _sliced(x: Tensor) -> Tensor:
    """View of every second element of a tensor that is larger along its last dimension."""
    wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1]))
    wide[..., ::2] = x
    return wide[..., ::2]


def _channels_last(x: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if x.dim() in formats:
        return x.contiguous(memory_format=formats[x.dim()])
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def _offset(x: Tensor) -> Tensor:
    """Contiguous copy of x that starts one element into its storage."""
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


def _negated(x: Tensor) -> Tensor:
    """View whose memory holds the negated values, like ``z.conj().imag``."""
    return torch._neg_view(-x)


#: name: function that returns a tensor with equal values in this layout.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": _channels_last,
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "sliced": _sliced,
    "offset": _offset,
    "negated": _negated,
}


def feature_map(
    samples: int,
    channels: int,
    size: int,
    dtype: torch.dtype,
    mean: float,
    layout: str = "channels_first",
) -> Tensor:
    """Noise of standard deviation 1 about a mean, (samples, channels, size)."""
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(samples, channels, size, dtype=torch.float64, generator=generator)
    x = (x + mean).to(dtype)
    return _channels_last(x) if layout == "channels_last" else x
