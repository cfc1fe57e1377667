"""Strided inputs: copied into the nearest layout that the kernels read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import momentnorm
from momentnorm.core import dispatch
from momentnorm.core.backends import cpu
from momentnorm.core.backends.operands import layout
from momentnorm.functional import batch_norm, group_norm, instance_norm, pooled_norm
from support.layouts import _channels_last
from support.tolerances import GRADIENT, OUTPUT, assert_within

STATISTICS = torch.linspace(-1, 1, 6), torch.linspace(0.5, 2, 6)

#: name: function that makes a view with the values of x, (4, 6, *S), that no kernel reads.
VIEWS = {
    "crop": lambda x: _inside(x, -1),
    "channels": lambda x: _inside(x, 1),
    "every second element": lambda x: _every_second(x, -1),
    "every second channel": lambda x: _every_second(x, 1),
    "every second sample": lambda x: _every_second(x, 0),
    "samples and width swapped": lambda x: _swapped(x, 0, -1),
    "channels and width swapped": lambda x: _swapped(_every_second(x, 0), 1, -1),
    "channels_last crop": lambda x: _inside(x, -1, last=True),
    "channels_last channels": lambda x: _inside(x, 1, last=True),
}

NEAR_CHANNELS_LAST = ("channels and width swapped", "channels_last crop", "channels_last channels")


def _inside(x: Tensor, dim: int, last: bool = False) -> Tensor:
    """Slice with the values of x, of a tensor that is larger along dim."""
    padding = torch.full_like(x.narrow(dim, 0, 2), torch.nan)
    held = torch.cat((padding, x, padding), dim)
    return (_channels_last(held) if last else held.contiguous()).narrow(dim, 2, x.shape[dim])


def _every_second(x: Tensor, dim: int) -> Tensor:
    held = torch.stack((x, torch.full_like(x, torch.nan)), dim % x.dim() + 1)
    return held.select(dim % x.dim() + 1, 0)


def _swapped(x: Tensor, one: int, other: int) -> Tensor:
    return x.transpose(one, other).contiguous().transpose(one, other)


FUNCTIONS = {
    "instance": (instance_norm, F.instance_norm),
    "group": (
        lambda x, **parameters: group_norm(x, 3, **parameters),
        lambda x, **parameters: F.group_norm(x, 3, **parameters),
    ),
    "batch": (
        lambda x, **parameters: batch_norm(x, None, None, training=True, **parameters),
        lambda x, **parameters: F.batch_norm(x, None, None, training=True, **parameters),
    ),
    "evaluation": (
        lambda x, **parameters: batch_norm(x, *STATISTICS, **parameters),
        lambda x, **parameters: F.batch_norm(x, *(s.to(x) for s in STATISTICS), **parameters),
    ),
    "policy": (
        lambda x, **parameters: pooled_norm(x, pool=lambda mean, var: (mean, var), **parameters),
        F.instance_norm,
    ),
}

every_view = pytest.mark.parametrize("view", VIEWS)
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def _call(name, x, gradient):
    """y, and the gradients of x, weight and bias."""
    x = x.detach().requires_grad_()
    parameters = [torch.linspace(1, 2, 6), torch.linspace(-1, 1, 6)]
    weight, bias = (values.requires_grad_() for values in parameters)
    y = FUNCTIONS[name][0](x, weight=weight, bias=bias)
    return y, torch.autograd.grad(y, (x, weight, bias), gradient)


@every_view
@every_function
def test_a_view_has_the_bits_of_its_copy(backend, name, view):
    for spatial in [(5, 4), (12, 13)] if backend == "cpu" else [(5, 4)]:
        values, gradient = (2 * torch.randn(4, 6, *spatial) + 1 for _ in range(2))
        x = VIEWS[view](values)
        assert torch.equal(x, values)
        assert layout(x) is None
        y, found = _call(name, x, gradient)
        copy = _channels_last(values) if view in NEAR_CHANNELS_LAST else values
        z, wanted = _call(name, copy, gradient)
        assert y.stride() == z.stride() == copy.stride()
        assert torch.equal(y, z)
        for mine, right in zip(found, wanted, strict=True):
            assert torch.equal(mine, right)
        twin = values.double().requires_grad_()
        parameters = torch.linspace(1, 2, 6).double(), torch.linspace(-1, 1, 6).double()
        exact = FUNCTIONS[name][1](twin, weight=parameters[0], bias=parameters[1])
        assert_within(y, exact, OUTPUT)
        assert_within(found[0], *torch.autograd.grad(exact, twin, gradient.double()), GRADIENT)


@pytest.mark.parametrize("spatial", [(9,), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("view", ["crop", "channels_last channels"])
def test_series_and_volumes(backend, view, spatial):
    values = torch.randn(4, 6, *spatial)
    y = instance_norm(VIEWS[view](values))
    assert layout(y) == layout(_channels_last(values) if "last" in view else values)
    assert_within(y, F.instance_norm(values.double()), OUTPUT)


@every_view
@pytest.mark.parametrize("name", ["instance", "group", "evaluation"])
def test_neither_threads_nor_the_batch_change_a_bit(restored, name, view):
    if cpu.unavailable():
        pytest.skip(cpu.unavailable())
    x, gradient = VIEWS[view](torch.randn(4, 6, 64, 65)), torch.randn(4, 6, 64, 65)
    torch.set_num_threads(1)
    y, (dx, *_) = _call(name, x, gradient)
    torch.set_num_threads(2)
    again, (dx_again, *_) = _call(name, x, gradient)
    assert torch.equal(again, y)
    assert torch.equal(dx_again, dx)
    alone, (dx_alone, *_) = _call(name, x[1:3], gradient[1:3])
    assert torch.equal(alone, y[1:3])
    assert torch.equal(dx_alone, dx[1:3])


@pytest.mark.skipif(bool(cpu.unavailable()), reason=cpu.unavailable())
@every_view
def test_kernels_take_the_copy(view, monkeypatch):
    x = VIEWS[view](torch.randn(4, 6, 5, 4)).requires_grad_()
    assert dispatch.choose(x).backend is cpu
    for backend in dispatch.BACKENDS:
        if backend is not cpu:
            monkeypatch.setattr(backend, "normalize", None)
            monkeypatch.setattr(backend, "normalize_backward", None)
    with momentnorm.patch():
        F.instance_norm(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_vectors(backend, dtype, dim):
    x = _every_second(torch.randn(8, 6, dtype=dtype), dim)
    assert_within(group_norm(x, 2), F.group_norm(x.double(), 2), OUTPUT)
    exact = F.batch_norm(x.double(), None, None, training=True)
    assert_within(batch_norm(x, None, None, training=True), exact, OUTPUT)


@pytest.mark.parametrize("view", ["crop", "every second element", "channels_last channels"])
def test_options_and_second_derivatives(backend, view):
    x, residual = (VIEWS[view](torch.randn(4, 6, 5, 4)) for _ in range(2))
    expected = F.silu(F.instance_norm(x.double()) + residual.double())
    options = {"activation": "silu", "residual": residual}
    assert_within(instance_norm(x, **options), expected, OUTPUT)
    out = VIEWS[view](torch.empty_like(x))
    strides = out.stride()
    assert instance_norm(x, out=out, **options) is out
    assert_within(out, expected, OUTPUT)
    assert out.stride() == strides
    leaf, twin = x.clone().requires_grad_(), x.double().requires_grad_()
    for operand, function in ((leaf, instance_norm), (twin, F.instance_norm)):
        seen = operand if operand is twin else VIEWS[view](operand)
        y = function(seen).sin()
        (first,) = torch.autograd.grad(y.sum(), operand, create_graph=True)
        first.square().sum().backward()
    assert_within(leaf.grad, twin.grad, {torch.float32: 64})
    assert instance_norm(x, inplace=True, **options) is x
    assert_within(x, expected, OUTPUT)


def test_an_expanded_input_gives_what_its_copy_gives(backend):
    x = torch.randn(2, 1, 5, 4).expand(2, 6, 5, 4)
    y = group_norm(x, 2)
    assert y.is_contiguous()
    assert torch.equal(y, group_norm(x.contiguous(), 2))
