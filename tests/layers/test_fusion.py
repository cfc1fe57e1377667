"""What follows a normalization in the same pass: residual and activation, in place or into out."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import re
import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

import momentnorm
from momentnorm import Pool, use_backend
from momentnorm.core import engine, replay
from momentnorm.core.tail import ACTIVATIONS, Tail
from momentnorm.functional import instance_norm
from support import stand_in
from support.layouts import LAYOUTS
from support.tolerances import GRADIENT, OUTPUT, assert_within

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TORCHS = {
    None: lambda values: values,
    "relu": F.relu,
    "leaky_relu": lambda values: F.leaky_relu(values, 0.2),
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
STATS = {True: lambda: (None, None), False: lambda: (torch.randn(3), torch.rand(3) + 0.5)}

every_activation = pytest.mark.parametrize("activation", TORCHS)
with_and_without_residual = pytest.mark.parametrize("with_residual", [False, True])
in_both_modes = pytest.mark.parametrize("training", [True, False])
# torch itself scripts some of its rules when forward mode is first used.
deprecated = pytest.mark.filterwarnings("ignore:`torch.jit.[a-z_]+` is:DeprecationWarning")


def test_every_activation_is_tested():
    assert set(TORCHS) == {None, *ACTIVATIONS}


def _formula(x, stats, weight, bias, residual, activation, training=True):
    """The same by torch's own layers, one after the other."""
    stats = [None if s is None else s.to(x.dtype) for s in stats]
    y = F.instance_norm(x, *stats, weight, bias, training)
    return TORCHS[activation](y if residual is None else y + residual)


def sloped(activation):
    """The activation, with a slope of its own where it has one."""
    return (activation, 0.2) if activation == "leaky_relu" else activation


def _fused(x, stats, weight, bias, residual, activation, training=True, **options):
    return instance_norm(
        x,
        *stats,
        weight,
        bias,
        training,
        activation=sloped(activation),
        residual=residual,
        **options,
    )


def _operands(dtype, layout="contiguous", with_residual=True, shape=(2, 3, 5, 7)):
    """x, weight, bias and residual, a gradient, and the contiguous float64 twins of all."""
    x = LAYOUTS[layout]((3 * torch.randn(shape, dtype=torch.float64) + 2).to(dtype))
    weight = (torch.rand(shape[1], dtype=torch.float64) + 0.5).to(dtype)
    bias = torch.randn(shape[1], dtype=torch.float64).to(dtype)
    residual = LAYOUTS[layout](torch.randn(shape, dtype=torch.float64).to(dtype))
    gradient = LAYOUTS[layout](torch.randn(shape, dtype=torch.float64).to(dtype))
    ours = [x, weight, bias, residual if with_residual else None]
    twins = [None if t is None else t.double().contiguous() for t in ours]
    for operand in (*ours, *twins):
        if operand is not None:
            operand.requires_grad_()
    return ours, gradient, twins, gradient.double().contiguous()


def _assert_gradients(y, ours, gradient, expected, twins, gradient64):
    leaves = [operand for operand in ours if operand is not None]
    found = torch.autograd.grad(y, leaves, gradient)
    wanted = torch.autograd.grad(
        expected, [operand for operand in twins if operand is not None], gradient64
    )
    for mine, right, leaf in zip(found, wanted, leaves, strict=True):
        assert mine.dtype == leaf.dtype
        assert_within(mine, right, GRADIENT)
    return found


# Values and gradients


@every_activation
@with_and_without_residual
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_gradients_match_float64(backend, activation, with_residual, layout, dtype):
    ours, gradient, twins, gradient64 = _operands(dtype, layout, with_residual)
    y = _fused(ours[0], (None, None), *ours[1:], activation)
    expected = _formula(twins[0], (None, None), *twins[1:], activation)
    assert y.dtype == dtype
    assert_within(y, expected, OUTPUT)
    _assert_gradients(y, ours, gradient, expected, twins, gradient64)


