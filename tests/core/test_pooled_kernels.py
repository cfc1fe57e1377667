"""Kernels of pools of several planes: equal bits on every machine, and right results."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from momentnorm.core.backends import cpu, reference
from momentnorm.core.pool import BATCH, Pool
from momentnorm.core.tail import PLAIN, Tail
from support.layouts import feature_map
from support.tolerances import OUTPUT, assert_within

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("channels_first", "channels_last")
# Pools of 4 samples and 48 channels: groups, layers, batches, and rectangles.
POOLS = {
    "groups of 2": Pool(1, 2),
    "groups of 16": Pool(1, 16),
    "layer": Pool(1, None),
    "batch": BATCH,
    "half a batch": Pool(2, 1),
    "rectangle": Pool(2, 3),
    "everything": Pool(None, None),
}
# Sizes around the limits of the kernels. Planes below 128 elements are small, runs change at 64 and
# 1024 elements, and a block has 8192.
SIZES = (1, 2, 5, 49, 127, 128, 129, 8193)


def pooled_kernels(
    x: Tensor,
    gradient: Tensor,
    weight: Tensor,
    bias: Tensor,
    pool: Pool,
    tail: Tail = PLAIN,
    backend: ModuleType = cpu,
) -> dict[str, Tensor]:
    y, mean, var = backend.normalize(x, weight, bias, 1e-5, pool, tail)
    dx, dresidual, dweight, dbias, sums = backend.normalize_backward(
        gradient, x, mean, var, weight, bias, 1e-5, pool, tail, needs_residual=True
    )
    assert sums is None
    return {
        "y": y,
        "mean": mean,
        "var": var,
        "dx": dx,
        "dresidual": dresidual,
        "dweight": dweight,
        "dbias": dbias,
    }


def pooled_operands(
    size: int, dtype: torch.dtype, layout: str, mean: float = 3.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x, gradient and residual with 4 samples and 48 channels, weight and bias."""
    maps = (feature_map(4, 48, size, dtype, centre, layout) for centre in (mean, 0.0, 0.5))
    parameters = (feature_map(1, 1, 48, dtype, centre).flatten() for centre in (1.0, 0.0))
    return (*maps, *parameters)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("size", SIZES)
