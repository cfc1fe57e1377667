"""Modes, tensor subclasses, lazy values, devices and utilities of modules, through our layers.

Derivatives are in test_derivatives.py, graphs (compile, export, traces) in test_graphs.py.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.utils._python_dispatch import TorchDispatchMode

import momentnorm
from momentnorm.functional import instance_norm
from support.pairs import feature_map, norm_pair

# torch calls its own deprecated script compiler when forward mode is first used.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)


class _Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_dispatch_modes_see_ordinary_operators(backend, training):
    layer, _ = norm_pair(training, track_running_stats=True)
    x = feature_map().requires_grad_()
    with _Names() as forward:
        y = layer(x)
    assert "aten.sub.Tensor" in forward.names  # x - mean, which the mode would not see in a kernel
    with _Names() as backward:
        y.sum().backward()
    assert not any("momentnorm" in name for name in forward.names + backward.names)


class _Celsius(torch.Tensor):
    """Plain subclass, whose type torch carries through functions."""


class _Recorder(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function.__name__


def test_tensor_subclasses(backend):
    ours, theirs = norm_pair()
    x = feature_map().as_subclass(_Celsius)
    y = ours(x)
    assert type(y) is type(theirs(x)) is _Celsius
    torch.testing.assert_close(y, theirs(x))
    assert instance_norm(torch.ones(1, 2, 3).as_subclass(_Recorder)) == "instance_norm"


class _Interceptor(torch.Tensor):
    """Subclass that knows torch's functions alone."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if str(getattr(function, "__module__", "")).startswith("momentnorm"):
            raise TypeError(f"what is {function.__name__}?")
        return super().__torch_function__(function, types, args, kwargs)


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}], ids=["plain", "relu"])
@pytest.mark.parametrize("name", ["InstanceNorm2d", "BatchNorm2d", "GroupNorm"])
def test_subclasses_that_intercept_functions_get_torchs(name, options):
    arguments = (2, 4) if name == "GroupNorm" else (4,)
    ours, theirs = (getattr(lib, name)(*arguments) for lib in (momentnorm, nn))
    x = torch.randn(2, 4, 3, 5)
    y, expected = ours(x.as_subclass(_Interceptor), **options), theirs(x)
    assert type(y) is _Interceptor
    torch.testing.assert_close(
        y.as_subclass(torch.Tensor), expected.relu() if options else expected
    )


@pytest.mark.parametrize("name", ["InstanceNorm2d", "GroupNorm"])
def test_expanded_weights(name):
    """torch's per-sample gradients put a tensor subclass in the place of each parameter."""
    x, found = torch.randn(3, 4, 5, 5), []
    for library in (momentnorm, nn):
        norm = getattr(library, name)(*((2, 4) if name == "GroupNorm" else (4,)), affine=True)
        call_for_per_sample_grads(norm)(x).pow(2).sum().backward()
        found.append([parameter.grad_sample for parameter in norm.parameters()])
    for mine, right in zip(*found, strict=True):
        assert mine.shape == (3, 4)
        torch.testing.assert_close(mine, right)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_tensors_of_onednn():
    x = torch.randn(2, 3, 4, 5)
    layer = nn.BatchNorm2d(3)
    layer(x)  # updates the running statistics
    expected = layer.eval()(x.to_mkldnn())
    momentnorm.accelerate(layer)
    found = layer(x.to_mkldnn())
    assert found.layout == expected.layout == torch._mkldnn
    assert torch.equal(found.to_dense(), expected.to_dense())
    with pytest.raises(RuntimeError) as theirs:
        nn.functional.group_norm(x.to_mkldnn(), 3)
    with pytest.raises(RuntimeError, match=re.escape(str(theirs.value))):
        momentnorm.functional.group_norm(x.to_mkldnn(), 3)


@pytest.mark.parametrize("training", [True, False])
def test_lazily_negated_values(backend, training):
    layer, _ = norm_pair(training, track_running_stats=True)
    z = torch.randn(2, 3, 4, 5, dtype=torch.complex128)
    lazy, eager = z.conj().imag, -z.imag.clone()
    assert lazy.is_neg()
    twin = copy.deepcopy(layer)
    torch.testing.assert_close(layer(lazy), twin(eager))
    x = feature_map().requires_grad_()
    found, wanted = (torch.autograd.grad(layer(x), x, g)[0] for g in (lazy, eager))
    torch.testing.assert_close(found, wanted)


def test_gradients_without_memory(backend):
    x = feature_map().requires_grad_()
    for training in (True, False):
        y = norm_pair(training, track_running_stats=True)[0](x)
        (found,) = torch.autograd.grad(y, x, torch._efficientzerotensor(y.shape, dtype=y.dtype))
        assert torch.equal(found, torch.zeros_like(x))


@pytest.mark.parametrize("training", [True, False])
def test_fake_and_meta_tensors(backend, training):
    from torch._subclasses import FakeTensorMode

    def shadow(device):
        layer = momentnorm.InstanceNorm2d(3, affine=True, track_running_stats=True, device=device)
        x = torch.empty(2, 3, 4, 5, device=device, requires_grad=True)
        last = x.contiguous(memory_format=torch.channels_last)
        y = layer.train(training)(last)
        return y, *torch.autograd.grad(y.sum(), last)

    with FakeTensorMode(allow_non_fake_inputs=False):
        fake = shadow("cpu")
    for y, dx in (fake, shadow("meta")):
        assert y.shape == dx.shape == (2, 3, 4, 5)
        assert y.dtype == dx.dtype == torch.float32
        assert y.is_contiguous(memory_format=torch.channels_last)


def test_default_device_and_dtype(backend):
    x = torch.randn(2, 3, 4, 4)
    with torch.device("meta"):
        shadow = momentnorm.InstanceNorm2d(3, affine=True)
        assert shadow(torch.randn(2, 3, 4, 4)).is_meta
        y = momentnorm.InstanceNorm2d(3, affine=True, device="cpu")(x)
        # These calls run with the mode of the device on. torch takes it off for its functions.
        switchable = momentnorm.SwitchableNorm2d(3, device="cpu")
        z = switchable(x.requires_grad_())
        assert not momentnorm.Moments.of(x).mean.is_meta
        momentnorm.check(torch.nn.Sequential(switchable), x)
    assert (y.device.type, y.dtype) == ("cpu", torch.float32)
    torch.testing.assert_close(z, switchable(x))
    with torch.device("meta"):
        (dx,) = torch.autograd.grad(y.square().sum() + z.square().sum(), x)
    assert dx.device.type == "cpu"
    torch.set_default_dtype(torch.float64)
    try:
        layer = momentnorm.InstanceNorm2d(3, affine=True)
        assert layer.weight.dtype == layer(feature_map()).dtype == torch.float64
        assert instance_norm(feature_map().float()).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_utilities_of_modules(backend):
    x = feature_map()
    layer = nn.utils.skip_init(momentnorm.InstanceNorm2d, 3, affine=True, dtype=torch.float64)
    layer.reset_parameters()
    torch.testing.assert_close(layer(x), instance_norm(x))

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    torch.testing.assert_close(layer(x), 2 * instance_norm(x))
    layer(x).sum().backward()
    assert layer.parametrizations.weight.original.grad.shape == (3,)


def test_inference_mode(backend):
    ours, theirs = norm_pair(track_running_stats=True)
    with torch.inference_mode():
        x = feature_map()
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert ours(x.clone()).requires_grad  # in eval, since a clone is an ordinary tensor
