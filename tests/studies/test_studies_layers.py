"""Layers: each kind has its own norms, and networks of both kinds start alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from momentnorm import SwitchableNorm2d
from momentnorm.studies import stylization
from momentnorm.studies.classify import classifier
from momentnorm.studies.layers import KINDS, norm_layer, norms_of
from momentnorm.studies.switchable import shares
from momentnorm.stylize.network import Architecture, Network


def test_the_layers_are_those_named():
    for layers, package in (("momentnorm", "momentnorm."), ("torch", "torch.")):
        for norm in norms_of(layers):
            norms = [
                module
                for network in (
                    classifier((8, 16), (1, 1), 3, norm, layers),
                    stylization.build(Architecture(norm, width=8, blocks=1), layers),
                )
                for module in network.modules()
                if "Norm" in type(module).__name__ and type(module).__name__ != "ConvNorm"
            ]
            assert len(norms) == (0 if norm == "none" else 2 + 7)
            assert all(type(module).__module__.startswith(package) for module in norms)
    assert set(KINDS["momentnorm"]) - set(KINDS["torch"]) == {"switchable"}


def test_shares_are_those_of_the_layers_in_order():
    model = nn.Sequential(SwitchableNorm2d(2), nn.ReLU(), SwitchableNorm2d(2))
    model[2].var_weight.data = torch.tensor([2.0, 1.0, 1.0]).log()
    found = shares(model)
    assert len(found) == 2 * 2 * 3
    assert found["var 1 in"] == pytest.approx(1 / 3)
    assert found["var 2 in"] == pytest.approx(0.5)
    assert found["mean 2 in"] == pytest.approx(1 / 3)


def test_brightness_and_contrast_are_not_clipped():
    image = torch.tensor([0.0, 0.25, 1.0])
    for change in stylization.CHANGES.values():
        assert change(image).min() >= 0
        assert change(image).max() <= 1
    assert stylization.CHANGES["darker"](image).tolist() == [0.0, 0.125, 0.5]
    assert stylization.CHANGES["brighter"](image).tolist() == [0.5, 0.625, 1.0]


def test_the_network_is_built_alike_with_both_layers():
    networks = []
    for layers in KINDS:
        torch.manual_seed(0)
        networks.append(stylization.build(Architecture("batch", width=4, blocks=1), layers))
    assert isinstance(networks[0], Network)
    for a, b in zip(*(network.state_dict().values() for network in networks), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("layers", KINDS)
def test_groups_have_eight_channels_and_layer_norm_has_one_group(layers):
    for norm, channels, groups in (("group", 32, 4), ("group", 4, 1), ("layer", 32, 1)):
        assert norm_layer(norm, channels, layers).num_groups == groups
