"""Layers that are a norm and an activation together, against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from momentnorm import EvoNorm2dB0, EvoNorm2dS0, FilterResponseNorm2d, use_backend
from momentnorm.functional import plane_affine, plane_moments
from support import stand_in
from support.layouts import LAYOUTS
from support.tolerances import GRADIENT, OUTPUT, assert_within

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LAYOUT_NAMES = ["contiguous", "channels_last", "sliced"]


def _channels(values):
    return values.double().view(1, -1, 1, 1)


def _frn(layer, x):
    square = x.square().mean((2, 3), keepdim=True) + abs(layer.eps)
    if layer.learned_eps is not None:
        square = square - abs(layer.eps) + layer.learned_eps.double().abs()
    y = x / square.sqrt() * _channels(layer.weight) + _channels(layer.bias)
    return torch.maximum(y, _channels(layer.tau)) if layer.threshold else y


def _s0(layer, x):
    groups = x.reshape(x.shape[0], layer.groups, -1)
    var = groups.var(2, correction=0)
    std = (var + layer.eps).sqrt().repeat_interleave(x.shape[1] // layer.groups, 1)
    y = x * torch.sigmoid(_channels(layer.v) * x) / std[..., None, None]
    return y * _channels(layer.weight) + _channels(layer.bias)


def _b0(layer, x):
    if layer.training:
        batch = x.var((0, 2, 3), correction=0).view(1, -1, 1, 1)
    else:
        batch = _channels(layer.running_var)
    plane = x.var((2, 3), correction=0, keepdim=True)
    line = _channels(layer.v) * x + (plane + layer.eps).sqrt()
    y = x / torch.maximum((batch + layer.eps).sqrt(), line)
    return y * _channels(layer.weight) + _channels(layer.bias)


LAYERS = {
    "frn": (FilterResponseNorm2d, {}, _frn),
    "frn, learned eps": (FilterResponseNorm2d, {"eps": 0.3, "learnable_eps": True}, _frn),
    "frn, no threshold": (FilterResponseNorm2d, {"threshold": False}, _frn),
    "s0": (EvoNorm2dS0, {"groups": 2}, _s0),
    "b0": (EvoNorm2dB0, {}, _b0),
}

every_layer = pytest.mark.parametrize("name", LAYERS)


def _layer(name, dtype=torch.float32):
    kind, options, formula = LAYERS[name]
    layer = kind(6, **options, dtype=dtype)
    with torch.no_grad():
        for values in [*layer.parameters(), *layer.buffers()]:
            values.copy_(torch.rand_like(values) + 0.5)
    return layer, formula


@every_layer
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_gradients_are_those_of_the_formula(backend, name, training, layout, dtype):
    layer, formula = _layer(name, torch.float64 if dtype == torch.float64 else torch.float32)
    layer.train(training)
    x = LAYOUTS[layout]((2 * torch.randn(3, 6, 4, 5) + 1).to(dtype)).requires_grad_()
    twin = x.detach().double().contiguous().requires_grad_()
    z = formula(layer, twin)
    gradient = torch.randn(z.shape).to(dtype)
    parameters = list(layer.parameters())
    wanted = torch.autograd.grad(z, [twin, *parameters], gradient.double())
    y = layer(x)
    assert y.dtype == dtype
    assert y.stride() == torch.empty_like(x).stride()
    assert_within(y, z, OUTPUT)
    found = torch.autograd.grad(y, [x, *parameters], gradient)
    for mine, right in zip(found, wanted, strict=True):
        # rounding in half precision may move a value across the threshold
        if dtype != torch.bfloat16 or not hasattr(layer, "tau"):
            assert_within(mine, right, GRADIENT)


@every_layer
def test_derivatives_of_both_orders(backend, name):
    layer, _ = _layer(name, torch.float64)
    layer.eval()
    x = torch.randn(2, 6, 2, 3, dtype=torch.float64, requires_grad=True)
    assert gradcheck(layer, x)
    assert gradgradcheck(layer, x)


@every_layer
def test_a_new_layer_starts_as_it_should(name):
    layer = LAYERS[name][0](6, **LAYERS[name][1])
    starts = {"weight": 1, "bias": 0, "v": 1, "tau": 0, "running_var": 1, "learned_eps": 0.3}
    for key, values in layer.state_dict().items():
        assert (values == starts[key]).all()
        with torch.no_grad():
            values.fill_(5)
    layer.reset_parameters()
    for key, values in layer.state_dict().items():
        assert (values == starts[key]).all()


def test_running_var_moves_as_batch_norms_does(backend):
    layer, twin = EvoNorm2dB0(3), torch.nn.BatchNorm2d(3)
    for _ in range(3):
        x = torch.randn(4, 3, 5, 5) * 3
        layer(x), twin(x)
    torch.testing.assert_close(layer.running_var, twin.running_var)
    layer.eval()(x)
    torch.testing.assert_close(layer.running_var, twin.running_var)


def test_the_forward_may_move_running_var_before_its_backward(backend):
    layer = EvoNorm2dB0(3).eval()
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y = layer(x)
    layer.running_var.fill_(100)
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("layer", "shape", "error", "message"),
    [
        (FilterResponseNorm2d(3), (2, 3, 4), ValueError, "expected 4D input"),
        (FilterResponseNorm2d(3), (2, 4, 4, 4), RuntimeError, "takes 3 channels, got 4 in an"),
        (EvoNorm2dB0(3), (1, 3, 1, 1), ValueError, "more than 1 value per channel"),
    ],
)
def test_refusals(layer, shape, error, message):
    with pytest.raises(error, match=message):
        layer(torch.randn(shape))


def test_groups_divide_the_channels():
    with pytest.raises(ValueError, match="groups=32 does not divide 48 channels"):
        EvoNorm2dS0(48)


def test_an_empty_batch(backend):
    for name in LAYERS:
        layer, _ = _layer(name)
        before = {key: values.clone() for key, values in layer.state_dict().items()}
        x = torch.randn(0, 6, 4, 4, requires_grad=True)
        layer(x).sum().backward()
        assert x.grad.shape == x.shape
        for key, values in layer.state_dict().items():
            assert torch.equal(values, before[key])


@every_layer
def test_compiled_and_exported(name):
    layer, _ = _layer(name)
    layer.eval()
    x = torch.randn(2, 6, 4, 4)
    wanted = layer(x)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), wanted)
    exported = torch.export.export(layer, (x,))
    assert not any("momentnorm" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), wanted)


def test_kernels_do_the_statistics():
    x = torch.randn(2, 6, 4, 4, requires_grad=True)
    with use_backend("stand_in"):
        stand_in.calls.clear()
        EvoNorm2dS0(6, groups=2)(x).sum().backward()
        assert stand_in.calls == ["moments", "apply", "apply_gradient", "gradient_sums", "apply"]


# The two halves


def test_halves_make_a_whole(backend):
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    mean, var = plane_moments(x)
    y = plane_affine(x, mean, (var + 1e-5).rsqrt(), torch.zeros(3))
    twin = x.detach().double().requires_grad_()
    z = torch.nn.functional.instance_norm(twin)
    assert_within(y, z, OUTPUT)
    gradient = torch.randn(y.shape)
    (found,) = torch.autograd.grad(y, x, gradient)
    assert_within(found, torch.autograd.grad(z, twin, gradient.double())[0], GRADIENT)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0)])
def test_moments_of_nothing_have_a_graph(backend, shape):
    x = torch.empty(shape, requires_grad=True)
    mean, var = plane_moments(x)
    assert mean.shape == var.shape == shape[:2]
    assert mean.isnan().all()
    (mean + var).sum().backward()
    assert x.grad.shape == shape


def test_halves_refuse():
    x, one = torch.randn(2, 3, 4), torch.ones(3)
    with pytest.raises(ValueError, match=r"feature map \(N, C, \*S\), got shape \(2, 3\)"):
        plane_moments(x[..., 0])
    with pytest.raises(NotImplementedError, match="plane_moments is not implemented for"):
        plane_moments(x.long())
    with pytest.raises(ValueError, match=r"scale should broadcast to \(2, 3\)"):
        plane_affine(x, one, torch.ones(4), one)
    with pytest.raises(ValueError, match=r"shift should broadcast"):
        plane_affine(x, one, one, torch.ones(1, 2, 3))
