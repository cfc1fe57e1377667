"""Relatives of Instance Normalization, each against its formula, written out in float64."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

import momentnorm
from momentnorm import (
    IBN,
    BatchInstanceNorm2d,
    ContrastNorm2d,
    Pool,
    SwitchableNorm1d,
    SwitchableNorm2d,
    SwitchableNorm3d,
    use_backend,
)
from momentnorm.functional import pooled_norm
from support import stand_in
from support.layouts import LAYOUTS
from support.tolerances import GRADIENT, OUTPUT, assert_within

RELATIVES = [
    "BatchInstanceNorm2d",
    "IBN",
    "SwitchableNorm1d",
    "SwitchableNorm2d",
    "SwitchableNorm3d",
    "ContrastNorm2d",
]
LAYOUT_NAMES = ["contiguous", "channels_last", "sliced"]
SPATIAL = {SwitchableNorm2d: (5, 4), SwitchableNorm3d: (3, 2, 4)}

of_both = pytest.mark.parametrize("kind", list(SPATIAL))


def _randomize(layer):
    """Parameters that tell every mistake, and buffers such as training leaves."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.rand_like(parameter) + 0.5)
        for buffer in layer.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    return layer


def _batch_moments(x):
    """The "bn" statistics of a feature map, (1, C, 1), by the authors' form."""
    planes = x.flatten(2)
    mean, var = planes.mean(2, keepdim=True), planes.var(2, keepdim=True)
    batch_mean = mean.mean(0, keepdim=True)
    return batch_mean, (var + mean**2).mean(0, keepdim=True) - batch_mean**2


def _switchable(layer, x):
    """y, by the authors' formula; all in x's dtype."""
    planes = x.flatten(2)
    mean, var = planes.mean(2, keepdim=True), planes.var(2, keepdim=True)
    layer_mean = mean.mean(1, keepdim=True)
    layer_var = (var + mean**2).mean(1, keepdim=True) - layer_mean**2
    means, variances = [mean, layer_mean], [var, layer_var]
    if layer.using_bn:
        of_batch = _batch_moments(x)
        if not layer.training:
            of_batch = layer.running_mean.to(x.dtype), layer.running_var.to(x.dtype)
        means.append(of_batch[0])
        variances.append(of_batch[1])
    m, v = layer.mean_weight.softmax(0), layer.var_weight.softmax(0)
    mixed_mean = sum(m[k] * means[k] for k in range(len(means)))
    mixed_var = sum(v[k] * variances[k] for k in range(len(means)))
    y = ((planes - mixed_mean) / (mixed_var + layer.eps).sqrt()).view(x.shape)
    return y * layer.weight + layer.bias


@of_both
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("using_bn", [True, False])
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_switchable_norm_is_its_formula(backend, kind, training, using_bn, layout):
    layer = _randomize(kind(6, using_bn=using_bn)).train(training)
    twin = copy.deepcopy(layer).double()
    x = LAYOUTS[layout](3 * torch.randn(4, 6, *SPATIAL[kind]) + 2).requires_grad_()
    leaf = x.detach().double().contiguous().requires_grad_()
    z = _switchable(twin, leaf)
    with torch.no_grad():
        assert_within(copy.deepcopy(layer)(x), z, OUTPUT)
    y = layer(x)
    assert_within(y, z, OUTPUT)
    gradient = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *layer.parameters()], gradient)
    wanted = torch.autograd.grad(z, [leaf, *twin.parameters()], gradient.double())
    for mine, right in zip(found, wanted, strict=True):
        assert_within(mine, right, GRADIENT)


@of_both
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_switchable_norm_keeps_the_layout(backend, kind, layout):
    x = LAYOUTS[layout](torch.randn(2, 3, *SPATIAL[kind])).requires_grad_()
    y = kind(3)(x)
    assert y.stride() == x.stride()
    y.square().sum().backward()
    assert x.grad.stride() == x.stride()