@every_activation
@with_and_without_residual
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eval_output_and_gradients_match_float64(backend, activation, with_residual, layout, dtype):
    ours, gradient, twins, gradient64 = _operands(dtype, layout, with_residual)
    stats = STATS[False]()
    y = _fused(ours[0], stats, *ours[1:], activation, training=False)
    expected = _formula(twins[0], stats, *twins[1:], activation, training=False)
    assert_within(y, expected, OUTPUT)
    _assert_gradients(y, ours, gradient, expected, twins, gradient64)


@every_activation
@with_and_without_residual
@pytest.mark.parametrize("pool", [Pool(1, 3), Pool(None, 1), Pool(1, 1)])
def test_other_pools(backend, pool, activation, with_residual):
    ours, gradient, twins, gradient64 = _operands(torch.float32, with_residual=with_residual)
    tail = Tail(activation or "", 0.2, ours[3])
    y, _, _ = engine.normalize(*ours[:3], pool=pool, eps=1e-5, tail=tail)
    groups = 1 if pool.channels == 3 else 3
    if pool.samples is None:
        normalized = F.batch_norm(twins[0], None, None, *twins[1:3], training=True)
    else:
        normalized = F.group_norm(twins[0], groups, *twins[1:3])
    expected = TORCHS[activation](normalized + twins[3] if with_residual else normalized)
    assert_within(y, expected, OUTPUT)
    _assert_gradients(y, ours, gradient, expected, twins, gradient64)


@pytest.mark.parametrize("of_residual", LAYOUTS)
@pytest.mark.parametrize("of_input", ["contiguous", "channels_last"])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_a_residual_may_lie_otherwise(backend, of_input, of_residual, activation):
    ours, gradient, twins, gradient64 = _operands(torch.float32, of_input)
    ours[3] = LAYOUTS[of_residual](ours[3].detach()).requires_grad_()
    y = _fused(ours[0], (None, None), *ours[1:], activation)
    assert y.stride() == ours[0].stride()
    expected = _formula(twins[0], (None, None), *twins[1:], activation)
    assert_within(y, expected, OUTPUT)
    gradient = LAYOUTS[of_residual](gradient)
    found = _assert_gradients(y, ours, gradient, expected, twins, gradient64)
    assert found[0].stride() == ours[0].stride()
    if activation:  # otherwise it is the gradient itself
        assert found[3].stride() == ours[0].stride()


def test_a_residual_that_is_expanded(backend):
    x, residual = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 1, 5).requires_grad_()
    y = instance_norm(x, residual=residual.expand_as(x), activation="tanh")
    expected = torch.tanh(F.instance_norm(x.double()) + residual.double())
    assert_within(y, expected, OUTPUT)
    gradients = [torch.autograd.grad(t.sum(), residual)[0] for t in (y, expected)]
    torch.testing.assert_close(*gradients)


@settings(max_examples=60)
@given(data=st.data())
def test_fused_is_unfused(data):
    """One call is as good as three, for any shape, whichever backend takes it."""
    spatial = data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)), *spatial)
    activation = data.draw(st.sampled_from(list(TORCHS)))
    layout = data.draw(st.sampled_from(list(LAYOUTS)))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    x = LAYOUTS[layout](torch.randn(shape))
    residual = torch.randn(shape) if data.draw(st.booleans()) else None
    unfused = instance_norm(x.double())
    unfused = TORCHS[activation](unfused if residual is None else unfused + residual)
    assert_within(_fused(x, (None, None), None, None, residual, activation), unfused, OUTPUT)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@every_activation
def test_what_is_no_number_poisons_its_own_instance_alone(backend, activation, bad):
    clean = torch.randn(3, 4, 5, 5)
    x = clean.clone()
    x[1, 2, 3, 3] = bad
    y = instance_norm(x, activation=activation)
    others = torch.ones(3, 4, dtype=torch.bool)
    others[1, 2] = False
    assert y[1, 2].isnan().all()
    assert torch.equal(y[others], instance_norm(clean, activation=activation)[others])


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 0, 4)])
def test_empty_inputs(backend, shape):
    x, residual = (torch.empty(shape, requires_grad=True) for _ in range(2))
    y = instance_norm(x, residual=residual, activation="relu")
    assert y.shape == shape
    for gradient in torch.autograd.grad(y.sum(), (x, residual)):
        assert gradient.shape == shape
    with torch.no_grad():
        assert instance_norm(x, out=residual) is residual


