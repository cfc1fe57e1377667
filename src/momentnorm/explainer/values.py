"""Values: how tensors are compared, and summed up in a few numbers."""

from __future__ import annotations

import math

from torch import Tensor


def first_of(values: Tensor) -> float:
    """First element of a tensor, as a number."""
    return float(values.detach().flatten()[0])


def largest(values: Tensor) -> float:
    """Largest magnitude among the finite elements; 0.0 without any."""
    values = values.detach()
    values = values[values.isfinite()]
    return values.abs().max().item() if values.numel() else 0.0


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference between two tensors; 0.0 means equal bits, and any NaN equals any NaN."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    same = (found == expected) & (found.signbit() == expected.signbit())
    same |= found.isnan() & expected.isnan()
    if bool(same.all()):
        return 0.0
    difference = (found.double() - expected.double()).abs()[~same]
    if bool(difference.isnan().any()):  # a number on one side, NaN on the other
        return math.inf
    # 0.0 and -0.0 have other bits: report the smallest number above zero.
    return max(difference.max().item(), math.ulp(0.0))


def finite_range(values: Tensor) -> tuple[float, float, float, float] | None:
    """Smallest, largest, mean and standard deviation of the finite elements; None without any."""
    values = values.detach().double().flatten()
    values = values[values.isfinite()]
    if not values.numel():
        return None
    deviation = values.std(correction=0).item()
    return values.min().item(), values.max().item(), values.mean().item(), deviation


def count_not_finite(values: Tensor) -> str:
    """Number of NaN and infinite elements, such as "2 NaN, 1 infinite"; "" if all are finite."""
    found = (("NaN", values.isnan()), ("infinite", values.isinf()))
    counts = [(name, int(where.sum())) for name, where in found]
    return ", ".join(f"{count} {name}" for name, count in counts if count)