@pytest.mark.parametrize("training", [True, False])
def test_switchable_norm_of_vectors(training):
    layer = _randomize(SwitchableNorm1d(6).double()).train(training)
    x = torch.randn(5, 6, dtype=torch.float64)
    means, variances = [x.mean(1, keepdim=True)], [x.var(1, keepdim=True)]
    of_batch = x.mean(0, keepdim=True), x.var(0, keepdim=True)
    running = layer.running_mean.clone(), layer.running_var.clone()
    means.append(of_batch[0] if training else running[0])
    variances.append(of_batch[1] if training else running[1])
    m, v = layer.mean_weight.softmax(0), layer.var_weight.softmax(0)
    mean = m[0] * means[0] + m[1] * means[1]
    var = v[0] * variances[0] + v[1] * variances[1]
    z = (x - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(layer(x), z)
    for buffer, batch, before in zip(layer.buffers(), of_batch, running, strict=True):
        expected = 0.997 * before + 0.003 * batch if training else before
        torch.testing.assert_close(buffer, expected)


@of_both
@pytest.mark.parametrize("training", [True, False])
def test_switchable_norm_has_derivatives_of_both_orders(backend, kind, training):
    layer = _randomize(kind(2).double()).train(training)
    x = torch.randn(2, 2, *SPATIAL[kind][1:], 1, dtype=torch.float64, requires_grad=True)

    def function(x, *parameters):
        fresh = copy.deepcopy(layer)
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(fresh, named, (x,))

    operands = x, *(p.detach().clone().requires_grad_() for p in layer.parameters())
    assert gradcheck(function, operands)
    assert gradgradcheck(function, operands)


def test_gradcheck_of_vectors(backend):
    layer = _randomize(SwitchableNorm1d(3).double())
    assert gradcheck(layer, torch.randn(4, 3, dtype=torch.float64, requires_grad=True))


@of_both
def test_running_statistics_keep_a_share_of_momentum(backend, kind):
    layer = kind(3, momentum=0.8).double()
    mean = var = torch.zeros(1, 3, 1, dtype=torch.float64)
    for step in range(4):
        x = torch.randn(2, 3, *SPATIAL[kind], dtype=torch.float64) + step
        layer(x)
        of_batch = _batch_moments(x)
        mean = 0.8 * mean + 0.2 * of_batch[0]
        var = 0.8 * var + 0.2 * of_batch[1]
    torch.testing.assert_close(layer.running_mean, mean)
    torch.testing.assert_close(layer.running_var, var)
    layer.eval()(x)
    torch.testing.assert_close(layer.running_mean, mean)


@of_both
def test_without_a_moving_average_the_buffers_are_sums(backend, kind):
    layer = kind(3, using_moving_average=False)
    batches = torch.randn(4, 2, 3, *SPATIAL[kind]) + 2
    for x in batches:
        layer(x)
    of_batches = [_batch_moments(x.double()) for x in batches]
    mean = sum(mean for mean, _ in of_batches)
    second = sum(var + mean**2 for mean, var in of_batches)
    torch.testing.assert_close(layer.running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.running_var.double(), second, rtol=1e-6, atol=1e-6)


def test_an_empty_batch_teaches_nothing():
    layer = SwitchableNorm2d(3)
    assert layer(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    assert not layer.running_mean.any()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
@pytest.mark.parametrize("kind", [SwitchableNorm2d, BatchInstanceNorm2d])
def test_nothing_leaves_no_parameter_without_a_gradient(backend, kind, shape):
    layer = kind(3)  # distributed training waits for the gradient of each
    layer(torch.empty(shape, requires_grad=True)).sum().backward()
    for parameter in layer.parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


@pytest.mark.parametrize(
    ("layer", "shapes"),
    [
        (SwitchableNorm1d(4), [(1, 4), (1, 4), (2,), (2,), (1, 4), (1, 4)]),
        (SwitchableNorm2d(4), [(1, 4, 1, 1)] * 2 + [(3,)] * 2 + [(1, 4, 1)] * 2),
        (SwitchableNorm3d(4), [(1, 4, 1, 1, 1)] * 2 + [(3,)] * 2 + [(1, 4, 1)] * 2),
        (SwitchableNorm2d(4, using_bn=False), [(1, 4, 1, 1)] * 2 + [(2,)] * 2),
    ],
)
def test_checkpoints_of_switchable_norms_are_the_authors(layer, shapes):
    names = ["weight", "bias", "mean_weight", "var_weight", "running_mean", "running_var"]
    assert list(layer.state_dict()) == names[: len(shapes)]
    assert [tuple(value.shape) for value in layer.state_dict().values()] == shapes
    starts = [1, 0, 1, 1, 0, 0]
    for value, start in zip(layer.state_dict().values(), starts[: len(shapes)], strict=True):
        assert (value == start).all()


def test_constructors_of_switchable_norms_are_the_authors():
    shared = {"eps": 1e-5, "using_moving_average": True}
    more = {"using_bn": True, "last_gamma": False}
    for kind, expected in (
        (SwitchableNorm1d, {**shared, "momentum": 0.997}),
        (SwitchableNorm2d, {**shared, **more, "momentum": 0.9}),
        (SwitchableNorm3d, {**shared, **more, "momentum": 0.997}),
    ):
        number, *others, device, dtype = inspect.signature(kind).parameters.values()
        assert [number.name, device.name, dtype.name] == ["num_features", "device", "dtype"]
        assert {option.name: option.default for option in others} == expected
    assert not SwitchableNorm2d(4, last_gamma=True).weight.any()


def test_the_mixture_can_be_read():
    layer = SwitchableNorm2d(3)
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([1.0, 2.0, 5.0]).log())
        layer.var_weight.copy_(torch.tensor([6.0, 1.0, 1.0]).log())
    mixture = layer.mixture()
    assert mixture["mean"] == pytest.approx({"in": 0.125, "ln": 0.25, "bn": 0.625})
    assert mixture["var"] == pytest.approx({"in": 0.75, "ln": 0.125, "bn": 0.125})
    assert SwitchableNorm1d(3).mixture()["var"] == {"ln": 0.5, "bn": 0.5}
    assert SwitchableNorm3d(3, using_bn=False).mixture()["mean"] == {"in": 0.5, "ln": 0.5}


def test_repr_shows_what_is_set():
    assert repr(SwitchableNorm2d(3)) == "SwitchableNorm2d(3, eps=1e-05, momentum=0.9)"
    assert "using_bn=False" in repr(SwitchableNorm2d(3, using_bn=False))


def test_switchable_norm_survives_a_pickle():
    layer = _randomize(SwitchableNorm2d(3))
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(pickle.loads(pickle.dumps(layer)).eval()(x), layer.eval()(x))


@pytest.mark.parametrize("frozen", [False, True])
def test_kernels_do_the_arithmetic_of_a_mixture(frozen):
    layer, x = SwitchableNorm2d(3), torch.randn(2, 3, 4, 4)
    with use_backend("stand_in"):
        for training in (True, False):
            layer.train(training)
            stand_in.calls.clear()
            with torch.no_grad():
                layer(x)
            assert stand_in.calls == ["moments", "apply"]
        layer.mean_weight.requires_grad_(not frozen)
        layer.var_weight.requires_grad_(not frozen)
        stand_in.calls.clear()
        layer(x.requires_grad_()).sum().backward()
        assert stand_in.calls == ["moments", "apply", "gradient_sums", "apply_gradient"]


def test_a_frozen_mixture_has_the_gradients_of_one_that_learns(backend):
    layer = _randomize(SwitchableNorm2d(3).double())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    wanted = torch.autograd.grad(layer(x).pow(3).sum(), [x, layer.weight])
    layer.mean_weight.requires_grad_(False)
    layer.var_weight.requires_grad_(False)
    found = torch.autograd.grad(layer(x).pow(3).sum(), [x, layer.weight])
    torch.testing.assert_close(found, wanted)


def test_running_statistics_may_move_on_before_the_backward(backend):
    layer = _randomize(SwitchableNorm2d(3).double()).eval()
    layer.mean_weight.requires_grad_(False)
    layer.var_weight.requires_grad_(False)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(layer(x).pow(3).sum(), x)
    loss = layer(x).pow(3).sum()
    layer.running_var += 1
    (found,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (SwitchableNorm2d(3), (2, 3, 1, 1), "more than 1 spatial element.*use a larger input"),
        (SwitchableNorm2d(3).eval(), (2, 3, 1, 1), "more than 1 spatial element"),
        (SwitchableNorm2d(3), (2, 3, 4), r"expected 4D input \(got 3D input\).*\(N, C, H, W\)"),
        (SwitchableNorm3d(3), (2, 3, 4, 4), "expected 5D input"),
        (SwitchableNorm1d(3), (2, 3, 4), r"expected 2D input.*\(N, C\)"),
        (SwitchableNorm1d(3), (1, 3), "more than 1 sample when training.*eval"),
        (SwitchableNorm1d(1), (2, 1), "more than 1 channel"),
    ],
)
def test_switchable_norm_refuses(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer(torch.randn(shape))


def test_switchable_norm_refuses_other_channels_and_dtypes():
    with pytest.raises(RuntimeError, match="one value for each channel"):
        SwitchableNorm2d(3)(torch.randn(2, 4, 5, 5))
    with pytest.raises(RuntimeError, match="convert the layer"):
        SwitchableNorm2d(3)(torch.randn(2, 3, 5, 5).double())


def test_one_vector_in_evaluation():
    assert SwitchableNorm1d(3).eval()(torch.randn(1, 3)).isfinite().all()


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("training", [True, False])
def test_traces_hold_no_constants(training):
    layer = _randomize(SwitchableNorm2d(3)).train(training)
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.randn(2, 3, 4, 4), check_trace=False)
        x = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("training", [True, False])
