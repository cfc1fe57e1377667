"""BatchNorm and GroupNorm: values, running statistics, layouts and options, against torch.

torch's catalogue of inputs is in test_modules.py, classes are in test_classes.py, bad calls in
test_errors.py. The pools themselves are in test_pool.py, in every layout.
"""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import momentnorm
from momentnorm import use_backend
from momentnorm.functional import batch_norm, group_norm, instance_norm
from support import stand_in
from support.layouts import LAYOUTS
from support.pairs import BATCH_NAMES, CLASSES, LAZY_BATCH_NAMES, pair
from support.tolerances import AGAINST_TORCH, GRADIENT, OUTPUT, STATISTICS, assert_within

deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")
in_both_modes = pytest.mark.parametrize("training", [True, False])

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(5, 6), (1, 6, 7), (4, 6, 9), (3, 6, 5, 7), (2, 6, 3, 4, 5), (4, 6, 1, 1)]
STATS = torch.linspace(-1, 1, 6), torch.linspace(0.5, 2, 6)

#: name: (ours, torch's), of x, weight, bias and our options.
FUNCTIONS = {
    "batch_norm": (
        lambda x, w, b, **o: batch_norm(x, None, None, w, b, True, **o),
        lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
    ),
    "batch_norm in eval": (
        lambda x, w, b, **o: batch_norm(x, *STATS, w, b, **o),
        lambda x, w, b: F.batch_norm(x, *(s.to(x.dtype) for s in STATS), w, b),
    ),
    **{
        f"group_norm of {groups}": (
            lambda x, w, b, groups=groups, **o: group_norm(x, groups, w, b, **o),
            lambda x, w, b, groups=groups: F.group_norm(x, groups, w, b),
        )
        for groups in (1, 2, 6)
    },
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def _operands(shape, dtype, layout="contiguous", parameters=None):
    """x, weight, bias and residual, a gradient, and the contiguous float64 twins of the first."""
    shapes = (shape, shape[1:2], shape[1:2], shape, shape)
    x, weight, bias, residual, gradient = (torch.randn(s, dtype=torch.float64) for s in shapes)
    ours = [
        LAYOUTS[layout]((3 * x + 2).to(dtype)),
        (weight.abs() + 0.5).to(parameters or dtype),
        bias.to(parameters or dtype),
        LAYOUTS[layout](residual.to(dtype)),
    ]
    ours = [t.detach().requires_grad_() for t in ours]
    twins = [t.detach().double().contiguous().requires_grad_() for t in ours]
    return ours, LAYOUTS[layout](gradient.to(dtype)), twins


# Values and gradients


@every_function
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "sliced"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tailed", [False, True])
def test_output_and_gradients_match_float64(backend, name, layout, dtype, tailed):
    ours_of, theirs_of = FUNCTIONS[name]
    for shape in SHAPES:
        if name == "group_norm of 6" and shape[2:].count(1) == len(shape[2:]):
            continue  # groups of one value have a test of their own
        ours, gradient, twins = _operands(shape, dtype, layout)
        if tailed:
            y = ours_of(*ours[:3], activation="silu", residual=ours[3])
            expected = F.silu(theirs_of(*twins[:3]) + twins[3])
        else:
            ours, twins = ours[:3], twins[:3]
            y, expected = ours_of(*ours), theirs_of(*twins)
        assert y.dtype == dtype
        if layout in ("contiguous", "channels_last"):
            assert y.stride() == ours[0].stride()
        assert_within(y, expected, OUTPUT)
        found = torch.autograd.grad(y, ours, gradient)
        wanted = torch.autograd.grad(expected, twins, gradient.double())
        for mine, right, leaf in zip(found, wanted, ours, strict=True):
            assert mine.dtype == leaf.dtype
            assert_within(mine, right, GRADIENT)


@every_function
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_input_with_float32_parameters(backend, name, dtype):
    ours_of, theirs_of = FUNCTIONS[name]
    for shape in ((5, 6), (2, 6, 3, 4)):
        ours, gradient, twins = _operands(shape, dtype, parameters=torch.float32)
        y, expected = ours_of(*ours[:3]), theirs_of(*twins[:3])
        assert_within(y, expected, OUTPUT)
        found = torch.autograd.grad(y, ours[:3], gradient)
        assert [g.dtype for g in found] == [dtype, torch.float32, torch.float32]
        wanted = torch.autograd.grad(expected, twins[:3], gradient.double())
        for mine, right in zip(found, wanted, strict=True):
            assert_within(mine, right, GRADIENT)


@every_function
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_gradients_of_some_operands_only(backend, name, wanted):
    for shape in ((5, 6), (3, 6, 4)):
        ours, gradient, twins = _operands(shape, torch.float64)
        results = []
        for operands, function in zip((ours, twins), FUNCTIONS[name], strict=True):
            for index in {0, 1, 2} - set(wanted):
                operands[index].requires_grad_(False)
            y = function(*operands[:3])
            leaves = [operands[index] for index in wanted]
            results.append(torch.autograd.grad(y, leaves, gradient))
        for mine, right in zip(*results, strict=True):
            torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("mean", [30.0, -1000.0])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "eval" not in name])
