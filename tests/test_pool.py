"""Pools: each classic layer is one rectangle, values and derivatives of both orders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from layouts import LAYOUTS
from momentnorm import Pool, _engine
from tolerances import GRADIENT, OUTPUT, assert_within

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
    """RMS normalization: the second moment about zero."""
    return torch.zeros_like(mean), var + mean.square()


def _constant(mean, var):
    return torch.full_like(mean, 0.5), torch.full_like(var, 4.0)


def _rows(mean, var):
    """LayerNorm, with results that broadcast to the grid."""
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
def test_output_and_gradients_match_torchs_layer(backend, name, dtype, layout):
    pool, expected = {**CLASSICS, **CUSTOM}[name]
    ours, twins = _leaves(dtype, layout)
    y, mean, var = _engine.normalize(*ours, pool=pool, eps=EPS)
    z = expected(*twins)
    assert_within(y, z, OUTPUT)
    # the moments of each plane, before pooling, whatever the pool
    torch.testing.assert_close(mean, twins[0].detach().mean((2, 3)), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(var, twins[0].detach().var((2, 3), correction=0))
    gradient = LAYOUTS[layout](torch.randn(y.shape).to(dtype))
    found = torch.autograd.grad(y, ours, gradient)
    wanted = torch.autograd.grad(z, twins, gradient.double().contiguous())
    for mine, right in zip(found, wanted, strict=True):
        assert_within(mine, right, GRADIENT)


@every_pool
def test_double_backward(backend, name):
    pool, expected = {**CLASSICS, **CUSTOM}[name]
    ours, twins = _leaves(torch.float64)
    upstream = torch.randn(4, 6, 5, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for leaves, y in (
        (ours, _engine.normalize(*ours, pool=pool, eps=EPS)[0]),
        (twins, expected(*twins)),
    ):
        first = torch.autograd.grad(y, leaves, upstream, create_graph=True)
        loss = sum(g.square().sum() for g in first)
        second = torch.autograd.grad(loss, [*leaves, upstream], materialize_grads=True)
        results.append([*first, *second])
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (1, 2)])
def test_gradients_of_some_operands_only(backend, needed):
    ours, twins = _leaves(torch.float64)
    for leaves in (ours, twins):
        for index in {0, 1, 2} - set(needed):
            leaves[index].requires_grad_(False)
    y = _engine.normalize(*ours, pool=Pool(1, 3), eps=EPS)[0]
    z = F.group_norm(twins[0], 2, *twins[1:])
    found = torch.autograd.grad(y.pow(3).sum(), [ours[index] for index in needed])
    wanted = torch.autograd.grad(z.pow(3).sum(), [twins[index] for index in needed])
    torch.testing.assert_close(found, wanted)


def test_a_policy_that_learns(backend):
    # a mixture of two pools, as in SwitchableNorm: its share needs a gradient too
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def mixture(mean, var):
        layer_mean, layer_var = Pool(1, None)(mean, var)
        return torch.lerp(mean, layer_mean, share), torch.lerp(var, layer_var, share)

    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x, _: _engine.normalize(x, None, None, pool=mixture, eps=EPS)[0],
        (x.requires_grad_(), share),
    )


def test_a_pool_of_samples(backend):
    x = torch.randn(4, 2, 5)
    y = _engine.normalize(x, None, None, pool=Pool(2, 1), eps=EPS)[0]
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
        _engine.normalize(torch.randn(4, 6, 3), None, None, pool=pool, eps=EPS)
