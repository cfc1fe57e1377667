"""BatchNorm and GroupNorm: values and gradients against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from momentnorm import use_backend
from momentnorm.functional import batch_norm, group_norm, instance_norm
from support import stand_in
from support.batch_and_group_cases import (
    DTYPES,
    FUNCTIONS,
    every_function,
    make_operands,
)
from support.layouts import LAYOUTS
from support.pairs import CLASSES, pair
from support.tolerances import AGAINST_TORCH, GRADIENT, OUTPUT, assert_within

SHAPES = [(5, 6), (1, 6, 7), (4, 6, 9), (3, 6, 5, 7), (2, 6, 3, 4, 5), (4, 6, 1, 1)]


@every_function
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tailed", [False, True])
def test_output_and_gradients_match_float64(backend, name, layout, dtype, tailed):
    ours_of, theirs_of = FUNCTIONS[name]
    for shape in SHAPES:
        if name == "group_norm of 6" and shape[2:].count(1) == len(shape[2:]):
            continue  # another test has groups of one value
        ours, gradient, twins = make_operands(shape, dtype, layout)
        if tailed:
            y = ours_of(*ours[:3], activation="silu", residual=ours[3])
            expected = F.silu(theirs_of(*twins[:3]) + twins[3])
        else:
            ours, twins = ours[:3], twins[:3]
            y, expected = ours_of(*ours), theirs_of(*twins)
        assert y.dtype == dtype
        if layout in ("contiguous", "channels_last"):
            assert y.stride() == ours[0].stride()
        assert_within(y, expected, OUTPUT)
        found = torch.autograd.grad(y, ours, gradient)
        wanted = torch.autograd.grad(expected, twins, gradient.double())
        for mine, right, leaf in zip(found, wanted, ours, strict=True):
            assert mine.dtype == leaf.dtype
            assert_within(mine, right, GRADIENT)


@every_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_input_with_float32_parameters(backend, name, dtype):
    ours_of, theirs_of = FUNCTIONS[name]
    for shape in ((5, 6), (2, 6, 3, 4)):
        ours, gradient, twins = make_operands(shape, dtype, parameters=torch.float32)
        y, expected = ours_of(*ours[:3]), theirs_of(*twins[:3])
        assert_within(y, expected, OUTPUT)
        found = torch.autograd.grad(y, ours[:3], gradient)
        assert [g.dtype for g in found] == [dtype, torch.float32, torch.float32]
        wanted = torch.autograd.grad(expected, twins[:3], gradient.double())
        for mine, right in zip(found, wanted, strict=True):
            assert_within(mine, right, GRADIENT)


@every_function
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_operands_only(backend, name, wanted):
    for shape in ((5, 6), (3, 6, 4)):
        ours, gradient, twins = make_operands(shape, torch.float64)
        results = []
        for operands, function in zip((ours, twins), FUNCTIONS[name], strict=True):
            for index in {0, 1, 2} - set(wanted):
                operands[index].requires_grad_(False)
            y = function(*operands[:3])
            leaves = [operands[index] for index in wanted]
            results.append(torch.autograd.grad(y, leaves, gradient))
        for mine, right in zip(*results, strict=True):
            torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("mean", [30.0, -1000.0])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "eval" not in name])
def test_a_large_mean_loses_no_digits(backend, name, mean):
    # torch 2.13's GroupNorm has errors of 0.1 to 150 in channels_last
    ours_of, theirs_of = FUNCTIONS[name]
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](mean + 0.1 * torch.randn(2, 6, 32, 32)).requires_grad_()
        twin = x.detach().double().contiguous().requires_grad_()
        gradient = torch.randn_like(x)
        y, expected = ours_of(x, None, None), theirs_of(twin, None, None)
        assert y.stride() == x.stride()
        assert_within(y, expected, OUTPUT)
        (dx,) = torch.autograd.grad(y, x, gradient)
        assert dx.stride() == x.stride()
        assert_within(dx, *torch.autograd.grad(expected, twin, gradient.double()), GRADIENT)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "eval" not in name])
def test_constant_channels_give_exactly_the_bias(backend, name):
    bias = torch.randn(6)
    for shape in ((5, 6), (3, 6, 17, 19)):
        y = FUNCTIONS[name][0](torch.full(shape, 255.0), None, bias)
        assert torch.equal(y, bias.view(1, 6, *[1] * (len(shape) - 2)).expand(shape))


def test_what_each_equals(backend):
    x = torch.randn(3, 6, 5, 7)
    assert torch.equal(group_norm(x, 6), instance_norm(x))
    torch.testing.assert_close(group_norm(x, 1), F.layer_norm(x, x.shape[1:]))
    one = x[:1]
    torch.testing.assert_close(batch_norm(one, None, None, training=True), instance_norm(one))
    order = torch.tensor([2, 0, 1])
    y = batch_norm(x, None, None, training=True)
    torch.testing.assert_close(batch_norm(x[order], None, None, training=True), y[order])


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_groups_of_a_sample_are_alone(backend, groups):
    clean = torch.randn(3, 6, 4, 4)
    x = clean.clone()
    x[1, 0, 2, 2] = torch.nan
    y, expected = group_norm(x, groups), group_norm(clean, groups)
    assert y[1, : 6 // groups].isnan().all()
    y[1, : 6 // groups] = expected[1, : 6 // groups]
    assert torch.equal(y, expected)


def test_channels_of_a_batch_are_alone(backend):
    for shape in ((5, 6), (3, 6, 4)):
        clean = torch.randn(shape)
        x = clean.clone()
        x[1, 2] = torch.nan
        y, expected = (batch_norm(t, None, None, training=True) for t in (x, clean))
        assert y[:, 2].isnan().all()
        y[:, 2] = expected[:, 2]
        assert torch.equal(y, expected)


def test_groups_of_one_value_in_several_samples_give_the_bias(backend):
    x, bias = torch.randn(2, 6, 1, 1, requires_grad=True), torch.randn(6)
    for input in (x, x.flatten(1)):
        y = group_norm(input, 6, None, bias)
        assert torch.equal(y, bias.view(bias.shape + (1,) * (input.dim() - 2)).expand_as(input))
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert dx.abs().max() <= 1e-4  # a difference of two terms of size 1 / sqrt(eps)


@pytest.mark.parametrize(
    ("name", "shape", "calls"),
    [
        ("batch_norm", (5, 6), ["normalize", "normalize_backward"]),
        ("batch_norm", (2, 6, 3), ["normalize", "normalize_backward"]),
        ("batch_norm in eval", (5, 6), ["normalize_with", "apply_gradient", "gradient_sums"]),
        ("group_norm of 2", (5, 6), ["normalize", "normalize_backward"]),
        ("group_norm of 6", (2, 6, 3), ["normalize", "normalize_backward"]),
    ],
)
def test_kernels_do_the_forward_and_the_backward(name, shape, calls):
    ours, gradient, _ = make_operands(shape, torch.float32)
    with use_backend("stand_in"):
        stand_in.calls.clear()
        y = FUNCTIONS[name][0](*ours[:3], residual=ours[3], activation="relu")
        y.backward(gradient)
    assert stand_in.calls == calls


def test_half_types_against_torch(backend):
    x = torch.randn(4, 4, 6, 6, dtype=torch.bfloat16)
    for name in ("BatchNorm2d", "GroupNorm"):
        ours, theirs = pair(name, *CLASSES[name])
        assert_within(ours(x), theirs(x).double(), AGAINST_TORCH)
