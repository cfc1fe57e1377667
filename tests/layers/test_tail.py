"""Residual and activation in one pass: values and errors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import momentnorm
from momentnorm import Pool
from momentnorm.core import engine
from momentnorm.core.tail import ACTIVATIONS, Tail
from momentnorm.functional import instance_norm
from support.layouts import LAYOUTS
from support.tail_cases import (
    DTYPES,
    STATS,
    TORCHS,
    by_formula,
    by_fusion,
    deprecated,
    every_activation,
    make_operands,
    with_and_without_residual,
)
from support.tolerances import GRADIENT, OUTPUT, assert_within


def test_every_activation_is_tested():
    assert set(TORCHS) == {None, *ACTIVATIONS}


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


@every_activation
@with_and_without_residual
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_output_and_gradients_match_float64(backend, activation, with_residual, layout, dtype):
    ours, gradient, twins, gradient64 = make_operands(dtype, layout, with_residual)
    y = by_fusion(ours[0], (None, None), *ours[1:], activation)
    expected = by_formula(twins[0], (None, None), *twins[1:], activation)
    assert y.dtype == dtype
    assert_within(y, expected, OUTPUT)
    _assert_gradients(y, ours, gradient, expected, twins, gradient64)


@every_activation
@with_and_without_residual
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eval_output_and_gradients_match_float64(backend, activation, with_residual, layout, dtype):
    ours, gradient, twins, gradient64 = make_operands(dtype, layout, with_residual)
    stats = STATS[False]()
    y = by_fusion(ours[0], stats, *ours[1:], activation, training=False)
    expected = by_formula(twins[0], stats, *twins[1:], activation, training=False)
    assert_within(y, expected, OUTPUT)
    _assert_gradients(y, ours, gradient, expected, twins, gradient64)


@every_activation
@with_and_without_residual
@pytest.mark.parametrize("pool", [Pool(1, 3), Pool(None, 1), Pool(1, 1)])
def test_other_pools(backend, pool, activation, with_residual):
    ours, gradient, twins, gradient64 = make_operands(torch.float32, with_residual=with_residual)
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
    ours, gradient, twins, gradient64 = make_operands(torch.float32, of_input)
    ours[3] = LAYOUTS[of_residual](ours[3].detach()).requires_grad_()
    y = by_fusion(ours[0], (None, None), *ours[1:], activation)
    assert y.stride() == ours[0].stride()
    expected = by_formula(twins[0], (None, None), *twins[1:], activation)
    assert_within(y, expected, OUTPUT)
    gradient = LAYOUTS[of_residual](gradient)
    found = _assert_gradients(y, ours, gradient, expected, twins, gradient64)
    assert found[0].stride() == ours[0].stride()
    if activation:  # without an activation it is the gradient itself
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
    """One call gives the result of norm, addition and activation, on every backend."""
    spatial = data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=3))
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4)), *spatial)
    activation = data.draw(st.sampled_from(list(TORCHS)))
    layout = data.draw(st.sampled_from(list(LAYOUTS)))
    torch.manual_seed(data.draw(st.integers(0, 2**31)))
    x = LAYOUTS[layout](torch.randn(shape))
    residual = torch.randn(shape) if data.draw(st.booleans()) else None
    unfused = instance_norm(x.double())
    unfused = TORCHS[activation](unfused if residual is None else unfused + residual)
    assert_within(by_fusion(x, (None, None), None, None, residual, activation), unfused, OUTPUT)


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