# Derivatives of both orders, and beyond


@every_activation
@with_and_without_residual
@in_both_modes
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_gradcheck(backend, activation, with_residual, training):
    ours, *_ = _operands(torch.float64, with_residual=with_residual, shape=(2, 3, 2, 3))
    stats = STATS[training]()

    def function(x, weight, bias, residual=None):
        return _fused(x, stats, weight, bias, residual, activation, training)

    operands = [operand for operand in ours if operand is not None]
    assert gradcheck(function, operands, check_batched_grad=True, check_forward_ad=True)
    assert gradgradcheck(function, operands, check_batched_grad=True)


@every_activation
def test_gradgradcheck_of_another_pool(backend, activation):
    ours, *_ = _operands(torch.float64, shape=(2, 4, 2, 3))

    def function(x, weight, bias, residual):
        tail = Tail(activation or "", 0.2, residual)
        return engine.normalize(x, weight, bias, pool=Pool(1, 2), eps=1e-5, tail=tail)[0]

    assert gradcheck(function, ours)
    assert gradgradcheck(function, ours)


@pytest.mark.parametrize("activation", ["silu", "tanh"])
def test_gradients_to_the_third_order(backend, activation):
    results = []
    ours, gradient, *_ = _operands(torch.float64, shape=(2, 3, 2, 2))
    for fused in (True, False):
        leaves = [operand.detach().clone().requires_grad_() for operand in ours]
        x, weight, bias, residual = leaves
        if fused:
            y = _fused(x, (None, None), weight, bias, residual, activation)
        else:  # torch 2.13 gets the third derivative of its own operator wrong
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
    ours, _, twins, gradient64 = _operands(torch.float64)
    results = []
    for operands, call in ((twins, _formula), (ours, _fused)):
        if call is _fused:
            monkeypatch.setattr(replay, "normalize", None)
        y = call(operands[0], (None, None), *operands[1:], "gelu")
        first = torch.autograd.grad(y, operands, gradient64, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), operands))
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gradient_with_a_graph_is_the_gradient_without(backend, dtype):
    # in half types a rounding before the kink would give some elements another slope
    ours, gradient, *_ = _operands(dtype, shape=(2, 3, 50, 50))
    found = []
    for create_graph in (False, True):
        y = _fused(ours[0], (None, None), *ours[1:], "relu")
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
    for call in (_fused, _formula):
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


# Who does the arithmetic, and what is kept for it


