"""Explanations of every layer: steps, gradients and running statistics equal the layer's own."""

from __future__ import annotations

import copy
import json

import pytest
import torch

import momentnorm
from momentnorm.explainer import explain
from momentnorm.explainer.steps import PARTS, RUNNING
from support.explained_layers import IN_INPUT_DTYPE, every_layer, made


@every_layer
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_last_step_equals_the_output(kind, training, dtype):
    if dtype == torch.bfloat16 and kind.startswith("local response"):
        pytest.skip("torch has no average pooling of bfloat16 on the CPU")
    layer, x, *more = made(kind, dtype, training)
    trace = explain(layer, x, *more)
    with torch.no_grad(), momentnorm.use_backend("reference"):
        y = copy.deepcopy(layer)(x.clone(), *more)
    assert trace.y.dtype == dtype
    assert trace.y.shape == y.shape
    if type(layer).__module__.startswith("torch.nn") or kind in IN_INPUT_DTYPE:
        close = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}[dtype]
        if kind.startswith("spade"):
            close *= 8  # three convolutions
        torch.testing.assert_close(trace.y, y, rtol=close, atol=close)
    else:
        assert torch.equal(trace.y, y)


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_the_layer_does_not_change(kind, training):
    layer, x, *more = made(kind, training=training)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    kept, hooked = x.clone(), layer.training
    explain(layer, x, *more, gradient="ones")
    assert torch.equal(x, kept)
    assert layer.training == hooked
    assert all(parameter.grad is None for parameter in layer.parameters())
    after = layer.state_dict()
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_equal_those_after_a_call(kind, training):
    layer, x, *more = made(kind, training=training)
    trace = explain(layer, x, *more)
    before = copy.deepcopy(dict(layer.named_buffers()))
    with torch.no_grad(), momentnorm.use_backend("reference"):
        layer(x.clone(), *more)
    theirs = {step.name: step.values for step in trace.part(RUNNING)}
    moved = [name for name in theirs if not name.endswith(("_before", "_of_batch"))]
    buffers = dict(layer.named_buffers())
    for name in moved:
        after = buffers[name].flatten()
        torch.testing.assert_close(theirs[name], after, rtol=1e-6, atol=1e-6)
    changed = {n for n in before if "running" in n and not torch.equal(before[n], buffers[n])}
    assert changed <= set(moved)


@every_layer
@pytest.mark.parametrize("training", [True, False])
def test_gradients_equal_those_of_the_layer(kind, training):
    layer, x, *more = made(kind, torch.float64, training)
    if getattr(layer, "inplace", False):
        layer.inplace = False
    gradient = torch.randn_like(x)
    trace = explain(layer, x, *more, gradient=gradient)
    leaf = x.clone().requires_grad_()
    with momentnorm.use_backend("reference"):
        layer(leaf, *more).backward(gradient)
    torch.testing.assert_close(trace["dx"].values, leaf.grad, rtol=1e-9, atol=1e-9)
    for name, parameter in layer.named_parameters():
        owner, _, last = name.rpartition(".")
        if kind.startswith(("conditional", "spade")):
            continue  # the layer's gradients are of parameters that the weights are computed from
        step = trace[f"{owner}.d{last}" if owner else f"d{last}"]
        expected = parameter.grad.reshape(step.shape)
        torch.testing.assert_close(step.values, expected, rtol=1e-9, atol=1e-9)


@every_layer
def test_the_steps_can_be_shown(kind):
    layer, x, *more = made(kind)
    trace = explain(layer, x, *more).backward("one")
    assert [step.part for step in trace] == sorted((s.part for s in trace), key=PARTS.index)
    assert len(set(trace.names)) == len(trace)
    for step in trace:
        assert len(step.axes) == step.values.dim()
    for text in (str(trace), trace._repr_html_(), json.dumps(trace.to_dict(), allow_nan=False)):
        for step in trace:
            assert step.name in text


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid"])
@pytest.mark.parametrize("family", ["instance", "batch", "group"])
def test_activation_and_residual(family, activation):
    x, residual, gradient = torch.randn(3, 2, 4, 3, 3, dtype=torch.float64)
    layer = {
        "instance": lambda **options: momentnorm.InstanceNorm2d(4, affine=True, **options),
        "batch": lambda **options: momentnorm.BatchNorm2d(4, **options),
        "group": lambda **options: momentnorm.GroupNorm(2, 4, **options),
    }[family](activation=("leaky_relu", 0.3) if activation == "leaky_relu" else activation).double()
    trace = explain(layer, x, residual=residual, gradient=gradient)
    operands = [one.clone().requires_grad_() for one in (x, residual)]
    with momentnorm.use_backend("reference"):
        y = copy.deepcopy(layer)(operands[0], residual=operands[1])
    y.backward(gradient)
    assert torch.equal(trace.y, y.detach())
    torch.testing.assert_close(trace["dx"].values, operands[0].grad)
    torch.testing.assert_close(trace["dresidual"].values, operands[1].grad)
    assert trace["pre_activation"].values.shape == x.shape
