"""Masks: statistics of the valid elements, and zeros in the padding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from momentnorm import use_backend
from momentnorm.functional import instance_norm
from support.mask_cases import SHAPES, make_operands, mask_of
from support.tolerances import GRADIENT, OUTPUT, assert_within

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def _cropped(x, lengths, weight, bias, residual=None, activation=lambda values: values):
    """y by torch's own operators, each sample without its padding, and zeros in the padding."""
    planes = []
    for sample, extent in enumerate(lengths.tolist()):
        window = (slice(sample, sample + 1), slice(None), *(slice(size) for size in extent))
        y = torch.zeros_like(x[:1])
        if x[window].numel():
            valid = x[window]
            spatial = tuple(range(2, x.dim()))
            mean = valid.mean(spatial, keepdim=True)
            var = valid.var(spatial, correction=0, keepdim=True)
            per_channel = (1, -1) + (1,) * len(spatial)
            valid = (valid - mean) / torch.sqrt(var + 1e-5) * weight.view(per_channel)
            valid = valid + bias.view(per_channel)
            valid = activation(valid if residual is None else valid + residual[window])
            padding = [
                pad
                for size, whole in zip(reversed(extent), reversed(x.shape[2:]), strict=True)
                for pad in (0, whole - size)
            ]
            y = F.pad(valid, padding)
        planes.append(y)
    return torch.cat(planes)


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("tailed", [False, True])
def test_a_masked_batch_is_its_samples_cropped(backend, rank, dtype, layout, tailed):
    ours, gradient, twins, lengths = make_operands(rank, dtype, layout)
    if not tailed:
        ours[3:], twins[3:] = [], []
    x, weight, bias, *residual = ours
    options = {"residual": residual[0], "activation": "silu"} if tailed else {}
    activation = F.silu if tailed else lambda values: values
    expected = _cropped(twins[0], lengths, *twins[1:], activation=activation)
    wanted = torch.autograd.grad(expected, twins, gradient.double())
    mask = mask_of(lengths, x.shape[2:])
    for masking in ({"lengths": lengths}, {"mask": mask}, {"mask": mask.float()}):
        y = instance_norm(x, None, None, weight, bias, **options, **masking)
        assert y.dtype == dtype
        assert_within(y, expected, OUTPUT)
        assert not y[~mask.expand_as(y)].any()
        found = torch.autograd.grad(y, ours, gradient)
        for mine, right in zip(found, wanted, strict=True):
            assert_within(mine, right, GRADIENT)
        assert not found[0][~mask.expand_as(y)].any()
        if layout != "sliced":
            assert y.stride() == found[0].stride() == x.stride()


@settings(max_examples=60)
@given(data=st.data())
def test_any_mask_gives_each_plane_the_moments_of_its_valid_elements(data):
    shape = [data.draw(st.integers(1, 3)) for _ in "NC"] + [data.draw(st.integers(2, 4))] * 2
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    share = data.draw(st.floats(0, 1))
    x, mask = torch.randn(shape, dtype=torch.float64), torch.rand(shape[0], 1, *shape[2:]) < share
    offset = data.draw(st.sampled_from([0.0, 100.0]))
    with use_backend(data.draw(st.sampled_from(["cpu", "stand_in", "reference"]))):
        y = instance_norm(x + offset, mask=mask)
    for sample in range(shape[0]):
        for channel in range(shape[1]):
            valid = mask[sample, 0]
            plane = (x + offset)[sample, channel][valid]
            centred = plane - plane.mean()
            expected = centred / torch.sqrt(centred.square().mean() + 1e-5)
            torch.testing.assert_close(y[sample, channel][valid], expected, rtol=1e-7, atol=1e-7)
            assert not y[sample, channel][~valid].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_full_mask_is_none(backend, dtype, layout):
    ours, gradient, twins, _ = make_operands("2d", dtype, layout)
    mask = torch.ones(4, 1, 5, 6, dtype=torch.bool)
    results = []
    for operands, options in ((ours, {"mask": mask}), (ours, {}), (twins, {})):
        x, weight, bias, residual = operands
        y = instance_norm(x, None, None, weight, bias, residual=residual, **options)
        results.append([y, *torch.autograd.grad(y, operands, gradient.to(y.dtype))])
    for masked, plain, exact in zip(*results, strict=True):
        assert_within(masked, exact, GRADIENT)
        assert_within(plain, exact, GRADIENT)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("activation", [None, "gelu"])
