"""Layers with an activation of their own or of a call."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import momentnorm
from support.tail_cases import (
    optioned_layer,
)

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
    layer = optioned_layer(activation="gelu")
    assert layer.state_dict().keys() == optioned_layer().state_dict().keys()
    x = torch.randn(2, 3, 4, 5)
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer), copy.copy(layer)):
        assert repr(twin) == repr(layer)
        assert torch.equal(twin.eval()(x), layer.eval()(x))


def test_layers_from_before_the_options(backend):
    x = torch.randn(2, 3, 4, 5)
    old = momentnorm.InstanceNorm2d(3)
    for name in ("activation", "inplace"):
        del old.__dict__[name]  # as in a pickle from before these options
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