@every_activation
@with_and_without_residual
def test_a_tail_costs_no_further_call(activation, with_residual):
    ours, gradient, *_ = _operands(torch.float32, with_residual=with_residual)
    with use_backend("stand_in"):
        stand_in.calls.clear()
        _fused(ours[0], (None, None), *ours[1:], activation).backward(gradient)
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
    """x, and with an activation the residual; never y."""
    if backend == "reference":
        pytest.skip("memory matters where kernels run")
    ours, *_ = _operands(torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _fused(ours[0], STATS[training](), *ours[1:], activation, training)
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
    ours, *_ = _operands(torch.float64)
    found = []
    for double in (lambda y: 2 * y, lambda y: y.mul_(2)):
        y = double(_fused(ours[0], (None, None), *ours[1:], "tanh"))
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


# Bad calls


@pytest.mark.parametrize(
    "call",
    [
        lambda name: instance_norm(torch.zeros(1, 2, 3), activation=name),
        lambda name: momentnorm.InstanceNorm2d(3, activation=name),
        lambda name: momentnorm.LazyInstanceNorm2d(activation=name),
        lambda name: torch.jit.trace(
            lambda x: instance_norm(x, activation=name), (torch.zeros(1, 2, 3),)
        ),
    ],
)
@deprecated
def test_an_unknown_activation_names_the_known_ones(call):
    with pytest.raises(ValueError, match=r"'swish'.*relu, leaky_relu, silu, gelu, tanh, sigmoid"):
        call("swish")


@pytest.mark.parametrize("name", ["residual", "out"])
@pytest.mark.parametrize(
    ("operand", "error", "message"),
    [
        (torch.zeros(2, 3, 5), RuntimeError, r"shape of the input, \(2, 3, 4\), not \(2, 3, 5\)"),
        (torch.zeros(1, 3, 1), RuntimeError, "nothing is broadcast"),
        (torch.zeros(2, 3, 4, dtype=torch.float64), RuntimeError, "dtype of the input"),
        (torch.zeros(2, 3, 4, device="meta"), RuntimeError, "device of the input, cpu, not meta"),
        (1.0, TypeError, "must be a Tensor or None, not float"),
    ],
)
def test_a_residual_or_out_unlike_the_input(backend, name, operand, error, message):
    with pytest.raises(error, match=f"{name} .*{message}"):
        instance_norm(torch.zeros(2, 3, 4), **{name: operand})


def test_a_slope_is_a_number(backend):
    x = torch.zeros(1, 2, 3)
    for activation in (("leaky_relu", "0.1"), ("leaky_relu",), 0.1, nn.ReLU()):
        with pytest.raises(TypeError, match=r"activation must be a name, .* a pair"):
            instance_norm(x, activation=activation)
    with pytest.raises(ValueError, match="only leaky_relu takes a slope: pass 'relu'"):
        instance_norm(x, activation=("relu", 0.2))
    with pytest.raises(ValueError, match="unknown activation 'swish'"):
        instance_norm(x, activation=("swish", 0.2))


# In place, and into out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@in_both_modes
def test_in_place_and_out_give_the_same_bits(backend, layout, dtype, training):
    stats = STATS[training]()
    ours, *_ = _operands(dtype, layout)
    with torch.no_grad():
        weight, bias, residual = ours[1:]
        expected = _fused(ours[0], stats, weight, bias, residual, "silu", training)
        for out_layout in LAYOUTS:
            x = LAYOUTS[layout](ours[0].detach().clone())
            out = LAYOUTS[out_layout](
                torch.full_like(x, torch.nan, memory_format=torch.contiguous_format)
            )
            strides, version = out.stride(), out._version
            y = _fused(x, stats, weight, bias, residual, "silu", training, out=out)
            assert y is out
            assert out.stride() == strides
            assert out._version > version
            assert torch.equal(out, expected)
        version = x._version
        y = _fused(x, stats, weight, bias, residual, "silu", training, inplace=True)
        assert y is x
        assert x._version > version
        assert torch.equal(x, expected)


def test_out_may_be_the_input(backend):
    x = torch.randn(2, 3, 4)
    expected = instance_norm(x)
    assert instance_norm(x, out=x) is x
    assert torch.equal(x, expected)


@pytest.mark.parametrize("part", ["residual", "input"])
def test_a_residual_may_share_memory_with_what_is_written(backend, part):
    x, residual = torch.randn(2, 3, 40), torch.randn(2, 3, 40)
    if part == "input":
        residual = x
    expected = instance_norm(x) + residual
    y = instance_norm(x, residual=residual, out=residual)
    torch.testing.assert_close(y, expected)
    shifted = torch.randn(6 * 40 + 1)
    residual, out = shifted[:-1].view(2, 3, 40), shifted[1:].view(2, 3, 40)
    expected = instance_norm(x) + residual
    torch.testing.assert_close(instance_norm(x, residual=residual, out=out), expected)


@pytest.mark.parametrize("operand", ["x", "weight", "bias", "residual", "out"])
@pytest.mark.parametrize("option", ["inplace", "out"])
def test_where_autograd_would_record_writing_raises(backend, option, operand):
    named = {"x": torch.randn(2, 3, 4), "residual": torch.randn(2, 3, 4)}
    named.update(weight=torch.rand(3), bias=torch.rand(3), out=torch.empty(2, 3, 4))
    if operand == "out" and option == "inplace":
        operand = "x"
    named[operand].requires_grad_()
    if option == "inplace":
        named.update(out=None, inplace=True)
    before = named["x"].detach().clone()
    input = named.pop("x")
    with pytest.raises(RuntimeError, match=rf"{option}=.*torch\.no_grad\(\)"):
        instance_norm(input, **named)
    assert torch.equal(input, before)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            named["out"] = None if option == "inplace" else torch.empty(2, 3, 4)
            y = instance_norm(input.detach().clone(), **named)
            assert torch.isfinite(y).all()


def test_autograd_sees_that_a_tensor_was_written(backend):
    leaf = torch.randn(2, 3, 4, requires_grad=True)
    x = torch.randn(2, 3, 4)
    product = leaf * x  # keeps x
    instance_norm(x, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_an_expanded_tensor_is_not_written(backend):
    x = torch.randn(2, 1, 4).expand(2, 3, 4)
    with pytest.raises(RuntimeError, match=r"the input is expanded.*\.clone\(\)"):
        instance_norm(x, inplace=True)
    with pytest.raises(RuntimeError, match="out is expanded"):
        instance_norm(torch.randn(2, 3, 4), out=x)


def test_memory_shared_in_part_is_refused(backend):
    memory = torch.randn(2 * 3 * 4 + 1)
    x, out = memory[:-1].view(2, 3, 4), memory[1:].view(2, 3, 4)
    with pytest.raises(RuntimeError, match="share some of their memory"):
        instance_norm(x, out=out)
    square = torch.randn(2, 4, 4)
    with pytest.raises(RuntimeError, match="share some of their memory"):
        instance_norm(square, out=square.transpose(1, 2))
    halves = torch.randn(4, 3, 4)
    torch.testing.assert_close(
        instance_norm(halves[:2], out=halves[2:]), F.instance_norm(halves[:2])
    )


def test_inplace_excludes_out(backend):
    x = torch.randn(2, 3, 4)
    with pytest.raises(ValueError, match="pass one"):
        instance_norm(x, inplace=True, out=x)


def test_inference_tensors_are_written_in_inference_mode_alone(backend):
    with torch.inference_mode():
        x = torch.randn(2, 3, 4)
        expected = instance_norm(x)
        assert torch.equal(instance_norm(x, inplace=True), expected)
    with pytest.raises(RuntimeError, match=r"(?i)inference"):
        instance_norm(x, inplace=True)


# Transforms


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

    for mine, right in zip(derivatives(_fused), derivatives(_formula), strict=True):
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
    """A plain subclass: torch carries its type through functions."""


def test_tensor_subclasses(backend):
    x, residual = torch.randn(2, 2, 3, 5)
    y = instance_norm(x, residual=residual.as_subclass(_Celsius), activation="relu")
    assert type(y) is _Celsius
    torch.testing.assert_close(y.as_subclass(torch.Tensor), F.relu(F.instance_norm(x) + residual))


# Graphs


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


def _optioned(training=True, **options):
    layer = momentnorm.InstanceNorm2d(3, affine=True, track_running_stats=True, **options)
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5), layer.bias.uniform_(-1, 1)
    return layer.train(training)


@deprecated
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of torch's own checks of sizes
@every_activation
@in_both_modes
def test_graphs_that_leave_the_process(backend, activation, training):
    layer = _optioned(training, activation=sloped(activation))
    x, residual = torch.randn(2, 2, 3, 4, 5)
    twin = copy.deepcopy(layer)
    expected = twin(x, residual)
    programs = {
        "export": torch.export.export(copy.deepcopy(layer), (x, residual)).module(),
        "trace": torch.jit.trace(copy.deepcopy(layer), (x, residual), check_trace=False),
    }
    for name, program in programs.items():
        if name == "trace":  # the trace itself has moved them
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


# Layers


LAYERS = {
    "InstanceNorm1d": (2, 3, 6),
    "InstanceNorm2d": (2, 3, 4, 5),
    "InstanceNorm3d": (2, 3, 2, 3, 4),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("batched", [True, False])
def test_layers(backend, name, lazy, batched):
    x, residual = torch.randn(2, *LAYERS[name])
    options = {"activation": ("leaky_relu", 0.2), "affine": True}
    if lazy:
        layer = getattr(momentnorm, "Lazy" + name)(**options)
        layer(x, residual, mask=torch.ones_like(x[:, :1]))
        assert type(layer) is getattr(momentnorm, name)
    else:
        layer = getattr(momentnorm, name)(3, **options)
    expected = F.leaky_relu(F.instance_norm(x, weight=layer.weight) + residual, 0.2)
    if not batched:
        x, residual, expected = x[0], residual[0], expected[0]
    torch.testing.assert_close(layer(x, residual), expected)
    with torch.no_grad():
        out = torch.empty_like(x)
        assert layer(x, residual, out=out) is out
        torch.testing.assert_close(out, expected)
        layer.inplace = True
        assert layer(x, residual) is x
        torch.testing.assert_close(x, expected)


def test_an_in_place_layer_after_what_learns_says_so(backend):
    model = nn.Sequential(nn.Conv2d(3, 3, 1), momentnorm.InstanceNorm2d(3, inplace=True))
    with pytest.raises(RuntimeError, match="inplace=True writes over the input"):
        model(torch.randn(2, 3, 4, 4))
    with torch.no_grad():
        assert model(torch.randn(2, 3, 4, 4)).isfinite().all()


def test_repr_shows_what_is_set():
    assert repr(momentnorm.InstanceNorm2d(3)) == repr(nn.InstanceNorm2d(3))
    shown = repr(nn.InstanceNorm2d(3))[:-1]
    layer = momentnorm.InstanceNorm2d(3, activation="relu", inplace=True)
    assert repr(layer) == shown + ", activation='relu', inplace=True)"
    layer = momentnorm.InstanceNorm2d(3, activation=("leaky_relu", 0.5))
    assert repr(layer) == shown + ", activation=('leaky_relu', 0.5))"


def test_options_are_no_state_and_are_pickled(backend):
    layer = _optioned(activation="gelu")
    assert layer.state_dict().keys() == _optioned().state_dict().keys()
    x = torch.randn(2, 3, 4, 5)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)):
        assert repr(twin) == repr(layer)
        assert torch.equal(twin.eval()(x), layer.eval()(x))