@pytest.mark.parametrize("training", [True, False])
def test_what_the_padding_holds_does_not_matter(backend, bad, activation, training):
    ours, gradient, _, lengths = make_operands("2d", torch.float32)
    padding = ~mask_of(lengths, (5, 6)).expand(4, 3, 5, 6)
    results = []
    for value in (0.0, bad):
        leaves = [t.detach().clone() for t in ours]
        for index in (0, 3):
            leaves[index][padding] = value
        x, weight, bias, residual = [t.requires_grad_() for t in leaves]
        stats = [torch.full((3,), 0.5), torch.full((3,), 2.0)]
        y = instance_norm(
            x,
            *stats,
            weight,
            bias,
            training,
            residual=residual,
            activation=activation,
            lengths=lengths,
        )
        noise = gradient.clone()
        results.append([y, *torch.autograd.grad(y, leaves, noise), *stats])
    for clean, dirty in zip(*results, strict=True):
        assert dirty.isfinite().all()
        assert torch.equal(clean, dirty)


def test_what_is_no_number_among_the_valid_poisons_its_own_plane_alone(backend):
    clean = torch.randn(2, 3, 6)
    lengths = torch.tensor([4, 5])
    x = clean.clone()
    x[1, 2, 0] = torch.nan
    y, expected = (instance_norm(t, lengths=lengths) for t in (x, clean))
    assert y[1, 2, :5].isnan().all()
    assert y[1, 2, 5] == 0
    y[1, 2] = expected[1, 2]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e5])
@pytest.mark.parametrize("valid", [2, 50, 4000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_valid_elements_far_from_zero_lose_no_digits(backend, offset, valid, dtype):
    x = (offset + torch.randn(2, 3, 4096, dtype=torch.float64)).to(dtype)
    y = instance_norm(x, lengths=torch.tensor([valid, valid]))
    exact = instance_norm(x[..., :valid].double().contiguous())
    if dtype == torch.float64:  # a mean of 1e5 costs five digits
        torch.testing.assert_close(y[..., :valid], exact, rtol=1e-9, atol=1e-9)
    else:
        assert_within(y[..., :valid].contiguous(), exact, OUTPUT)


def test_one_valid_element_gives_the_bias_and_none_zero(backend):
    x, bias = torch.randn(2, 3, 5, requires_grad=True), torch.tensor([0.25, -1.0, 2.0])
    for eps in (1e-5, 0.0):
        y = instance_norm(x, bias=bias, eps=eps, lengths=torch.tensor([1, 0]))
        assert torch.equal(y[0, :, 0], bias)
        assert not y[1].any()
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert dx.abs().max() <= 1e-4  # a difference of two terms of size 1 / sqrt(eps)
        assert not dx[1].any()


def test_a_batch_without_valid_elements(backend):
    x, mean, var = torch.randn(2, 3, 4, requires_grad=True), torch.randn(3), torch.rand(3)
    before = mean.clone(), var.clone()
    weight = torch.rand(3, requires_grad=True)
    y = instance_norm(x, mean, var, weight, mask=torch.zeros(2, 1, 4))
    assert not y.any()
    assert not any(g.any() for g in torch.autograd.grad(y.sum(), (x, weight)))
    assert torch.equal(mean, before[0])
    assert torch.equal(var, before[1])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_inputs(backend, shape):
    x = torch.empty(shape, requires_grad=True)
    y = instance_norm(x, mask=torch.ones(shape[0], 1, shape[2]))
    assert y.shape == shape
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("rank", SHAPES)
def test_running_statistics_are_of_the_valid_elements(backend, rank, momentum):
    (x, *_), _, _, lengths = make_operands(rank, torch.float64)
    lengths[1] = 1
    channels = x.shape[1]
    mean, var = torch.zeros(channels).double(), torch.ones(channels).double()
    instance_norm(x, mean, var, momentum=momentum, lengths=lengths)
    means, variances = [], []
    for sample, extent in enumerate(lengths.tolist()):
        valid = x.detach()[(sample, slice(None), *(slice(size) for size in extent))].flatten(1)
        if valid.numel():
            means.append(valid.mean(1))
            # the unbiased variance of one element counts as 0
            variances.append(valid.var(1) if valid.shape[1] > 1 else torch.zeros(channels).double())
    expected = [torch.stack(values).mean(0) for values in (means, variances)]
    torch.testing.assert_close(mean, momentum * expected[0])
    torch.testing.assert_close(var, 1 - momentum + momentum * expected[1])


def test_running_statistics_normalize_in_eval(backend):
    ours, gradient, twins, lengths = make_operands("2d", torch.float32)
    mean, var = torch.randn(3), torch.rand(3) + 0.5
    valid = mask_of(lengths, (5, 6))
    results = []
    for (x, weight, bias, residual), options in ((ours, {"lengths": lengths}), (twins, {})):
        stats = mean.to(x.dtype), var.to(x.dtype)
        y = instance_norm(x, *stats, weight, bias, False, residual=residual, **options)
        if not options:
            y = y.masked_fill(~valid, 0)
        operands = (x, weight, bias, residual)
        results.append([y, *torch.autograd.grad(y, operands, gradient.to(y.dtype))])
    assert_within(results[0][0], results[1][0], OUTPUT)
    for mine, right in zip(results[0][1:], results[1][1:], strict=True):
        assert_within(mine, right, GRADIENT)