def test_a_large_mean_loses_no_digits(backend, name, mean):
    # torch 2.13's GroupNorm errs by 0.1 and more in channels_last, and by 150 for larger planes
    ours_of, theirs_of = FUNCTIONS[name]
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](mean + 0.1 * torch.randn(2, 6, 32, 32)).requires_grad_()
        twin = x.detach().double().contiguous().requires_grad_()
        gradient = torch.randn_like(x)
        y, expected = ours_of(x, None, None), theirs_of(twin, None, None)
        assert y.stride() == x.stride()
        assert_within(y, expected, OUTPUT)
        (dx,) = torch.autograd.grad(y, x, gradient)
        assert dx.stride() == x.stride()
        assert_within(dx, *torch.autograd.grad(expected, twin, gradient.double()), GRADIENT)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "eval" not in name])
def test_constant_channels_give_exactly_the_bias(backend, name):
    bias = torch.randn(6)
    for shape in ((5, 6), (3, 6, 17, 19)):
        y = FUNCTIONS[name][0](torch.full(shape, 255.0), None, bias)
        assert torch.equal(y, bias.view(1, 6, *[1] * (len(shape) - 2)).expand(shape))


def test_what_each_equals(backend):
    x = torch.randn(3, 6, 5, 7)
    assert torch.equal(group_norm(x, 6), instance_norm(x))
    torch.testing.assert_close(group_norm(x, 1), F.layer_norm(x, x.shape[1:]))
    one = x[:1]
    torch.testing.assert_close(batch_norm(one, None, None, training=True), instance_norm(one))
    order = torch.tensor([2, 0, 1])
    y = batch_norm(x, None, None, training=True)
    torch.testing.assert_close(batch_norm(x[order], None, None, training=True), y[order])


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_groups_of_a_sample_are_alone(backend, groups):
    clean = torch.randn(3, 6, 4, 4)
    x = clean.clone()
    x[1, 0, 2, 2] = torch.nan
    y, expected = group_norm(x, groups), group_norm(clean, groups)
    assert y[1, : 6 // groups].isnan().all()
    y[1, : 6 // groups] = expected[1, : 6 // groups]
    assert torch.equal(y, expected)


def test_channels_of_a_batch_are_alone(backend):
    for shape in ((5, 6), (3, 6, 4)):
        clean = torch.randn(shape)
        x = clean.clone()
        x[1, 2] = torch.nan
        y, expected = (batch_norm(t, None, None, training=True) for t in (x, clean))
        assert y[:, 2].isnan().all()
        y[:, 2] = expected[:, 2]
        assert torch.equal(y, expected)


def test_groups_of_one_value_in_several_samples_give_the_bias(backend):
    x, bias = torch.randn(2, 6, 1, 1, requires_grad=True), torch.randn(6)
    for input in (x, x.flatten(1)):
        y = group_norm(input, 6, None, bias)
        assert torch.equal(y, bias.view(bias.shape + (1,) * (input.dim() - 2)).expand_as(input))
        (dx,) = torch.autograd.grad(y, x, torch.randn_like(y))
        assert dx.abs().max() <= 1e-4  # a difference of two terms of size 1 / sqrt(eps)


# Who does the arithmetic


@pytest.mark.parametrize(
    ("name", "shape", "calls"),
    [
        ("batch_norm", (5, 6), ["normalize", "normalize_backward"]),
        ("batch_norm", (2, 6, 3), ["normalize", "normalize_backward"]),
        ("batch_norm in eval", (5, 6), ["apply", "apply_gradient", "gradient_sums"]),
        ("group_norm of 2", (5, 6), ["normalize", "normalize_backward"]),
        ("group_norm of 6", (2, 6, 3), ["normalize", "normalize_backward"]),
    ],
)
def test_kernels_do_the_forward_and_the_backward(name, shape, calls):
    ours, gradient, _ = _operands(shape, torch.float32)
    with use_backend("stand_in"):
        stand_in.calls.clear()
        y = FUNCTIONS[name][0](*ours[:3], residual=ours[3], activation="relu")
        y.backward(gradient)
    assert stand_in.calls == calls


# Running statistics


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, 1, None])
@pytest.mark.parametrize("name", BATCH_NAMES)
def test_running_statistics_move_as_torchs_do(backend, name, momentum):
    ours, theirs = pair(name, 4, momentum=momentum)
    theirs.double()
    shape = {"1d": (5, 4), "2d": (5, 4, 3, 2), "3d": (3, 4, 2, 1, 3)}[name[-2:]]
    for step in range(3):
        x = 3 * torch.randn(shape) + step
        assert_within(ours(x), theirs(x.double()), OUTPUT)
        assert ours.num_batches_tracked.item() == step + 1
        assert_within(ours.running_mean, theirs.running_mean, OUTPUT)
        assert_within(ours.running_var, theirs.running_var, OUTPUT)
    ours.eval(), theirs.eval()
    assert_within(ours(x), theirs(x.double()), OUTPUT)
    assert ours.num_batches_tracked.item() == 3