def test_compiles_into_one_graph(training):
    layer = _randomize(SwitchableNorm2d(3)).train(training)
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 3, 4, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(layer.running_var, twin.running_var)


# Batch-Instance Normalization


def _gated(layer, x):
    """y, as the authors compute it: batch normalization plus instance normalization."""
    weight = torch.ones_like(layer.gate) if layer.weight is None else layer.weight
    mean, var = layer.running_mean, layer.running_var
    running = () if mean is None else (mean.clone(), var.clone())
    batch = F.batch_norm(
        x,
        *(running or (None, None)),
        weight * layer.gate,
        layer.bias,
        layer.training or not running,
        eps=layer.eps,
    )
    return batch + F.instance_norm(x, weight=weight * (1 - layer.gate), eps=layer.eps)


def _with_gates(layer):
    _randomize(layer)
    with torch.no_grad():
        layer.gate.copy_(torch.linspace(0, 1, len(layer.gate)))
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_batch_instance_norm_is_its_formula(backend, training, layout, options):
    layer = _with_gates(BatchInstanceNorm2d(6, **options)).train(training)
    twin = copy.deepcopy(layer).double()
    x = LAYOUTS[layout](3 * torch.randn(4, 6, 5, 4) + 2).requires_grad_()
    leaf = x.detach().double().contiguous().requires_grad_()
    z = _gated(twin, leaf)
    with torch.no_grad():
        assert_within(copy.deepcopy(layer)(x), z, OUTPUT)
    y = layer(x)
    assert_within(y, z, OUTPUT)
    gradient = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *layer.parameters()], gradient)
    wanted = torch.autograd.grad(z, [leaf, *twin.parameters()], gradient.double())
    for mine, right in zip(found, wanted, strict=True):
        assert_within(mine, right, GRADIENT)


