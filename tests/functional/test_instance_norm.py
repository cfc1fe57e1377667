"""Values and gradients of Instance Normalization against float64, in every dtype and layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from momentnorm.functional import instance_norm
from support.layouts import LAYOUTS
from support.tolerances import GRADIENT, OUTPUT, assert_within

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

#: (N, C, *S): every rank, odd sizes, one sample, one channel, lengths around vector widths.
SHAPES = [
    (2, 3, 2),
    (1, 1, 3, 5),
    (2, 3, 4, 4),
    (3, 5, 7, 9),
    (1, 2, 33, 31),
    (2, 2, 3, 4, 5),
    (1, 2, 2, 3, 2, 3),
]


def _operands(shape, dtype, layout="contiguous"):
    """x, weight, bias and an output gradient, and contiguous float64 copies of each.

    torch 2.13 computes a wrong gradient of one channels_last sample, so the copies are contiguous.
    """
    x = LAYOUTS[layout]((3 * torch.randn(shape, dtype=torch.float64) + 2).to(dtype))
    weight = (torch.rand(shape[1], dtype=torch.float64) + 0.5).to(dtype)
    bias = torch.randn(shape[1], dtype=torch.float64).to(dtype)
    gradient = LAYOUTS[layout](torch.randn(shape, dtype=torch.float64).to(dtype))
    ours = [t.detach().requires_grad_() for t in (x, weight, bias)]
    dense = torch.contiguous_format
    twins = [t.detach().double().clone(memory_format=dense) for t in (x, weight, bias)]
    return ours, gradient, [t.requires_grad_() for t in twins], gradient.double().contiguous()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_output_and_gradients_match_float64(backend, shape, dtype, layout):
    ours, gradient, twins, gradient64 = _operands(shape, dtype, layout)
    y = instance_norm(ours[0], None, None, ours[1], ours[2])
    expected = F.instance_norm(twins[0], None, None, twins[1], twins[2])
    assert y.dtype == dtype
    assert_within(y, expected, OUTPUT)
    found = torch.autograd.grad(y, ours, gradient)
    wanted = torch.autograd.grad(expected, twins, gradient64)
    for mine, right in zip(found, wanted, strict=True):
        assert mine.dtype == dtype
        assert_within(mine, right, GRADIENT)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_eval_output_and_gradients_match_float64(backend, dtype, layout):
    ours, gradient, twins, gradient64 = _operands((2, 3, 5, 6), dtype, layout)
    mean, var = torch.randn(3), torch.rand(3) + 0.1
    y = instance_norm(ours[0], mean, var, ours[1], ours[2], use_input_stats=False)
    expected = F.instance_norm(
        twins[0], mean.double(), var.double(), twins[1], twins[2], use_input_stats=False
    )
    assert y.dtype == dtype
    assert_within(y, expected, OUTPUT)
    found = torch.autograd.grad(y, ours, gradient)
    wanted = torch.autograd.grad(expected, twins, gradient64)
    for mine, right in zip(found, wanted, strict=True):
        assert_within(mine, right, GRADIENT)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias", "x bias", "weight bias", "x weight"])
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_some_operands_only(backend, wanted, training):
    x, weight, bias = torch.randn(2, 3, 4, 4), torch.rand(3) + 0.5, torch.randn(3)
    mean, var = torch.zeros(3), torch.ones(3)
    named = {"x": x, "weight": weight, "bias": bias}
    leaves = [named[name].requires_grad_() for name in wanted.split()]
    y = instance_norm(x, mean, var, weight, bias, training)
    found = torch.autograd.grad(y.square().sum(), leaves)
    expected = F.instance_norm(x, torch.zeros(3), torch.ones(3), weight, bias, training)
    for mine, right in zip(
        found, torch.autograd.grad(expected.square().sum(), leaves), strict=True
    ):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("expand", ["batch", "channels", "pixels"])
def test_expanded_inputs(backend, expand):
    shapes = {"batch": (1, 3, 4, 4), "channels": (2, 1, 4, 4), "pixels": (2, 3, 1, 4)}
    x = torch.randn(shapes[expand]).expand(2, 3, 4, 4)
    assert_within(instance_norm(x), F.instance_norm(x.double()), OUTPUT)


def test_the_gradient_of_one_channels_last_sample(backend):
    # torch 2.13 reads this gradient in the wrong order, with errors larger than the gradient
    x = torch.randn(1, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    gradient = torch.randn_like(x)
    (found,) = torch.autograd.grad(instance_norm(x), x, gradient)
    mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
    formula = (x - mean) / torch.sqrt(var + 1e-5)
    (wanted,) = torch.autograd.grad(formula, x, gradient)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_expanded_gradient(backend):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.rand(3, requires_grad=True)
    # the gradient of a sum is one element, expanded
    found = torch.autograd.grad(instance_norm(x, None, None, weight).sum(), (x, weight))
    for gradient in found:
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


def test_a_constant_plane_gives_exactly_the_bias(backend):
    bias = torch.tensor([0.25, -1.0])
    for value in (255.0, 0.1, -1e20, 3e-39):
        x = torch.full((2, 2, 17, 19), value)
        assert not instance_norm(x).any()
        y = instance_norm(x, None, None, torch.tensor([2.0, 3.0]), bias)
        assert torch.equal(y, bias.view(2, 1, 1).expand_as(y))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("mean", "std"), [(1000.0, 0.01), (30.0, 0.1), (-1e5, 1.0), (1e-6, 1e-3)])
def test_a_large_mean_loses_no_digits(backend, mean, std, layout):
    x = LAYOUTS[layout](mean + std * torch.randn(2, 3, 64, 64))
    expected = F.instance_norm(x.double())
    assert_within(instance_norm(x), expected, OUTPUT)


def test_a_large_mean_loses_no_digits_in_the_gradient(backend):
    x = (1000 + 0.01 * torch.randn(2, 3, 32, 32)).requires_grad_()
    twin = x.detach().double().requires_grad_()
    gradient = torch.randn_like(x)
    (found,) = torch.autograd.grad(instance_norm(x), x, gradient)
    (wanted,) = torch.autograd.grad(F.instance_norm(twin), twin, gradient.double())
    assert_within(found, wanted, GRADIENT)


def test_half_constant_with_a_tiny_eps(backend):
    x = torch.full((2, 3, 8, 8), 3.0, dtype=torch.float16)
    assert not instance_norm(x, eps=1e-12).any()


def test_half_types_do_not_overflow(backend):
    # the sum and the squares of these are far beyond float16's 65504
    x = torch.full((1, 2, 32, 32), 6e4, dtype=torch.float16)
    x[..., ::2] = -6e4
    y = instance_norm(x)
    torch.testing.assert_close(y.abs(), torch.ones_like(y))


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3, 1.0, 100.0])
def test_eps(backend, eps):
    x = torch.randn(2, 3, 5, 5)
    assert_within(instance_norm(x, eps=eps), F.instance_norm(x.double(), eps=eps), OUTPUT)


def test_no_eps_and_no_variance_gives_zero(backend):
    x = torch.full((1, 2, 3, 3), 7.0)
    assert torch.equal(instance_norm(x, eps=0.0), F.instance_norm(x, eps=0.0))
    assert not instance_norm(x, eps=0.0).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_nan_and_inf_poison_their_own_instance_alone(backend, bad, layout):
    clean = LAYOUTS[layout](torch.randn(3, 4, 5, 5))
    x = clean.clone()
    x[1, 2, 3, 3] = bad
    x.requires_grad_()
    y = instance_norm(x)
    assert y[1, 2].isnan().all()
    others = torch.ones(3, 4, dtype=torch.bool)
    others[1, 2] = False
    assert torch.equal(y[others], instance_norm(clean)[others])
    (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
    assert dx[others].isfinite().all()
    assert not dx[1, 2].isfinite().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [True, False])
def test_the_memory_format_is_kept(backend, dtype, training):
    stats = (torch.zeros(3), torch.ones(3))
    for memory_format, shape in (
        (torch.contiguous_format, (2, 3, 4, 5)),
        (torch.channels_last, (2, 3, 4, 5)),
        (torch.contiguous_format, (2, 3, 2, 4, 5)),
        (torch.channels_last_3d, (2, 3, 2, 4, 5)),
    ):
        x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format).requires_grad_()
        y = instance_norm(x, *stats, use_input_stats=training)
        assert y.is_contiguous(memory_format=memory_format)
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert dx.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("of_gradient", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("of_input", ["contiguous", "channels_last"])
@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_the_input_lies_as_the_input_does(backend, training, of_input, of_gradient):
    ours, _, twins, _ = _operands((2, 3, 4, 5), torch.float32, of_input)
    gradient = LAYOUTS[of_gradient](torch.randn(2, 3, 4, 5))
    stats = (torch.zeros(3), torch.ones(3))
    y = instance_norm(ours[0], *stats, *ours[1:], training)
    found = torch.autograd.grad(y, ours, gradient)
    assert found[0].stride() == ours[0].stride()
    stats = (torch.zeros(3).double(), torch.ones(3).double())
    z = F.instance_norm(twins[0], *stats, *twins[1:], training)
    wanted = torch.autograd.grad(z, twins, gradient.double().contiguous())
    for mine, right in zip(found, wanted, strict=True):
        assert_within(mine, right, GRADIENT)


def test_the_batch_composition_changes_no_bit(backend):
    x = torch.randn(4, 6, 19, 23)
    y = instance_norm(x)
    for sample in range(4):
        assert torch.equal(instance_norm(x[sample : sample + 1]), y[sample : sample + 1])
    for channel in range(6):
        one = x[:, channel : channel + 1].contiguous()
        assert torch.equal(instance_norm(one), y[:, channel : channel + 1])
