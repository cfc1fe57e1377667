"""Layers that accelerate keeps, each with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import momentnorm
from momentnorm import accelerate, restore
from support.accelerated import deprecated, small

#: Without a backend by name, layers are kept where there are no kernels.
pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize(
    ("change", "why_not"),
    [
        (
            lambda norm: setattr(norm, "activation", "relu"),
            "it defines 'activation', and so does momentnorm's class",
        ),
        (lambda norm: norm.add_module("inplace", nn.ReLU()), "it defines 'inplace'"),
        (lambda norm: setattr(norm, "forward", norm.forward), "its forward was replaced"),
        (lambda norm: parametrizations.weight_norm(norm, dim=None), "it is parametrized"),
        (lambda norm: norm.to(torch.float8_e4m3fn), "no kernel: "),
    ],
    ids=["attribute", "submodule", "forward", "parametrization", "dtype"],
)
def test_layers_that_would_change_are_kept(change, why_not, backend):
    if why_not == "no kernel: " and backend != "cpu":
        pytest.skip(f"{backend} takes every dtype")
    norm = nn.InstanceNorm2d(4, affine=True)
    change(norm)
    before = type(norm)
    (row,) = accelerate(nn.Sequential(norm)).rows
    assert row.why_not.startswith(why_not)
    assert type(norm) is before


class OwnForward(nn.InstanceNorm2d):
    def forward(self, input):
        return super().forward(input) + 1


class OwnNorm(nn.InstanceNorm2d):
    def _apply_instance_norm(self, input):  # torch's forward calls this
        return super()._apply_instance_norm(input) + 1


class OwnPickle(nn.BatchNorm2d):
    def __reduce__(self):
        return super().__reduce__()


@pytest.mark.parametrize(
    ("norm", "why_not"),
    [
        (OwnForward(4), "it has its own forward"),
        (OwnNorm(4), "it defines '_apply_instance_norm'"),
        (OwnPickle(4), "it defines '__reduce__'"),
        (nn.SyncBatchNorm(4), "SyncBatchNorm takes its statistics from all processes"),
        (nn.LayerNorm(4), "momentnorm uses torch's own layer"),
        (nn.RMSNorm(4), "momentnorm uses torch's own layer"),
        (nn.LocalResponseNorm(4), "momentnorm uses torch's own layer"),
        (momentnorm.InstanceNorm2d(4), "already a momentnorm layer"),
        (momentnorm.BatchInstanceNorm2d(4), "already a momentnorm layer"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_without_a_counterpart_are_kept(norm, why_not):
    before = type(norm)
    (row,) = accelerate(nn.Sequential(norm)).kept
    assert row.why_not.startswith(why_not)
    assert row.before == row.after
    restore(nn.Sequential(norm))
    assert type(norm) is before


@deprecated
def test_scripts_are_kept():
    (row,) = accelerate(torch.jit.script(small())).rows
    assert row.why_not.startswith("a TorchScript layer cannot be swapped")
    assert row.before == "scripted InstanceNorm2d"