def test_layers_from_before_the_options(backend):
    x = torch.randn(2, 3, 4, 5)
    old = momentnorm.InstanceNorm2d(3)
    for name in ("activation", "inplace"):
        del old.__dict__[name]  # as a pickle of then has them
    changed = nn.InstanceNorm2d(3)
    changed.__class__ = momentnorm.InstanceNorm2d
    copied = momentnorm.InstanceNorm2d(3)
    copied.__dict__ = dict(nn.InstanceNorm2d(3).__dict__)
    for layer in (pickle.loads(pickle.dumps(old)), changed, copied):
        torch.testing.assert_close(layer(x), F.instance_norm(x))
        assert repr(layer) == repr(nn.InstanceNorm2d(3))


@pytest.mark.parametrize("name", ["InstanceNorm2d", "BatchNorm2d", "GroupNorm"])
def test_an_activation_of_a_call_stands_in_for_the_layers_own(backend, name):
    arguments = (1, 3) if name == "GroupNorm" else (3,)
    x = torch.randn(2, 3, 4, 4)
    for own in (None, "relu"):
        layer = getattr(momentnorm, name)(*arguments, activation=own)
        plain = getattr(momentnorm, name)(*arguments)(x)
        torch.testing.assert_close(layer(x, activation="tanh"), plain.tanh())
        steep = layer(x, activation=("leaky_relu", 0.5))
        torch.testing.assert_close(steep, F.leaky_relu(plain, 0.5))
        torch.testing.assert_close(layer(x), plain if own is None else plain.relu())

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = layer

        def forward(self, x):
            return self.norm(x, activation=("leaky_relu", 0.5))

    torch.testing.assert_close(torch.fx.symbolic_trace(Model())(x), steep)
