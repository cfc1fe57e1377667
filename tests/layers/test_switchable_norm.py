"""Switchable Normalization against its formula, written out in float64."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from momentnorm import (
    BatchInstanceNorm2d,
    SwitchableNorm1d,
    SwitchableNorm2d,
    SwitchableNorm3d,
    use_backend,
)
from support import stand_in
from support.layouts import LAYOUTS
from support.relatives_cases import LAYOUT_NAMES, assert_is_formula, randomize

SPATIAL = {SwitchableNorm2d: (5, 4), SwitchableNorm3d: (3, 2, 4)}

of_both = pytest.mark.parametrize("kind", list(SPATIAL))


def _batch_moments(x):
    """Moments "bn" of a feature map, (1, C, 1), by the authors' form."""
    planes = x.flatten(2)
    mean, var = planes.mean(2, keepdim=True), planes.var(2, keepdim=True)
    batch_mean = mean.mean(0, keepdim=True)
    return batch_mean, (var + mean**2).mean(0, keepdim=True) - batch_mean**2


def _switchable(layer, x):
    """y by the authors' formula, in the dtype of x."""
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
    layer = randomize(kind(6, using_bn=using_bn)).train(training)
    x = LAYOUTS[layout](3 * torch.randn(4, 6, *SPATIAL[kind]) + 2).requires_grad_()
    assert_is_formula(layer, _switchable, x)


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
    layer = randomize(SwitchableNorm1d(6).double()).train(training)
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
    layer = randomize(kind(2).double()).train(training)
    x = torch.randn(2, 2, *SPATIAL[kind][1:], 1, dtype=torch.float64, requires_grad=True)

    def function(x, *parameters):
        fresh = copy.deepcopy(layer)
        named = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        return torch.func.functional_call(fresh, named, (x,))

    operands = x, *(p.detach().clone().requires_grad_() for p in layer.parameters())
    assert gradcheck(function, operands)
    assert gradgradcheck(function, operands)


def test_gradcheck_of_vectors(backend):
    layer = randomize(SwitchableNorm1d(3).double())
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
    layer = kind(3)  # distributed training waits for a gradient of each parameter
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
    layer = randomize(SwitchableNorm2d(3))
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
    layer = randomize(SwitchableNorm2d(3).double())
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    wanted = torch.autograd.grad(layer(x).pow(3).sum(), [x, layer.weight])
    layer.mean_weight.requires_grad_(False)
    layer.var_weight.requires_grad_(False)
    found = torch.autograd.grad(layer(x).pow(3).sum(), [x, layer.weight])
    torch.testing.assert_close(found, wanted)


def test_running_statistics_may_move_on_before_the_backward(backend):
    layer = randomize(SwitchableNorm2d(3).double()).eval()
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
    layer = randomize(SwitchableNorm2d(3)).train(training)
    with torch.no_grad():
        traced = torch.jit.trace(layer, torch.randn(2, 3, 4, 4), check_trace=False)
        x = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("training", [True, False])
def test_compiles_into_one_graph(training):
    layer = randomize(SwitchableNorm2d(3)).train(training)
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 3, 4, 4)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), twin(x))
    torch.testing.assert_close(layer.running_var, twin.running_var)
