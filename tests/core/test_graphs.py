"""Graphs of our layers: torch.compile, torch.export, ONNX, traces and torch.fx.

Compiled programs keep the kernels as one operator. Programs that leave this process carry torch's
standard operators alone, since they may run where momentnorm is not installed.
"""

from __future__ import annotations

import io
import shutil

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.fx.experimental.proxy_tensor import make_fx

import momentnorm
from momentnorm import use_backend
from momentnorm.core import dispatch, engine, graph_operators
from momentnorm.core.backends import reference
from momentnorm.core.pool import Pool
from momentnorm.functional import instance_norm
from support import stand_in
from support.pairs import norm_pair
from support.tolerances import AGAINST_TORCH, assert_within

deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")


@pytest.fixture(autouse=True)
def _no_compiled_code_left():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _targets(graph):
    return [str(node.target) for node in graph.nodes if node.op == "call_function"]


class _Captured:
    """Compiler backend that records the operators of its graphs, and runs them unchanged."""

    def __init__(self):
        self.operators = []

    def __call__(self, module, inputs):
        def keep(graph, inputs):
            self.operators.append(_targets(graph.graph))
            return make_boxed_func(graph.forward)

        return aot_autograd(fw_compiler=keep, bw_compiler=keep)(module, inputs)

    def ours(self):
        return {o for operators in self.operators for o in operators if "momentnorm" in o}


def _layers(training=True, **arguments):
    arguments = {"dtype": torch.float32, "track_running_stats": True, **arguments}
    return norm_pair(training, **arguments)


def _results(layer, call, x):
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = call(x)
    y.pow(3).sum().backward()
    results = [y, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]
    return [t for t in results if t.is_floating_point()]


# torch.compile


@pytest.mark.parametrize("training", [True, False])
def test_compiled_layers_agree_and_keep_kernels_as_one_operator(backend, training):
    captured = _Captured()
    ours, theirs = _layers(training)
    x = torch.randn(2, 3, 8, 9)
    compiled = torch.compile(ours, fullgraph=True, backend=captured)
    for mine, right in zip(_results(ours, compiled, x), _results(theirs, theirs, x), strict=True):
        assert_within(mine, right.double(), AGAINST_TORCH)
    names = ("normalize", "normalize_backward")
    if not training:
        names = ("apply", "apply_gradient", "gradient_sums")
    # The operators choose the backend when they run, so no graph depends on it.
    assert captured.ours() == {f"momentnorm.{name}.default" for name in names}


def test_calls_that_no_kernel_takes_are_compiled_to_formulas(monkeypatch):
    monkeypatch.setattr(dispatch, "BACKENDS", (reference,))
    captured = _Captured()
    ours, theirs = _layers()
    x = torch.randn(2, 3, 8, 9)
    compiled = torch.compile(ours, fullgraph=True, backend=captured)
    for mine, right in zip(_results(ours, compiled, x), _results(theirs, theirs, x), strict=True):
        assert_within(mine, right.double(), AGAINST_TORCH)
    assert captured.operators
    assert captured.ours() == set()


def test_compiled_code_runs_on_the_backend_asked_for_around_it():
    captured, x = _Captured(), torch.randn(2, 3, 8, 9)
    compiled = torch.compile(instance_norm, fullgraph=True, backend=captured)
    found = []
    for name in ("reference", "stand_in", "reference"):
        with use_backend(name):
            stand_in.calls.clear()
            compiled(x)
            found.append(list(stand_in.calls))
    assert found == [[], ["normalize"], []]
    assert len(captured.operators) == 1  # compiled once


@deprecated
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernels", ["stand_in", "formulas"])
def test_inductor(kernels, layout, monkeypatch):
    if kernels == "formulas":
        monkeypatch.setattr(dispatch, "BACKENDS", (reference,))
    inductor = pytest.importorskip("torch._inductor.config")
    x = torch.randn(2, 3, 8, 9).contiguous(memory_format=layout)
    model = nn.Sequential(nn.ReLU(), momentnorm.InstanceNorm2d(3, affine=True), nn.ReLU())
    eager = _results(model, model, x)
    model.zero_grad()
    stand_in.calls.clear()
    with (
        use_backend("reference" if kernels == "formulas" else kernels),
        inductor.patch(implicit_fallbacks=False, fx_graph_cache=False),
    ):
        found = _results(model, torch.compile(model, fullgraph=True), x)
    expected = ["normalize", "normalize_backward"] if kernels == "stand_in" else []
    assert stand_in.calls == expected
    for mine, right in zip(found, eager, strict=True):
        assert_within(mine, right.double(), AGAINST_TORCH)
    assert found[0].stride() == eager[0].stride()


