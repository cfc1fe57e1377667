"""Triton kernels under Triton's interpreter, against float64. test_triton.py runs these cases."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from momentnorm import Pool
from momentnorm.core.backends import reference
from momentnorm.core.backends import triton as backend
from momentnorm.core.backends.triton import kernels
from momentnorm.core.tail import ACTIVATIONS, Tail
from support.tolerances import GRADIENT, OUTPUT, assert_within
from support.triton_calls import (  # noqa: F401 - two are fixtures
    LAYOUTS,
    MARKS,
    PATHS,
    SUMS,
    check,
    forget,
    go,
    laid_out,
    launched_fixture,
    operands,
    path_fixture,
)

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
POOLS = {
    "instance": Pool(1, 1),
    "group": Pool(1, 3),
    "layer": Pool(1, None),
    "batch": Pool(None, 1),
    "rectangle": Pool(2, 2),
}

pytestmark = MARKS


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_every_pool_every_way(pool, layout, path, launched):
    x, gradient, _, weight, bias = operands((2, 6, 9, 15), torch.float32, layout)
    check(pool, x, gradient, weight, bias)
    visits = {"normalize", "normalize_backward", "parameter_gradients"}
    cuts = {"partial_moments", "merge_moments", "apply"}
    cuts |= {"partial_sums", "merge_sums", "apply_gradient", "parameter_gradients"}
    assert set(launched) <= (cuts if path == "cut" else visits)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["", *ACTIVATIONS])
def test_every_tail(activation, dtype, layout, monkeypatch):
    path = PATHS[(ACTIVATIONS.index(activation) if activation else 0) % 3]
    go(path, monkeypatch)
    x, gradient, residual, weight, bias = operands((2, 3, 67), dtype, layout)
    tail = Tail(activation, 0.1, residual)
    check(Pool(1, 1), x, gradient, weight, bias, tail, needs_residual=bool(activation))
    forget()


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 7, 1), (1, 3, 130), (3, 40, 2, 2), (2, 4, 3, 2, 5)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes(shape, layout):
    for pool in (Pool(1, 1), Pool(None, 1), Pool(1, None)):
        if shape[2:] == (1,) and pool != Pool(1, None):
            continue  # of one value: no variance
        if shape != (1, 1, 1):
            x, gradient, _, weight, bias = operands(shape, torch.float32, layout)
            check(pool, x, gradient, weight, bias)
    x, _, residual, weight, bias = operands(shape, torch.float32, layout)
    mean, scale, shift = torch.randn(3, *shape[:2], dtype=torch.float64)
    right = reference.apply(x.double(), mean, scale, shift, Tail("silu", 0.1, residual.double()))
    assert_within(backend.apply(x, mean, scale, shift, Tail("silu", 0.1, residual)), right, OUTPUT)


@pytest.mark.parametrize("parameters", ["none", "weight", "bias", "half"])
def test_parameters(parameters, path):
    x, gradient, _, weight, bias = operands((2, 4, 70), torch.bfloat16, "contiguous")
    if parameters == "half":
        weight, bias = weight.bfloat16(), bias.bfloat16()
    given = (
        weight if parameters in ("weight", "half") else None,
        bias if parameters in ("bias", "half") else None,
    )
    _, _, _, (_, _, dweight, dbias, _) = check(
        Pool(1, 2), x, gradient, *given, Tail("tanh"), needs_residual=False
    )
    expected = {"none": torch.float64, "half": torch.bfloat16}.get(parameters, torch.float32)
    assert dweight.dtype == dbias.dtype == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", ["", "gelu"])
def test_given_coefficients(layout, activation, path):
    x, gradient, residual, *_ = operands((2, 3, 5, 20), torch.float32, layout)
    mean, scale, shift, a, b, c = torch.randn(6, 2, 3, dtype=torch.float64)
    scale = scale.to(torch.float64).t().contiguous().t()  # not laid out as the kernels read
    tail = Tail(activation, 0.1, residual)
    wide, wide_tail = (x.double(), mean, scale, shift), tail._replace(residual=residual.double())
    assert_within(
        backend.apply(x, mean, scale, shift, tail), reference.apply(*wide, wide_tail), OUTPUT
    )
    found = backend.gradient_sums(gradient, x, mean, scale, shift, tail)
    exact = reference.gradient_sums(gradient.double(), *wide, wide_tail)
    for sums, right in zip(found, exact, strict=True):
        assert_within(sums.float(), right, SUMS)
    arguments = (mean, a, b, c, scale, shift)
    dx, dresidual = backend.apply_gradient(gradient, x, *arguments, tail, True)
    exact = reference.apply_gradient(gradient.double(), x.double(), *arguments, wide_tail, True)
    assert_within(dx, exact[0], GRADIENT)
    assert_within(dresidual, exact[1], GRADIENT)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_moments_of_planes(layout, path):
    x = operands((2, 3, 7, 40), torch.float32, layout, mean=1000.0)[0]
    for found, exact in zip(backend.moments(x), reference.moments(x), strict=True):
        assert (found / exact - 1).abs().max() < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_may_be_the_input(layout, path):
    x, _, _, weight, bias = operands((2, 4, 9, 8), torch.float32, layout)
    expected, _, _ = backend.normalize(x, weight, bias, 1e-5, Pool(1, 2))
    y, _, _ = backend.normalize(x, weight, bias, 1e-5, Pool(1, 2), out=x)
    assert y is x
    assert torch.equal(x, expected)


def test_no_plane_knows_its_neighbours(path):
    for layout in LAYOUTS:
        x, _, _, weight, bias = operands((1, 4, 70), torch.float32, layout)
        y, _, _ = backend.normalize(x, weight, bias, 1e-5)
        x[0, 1, 7], x[0, 2] = torch.nan, 1e30 * x[0, 2]  # the second is added at another scale
        z, _, _ = backend.normalize(x, weight, bias, 1e-5)
        assert z[0, 1].isnan().all()
        assert torch.equal(z[0, [0, 3]], y[0, [0, 3]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_constant_is_the_bias(layout, path):
    bias = torch.tensor([0.25, -1.0])
    for value in (255.0, -0.1, 1e-30, 0.0, 3e37):
        x = laid_out(torch.full((2, 2, 9, 13), value), layout)
        for eps in (1e-5, 1e-12, 0.0):
            y, _, _ = backend.normalize(x, None, bias, eps)
            assert torch.equal(y, bias.view(2, 1, 1).expand_as(y))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e15, 1e30])
def test_what_float32_cannot_square(size, path):
    x, gradient, _, weight, bias = operands((2, 2, 100), torch.float32, "contiguous")
    x *= size
    check(Pool(1, 1), x, gradient, weight, bias, eps=0.0)


def test_overflowing_products_of_gradients(path):
    for layout in LAYOUTS:
        x, gradient, *_ = operands((1, 2, 100), torch.float32, layout)
        x, gradient = x * 1e20, gradient * 1e20
        mean, _ = reference.moments(x)
        found = backend.gradient_sums(gradient, x, mean)
        exact = reference.gradient_sums(gradient, x, mean)
        for sums, right in zip(found, exact, strict=True):
            largest = right.abs().max()
            assert_within((sums / largest).float(), right / largest, SUMS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_x_hat_that_overflows_outside_a_plane(layout, path):
    # Behind the last element of a plane, (0 - mean) / std overflows and the gradient is 0.
    x = laid_out(torch.full((2, 2, 9, 13), 3e37), layout)
    gradient = laid_out(torch.randn(2, 2, 9, 13), layout)
    _, mean, var = backend.normalize(x, None, None, 1e-12)
    dx, _, dweight, _, _ = backend.normalize_backward(gradient, x, mean, var, None, None, 1e-12)
    centred = gradient.double() - gradient.double().mean((2, 3), keepdim=True)
    assert_within(dx, 1e6 * centred, GRADIENT)
    assert not dweight.any()


def test_gradients_and_residuals_of_other_strides():
    x, gradient, residual, weight, bias = operands((2, 3, 6, 7), torch.float32, "channels_last")
    tail = Tail("relu", 0.1, residual.contiguous())
    check(Pool(1, 1), x, gradient.contiguous(), weight, bias, tail, needs_residual=True)
    ones = torch.ones(()).expand(x.shape)
    check(Pool(1, 1), x, ones, weight, bias, Tail("silu"))


@triton.jit
def _last_offset(
    out, outer, first, start, channels, size, rows, flat: tl.constexpr, last: tl.constexpr
):
    outer = (outer + tl.zeros((1,), tl.int64)).sum(0)
    base, offset = kernels.tile_at(outer, first, start, channels, size, rows, 2, 16, flat, last)
    tl.store(out, base + tl.max(tl.max(offset.to(tl.int64), 1), 0))


def test_offsets_of_more_elements_than_32_bits_count():
    out = torch.zeros(1, dtype=torch.int64)
    _last_offset[(1,)](out, 3, 62, (1 << 28) - 16, 64, 1 << 28, 1 << 28, True, True)
    assert out.item() == 4 * 64 * (1 << 28) - 1
    _last_offset[(1,)](out, 0, 70_000, 48, 64, 1 << 16, 1 << 16, True, False)
    assert out.item() == (70_001 << 16) + 63
    _last_offset[(1,)](out, 1, 62, (1 << 28) - 16, 64, 1 << 27, 1 << 28, False, False)
    assert out.item() == 4 * 64 * (1 << 27) - 1
