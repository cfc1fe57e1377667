"""Batch-Instance Normalization against its formula, written out in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from momentnorm import (
    BatchInstanceNorm2d,
    use_backend,
)
from support import stand_in
from support.layouts import LAYOUTS
from support.relatives_cases import LAYOUT_NAMES, assert_is_formula, randomize


def _gated(layer, x):
    """y by the authors' form: batch normalization plus instance normalization."""
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
    randomize(layer)
    with torch.no_grad():
        layer.gate.copy_(torch.linspace(0, 1, len(layer.gate)))
    return layer


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"track_running_stats": False}])
def test_batch_instance_norm_is_its_formula(backend, training, layout, options):
    layer = _with_gates(BatchInstanceNorm2d(6, **options)).train(training)
    x = LAYOUTS[layout](3 * torch.randn(4, 6, 5, 4) + 2).requires_grad_()
    assert_is_formula(layer, _gated, x)


@pytest.mark.parametrize("training", [True, False])
def test_batch_instance_norm_has_derivatives_of_both_orders(backend, training):
    layer = randomize(BatchInstanceNorm2d(2).double()).train(training)
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
