"""Polynomials of ``csrc/kernels/activations.h``: prints their coefficients and relative errors.

Each is the polynomial of least largest error, found by reweighted least squares at Chebyshev's
points: a point's weight grows with the error there until all peaks are equally high.
"""

from __future__ import annotations

from collections.abc import Callable

import mpmath as mp
import numpy as np


def fit(
    function: Callable[[mp.mpf], mp.mpf],
    begin: float,
    end: float,
    degree: int,
    importance: Callable[[float], float],
) -> tuple[np.ndarray, float]:
    """Coefficients from the constant on, and the largest of ``importance * error``."""
    points = np.cos(np.pi * (np.arange(400) + 0.5) / 400)
    points = (begin + end) / 2 + (end - begin) / 2 * points
    values = np.array([float(function(mp.mpf(point))) for point in points])
    weights = np.array([importance(point) for point in points])
    powers = np.vander(points, degree + 1, increasing=True)
    share, best, smallest = np.ones(len(points)), np.zeros(degree + 1), np.inf
    for _ in range(60):
        w = weights * np.sqrt(share)
        coefficients = np.linalg.lstsq(powers * w[:, None], values * w, rcond=None)[0]
        errors = np.abs(powers @ coefficients - values) * weights
        if errors.max() < smallest:
            best, smallest = coefficients, errors.max()
        share *= errors / errors.max() + 1e-3
        share /= share.sum()
    return best, float(smallest)


def show(name: str, result: tuple[np.ndarray, float]) -> None:
    coefficients, error = result
    print(f"{name}: relative error {error:.1e}")
    print("  " + ", ".join(f"{coefficient:.9e}f" for coefficient in coefficients))


def main() -> None:
    mp.mp.dps = 40

    # exp(r) = 1 + r + r^2 p(r), for r within ln(2) / 2
    half = float(mp.log(2)) / 2
    show(
        "exp",
        fit(lambda r: (mp.expm1(r) - r) / r**2, -half, half, 4, lambda r: r * r / np.exp(r)),
    )

    # erfc(x) = exp(-x^2) t p(t), t = 1 / (1 + 0.35 x), for x from 0 to 12
    def scaled(t: mp.mpf) -> mp.mpf:
        x = (1 / t - 1) / mp.mpf("0.35")
        return mp.erfc(x) * mp.exp(x * x) / t

    show("erfc", fit(scaled, 1 / (1 + 0.35 * 12), 1, 9, lambda t: 1 / float(scaled(mp.mpf(t)))))

    # tanh(z) = z + z s p(s), s = z^2, for z from 0 to 0.625
    def rest(s: mp.mpf) -> mp.mpf:
        z = mp.sqrt(s)
        return (mp.tanh(z) - z) / (z * s)

    show("tanh", fit(rest, 1e-6, 0.625**2, 4, lambda s: s))


if __name__ == "__main__":
    main()
