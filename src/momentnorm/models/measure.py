"""Measure: differences between two results, and times."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: Number of timed runs, of which the median counts. One run before them is not timed.
RUNS = 5


def now(tensor: Tensor) -> float:
    """Seconds, read after the work on the tensor's device is done."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
    return time.perf_counter()


def largest_difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest relative difference of two tensors in the same place of both lists."""
    return max(map(_difference, actual, expected), default=0.0)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference of two elements, relative to the largest expected one."""
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    if same.all():
        return 0.0
    largest = expected[expected.isfinite()].abs().max() if expected.isfinite().any() else 0.0
    relative = float((actual - expected)[~same].abs().max() / largest)
    return math.inf if math.isnan(relative) else relative


def difference_of_all(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Root mean square of all differences, relative to that of the expected values."""

    def norm(tensors: Iterable[Tensor]) -> float:
        return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))

    gap = norm(a.double() - e.double() for a, e in zip(actual, expected, strict=True))
    if gap == 0:
        return 0.0
    relative = gap / (norm(expected) or math.nan)
    return math.inf if math.isnan(relative) else relative
