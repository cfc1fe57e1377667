"""The kernels keep the bound of docs/accuracy.md: a quick part of its sweep."""

from __future__ import annotations

from decimal import Decimal, localcontext

import numpy as np
import pytest
import torch
from benchmarks import accuracy, accuracy_bound, accuracy_report
from benchmarks.accuracy import LAYOUTS
from benchmarks.accuracy_bound import DTYPES, NOISE, Exact
from benchmarks.accuracy_report import SMALL

from momentnorm.core import dispatch
from momentnorm.functional import instance_norm

pytestmark = pytest.mark.skipif(
    bool(dispatch.backend_named("cpu").refuses(torch.zeros(1, 1, 2))),
    reason="the CPU kernels are not built, or do not load",
)

#: float64 is judged in something wider.
JUDGED = [
    dtype
    for dtype in DTYPES
    if dtype != torch.float64 or np.finfo(np.longdouble).eps < accuracy_bound.LONG_EPSILON
]


def _decimal(value) -> Decimal:
    high = float(value)
    return Decimal(high) + Decimal(float(value - high))


@pytest.mark.parametrize("dtype", [t for t in JUDGED if t in (torch.float32, torch.float64)])
def test_what_is_called_exact_is(dtype):
    x = (torch.randn(1, 1, 5, 7, dtype=dtype) + 1e6).to(dtype)
    gradient = torch.randn(1, 1, 5, 7, dtype=dtype)
    weight, bias = torch.tensor([[1.5], [0.1]], dtype=dtype)
    exact = Exact(x, gradient, weight, bias, NOISE[dtype])
    with localcontext() as context:
        context.prec = 60
        xs, gs = ([Decimal(v) for v in t.flatten().tolist()] for t in (x, gradient))
        w, b = Decimal(weight.item()), Decimal(bias.item())
        mean = sum(xs) / len(xs)
        var = sum((v - mean) ** 2 for v in xs) / len(xs)
        rstd = 1 / (var + Decimal(accuracy_bound.EPS)).sqrt()
        z = [(v - mean) * rstd for v in xs]
        p, q = sum(gs) / len(gs), sum(g * c for g, c in zip(gs, z, strict=True)) / len(gs)
        y = [w * c + b for c in z]
        dx = [w * rstd * (g - p - c * q) for g, c in zip(gs, z, strict=True)]
        for found, right in ((exact.forward, y), (exact.backward, dx)):
            values = found(slice(0, 35))[0][0]
            error = max(abs(_decimal(v) - r) for v, r in zip(values, right, strict=True))
            assert error < Decimal(torch.finfo(dtype).eps) / 200


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [2, 64, 1024, 16384])
@pytest.mark.parametrize("dtype", JUDGED)
def test_errors_are_within_the_bound(dtype, size, ratio):
    rows = accuracy.measure(dtype, size, ratio)
    for row in rows:
        assert row.share <= 1, row
    for result in ("y", "dx"):
        both = [row for row in rows if row.result == result]
        if both and size >= SMALL:
            best = accuracy_report.cell(both)
            assert best.ours <= 2 * best.torch + 2, both  # epsilons: another order of roundings


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [t for t in JUDGED if t in (torch.float32, torch.float64)])
def test_errors_of_planes_that_begin_otherwise_are_within_the_bound(dtype, layout):
    for length in (1, 128, 1024):
        for row in accuracy.measure_band(dtype, layout, length):
            assert row.share <= 1, row
            if dtype == torch.float32:  # about the first origin alone, up to 28
                assert row.ours <= 5, row


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_constant_plane_has_no_error(dtype, layout):
    bias = torch.tensor([0.25, -1.0], dtype=dtype)
    for size in (3, 130):  # in one block, and in several
        x = torch.full((2, 2, size, size), 255.0, dtype=dtype)
        y = instance_norm(x.contiguous(memory_format=LAYOUTS[layout]), bias=bias)
        assert torch.equal(y, bias.view(2, 1, 1).expand_as(y))