@pytest.mark.parametrize("training", [True, False])
def test_batch_instance_norm_has_derivatives_of_both_orders(backend, training):
    layer = _randomize(BatchInstanceNorm2d(2).double()).train(training)
    with torch.no_grad():
        layer.gate.copy_(torch.tensor([0.3, 0.8]))
    x = torch.randn(2, 2, 3, 1, dtype=torch.float64, requires_grad=True)

    def function(x, *parameters):
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(copy.deepcopy(layer), named, (x,))

    operands = x, *(p.detach().clone().requires_grad_() for p in layer.parameters())
    assert gradcheck(function, operands)
    assert gradgradcheck(function, operands)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_batch_instance_norm_has_the_running_statistics_of_batch_norm(backend, momentum):
    layer = BatchInstanceNorm2d(3, momentum=momentum)
    theirs = torch.nn.BatchNorm2d(3, momentum=momentum)
    for step in range(3):
        x = torch.randn(2, 3, 4, 5) + step
        layer(x), theirs(x)
    state = layer.state_dict()
    assert torch.equal(state.pop("gate"), torch.ones(3))
    assert list(state) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(state[name], value)
    layer.eval()(x)
    assert layer.num_batches_tracked == 3
    layer.track_running_stats = False
    layer.train()(x)
    assert layer.num_batches_tracked == 3


def test_gates_are_clamped_as_after_each_step():
    layer = BatchInstanceNorm2d(3)
    gates = torch.tensor([-0.5, 0.4, 1.5])
    x = torch.randn(2, 3, 4, 4)
    layer.gate.data.copy_(gates)
    y = layer.eval()(x)
    assert torch.equal(layer.gate, gates)  # evaluation changes nothing
    y.square().sum().backward()
    layer.clamp_gate()
    assert torch.equal(layer.gate, gates.clamp(0, 1))
    assert torch.equal(layer(x), y)
    layer.gate.data.copy_(gates)
    layer.train()(x)
    assert torch.equal(layer.gate, gates.clamp(0, 1))


def test_a_gate_at_its_border_can_leave_it():
    layer = BatchInstanceNorm2d(3)
    layer.gate.data.copy_(torch.tensor([-0.5, 0.0, 1.0]))
    layer(torch.randn(2, 3, 4, 4)).pow(3).sum().backward()
    assert layer.gate.grad.all()


def test_two_forwards_before_a_backward():
    layer = _with_gates(BatchInstanceNorm2d(3).double())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    (layer(x) * layer(x + 1)).sum().backward()
    assert layer.gate.grad.isfinite().all()


