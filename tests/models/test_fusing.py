"""Sequences that compute a norm and its activation in one pass, and those that do not."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import momentnorm
from momentnorm import accelerate, functional, restore
from support.accelerated import close, small, step
from support.models import BasicBlock

#: Without a backend by name, layers are kept where there are no kernels.
pytestmark = pytest.mark.usefixtures("backend")


class Counted:
    """Record of the activations with which momentnorm's functions are called."""

    def __init__(self, monkeypatch):
        self.activations = []
        for name in ("instance_norm", "batch_norm", "group_norm"):
            monkeypatch.setattr(functional, name, self._counting(getattr(functional, name)))

    def _counting(self, function):
        def call(*args, **kwargs):
            self.activations.append(kwargs["activation"])
            return function(*args, **kwargs)

        return call

    def of(self, model, x):
        self.activations.clear()
        model(x)
        return self.activations


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU(inplace=True),
        nn.LeakyReLU(0.3),
        nn.LeakyReLU(0.3, inplace=True),
        nn.SiLU(inplace=True),
        nn.GELU(),
        nn.Tanh(),
        nn.Sigmoid(),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "norm",
    [nn.InstanceNorm2d(4), nn.BatchNorm2d(4), nn.GroupNorm(2, 4)],
    ids=lambda n: n._get_name(),
)
def test_activations_are_fused(norm, activation, monkeypatch):
    counted = Counted(monkeypatch)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), copy.deepcopy(norm), activation)
    theirs = copy.deepcopy(model)
    (row,) = accelerate(model).rows
    assert row.fused == type(activation).__name__
    x = torch.randn(2, 3, 7, 7)
    assert len(counted.of(model, x)) == 1
    assert None not in counted.activations
    close(step(model, x), step(theirs, x))
    restore(model)
    accelerate(model, fuse=False)
    assert type(model) is nn.Sequential
    assert counted.of(model, x) == [None]


@pytest.mark.parametrize(
    "follower",
    [
        nn.GELU("tanh"),
        nn.ELU(),
        nn.Dropout(),
        nn.Identity(),
        nn.PReLU(),
        type("R", (nn.ReLU,), {})(),
    ],
    ids=str,
)
def test_other_followers_are_not_fused(follower):
    model = small()
    model[2] = follower
    assert [row.fused for row in accelerate(model).rows] == [""]
    assert type(model) is nn.Sequential


def test_a_layer_with_an_activation_or_inplace_fuses_no_other():
    for options in ({"activation": "tanh"}, {"inplace": True}):
        norm = momentnorm.InstanceNorm2d(4, **options)
        model = momentnorm.Sequential(norm, nn.Sigmoid())
        x = torch.randn(1, 4, 3, 3)
        with torch.no_grad():
            expected = torch.sigmoid(norm(x.clone()))
            seen = x.clone()
            assert torch.equal(model(seen), expected)
            assert torch.equal(seen, norm(x.clone())) == norm.inplace


def test_the_norms_output_can_still_be_read():
    model, theirs = small(), None
    theirs = copy.deepcopy(model).eval()
    accelerate(model.eval())
    x = torch.randn(2, 3, 6, 6)
    taps = []
    for net in (model, theirs):  # perceptual losses read features so
        y, found = x, []
        for module in net:
            y = module(y)
            found.append(y.detach().clone())
        taps.append([*found, net[1](net[0](x)), net[:2](x), net[:3](x)])
    close(*taps)
    assert taps[0][1].min() < 0


def test_hooks_see_the_same_tensors(monkeypatch):
    counted, x = Counted(monkeypatch), torch.randn(2, 3, 6, 6)
    for place in (1, 2):
        model = small()
        theirs = copy.deepcopy(model)
        accelerate(model)
        seen = []

        def keep(module, args, y, seen=seen):
            seen.append((*args, y))

        hook, _ = (net[place].register_forward_hook(keep) for net in (model, theirs))
        assert counted.of(model, x) == [None]
        theirs(x)
        close(*seen)
        hook.remove()
        assert counted.of(model, x) == ["relu"]
    model = small()
    accelerate(model)
    model[2].forward = lambda y: y + 1
    close([model(x)], [model[1](model[0](x)) + 1])
    with_hook = small()
    with_hook[2].register_full_backward_hook(lambda *args: None)
    assert [row.fused for row in accelerate(with_hook).rows] == [""]
    handle = nn.modules.module.register_module_forward_hook(lambda *args: None)
    assert counted.of(model, x) == [None]
    handle.remove()


def test_a_shared_activation_stays_one_module():
    relu = nn.ReLU(inplace=True)
    model = nn.Sequential(nn.BatchNorm2d(3), relu, nn.Conv2d(3, 3, 1), relu, nn.BatchNorm2d(3))
    theirs = copy.deepcopy(model)
    assert [row.fused for row in accelerate(model).rows] == ["ReLU", ""]
    assert model[1] is model[3] is relu
    x = torch.randn(2, 3, 4, 4)
    close(step(model, x), step(theirs, x))


def test_a_relu_that_a_forward_calls_twice_is_not_fused():
    block = BasicBlock(4, 4)
    theirs = copy.deepcopy(block)
    assert [row.fused for row in accelerate(block).rows] == ["", ""]
    x = torch.randn(2, 4, 6, 6)
    close(step(block, x), step(theirs, x))


def test_a_norm_in_two_sequences_has_both_followers():
    norm = nn.InstanceNorm2d(4)
    model = nn.ModuleList([nn.Sequential(norm, nn.ReLU()), nn.Sequential(norm, nn.Tanh())])
    (row,) = accelerate(model).rows
    assert row.fused == "ReLU, Tanh"
    x = torch.randn(1, 4, 5, 5)
    close([net(x) for net in model], [F.relu(F.instance_norm(x)), F.instance_norm(x).tanh()])


class Doubled(nn.Sequential):
    def forward(self, input):
        return super().forward(super().forward(input))


def test_a_sequence_with_a_forward_of_its_own_is_kept():
    model = Doubled(nn.InstanceNorm2d(3), nn.ReLU())
    (row,) = accelerate(model).rows
    assert (row.swapped, row.fused) == (True, "")
    assert type(model) is Doubled


def test_conversions_keep_the_activation(monkeypatch):
    """Tools that replace or fold a norm leave the activation behind it in place."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    accelerate(model)
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    assert expected.min() == 0
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    assert type(converted[1]) is nn.SyncBatchNorm
    close([converted(x)], [expected])
    model[0] = nn.utils.fuse_conv_bn_eval(model[0], model[1])
    model[1] = nn.Identity()
    close([model(x)], [expected])