def test_pools_have_the_same_bits_on_every_instruction_set_and_thread_count(
    size, pool, dtype, layout, restored
):
    x, gradient, residual, *parameters = pooled_operands(size, dtype, layout)
    for tail in (PLAIN, Tail("silu", 0.1, residual)):
        first = None
        for instruction_set in cpu.instruction_sets():
            for threads in (1, 2, 3):
                cpu.choose_instruction_set(instruction_set)
                torch.set_num_threads(threads)
                results = pooled_kernels(x, gradient, *parameters, pool, tail)
                first = first or results
                for name, tensor in first.items():
                    assert torch.equal(tensor, results[name]), (instruction_set, threads, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("size", SIZES)
def test_pools_agree_with_the_reference(size, pool, mean, dtype, layout):
    operands = pooled_operands(size, dtype, layout, mean)
    x, gradient, residual, weight, bias = operands
    exact = [operand.double() for operand in operands]
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    last = 0.51 * torch.finfo(dtype).eps
    samples, channels = pool.sizes(4, 48)
    for tail, exact_tail in (
        (PLAIN, PLAIN),
        (Tail("silu", 0.1, residual), Tail("silu", 0.1, exact[2])),
        (Tail("", 0.1, residual), Tail("", 0.1, exact[2])),
    ):
        got = pooled_kernels(x, gradient, weight, bias, pool, tail)
        wanted = pooled_kernels(exact[0], exact[1], *exact[3:], pool, exact_tail, reference)
        # Bounds are roundings relative to the largest term. In float64 the rounding of the mean is
        # added. Half types round once more.
        rstd = torch.rsqrt(wanted["var"] + 1e-5).max()
        far = 1 + mean * rstd if dtype == torch.float64 else 1
        scale = rstd * exact[3].abs().max()
        terms = {
            "y": 10 * scale * (1 + 1 / rstd) + exact[4].abs().max() + 5,
            "mean": 1.0,
            "var": wanted["var"].max() + 1e-6,
            "dx": 100 * scale,
            "dresidual": 20.0,
            "dweight": 40.0 * 4 * size,
            "dbias": 10.0 * 4 * size,
        }
        for name, tensor in wanted.items():
            error = (got[name].double() - tensor).abs()
            bound = 8 * unit * terms[name] * far * 8
            if name not in ("mean", "var"):
                bound = bound + last * tensor.abs()
            assert got[name].shape == tensor.shape
            assert (error <= bound).all(), (name, tail.activation, float((error / bound).max()))
    assert got["mean"].shape == (4 // samples, 48 // channels)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", [Pool(1, 2), Pool(1, 16), Pool(1, None)], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_a_pool_of_one_sample_does_not_see_its_batch(size, pool, layout):
    x, gradient, _, *parameters = pooled_operands(size, torch.float32, layout)
    together = pooled_kernels(x, gradient, *parameters, pool)
    for sample in range(4):
        here = slice(sample, sample + 1)
        alone = pooled_kernels(x[here], gradient[here], *parameters, pool)
        for name in ("y", "mean", "var", "dx"):
            assert torch.equal(alone[name], together[name][here]), (sample, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("size", [1, 49, 300])
def test_pools_in_place(size, pool, layout):
    x, _, residual, *parameters = pooled_operands(size, torch.float32, layout)
    for tail in (PLAIN, Tail("relu", 0.1, residual)):
        y, _, _ = cpu.normalize(x, *parameters, 1e-5, pool, tail)
        over = x.clone(memory_format=torch.preserve_format)
        written, _, _ = cpu.normalize(over, *parameters, 1e-5, pool, tail, over)
        assert written is over
        assert torch.equal(over, y)


@pytest.mark.parametrize("value", [0.0, 0.1, 255.0, -3e38, 1e-40])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("size", [1, 49, 300, 9000])
def test_a_constant_pool_is_exactly_the_bias(size, pool, layout, value):
    x, _, _, weight, bias = pooled_operands(size, torch.float32, layout)
    for dtype in DTYPES:
        finite = torch.full_like(x, value).to(dtype).clamp(-6e4, 6e4)
        shift = bias.to(dtype)
        y, _, var = cpu.normalize(finite, weight.to(dtype), shift, 1e-5, pool)
        assert torch.equal(y, shift.view(1, 48, 1).expand(y.shape))
        assert not var.any()


@pytest.mark.parametrize("mean_over_std", [0, 1e3, 1e5, 1e6])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("size", [5, 49, 1000])
def test_pools_are_accurate_far_from_zero(size, pool, layout, mean_over_std):
    x = feature_map(4, 48, size, torch.float32, mean_over_std, layout)
    y, _, _ = cpu.normalize(x, None, None, 1e-5, pool)
    exact, _, _ = reference.normalize(x.double(), None, None, 1e-5, pool)
    error = (y.double() - exact).abs() / (1 + exact.abs())
    assert error.max() <= 4 * 2**-24


@pytest.mark.parametrize("scale", [1e20, 1e37, 1e-25])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize("size", [5, 49, 1000])
def test_pools_of_any_magnitude(size, pool, layout, scale):
    x = scale * feature_map(4, 48, size, torch.float32, 0.5, layout)
    y, _, _ = cpu.normalize(x, None, None, 1e-60, pool)
    exact, _, _ = reference.normalize(x.double(), None, None, 1e-60, pool)
    torch.testing.assert_close(y.double(), exact, rtol=1e-6, atol=1e-6)


def test_uneven_pools_are_refused():
    with pytest.raises(ValueError, match="does not divide 48 channels"):
        cpu.normalize(torch.zeros(4, 48, 5), None, None, 1e-5, Pool(1, 5))


# Given moments


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("activation", ["", "silu"])
@pytest.mark.parametrize("size", [1, 3, 49, 127, 128, 1000, 9000])
@pytest.mark.parametrize("samples", [1, 3])
def test_given_moments(layout, dtype, activation, size, samples):
    channels = 37
    x = feature_map(samples, channels, size, dtype, 300.0, layout)
    mean = 300 + torch.randn(channels, dtype=torch.float64)
    var = torch.rand(channels, dtype=torch.float64) + 0.1
    parameters = [torch.rand(channels).to(dtype) for _ in range(2)]
    residual = torch.randn(samples, channels, size).to(dtype) if activation else None
    tail = Tail(activation, 0.1, residual) if activation else PLAIN
    for weight, bias in ((None, None), parameters, (parameters[0], None)):
        y = cpu.normalize_with(x, mean, var, weight, bias, 1e-5, tail)
        twins = [None if values is None else values.double() for values in (weight, bias)]
        exact_tail = tail._replace(residual=residual.double()) if activation else PLAIN
        exact = reference.normalize_with(x.double(), mean, var, *twins, 1e-5, exact_tail)
        assert_within(y, exact, OUTPUT)
        assert torch.equal(
            cpu.normalize_with(x.clone(), mean, var, weight, bias, 1e-5, tail, out=x.clone()), y
        )
