"""Tolerances: the largest distance of a result from its formula in float64, for every test.

The statistics are exact to float64 on every path, so an output is wrong only by the rounding of
its own dtype: one rounding, plus a few in the last multiply-add where the arithmetic is in float32.
A tolerance is in units of that dtype's epsilon, relative to the largest magnitude of the result,
since (x - mean) * scale + bias may cancel to anything.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: dtype: units of epsilon.
OUTPUT = {
    torch.float64: 64,  # a sum of a few thousand elements in another order
    torch.float32: 8,  # three operations, each rounded to float32
    torch.bfloat16: 1,  # computed in a wider type, rounded once
    torch.float16: 1,
}

#: The input's gradient: three terms that may cancel, each rounded like an output.
GRADIENT = {dtype: 4 * units for dtype, units in OUTPUT.items()}

#: For comparisons with torch's own layer. Its sums over a plane are in the dtype of the input, or
#: in float32 for half types, whose weight, statistics and result it also rounds.
AGAINST_TORCH = {
    torch.float64: 256,
    torch.float32: 64,
    torch.bfloat16: 4,
    torch.float16: 4,
}

#: Relative error of a plane's variance, and error of its mean in standard deviations. Kernels sum
#: blocks of a few hundred elements in float32, and merge the blocks in float64.
STATISTICS = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.bfloat16: 1e-6,
    torch.float16: 1e-6,
}


def assert_within(actual: Tensor, expected: Tensor, units: dict[torch.dtype, int]) -> None:
    """Check that ``actual`` is within so many roundings of ``expected``, which is float64."""
    assert actual.shape == expected.shape
    wanted = expected.detach().double()
    largest = max(wanted.abs().max().item(), 1.0) if wanted.numel() else 1.0
    bound = units[actual.dtype] * torch.finfo(actual.dtype).eps * largest
    torch.testing.assert_close(actual.detach().double(), wanted, rtol=0, atol=bound)
