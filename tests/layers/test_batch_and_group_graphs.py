"""BatchNorm and GroupNorm in transforms and graphs."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import momentnorm
from momentnorm.functional import batch_norm, group_norm
from support.batch_and_group_cases import (
    in_both_modes,
)
from support.pairs import CLASSES, pair

deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")


@deprecated  # torch calls its own script compiler when forward mode is first used
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "GroupNorm"])
@in_both_modes
def test_transforms(backend, name, training):
    shape = (5, 4) if name[-2:] == "1d" else (5, 4, 3, 2)
    ours, theirs = pair(name, *CLASSES[name], dtype=torch.float64)
    ours.train(training), theirs.train(training)
    if training and name != "GroupNorm":
        for layer in (ours, theirs):
            layer.track_running_stats = False  # transforms refuse updates in place
    xs = torch.randn(3, *shape, dtype=torch.float64)
    results = []
    for layer in (ours, theirs):
        parameters = {key: p.detach() for key, p in layer.named_parameters()}

        def loss(parameters, x, layer=layer):
            return torch.func.functional_call(layer, parameters, (x,)).pow(3).sum()

        gradient = torch.func.grad(loss, (0, 1))
        results.append(
            [
                torch.func.vmap(layer)(xs),
                torch.func.vmap(gradient, in_dims=(None, 0))(parameters, xs),
                torch.func.jvp(layer, (xs[0],), (xs[1],)),
            ]
        )
    torch.testing.assert_close(*results)


@in_both_modes
def test_dispatch_modes_see_ordinary_operators(backend, training):
    x = torch.randn(5, 4, 3)
    for layer in (momentnorm.BatchNorm1d(4).train(training), momentnorm.GroupNorm(2, 4)):
        graph = make_fx(layer)(x)
        targets = [str(node.target) for node in graph.graph.nodes]
        assert not any("momentnorm" in target for target in targets)
        assert any("rsqrt" in target for target in targets)


def _graph_case(name, training=True, **options):
    """Our layer and torch's with equal state, and an input."""
    ours, theirs = pair(name, *CLASSES[name])
    for option, value in options.items():
        setattr(ours, option, value)
    shape = (5, 4) if name[-2:] == "1d" else (5, 4, 3, 2)
    return ours.train(training), theirs.train(training), torch.randn(shape)


every_kind = pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "GroupNorm"])


@every_kind
@in_both_modes
@pytest.mark.parametrize("activation", [None, "relu"])
def test_compiled(backend, name, training, activation):
    torch._dynamo.reset()
    ours, theirs, x = _graph_case(name, training, activation=activation)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    results = []
    for layer, call in ((ours, compiled), (theirs, lambda x, r: theirs(x) + r)):
        leaves = [t.clone().requires_grad_() for t in (x, x.flip(0))]
        y = call(*leaves)
        if layer is theirs and activation:
            y = F.relu(y)
        results.append([y, *torch.autograd.grad(y.pow(3).sum(), (*leaves, *layer.parameters()))])
        results[-1].extend(buffer.clone() for buffer in layer.buffers())
    with torch.no_grad():
        out = torch.empty_like(x)
        assert torch.equal(compiled(x, x, out=out), out)
        torch.testing.assert_close(out, ours(x, x), rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-4)


def test_an_average_of_all_batches_compiles(backend):
    torch._dynamo.reset()
    ours, theirs, x = _graph_case("BatchNorm2d", momentum=None)
    theirs.momentum = None
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    for step in range(3):
        torch.testing.assert_close(compiled(x + step), theirs(x + step))
    torch._dynamo.reset()
    for mine, right in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, right)


@every_kind
@in_both_modes
@pytest.mark.parametrize("strict", [True, False])
def test_export_gives_what_torchs_own_layer_exports(backend, name, training, strict):
    ours, theirs, x = _graph_case(name, training)
    programs = [torch.export.export(layer, (x,), strict=strict) for layer in (ours, theirs)]
    mine, right = (
        [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        for program in programs
    )
    assert mine == right
    assert any("norm" in target for target in mine)
    torch.testing.assert_close(programs[0].module()(x), programs[1].module()(x))


@every_kind
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_gives_what_torchs_own_layer_gives(name, dynamo):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    *layers, x = _graph_case(name, training=False)
    nodes = []
    for layer in layers:
        file = io.BytesIO()
        torch.onnx.export(layer, (x,), file, dynamo=dynamo)
        model = onnx.load_from_string(file.getvalue())
        onnx.checker.check_model(model)
        nodes.append([node.op_type for node in model.graph.node])
    assert nodes[0] == nodes[1]
    assert any("Normalization" in node for node in nodes[0])


@deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # raised by torch's checks of sizes
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("BatchNorm1d", {}),
        ("BatchNorm1d", {"momentum": None}),
        ("BatchNorm2d", {"activation": "silu"}),
        ("BatchNorm2d", {"activation": "relu", "momentum": None}),
        ("GroupNorm", {}),
        ("GroupNorm", {"activation": "gelu"}),
    ],
)
@in_both_modes
def test_traces_carry_the_standard_operator(backend, name, training, options):
    layer, _, x = _graph_case(name, training, **options)
    residual, twin = torch.randn_like(x), copy.deepcopy(layer)
    expected = twin(x, residual)
    program = torch.jit.trace(copy.deepcopy(layer), (x, residual), check_trace=False)
    program.load_state_dict(layer.state_dict())  # the trace has updated the statistics
    torch.testing.assert_close(program(x, residual), expected)
    torch.testing.assert_close(dict(program.named_buffers()), dict(twin.named_buffers()))
    graph = str(program.inlined_graph)
    assert "aten::batch_norm" in graph or "aten::group_norm" in graph
    assert "momentnorm::" not in graph


@every_kind
def test_symbolic_traces_keep_the_layer_as_a_leaf(backend, name):
    ours, theirs, x = _graph_case(name, training=False)
    graphs = [torch.fx.symbolic_trace(nn.Sequential(layer, nn.ReLU())) for layer in (ours, theirs)]
    mine, right = ([(n.op, n.target) for n in graph.graph.nodes] for graph in graphs)
    assert mine == right
    assert torch.equal(graphs[0](x), ours(x).relu())
    for function in (
        lambda x: batch_norm(x, None, None, training=True, activation="relu"),
        lambda x: group_norm(x, 2, residual=x),
    ):
        assert torch.equal(torch.fx.symbolic_trace(function)(x), function(x))


class _Celsius(torch.Tensor):
    """Plain subclass, whose type torch carries through functions."""


@every_kind
def test_tensor_subclasses(backend, name):
    ours, theirs, x = _graph_case(name)
    y, expected = ours(x.as_subclass(_Celsius)), theirs(x.as_subclass(_Celsius))
    assert type(y) is type(expected) is _Celsius
    torch.testing.assert_close(y, expected)