def test_no_momentum_is_the_average_of_all_batches(backend):
    layer, batches = momentnorm.BatchNorm1d(4, momentum=None), torch.randn(7, 5, 4)
    for batch in batches:
        layer(batch)
    torch.testing.assert_close(layer.running_mean, batches.mean((0, 1)))
    torch.testing.assert_close(layer.running_var, batches.var(1).mean(0))


@pytest.mark.parametrize("stats_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_running_statistics_keep_their_own_dtype(backend, dtype, stats_dtype):
    # torch takes fewer of these pairs
    x = torch.randn(3, 4, 5, 5).to(dtype)
    found, wanted = [
        (torch.zeros(4).to(t), torch.ones(4).to(t)) for t in (stats_dtype, torch.double)
    ]
    batch_norm(x, *found, training=True, momentum=0.5)
    F.batch_norm(x.double(), *wanted, training=True, momentum=0.5)
    for mine, right in zip(found, wanted, strict=True):
        assert mine.dtype == stats_dtype
        # as exact as sums of this input are, and rounded once
        bound = STATISTICS[dtype] + 2 * torch.finfo(stats_dtype).eps
        torch.testing.assert_close(mine.double(), right, rtol=bound, atol=bound)
    y = batch_norm(x, *found)
    assert_within(y, F.batch_norm(x.double(), *(s.double() for s in found)), OUTPUT)


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("switched", [True, False])
def test_tracking_switched_after_construction(backend, tracking, switched):
    ours, theirs = pair("BatchNorm2d", 4, track_running_stats=tracking)
    x = torch.randn(3, 4, 5, 6) + 1
    for layer in (ours, theirs):
        layer.track_running_stats = switched
    for training in (True, False, True):
        ours.train(training), theirs.train(training)
        torch.testing.assert_close(ours(x), theirs(x))
        for mine, right in zip(ours.buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)])
@in_both_modes
def test_empty_batches_work_and_leave_the_running_statistics_alone(backend, shape, training):
    layers = [momentnorm.BatchNorm2d(4), momentnorm.GroupNorm(2, 4)]
    for layer in layers:
        x = torch.empty(shape, requires_grad=True)
        y = layer.train(training)(x)
        assert y.shape == shape
        y.sum().backward()
        assert x.grad.shape == shape
        assert not layer.weight.grad.any()
    assert not layers[0].running_mean.any()
    assert torch.equal(layers[0].running_var, torch.ones(4))
    for empty in (torch.empty(0, 4), torch.empty(2, 0), torch.empty(2, 0, 3)):
        assert batch_norm(empty, None, None, training=True).shape == empty.shape
        assert group_norm(empty, 1).shape == empty.shape


# Layers


@pytest.mark.parametrize("name", BATCH_NAMES)
def test_dimensions(backend, name):
    for dimensions in range(1, 7):
        x = torch.randn((4,) * dimensions)
        results = []
        for layer in pair(name, 4):
            try:
                results.append(layer(x))
            except ValueError as error:
                results.append(str(error))
        assert type(results[0]) is type(results[1])
        if isinstance(results[1], str):
            assert results[0] == results[1]
        else:
            torch.testing.assert_close(*results)


@in_both_modes
def test_one_value_per_channel(backend, training):
    for shape in ((1, 4), (1, 4, 1)):
        for layer in pair("BatchNorm1d", 4):
            layer.train(training)
            if training:
                with pytest.raises(ValueError, match="more than 1 value per channel"):
                    layer(torch.randn(shape))
            else:
                assert layer(torch.randn(shape)).shape == shape


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm"])
def test_another_number_of_channels(backend, name):
    for layer in pair(name, *CLASSES[name]):
        with pytest.raises(RuntimeError):
            layer(torch.randn(2, 6, 3, 3))


