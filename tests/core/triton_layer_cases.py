"""Layers and benchmarks on the Triton backend under its interpreter, run by test_triton.py."""

from __future__ import annotations

import pytest
import torch
from benchmarks import accuracy, gpu, gpu_calls, gpu_times

import momentnorm
from momentnorm import Pool, use_backend
from momentnorm.core import dispatch
from momentnorm.core.backends import reference
from momentnorm.core.backends import triton as backend
from momentnorm.core.backends.triton import launch
from momentnorm.functional import instance_norm
from support.tolerances import OUTPUT, assert_within
from support.triton_calls import (  # noqa: F401 - two are fixtures
    LAYOUTS,
    MARKS,
    SUMS,
    launched_fixture,
    operands,
    path_fixture,
)

pytestmark = MARKS


# The bound of docs/accuracy.md


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [64, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_errors_are_within_the_bound(dtype, size, ratio, monkeypatch):
    # There are few planes, since the interpreter is slow, and no bfloat16, which it truncates.
    monkeypatch.setattr(accuracy, "noise", _noise)
    with use_backend("triton"):
        for row in accuracy.measure(dtype, size, ratio):
            assert row.share <= 1, row


@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_errors_are_within_the_bound_every_way(ratio, path, monkeypatch):
    monkeypatch.setattr(accuracy, "noise", _noise)
    with use_backend("triton"):
        for row in accuracy.measure(torch.float32, 1024, ratio):
            assert row.share <= 1, row


def _noise(dtype, size, ratio):
    shape = (2, accuracy.CHANNELS, 16, size // 16)
    return torch.randn(shape).add_(ratio).to(dtype)


@pytest.mark.parametrize("layout", accuracy.LAYOUTS)
def test_errors_of_planes_that_begin_otherwise(layout, monkeypatch):
    band = accuracy.band
    monkeypatch.setattr(accuracy, "band", lambda *given: band(*given)[:2])
    with use_backend("triton"):
        for length in (1, 1024):
            for row in accuracy.measure_band(torch.float32, layout, length):
                assert row.share <= 1, row


# Through the public functions


@pytest.mark.parametrize("layer", ["InstanceNorm2d", "BatchNorm2d", "GroupNorm"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers(layer, layout, launched):
    x, gradient, residual, *_ = operands((2, 4, 5, 6), torch.float32, layout)
    arguments = (2, 4) if layer == "GroupNorm" else (4,)
    made = getattr(momentnorm, layer)(*arguments, affine=True, activation="silu")
    results = {}
    for name in ("triton", "reference"):
        made.zero_grad()
        leaves = [t.detach().clone(memory_format=torch.preserve_format) for t in (x, residual)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        with use_backend(name):
            y = made(leaves[0], residual=leaves[1])
            y.backward(gradient)
        parameters = [parameter.grad for parameter in made.parameters()]
        results[name] = [y, *(leaf.grad for leaf in leaves), *parameters]
    assert launched.count("normalize") == launched.count("normalize_backward") == 1
    for found, exact in zip(*results.values(), strict=True):
        assert_within(found, exact.double(), SUMS)


def test_second_derivatives(launched):
    x, gradient, _, weight, bias = operands((2, 3, 4, 5), torch.float32, "contiguous")
    results = {}
    for name in ("triton", "reference"):
        leaf = x.clone().requires_grad_()
        with use_backend(name):
            y = instance_norm(leaf, weight=weight, bias=bias)
            (dx,) = torch.autograd.grad(y, leaf, gradient, create_graph=True)
            results[name] = torch.autograd.grad(dx.square().sum(), leaf)[0]
    assert "partial_sums" in launched
    assert_within(results["triton"], results["reference"].double(), {torch.float32: 256})


def test_a_policy_and_running_statistics(launched):
    x = operands((2, 4, 5, 6), torch.float32, "contiguous")[0]
    norms = momentnorm.SwitchableNorm2d(4), momentnorm.BatchNorm2d(4).eval()
    for norm in norms:
        leaf = x.clone().requires_grad_()
        with use_backend("triton"):
            y = norm(leaf)
            (dx,) = torch.autograd.grad(y, leaf, x)
        with use_backend("reference"):
            right = norm(leaf)
            (exact,) = torch.autograd.grad(right, leaf, x)
        assert_within(y, right.double(), OUTPUT)
        assert_within(dx, exact.double(), {torch.float32: 64})
    assert {"apply", "apply_gradient"} <= set(launched)


def test_graphs_keep_the_operators():
    x, _, _, weight, bias = operands((2, 3, 40), torch.float32, "contiguous")
    with use_backend("triton"):
        compiled = torch.compile(instance_norm, fullgraph=True, backend="aot_eager")
        found = compiled(x, weight=weight, bias=bias)
        assert_within(found, instance_norm(x, weight=weight, bias=bias).double(), OUTPUT)


def test_what_it_refuses():
    x = torch.zeros(2, 3, 4, 4)
    assert backend.refuses(x) is None
    assert "float64" in backend.refuses(x.double())
    with use_backend("triton"):
        assert dispatch.choose(x.double()).backend is reference
    assert dispatch.choose(x).backend.name == "cpu"  # which is asked first


def test_a_strided_input_is_copied():
    values, gradient = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    found = []
    for x in (values, torch.stack((values, values), -1)[..., 0]):
        x = x.detach().requires_grad_()
        with use_backend("triton"):
            y = instance_norm(x)
        found.append((y, *torch.autograd.grad(y, x, gradient)))
    for mine, dense in zip(*found, strict=True):
        assert torch.equal(mine, dense)


@pytest.mark.parametrize("name", ["input", "weight", "residual", "out"])
def test_memory_that_was_freed(name):
    operands = {key: torch.randn(2, 3, 4) for key in ("input", "residual", "out")}
    operands["weight"] = torch.ones(3)
    operands[name].untyped_storage().resize_(0)
    with use_backend("triton"), pytest.raises(RuntimeError, match=r"the storage of .* was freed"):
        instance_norm(**operands)


def test_a_weight_that_is_replaced_before_the_backward():
    x, weight = torch.randn(2, 8, 4), torch.ones(8, requires_grad=True)
    with use_backend("triton"):
        y = instance_norm(x.requires_grad_(), weight=weight)
    weight.data = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"weight should be \(8,\)"):
        y.sum().backward()


def test_a_device_where_triton_does_not_work(monkeypatch):
    cpu = torch.device("cpu")
    assert backend.trial(cpu) is None
    monkeypatch.setattr(backend, "normalize", lambda x, *_: (2 * x, None, None))
    assert "wrong results" in backend.trial(cpu)

    def fails(*_):
        raise RuntimeError("Failed to find C compiler.\nand so on")

    monkeypatch.setattr(backend, "normalize", fails)
    assert backend.trial(cpu).endswith("not work here: RuntimeError: Failed to find C compiler.")


class _Kernel:
    """Stand-in for a compiler, with a log of compilations and launches."""

    def __init__(self):
        self.log = []

    def __getitem__(self, grid):
        def compile_and_run(*operands, num_warps, **options):
            self.log.append("compiled")
            return _Compiled(self.log)

        return compile_and_run


class _Compiled:
    def __init__(self, log):
        self.log = log

    def __getitem__(self, grid):
        return lambda *operands: self.log.append((grid, *operands[1:]))


def test_launches_go_straight_to_what_was_compiled():
    kernel = _Kernel()
    run = launch.Launch(kernel, 7, (5, 6), (True, "relu"), 4, -1)
    aligned = torch.zeros(8)
    run(aligned, None, 0.5)
    run(aligned, None, 0.25)
    assert kernel.log == ["compiled", ((7, 1, 1), None, 0.25, 5, 6, True, "relu")]
    # Triton searches again after another type, one more operand, or an unaligned address.
    for others in ((aligned.half(), None), (aligned, aligned), (aligned[1:], None)):
        run(*others, 0.5)
        assert kernel.log[-1] == "compiled"
    run(aligned[1:], None, 0.5)
    assert kernel.log[-1] == "compiled"
    run(aligned, None, 0.5)
    assert kernel.log[-1] != "compiled"


def test_benchmarks_run(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_times, "TIMED", gpu_times.TIMED[:1])
    monkeypatch.setattr(gpu_calls, "POOLS", {"group": Pool(1, 4)})
    gpu.main([str(tmp_path), "--smoke", "--only", "right", "small", "times", "accuracy"])
    document = (tmp_path / "gpu.md").read_text()
    assert "6 calls against float64, 0 of them wrong." in document
    assert "| InstanceNorm | 2x4x3x3 | bfloat16 | contiguous |" in document
    assert {path.name for path in tmp_path.glob("*.csv")} == {
        f"gpu-{part}.csv" for part in ("right", "small", "times", "accuracy")
    }


def test_measuring_ends_in_time(tmp_path):
    gpu.main([str(tmp_path), "--smoke", "--seconds", "0", "--only", "times"])
    assert "Not measured: no time was left." in (tmp_path / "gpu.md").read_text()