def test_dynamic_shapes_compile_once(backend):
    ours, theirs = _layers()
    captured = _Captured()
    compiled = torch.compile(ours, fullgraph=True, dynamic=True, backend=captured)
    for shape in ((2, 3, 8, 9), (3, 3, 5, 4), (4, 3, 16, 2)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), theirs(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert len(captured.operators) == 2  # one forward, one backward


@deprecated
@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torch.func.vmap(f),
        lambda f: torch.func.grad(lambda x: f(x).pow(3).sum()),
        lambda f: lambda x: torch.func.jvp(f, (x,), (x,))[1],
    ],
)
def test_transforms_inside_a_compiled_function(backend, transform):
    ours, _ = _layers(track_running_stats=False)
    x = torch.randn(2, 3, 8, 9)
    weight = ours.weight.detach()
    function = transform(lambda x: instance_norm(x.view(-1, 3, 8, 9), weight=weight))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), function(x), rtol=1e-4, atol=1e-5)


def test_compiled_pools(backend):
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    weight = torch.rand(4, requires_grad=True)

    def group_norm(x, weight):
        return engine.normalize(x, weight, None, pool=Pool(1, 2), eps=1e-5)[0]

    compiled = torch.compile(group_norm, fullgraph=True, backend="aot_eager")
    expected = torch.nn.functional.group_norm(x, 2, weight)
    torch.testing.assert_close(compiled(x, weight), expected)
    found = torch.autograd.grad(compiled(x, weight).pow(3).sum(), (x, weight))
    wanted = torch.autograd.grad(expected.pow(3).sum(), (x, weight))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_compiled_moments(backend):
    x = torch.randn(2, 3, 8, 9)
    compiled = torch.compile(
        lambda x: momentnorm.Moments.of(x).var, fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), x.double().var((2, 3), correction=0))


def test_compiled_errors_are_ours(backend):
    compiled = torch.compile(
        lambda x, w: instance_norm(x, weight=w), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match="weight should have shape"):  # wrapped by dynamo
        compiled(torch.randn(2, 3, 4, 4), torch.ones(4))


# The operators of compiled graphs


def _operands():
    x, gradient, residual = (torch.randn(2, 3, 4, 5) for _ in range(3))
    grid = [torch.rand(2, 3, dtype=torch.float64) for _ in range(4)]
    weight, bias = torch.rand(3), torch.rand(3)
    plain, tail = (None, "", 0.01), (residual, "silu", 0.01)
    plane, sample = (1, 1), (1, 3)
    pooled = [values[:, :1] for values in grid[:2]]
    last = x.to(memory_format=torch.channels_last)
    return {
        "moments": [(x,), (last,), (x[..., ::2],)],
        "apply": [(x, *grid[:3], *plain), (last, *grid[:3], *tail)],
        "gradient_sums": [
            (gradient, x, grid[0], None, None, *plain),
            (gradient, x, *grid[:3], *tail),
        ],
        "apply_gradient": [
            (gradient, x, *grid, None, None, *plain, False),
            (gradient, last, *grid, *grid[:2], *tail, True),
        ],
        "normalize": [
            (x, weight, bias, *plain, 1e-5, *plane),
            (x, None, None, *plain, 1e-5, *plane),
            (x.bfloat16(), weight, bias, *plain, 1e-5, *plane),
            (last, None, bias, *plain, 1e-5, *plane),
            (x.transpose(0, 3), None, None, *plain, 1e-5, *plane),
            (x[..., ::2], weight, None, *plain, 1e-5, *plane),
            (x, weight, bias, *tail, 1e-5, *plane),
            (last, None, None, None, "leaky_relu", 0.2, 1e-5, *plane),
            (last, weight, bias, *tail, 1e-5, *sample),
        ],
        "normalize_backward": [
            (gradient, x, *grid[:2], weight, None, 1e-5, *plane, *plain, False),
            (gradient, last, *grid[:2], None, None, 1e-5, *plane, *plain, False),
            (gradient, last, *grid[:2], weight, bias, 1e-5, *plane, *tail, True),
            (gradient, x, *grid[:2], None, bias, 1e-5, *plane, None, "tanh", 0.01, False),
            (gradient, last, *pooled, weight, bias, 1e-5, *sample, *tail, True),
        ],
    }


