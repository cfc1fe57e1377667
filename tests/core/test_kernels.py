"""C++ kernels: equal bits on every instruction set, thread count and batch, and right results."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from momentnorm import functional
from momentnorm.core.backends import cpu, reference
from momentnorm.core.tail import ACTIVATIONS, PLAIN, Tail
from support.layouts import feature_map

pytestmark = pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())

ROOT = Path(__file__).parents[2]
#: Inputs for which the fuzz target once failed.
FAILED_INPUTS = sorted((ROOT / "tests/data/fuzz").glob("kernels-*.bin"))
# Sizes around the number of lanes (16), a chunk (1024) and a block (8192), and of several blocks.
SIZES = (1, 2, 3, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 8191, 8192, 8193, 20000)
GRIDS = ((1, 1), (2, 3), (1, 5), (2, 48))
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
LAYOUTS = ("channels_first", "channels_last")


def all_kernels(
    x: Tensor, gradient: Tensor, weight: Tensor, bias: Tensor, tail: Tail = PLAIN
) -> dict[str, Tensor]:
    y, mean, var = cpu.normalize(x, weight, bias, 1e-5, tail=tail)
    dx, dresidual, dweight, dbias, (sums, weighted_sums) = cpu.normalize_backward(
        gradient, x, mean, var, weight, bias, 1e-5, tail=tail, needs_residual=True
    )
    return {
        "y": y,
        "mean": mean,
        "var": var,
        "dx": dx,
        "dresidual": dresidual,
        "dweight": dweight,
        "dbias": dbias,
        "sums": sums,
        "weighted_sums": weighted_sums,
        "apply": cpu.apply(x, mean, var, mean, tail),
        "apply_gradient": cpu.apply_gradient(gradient, x, mean, var, mean, var, var, mean, tail)[0],
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_same_bits_on_every_instruction_set_and_thread_count(size, grid, dtype, layout, restored):
    x, gradient = (feature_map(*grid, size, dtype, mean, layout) for mean in (3.0, 0.0))
    weight, bias = (feature_map(1, 1, grid[1], dtype, mean).flatten() for mean in (1.0, 0.0))
    results = {}
    for instruction_set in cpu.instruction_sets():
        for threads in (1, 2, 3):
            cpu.choose_instruction_set(instruction_set)
            torch.set_num_threads(threads)
            results[instruction_set, threads] = all_kernels(x, gradient, weight, bias)
    (_, first), *others = results.items()
    for setting, other in others:
        for name, tensor in first.items():
            assert torch.equal(tensor, other[name]), (setting, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["", *ACTIVATIONS])
@pytest.mark.parametrize("size", [17, 9001])
def test_same_bits_through_a_tail(size, activation, dtype, layout, restored):
    x, gradient, residual = (
        feature_map(2, 3, size, dtype, mean, layout) for mean in (3.0, 0.0, 0.5)
    )
    weight, bias = (feature_map(1, 1, 3, dtype, mean).flatten() for mean in (1.0, 0.0))
    tail = Tail(activation, 0.1, residual)
    first = None
    for instruction_set in cpu.instruction_sets():
        for threads in (1, 3):
            cpu.choose_instruction_set(instruction_set)
            torch.set_num_threads(threads)
            results = all_kernels(x, gradient, weight, bias, tail)
            first = first or results
            for name, tensor in first.items():
                assert torch.equal(tensor, results[name]), (instruction_set, threads, name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_to_the_last_digits(activation):
    """Activations in float32, with errors relative to the larger of result and 1e-3."""
    z = torch.cat([torch.linspace(-90, 90, 20001), torch.linspace(-1, 1, 20001)])
    exact = z.double().requires_grad_()
    wanted = reference.activate(exact, activation, 0.1)
    (slope,) = torch.autograd.grad(wanted.sum(), exact)
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    x, tail = z.view(1, 1, -1), Tail(activation, 0.1)
    y = cpu.apply(x, zero, one, zero, tail).flatten()
    gradient, _ = cpu.apply_gradient(torch.ones_like(x), x, zero, one, zero, zero, one, zero, tail)
    for got, expected, bound in ((y, wanted, 1e-6), (gradient.flatten(), slope, 1e-4)):
        error = (got.double() - expected).abs() / expected.abs().clamp(min=1e-3)
        assert error[z != 0].max() <= bound  # at 0 a ReLU has two slopes


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tail_poisons_only_its_own_plane(layout, activation):
    x = feature_map(1, 3, 2000, torch.float32, 0.0, layout)
    residual, gradient = torch.zeros_like(x), torch.ones_like(x)
    residual[0, 1, 77] = torch.nan
    gradient[0, 2, 1999] = torch.inf
    results = all_kernels(
        x, gradient, torch.ones(3), torch.zeros(3), Tail(activation, 0.1, residual)
    )
    assert results["y"].isnan().sum() == 1
    assert results["dx"][0, 0].isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 65, 1025, 20000])
def test_a_sample_does_not_see_its_batch(size, dtype, layout):
    x, gradient = (feature_map(5, 3, size, dtype, mean, layout) for mean in (3.0, 0.0))
    weight, bias = (feature_map(1, 1, 3, dtype, 0.0).flatten() for _ in range(2))
    together = all_kernels(x, gradient, weight, bias)
    for sample in range(5):
        alone = all_kernels(x[sample : sample + 1], gradient[sample : sample + 1], weight, bias)
        for name in alone.keys() - {"dweight", "dbias"}:  # sums over the batch
            assert torch.equal(alone[name], together[name][sample : sample + 1]), (sample, name)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mean", [0.0, 1000.0])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_every_kernel_agrees_with_the_reference(size, grid, mean, dtype, layout):
    x, gradient = (feature_map(*grid, size, dtype, centre, layout) for centre in (mean, 0.0))
    weight, bias = (feature_map(1, 1, grid[1], dtype, centre).flatten() for centre in (1.0, 0.0))
    got = all_kernels(x, gradient, weight, bias)
    exact, exact_gradient = x.double(), gradient.double()
    exact_mean, var = reference.moments(exact)
    rstd = torch.rsqrt(var + 1e-5)
    scale = rstd * weight.double()
    sums, weighted = reference.gradient_sums(exact_gradient, exact, exact_mean)
    coefficients = (scale, -scale * rstd**2 * weighted / size, -scale * sums / size)
    centred = reference.apply(exact, exact_mean, torch.ones_like(var), torch.zeros_like(var))
    wanted = {
        "y": reference.apply(exact, exact_mean, scale, bias.double().expand(grid)),
        "mean": exact_mean,
        "var": var,
        "sums": sums,
        "weighted_sums": weighted,
        "dx": reference.apply_gradient(exact_gradient, exact, exact_mean, *coefficients)[0],
        "dweight": (weighted * rstd).sum(0),
        "dbias": sums.sum(0),
    }
    # Bounds are roundings of the compute type, relative to the largest term. In float64 the
    # rounding of the mean is added. Half types round the result once more.
    if dtype == torch.float64:  # hundreds of additions, in one order of many
        unit = 64 * torch.finfo(torch.float64).eps
    else:
        unit = 4 * torch.finfo(torch.float32).eps
    terms = {
        "y": scale.abs().max() * (centred.abs().max() + 1) + bias.double().abs().max(),
        "mean": torch.tensor(1.0),
        "var": var.max() + 1e-6,
        "sums": size * exact_gradient.abs().max(),
        "weighted_sums": size * exact_gradient.abs().max() * (centred.abs().max() + 1e-3),
        "dx": scale.abs().max() * 4 * exact_gradient.abs().max(),
        "dweight": grid[0] * size * 8 * exact_gradient.abs().max(),
        "dbias": grid[0] * size * exact_gradient.abs().max(),
    }
    if dtype == torch.float64:
        terms = {name: term * (1 + mean * rstd.max()) for name, term in terms.items()}
    for name, tensor in wanted.items():
        error = (got[name].double() - tensor).abs()
        bound = unit * terms[name]
        if name in ("y", "dx", "dweight", "dbias"):
            bound = bound + 0.51 * torch.finfo(dtype).eps * tensor.abs()
        assert (error <= bound).all(), (name, float(error.max()))


@pytest.mark.parametrize("mean_over_std", [0, 1, 10, 1e3, 1e5, 1e6])
@pytest.mark.parametrize("size", [2, 64, 1000, 2**16])
def test_accurate_far_from_zero(size, mean_over_std):
    x = feature_map(2, 2, size, torch.float32, mean_over_std)
    exact = functional.instance_norm(x.double())
    error = (functional.instance_norm(x).double() - exact).abs() / (1 + exact.abs())
    assert error.max() <= 3 * 2**-24


@pytest.mark.parametrize(
    "plane",
    [
        # The first eighth of a block differs from the rest.
        torch.cat([torch.zeros(1024), 1000 + 0.01 * torch.linspace(-1, 1, 7168)]),
        torch.cat([torch.full((1024,), 5e4), torch.linspace(-1, 1, 7168)]),
        # Squares overflow float32.
        1e20 * torch.linspace(-1, 2, 5000),
        1e37 * torch.linspace(-1, 2, 5000),
        # Equal squares have equal roundings, which do not cancel.
        0.31622776 * torch.ones(8192).cumsum(0).sin().sign(),
    ],
    ids=["outliers-low", "outliers-high", "1e20", "1e37", "equal-squares"],
)
def test_accurate_on_hostile_data(plane):
    x = plane.view(1, 1, -1)
    exact = functional.instance_norm(x.double())
    for layout in (x, x.expand(1, 3, -1).movedim(1, -1).contiguous().movedim(-1, 1)):
        error = (functional.instance_norm(layout).double() - exact).abs() / (1 + exact.abs())
        assert error.max() <= 4 * 2**-24


def test_tiny_values_need_a_tiny_eps():
    x = 1e-25 * torch.linspace(-1, 2, 5000).view(1, 1, -1)
    exact = functional.instance_norm(x.double(), eps=1e-60)
    got = functional.instance_norm(x, eps=1e-60).double()
    torch.testing.assert_close(got, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 255.0, -3e38, 1e-40])
@pytest.mark.parametrize("size", [1, 7, 64, 5000, 20000])
def test_a_constant_plane_is_exactly_the_bias(size, value):
    x = torch.full((2, 1, size), value)
    weight, bias = torch.tensor([3.0]), torch.tensor([0.7])
    for dtype in DTYPES:
        for plane in (x, x.expand(2, 3, size).movedim(1, -1).contiguous().movedim(-1, 1)):
            finite = plane.to(dtype).clamp(-6e4, 6e4)
            parameters = (t.to(dtype).expand(plane.shape[1]) for t in (weight, bias))
            y, _, var = cpu.normalize(finite, *parameters, 1e-5)
            assert torch.equal(y, torch.full_like(y, bias.to(dtype).item()))
            assert not var.any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_overflowing_products_of_gradients(layout):
    plane, towards = torch.linspace(-1, 1, 4096), torch.linspace(-1, 3, 4096)
    x, gradient = 1e30 * plane.expand(1, 3, -1), 1e15 * towards.expand(1, 3, -1)
    if layout == "channels_last":
        x, gradient = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, gradient))
    else:
        x, gradient = x.contiguous(), gradient.contiguous()
    mean, _ = cpu.moments(x)
    _, weighted_sums = cpu.gradient_sums(gradient, x, mean)
    exact = (gradient.double() * (x.double() - mean.unsqueeze(2))).sum(2)
    torch.testing.assert_close(weighted_sums, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
def test_empty(shape):
    y, mean, var = cpu.normalize(torch.empty(shape), None, None, 1e-5)
    assert y.shape == shape
    assert mean.shape == var.shape == shape[:2]


def executable(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize(
    ("sanitizers", "narrowest", "programs"),
    [
        ("address,undefined", "OFF", [("kernels_test",), ("faults_test",), ("kernels_fuzz", "2")]),
        ("thread", "ON", [("kernels_test", "some"), ("kernels_fuzz", "2")]),
    ],
    ids=["address", "thread"],
)
def test_kernels_under_sanitizers(sanitizers, narrowest, programs, tmp_path):
    """C++ tests, and two seconds of the fuzz target, with the sanitizers of gcc."""
    commands = (
        [
            executable("cmake"),
            "-S",
            ROOT,
            "-B",
            tmp_path,
            "-G",
            "Ninja",
            "-DMOMENTNORM_TEST=ON",
            f"-DMOMENTNORM_SANITIZERS={sanitizers}",
            f"-DMOMENTNORM_NARROWEST={narrowest}",
            f"-DCMAKE_MAKE_PROGRAM={executable('ninja')}",
        ],
        [executable("cmake"), "--build", tmp_path, "--target", *(name for name, *_ in programs)],
        *([tmp_path / program, *arguments] for program, *arguments in programs),
        *([tmp_path / "kernels_fuzz", file] for file in FAILED_INPUTS),
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        if command[0] == tmp_path / "kernels_test":
            assert done.stdout.endswith(" 0 failures\n")


def test_compiles_for_aarch64(tmp_path):
    compiler = executable("aarch64-linux-gnu-g++")
    subprocess.run(
        [
            compiler,
            "-std=c++20",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-ffp-contract=off",
            "-DMOMENTNORM_NAMESPACE=momentnorm_neon",
            "-shared",
            "-fPIC",
            ROOT / "csrc/dispatch.cpp",
            ROOT / "csrc/memory.cpp",
            ROOT / "csrc/kernels/channels_first.cpp",
            ROOT / "csrc/kernels/channels_last.cpp",
            "-lm",
            "-o",
            tmp_path / "library.so",
        ],
        check=True,
    )


def test_no_compiler_is_a_clear_message(tmp_path):
    (tmp_path / "bin").mkdir()
    for tool in ("cmake", "ninja"):
        script = tmp_path / "bin" / tool
        script.write_text(f'#!/bin/sh\nexec {executable(tool)} "$@"\n')
        script.chmod(0o755)
    (tmp_path / "bin" / "sh").symlink_to("/bin/sh")

    def configure(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [tmp_path / "bin/cmake", "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja", *options],
            env={"PATH": str(tmp_path / "bin")},
            capture_output=True,
            text=True,
            check=False,
        )

    refused = configure()
    assert refused.returncode != 0
    assert "need a C++20 compiler, and none was found" in " ".join(refused.stderr.split())
    assert "pip install . --config-settings=cmake.define.MOMENTNORM_KERNELS=OFF" in refused.stderr
    assert configure("-DMOMENTNORM_KERNELS=OFF").returncode == 0
