"""Conditional layers, with scale and shift from outside, against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from momentnorm import (
    SPADE,
    AdaIN,
    AdaptiveInstanceNorm2d,
    ConditionalInstanceNorm2d,
    InstanceNorm2d,
    use_backend,
)
from support import stand_in
from support.layouts import LAYOUTS
from support.tolerances import GRADIENT, OUTPUT, assert_within

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
LAYOUT_NAMES = ["contiguous", "channels_last", "sliced"]


def _map(*shape, dtype=torch.float32, layout="contiguous"):
    return LAYOUTS[layout]((2 * torch.randn(shape) + 1).to(dtype))


def _twin(x):
    return x.detach().double().contiguous().requires_grad_()


def _adain(content, style, variant, eps):
    """y by the definition, in the dtype of the operands."""
    spatial = {"dim": tuple(range(2, content.dim())), "keepdim": True}
    if variant == "original":
        deviation = (content.var(**spatial, correction=0) + eps).sqrt()
        target = style.var(**spatial).sqrt()
    else:
        deviation = (content.var(**spatial) + eps).sqrt()
        target = (style.var(**spatial) + eps).sqrt()
    return (content - content.mean(**spatial)) / deviation * target + style.mean(**spatial)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", ["original", "pytorch"])
@pytest.mark.parametrize("styles", [3, 1])
def test_adain_is_its_formula(backend, layout, dtype, variant, styles):
    content = _map(3, 4, 5, 6, dtype=dtype, layout=layout).requires_grad_()
    style = (_map(styles, 4, 7, 3, dtype=dtype) - 3).requires_grad_()
    twins = _twin(content), _twin(style)
    y, z = AdaIN(eps=0.1, variant=variant)(content, style), _adain(*twins, variant, 0.1)
    assert y.dtype == dtype
    assert_within(y, z, OUTPUT)
    gradient = torch.randn(y.shape).to(dtype)
    found = torch.autograd.grad(y, [content, style], gradient)
    for mine, right in zip(found, torch.autograd.grad(z, twins, gradient.double()), strict=True):
        assert_within(mine, right, GRADIENT)


def test_adain_of_itself_is_the_identity_but_for_eps():
    x = _map(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(AdaIN(eps=0.0, variant="pytorch")(x, x), x)


def test_adain_of_signals_and_volumes(backend):
    for size in ((9,), (3, 4, 2)):
        content, style = _map(2, 3, *size), _map(2, 3, *size)
        wanted = _adain(content.double(), style.double(), "original", 1e-5)
        assert_within(AdaIN()(content, style), wanted, OUTPUT)


def test_a_constant_style_has_finite_gradients(backend):
    content = _map(1, 2, 4, 4).requires_grad_()
    style = torch.full((1, 2, 3, 3), 7.0, requires_grad=True)
    y = AdaIN()(content, style)
    assert (y == 7).all()
    y.square().sum().backward()
    assert content.grad.isfinite().all()
    torch.testing.assert_close(style.grad, torch.full((1, 2, 3, 3), 2 * 7 * 16 / 9))


@pytest.mark.parametrize(
    ("content", "style", "variant", "message"),
    [
        ((2, 3), (2, 3, 4), "original", r"the content as \(N, C, \*S\), got shape \(2, 3\)"),
        ((2, 3, 4), (3,), "original", "expected the style"),
        ((2, 3, 4), (2, 4, 4), "original", "needs the channels of the content"),
        ((2, 3, 4), (3, 3, 4), "original", "as many samples or one"),
        ((2, 3, 4), (2, 3, 1), "original", "more than 1 spatial element in the style"),
        ((2, 3, 1), (2, 3, 4), "pytorch", "more than 1 spatial element in the content"),
    ],
)
def test_adain_refuses(content, style, variant, message):
    with pytest.raises(ValueError, match=message):
        AdaIN(variant=variant)(torch.randn(content), torch.randn(style))


def test_adain_knows_its_variants():
    with pytest.raises(ValueError, match="'original' or 'pytorch', not 'lua'"):
        AdaIN(variant="lua")
    assert repr(AdaIN(0.5)) == "AdaIN(eps=0.5, variant='original')"


def test_kernels_visit_planes_once_with_a_weight_of_each_sample():
    content, style = _map(2, 3, 4, 4).requires_grad_(), _map(2, 3, 4, 4)
    with use_backend("stand_in"):
        stand_in.calls.clear()
        AdaIN()(content, style).sum().backward()
        assert stand_in.calls == ["moments", "normalize", "normalize_backward"]


# AdaptiveInstanceNorm2d


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_adaptive_instance_norm_takes_weights_both_ways(backend, layout):
    layer, x = AdaptiveInstanceNorm2d(3), _map(2, 3, 4, 5, layout=layout)
    weight, bias = torch.randn(2, 3), torch.randn(2, 3)
    wanted = F.instance_norm(x.double()) * weight.double()[..., None, None]
    wanted = wanted + bias.double()[..., None, None]
    assert_within(layer(x, weight, bias), wanted, OUTPUT)
    layer.weight, layer.bias = weight.view(-1), bias.view(-1)  # as the authors assign them
    assert_within(layer(x), wanted, OUTPUT)
    assert set(layer.state_dict()) == {"running_mean", "running_var"}
    assert not list(layer.parameters())


def test_adaptive_instance_norm_asks_for_its_weights():
    with pytest.raises(RuntimeError, match=r"has no weight yet: assign layer\.weight and"):
        AdaptiveInstanceNorm2d(3)(torch.randn(2, 3, 4, 4))
    with pytest.raises(RuntimeError, match=r"or \(2, 3\), one row for each sample"):
        AdaptiveInstanceNorm2d(3)(torch.randn(2, 3, 4, 4), torch.ones(5), torch.ones(5))


# ConditionalInstanceNorm2d


def _conditional(dtype=torch.float32):
    layer = ConditionalInstanceNorm2d(3, num_styles=4, dtype=dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return layer


STYLES = {
    "labels": (torch.tensor([2, 0]), lambda table: table[[2, 0]]),
    "small labels": (torch.tensor([2, 0], dtype=torch.uint8), lambda table: table[[2, 0]]),
    "one label": (3, lambda table: table[[3, 3]]),
    "a label": (torch.tensor(3), lambda table: table[[3, 3]]),
    "weights": (
        torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.0, 0.75]]),
        lambda table: torch.stack(
            [(table[0] + table[1]) / 2, table[1] / 4 + table[3] * 3 / 4],
        ),
    ),
    "one mixture": (
        torch.tensor([0.0, 0.5, 0.5, 0.0]),
        lambda table: ((table[1] + table[2]) / 2).expand(2, -1),
    ),
}


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("name", STYLES)
def test_conditional_instance_norm_is_its_formula(backend, layout, name):
    styles, of = STYLES[name]
    layer, x = _conditional(), _map(2, 3, 4, 5, layout=layout).requires_grad_()
    twins = [_twin(values) for values in (x, layer.weight, layer.bias)]
    y = layer(x, styles)
    weight, bias = (of(table)[..., None, None] for table in twins[1:])
    z = F.instance_norm(twins[0]) * weight + bias
    assert_within(y, z, OUTPUT)
    gradient = torch.randn(y.shape)
    found = torch.autograd.grad(y, [x, layer.weight, layer.bias], gradient)
    for mine, right in zip(found, torch.autograd.grad(z, twins, gradient.double()), strict=True):
        assert_within(mine, right, GRADIENT)


def test_gradients_flow_into_a_mixture_of_styles(backend):
    layer, x = _conditional(torch.float64), _map(2, 3, 4, 4, dtype=torch.float64)
    mixture = torch.rand(2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda mixture: layer(x, mixture), mixture)


def test_a_new_conditional_layer_is_plain_instance_norm(backend):
    x = _map(2, 3, 4, 4)
    torch.testing.assert_close(ConditionalInstanceNorm2d(3, 5)(x, 4), InstanceNorm2d(3)(x))


@pytest.mark.parametrize(
    ("styles", "error", "message"),
    [
        (torch.tensor([0, 4]), IndexError, "between 0 and 3, the styles of this layer, not 0 to 4"),
        (torch.tensor([-1, 0]), IndexError, "not -1 to 0"),
        (torch.tensor([0, 1, 2]), ValueError, r"integer labels, \(\) or \(2,\)"),
        (torch.rand(2, 3), ValueError, r"weights, \(4,\) or \(2, 4\); got torch.float32"),
        (torch.tensor([True, False]), ValueError, "got torch.bool"),
    ],
)
def test_conditional_instance_norm_refuses_styles(styles, error, message):
    with pytest.raises(error, match=message):
        _conditional()(torch.randn(2, 3, 4, 4), styles)


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 3, 1, 1)])
def test_conditional_instance_norm_refuses_inputs(shape):
    with pytest.raises(ValueError, match=r"expected (4D|more than 1 spatial)"):
        _conditional()(torch.randn(shape), 0)


# SPADE


@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_spade_is_its_formula(backend, norm, layout):
    layer = SPADE(3, 2, norm, hidden_channels=8)
    x, segments = _map(2, 3, 6, 8, layout=layout).requires_grad_(), torch.rand(2, 2, 3, 4)
    y = layer(x, segments)
    twin, double = _twin(x), SPADE(3, 2, norm, hidden_channels=8).double()
    double.load_state_dict(layer.state_dict())
    spatial = (2, 3) if norm == "instance" else (0, 2, 3)
    var, mean = torch.var_mean(twin, spatial, correction=0, keepdim=True)
    resized = segments.double().repeat_interleave(2, 2).repeat_interleave(2, 3)
    hidden = double.mlp_shared[0](resized).relu()
    z = (twin - mean) / (var + 1e-5).sqrt() * (1 + double.mlp_gamma(hidden))
    z = z + double.mlp_beta(hidden)
    torch.testing.assert_close(y.double(), z, rtol=1e-5, atol=1e-5)  # convolutions in float32
    gradient = torch.randn(y.shape)
    found = torch.autograd.grad(y, x, gradient)[0]
    wanted = torch.autograd.grad(z, twin, gradient.double())[0]
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


def test_spade_has_the_authors_names():
    keys = {f"mlp_{part}.{kind}" for part in ("gamma", "beta") for kind in ("weight", "bias")}
    keys |= {"mlp_shared.0.weight", "mlp_shared.0.bias"}
    assert set(SPADE(3, 2).state_dict()) == keys
    assert SPADE(3, 2).mlp_shared[0].weight.shape == (128, 2, 3, 3)
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert set(SPADE(3, 2, "batch").state_dict()) - keys == {
        f"param_free_norm.{name}" for name in statistics
    }


def test_spade_refuses():
    x, segments = torch.randn(2, 3, 4, 4), torch.randn(2, 2, 4, 4)
    with pytest.raises(ValueError, match="'instance' or 'batch', not 'group'"):
        SPADE(3, 2, "group")
    with pytest.raises(ValueError, match="kernel_size=4 is even"):
        SPADE(3, 2, kernel_size=4)
    with pytest.raises(ValueError, match=r"got shapes \(2, 3, 4, 4\) and \(2, 4, 4\)"):
        SPADE(3, 2)(x, segments[:, 0])
    with pytest.raises(ValueError, match=r"the map is torch.int64: pass one channel for each"):
        SPADE(3, 2)(x, segments.long())


# Graphs


@pytest.mark.parametrize(
    ("layer", "operands"),
    [
        (AdaIN(), (torch.randn(2, 3, 4, 4), torch.randn(2, 3, 5, 5))),
        (ConditionalInstanceNorm2d(3, 4), (torch.randn(2, 3, 4, 4), torch.tensor([1, 3]))),
        (SPADE(3, 2, hidden_channels=4), (torch.randn(2, 3, 4, 4), torch.randn(2, 2, 4, 4))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_compiled_and_exported(layer, operands):
    wanted = layer(*operands)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*operands), wanted)
    exported = torch.export.export(layer, operands)
    assert not any("momentnorm" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(*operands), wanted)
