"""Residual and activation in transforms and graphs."""

from __future__ import annotations

import copy
import io
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import momentnorm
from momentnorm import use_backend
from momentnorm.functional import instance_norm
from support import stand_in
from support.tail_cases import (
    STATS,
    by_formula,
    by_fusion,
    deprecated,
    every_activation,
    in_both_modes,
    optioned_layer,
    sloped,
)


@deprecated
@in_both_modes
def test_transforms(backend, training):
    x, residual = torch.randn(2, 2, 3, 4, 5).double()
    stats, weight, bias = STATS[training](), torch.rand(3).double(), torch.randn(3).double()

    def derivatives(call):
        def function(x, residual):
            return call(x, stats, weight, bias, residual, "gelu", training=training)

        yield torch.func.jvp(function, (x, residual), (residual, x))
        yield torch.func.grad(lambda *xs: function(*xs).pow(3).sum(), (0, 1))(x, residual)
        yield torch.func.vmap(lambda *xs: function(*(t[None] for t in xs)))(x, residual)
        yield torch.func.vmap(function, in_dims=(None, 0))(x, torch.stack((residual, x)))

    for mine, right in zip(derivatives(by_fusion), derivatives(by_formula), strict=True):
        torch.testing.assert_close(mine, right)


def test_functional_call(backend):
    layer = momentnorm.InstanceNorm2d(3, affine=True, activation="silu")
    parameters = {"weight": torch.rand(3), "bias": torch.randn(3)}
    x, residual = torch.randn(2, 2, 3, 4, 5)
    y = torch.func.functional_call(layer, parameters, (x, residual))
    expected = F.silu(F.instance_norm(x, **parameters) + residual)
    torch.testing.assert_close(y, expected)


def test_writing_under_transforms(backend):
    x = torch.randn(4, 2, 3, 5)
    expected = torch.stack([instance_norm(t) for t in x])
    torch.testing.assert_close(
        torch.func.vmap(lambda t: instance_norm(t.clone(), inplace=True))(x), expected
    )
    moved = torch.func.functionalize(lambda t: instance_norm(t.clone(), inplace=True))(x[0])
    torch.testing.assert_close(moved, expected[0])


class _Celsius(torch.Tensor):
    """Plain subclass, whose type torch carries through functions."""


def test_tensor_subclasses(backend):
    x, residual = torch.randn(2, 2, 3, 5)
    y = instance_norm(x, residual=residual.as_subclass(_Celsius), activation="relu")
    assert type(y) is _Celsius
    torch.testing.assert_close(y.as_subclass(torch.Tensor), F.relu(F.instance_norm(x) + residual))


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("activation", ["gelu", None])
@in_both_modes
def test_compiled_layers(backend, activation, training):
    layer = momentnorm.InstanceNorm2d(
        3, affine=True, activation=activation, track_running_stats=True
    )
    layer.train(training)
    operands = [torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2)]
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    results = []
    for call in (layer, compiled):
        y = call(*operands)
        results.append([y, *torch.autograd.grad(y.pow(3).sum(), (*operands, *call.parameters()))])
        results[-1].extend(call.buffers())
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("fresh")
def test_compiled_tails_are_one_operator_each_way():
    def function(x, residual):
        return instance_norm(x, residual=residual, activation="relu")

    operands = [torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2)]
    with use_backend("stand_in"):
        stand_in.calls.clear()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        compiled(*operands).sum().backward()
    assert stand_in.calls == ["normalize", "normalize_backward"]


@pytest.mark.usefixtures("fresh")
def test_compiled_writing(backend):
    x = torch.randn(2, 3, 4, 5)
    expected = instance_norm(x, activation="tanh")
    for option in ("inplace", "out"):
        compiled = torch.compile(
            lambda x, out, option=option: instance_norm(
                x, activation="tanh", **({"out": out} if option == "out" else {"inplace": True})
            ),
            fullgraph=True,
            backend="aot_eager",
        )
        given, out = x.clone(), torch.empty_like(x)
        version = given._version, out._version
        torch.testing.assert_close(compiled(given, out), expected)
        written = given if option == "inplace" else out
        torch.testing.assert_close(written, expected)
        assert written._version > version[option == "out"]


@deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # raised by torch's checks of sizes
@every_activation
@in_both_modes
def test_graphs_that_leave_the_process(backend, activation, training):
    layer = optioned_layer(training, activation=sloped(activation))
    x, residual = torch.randn(2, 2, 3, 4, 5)
    twin = copy.deepcopy(layer)
    expected = twin(x, residual)
    programs = {
        "export": torch.export.export(copy.deepcopy(layer), (x, residual)).module(),
        "trace": torch.jit.trace(copy.deepcopy(layer), (x, residual), check_trace=False),
    }
    for name, program in programs.items():
        if name == "trace":  # the trace has updated them
            program.load_state_dict(layer.state_dict())
        torch.testing.assert_close(program(x, residual), expected)
        torch.testing.assert_close(dict(program.named_buffers()), dict(twin.named_buffers()))
        graph = program.graph if name == "export" else program.inlined_graph
        assert "instance_norm" in str(graph) or "batch_norm" in str(graph)
        assert not re.search(r"momentnorm::|ops\.momentnorm", str(graph))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx(dynamo):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    layer = momentnorm.InstanceNorm2d(3, affine=True, activation="leaky_relu").eval()
    file = io.BytesIO()
    x, residual = torch.randn(2, 2, 3, 4, 5)
    torch.onnx.export(layer, (x, residual), file, dynamo=dynamo)
    model = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(model)
    assert {"InstanceNormalization", "Add", "LeakyRelu"} <= {n.op_type for n in model.graph.node}


def test_symbolic_traces_keep_what_is_given(backend):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = momentnorm.InstanceNorm2d(3, activation="relu")

        def forward(self, x):
            return self.norm(x, residual=x) + self.norm(x)

    block, x = Block(), torch.randn(2, 3, 4, 5)
    traced = torch.fx.symbolic_trace(block)
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    assert [list(node.kwargs) for node in calls] == [["residual"], []]
    assert torch.equal(traced(x), block(x))
    traced = torch.fx.symbolic_trace(lambda x, r: instance_norm(x, residual=r, activation="relu"))
    assert torch.equal(traced(x, x), block.norm(x, residual=x))
