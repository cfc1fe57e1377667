"""Pools: each classic layer is one rectangle of planes. Values and two orders of derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from momentnorm import Pool
from momentnorm.core import engine
from momentnorm.core.tail import Tail
from momentnorm.functional import pooled_norm
from support.layouts import LAYOUTS
from support.tolerances import GRADIENT, OUTPUT, STATISTICS, assert_within

EPS = 1e-5

#: name: (pool, torch's function of x, weight and bias), for 6 channels.
CLASSICS = {
    "instance_norm": (Pool(1, 1), lambda x, w, b: F.instance_norm(x, weight=w, bias=b)),
    "batch_norm": (Pool(None, 1), lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True)),
    "layer_norm": (
        Pool(1, None),
        lambda x, w, b: F.layer_norm(x, x.shape[1:]) * w.view(-1, 1, 1) + b.view(-1, 1, 1),
    ),
    "group_norm_1": (Pool(1, 6), lambda x, w, b: F.group_norm(x, 1, w, b)),
    "group_norm_2": (Pool(1, 3), lambda x, w, b: F.group_norm(x, 2, w, b)),
    "group_norm_3": (Pool(1, 2), lambda x, w, b: F.group_norm(x, 3, w, b)),
    "group_norm_6": (Pool(1, 1), lambda x, w, b: F.group_norm(x, 6, w, b)),
}


def _zero_mean(mean, var):
    """Policy of RMS normalization: mean 0, and the second moment about 0 as the variance."""
    return torch.zeros_like(mean), var + mean.square()


def _constant(mean, var):
    return torch.full_like(mean, 0.5), torch.full_like(var, 4.0)


def _rows(mean, var):
    """Policy of LayerNorm, with results that broadcast to the (N, C) grid."""
    pooled = mean.mean(1, keepdim=True)
    return pooled, var.mean(1, keepdim=True) + (mean - pooled).square().mean(1, keepdim=True)


def _formula(standardize):
    return lambda x, w, b: standardize(x) * w.view(-1, 1, 1) + b.view(-1, 1, 1)


CUSTOM = {
    "zero_mean": (
        _zero_mean,
        _formula(lambda x: x / (x.square().mean((2, 3), keepdim=True) + EPS).sqrt()),
    ),
    "constant": (_constant, _formula(lambda x: (x - 0.5) / (4.0 + EPS) ** 0.5)),
    "rows": (_rows, CLASSICS["layer_norm"][1]),
}


def _normalize(pool, x, weight=None, bias=None, as_policy=False):
    """Call the engine's function for this policy. A pool may take that of other policies too."""
    if isinstance(pool, Pool) and not as_policy:
        return engine.normalize(x, weight, bias, pool=pool, eps=EPS)
    return engine.normalize_by(pool, x, weight, bias, eps=EPS)


every_pool = pytest.mark.parametrize("name", [*CLASSICS, *CUSTOM])


def _leaves(dtype, layout="contiguous"):
    x = LAYOUTS[layout]((3 * torch.randn(4, 6, 5, 3) + 2).to(dtype))
    operands = (x, torch.rand(6).to(dtype) + 0.5, torch.randn(6).to(dtype))
    ours = [t.detach().requires_grad_() for t in operands]
    twins = [t.detach().double().contiguous().requires_grad_() for t in operands]
    return ours, twins


