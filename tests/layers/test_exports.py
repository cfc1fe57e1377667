"""Public names of the relatives, and the arguments device and dtype of their constructors."""

from __future__ import annotations

import pytest
import torch

import momentnorm

RELATIVES = [
    "BatchInstanceNorm2d",
    "IBN",
    "SwitchableNorm1d",
    "SwitchableNorm2d",
    "SwitchableNorm3d",
    "ContrastNorm2d",
]


def test_everything_is_exported():
    for name in RELATIVES:
        assert getattr(momentnorm, name).__name__ == name
        assert name in momentnorm.__all__


@pytest.mark.parametrize("name", RELATIVES[:-1])
def test_factory_arguments(name):
    layer = getattr(momentnorm, name)(4, device="meta", dtype=torch.float64)
    for key, values in layer.state_dict().items():
        assert values.is_meta
        assert values.dtype == torch.float64 or key.endswith("num_batches_tracked")
