"""Example: the worked example of tutorials, two samples of two channels of 2 x 2 pixels."""

from __future__ import annotations

import torch

from .errors import TraceMismatchError
from .steps import Check
from .trace import Trace

#: Input, (N, C, H, W) = (2, 2, 2, 2).
X = [
    [[[1.0, 6.0], [9.0, 4.0]], [[12.0, 18.0], [13.0, 11.0]]],
    [[[2.0, 7.0], [3.0, 8.0]], [[19.0, 17.0], [15.0, 11.0]]],
]

#: Printed values and their tolerance for each step of Instance Normalization. The printed output
#: was computed from rounded deviations, so its last decimal is off by one or two.
PRINTED = {
    "mean": ([[5.0, 13.5], [5.0, 15.5]], 0.0),
    "var": ([[8.5, 7.25], [6.5, 8.75]], 0.0),
    "std": ([[2.9155, 2.6926], [2.5495, 2.9580]], 5e-5),
    "x_hat": (
        [
            [[[-1.3720, 0.3430], [1.3720, -0.3430]], [[-0.5571, 1.6713], [-0.1857, -0.9285]]],
            [[[-1.1767, 0.7845], [-0.7845, 1.1767]], [[1.1832, 0.5071], [-0.1690, -1.5213]]],
        ],
        2e-4,
    ),
}


def compare(trace: Trace) -> list[Check]:
    """Compare the steps of Instance Normalization with the printed values.

    Raises:
        TraceMismatchError: a step differs by more than its tolerance.
    """
    checks = []
    for name, (printed, tolerance) in PRINTED.items():
        expected = torch.tensor(printed, dtype=torch.float64)
        difference = (trace[name].values.double() - expected).abs().max().item()
        if difference > tolerance:
            raise TraceMismatchError(f"{name} differs from the printed one by {difference:.3g}")
        rounded = f", to its printed digits ({tolerance:g})" if tolerance else ""
        checks.append(Check(f"{name} is the published one{rounded}"))
    return checks