@every_pool
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("as_policy", [False, True])
def test_output_and_gradients_match_torchs_layer(backend, name, dtype, layout, as_policy):
    pool, expected = {**CLASSICS, **CUSTOM}[name]
    ours, twins = _leaves(dtype, layout)
    y, mean, var = _normalize(pool, *ours, as_policy=as_policy)
    z = expected(*twins)
    assert_within(y, z, OUTPUT)
    # moments of each pool for a Pool, of each plane for other policies
    wanted = twins[0].detach().mean((2, 3)), twins[0].detach().var((2, 3), correction=0)
    if isinstance(pool, Pool) and not as_policy:
        wanted = pool.merge(*wanted)
    bound = 10 * STATISTICS[dtype]
    torch.testing.assert_close(mean, wanted[0], rtol=bound, atol=bound)
    torch.testing.assert_close(var, wanted[1], rtol=bound, atol=bound)
    gradient = LAYOUTS[layout](torch.randn(y.shape).to(dtype))
    found = torch.autograd.grad(y, ours, gradient)
    wanted = torch.autograd.grad(z, twins, gradient.double().contiguous())
    for mine, right in zip(found, wanted, strict=True):
        assert_within(mine, right, GRADIENT)


@every_pool
@pytest.mark.parametrize("as_policy", [False, True])
def test_double_backward(backend, name, as_policy):
    pool, expected = {**CLASSICS, **CUSTOM}[name]
    ours, twins = _leaves(torch.float64)
    upstream = torch.randn(4, 6, 5, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for leaves, y in (
        (ours, _normalize(pool, *ours, as_policy=as_policy)[0]),
        (twins, expected(*twins)),
    ):
        first = torch.autograd.grad(y, leaves, upstream, create_graph=True)
        loss = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(loss, [*leaves, upstream], materialize_grads=True)
        results.append([*first, *second])
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (1, 2)])
@pytest.mark.parametrize("as_policy", [False, True])
def test_gradients_of_some_operands_only(backend, needed, as_policy):
    ours, twins = _leaves(torch.float64)
    for leaves in (ours, twins):
        for index in {0, 1, 2} - set(needed):
            leaves[index].requires_grad_(False)
    y = _normalize(Pool(1, 3), *ours, as_policy=as_policy)[0]
    z = F.group_norm(twins[0], 2, *twins[1:])
    found = torch.autograd.grad(y.pow(3).sum(), [ours[index] for index in needed])
    wanted = torch.autograd.grad(z.pow(3).sum(), [twins[index] for index in needed])
    torch.testing.assert_close(found, wanted)


def test_a_policy_that_learns(backend):
    # a mixture of two pools, as in SwitchableNorm, whose share needs a gradient
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def mixture(mean, var):
        layer_mean, layer_var = Pool(1, None)(mean, var)
        return torch.lerp(mean, layer_mean, share), torch.lerp(var, layer_var, share)

    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    function = lambda x, _: _normalize(mixture, x)[0]  # noqa: E731
    assert gradcheck(function, (x, share), check_batched_grad=True)
    assert gradgradcheck(function, (x, share), check_batched_grad=True)


@pytest.mark.parametrize("activation", ["", "silu"])
@pytest.mark.parametrize("needs_residual", [False, True])
def test_a_policy_of_far_moments_with_a_tail(backend, activation, needs_residual):
    # dx has two terms about different centres, computed in one pass or in two
    weight, bias = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    x = torch.randn(2, 3, 5, dtype=torch.float64) + 3
    residual = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=needs_residual)

    def function(x, weight, bias, residual):
        tail = Tail(activation, 0.1, residual)
        return engine.normalize_by(_zero_mean, x, weight, bias, eps=EPS, tail=tail)[0]

    operands = [x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), residual]
    assert gradcheck(function, operands)
    assert gradgradcheck(function, operands)


def test_moments_have_gradients(backend):
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    for function in (
        engine.moments,
        lambda x: engine.moments(x)[0],
        lambda x: engine.moments(x)[1],
    ):
        assert gradcheck(function, x, check_batched_grad=True)
        assert gradgradcheck(function, x, check_batched_grad=True)


def test_moments_and_their_use_may_part(backend):
    # a loss on the moments alone, after one that went through both nodes
    seen = []

    def policy(mean, var):
        seen[:] = mean, var
        return mean, var

    x = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    y, _, _ = _normalize(policy, x)
    y.pow(3).sum().backward(retain_graph=True)
    x.grad = None
    (found,) = torch.autograd.grad(seen[1].square().sum(), x)
    twin = x.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(twin.var(2, correction=0).square().sum(), twin)
    torch.testing.assert_close(found, wanted)