def test_kernels_do_the_arithmetic_of_a_gate():
    layer, x = BatchInstanceNorm2d(3), torch.randn(2, 3, 4, 4)
    with use_backend("stand_in"):
        stand_in.calls.clear()
        layer(x.requires_grad_()).sum().backward()
        assert stand_in.calls == ["moments", "apply", "gradient_sums", "apply_gradient"]


def test_batch_instance_norm_survives_a_pickle():
    layer = _with_gates(BatchInstanceNorm2d(3)).eval()
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    layer.reset_parameters()
    assert (layer.gate == 1).all()


@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (2, 3, 4)])
def test_batch_instance_norm_refuses(shape):
    with pytest.raises(ValueError, match=r"more than 1 spatial element|expected 4D input"):
        BatchInstanceNorm2d(3)(torch.randn(shape))


# IBN


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("ratio", "first"), [(0.5, 3), (0.3, 2)])
def test_ibn_is_instance_norm_beside_batch_norm(backend, training, layout, ratio, first):
    layer = _randomize(IBN(7, ratio)).train(training)
    twin = copy.deepcopy(layer).double()
    x = LAYOUTS[layout](torch.randn(4, 7, 5, 4) + 2).requires_grad_()
    leaf = x.detach().double().contiguous().requires_grad_()
    z = torch.cat(
        (
            F.instance_norm(leaf[:, :first], weight=twin.IN.weight, bias=twin.IN.bias),
            F.batch_norm(
                leaf[:, first:],
                twin.BN.running_mean.clone(),
                twin.BN.running_var.clone(),
                twin.BN.weight,
                twin.BN.bias,
                training,
            ),
        ),
        1,
    )
    y = layer(x)
    assert y.stride() == x.stride()
    torch.testing.assert_close(y.double(), z, rtol=1e-5, atol=1e-5)
    gradient = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, *layer.parameters()], gradient)
    wanted = torch.autograd.grad(z, [leaf, *twin.parameters()], gradient.double())
    for mine, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-4, atol=1e-4)


def test_checkpoints_of_ibn_are_the_authors():
    assert {name: tuple(value.shape) for name, value in IBN(7).state_dict().items()} == {
        "IN.weight": (3,),
        "IN.bias": (3,),
        "BN.weight": (4,),
        "BN.bias": (4,),
        "BN.running_mean": (4,),
        "BN.running_var": (4,),
        "BN.num_batches_tracked": (),
    }


def test_ibn_refuses():
    for ratio in (0, 0.1, 1):
        with pytest.raises(ValueError, match="both norms need a channel"):
            IBN(4, ratio)
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        IBN(4)(torch.randn(2, 5, 3, 3))


# Contrast normalization


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_contrast_norm_is_its_formula(layout, dtype):
    x = LAYOUTS[layout](torch.rand(2, 3, 5, 4).to(dtype))
    z = torch.stack(
        [
            torch.stack([plane / (plane.sum() + 0.5) for plane in sample])
            for sample in x.double().contiguous()
        ]
    )
    y = ContrastNorm2d(eps=0.5)(x)
    assert_within(y, z, OUTPUT)
    if layout != "sliced":
        assert y.stride() == x.stride()


def test_contrast_norm_has_derivatives_of_both_orders():
    x = torch.rand(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(ContrastNorm2d(), x)
    assert gradgradcheck(ContrastNorm2d(), x)


def test_a_sum_of_zero():
    x = torch.zeros(1, 2, 2, 2)
    x[0, 1] = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    assert ContrastNorm2d()(x)[0, 0].isnan().all()
    assert ContrastNorm2d()(x)[0, 1, 0].isinf().all()
    assert torch.equal(ContrastNorm2d(eps=0.5)(x), 2 * x)
    assert repr(ContrastNorm2d()) == "ContrastNorm2d(eps=0.0)"
    with pytest.raises(ValueError, match="expected 4D input"):
        ContrastNorm2d()(x[0])


# A norm of one's own


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
    # Such as running statistics, which are float32.
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


def test_everything_is_exported():
    for name in RELATIVES:
        assert getattr(momentnorm, name).__name__ == name
        assert name in momentnorm.__all__


@pytest.mark.parametrize("name", RELATIVES[:-1])
def test_factory_arguments(name):
    layer = getattr(momentnorm, name)(4, device="meta", dtype=torch.float64)
    for key, values in layer.state_dict().items():
        assert values.is_meta
        assert values.dtype == torch.float64 or key.endswith("num_batches_tracked")
