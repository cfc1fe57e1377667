"""Pooled norm: norms by custom policies, and the page that explains them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from momentnorm import (
    Pool,
    use_backend,
)
from momentnorm.functional import pooled_norm
from support import stand_in
from support.layouts import LAYOUTS
from support.relatives_cases import LAYOUT_NAMES
from support.tolerances import GRADIENT, OUTPUT, assert_within


def _half_and_half(mean, var):
    pooled_mean, pooled_var = Pool(1, None)(mean, var)
    return (mean + pooled_mean) / 2, pooled_var


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_pooled_norm_is_its_formula(backend, layout):
    operands = torch.randn(4, 6, 5, 3) + 2, torch.rand(6) + 0.5, torch.randn(6)
    x, weight, bias = (t.requires_grad_() for t in (LAYOUTS[layout](operands[0]), *operands[1:]))
    residual = LAYOUTS[layout](torch.randn(4, 6, 5, 3)).requires_grad_()
    ours = x, weight, bias, residual
    twins = [t.detach().double().contiguous().requires_grad_() for t in ours]
    y = pooled_norm(
        x, weight, bias, pool=_half_and_half, eps=0.1,
        activation=("leaky_relu", 0.2), residual=residual,
    )  # fmt: skip
    x, weight, bias, residual = twins
    mean = (x.mean((2, 3), keepdim=True) + x.mean((1, 2, 3), keepdim=True)) / 2
    var = x.var((1, 2, 3), correction=0, keepdim=True)
    z = (x - mean) / (var + 0.1).sqrt() * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)
    z = F.leaky_relu(z + residual, 0.2)
    assert_within(y, z, OUTPUT)
    gradient = torch.randn(y.shape)
    found = torch.autograd.grad(y, ours, gradient)
    wanted = torch.autograd.grad(z, twins, gradient.double())
    for mine, right in zip(found, wanted, strict=True):
        assert_within(mine, right, GRADIENT)


def test_pooled_norm_runs_on_the_kernels():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    with use_backend("stand_in"):
        stand_in.calls.clear()
        pooled_norm(x, pool=_half_and_half).sum().backward()
        assert stand_in.calls == ["moments", "apply", "gradient_sums", "apply_gradient"]


def test_a_policy_may_compute_in_another_dtype(backend):
    # A policy may return float32, as with running statistics.
    x = torch.randn(2, 3, 5, 4, requires_grad=True)
    mean, var = torch.randn(3), (torch.rand(3) + 0.5).requires_grad_()
    y = pooled_norm(x, pool=lambda *_: (mean, var))
    wanted = F.batch_norm(x, mean, var.detach())
    torch.testing.assert_close(y, wanted)
    found = torch.autograd.grad(y.square().sum(), (x, var))
    exact = torch.autograd.grad(
        ((x - mean.view(3, 1, 1)) / (var.view(3, 1, 1) + 1e-5).sqrt()).square().sum(), (x, var)
    )
    for mine, right in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, right)


def test_pooled_norm_of_one_element_a_plane(backend):
    x = torch.randn(8, 3, 1)
    y = pooled_norm(x, pool=Pool(None, 1))
    torch.testing.assert_close(y, F.batch_norm(x, None, None, training=True))


def test_pooled_norm_refuses():
    x = torch.randn(2, 3, 4, 4)
    for error, message, call in (
        (ValueError, r"expected a feature map", lambda: pooled_norm(x[0, 0], pool=Pool())),
        (ValueError, "unknown activation", lambda: pooled_norm(x, pool=Pool(), activation="no")),
        (RuntimeError, "weight should have shape", lambda: pooled_norm(x, x, pool=Pool())),
        (RuntimeError, "residual", lambda: pooled_norm(x, pool=Pool(), residual=x[:1])),
        (
            NotImplementedError,
            "pooled_norm is not implemented for torch.int64",
            lambda: pooled_norm(x.long(), pool=Pool()),
        ),
        (TypeError, "eps must be a number", lambda: pooled_norm(x, pool=Pool(), eps="0")),
    ):
        with pytest.raises(error, match=message):
            call()


def test_pooled_norm_asks_overriding_tensors():
    class Named(torch.Tensor):
        pass

    y = pooled_norm(torch.randn(2, 3, 4).as_subclass(Named), pool=Pool())
    assert type(y) is Named


def test_the_page_on_norms_of_ones_own_runs():
    page = Path(__file__).parents[2] / "docs/your-own-norm.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    names = {}
    exec(block, names)
    x, y = names["x"].detach(), names["y"].detach()
    var = x.var((2, 3), correction=0).mean(1).view(-1, 1, 1, 1)
    z = (x - x.mean((2, 3), keepdim=True)) / (var + 1e-5).sqrt()
    torch.testing.assert_close(y, z.relu(), rtol=1e-5, atol=1e-5)
    assert all(names[name].grad.any() for name in ("x", "weight", "bias"))