def test_a_changed_input_is_noticed(backend):
    x = torch.randn(2, 3, 7, requires_grad=True) * 1
    y, _, _ = _normalize(_zero_mean, x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("pool", [Pool(1, 1), Pool(1, 3)])
def test_parameters_of_each_sample(backend, layout, pool):
    (x, *_), (twin, *_) = _leaves(torch.float32, layout)
    parameters = [torch.randn(4, 6, requires_grad=True) for _ in range(2)]
    twins = [values.detach().double().requires_grad_() for values in parameters]
    residual = torch.randn(4, 6, 5, 3)
    y = pooled_norm(x, *parameters, pool=pool, activation="relu", residual=residual)
    weight, bias = (values[..., None, None] for values in twins)
    z = F.relu(F.group_norm(twin, 6 // pool.channels) * weight + bias + residual.double())
    assert_within(y, z, OUTPUT)
    gradient = torch.randn(y.shape)
    found = torch.autograd.grad(y, [x, *parameters], gradient)
    wanted = torch.autograd.grad(z, [twin, *twins], gradient.double())
    for mine, right in zip(found, wanted, strict=True):
        assert_within(mine, right, GRADIENT)


def test_parameters_of_each_sample_fit_the_grid(backend):
    x = torch.randn(4, 6, 5)
    with pytest.raises(RuntimeError, match=r"shape \(6,\).*or \(4, 6\), one row for each sample"):
        pooled_norm(x, torch.ones(4, 5), pool=Pool(1, 1))


def test_a_pool_of_samples(backend):
    x = torch.randn(4, 2, 5)
    y = engine.normalize(x, None, None, pool=Pool(2, 1), eps=EPS)[0]
    for pair in (slice(0, 2), slice(2, 4)):
        expected = F.batch_norm(x[pair], None, None, training=True)
        torch.testing.assert_close(y[pair], expected, rtol=1e-5, atol=1e-5)


def test_pooled_moments_are_those_of_all_elements():
    x = 1000 + torch.randn(4, 6, 7, dtype=torch.float64)
    mean, var = x.mean(2), x.var(2, correction=0)
    for pool, axes in ((Pool(None, 1), (0, 2)), (Pool(1, None), (1, 2)), (Pool(None, None), None)):
        pooled_mean, pooled_var = pool(mean, var)
        expected_mean, expected_var = x.mean(axes, True), x.var(axes, correction=0, keepdim=True)
        for found, wanted in ((pooled_mean, expected_mean), (pooled_var, expected_var)):
            assert found.shape == (4, 6)
            wanted = wanted.expand(4, 6, 1)[..., 0] if wanted.dim() == 3 else wanted
            torch.testing.assert_close(found, wanted.expand(4, 6))


def test_an_empty_grid():
    for shape in ((0, 4), (4, 0)):
        mean, var = Pool(None, None)(torch.zeros(shape), torch.zeros(shape))
        assert mean.shape == var.shape == shape


@pytest.mark.parametrize("sizes", [{"samples": 0}, {"channels": 0}, {"channels": -2}])
def test_sizes_are_at_least_one(sizes):
    with pytest.raises(ValueError, match="at least 1; use None for all"):
        Pool(**sizes)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (Pool(1, 4), "does not divide 6 channels: choose a divisor of 6"),
        (Pool(3, 1), "does not divide 4 samples: choose a divisor of 4"),
        (Pool(1, 12), "does not divide 6 channels"),
    ],
)
def test_sizes_divide_the_grid(backend, pool, message):
    with pytest.raises(ValueError, match=message):
        engine.normalize(torch.randn(4, 6, 3), None, None, pool=pool, eps=EPS)