@pytest.mark.parametrize("operator", _operands())
def test_operators_follow_torchs_rules(backend, operator):
    for operands in _operands()[operator]:
        torch.library.opcheck(getattr(torch.ops.momentnorm, operator).default, operands)


def test_operators_ask_about_the_parameters_too(backend):
    # a backend may take the input and refuse its weight
    x, weight = torch.randn(2, 3, 4), torch.rand(3, dtype=torch.float64)
    y, _, _ = graph_operators.normalize(x, weight, None, 1e-5)
    torch.testing.assert_close(y, torch.nn.functional.instance_norm(x, weight=weight.float()))


# torch.export and ONNX


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_export_gives_what_torchs_own_layer_exports(backend, training, strict):
    ours, theirs = _layers(training)
    x = torch.randn(2, 3, 8, 9)
    programs = [torch.export.export(layer, (x,), strict=strict) for layer in (ours, theirs)]
    mine, right = (_targets(program.graph) for program in programs)
    assert mine == right
    assert any("norm" in target for target in mine)
    assert not any("momentnorm" in target for target in mine)
    torch.testing.assert_close(programs[0].module()(x), programs[1].module()(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("dynamo", [True, False])
def test_onnx_gives_what_torchs_own_layer_gives(backend, dynamo):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    nodes = []
    for layer in _layers(training=False, track_running_stats=False):
        file = io.BytesIO()
        torch.onnx.export(layer, (torch.randn(2, 3, 8, 9),), file, dynamo=dynamo)
        model = onnx.load_from_string(file.getvalue())
        onnx.checker.check_model(model)
        nodes.append([node.op_type for node in model.graph.node])
    assert nodes[0] == nodes[1]
    assert "InstanceNormalization" in nodes[0]


# torch.jit: deprecated, but many stored programs use it


@deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # raised by torch's checks of sizes
@pytest.mark.parametrize("training", [True, False])
def test_traces_carry_the_standard_operator(backend, training):
    ours, theirs = _layers(training)
    x = torch.randn(2, 3, 8, 9)
    traced = torch.jit.trace(ours, (x,), check_trace=False)
    assert "aten::instance_norm" in str(traced.inlined_graph)
    assert "momentnorm::" not in str(traced.inlined_graph)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(traced(x), theirs(x))


@deprecated
@pytest.mark.parametrize(
    "layer",
    [momentnorm.InstanceNorm2d(3), momentnorm.SwitchableNorm2d(3), momentnorm.Sequential()],
    ids=lambda layer: type(layer).__name__,
)
def test_a_script_is_refused_with_the_fix(layer):
    with pytest.raises(RuntimeError, match=r"does not take .*: call momentnorm.restore\(model\)"):
        torch.jit.script(nn.Sequential(nn.Conv2d(3, 3, 1), layer))


@deprecated
def test_a_restored_model_can_be_scripted():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3), nn.ReLU())
    momentnorm.accelerate(model)
    momentnorm.restore(model)
    scripted = torch.jit.script(model)
    x = torch.randn(2, 3, 8, 9)
    torch.testing.assert_close(scripted(x), model(x))


# torch.fx


def test_symbolic_traces_keep_the_layer_as_a_leaf(backend):
    def model(norm):
        return nn.Sequential(nn.Conv2d(3, 4, 3), norm(4), nn.Sequential(nn.ReLU(), norm(4)))

    ours, theirs = model(momentnorm.InstanceNorm2d), model(nn.InstanceNorm2d)
    mine, right = torch.fx.symbolic_trace(ours), torch.fx.symbolic_trace(theirs)
    assert [(n.op, n.target) for n in mine.graph.nodes] == [
        (n.op, n.target) for n in right.graph.nodes
    ]
    x = torch.randn(2, 3, 8, 9)
    assert torch.equal(mine(x), ours(x))
    functional = torch.fx.symbolic_trace(lambda x: instance_norm(x) + 1)
    assert torch.equal(functional(x), instance_norm(x) + 1)


def test_make_fx_sees_ordinary_operators(backend):
    layer, _ = _layers(track_running_stats=False)
    x = torch.randn(2, 3, 8, 9)
    graph = make_fx(lambda x: torch.func.grad(lambda t: layer(t).pow(3).sum())(x))(x)
    assert not any("momentnorm" in target for target in _targets(graph.graph))
    assert any("rsqrt" in target for target in _targets(graph.graph))
