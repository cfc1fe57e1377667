"""Hostile inputs: a careless normalization fails on them, a careful one does not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .layers import Call

#: The largest number of elements of a hostile input.
_MOST = 1 << 24

#: Elements of a plane whose sums of squares leave float16, whose largest number is 65,504.
_LARGE = (256, 258)


def probe(call: Call) -> Tensor:
    """Return an input whose variances lie around the layer's eps, so that eps shows."""
    x = call.input.double()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    scales = math.sqrt(call.exact.eps or 1e-8) * torch.logspace(-1, 1, x.shape[1]).double()
    return noise * scales.reshape(1, -1, *(1 for _ in x.shape[2:])) + 0.1


def hostile(
    call: Call, dtype: np.dtype[np.generic], any_size: bool
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and inputs on which careless arithmetic in this dtype fails."""
    yield "own input", call.input.double()
    if call.frozen:
        return
    shape, half = call.input.shape, dtype == np.float16
    generator = torch.Generator().manual_seed(0)

    def normal(mean: float, std: float, *sizes: int) -> Tensor:
        noise = torch.randn(sizes, generator=generator, dtype=torch.float64)
        return (noise * std + mean).float().double()

    yield "small variance", normal(0, 0.1 * math.sqrt(call.exact.eps or 1e-8), *shape)
    constant = 300.0 if half else 255.3
    yield f"constant {constant:g}", normal(constant, 0, *shape)
    if not half:
        yield "mean 1000, std 0.01", normal(1000, 0.01, *shape)
        return
    yield "mean 300, std 8", normal(300, 8, *shape)
    planes = call.input.dim() == 4 and not isinstance(call.layer, (nn.LayerNorm, nn.RMSNorm))
    if planes and any_size and shape[1] * math.prod(_LARGE) <= _MOST:
        yield f"planes of {math.prod(_LARGE)}", normal(0, 1, 1, shape[1], *_LARGE)


def other_batch(x: Tensor) -> Tensor:
    """The input with one sample more."""
    return torch.cat((x, x[:1].flip(-1)))


def other_size(x: Tensor) -> Tensor:
    """The input with one element more along each spatial dimension."""
    for dim in range(2, x.dim()):
        x = torch.cat((x, x.narrow(dim, 0, 1) + 0.5), dim)
    return x
