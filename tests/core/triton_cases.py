"""The Triton kernels under Triton's interpreter, against float64: run by test_triton.py.

The interpreter has to be chosen before anything imports Triton, so these run in a process of their
own: ``TRITON_INTERPRET=1 pytest tests/triton_cases.py``.
"""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from benchmarks import accuracy, gpu, gpu_calls

import momentnorm
from momentnorm import Pool, use_backend
from momentnorm.core import dispatch
from momentnorm.core.backends import reference
from momentnorm.core.backends import triton as backend
from momentnorm.core.backends.triton import kernels, launch
from momentnorm.core.tail import ACTIVATIONS, PLAIN, Tail
from momentnorm.functional import instance_norm
from support.tolerances import GRADIENT, OUTPUT, STATISTICS, assert_within

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LAYOUTS = ("contiguous", "channels_last")
POOLS = {
    "instance": Pool(1, 1),
    "group": Pool(1, 3),
    "layer": Pool(1, None),
    "batch": Pool(None, 1),
    "rectangle": Pool(2, 2),
}
#: Sums of products in float32; in a half type, rounded to it.
SUMS = {torch.float32: 32, torch.bfloat16: 1}
#: Of the ways: held in a tile, tile after tile, and in chunks.
PATHS = ("held", "repeated", "cut")

pytestmark = [
    pytest.mark.skipif(not backend.INTERPRETED, reason="needs TRITON_INTERPRET=1"),
    # Overflows and divisions by zero that a GPU passes over in silence.
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning:numpy"),
]


def _forget():
    for cached in (launch.visit, launch.cut, launch.piece, launch.parameter_gradients):
        cached.cache_clear()


def _go(path, monkeypatch):
    """Send small shapes where large ones go."""
    if path != "held":
        monkeypatch.setattr(launch, "HELD", 0)
        monkeypatch.setattr(launch, "LINE", 8)
        monkeypatch.setattr(launch, "REPEATED", 128)
        monkeypatch.setattr(launch, "PIECE", 512)
        monkeypatch.setattr(launch, "PROGRAMS", 4)
        monkeypatch.setattr(launch, "PIECES", 3)
    monkeypatch.setattr(launch, "multiprocessors", lambda device: 0 if path != "cut" else 1 << 40)
    _forget()


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    _go(request.param, monkeypatch)
    yield request.param
    _forget()


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that are launched."""
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
    _go(path, monkeypatch)
    x, gradient, residual, weight, bias = operands((2, 3, 67), dtype, layout)
    tail = Tail(activation, 0.1, residual)
    check(Pool(1, 1), x, gradient, weight, bias, tail, needs_residual=bool(activation))
    _forget()


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


# What the accuracy sweep of the CPU asks, docs/accuracy.md


@pytest.mark.parametrize("ratio", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("size", [64, 4096])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_errors_are_within_the_bound(dtype, size, ratio, monkeypatch):
    # Fewer planes, since the interpreter takes its time; and no bfloat16, which it does not round,
    # but cuts off.
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


@triton.jit
def _last_offset(
    out, outer, first, start, channels, size, rows, flat: tl.constexpr, last: tl.constexpr
):
    outer = (outer + tl.zeros((1,), tl.int64)).sum(0)
    base, offset = kernels.tile_at(outer, first, start, channels, size, rows, 2, 16, flat, last)
    tl.store(out, base + tl.max(tl.max(offset.to(tl.int64), 1), 0))


def test_a_device_where_triton_does_not_work(monkeypatch):
    cpu = torch.device("cpu")
    assert backend.trial(cpu) is None
    monkeypatch.setattr(backend, "normalize", lambda x, *_: (2 * x, None, None))
    assert "wrong results" in backend.trial(cpu)

    def fails(*_):
        raise RuntimeError("Failed to find C compiler.\nand so on")

    monkeypatch.setattr(backend, "normalize", fails)
    assert backend.trial(cpu).endswith("not work here: RuntimeError: Failed to find C compiler.")


def test_offsets_of_more_elements_than_32_bits_count():
    out = torch.zeros(1, dtype=torch.int64)
    _last_offset[(1,)](out, 3, 62, (1 << 28) - 16, 64, 1 << 28, 1 << 28, True, True)
    assert out.item() == 4 * 64 * (1 << 28) - 1
    _last_offset[(1,)](out, 0, 70_000, 48, 64, 1 << 16, 1 << 16, True, False)
    assert out.item() == (70_001 << 16) + 63
    _last_offset[(1,)](out, 1, 62, (1 << 28) - 16, 64, 1 << 27, 1 << 28, False, False)
    assert out.item() == 4 * 64 * (1 << 27) - 1


class _Kernel:
    """Stands in for a compiler: says what it compiled and what it ran."""

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
    # Triton has to look again: another type, an operand more, an address that is no multiple of 16.
    for others in ((aligned.half(), None), (aligned, aligned), (aligned[1:], None)):
        run(*others, 0.5)
        assert kernel.log[-1] == "compiled"
    run(aligned[1:], None, 0.5)
    assert kernel.log[-1] == "compiled"
    run(aligned, None, 0.5)
    assert kernel.log[-1] != "compiled"


def test_benchmarks_run(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_calls, "TIMED", gpu_calls.TIMED[:1])
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
