"""Calls of the Triton backend under its interpreter, checked against float64.

``TRITON_INTERPRET=1`` has to be set before the first import of Triton. So test_triton.py runs the
cases, ``tests/core/triton_*cases.py``, in a process of their own.
"""

from __future__ import annotations

import pytest
import torch

from momentnorm import Pool
from momentnorm.core.backends import reference
from momentnorm.core.backends import triton as backend
from momentnorm.core.backends.triton import launch
from momentnorm.core.tail import PLAIN
from support.tolerances import GRADIENT, OUTPUT, STATISTICS, assert_within

LAYOUTS = ("contiguous", "channels_last")
#: Tolerances of sums of products in float32, which bfloat16 results round.
SUMS = {torch.float32: 32, torch.bfloat16: 1}
#: Ways of a visit: held in one tile, repeated over tiles, or cut into chunks.
PATHS = ("held", "repeated", "cut")

#: Marks of the files with cases.
MARKS = [
    pytest.mark.skipif(not backend.INTERPRETED, reason="needs TRITON_INTERPRET=1"),
    # A GPU does not report overflows and divisions by zero.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy"),
]


def forget():
    for cached in (launch.visit, launch.cut, launch.piece, launch.parameter_gradients):
        cached.cache_clear()


def go(path, monkeypatch):
    """Make small shapes take a way that large shapes take."""
    if path != "held":
        monkeypatch.setattr(launch, "HELD", 0)
        monkeypatch.setattr(launch, "LINE", 8)
        monkeypatch.setattr(launch, "REPEATED", 128)
        monkeypatch.setattr(launch, "PIECE", 512)
        monkeypatch.setattr(launch, "PROGRAMS", 4)
        monkeypatch.setattr(launch, "PIECES", 3)
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 0 if path != "cut" else 1 << 40)
    forget()


@pytest.fixture(name="path", params=PATHS)
def path_fixture(request, monkeypatch):
    go(request.param, monkeypatch)
    yield request.param
    forget()


@pytest.fixture(name="launched")
def launched_fixture(monkeypatch):
    """Names of the kernels that are launched."""
    names = []
    call = launch.Launch.__call__

    def spy(self, *operands):
        names.append(self.kernel.fn.__name__)
        call(self, *operands)

    monkeypatch.setattr(launch.Launch, "__call__", spy)
    return names


def laid_out(x, layout):
    return x if layout == "contiguous" else x.movedim(1, -1).contiguous().movedim(-1, 1)


def operands(shape, dtype, layout, mean=3.0):
    x, gradient, residual = (
        laid_out((torch.randn(shape) + centre).to(dtype), layout) for centre in (mean, 0, 0.5)
    )
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])
    return x, gradient, residual, weight, bias


def check(pool, x, gradient, weight, bias, tail=PLAIN, eps=1e-5, needs_residual=False):
    """Forward and backward of one call."""
    wide = [None if t is None else t.double() for t in (x, gradient, weight, bias, tail.residual)]
    exact_tail = tail._replace(residual=wide[4])
    y, mean, var = backend.normalize(x, weight, bias, eps, pool, tail)
    right = reference.normalize(wide[0], *wide[2:4], eps, pool, exact_tail)
    assert_within(y, right[0], OUTPUT)
    assert y.stride() == x.stride()
    for found, exact in ((mean, right[1]), (var, right[2])):
        assert found.dtype == torch.float64
        assert found.shape == exact.shape
    statistics = STATISTICS[x.dtype]
    assert ((mean - right[1]) / right[2].sqrt()).abs().max() < statistics
    assert (var / right[2] - 1).abs().max() < statistics
    results = backend.normalize_backward(
        gradient, x, mean, var, weight, bias, eps, pool, tail, needs_residual
    )
    exact = reference.normalize_backward(
        wide[1], wide[0], *right[1:], *wide[2:4], eps, pool, exact_tail, needs_residual
    )
    dx, dresidual, dweight, dbias, sums = results
    assert_within(dx, exact[0], GRADIENT)
    assert dx.stride() == x.stride()
    assert (dresidual is None) == (not needs_residual)
    if dresidual is not None:
        assert_within(dresidual, exact[1], OUTPUT)
    for found, wanted in ((dweight, exact[2]), (dbias, exact[3])):
        assert_within(found.float() if found.dtype == torch.float64 else found, wanted, SUMS)
    assert (sums is None) == (pool != Pool(1, 1))
    if sums is not None:
        assert_within(sums.float(), exact[4], SUMS)
    return y, mean, var, results
