"""Residual and activation: derivatives of all orders, and the tensors that are saved for them."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import momentnorm
from momentnorm import Pool, use_backend
from momentnorm.core import engine, replay
from momentnorm.core.tail import Tail
from momentnorm.functional import instance_norm
from support import stand_in
from support.tail_cases import (
    STATS,
    TORCHS,
    by_formula,
    by_fusion,
    every_activation,
    in_both_modes,
    make_operands,
    with_and_without_residual,
)
from support.tolerances import GRADIENT, assert_within


@every_activation
@with_and_without_residual
@in_both_modes
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_gradcheck(backend, activation, with_residual, training):
    ours, *_ = make_operands(torch.float64, with_residual=with_residual, shape=(2, 3, 2, 3))
    stats = STATS[training]()

    def function(x, weight, bias, residual=None):
        return by_fusion(x, stats, weight, bias, residual, activation, training)

    operands = [operand for operand in ours if operand is not None]
    assert gradcheck(function, operands, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(function, operands, check_batched_grad=True)


@every_activation
def test_gradgradcheck_of_another_pool(backend, activation):
    ours, *_ = make_operands(torch.float64, shape=(2, 4, 2, 3))

    def function(x, weight, bias, residual):
        tail = Tail(activation or "", 0.2, residual)
        return engine.normalize(x, weight, bias, pool=Pool(1, 2), eps=1e-5, tail=tail)[0]

    assert gradcheck(function, ours)
    assert gradgradcheck(function, ours)


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_gradients_to_the_third_order(backend, activation):
    results = []
    ours, gradient, *_ = make_operands(torch.float64, shape=(2, 3, 2, 2))
    for fused in (True, False):
        leaves = [operand.detach().clone().requires_grad_() for operand in ours]
        x, weight, bias, residual = leaves
        if fused:
            y = by_fusion(x, (None, None), weight, bias, residual, activation)
        else:  # the third derivative of torch 2.13's operator is wrong
            mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), correction=0, keepdim=True)
            y = (x - mean) / torch.sqrt(var + 1e-5) * weight.view(3, 1, 1) + bias.view(3, 1, 1)
            y = TORCHS[activation](y + residual)
        value, derivatives = (y**3 * gradient).sum(), []
        for _ in range(3):
            found = torch.autograd.grad(value, leaves, create_graph=True)
            derivatives.extend(found)
            value = sum((g * torch.linspace(0, 1, g.numel()).view_as(g)).sum() for g in found)
        results.append(derivatives)
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


def test_second_derivatives_do_not_replay_the_normalization(backend, monkeypatch):
    ours, _, twins, gradient64 = make_operands(torch.float64)
    results = []
    for operands, call in ((twins, by_formula), (ours, by_fusion)):
        if call is by_fusion:
            monkeypatch.setattr(replay, "normalize", None)
        y = call(operands[0], (None, None), *operands[1:], "gelu")
        first = torch.autograd.grad(y, operands, gradient64, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), operands))
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gradient_with_a_graph_is_the_gradient_without(backend, dtype):
    # rounding in half precision before the kink would change the slope of some elements
    ours, gradient, *_ = make_operands(dtype, shape=(2, 3, 50, 50))
    found = []
    for create_graph in (False, True):
        y = by_fusion(ours[0], (None, None), *ours[1:], "relu")
        found.append(torch.autograd.grad(y, ours, gradient, create_graph=create_graph))
    for without, with_graph in zip(*found, strict=True):
        assert with_graph.requires_grad
        assert_within(with_graph, without.double(), GRADIENT)


@pytest.mark.parametrize(
    "wanted", ["x", "weight", "bias", "residual", "x residual", "bias residual"]
)
@pytest.mark.parametrize("activation", [None, "silu"])
@in_both_modes
def test_gradients_of_some_operands_only(backend, wanted, activation, training):
    stats = STATS[training]()
    operands = [torch.randn(2, 3, 4, 4), torch.rand(3), torch.randn(3), torch.randn(2, 3, 4, 4)]
    named = dict(zip(("x", "weight", "bias", "residual"), operands, strict=True))
    leaves = [named[name].requires_grad_() for name in wanted.split()]
    results = []
    for call in (by_fusion, by_formula):
        y = call(operands[0], stats, *operands[1:], activation, training=training)
        results.append(torch.autograd.grad(y.square().sum(), leaves))
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", [momentnorm.BatchNorm2d, momentnorm.InstanceNorm2d])
@in_both_modes
def test_a_second_derivative_where_the_residual_alone_learns(backend, layer, training):
    norm = layer(3, affine=False, track_running_stats=True).train(training)
    x, residual = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4, requires_grad=True)
    y = norm(x, residual=residual)
    (first,) = torch.autograd.grad(y.square().sum(), residual, create_graph=True)
    torch.testing.assert_close(first, 2 * y)
    (second,) = torch.autograd.grad(first.sum(), residual)
    torch.testing.assert_close(second, torch.full_like(y, 2))


@every_activation
@with_and_without_residual
def test_a_tail_costs_no_further_call(activation, with_residual):
    ours, gradient, *_ = make_operands(torch.float32, with_residual=with_residual)
    with use_backend("stand_in"):
        stand_in.calls.clear()
        by_fusion(ours[0], (None, None), *ours[1:], activation).backward(gradient)
    assert stand_in.calls == ["normalize", "normalize_backward"]


def test_the_gradient_of_a_residual_alone_needs_no_kernel():
    x, residual = torch.randn(2, 3, 4), torch.randn(2, 3, 4, requires_grad=True)
    with use_backend("stand_in"):
        y = instance_norm(x, residual=residual)
        stand_in.calls.clear()
        (found,) = torch.autograd.grad(y, residual, x)
    assert stand_in.calls == []
    assert torch.equal(found, x)


@pytest.mark.parametrize(("activation", "large"), [(None, 1), ("relu", 2)])
@in_both_modes
def test_what_backward_saves_is_small(backend, activation, large, training):
    """The backward saves x, and with an activation the residual, but not y."""
    if backend == "reference":
        pytest.skip("memory matters where kernels run")
    ours, *_ = make_operands(torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        by_fusion(ours[0], STATS[training](), *ours[1:], activation, training)
    kept = [t.data_ptr() for t in saved if t.shape == ours[0].shape]
    assert kept == [ours[0].data_ptr(), ours[3].data_ptr()][:large]


def test_no_cycle_keeps_a_graph_alive(backend):
    gc.collect()
    gc.disable()
    try:
        for activation in (None, "tanh"):
            x = torch.randn(2, 3, 4, requires_grad=True) * 1
            y = instance_norm(x, residual=x, activation=activation)
            y.sum().backward()
            gone = [weakref.ref(x), weakref.ref(y)]
            del x, y
            assert [reference() for reference in gone] == [None, None]
    finally:
        gc.enable()


def test_the_output_may_be_modified_in_place(backend):
    ours, *_ = make_operands(torch.float64)
    found = []
    for double in (lambda y: 2 * y, lambda y: y.mul_(2)):
        y = double(by_fusion(ours[0], (None, None), *ours[1:], "tanh"))
        found.append(torch.autograd.grad(y.sum(), ours))
    for mine, right in zip(*found, strict=True):
        assert torch.equal(mine, right)


@pytest.mark.parametrize(("activation", "allowed"), [(None, True), ("tanh", False)])
@pytest.mark.parametrize("operand", ["bias", "residual"])
def test_modifying_what_the_activation_needs_raises(activation, allowed, operand):
    x, bias, residual = torch.randn(2, 3, 4).requires_grad_(), torch.zeros(3), torch.zeros(2, 3, 4)
    with use_backend("stand_in"):
        y = instance_norm(x, bias=bias, residual=residual, activation=activation)
        {"bias": bias, "residual": residual}[operand].add_(1)
        if allowed:
            y.sum().backward()
            return
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