@pytest.mark.parametrize("name", [*BATCH_NAMES, *LAZY_BATCH_NAMES, "GroupNorm"])
def test_options_of_layers(backend, name):
    layer = getattr(momentnorm, name)(*CLASSES[name], activation=("leaky_relu", 0.2))
    plain = getattr(nn, name)(*CLASSES[name])
    for shape in {"1d": [(5, 4), (5, 4, 3)], "3d": [(5, 4, 1, 2, 3)]}.get(
        name[-2:], [(5, 4, 3, 2)]
    ):
        x, residual = torch.randn(2, *shape)
        expected = F.leaky_relu(plain(x) + residual, 0.2)
        torch.testing.assert_close(layer(x, residual), expected)
        assert type(layer) is getattr(momentnorm, name.removeprefix("Lazy"))
        assert "activation=('leaky_relu', 0.2)" in repr(layer)
        with torch.no_grad():
            out = torch.full_like(x, torch.nan)
            assert layer(x, residual, out=out) is out
            torch.testing.assert_close(out, expected)
            version = x._version
            layer.inplace = True
            assert layer(x, residual) is x
            assert x._version > version
            torch.testing.assert_close(x, expected)
        layer.inplace = False


@every_function
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_place_and_out_give_the_same_bits(backend, name, dtype):
    function = FUNCTIONS[name][0]
    for shape in ((5, 6), (2, 6, 3, 4)):
        ours, _, _ = _operands(shape, dtype)
        with torch.no_grad():
            x, weight, bias, residual = ours
            tail = {"activation": "gelu", "residual": residual}
            expected = function(x, weight, bias, **tail)
            for layout in LAYOUTS:
                out = LAYOUTS[layout](torch.full_like(x, torch.nan))
                assert function(x, weight, bias, out=out, **tail) is out
                assert torch.equal(out, expected)
            assert function(x, weight, bias, inplace=True, **tail) is x
            assert torch.equal(x, expected)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "GroupNorm"])
@in_both_modes
def test_changes_in_place_before_backward(backend, name, training):
    layer = getattr(momentnorm, name)(*CLASSES[name]).train(training)
    x = torch.randn((5, 4) if name[-2:] == "1d" else (5, 4, 3, 2), requires_grad=True)
    found = [
        torch.autograd.grad(double(layer(x)).square().sum(), x)[0]
        for double in (lambda y: 2 * y, lambda y: y.mul_(2))
    ]
    if training:
        torch.testing.assert_close(*found)
    moved = x.clone()
    y = layer(moved)
    moved.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", ["BatchNorm2d", "GroupNorm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype_of_the_input(backend, name, dtype):
    ours, theirs = pair(name, *CLASSES[name])
    with torch.autocast("cpu", dtype=dtype):
        for x in (torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5, dtype=dtype)):
            assert ours(x).dtype == theirs(x).dtype == x.dtype


# Transforms


@deprecated  # torch itself scripts some of its rules when forward mode is first used
@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "GroupNorm"])
@in_both_modes
def test_transforms(backend, name, training):
    shape = (5, 4) if name[-2:] == "1d" else (5, 4, 3, 2)
    ours, theirs = pair(name, *CLASSES[name], dtype=torch.float64)
    ours.train(training), theirs.train(training)
    if training and name != "GroupNorm":
        for layer in (ours, theirs):
            layer.track_running_stats = False  # their updates in place are no function
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


# Graphs


def _graph_case(name, training=True, **options):
    """Our layer and torch's, with the same state, and an input."""
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
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of torch's own checks of sizes
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
    program.load_state_dict(layer.state_dict())  # the trace itself has updated the statistics
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
    """A plain subclass: torch carries its type through functions."""


@every_kind
def test_tensor_subclasses(backend, name):
    ours, theirs, x = _graph_case(name)
    y, expected = ours(x.as_subclass(_Celsius)), theirs(x.as_subclass(_Celsius))
    assert type(y) is type(expected) is _Celsius
    torch.testing.assert_close(y, expected)


# Training


def test_training_takes_the_same_steps(backend):
    losses = []
    x, target = torch.randn(6, 3, 9, 9).double(), torch.randn(6, 2).double()
    for kind in (momentnorm, nn):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            kind.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3),
            kind.GroupNorm(2, 4),
            nn.Flatten(),
            nn.Linear(100, 8),
            kind.BatchNorm1d(8, momentum=None),
            nn.Linear(8, 2),
        ).double()
        steps = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(5):
            steps.zero_grad()
            loss = F.mse_loss(model(x), target)
            loss.backward()
            steps.step()
        losses.append([loss.detach(), model.eval()(x), *model.state_dict().values()])
    for mine, right in zip(*losses, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)


def test_half_types_against_torch(backend):
    x = torch.randn(4, 4, 6, 6, dtype=torch.bfloat16)
    for name in ("BatchNorm2d", "GroupNorm"):
        ours, theirs = pair(name, *CLASSES[name])
        assert_within(ours(x), theirs(x).double(), AGAINST_TORCH)
